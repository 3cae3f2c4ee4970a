// IBM Model 1 on a toy corpus whose dictionary is known.
#include "apps/translate/word_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace heed::translate {
namespace {

// "das Haus", "das Buch", "ein Buch": the example every text book works through. After one pass t(das|the) is 1/2;
// it goes to 1.
TEST(WordModelTest, TheTextBookExample) {
  enum : int32_t { the, house, book, a };
  enum : int32_t { das, haus, buch, ein };
  const std::vector<std::vector<int32_t>> english = {{the, house}, {the, book}, {a, book}};
  const std::vector<std::vector<int32_t>> german = {{das, haus}, {das, buch}, {ein, buch}};
  std::vector<TokenPair> pairs;
  for (size_t i = 0; i < 3; ++i) pairs.push_back({english[i], german[i]});
  EXPECT_NEAR(WordModel(pairs, 1).probability(the, das), 0.5, 1e-6);
  const WordModel model(pairs, 30);
  EXPECT_GT(model.probability(the, das), 0.9);
  EXPECT_GT(model.probability(book, buch), 0.9);
  EXPECT_EQ(model.probability(house, ein), 0);  // never met
  EXPECT_EQ(model.align(pairs[1]), (std::vector<int64_t>{0, 1}));
}

TEST(WordModelTest, FindsADictionaryInAnyOrder) {
  std::mt19937 random(3);
  std::vector<std::vector<int32_t>> source, target;
  for (int i = 0; i < 400; ++i) {
    std::vector<int32_t> s, t;
    for (int n = 0; n < 6; ++n) s.push_back(static_cast<int32_t>(random() % 40));
    for (const int32_t token : s) t.push_back(100 + (token * 7 + 3) % 40);  // a bijection
    std::rotate(t.begin(), t.begin() + static_cast<long>(random() % 6), t.end());
    source.push_back(s);
    target.push_back(t);
  }
  std::vector<TokenPair> pairs;
  for (size_t i = 0; i < source.size(); ++i) pairs.push_back({source[i], target[i]});
  const WordModel model(pairs);
  int64_t right = 0, all = 0;
  for (const TokenPair& pair : pairs) {
    const std::vector<int64_t> places = model.align(pair);
    for (size_t t = 0; t < places.size(); ++t, ++all) {
      right += places[t] >= 0 && 100 + (pair.source[static_cast<size_t>(places[t])] * 7 + 3) % 40 == pair.target[t];
    }
  }
  EXPECT_EQ(right, all);
}

}  // namespace
}  // namespace heed::translate
