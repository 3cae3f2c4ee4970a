// Random problems through the C API: a string of bytes says sizes, dtypes, strides, options, masks, pages and what is
// wrong on purpose. A call may do one of two things: return an error with a sentence and leave every byte of its
// outputs alone, or return what the same problem gives in f64, which is the reference, and write nothing beside it.
// Anything else, and whatever a sanitizer says, is a bug.
//
// Under Clang with HEED_SANITIZE it is libFuzzer's (tests/fuzz.sh). Otherwise: fuzz [SECONDS [SEED [FIRST]]], which
// feeds bytes drawn from SEED, beginning with string FIRST, and says at the end how many problems there were.
#include <heed/heed.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "half.h"

namespace {

using Shape = std::vector<int64_t>;  // of 4

struct Counts {
  int64_t problems = 0, calls = 0, errors = 0, compared = 0;
} counts;
std::string doing;  // what the problem is, for a failure's message

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fputs("fuzz: ", stderr);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n  in %s\n  heed_last_error: %s\n", doing.c_str(), heed_last_error());
  std::abort();
}

// ---- Dice that are read from the bytes; zeros behind their end ----

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool any() const { return at_ < size_; }
  int64_t below(int64_t n) { return n <= 256 ? next() % n : (next() << 8 | next()) % n; }
  int64_t between(int64_t a, int64_t b) { return a + below(b - a + 1); }
  bool once_in(int64_t n) { return below(n) == n - 1; }  // not at the end of the bytes
  uint32_t seed() { return static_cast<uint32_t>(next() << 16 | next() << 8 | next()); }
  // Numbers at the ends of what int64 holds.
  int64_t absurd() {
    constexpr int64_t kAll[] = {-1,       -2,       INT64_MIN, INT64_MIN + 1, INT64_MAX,          INT64_MAX - 1,
                                1L << 31, 1L << 32, 1L << 40,  1L << 62,      -(int64_t{1} << 40)};
    return kAll[below(std::size(kAll))];
  }

 private:
  int64_t next() { return at_ < size_ ? data_[at_++] : 0; }
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// A cheap generator for the values of tensors.
class Values {
 public:
  explicit Values(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  double next() {  // in [-1, 1)
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(static_cast<int64_t>(state_) >> 32) * 0x1p-31;
  }

 private:
  uint64_t state_;
};

// ---- Tensors in memory of exactly the size that their views reach ----

constexpr unsigned char kUntouched = 0xA5;

int64_t size_of(heed_dtype t) { return t == HEED_F64 ? 8 : t == HEED_F32 ? 4 : t == HEED_I8 ? 1 : 2; }

int64_t elements(const Shape& s) { return s[0] * s[1] * s[2] * s[3]; }

class Memory {
 public:
  Memory() = default;
  // Whose layout the bytes choose: any strides for what is read, any without overlap for what is written.
  Memory(Bytes& from, heed_dtype dtype, const Shape& shape, bool written) : shape(shape), dtype(dtype) {
    std::vector<int> order{0, 1, 2};  // of axes in memory, outermost first
    const int64_t layout = from.below(8);
    if (layout == 1) order = {0, 2, 1};
    if (layout == 2) order = {2, 1, 0};
    int64_t stride = std::max<int64_t>(shape[3], 1) + (layout == 3 ? from.below(9) : 0);
    for (int x = 2; x >= 0; --x) {
      strides[order[x]] = stride;
      stride = std::max<int64_t>(stride * shape[order[x]], 1) + (layout == 3 ? from.below(5) : 0);
    }
    strides[3] = 1;
    if (layout == 4 && !written) strides[from.below(3)] = 0;
    if (layout == 5 && !written) strides[2] = from.below(3);  // rows that overlap
    if (layout == 6) {
      const int64_t axis = from.below(3);
      strides[axis] = -strides[axis];
    }
    if (from.once_in(4))
      for (int axis = 0; axis < 4; ++axis)  // of no meaning, and so of any value
        if (shape[axis] == 1 || elements(shape) == 0) strides[axis] = from.absurd();
    int64_t low = 0, high = 0;
    if (elements(shape) > 0)
      for (int axis = 0; axis < 4; ++axis)
        if (shape[axis] > 1) (strides[axis] < 0 ? low : high) += strides[axis] * (shape[axis] - 1);
    first_ = -low;
    bytes_.resize(elements(shape) > 0 ? (high - low + 1) * size_of(dtype) : 0);
    std::fill(bytes_.begin(), bytes_.end(), kUntouched);
    given = true;
  }

  void fill(Values& values, double spread) {
    each([&](int64_t at) { put(at, spread * values.next()); });
  }
  template <class F>
  void fill_with(F&& value) {
    each([&](int64_t at) { put(at, value()); });
  }

  heed_tensor view() {
    if (!given) return heed_none();
    heed_tensor t = heed_dense(nullptr, dtype, shape[0], shape[1], shape[2], shape[3]);
    t.data = bytes_.empty() ? &nothing_ : bytes_.data() + first_ * size_of(dtype);
    std::copy(strides, strides + 4, t.stride);
    return t;
  }
  double at(int64_t b, int64_t h, int64_t i, int64_t d) const {
    const int64_t x[4] = {b, h, i, d};
    int64_t at = first_;
    for (int axis = 0; axis < 4; ++axis)
      if (shape[axis] > 1) at += x[axis] * strides[axis];
    return get(at);
  }
  // Dense, in f64, in the order of the axes.
  std::vector<double> exact() const {
    std::vector<double> all;
    if (given) each([&](int64_t at) { all.push_back(get(at)); });
    return all;
  }

