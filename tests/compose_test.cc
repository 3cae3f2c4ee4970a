// Every feature with every other: problems that compose three to six features drawn at random, in every pass that takes
// them, against the double-precision reference. What was drawn is counted, feature by pass: that table is
// docs/features.md, which --page=FILE writes and the last test holds against the page.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "check.h"
#include "lattice.h"
#include "probe/probe.h"
#include "reference.h"
#include "written_page.h"

namespace heed {
namespace {

using heed::testing::bending;
using heed::testing::Numbers;
using heed::testing::rounding;
using heed::testing::widened;

constexpr int kDraws = 5000;

// ---- Features ----

// Rows of the table, in order; by groups.
const std::vector<std::pair<const char*, std::vector<const char*>>> kFeatures = {
    {"Masks",
     {"causal", "window", "lengths", "documents", "prefix_lm", "ragged", "dilated", "strided", "fixed", "global_tokens",
      "neighbourhood", "block_sparse", "boolean", "where", "a & b", "a | b", "!a"}},
    {"Scores", {"dot", "additive", "scale", "softcap", "bias", "relative bias", "ALiBi", "score_mod"}},
    {"Weights", {"softmax", "sigmoid", "sinks", "dropout"}},
    {"Shapes", {"grouped heads", "Dv other than D", "strided views"}},
};
// Columns.
enum Pass { kForward, kDecode, kBackward, kSecond, kHalf, kBytes, kBits, kProbe, kPasses };
const char* const kPassNames[kPasses] = {"forward",   "decode",     "backward",  "double_backward, jvp",
                                         "f16, bf16", "int8 pages", "same bits", "probe"};

struct Count {
  int64_t checked = 0, refused = 0;
};
std::map<std::string, std::array<Count, kPasses>>& counts() {
  static std::map<std::string, std::array<Count, kPasses>> all;
  return all;
}

// ---- One problem ----

struct Composed {
  std::vector<std::string> features;
  int64_t B = 1, Hq = 2, Hkv = 2, L, S, D, Dv;
  Mask mask;
  bool masked = false;
  bool additive = false, sigmoid = false, mod = false, relative = false, strided = false;
  std::optional<double> scale;
  double softcap = 0, dropout = 0;
  Shape bias{};
  int64_t alibi = 0, sinks = 0;

  std::string name() const {
    std::string text = "B" + std::to_string(B) + " H" + std::to_string(Hq) + "/" + std::to_string(Hkv) + " L" +
                       std::to_string(L) + " S" + std::to_string(S) + " D" + std::to_string(D) + "/" +
                       std::to_string(Dv);
    for (const std::string& f : features) text += ", " + f;
    return text;
  }
  void count(Pass pass, bool refused = false) const {
    for (const std::string& f : features) ++(refused ? counts()[f][pass].refused : counts()[f][pass].checked);
  }
  bool has(const std::string& f) const { return std::find(features.begin(), features.end(), f) != features.end(); }
};

// Draws one step after the other, so that it does not depend on the compiler.
class Dice {
 public:
  explicit Dice(uint32_t seed) : random_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint32_t>(n)); }
  int64_t between(int64_t a, int64_t b) { return a + below(b - a + 1); }
  bool once_in(int64_t n) { return below(n) == 0; }
  std::mt19937& random() { return random_; }

 private:
  std::mt19937 random_;
};

