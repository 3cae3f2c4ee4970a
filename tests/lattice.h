// Problems drawn at random, for tests that compare with the reference: sizes around every edge of a tile, block and
// vector, 0 and 1 among them; masks, biases, softcap, ALiBi, sinks, dropout, groups and dtypes drawn for each. And what
// such tests have in common.
#pragma once

#include <heed/attention.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "half.h"

namespace heed::testing {

// Numbers of any dtype behind a dense view.
struct Numbers {
  DType dtype = DType::f32;
  Shape shape{};
  std::vector<float> f32;
  std::vector<uint16_t> narrow;

  Numbers() = default;
  Numbers(Shape shape, DType dtype, std::mt19937& random, float spread) : dtype(dtype), shape(shape) {
    const int64_t n = shape[0] * shape[1] * shape[2] * shape[3];
    std::uniform_real_distribution<float> uniform(-spread, spread);
    f32.resize(n);
    for (float& x : f32) x = uniform(random);
    if (dtype == DType::f16)
      for (const float x : f32) narrow.push_back(half_of_float(x));
    if (dtype == DType::bf16)
      for (const float x : f32) narrow.push_back(bfloat_of_float(x));
  }
  bool given() const { return shape != Shape{}; }
  Tensor write() {
    if (!given()) return {};
    return dtype == DType::f32 ? tensor(f32.data(), shape) : tensor(narrow.data(), dtype, shape);
  }
};

struct Drawn {
  int64_t B, Hq, Hkv, L, S, D, Dv;
  DType dtype, bias_dtype;
  Mask mask;
  Shape bias{};
  double softcap = 0, dropout = 0;
  int64_t alibi = 0, sinks = 0;  // heads with a number of their own; 0: none
  bool additive = false, sigmoid = false, mod = false;
  float spread = 1;
  std::string name;
};

// A user's function that bends scores and looks at everything it is given.
inline const ScoreMod& bending() {
  static const auto mod = score_mod(
      [](auto s, int64_t b, int64_t h, int64_t i, int64_t j) {
        return s / (1 + std::abs(s) / 8) + static_cast<decltype(s)>((b + 2 * h + i + j) % 5) / 8;
      },
      [](auto s, int64_t, int64_t, int64_t, int64_t) {
        const auto y = 1 + std::abs(s) / 8;
        return 1 / (y * y);
      });
  return mod;
}

inline std::vector<Drawn> lattice(uint32_t seed) {
  std::vector<Drawn> all;
  std::mt19937 random(seed);
  const auto one_of = [&](auto... x) {
    const std::common_type_t<decltype(x)...> values[] = {x...};
    return values[random() % sizeof...(x)];
  };
  const auto draw = [&](int64_t L, int64_t S, int64_t D, int64_t Dv) {
    Drawn c{};
    c.L = L, c.S = S, c.D = D, c.Dv = Dv;
    c.B = one_of(1, 1, 2), c.Hkv = one_of(1, 1, 2), c.Hq = c.Hkv * one_of(1, 1, 2, 4);
    c.dtype = one_of(DType::f32, DType::f32, DType::f16, DType::bf16);
    c.bias_dtype = one_of(DType::f32, c.dtype);
    c.spread = one_of(1.0f, 2.0f);
    std::string mask = "all";
    switch (random() % 12) {
      case 0:
      case 1:
        c.mask = causal(), mask = "causal";
        break;
      case 2:
        c.mask = causal(0), mask = "topleft";
        break;
      case 3:
        c.mask = causal() & window(std::max<int64_t>(1, S / 3), -1), mask = "window";
        break;
      case 4: {
        std::vector<int64_t> n;
        for (int64_t b = 0; b < c.B; ++b) n.push_back(random() % (S + 1));
        c.mask = lengths(n), mask = "lengths";
        break;
      }
      case 5: {
        // Some long, some of one key or none, and now and then keys behind the last one.
        std::vector<std::vector<int64_t>> all_of(random() % 2 ? 1 : c.B);
        for (auto& one : all_of)
          for (int64_t left = S; left > 0 && random() % 9; left -= one.back())
            one.push_back(std::min<int64_t>(left, one_of(0, 1, 7, 40, 150)));
        c.mask = documents(all_of), mask = "documents";
        if (random() % 2) c.mask = c.mask & causal(), mask += " causal";
        break;
      }
      case 6: {
        std::vector<int64_t> n(random() % 2 ? 1 : c.B);
        for (int64_t& x : n) x = random() % (S + 2);
        c.mask = prefix_lm(n), mask = "prefix";
        break;
      }
      case 7: {  // rows, heads and batches of their own or not; some rows see nothing, some keys are seen by no one
        const std::array<int64_t, 4> shape{random() % 2 ? 1 : c.B, random() % 2 ? 1 : c.Hq, random() % 4 ? L : 1, S};
        const uint32_t odds = 1 + random() % 4;
        std::vector<char> pairs(shape[0] * shape[1] * shape[2] * S + 1);
        for (char& x : pairs) x = random() % 5 < odds;
        for (int64_t x = 0; S > 0 && x + S <= static_cast<int64_t>(pairs.size()); x += S)
          if (random() % 8 == 0) std::fill_n(pairs.begin() + x, S, 0);
        c.mask = boolean(reinterpret_cast<bool*>(pairs.data()), shape), mask = "boolean";
        if (random() % 2) c.mask = c.mask & causal(), mask += " causal";
        break;
      }
      case 8:
        c.mask = (dilated(90, one_of(2, 5, 64)) | global_tokens({0, 20})) & causal(), mask = "dilated or global";
        break;
      case 9: {
        std::vector<BlockTable> tables(random() % 2 ? 1 : c.Hq);
        for (BlockTable& t : tables) {
          t.query_block = one_of(1, 8, 48, 128), t.key_block = one_of(1, 16, 40, 256), t.starts = {0};
          for (int64_t i = 0; i < L; i += t.query_block) {
            for (int64_t j = 0; j < S; j += t.key_block)
              if (random() % 3 == 0) t.key_blocks.push_back(j / t.key_block);
            t.starts.push_back(t.key_blocks.size());
          }
        }
        c.mask = block_sparse(tables), mask = "block-sparse";
        break;
      }
      case 10:
        c.mask =
            where([](int64_t b, int64_t h, int64_t i, int64_t j) { return (i * 31 + j * 17 + h * 5 + b) % 7 < 4; }),
        mask = "where";
        break;
      case 11:
        c.mask = !(window(3, one_of(0, 9)) | strided(0, 50)), mask = "not";
        break;
    }
    if (random() % 3 == 0 && L > 0 && S > 0)
      c.bias = {one_of(int64_t{1}, c.B), one_of(int64_t{1}, c.Hq), one_of(int64_t{1}, L), one_of(int64_t{1}, S, S)};
    if (random() % 4 == 0) c.softcap = 3;
    if (random() % 4 == 0) c.alibi = one_of(int64_t{1}, c.Hq);
    if (random() % 4 == 0) c.sinks = one_of(int64_t{1}, c.Hq);
    if (random() % 4 == 0) c.dropout = 0.25;
    if (random() % 6 == 0) c.mod = true;
    if (random() % 6 == 0) c.sigmoid = true, c.sinks = 0;
    c.name = std::to_string(all.size()) + ": B" + std::to_string(c.B) + " H" + std::to_string(c.Hq) + "/" +
             std::to_string(c.Hkv) + " L" + std::to_string(L) + " S" + std::to_string(S) + " D" + std::to_string(D) +
             "/" + std::to_string(Dv) + " " + mask + (c.bias[0] ? " bias" : "") + (c.softcap > 0 ? " cap" : "") +
             (c.alibi ? " alibi" : "") + (c.sinks ? " sinks" : "") + (c.dropout > 0 ? " dropout" : "") +
             (c.mod ? " mod" : "") + (c.sigmoid ? " sigmoid" : "") + " dtype " +
             std::to_string(static_cast<int>(c.dtype));
    all.push_back(c);
  };
  for (const int64_t L : {0, 1, 2, 5, 6, 7, 13, 24, 25, 66, 97})
    for (const int64_t S : {0, 1, 15, 16, 17, 33, 64, 65, 129, 255, 256, 257, 513})
      draw(L, S, one_of(1, 3, 4, 7, 16, 33, 64), one_of(1, 5, 16, 17, 33, 64, 80));
  for (const int64_t D : {1, 2, 31, 32, 65, 96, 128, 192, 256})
    for (const int64_t L : {1, 19}) draw(L, 300, D, D);
  draw(3, 270, 576, 512);
  draw(1, 530, 576, 512);
  draw(40, 40, 192, 128);
  return all;
}

// The tensors of a drawn problem, and the plan of its calls.
struct Given {
  Numbers q, k, v, w, bias, alibi, sinks;
  Plan plan;

