// Masks against their definitions, pair by pair, written down here a second time.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <functional>
#include <string>
#include <vector>

namespace heed {
namespace {

using Sees = std::function<bool(const MaskShape& n, int64_t b, int64_t i, int64_t j)>;

const MaskShape kShapes[] = {{2, 1, 7, 7}, {2, 1, 4, 9}, {2, 1, 9, 4}, {2, 1, 1, 6},
                             {2, 1, 6, 1}, {2, 1, 5, 0}, {2, 1, 0, 5}};

void expect_sees(const std::string& name, const Mask& mask, const Sees& sees) {
  for (const MaskShape& n : kShapes) {
    SCOPED_TRACE(name + " for " + std::to_string(n.queries) + " queries, " + std::to_string(n.keys) + " keys");
    mask.check(n);
    for (int64_t b = 0; b < n.batch; ++b)
      for (int64_t i = 0; i < n.queries; ++i) {
        const Span row = mask.row(n, b, 0, i);
        for (int64_t j = 0; j < n.keys; ++j)
          EXPECT_EQ(row.begin <= j && j < row.end, sees(n, b, i, j)) << "batch " << b << ", " << i << " sees " << j;
        EXPECT_GE(row.begin, 0);
        EXPECT_LE(row.end, n.keys);
        if (!mask.varies_by_batch()) {
          EXPECT_EQ(row.begin, mask.row(n, 0, 0, i).begin);
          EXPECT_EQ(row.end, mask.row(n, 0, 0, i).end);
        }
      }
  }
}

int64_t place(const MaskShape& n, int64_t i) { return i + n.keys - n.queries; }

const Sees kCausal = [](const MaskShape& n, int64_t, int64_t i, int64_t j) { return j <= place(n, i); };

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
}

}  // namespace
}  // namespace heed