// A mask of one kind for the problem's sizes; neighbourhood sets them.
Mask one_mask(const std::string& kind, Composed& c, Dice& dice) {
  if (kind == "causal") return dice.once_in(2) ? causal() : causal(dice.between(-3, c.S));
  if (kind == "window") {
    const int64_t left = dice.between(-1, c.S / 2);
    return window(left, dice.between(-1, 5));
  }
  if (kind == "lengths") {
    std::vector<int64_t> n;
    for (int64_t b = 0; b < c.B; ++b) n.push_back(dice.between(0, c.S));
    return lengths(n);
  }
  if (kind == "documents") {
    std::vector<int64_t> n;
    for (int64_t left = c.S; left > 0 && n.size() < 9; left -= n.back())
      n.push_back(std::min(left, dice.between(0, 1 + c.S / 2)));
    return documents({n});
  }
  if (kind == "prefix_lm") return prefix_lm({dice.between(0, c.S)});
  if (kind == "ragged") {
    const int64_t q = dice.between(0, c.L), k = dice.between(0, c.S);
    const int64_t left = dice.between(-1, 9);
    return ragged({0, q, c.L}, {0, k, c.S}, left, dice.between(-1, 3));
  }
  if (kind == "dilated") {
    const int64_t reach = dice.between(0, c.S);
    return dilated(reach, dice.between(1, 7));
  }
  if (kind == "strided") {
    const int64_t local = dice.between(0, 9);
    return strided(local, dice.between(1, 40));
  }
  if (kind == "fixed") {
    const int64_t block = dice.between(1, 30);
    return fixed(block, dice.between(0, block));
  }
  if (kind == "global_tokens") {
    const int64_t one = dice.below(c.S);
    return global_tokens({one, dice.below(c.S)});
  }
  if (kind == "neighbourhood") {
    const int64_t height = dice.between(3, 6), width = dice.between(3, 9);
    c.L = c.S = height * width;
    const int64_t y = 1 + 2 * dice.below((height + 1) / 2);
    return neighbourhood({height, width}, {y, 1 + 2 * dice.below((width + 1) / 2)});
  }
  if (kind == "block_sparse") {
    BlockTable t;
    t.query_block = dice.between(1, 20), t.key_block = dice.between(1, 70), t.starts = {0};
    for (int64_t i = 0; i < c.L; i += t.query_block) {
      for (int64_t j = 0; j < c.S; j += t.key_block)
        if (dice.once_in(2)) t.key_blocks.push_back(j / t.key_block);
      t.starts.push_back(static_cast<int64_t>(t.key_blocks.size()));
    }
    return block_sparse(t);
  }
  if (kind == "boolean") {
    const int64_t b = dice.once_in(2) ? 1 : c.B, h = dice.once_in(2) ? 1 : c.Hq, i = dice.once_in(4) ? 1 : c.L;
    std::vector<char> pairs(b * h * i * c.S);
    for (char& x : pairs) x = !dice.once_in(3);
    return boolean(reinterpret_cast<bool*>(pairs.data()), {b, h, i, c.S});
  }
  const int64_t step = dice.between(2, 9);
  return where([step](int64_t b, int64_t h, int64_t i, int64_t j) { return (i * 3 + j + b + h) % step != 0; });
}