  bool untouched() const {
    return std::all_of(bytes_.begin(), bytes_.end(), [](unsigned char c) { return c == kUntouched; });
  }
  // Whether what lies between the elements of the view is as it was.
  bool untouched_between() const {
    std::vector<bool> element(bytes_.size() / size_of(dtype));
    each([&](int64_t at) { element[at] = true; });
    for (size_t x = 0; x < bytes_.size(); ++x)
      if (!element[x / size_of(dtype)] && bytes_[x] != kUntouched) return false;
    return true;
  }
  void forget() { std::fill(bytes_.begin(), bytes_.end(), kUntouched); }

  Shape shape{0, 0, 0, 0};
  heed_dtype dtype = HEED_F32;
  int64_t strides[4] = {};
  bool given = false;

 private:
  template <class F>
  void each(F&& f) const {
    for (int64_t b = 0; b < shape[0]; ++b)
      for (int64_t h = 0; h < shape[1]; ++h)
        for (int64_t i = 0; i < shape[2]; ++i)
          for (int64_t d = 0; d < shape[3]; ++d) {
            const int64_t x[4] = {b, h, i, d};
            int64_t at = first_;
            for (int axis = 0; axis < 4; ++axis)
              if (shape[axis] > 1) at += x[axis] * strides[axis];
            f(at);
          }
  }
  template <class T>
  T load(int64_t at) const {
    T x;
    std::memcpy(&x, bytes_.data() + at * sizeof(T), sizeof(T));
    return x;
  }
  template <class T>
  void store(int64_t at, T x) {
    std::memcpy(bytes_.data() + at * sizeof(T), &x, sizeof(T));
  }
  double get(int64_t at) const {
    switch (dtype) {
      case HEED_F32:
        return load<float>(at);
      case HEED_F64:
        return load<double>(at);
      case HEED_F16:
        return heed::float_of_half(load<uint16_t>(at));
      case HEED_BF16:
        return heed::float_of_bfloat(load<uint16_t>(at));
      default:
        return load<int8_t>(at);
    }
  }
  void put(int64_t at, double x) {
    switch (dtype) {
      case HEED_F32:
        return store(at, static_cast<float>(x));
      case HEED_F64:
        return store(at, x);
      case HEED_F16:
        return store(at, heed::half_of_float(static_cast<float>(x)));
      case HEED_BF16:
        return store(at, heed::bfloat_of_float(static_cast<float>(x)));
      default:
        return store(at, static_cast<int8_t>(std::lround(127 * x)));
    }
  }

