// Masks against their definitions, pair by pair, written down here a second time.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace heed {
namespace {

using Pairs = std::function<bool(const MaskShape& n, int64_t b, int64_t h, int64_t i, int64_t j)>;
using Simple = std::function<bool(const MaskShape& n, int64_t b, int64_t i, int64_t j)>;

const MaskShape kShapes[] = {{2, 2, 7, 7}, {2, 2, 4, 9}, {2, 2, 9, 4}, {2, 2, 1, 6},
                             {2, 2, 6, 1}, {2, 2, 5, 0}, {2, 2, 0, 5}, {2, 2, 70, 150}};

// Everything a mask says of a problem against its definition: single pairs, rows of bits from any key on, hulls,
// whether it varies, and that nothing false is said of rectangles.
void expect_pairs(const std::string& name, const Mask& mask, const MaskShape& n, const Pairs& sees) {
  SCOPED_TRACE(name + " for " + std::to_string(n.queries) + " queries, " + std::to_string(n.keys) + " keys");
  mask.check(n);
  const auto count = [&](int64_t b, int64_t h, Span queries, Span keys) {
    int64_t seen = 0;
    for (int64_t i = queries.begin; i < queries.end; ++i)
      for (int64_t j = keys.begin; j < keys.end; ++j) seen += sees(n, b, h, i, j);
    return seen;
  };
  for (int64_t b = 0; b < n.batch; ++b)
    for (int64_t h = 0; h < n.heads; ++h) {
      for (int64_t i = 0; i < n.queries; ++i) {
        const Span row = mask.row(n, b, h, i);
        EXPECT_GE(row.begin, 0);
        EXPECT_LE(row.end, n.keys);
        int64_t wrong = 0;
        for (int64_t j = 0; j < n.keys; ++j) {
          wrong += mask.sees(n, b, h, i, j) != sees(n, b, h, i, j);
          const bool inside = row.begin <= j && j < row.end;
          wrong += sees(n, b, h, i, j) && !inside;
          wrong += mask.spans() && inside && !sees(n, b, h, i, j);
        }
        EXPECT_EQ(wrong, 0) << "batch " << b << " head " << h << " row " << i;
        for (const int64_t begin : {int64_t{0}, int64_t{1}, n.keys / 2, std::max<int64_t>(0, n.keys - 2)}) {
          std::vector<uint64_t> bits(8, ~uint64_t{0});
          const int64_t end = n.keys - (begin % 2), words = (std::max<int64_t>(0, end - begin) + 63) / 64;
          if (begin >= end) continue;
          mask.bits(n, b, h, i, {begin, end}, bits.data());
          for (int64_t x = 0; x < 64 * words; ++x)
            wrong += (bits[x / 64] >> (x % 64) & 1) != (begin + x < end && sees(n, b, h, i, begin + x));
          for (size_t w = words; w < bits.size(); ++w) wrong += bits[w] != ~uint64_t{0};
          EXPECT_EQ(wrong, 0) << "bits of row " << i << " from key " << begin << " to " << end;
        }
        if (!mask.varies_by_batch()) {
          for (int64_t j = 0; j < n.keys; ++j) EXPECT_EQ(mask.sees(n, b, h, i, j), mask.sees(n, 0, h, i, j));
        }
        if (!mask.varies_by_head()) {
          for (int64_t j = 0; j < n.keys; ++j) EXPECT_EQ(mask.sees(n, b, h, i, j), mask.sees(n, b, 0, i, j));
        }
      }
      for (const Span queries : {Span{0, 1}, Span{n.queries / 2, n.queries}, Span{0, n.queries}})
        for (const Span keys : {Span{0, 1}, Span{0, n.keys / 3}, Span{n.keys / 2, n.keys}, Span{0, n.keys}}) {
          if (queries.end > n.queries || keys.end > n.keys || queries.begin >= queries.end || keys.begin >= keys.end)
            continue;
          const Cover cover = mask.cover(n, b, h, queries, keys);
          const int64_t seen = count(b, h, queries, keys);
          const int64_t all = (queries.end - queries.begin) * (keys.end - keys.begin);
          EXPECT_TRUE(cover == Cover::partial || seen == (cover == Cover::full ? all : 0)) << seen << " of " << all;
        }
    }
}

void expect_sees(const std::string& name, const Mask& mask, const Simple& sees) {
  for (const MaskShape& n : kShapes)
    expect_pairs(name, mask, n,
                 [&](const MaskShape& m, int64_t b, int64_t, int64_t i, int64_t j) { return sees(m, b, i, j); });
}

int64_t place(const MaskShape& n, int64_t i) { return i + n.keys - n.queries; }

const Simple kCausal = [](const MaskShape& n, int64_t, int64_t i, int64_t j) { return j <= place(n, i); };

TEST(Mask, OneByOne) {
  expect_sees("none", {}, [](const MaskShape&, int64_t, int64_t, int64_t) { return true; });
  expect_sees("causal", causal(), kCausal);
  for (const int64_t offset : {-3, 0, 2})
    expect_sees("causal with an offset", causal(offset),
                [&](const MaskShape&, int64_t, int64_t i, int64_t j) { return j <= i + offset; });
  for (const int64_t left : {-1, 0, 2})
    for (const int64_t right : {-1, 0, 1})
      expect_sees("window", window(left, right), [&](const MaskShape& n, int64_t, int64_t i, int64_t j) {
        const int64_t p = place(n, i);
        return (left < 0 || p - left <= j) && (right < 0 || j <= p + right);
      });
  const std::vector<int64_t> some{3, 0};
  expect_sees("lengths", lengths(some), [&](const MaskShape&, int64_t b, int64_t, int64_t j) { return j < some[b]; });
}

TEST(Mask, PrefixLm) {
  const std::vector<int64_t> prefix{4, 0};
  expect_sees("prefix", prefix_lm(prefix),
              [&](const MaskShape& n, int64_t b, int64_t i, int64_t j) { return j < prefix[b] || j <= place(n, i); });
  expect_sees("prefix with an offset", prefix_lm({3}, -1),
              [](const MaskShape&, int64_t, int64_t i, int64_t j) { return j < 3 || j <= i - 1; });
}

// The document of each position; -1 behind the last.
std::vector<int64_t> ids(const std::vector<int64_t>& lengths, int64_t n) {
  std::vector<int64_t> all;
  for (size_t document = 0; document < lengths.size(); ++document)
    all.insert(all.end(), lengths[document], static_cast<int64_t>(document));
  all.resize(std::max<size_t>(all.size(), n), -1);
  return all;
}

TEST(Mask, Documents) {
  // Nothing in kShapes has fewer keys than they add up to but one, and that one says so.
  const std::vector<std::vector<int64_t>> packed{{2, 0, 1, 1}, {1, 3}};
  const auto sees = [&](const MaskShape& n, int64_t b, int64_t i, int64_t j) {
    const std::vector<int64_t> id = ids(packed[b], std::max(n.keys, n.queries));
    const int64_t p = place(n, i);
    return p >= 0 && id[p] >= 0 && id[p] == id[j];
  };
  for (const MaskShape& n : {MaskShape{2, 1, 7, 7}, {2, 1, 4, 9}, {2, 1, 9, 4}, {2, 1, 1, 6}, {2, 1, 0, 5}})
    for (int64_t b = 0; b < n.batch; ++b)
      for (int64_t i = 0; i < n.queries; ++i)
        for (int64_t j = 0; j < n.keys; ++j) {
          const Span row = documents(packed).row(n, b, 0, i), one = documents({packed[1]}).row(n, b, 0, i),
                     both = (causal() & documents(packed)).row(n, b, 0, i);
          EXPECT_EQ(row.begin <= j && j < row.end, sees(n, b, i, j)) << b << " " << i << " " << j;
          EXPECT_EQ(one.begin <= j && j < one.end, sees(n, 1, i, j)) << b << " " << i << " " << j;
          EXPECT_EQ(both.begin <= j && j < both.end, sees(n, b, i, j) && kCausal(n, b, i, j));
        }
  EXPECT_TRUE(documents(packed).varies_by_batch());
  EXPECT_FALSE(documents({{3, 4}}).varies_by_batch());
}

// The point of packing: each document comes out as if it were alone.
TEST(Mask, PackedDocumentsAreThemselves) {
  const int64_t D = 8, n = 40;
  std::vector<float> x(n * D), packed(n * D), alone(n * D);
  for (int64_t i = 0; i < n * D; ++i) x[i] = static_cast<float>((i * 7919) % 101) / 50 - 1;
  const auto view = [&](std::vector<float>& t, int64_t from, int64_t count) {
    return tensor(t.data() + from * D, {1, 1, count, D}, {n * D, n * D, D, 1});
  };
  const std::vector<int64_t> sizes{17, 1, 22};
  Attention a{.q = view(x, 0, n), .k = view(x, 0, n), .v = view(x, 0, n), .mask = documents({sizes}) & causal()};
  forward(a, {view(packed, 0, n)});
  a.mask = causal();
  int64_t from = 0;
  for (const int64_t count : sizes) {
    a.q = a.k = a.v = view(x, from, count);
    forward(a, {view(alone, from, count)});
    from += count;
  }
  for (int64_t i = 0; i < n * D; ++i) EXPECT_NEAR(packed[i], alone[i], 1e-6) << i;
}

int64_t distance(const MaskShape& n, int64_t i, int64_t j) { return std::abs(place(n, i) - j); }

TEST(Mask, WithHoles) {
  for (const int64_t reach : {0, 3, 60})
    for (const int64_t step : {1, 2, 7})
      expect_sees("dilated", dilated(reach, step), [&](const MaskShape& n, int64_t, int64_t i, int64_t j) {
        return distance(n, i, j) <= reach && distance(n, i, j) % step == 0;
      });
  expect_sees("dilated with an offset", dilated(9, 3, -1), [](const MaskShape&, int64_t, int64_t i, int64_t j) {
    return std::abs(i - 1 - j) <= 9 && std::abs(i - 1 - j) % 3 == 0;
  });
  for (const int64_t local : {0, 1, 4})
    for (const int64_t stride : {1, 3, 100})
      expect_sees("strided", strided(local, stride), [&](const MaskShape& n, int64_t, int64_t i, int64_t j) {
        return distance(n, i, j) < local || distance(n, i, j) % stride == 0;
      });
  for (const int64_t block : {1, 4, 30})
    for (const int64_t summary : {0, 1})
      expect_sees("fixed", fixed(block, summary), [&](const MaskShape& n, int64_t, int64_t i, int64_t j) {
        const int64_t p = place(n, i);
        return (p >= 0 && p / block == j / block) || j % block >= block - summary;
      });
  expect_sees("global", global_tokens({3, 0, 100}), [](const MaskShape& n, int64_t, int64_t i, int64_t j) {
    const auto is = [](int64_t x) { return x == 0 || x == 3 || x == 100; };
    return is(place(n, i)) || is(j);
  });
  expect_sees("where", where([](int64_t b, int64_t, int64_t i, int64_t j) { return (i * 5 + j * 3 + b) % 4 == 0; }),
              [](const MaskShape&, int64_t b, int64_t i, int64_t j) { return (i * 5 + j * 3 + b) % 4 == 0; });
}

// REFERENCE: per axis |clamp(q, K/2, N-1-K/2) - k| <= K/2.
TEST(Mask, Neighbourhood) {
  const auto axis = [](int64_t q, int64_t k, int64_t N, int64_t K) {
    return std::abs(std::min(std::max(q, K / 2), N - 1 - K / 2) - k) <= K / 2;
  };
  expect_pairs("a line", neighbourhood({70}, {5}), {1, 1, 70, 70},
               [&](const MaskShape&, int64_t, int64_t, int64_t i, int64_t j) { return axis(i, j, 70, 5); });
  expect_pairs("a picture", neighbourhood({8, 12}, {3, 7}), {1, 2, 96, 96},
               [&](const MaskShape&, int64_t, int64_t, int64_t i, int64_t j) {
                 return axis(i / 12, j / 12, 8, 3) && axis(i % 12, j % 12, 12, 7);
               });
  expect_pairs("a volume", neighbourhood({3, 4, 5}, {3, 1, 5}), {1, 1, 60, 60},
               [&](const MaskShape&, int64_t, int64_t, int64_t i, int64_t j) {
                 return axis(i / 20, j / 20, 3, 3) && axis(i / 5 % 4, j / 5 % 4, 4, 1) && axis(i % 5, j % 5, 5, 5);
               });
}

TEST(Mask, BlockSparse) {
  const MaskShape n{1, 2, 70, 150};
  const BlockTable first{16, 32, {0, 2, 2, 5, 6, 8}, {0, 3, 0, 1, 4, 2, 1, 4}};
  const BlockTable second{70, 150, {0, 1}, {0}};
  const auto sees = [](const BlockTable& t, int64_t i, int64_t j) {
    for (int64_t x = t.starts[i / t.query_block]; x < t.starts[i / t.query_block + 1]; ++x)
      if (t.key_blocks[x] == j / t.key_block) return true;
    return false;
  };
  expect_pairs(
      "one for each head", block_sparse({first, second}), n,
      [&](const MaskShape&, int64_t, int64_t h, int64_t i, int64_t j) { return sees(h == 0 ? first : second, i, j); });
  expect_pairs("one for all", block_sparse(first), n,
               [&](const MaskShape&, int64_t, int64_t, int64_t i, int64_t j) { return sees(first, i, j); });
}

TEST(Mask, Boolean) {
  for (const MaskShape& n : kShapes)
    for (int axes = 0; axes < 16; ++axes) {  // each axis whole or 1
      const std::array<int64_t, 4> full{n.batch, n.heads, n.queries, n.keys};
      std::array<int64_t, 4> shape{1, 1, 1, 1}, at{};
      for (int axis = 0; axis < 4; ++axis)
        if (axes >> axis & 1) shape[axis] = full[axis];
      const std::array<int64_t, 4> stride{shape[1] * shape[2] * shape[3], 1, shape[1], shape[1] * shape[2]};
      const auto value = [&](int64_t b, int64_t h, int64_t i, int64_t j) {
        at = {b, h, i, j};
        for (int axis = 0; axis < 4; ++axis)
          if (shape[axis] == 1) at[axis] = 0;
        return (at[0] * 7 + at[1] * 3 + at[2] * 5 + at[3] * at[3]) % 3 == 0;
      };
      std::vector<char> data(shape[0] * shape[1] * shape[2] * shape[3] + 1);
      for (int64_t b = 0; b < shape[0]; ++b)
        for (int64_t h = 0; h < shape[1]; ++h)
          for (int64_t i = 0; i < shape[2]; ++i)
            for (int64_t j = 0; j < shape[3]; ++j)
              data[b * stride[0] + h * stride[1] + i * stride[2] + j * stride[3]] = value(b, h, i, j);
      expect_pairs("boolean " + std::to_string(axes), boolean(reinterpret_cast<bool*>(data.data()), shape, stride), n,
                   [&](const MaskShape&, int64_t b, int64_t h, int64_t i, int64_t j) { return value(b, h, i, j); });
    }
}

TEST(Mask, Ragged) {
  const std::vector<int64_t> queries{0, 3, 3, 8, 9}, keys{0, 5, 9, 9, 10};
  for (const int64_t left : {-1, 0, 2})
    for (const int64_t right : {-1, 0, 1})
      expect_pairs("ragged", ragged(queries, keys, left, right), {2, 1, 11, 12},
                   [&](const MaskShape&, int64_t, int64_t, int64_t i, int64_t j) {
                     for (size_t n = 0; n + 1 < queries.size(); ++n) {
                       if (i < queries[n] || i >= queries[n + 1] || j < keys[n] || j >= keys[n + 1]) continue;
                       const int64_t p = i - queries[n] + (keys[n + 1] - keys[n]) - (queries[n + 1] - queries[n]);
                       return (left < 0 || p - left <= j - keys[n]) && (right < 0 || j - keys[n] <= p + right);
                     }
                     return false;
                   });
}

// Composing is logic, whatever is composed: of a few masks of every kind, each pair in each way, two deep.
TEST(Mask, Compose) {
  const MaskShape n{2, 2, 33, 65};
  const std::vector<Mask> some{Mask(),
                               !Mask(),
                               causal(),
                               window(4, 9),
                               lengths({40, 0}),
                               dilated(20, 3),
                               global_tokens({2, 50}),
                               block_sparse(BlockTable{8, 16, {0, 1, 3, 3, 4, 6}, {0, 1, 4, 2, 0, 3}}),
                               where([](int64_t, int64_t h, int64_t i, int64_t j) { return (i ^ j) % 3 == h; })};
  const auto sees = [](const Mask& m) -> Pairs {
    return [&m](const MaskShape& s, int64_t b, int64_t h, int64_t i, int64_t j) { return m.sees(s, b, h, i, j); };
  };
  for (size_t x = 0; x < some.size(); ++x) {
    const Mask& a = some[x];
    expect_pairs("not", !a, n, std::not_fn(sees(a)));
    for (size_t y = 0; y < some.size(); ++y) {
      const Mask& b = some[y];
      const std::string both = std::to_string(x) + " with " + std::to_string(y);
      expect_pairs(both + " and", a & b, n, [&](const auto&... pair) { return sees(a)(pair...) && sees(b)(pair...); });
      expect_pairs(both + " or", a | b, n, [&](const auto&... pair) { return sees(a)(pair...) || sees(b)(pair...); });
      expect_pairs(both + " deeper", (a | !b) & causal(), n, [&](const auto&... pair) {
        return (sees(a)(pair...) || !sees(b)(pair...)) && sees(some[2])(pair...);
      });
    }
  }
}

// ---- Masks with holes in the passes ----

// A problem of its own memory, one head for two query heads, filled with small numbers.
struct Small {
  int64_t L, S, D = 24, H = 2;
  std::vector<float> q, k, v, out, lse;