Composed compose(int number) {
  Dice dice(20261125 + number);
  Composed c;
  const bool decode = number % 3 == 0;
  c.B = dice.between(1, 2);
  c.L = decode ? dice.between(1, 4) : dice.between(5, 40);
  c.S = decode ? dice.between(257, 530) : dice.once_in(8) ? dice.between(250, 300) : dice.between(5, 80);
  c.D = c.Dv = dice.between(1, 24);

  std::vector<std::string> all;
  for (const auto& group : kFeatures)
    for (const char* name : group.second) all.push_back(name);
  const auto add = [&](const std::string& name) {
    if (!c.has(name)) c.features.push_back(name);
  };
  const int64_t wanted = dice.between(3, 6);
  // The default way to score and weigh are features, too, and in every problem that has no other.
  std::vector<std::string> masks;
  for (int tries = 0; static_cast<int64_t>(c.features.size()) < wanted && tries < 60; ++tries) {
    const std::string f = all[dice.below(static_cast<int64_t>(all.size()))];
    if (c.has(f) || f == "dot" || f == "softmax" || f == "a & b" || f == "a | b") continue;
    if ((f == "sinks" && c.sigmoid) || (f == "sigmoid" && c.sinks) || (f == "neighbourhood" && (decode || c.masked)) ||
        (f == "relative bias" && c.bias[0]) || (f == "bias" && c.relative) || (f == "!a" && !c.masked))
      continue;
    const size_t mask =
        std::find(kFeatures[0].second.begin(), kFeatures[0].second.end(), f) - kFeatures[0].second.begin();
    if (f == "!a") {
      c.mask = !c.mask;
    } else if (mask < kFeatures[0].second.size()) {
      // Heads first: a boolean mask may have one row for each.
      if (c.Hkv == c.Hq && dice.once_in(4) && !c.masked) c.Hq = 4, c.Hkv = 2, add("grouped heads");
      const Mask one = one_mask(f, c, dice);
      const bool either = dice.once_in(2);
      if (c.masked) add(either ? "a | b" : "a & b");
      c.mask = !c.masked ? one : either ? c.mask | one : c.mask & one;
      c.masked = true;
    } else if (f == "additive") {
      c.additive = true;
    } else if (f == "scale") {
      c.scale = 0.1 * static_cast<double>(dice.between(-9, 9));
    } else if (f == "softcap") {
      c.softcap = 2;
    } else if (f == "bias") {
      c.bias = {1, 1, 1, 1};
    } else if (f == "relative bias") {
      c.relative = true;
    } else if (f == "ALiBi") {
      c.alibi = 1;
    } else if (f == "score_mod") {
      c.mod = true;
    } else if (f == "sigmoid") {
      c.sigmoid = true;
    } else if (f == "sinks") {
      c.sinks = 1;
    } else if (f == "dropout") {
      c.dropout = 0.3;
    } else if (f == "grouped heads") {
      if (c.masked) continue;
      c.Hq = 4, c.Hkv = 2;
    } else if (f == "Dv other than D") {
      c.Dv = c.D + dice.between(1, 9);
    } else {
      c.strided = true;
    }
    add(f);
  }
  add(c.additive ? "additive" : "dot");
  add(c.sigmoid ? "sigmoid" : "softmax");
  // What depends on sizes, once they are settled.
  if (c.bias[0]) {
    if (dice.once_in(2)) c.bias[0] = c.B;
    if (dice.once_in(2)) c.bias[1] = c.Hq;
    if (!dice.once_in(4)) c.bias[2] = c.L;
    if (!dice.once_in(4)) c.bias[3] = c.S;
  }
  if (c.alibi && dice.once_in(2)) c.alibi = c.Hq;
  if (c.sinks && dice.once_in(2)) c.sinks = c.Hq;
  return c;
}

// The tensors of a composed problem in one dtype. Strided views are [B, L, H, D] seen as [B, H, L, D].
struct Tensors {
  const Composed& c;
  DType dtype;
  Numbers q, k, v, w, bias, alibi, sinks, out, d_out, lse, d_lse;

  Tensors(const Composed& c, DType dtype, std::mt19937& random)
      : c(c),
        dtype(dtype),
        q({c.B, c.Hq, c.L, c.D}, dtype, random, 1),
        k({c.B, c.Hkv, c.S, c.D}, dtype, random, 1),
        v({c.B, c.Hkv, c.S, c.Dv}, dtype, random, 1) {
    if (c.additive) w = Numbers({1, 1, 1, c.D}, dtype, random, 1);
    if (c.bias[0]) bias = Numbers(c.bias, DType::f32, random, 1);
    if (c.relative) bias = Numbers({1, c.Hq, 1, c.L + c.S - 1}, DType::f32, random, 1);
    if (c.alibi) alibi = Numbers({1, c.alibi, 1, 1}, DType::f32, random, 0.05f);
    if (c.sinks) sinks = Numbers({1, c.sinks, 1, 1}, DType::f32, random, 1);
    out = Numbers({c.B, c.Hq, c.L, c.Dv}, dtype, random, 1);
    d_out = Numbers(out.shape, dtype, random, 1);
    lse = Numbers({c.B, c.Hq, c.L, 1}, DType::f32, random, 1);
    d_lse = Numbers(lse.shape, DType::f32, random, 1);
  }
  Tensor view(Numbers& x) const {
    Tensor t = x.write();
    if (c.strided && t.data) t.stride = {t.shape[1] * t.shape[2] * t.shape[3], t.shape[3], t.shape[1] * t.shape[3], 1};
    return t;
  }
  Tensor bias_view(Numbers& x) const { return c.relative ? relative_bias(x.f32.data(), c.Hq, c.L, c.S) : x.write(); }
  Attention problem() {
    return {.q = view(q),
            .k = view(k),
            .v = view(v),
            .score = c.additive ? Score::additive : Score::dot,
            .scale = c.scale,
            .w = w.write(),
            .softcap = c.softcap,
            .bias = bias_view(bias),
            .alibi = alibi.write(),
            .mask = c.mask,
            .score_mod = c.mod ? &bending() : nullptr,
            .weigh = c.sigmoid ? Weigh::sigmoid : Weigh::softmax,
            .sinks = sinks.write(),
            .dropout = c.dropout,
            .seed = 9};
  }
  Output result() { return {view(out), c.sigmoid ? Tensor() : lse.write()}; }
  Incoming incoming() {
    if (c.sigmoid) return {{}, {}, view(d_out), {}};
    return {view(out), lse.write(), view(d_out), d_lse.write()};
  }
};