  int64_t first_ = 0;
  std::vector<unsigned char> bytes_;
  static inline unsigned char nothing_ = kUntouched;
};

heed_tensor dense_f64(const std::vector<double>& x, const Shape& s) {
  static const double nothing = 0;
  return heed_dense_f64(x.empty() ? &nothing : x.data(), s[0], s[1], s[2], s[3]);
}

// ---- Masks: how one is made, so that it can be made again for one sequence ----

struct Recipe {
  int64_t kind = 0;
  std::vector<int64_t> a, b;
  int64_t x = 0, y = 0, z = 0;
  Shape shape;  // of a boolean mask
  std::vector<unsigned char> pairs;
  std::vector<Recipe> parts;
  mutable int64_t batch = 0;  // the sequence that a mask of one sequence is of
};

enum Kind {
  kAll,
  kCausal,
  kCausalOffset,
  kWindow,
  kWindowOffset,
  kLengths,
  kPrefix,
  kDilated,
  kStrided,
  kFixed,
  kGlobal,
  kBlocks,
  kBoolean,
  kWhere,
  kAnd,
  kOr,
  kNot,
  kDocuments,
  kRagged,
  kNeighbourhood,
  kKinds
};

struct Sizes {
  int64_t B, Hq, Hkv, L, S, D, Dv;
};

int sees_some(void* recipe, int64_t b, int64_t h, int64_t i, int64_t j) {
  const Recipe& r = *static_cast<const Recipe*>(recipe);
  return (3 * i + j + 2 * h + b + r.batch) % r.x != 0;
}

Recipe draw_mask(Bytes& from, const Sizes& n, bool ragged_pages, int depth = 0) {
  Recipe r;
  const int64_t kinds = ragged_pages ? kDocuments : kKinds;
  r.kind = from.below(depth < 3 ? kinds : int64_t{kAnd});
  if (ragged_pages && r.kind == kBlocks) r.kind = kAll;  // a table of blocks is of one number of keys
  // Now and then as wrong as can be: the mask is refused, or it is a mask.
  const auto number = [&](int64_t low, int64_t high) {
    return from.once_in(64) ? from.absurd() : from.between(low, std::max(low, high));
  };
  switch (r.kind) {
    case kCausalOffset:
      r.x = number(-5, n.S + 3);
      break;
    case kWindow:
    case kWindowOffset:
      r.x = number(-1, n.S), r.y = number(-1, 9), r.z = number(-4, n.S);
      break;
    case kLengths:
      for (int64_t b = 0; b < n.B; ++b) r.a.push_back(number(0, n.S + 2));
      break;
    case kPrefix:
      for (int64_t b = 0; b < (from.below(2) ? n.B : 1); ++b) r.a.push_back(number(0, n.S + 2));
      break;
    case kDilated:
      r.x = number(0, n.S), r.y = number(1, 9);
      break;
    case kStrided:
      r.x = number(0, 9), r.y = number(1, 40);
      break;
    case kFixed:
      r.x = number(1, 30), r.y = number(0, r.x < 30 ? r.x : 30);
      break;
    case kGlobal:
      for (int64_t x = from.below(4); x > 0; --x) r.a.push_back(number(0, n.S));
      break;
    case kBlocks:
      r.x = from.between(1, 40), r.y = from.between(1, 300), r.a = {0};
      for (int64_t i = 0; i < n.L; i += r.x) {
        for (int64_t j = 0; j < n.S; j += r.y)
          if (from.below(2)) r.b.push_back(j / r.y);
        r.a.push_back(static_cast<int64_t>(r.b.size()));
      }
      if (from.once_in(32) && !r.b.empty()) r.b[from.below(static_cast<int64_t>(r.b.size()))] = from.absurd();
      if (from.once_in(32) && r.a.size() > 2) r.a[1] = from.absurd();
      if (from.once_in(64)) r.y = from.absurd();
      break;
    case kBoolean: {
      r.shape = {from.below(2) ? n.B : 1, from.below(2) ? n.Hq : 1, from.below(3) ? n.L : 1, n.S};
      Values values(from.seed());
      const double share = 0.25 * static_cast<double>(from.below(4)) - 0.25;
      r.pairs.resize(elements(r.shape));
      for (unsigned char& c : r.pairs) c = values.next() > share;
      break;
    }
    case kWhere:
      r.x = from.between(1, 9);
      break;
    case kAnd:
    case kOr:
      r.parts.push_back(draw_mask(from, n, ragged_pages, depth + 1));
      [[fallthrough]];
    case kNot:
      r.parts.push_back(draw_mask(from, n, ragged_pages, depth + 1));
      break;
    case kDocuments:
      for (int64_t left = n.S; left > 0 && r.a.size() < 9; left -= r.a.back()) {
        r.a.push_back(std::min(left, number(0, 1 + n.S / 2)));
        if (r.a.back() < 0) break;
      }
      break;
    case kRagged:
      r.a = {0, number(0, n.L), n.L}, r.b = {0, number(0, n.S), n.S};
      r.x = number(-1, 9), r.y = number(-1, 3);
      break;
    case kNeighbourhood:  // fits seldom: queries and keys are as many as the picture has places
      r.a = {1, n.L}, r.b = {number(1, 1), number(0, n.L)};
      break;
    default:
      break;
  }
  return r;
}

// Of all sequences, or of one of them, with its own number of keys.
heed_mask* make(const Recipe& r, int64_t only = -1, int64_t keys = 0) {
  const size_t first = only > 0 && r.a.size() > 1 ? only : 0;
  const size_t count = only >= 0 ? std::min<size_t>(1, r.a.size()) : r.a.size();
  switch (r.kind) {
    case kCausal:
      return heed_mask_causal();
    case kCausalOffset:
      return heed_mask_causal_offset(r.x);
    case kWindow:
      return heed_mask_window(r.x, r.y);
    case kWindowOffset:
      return heed_mask_window_offset(r.x, r.y, r.z);
    case kLengths:
      return heed_mask_lengths(r.a.data() + first, count);
    case kPrefix:
      return heed_mask_prefix_lm(r.a.data() + first, count);
    case kDilated:
      return heed_mask_dilated(r.x, r.y);
    case kStrided:
      return heed_mask_strided(r.x, r.y);
    case kFixed:
      return heed_mask_fixed(r.x, r.y);
    case kGlobal:
      return heed_mask_global_tokens(r.a.data(), r.a.size());
    case kBlocks:
      return heed_mask_block_sparse(r.x, r.y, r.a.data(), r.a.size() - 1, r.b.data());
    case kBoolean: {
      int64_t shape[4], stride[4] = {r.shape[1] * r.shape[2] * r.shape[3], r.shape[2] * r.shape[3], r.shape[3], 1};
      std::copy(r.shape.begin(), r.shape.end(), shape);
      const unsigned char none = 1;
      const unsigned char* pairs = r.pairs.empty() ? &none : r.pairs.data();
      if (only >= 0) {
        pairs += shape[0] > 1 ? only * stride[0] : 0;
        shape[0] = 1, shape[3] = keys;
      }
      return heed_mask_boolean(pairs, shape, stride);
    }
    case kWhere:
      return r.batch = std::max<int64_t>(only, 0), heed_mask_where(sees_some, const_cast<Recipe*>(&r), 1, 1);
    case kDocuments:
      return heed_mask_documents(r.a.data(), r.a.size());
    case kRagged:
      return heed_mask_ragged(r.a.data(), r.b.data(), r.a.size() - 1, r.x, r.y);
    case kNeighbourhood:
      return heed_mask_neighbourhood(r.a.data(), r.b.data(), r.a.size());
    case kAnd:
    case kOr:
    case kNot: {
      heed_mask* parts[2] = {};
      bool good = true;
      for (size_t x = 0; x < r.parts.size(); ++x) {
        parts[x] = make(r.parts[x], only, keys);
        good &= parts[x] || r.parts[x].kind == kAll;
      }
      heed_mask* whole = !good            ? nullptr
                         : r.kind == kAnd ? heed_mask_and(parts[0], parts[1])
                         : r.kind == kOr  ? heed_mask_or(parts[0], parts[1])
                                          : heed_mask_not(parts[0]);
      heed_mask_free(parts[0]);
      heed_mask_free(parts[1]);
      return whole;
    }
    default:
      return nullptr;
  }
}

// ---- Functions of scores ----

template <int kWhich, class T>
void bend(void* self, const heed_score_row* row, T* s, T* slope) {
  const int64_t batch = row->batch + *static_cast<int64_t*>(self);
  for (int64_t n = 0; n < row->count; ++n) {
    const T place = static_cast<T>((batch + 2 * row->head + row->query + row->key + n) % 5) / 8;
    if (kWhich == 0) {
      const T y = 1 + std::abs(s[n]) / 8;
      if (slope) slope[n] = 1 / (y * y);
      s[n] = s[n] / y + place;
    } else {
      if (slope) slope[n] = place;
      s[n] *= place;
    }
  }
}

void one_by_one(void*, int64_t tasks, void (*task)(void*, int64_t), void* context) {
  for (int64_t x = tasks - 1; x >= 0; --x) task(context, x);
}

// ---- One problem ----

// The inputs of a call that tensors of f64 stand for: dense, widened, of one sequence if the keys lie in pages.
struct Exact {
  std::deque<std::vector<double>> numbers;
  heed_attention a;
  heed_tensor widen(const Memory& m) {
    if (!m.given) return heed_none();
    return dense_f64(numbers.emplace_back(m.exact()), m.shape);
  }
  std::vector<double>& room(const Shape& s) { return numbers.emplace_back(elements(s)); }
};

struct Result {
  const char* name;
  Memory* got;
  std::vector<double>* want;
  double sum = 1;  // how many such errors an element may be made of
};

double half_a_step(heed_dtype t) { return t == HEED_BF16 ? 0x1p-8 : t == HEED_F16 ? 0x1p-11 : 0; }

// Relative to the largest value there is: f32 arithmetic on a few hundred numbers of size 1, and one rounding to the
// dtype; a gradient also got an out that was rounded, of which it makes a sum.
void compare(const Result& r, heed_dtype dtype, bool gradient) {
  double size = 1, worst = 0;
  const std::vector<double> got = r.got->exact();
  for (const double x : *r.want)
    if (std::isfinite(x)) size = std::max(size, std::fabs(x));
  for (size_t x = 0; x < got.size(); ++x) {
    const double y = (*r.want)[x];
    if (got[x] == y || (std::isnan(got[x]) && std::isnan(y))) continue;
    const double off = std::fabs(got[x] - y) / size;
    worst = std::isnan(off) ? INFINITY : std::max(worst, off);
  }
  const double bound = r.sum * (gradient ? 1e-3 + 16 * half_a_step(dtype) : 3e-4 + half_a_step(r.got->dtype));
  if (worst > bound) fail("%s is off by %g, more than %g", r.name, worst, bound);
}

void expect_sentence() {
  const std::string said = heed_last_error();
  if (said.size() < 10 || said.find(' ') == std::string::npos) fail("an error without a sentence");
}

class Problem {
 public:
  Problem(Bytes& from, heed_plan* const plans[2]) : from(from), plans(plans) {}
  void run();