  Given(const Drawn& c, std::mt19937& random)
      : q({c.B, c.Hq, c.L, c.D}, c.dtype, random, 2 * c.spread),
        k({c.B, c.Hkv, c.S, c.D}, c.dtype, random, 2 * c.spread),
        v({c.B, c.Hkv, c.S, c.Dv}, c.dtype, random, 1) {
    if (c.additive) w = Numbers({1, random() % 2 ? 1 : c.Hq, 1, c.D}, c.dtype, random, 1);
    if (c.bias[0]) bias = Numbers(c.bias, c.bias_dtype, random, 2);
    if (c.alibi) alibi = Numbers({1, c.alibi, 1, 1}, c.bias_dtype, random, 0.1f);
    if (c.sinks) sinks = Numbers({1, c.sinks, 1, 1}, c.bias_dtype, random, 4);
  }
  Attention problem(const Drawn& c) {
    return {.q = q.write(),
            .k = k.write(),
            .v = v.write(),
            .score = c.additive ? Score::additive : Score::dot,
            .w = w.write(),
            .softcap = c.softcap,
            .bias = bias.write(),
            .alibi = alibi.write(),
            .mask = c.mask,
            .score_mod = c.mod ? &bending() : nullptr,
            .weigh = c.sigmoid ? Weigh::sigmoid : Weigh::softmax,
            .sinks = sinks.write(),
            .dropout = c.dropout,
            .seed = 5,
            .plan = &plan};
  }
};

inline double widened(const Numbers& x, int64_t i) {
  return x.dtype == DType::f32   ? x.f32[i]
         : x.dtype == DType::f16 ? float_of_half(x.narrow[i])
                                 : float_of_bfloat(x.narrow[i]);
}

// Half a unit in the last place of x: what rounding to the dtype may do.
inline double rounding(DType t, double x) {
  return t == DType::f32 ? 0 : std::fabs(x) * (t == DType::f16 ? 0x1p-11 : 0x1p-8) + (t == DType::f16 ? 0x1p-25 : 0);
}

// A gradient that a test asks for, in the dtype it has, beside the same in double.
struct Wanted {
  const char* name;
  DType dtype;
  Numbers got;
  std::vector<double> exact;
  double scale = 1;  // what errors are relative to, if it is more than the largest value