// The largest distance between results and exact ones, one rounding aside, relative to the largest of these and `size`.
double distance(const Numbers& got, const std::vector<double>& exact, double size = 1) {
  double worst = 0;
  for (const double y : exact) size = std::fmax(size, std::isfinite(y) ? std::fabs(y) : 0);
  for (size_t i = 0; i < got.f32.size(); ++i) {
    const double x = widened(got, static_cast<int64_t>(i));
    if (x == exact[i]) continue;
    const double off = std::fmax(0, std::fabs(x - exact[i]) - rounding(got.dtype, exact[i])) / size;
    worst = std::isnan(off) ? INFINITY : std::fmax(worst, off);
  }
  return worst;
}

std::vector<double> room(const Numbers& x) { return std::vector<double>(x.f32.size() + 1); }

// `like`, in double, over memory of the same size.
Tensor exact_view(const Tensor& like, std::vector<double>& memory, const Numbers& of) {
  Tensor t = like;
  if (!t.data) return t;
  const char* first = of.dtype == DType::f32 ? reinterpret_cast<const char*>(of.f32.data())
                                             : reinterpret_cast<const char*>(of.narrow.data());
  t.data = memory.data() + (static_cast<const char*>(t.data) - first) / (of.dtype == DType::f32 ? 4 : 2);
  t.dtype = DType::f64;
  return t;
}

// ---- The passes ----

void check_forward_pass(const Composed& c, Tensors& t, std::optional<Pass> pass) {
  std::vector<double> out = room(t.out), lse = room(t.lse);
  const Attention a = t.problem();
  const Output result = t.result();
  forward(a, result);
  reference::forward(check_forward(a, result),
                     {exact_view(result.out, out, t.out), exact_view(result.lse, lse, t.lse)});
  EXPECT_LT(distance(t.out, out), 4e-6);
  if (!c.sigmoid) {
    EXPECT_LT(distance(t.lse, lse), 2e-6);
  }
  if (pass) c.count(*pass);
}