 private:
  void draw();
  void pages(Values& values);
  void spoil(heed_tensor& t, const char* name);
  void spoil_problem(bool steps);
  void call(const char* what, heed_status status, const std::vector<Memory*>& written);
  Exact exact(int64_t sequence);
  void forward();
  void backward();
  void steps();

  Bytes& from;
  heed_plan* const* plans;
  Sizes n{};
  heed_dtype dtype = HEED_F32;
  heed_attention a;
  Recipe recipe;
  heed_mask* mask = nullptr;
  Memory q, k, v, w, bias, alibi, sinks, k_scale, v_scale, out, lse;
  heed_tensor out_view, lse_view;
  std::vector<int32_t> table;
  std::vector<int64_t> keys;
  int64_t page = 0, columns = 0;
  int64_t mod_batch = 0;
  bool paged = false, wild = false;
  bool wrong = false;      // something was spoilt: an error is fine
  bool must_fail = false;  // and right
  bool good = false;       // the last call succeeded
};

void Problem::draw() {
  const bool decode = from.below(3) == 1;
  n.B = from.below(4) ? 1 : from.below(4);
  n.Hkv = 1 + from.below(2), n.Hq = n.Hkv * (1 + from.below(3));
  n.L = decode ? from.below(4) : from.below(8) == 7 ? from.below(200) : from.below(40);
  n.S = from.below(4) == 3 ? from.below(600) : from.below(70);
  n.D = from.below(8) == 7 ? from.below(100) : from.below(33), n.Dv = from.below(3) ? n.D : from.below(70);
  constexpr heed_dtype kTypes[] = {HEED_F32, HEED_F32, HEED_F16, HEED_BF16, HEED_F64};
  dtype = kTypes[from.below(5)];
  paged = dtype != HEED_F64 && from.once_in(5);
  wild = from.once_in(16);
  Values values(from.seed());
  heed_attention_init(&a);
  a.has_scale = n.D == 0 || from.below(3) == 1;
  a.scale = 0.1 * static_cast<double>(from.between(-9, 9));
  if (from.below(4) == 3) a.softcap = 3;
  if (!paged && from.below(5) == 4) a.score = HEED_ADDITIVE;
  if (from.below(6) == 5) a.weigh = HEED_SIGMOID;
  if (!paged && from.below(5) == 4) a.dropout = 0.3, a.seed = from.seed();
  const auto of = [&](const Shape& s, heed_dtype t, double spread, bool written = false) {
    Memory m(from, t, s, written);
    if (!written) m.fill(values, spread);
    return m;
  };
  q = of({n.B, n.Hq, n.L, n.D}, dtype, 1);
  if (paged)
    pages(values);
  else {
    k = of({n.B, n.Hkv, n.S, n.D}, dtype, 1);
    v = of({n.B, n.Hkv, n.S, n.Dv}, dtype, 1);
  }
  const heed_dtype beside = from.below(2) && dtype != HEED_F64 ? HEED_F32 : dtype;
  if (a.score == HEED_ADDITIVE) w = of({1, from.below(2) ? n.Hq : 1, 1, n.D}, dtype, 1);
  // Biases of pages would need columns of each sequence's own.
  if (!paged && from.below(4) == 3) {
    if (from.below(3) == 2) {
      bias = of({1, n.Hq, n.L, n.S}, HEED_F32, 1);
      if (dtype == HEED_F64) bias = {};
    } else {
      bias = of({from.below(2) ? n.B : 1, from.below(2) ? n.Hq : 1, from.below(3) ? n.L : 1, from.below(3) ? n.S : 1},
                beside, 1);
    }
  }
  if (from.below(5) == 4) alibi = of({1, from.below(2) ? n.Hq : 1, 1, 1}, beside, 0.1);
  if (a.weigh == HEED_SOFTMAX && from.below(5) == 4) sinks = of({1, from.below(2) ? n.Hq : 1, 1, 1}, beside, 2);
  if (wild) {
    constexpr double kOdd[] = {NAN, INFINITY, -INFINITY, 1e38, -1e38, 1e-40};
    Memory* all[] = {&q, &k, &v, &w, &bias, &alibi, &sinks};
    Memory& m = *all[from.below(std::size(all))];
    const double odd = kOdd[from.below(std::size(kOdd))];
    if (m.given && m.dtype != HEED_I8) m.fill_with([&] { return values.next() > 0.5 ? odd : values.next(); });
  }
  out = Memory(from, dtype, {n.B, n.Hq, n.L, n.Dv}, true);
  if (a.weigh == HEED_SOFTMAX && from.below(3))
    lse = Memory(from, dtype == HEED_F64 ? HEED_F64 : HEED_F32, {n.B, n.Hq, n.L, 1}, true);

  a.q = q.view(), a.k = k.view(), a.v = v.view(), a.w = w.view(), a.bias = bias.view();
  a.alibi = alibi.view(), a.sinks = sinks.view();
  out_view = out.view(), lse_view = lse.view();
  if (from.below(5) == 4) {
    const bool gate = from.below(2);
    a.score_mod = gate ? heed_score_mod{&mod_batch, bend<1, float>, bend<1, double>}
                       : heed_score_mod{&mod_batch, bend<0, float>, bend<0, double>};
  }
  if (from.below(6) == 5) a.executor = {nullptr, static_cast<int>(from.between(-1, 6)), one_by_one};
  if (const int64_t x = from.below(4); x < 2) a.plan = plans[x];

  recipe = draw_mask(from, n, paged);
  mask = make(recipe);
  a.mask = mask;
  doing = "B" + std::to_string(n.B) + " H" + std::to_string(n.Hq) + "/" + std::to_string(n.Hkv) + " L" +
          std::to_string(n.L) + " S" + std::to_string(n.S) + " D" + std::to_string(n.D) + "/" + std::to_string(n.Dv) +
          " dtype " + std::to_string(dtype) + " mask " + std::to_string(recipe.kind) + (paged ? " pages" : "") +
          (a.score ? " additive" : "") + (a.weigh ? " sigmoid" : "") + (a.softcap > 0 ? " softcap" : "") +
          (a.dropout > 0 ? " dropout" : "") + (bias.given ? " bias" : "") + (alibi.given ? " alibi" : "") +
          (sinks.given ? " sinks" : "") + (a.score_mod.run_f32 ? " mod" : "") + (a.plan ? " plan" : "") +
          (wild ? " wild" : "");
}

// k and v as pools that the sequences' pages are scattered over.
void Problem::pages(Values& values) {
  heed_dtype t = dtype;
  if (dtype == HEED_F32) {
    constexpr heed_dtype kTypes[] = {HEED_F32, HEED_F16, HEED_BF16, HEED_I8};
    t = kTypes[from.below(4)];
  } else if (from.below(3) == 2) {
    t = HEED_I8;
  }
  page = 16 * (1 + from.below(5));
  n.S = 0;
  for (int64_t b = 0; b < n.B; ++b)
    keys.push_back(from.below(3) == 2 ? from.below(500) : from.below(70)), n.S = std::max(n.S, keys[b]);
  columns = (n.S + page - 1) / page + from.below(2);
  int64_t pool = from.below(3);
  for (const int64_t each : keys) pool += (each + page - 1) / page;
  // Each page once, counted from the last; entries behind a sequence's end are any number.
  int32_t next = static_cast<int32_t>(pool);
  for (int64_t b = 0; b < n.B; ++b)
    for (int64_t x = 0; x < columns; ++x)
      table.push_back(x * page < keys[b] ? --next : static_cast<int32_t>(from.below(3) ? -1 : 1 << 30));
  if (table.empty()) table.push_back(-1);
  k = Memory(from, t, {pool, n.Hkv, page, n.D}, false);
  v = Memory(from, t, {pool, n.Hkv, page, n.Dv}, false);
  k.fill(values, 1);
  v.fill(values, 1);
  if (t == HEED_I8) {
    for (Memory* m : {&k_scale, &v_scale}) {
      *m = Memory(from, HEED_F32, {pool, n.Hkv, page, 1}, false);
      m->fill(values, 0.5 / 127);
    }
  }
  a.pages = {table.data(), columns, columns, keys.data(), k_scale.view(), v_scale.view()};
}

// The same in f64; of one sequence, with keys in one piece, if they lie in pages.
Exact Problem::exact(int64_t sequence) {
  Exact e;
  e.a = a;
  e.a.plan = nullptr;
  e.a.executor = {};
  const auto own = [&](const Memory& m, int64_t b, int64_t length, auto&& value) {
    const Shape s{1, m.shape[1], length, m.shape[3]};
    std::vector<double>& x = e.room(s);
    x.clear();
    for (int64_t h = 0; h < s[1]; ++h)
      for (int64_t i = 0; i < length; ++i)
        for (int64_t d = 0; d < s[3]; ++d) x.push_back(value(b, h, i, d));
    return dense_f64(x, s);
  };
  if (paged) {
    const auto key_of = [&](const Memory& pool, const Memory& scale) {
      return [&](int64_t b, int64_t h, int64_t j, int64_t d) {
        const int64_t p = table[b * columns + j / page];
        return pool.at(p, h, j % page, d) * (scale.given ? scale.at(p, h, j % page, 0) : 1);
      };
    };
    e.a.q = own(q, sequence, n.L, [&](auto b, auto h, auto i, auto d) { return q.at(b, h, i, d); });
    e.a.k = own(k, sequence, keys[sequence], key_of(k, k_scale));
    e.a.v = own(v, sequence, keys[sequence], key_of(v, v_scale));
    e.a.pages = {};
    mod_batch = sequence;
  } else {
    e.a.q = e.widen(q), e.a.k = e.widen(k), e.a.v = e.widen(v);
  }
  e.a.w = e.widen(w), e.a.bias = e.widen(bias), e.a.alibi = e.widen(alibi), e.a.sinks = e.widen(sinks);
  return e;
}

// Makes one view wrong.
void Problem::spoil(heed_tensor& t, const char* name) {
  const int64_t axis = from.below(4);
  switch (from.below(6)) {
    case 0: {
      must_fail |= elements({t.shape, t.shape + 4}) > 0 && (t.data == a.q.data || t.data == a.k.data);
      t.data = nullptr;  // a tensor may be left out
      break;
    }
    case 1:
      t.shape[axis] = from.absurd();
      break;
    case 2:
      t.shape[axis] += from.below(2) ? 1 : -1;
      break;
    case 3:
      t.shape[axis] = 0;
      break;
    case 4:
      if (t.shape[3] > 1) t.stride[3] = from.between(-1, 2);
      must_fail |= t.data && t.shape[3] > 1 && t.stride[3] != 1 && elements({t.shape, t.shape + 4}) > 0;
      break;
    default: {
      constexpr int kNumbers[] = {-1, 5, 7, 1000, INT_MAX, INT_MIN, HEED_I8, HEED_F64, HEED_F16};
      const int number = kNumbers[from.below(std::size(kNumbers))];
      std::memcpy(&t.dtype, &number, sizeof number);  // an enum's own values may not be left in C++
      break;
    }
  }
  doing += std::string(", spoilt ") + name;
  wrong = true;
}

// Makes one thing of the problem wrong.
void Problem::spoil_problem(bool steps) {
  const auto must = [&](const char* what) { doing += std::string(", ") + what, wrong = must_fail = true; };
  const auto may = [&](const char* what) { doing += std::string(", ") + what, wrong = true; };
  const double kOdd[] = {NAN, INFINITY, -INFINITY};
  switch (from.below(24)) {
    case 0:
      return a.has_scale = 1, a.scale = kOdd[from.below(3)], must("scale");
    case 1:
      return a.softcap = from.below(2) ? -1 : kOdd[from.below(3)], must("softcap");
    case 2:
      return a.dropout = from.below(2) ? (from.below(2) ? -0.1 : 1) : kOdd[from.below(3)], must("dropout");
    case 3: {
      const int number = from.below(2) ? 2 : -7;
      std::memcpy(&a.score, &number, sizeof number);
      return must("score");
    }
    case 4: {
      const int number = from.below(2) ? 2 : -7;
      std::memcpy(&a.weigh, &number, sizeof number);
      return must("weigh");
    }
    case 5:
      return a.size = static_cast<size_t>(from.below(4)), must("size");
    case 6:
      return a.score_mod = {&mod_batch, bend<0, float>, nullptr}, dtype == HEED_F64 ? must("mod") : may("mod");
    case 7:
      if (!a.w.data) return;
      return a.score = HEED_DOT, must("w of dot scores");
    case 8:
      if (!a.sinks.data || n.L * n.S * n.B == 0) return;
      return a.weigh = HEED_SIGMOID, must("sinks of sigmoid weights");
    case 9:
      if (!paged) return;
      if (n.B > 0 && from.below(2)) return keys[from.below(n.B)] = from.absurd(), must("keys");
      return a.pages.table_columns = std::min<int64_t>(0, from.absurd()), n.S > 0 ? must("columns") : may("columns");
    case 10:
      if (!paged) return;
      table[from.below(static_cast<int64_t>(table.size()))] = from.below(2) ? -1 : INT32_MAX;
      return may("table");
    case 11:
      if (!paged) return;
      if (from.below(2)) return a.pages.keys = nullptr, n.B > 0 ? must("keys NULL") : may("keys NULL");
      return spoil(from.below(2) ? a.pages.k_scale : a.pages.v_scale, "scale of pages");
    case 12: {  // of another problem's
      Sizes other = n;
      other.L = from.below(40), other.S = from.below(70), other.B = from.below(4);
      heed_mask_free(mask);
      recipe = draw_mask(from, other, false);
      a.mask = mask = make(recipe);
      must_fail = false;
      return may("another mask");
    }
    case 13:
    case 14:
      return spoil(a.q, "q");
    case 15:
    case 16:
      return spoil(a.k, "k");
    case 17:  // the steps do not look at v, out and lse of the problem
      return steps ? void() : spoil(a.v, "v");
    case 18:
      return spoil(a.w, "w");
    case 19:
      return a.bias.data ? spoil(a.bias, "bias") : void();
    case 20:
      return a.alibi.data ? spoil(a.alibi, "alibi") : void();
    case 21:
      return a.sinks.data ? spoil(a.sinks, "sinks") : void();
    case 22:
      return steps ? void() : spoil(out_view, "out");
    default:
      return lse_view.data && !steps ? spoil(lse_view, "lse") : void();
  }
}

// What every call is held to.
void Problem::call(const char* what, heed_status status, const std::vector<Memory*>& written) {
  ++counts.calls;
  good = status == HEED_OK;
  if (good) {
    if (must_fail) fail("%s took it", what);
    for (Memory* m : written)
      if (m->given && !wrong && !m->untouched_between()) fail("%s wrote beside its output", what);
    return;
  }
  ++counts.errors;
  if (status != HEED_INVALID) fail("%s gave status %d", what, static_cast<int>(status));
  expect_sentence();
  for (Memory* m : written)
    if (!m->untouched()) fail("%s gave an error and wrote", what);
  if (!wrong) fail("%s refused what is right", what);
}

void Problem::forward() {
  call("heed_forward", heed_forward(&a, out_view, lse_view), {&out, &lse});
  if (!good || wrong || wild) return;
  ++counts.compared;
  const bool eight = k.dtype == HEED_I8;  // queries of 16 bits
  const Memory o = out, l = lse;
  std::vector<double> want_out, want_lse;
  for (int64_t b = 0; b < (paged ? n.B : 1); ++b) {
    Exact e = exact(b);
    const int64_t B = paged ? 1 : n.B;
    heed_mask* alone = paged ? make(recipe, b, keys[b]) : nullptr;
    if (paged) e.a.mask = alone;
    std::vector<double>& x = e.room({B, n.Hq, n.L, n.Dv});
    std::vector<double>& y = e.room({B, n.Hq, n.L, 1});
    const bool rows = a.weigh == HEED_SOFTMAX;
    if (heed_forward(&e.a, dense_f64(x, {B, n.Hq, n.L, n.Dv}), rows ? dense_f64(y, {B, n.Hq, n.L, 1}) : heed_none()) !=
        HEED_OK)
      fail("the reference refused");
    want_out.insert(want_out.end(), x.begin(), x.end());
    want_lse.insert(want_lse.end(), y.begin(), y.end());
    heed_mask_free(alone);
  }
  recipe.batch = 0, mod_batch = 0;
  compare({"out", &out, &want_out}, eight && half_a_step(dtype) == 0 ? HEED_F16 : dtype, eight);
  if (lse.given) compare({"lse", &lse, &want_lse}, HEED_F32, eight);
}

void Problem::backward() {
  if (paged && !wrong) must_fail = wrong = true, doing += ", backward of pages";
  const bool sigmoid = a.weigh == HEED_SIGMOID;
  const heed_dtype exactly = dtype == HEED_F64 ? HEED_F64 : HEED_F32;
  Values values(from.seed());
  Memory d_out(from, dtype, {n.B, n.Hq, n.L, n.Dv}, false), d_lse;
  d_out.fill(values, 1);
  if (!sigmoid && from.below(3) == 2) {
    d_lse = Memory(from, exactly, {n.B, n.Hq, n.L, 1}, false);
    d_lse.fill(values, 1);
  }
  const auto wanted = [&](const Memory& m, bool sum) {
    return m.given && from.below(5) < 4 ? Memory(from, sum ? exactly : dtype, m.shape, true) : Memory();
  };
  Memory d_q = wanted(q, false), d_k = wanted(k, false), d_v = wanted(v, false), d_w = wanted(w, true),
         d_bias = wanted(bias, true), d_alibi = wanted(alibi, true), d_sinks = wanted(sinks, true);
  heed_incoming in{sigmoid ? heed_none() : out.view(), sigmoid ? heed_none() : lse.view(), d_out.view(), d_lse.view()};
  heed_gradients g{d_q.view(), d_k.view(), d_v.view(), d_w.view(), d_bias.view(), d_alibi.view(), d_sinks.view()};
  const heed_incoming* in_or_not = &in;
  const heed_gradients* g_or_not = &g;
  if (from.once_in(4)) {
    heed_tensor* all[] = {&in.out, &in.lse, &in.d_out, &in.d_lse,  &g.d_q,    &g.d_k,
                          &g.d_v,  &g.d_w,  &g.d_bias, &g.d_alibi, &g.d_sinks};
    const int64_t x = from.below(std::size(all) + 2);
    if (x == std::size(all))
      in_or_not = nullptr, wrong = must_fail = true;
    else if (x > static_cast<int64_t>(std::size(all)))
      g_or_not = nullptr, wrong = must_fail = true;
    else if (all[x]->data)
      spoil(*all[x], "a gradient");
  }
  const std::vector<Memory*> written{&d_q, &d_k, &d_v, &d_w, &d_bias, &d_alibi, &d_sinks};
  call("heed_backward", heed_backward(&a, in_or_not, g_or_not), written);
  if (!good || wrong || wild) return;
  ++counts.compared;
  Exact e = exact(0);
  const Shape so{n.B, n.Hq, n.L, n.Dv}, sl{n.B, n.Hq, n.L, 1};
  const heed_tensor o = dense_f64(e.room(so), so), l = sigmoid ? heed_none() : dense_f64(e.room(sl), sl);
  const heed_incoming exact_in{sigmoid ? heed_none() : o, l, e.widen(d_out), e.widen(d_lse)};
  std::vector<std::vector<double>> want(written.size());
  heed_gradients x{};
  heed_tensor* views[] = {&x.d_q, &x.d_k, &x.d_v, &x.d_w, &x.d_bias, &x.d_alibi, &x.d_sinks};
  for (size_t i = 0; i < written.size(); ++i) {
    *views[i] = heed_none();
    if (!written[i]->given) continue;
    want[i].resize(elements(written[i]->shape));
    *views[i] = dense_f64(want[i], written[i]->shape);
  }
  if (heed_forward(&e.a, o, l) != HEED_OK || heed_backward(&e.a, &exact_in, &x) != HEED_OK)
    fail("the reference refused the backward");
  const char* const names[] = {"d_q", "d_k", "d_v", "d_w", "d_bias", "d_alibi", "d_sinks"};
  // A sum over rows is off by what each of them is, which is an error of chance; ALiBi's is one of distances.
  const double rows = std::sqrt(static_cast<double>(n.B * n.Hq * n.L));
  const double sums[] = {1, 1, 1, 1 + rows, 1 + rows, (1 + rows) * static_cast<double>(n.L + n.S), 1 + rows};
  for (size_t i = 0; i < written.size(); ++i)
    if (written[i]->given) compare({names[i], written[i], &want[i], sums[i]}, dtype, true);
}

// score, weigh, gather: together they are the forward.
void Problem::steps() {
  if (paged && !wrong) must_fail = wrong = true, doing += ", steps of pages";
  const Shape pairs{n.B, n.Hq, n.L, n.S};
  Memory scores(from, dtype, pairs, true), weights(from, dtype, pairs, true);
  heed_tensor s = scores.view(), w_view = weights.view();
  call("heed_score_step", heed_score_step(&a, s), {&scores});
  if (!good || wrong || wild) return;
  if (from.once_in(4)) spoil(from.below(2) ? s : w_view, "a step's tensor");
  call("heed_weigh_step", heed_weigh_step(s, w_view), {&weights});
  if (!good || wrong) return;
  heed_tensor v_view = v.view();
  if (from.once_in(4)) spoil(from.below(3) == 0 ? v_view : from.below(2) ? w_view : out_view, "a step's tensor");
  out.forget();
  call("heed_gather_step", heed_gather_step(w_view, v_view, out_view), {&out});
  if (!good || wrong || a.weigh != HEED_SOFTMAX || a.dropout > 0 || sinks.given || half_a_step(dtype) > 0) return;
  ++counts.compared;
  Exact e = exact(0);
  std::vector<double>& want = e.room(out.shape);
  if (heed_forward(&e.a, dense_f64(want, out.shape), heed_none()) != HEED_OK) fail("the reference refused");
  compare({"what the steps give", &out, &want}, dtype, false);
}

void Problem::run() {
  ++counts.problems;
  draw();
  if (!mask && recipe.kind != kAll) {  // refused, or one of its parts was
    ++counts.errors;
    return expect_sentence();
  }
  // A mask that fits another problem only (documents longer than the keys, a picture of other sizes) is an error as
  // well.
  if (mask && n.B > 0 && n.L > 0 && n.S > 0) {
    const int sees =
        heed_mask_sees(mask, n.B, n.Hq, n.L, n.S, from.below(n.B), from.below(n.Hq), from.below(n.L), from.below(n.S));
    if (sees < 0) expect_sentence(), wrong = must_fail = true, doing += ", a mask that does not fit";
    if (from.once_in(8))
      heed_mask_sees(mask, from.absurd(), n.Hq, from.absurd(), from.absurd(), 0, 0, from.absurd(), 0);
  } else {
    wrong = true;
  }
  const int64_t way = from.below(4);
  if (from.below(3) == 2) spoil_problem(way == 3);
  if (way == 3) {
    steps();
  } else {
    forward();
    // Needs an lse.
    if (good && way > 0 && (lse.given || a.weigh == HEED_SIGMOID)) backward();
  }
  heed_mask_free(mask);
  mask = nullptr;
}

void feed(const uint8_t* data, size_t size) {
  Bytes from(data, size);
  if (heed_set_threads(static_cast<int>(from.between(1, 3))) != HEED_OK) fail("no threads");
  constexpr const char* kTargets[] = {"AVX3", "AVX2", "SSE4", "SCALAR", "EMU128", "NEON", "", "AVX3_ZEN4"};
  if (heed_set_target(kTargets[from.below(std::size(kTargets))]) != HEED_OK) expect_sentence();
  heed_plan* plans[2] = {heed_plan_new(), heed_plan_new()};
  do Problem(from, plans).run();
  while (from.any());
  heed_plan_free(plans[0]);
  heed_plan_free(plans[1]);
}

}  // namespace