  Wanted(const char* name, Shape shape, DType dtype, std::mt19937& random)
      : name(name), dtype(dtype), got(shape, dtype, random, 1), exact(got.f32.size() + 1) {}
  void poison() {
    std::fill(got.f32.begin(), got.f32.end(), NAN);
    std::fill(got.narrow.begin(), got.narrow.end(), 0xFFFF);
  }
  // The largest error, one rounding of the result aside, relative to the largest value or the scale.
  double error() const {
    double worst = 0, size = scale;
    for (const double y : exact) size = std::fmax(size, std::fabs(y));
    for (size_t i = 0; i < got.f32.size(); ++i) {
      const double off = std::fmax(0, std::fabs(widened(got, i) - exact[i]) - rounding(dtype, exact[i])) / size;
      worst = std::isnan(off) ? INFINITY : std::fmax(worst, off);
    }
    return worst;
  }
  bool same(const Numbers& other) const {
    if (dtype != DType::f32) return got.narrow == other.narrow;
    return got.f32.empty() || std::memcmp(got.f32.data(), other.f32.data(), 4 * got.f32.size()) == 0;
  }
};

// The gradients a test asks for, of any of a struct G of gradients.
template <class G>
struct Asked {
  std::vector<Wanted> all;
  std::vector<Tensor G::*> members;  // where each is in G
  G g, exact;                        // the same views in the dtypes they have, and in double

  Asked() { all.reserve(8); }  // the views point into it
  // sum: over many elements, and so f32 beside f16 and bf16.
  void want(const char* name, Tensor G::*member, const Numbers& of, DType dtype, std::mt19937& random,
            bool sum = false) {
    if (!of.given()) return;
    Wanted& one = all.emplace_back(name, of.shape, sum ? DType::f32 : dtype, random);
    members.push_back(member);
    g.*member = one.got.write();
    exact.*member = tensor(one.exact.data(), of.shape);
  }
  void poison() {
    for (Wanted& one : all) one.poison();
  }
};

// What a backward of a drawn problem gets; d_lse is there in about half of them.
struct Arriving {
  Shape so, sl;
  Numbers out, d_out, lse, d_lse;
  bool sigmoid;

  Arriving(const Drawn& c, std::mt19937& random)
      : so{c.B, c.Hq, c.L, c.Dv},
        sl{c.B, c.Hq, c.L, 1},
        out(so, c.dtype, random, 1),
        d_out(so, c.dtype, random, 1),
        lse(sl, DType::f32, random, 1),
        sigmoid(c.sigmoid) {
    if (random() % 2 && !sigmoid) d_lse = Numbers(sl, DType::f32, random, 1);
  }
  // Sigmoid weights have no lse.
  Output result() { return sigmoid ? Output{out.write(), {}} : Output{out.write(), lse.write()}; }
  Incoming in() {
    if (sigmoid) return {{}, {}, d_out.write(), {}};
    return {out.write(), lse.write(), d_out.write(), d_lse.write()};
  }
};

}  // namespace heed::testing