// Gradients of everything there is, and the same from the reference, which is told what out's rounding makes of d_lse.
void check_backward_pass(const Composed& c, Tensors& t, std::mt19937& random) {
  const Attention a = t.problem();
  const Problem p = check_forward(a, t.result());
  std::vector<double> exact_out = room(t.out), told = room(t.d_lse);
  const Tensor out = t.view(t.out);
  reference::forward(p, {exact_view(out, exact_out, t.out), {}});
  Incoming in = t.incoming(), exact_in = in;
  if (!c.sigmoid) {
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t h = 0; h < c.Hq; ++h)
        for (int64_t i = 0; i < c.L; ++i) {
          double& x = told[(b * c.Hq + h) * c.L + i] = reference::at(in.d_lse, b, h, i, 0);
          for (int64_t d = 0; d < c.Dv; ++d)
            x -= (reference::at(out, b, h, i, d) - reference::at(exact_view(out, exact_out, t.out), b, h, i, d)) *
                 reference::at(in.d_out, b, h, i, d);
        }
    exact_in.d_lse = tensor(told.data(), t.d_lse.shape);
  }
  struct One {
    Numbers got;
    std::vector<double> exact;
    double cancels;
  };
  std::vector<One> all;
  all.reserve(8);
  Gradients g, exact;
  const auto want = [&](Tensor Gradients::*member, const Numbers& of, bool sum, bool seen_strided, double cancels) {
    if (!of.given()) return;
    One& one = all.emplace_back(One{Numbers(of.shape, sum ? DType::f32 : t.dtype, random, 1), {}, cancels});
    one.exact = room(one.got);
    g.*member = seen_strided ? t.view(one.got) : member == &Gradients::d_bias ? t.bias_view(one.got) : one.got.write();
    exact.*member = exact_view(g.*member, one.exact, one.got);
  };
  const double rows = static_cast<double>(c.B * c.Hq * c.L);
  want(&Gradients::d_q, t.q, false, true, 0);
  want(&Gradients::d_k, t.k, false, true, 0);
  want(&Gradients::d_v, t.v, false, true, 0);
  want(&Gradients::d_w, t.w, true, false, 0);
  want(&Gradients::d_bias, t.bias, true, false, c.relative || c.bias[3] == 1 ? rows : 0);
  want(&Gradients::d_alibi, t.alibi, true, false, static_cast<double>(c.S));
  want(&Gradients::d_sinks, t.sinks, true, false, 0);
  backward(a, in, g);
  if (c.relative) {  // overlapping views: the reference fills a whole one, and diagonals are added up here
    Numbers whole({1, c.Hq, c.L, c.S}, DType::f32, random, 1);
    std::vector<double> dense = room(whole);
    exact.d_bias = tensor(dense.data(), whole.shape);
    reference::backward(p, exact_in, exact);
    for (One& one : all)
      if (one.got.shape == t.bias.shape) {
        std::fill(one.exact.begin(), one.exact.end(), 0.0);
        for (int64_t h = 0; h < c.Hq; ++h)
          for (int64_t i = 0; i < c.L; ++i)
            for (int64_t j = 0; j < c.S; ++j)
              one.exact[h * (c.L + c.S - 1) + j - i + c.L - 1] += dense[(h * c.L + i) * c.S + j];
      }
  } else {
    reference::backward(p, exact_in, exact);
  }
  for (size_t x = 0; x < all.size(); ++x)
    EXPECT_LT(distance(all[x].got, all[x].exact), 2e-5 * (1 + all[x].cancels / 16)) << "gradient " << x;
  c.count(kBackward);
}

// Hessian-vector products along q, k and v, and how out moves.
void check_second_pass(const Composed& c, Tensors& t, std::mt19937& random) {
  const Attention a = t.problem();
  Tensors along(c, t.dtype, random);
  Numbers d_q(t.q.shape, t.dtype, random, 1), moved(t.out.shape, t.dtype, random, 1);
  std::vector<double> exact = room(d_q), exact_moved = room(moved);
  const Tangents dd{t.view(along.q), t.view(along.k), t.view(along.v)};
  SecondGradients g, e;
  g.d_q = t.view(d_q);
  e.d_q = exact_view(g.d_q, exact, d_q);
  const Output o{t.view(moved), {}};
  if (c.additive || c.sigmoid || c.mod) {
    EXPECT_THROW(double_backward(a, t.incoming(), dd, g), Error);
    EXPECT_THROW(jvp(a, t.lse.write(), dd, o), Error);
    return c.count(kSecond, true);
  }
  double_backward(a, t.incoming(), dd, g);
  jvp(a, t.lse.write(), dd, o);
  const Problem p = check_double_backward(a, t.incoming(), dd, g);
  reference::double_backward(p, t.incoming(), dd, e);
  reference::jvp(p, dd, {exact_view(o.out, exact_moved, moved), {}});
  EXPECT_LT(distance(d_q, exact), 6e-5);
  EXPECT_LT(distance(moved, exact_moved), 3e-5);
  c.count(kSecond);
}