#ifdef HEED_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  feed(data, size);
  return 0;
}
#else
#include <chrono>
#include <random>

namespace {
long string = 0;
void say_which() { std::fprintf(stderr, "fuzz: in string %ld\n", string); }
}  // namespace
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*)(void));

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 30;
  const uint32_t seed = argc > 2 ? static_cast<uint32_t>(std::atol(argv[2])) : 1;
  string = argc > 3 ? std::atol(argv[3]) : 0;
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(say_which);
  for (const int signal : {SIGABRT, SIGFPE, SIGSEGV, SIGILL})
    std::signal(signal, [](int number) {
      std::fprintf(stderr, "fuzz: signal %d in %s\n", number, doing.c_str());
      say_which();
      std::signal(number, SIG_DFL);
      std::raise(number);
    });
  const auto start = std::chrono::steady_clock::now();
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds; ++string) {
    std::seed_seq mixed{seed, static_cast<uint32_t>(string)};
    std::mt19937 random(mixed);
    std::vector<uint8_t> bytes(20 + random() % 600);
    for (uint8_t& x : bytes) x = static_cast<uint8_t>(random() >> 24);
    feed(bytes.data(), bytes.size());
  }
  std::printf(
      "%ld strings, %lld problems, %lld calls: %lld errors as they should be, %lld results equal to the reference's\n",
      string, static_cast<long long>(counts.problems), static_cast<long long>(counts.calls),
      static_cast<long long>(counts.errors), static_cast<long long>(counts.compared));
}
#endif