  Small(int64_t L, int64_t S) : L(L), S(S), q(H * L * D), k(S * D), v(S * D), out(H * L * D), lse(H * L) {
    uint32_t state = 1;
    for (std::vector<float>* x : {&q, &k, &v})
      for (float& y : *x) y = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
  }
  Attention problem(const Mask& mask) {
    return {.q = tensor(q.data(), {1, H, L, D}),
            .k = tensor(k.data(), {1, 1, S, D}),
            .v = tensor(v.data(), {1, 1, S, D}),
            .mask = mask};
  }
  Output result() { return {tensor(out.data(), {1, H, L, D}), tensor(lse.data(), {1, H, L, 1})}; }
};

// Rows that do not see a key with a NaN give what they gave without it, bit for bit, in whichever way the pass goes
// (L = 3: few rows; one thread: heads; more: tiles), and so do the gradients of q.
TEST(Holes, NothingLeaksThroughThem) {
  const auto sees = [](int64_t, int64_t h, int64_t i, int64_t j) { return (i * 3 + j * 5 + h) % 7 < 3; };
  for (const std::string& t : targets())
    for (const int64_t L : {3, 130})
      for (const int threads : {1, 4}) {
        SCOPED_TRACE(t + ", " + std::to_string(L) + " queries, " + std::to_string(threads) + " threads");
        set_target(t);
        set_threads(threads);
        Small c(L, 700);
        const int64_t bad[] = {5, 300, 699};
        const Attention a = c.problem(where(sees));
        std::vector<float> d_out(c.out.size(), 0.5f), d_q(c.q.size()), clean_d_q(c.q.size());
        const auto both = [&](std::vector<float>& to) {
          forward(a, c.result());
          const Output r = c.result();
          backward(a, {r.out, r.lse, tensor(d_out.data(), r.out.shape)}, {.d_q = tensor(to.data(), r.out.shape)});
        };
        both(clean_d_q);
        const std::vector<float> clean = c.out;
        for (const int64_t j : bad) {
          c.k[j * c.D + 3] = NAN;
          c.v[j * c.D + 3] = j == 300 ? INFINITY : NAN;
        }
        both(d_q);
        for (int64_t h = 0; h < c.H; ++h)
          for (int64_t i = 0; i < L; ++i) {
            bool affected = false;
            for (const int64_t j : bad) affected |= sees(0, h, i, j);
            const int64_t at = (h * L + i) * c.D;
            const bool same = std::memcmp(&clean[at], &c.out[at], c.D * sizeof(float)) == 0 &&
                              std::memcmp(&clean_d_q[at], &d_q[at], c.D * sizeof(float)) == 0;
            EXPECT_EQ(same, !affected) << "head " << h << " row " << i;
          }
      }
  set_target(targets()[0]);
  set_threads(2);
}

// The contract on bits: each row alone, over its own keys, in any way of sharing, on every target with FMA.
TEST(Holes, ARowHasOneValue) {
  const auto sees = [](int64_t, int64_t h, int64_t i, int64_t j) {
    return j % (5 + h) == i % 3 || (j > 100 && j < 140) || (j / 64 + i / 32) % 9 == 0;
  };
  Small c(150, 900);
  std::vector<float> first;
  for (const std::string& t : targets()) {
    if (t == "SSE4" || t == "SCALAR" || t == "EMU128") continue;
    set_target(t);
    for (const int threads : {1, 2, 3, 8}) {
      set_threads(threads);
      forward(c.problem(where(sees)), c.result());
      if (first.empty()) first = c.out;
      EXPECT_EQ(std::memcmp(first.data(), c.out.data(), first.size() * sizeof(float)), 0) << t << " " << threads;
    }
  }
  set_target(targets()[0]);
  for (int64_t h = 0; h < c.H; ++h)
    for (int64_t i = 0; i < c.L; ++i) {
      std::vector<char> row(c.S);
      for (int64_t j = 0; j < c.S; ++j) row[j] = sees(0, h, i, j);
      std::vector<float> one(c.D);
      Attention a = c.problem(boolean(reinterpret_cast<bool*>(row.data()), {1, 1, 1, c.S}));
      a.q = tensor(&c.q[(h * c.L + i) * c.D], {1, 1, 1, c.D});
      forward(a, {tensor(one.data(), {1, 1, 1, c.D})});
      EXPECT_EQ(std::memcmp(one.data(), &first[(h * c.L + i) * c.D], c.D * sizeof(float)), 0) << h << " row " << i;
    }
  set_threads(2);
}

// A mask written in two ways, one of spans and one with holes, gives the same bits: whatever is known of it.
TEST(Holes, SameBitsAsTheSameMaskInSpans) {
  Small c(300, 600);
  std::vector<float> d_out(c.out.size(), 0.5f);
  const auto run = [&](const Mask& mask) {
    std::vector<float> all(c.q.size() + 2 * c.k.size());
    const Attention a = c.problem(mask);
    const Output r = c.result();
    forward(a, r);
    backward(a, {r.out, r.lse, tensor(d_out.data(), r.out.shape)},
             {.d_q = tensor(all.data(), a.q.shape),
              .d_k = tensor(all.data() + c.q.size(), a.k.shape),
              .d_v = tensor(all.data() + c.q.size() + c.k.size(), a.v.shape)});
    all.insert(all.end(), c.out.begin(), c.out.end());
    all.insert(all.end(), c.lse.begin(), c.lse.end());
    return all;
  };
  const std::vector<float> spans = run(causal() & window(200, -1));
  for (const Mask& holes :
       {where([](int64_t, int64_t, int64_t i, int64_t j) { return j <= i + 300 && j >= i + 300 - 200; }),
        !((!causal()) | (!window(200, -1)))}) {
    const std::vector<float> got = run(holes);
    EXPECT_EQ(std::memcmp(spans.data(), got.data(), got.size() * sizeof(float)), 0);
  }
}

// Tiles a mask leaves empty cost nothing: 1% of all blocks takes less than 3% of the time of all.
TEST(Holes, EmptyTilesCostNothing) {
  const int64_t n = 8192, block = 128, D = 64, blocks = n / block;
  BlockTable table{block, block, {0}, {}};
  for (int64_t r = 0; r < blocks; ++r) {  // 41 of 4096
    for (int64_t c = 0; c < blocks; ++c)
      if ((r * 37 + c * 11) % 100 == 0) table.key_blocks.push_back(c);
    table.starts.push_back(static_cast<int64_t>(table.key_blocks.size()));
  }
  EXPECT_NEAR(static_cast<double>(table.key_blocks.size()) / (blocks * blocks), 0.01, 0.001);
  std::vector<float> x(n * D), out(n * D);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 101) / 50 - 1;
  const auto seconds = [&](const Mask& mask) {
    Attention a{.q = tensor(x.data(), {1, 1, n, D}),
                .k = tensor(x.data(), {1, 1, n, D}),
                .v = tensor(x.data(), {1, 1, n, D}),
                .mask = mask};
    const auto begin = std::chrono::steady_clock::now();
    forward(a, {tensor(out.data(), {1, 1, n, D})});  // with its plan
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  set_threads(1);
  double dense = 1e9, sparse = 1e9;
  for (int round = 0; round < 3; ++round) {
    dense = std::min(dense, seconds({}));
    for (int again = 0; again < 3; ++again) sparse = std::min(sparse, seconds(block_sparse(table)));
  }
  set_threads(2);
  RecordProperty("sparse_over_dense", std::to_string(sparse / dense));
  EXPECT_LT(sparse, 0.03 * dense) << sparse << " s against " << dense << " s";
}

// Numbers at the ends of int64 are far away, and nothing wraps round on the way there (found by tests/fuzz.cc).
TEST(Mask, NumbersFarAway) {
  constexpr int64_t kLow = INT64_MIN, kHigh = INT64_MAX;
  const MaskShape shape{1, 1, 9, 200};
  const auto seen = [&](const Mask& mask, int64_t query) {
    int64_t n = 0;
    for (int64_t j = 0; j < shape.keys; ++j) n += mask.sees(shape, 0, 0, query, j);
    uint64_t bits[2] = {};  // and not from the first key on
    mask.bits(shape, 0, 0, query, {70, 198}, bits);
    for (int64_t j = 70; j < 198; ++j)
      EXPECT_EQ(bits[(j - 70) / 64] >> ((j - 70) % 64) & 1, uint64_t{mask.sees(shape, 0, 0, query, j)}) << j;
    return n;
  };
  for (const int64_t query : {0, 8}) {
    EXPECT_EQ(seen(causal(kLow), query), 0);
    EXPECT_EQ(seen(causal(kHigh), query), 200);
    EXPECT_EQ(seen(window(kHigh, kHigh, 0), query), 200);
    EXPECT_EQ(seen(window(3, 3, kLow), query), 0);
    EXPECT_EQ(seen(prefix_lm({kHigh}), query), 200);
    EXPECT_EQ(seen(dilated(kHigh, kHigh, 0), query), 1);  // its own
    EXPECT_EQ(seen(dilated(kHigh, kHigh - 1, 0), query), 1);
    EXPECT_EQ(seen(strided(1, kHigh, 0), query), 1);
    EXPECT_EQ(seen(strided(0, kHigh, 0), query), 1);
    EXPECT_EQ(seen(strided(kHigh, 1, kLow), query), 200);
    EXPECT_EQ(seen(fixed(kHigh, 0, 0), query), 200);
    EXPECT_EQ(seen(fixed(5, 0, kLow), query), 0);
    EXPECT_EQ(seen(global_tokens({kHigh}, kLow), query), 0);
    EXPECT_EQ(seen(ragged({0, 9}, {0, 200}, kHigh, kHigh), query), 200);
    EXPECT_EQ(seen(block_sparse(BlockTable{kHigh, kHigh, {0, 1}, {0}}), query), 200);
  }
  EXPECT_TRUE(documents({{kHigh}}).sees({1, 1, kHigh, kHigh}, 0, 0, kHigh - 1, 5));
  const bool yes = true;
  EXPECT_THROW(boolean(&yes, {int64_t{1} << 40, int64_t{1} << 40, 0, 1}).check(shape), Error);  // and soon
}

TEST(Mask, MadeAlikeAreEqual) {
  EXPECT_TRUE((causal() & window(3, 4)) == (causal() & window(3, 4)));
  EXPECT_TRUE(lengths({1, 2}) == lengths({1, 2}));
  EXPECT_TRUE(documents({{1, 2}}) == documents({{1, 2}}));
  EXPECT_TRUE(prefix_lm({3}, 1) == prefix_lm({3}, 1));
  EXPECT_TRUE(Mask() == Mask());
  EXPECT_FALSE(lengths({1, 2}) == lengths({1, 3}));
  EXPECT_FALSE(documents({{1, 2}}) == documents({{1}, {2}}));
  EXPECT_FALSE(prefix_lm({3}, 1) == prefix_lm({3}));
  EXPECT_FALSE(causal() == causal(0));
  EXPECT_FALSE(causal() == Mask());
  EXPECT_FALSE((causal() & lengths({1})) == causal());
  EXPECT_TRUE((dilated(3, 2) | !causal()) == (dilated(3, 2) | !causal()));
  EXPECT_FALSE((causal() | lengths({1})) == (causal() & lengths({1})));
  EXPECT_FALSE(dilated(3, 2) == dilated(3, 3));
  EXPECT_FALSE(strided(3, 2) == fixed(3, 2));
  EXPECT_TRUE(ragged({0, 1}, {0, 2}) == ragged({0, 1}, {0, 2}));
  EXPECT_TRUE(global_tokens({2, 1}) == global_tokens({1, 2}));
  EXPECT_TRUE(neighbourhood({1, 5}, {1, 3}) == neighbourhood({5}, {3}));  // the same pairs
  const BlockTable table{4, 4, {0, 1}, {0}};
  EXPECT_TRUE(block_sparse(table) == block_sparse({table}));
  EXPECT_FALSE(block_sparse(table) == block_sparse(BlockTable{4, 4, {0, 0}, {}}));
  const bool yes[] = {true, false}, no[] = {false, false};
  EXPECT_TRUE(boolean(yes, {1, 1, 1, 2}) == boolean(yes, {1, 1, 1, 2}));
  EXPECT_FALSE(boolean(yes, {1, 1, 1, 2}) == boolean(no, {1, 1, 1, 2}));
  const auto all = [](int64_t, int64_t, int64_t, int64_t) { return true; };
  const Mask function = where(all);
  EXPECT_TRUE(function == function);
  EXPECT_FALSE(function == where(all));
}

}  // namespace
}  // namespace heed