// Keys and values as bytes in shuffled pages of 16, 32 or 64 keys. A query's bits beyond 16 are rounded off.
void check_bytes(const Composed& c, Tensors& t, Dice& dice) {
  Attention a = t.problem();
  const int64_t P = 16 << dice.below(3), each = (c.S + P - 1) / P, pages = each * c.B + 3;
  std::vector<int32_t> order(pages), table(c.B * each);
  for (int64_t x = 0; x < pages; ++x) order[x] = static_cast<int32_t>(x);
  for (int64_t x = pages - 1; x > 0; --x) std::swap(order[x], order[dice.below(x + 1)]);
  std::copy_n(order.begin(), table.size(), table.begin());
  Numbers k = t.k, v = t.v;  // what the bytes mean
  std::vector<int8_t> pool_k(pages * c.Hkv * P * c.D, 77), pool_v(pages * c.Hkv * P * c.Dv, 77);
  std::vector<float> scale_k(pages * c.Hkv * P, NAN), scale_v(scale_k);
  const auto fill = [&](Numbers& x, const Tensor& from, int64_t D, std::vector<int8_t>& pool,
                        std::vector<float>& scale) {
    for (int64_t b = 0; b < c.B; ++b)
      for (int64_t h = 0; h < c.Hkv; ++h)
        for (int64_t j = 0; j < c.S; ++j) {
          const int64_t at = (table[b * each + j / P] * c.Hkv + h) * P + j % P;
          double largest = 0;
          for (int64_t d = 0; d < D; ++d) largest = std::fmax(largest, std::fabs(reference::at(from, b, h, j, d)));
          scale[at] = static_cast<float>(largest / 127);
          for (int64_t d = 0; d < D; ++d) {
            const double steps = scale[at] > 0 ? std::nearbyint(reference::at(from, b, h, j, d) / scale[at]) : 0;
            pool[at * D + d] = static_cast<int8_t>(std::clamp(steps, -127.0, 127.0));
            x.f32[((b * c.Hkv + h) * c.S + j) * D + d] = scale[at] * static_cast<float>(pool[at * D + d]);
          }
        }
  };
  fill(k, t.view(t.k), c.D, pool_k, scale_k);
  fill(v, t.view(t.v), c.Dv, pool_v, scale_v);
  a.k = tensor(static_cast<const void*>(pool_k.data()), DType::i8, {pages, c.Hkv, P, c.D});
  a.v = tensor(static_cast<const void*>(pool_v.data()), DType::i8, {pages, c.Hkv, P, c.Dv});
  a.pages = {table.data(),
             each,
             each,
             std::vector<int64_t>(c.B, c.S),
             tensor(static_cast<const float*>(scale_k.data()), {pages, c.Hkv, P, 1}),
             tensor(static_cast<const float*>(scale_v.data()), {pages, c.Hkv, P, 1})};
  if (c.additive) {
    EXPECT_THROW(forward(a, t.result()), Error);
    return c.count(kBytes, true);
  }
  forward(a, t.result());
  Attention meant = t.problem();
  meant.k = tensor(static_cast<const float*>(k.f32.data()), t.k.shape);
  meant.v = tensor(static_cast<const float*>(v.f32.data()), t.v.shape);
  std::vector<double> out = room(t.out);
  reference::forward(check_forward(meant, t.result()), {exact_view(t.view(t.out), out, t.out), {}});
  EXPECT_LT(distance(t.out, out), 2e-4);
  c.count(kBytes);
}

void check_bits(const Composed& c, Tensors& t) {
  const Attention a = t.problem();
  const std::vector<std::string> all = targets();
  std::vector<float> first;
  for (const std::string& target : all) {
    if (target == "SSE4" || target == "SCALAR" || target == "EMU128") continue;
    set_target(target);
    for (const int threads : {1, 3}) {
      set_threads(threads);
      forward(a, t.result());
      if (first.empty()) first = t.out.f32;
      EXPECT_EQ(std::memcmp(first.data(), t.out.f32.data(), first.size() * sizeof(float)), 0) << target << threads;
    }
  }
  set_target(all[0]);
  set_threads(2);
  c.count(kBits);
}

// How much weight each key received, and how spread out rows are. lse is from a forward.
void check_probe(const Composed& c, Tensors& t, std::mt19937& random) {
  const Attention a = t.problem();
  Numbers mass({c.B, c.Hq, 1, c.S}, t.dtype, random, 1), entropy({c.B, c.Hq, c.L, 1}, t.dtype, random, 1);
  std::vector<double> exact_mass = room(mass), exact_entropy = room(entropy);
  Probes wanted, exact;
  wanted.mass = mass.write(), exact.mass = tensor(exact_mass.data(), mass.shape);
  wanted.entropy = entropy.write(), exact.entropy = tensor(exact_entropy.data(), entropy.shape);
  if (c.sigmoid) {
    EXPECT_THROW(probe(a, t.lse.write(), wanted), Error);
    return c.count(kProbe, true);
  }
  probe(a, t.lse.write(), wanted);
  reference::probe(check_forward(a, t.result()), t.lse.write(), exact);
  EXPECT_LT(distance(mass, exact_mass), 1e-5);
  EXPECT_LT(distance(entropy, exact_entropy), 1e-5);
  c.count(kProbe);
}

TEST(Compose, FeaturesWithFeatures) {
  for (int number = 0; number < kDraws; ++number) {
    const Composed c = compose(number);
    SCOPED_TRACE("draw " + std::to_string(number) + ": " + c.name());
    std::mt19937 random(number);
    Dice dice(number);
    const std::vector<std::string> all = targets();
    set_target(all[number % all.size()]);
    Tensors t(c, DType::f32, random);
    check_forward_pass(c, t, number % 3 == 0 ? kDecode : kForward);
    check_backward_pass(c, t, random);
    if (number % 4 == 1) {
      check_forward_pass(c, t, {});  // out and lse again, for what follows
      check_second_pass(c, t, random);
    }
    if (number % 4 == 2) {
      check_probe(c, t, random);
      check_bytes(c, t, dice);
    }
    if (number % 4 == 3) check_bits(c, t);
    set_target(all[number % all.size()]);
    if (number % 2 == 0) {
      Tensors half(c, number % 4 == 0 ? DType::f16 : DType::bf16, random);
      check_forward_pass(c, half, kHalf);
    }
    set_target(all[0]);
    if (HasFailure()) break;  // one is enough to look at
  }
}

// ---- The page ----

std::string page() {
  std::ostringstream text;
  text << "# Features, and what takes them\n\n"
       << "Generated: `build/tests/compose_test --page=docs/features.md` draws " << kDraws
       << " problems, each of three to six of these features beside the defaults,\nand checks them in every pass "
          "against "
          "the double-precision reference, on every SIMD target. A number says how many of the problems with the "
          "feature were\nchecked in the pass. **refused**: the pass says no in one sentence and writes nothing, which "
          "is "
          "checked as well. –: there is no such problem (a neighbourhood has as many queries as keys). The test fails "
          "if this "
          "page is not what\nit counts.\n";
  for (const auto& [group, names] : kFeatures) {
    text << "\n| " << group << " |";
    for (const char* pass : kPassNames) text << " " << pass << " |";
    text << "\n|---|" << [] {
      std::string rule;
      for (int x = 0; x < kPasses; ++x) rule += "---|";
      return rule;
    }();
    for (const char* name : names) {
      // A | would end the cell.
      std::string shown = name;
      if (const size_t bar = shown.find('|'); bar != std::string::npos) shown.insert(bar, "\\");
      text << "\n| " << shown << " |";
      for (const Count& n : counts()[name]) {
        // Of problems that were refused it may have been another feature's doing.
        text << (n.checked ? " " + std::to_string(n.checked) : n.refused ? " **refused**" : " –") << " |";
      }
    }
    text << "\n";
  }
  return text.str();
}

TEST(Compose, ThePageSaysWhatWasChecked) {
  for (const auto& [group, names] : kFeatures)
    for (const char* name : names)
      for (int pass = 0; pass < kPasses; ++pass)
        if (pass != kDecode || name != std::string("neighbourhood")) {
          EXPECT_GT(counts()[name][pass].checked + counts()[name][pass].refused, 0) << name << " " << kPassNames[pass];
        }
  heed::testing::expect_page(page(), "compose_test", "features.md");
}

}  // namespace
}  // namespace heed

int main(int argc, char** argv) { return heed::testing::run_tests(argc, argv); }
