// Word alignments from attention over pieces.
#include "apps/translate/alignment.h"

#include <gtest/gtest.h>
#include <heed/attention.h>

namespace heed::translate {
namespace {

using Rows = std::vector<std::vector<float>>;
using Texts = std::vector<std::string>;

WordAlignment aligned(const Texts& source, const Texts& target, const Rows& attention) {
  return align_words({source, target, attention});
}

TEST(AlignmentTest, PiecesBecomeWords) {
  const Texts source = {"▁the", "▁rail", "way", "▁station", "</s>"}, target = {"▁der", "▁Bahn", "hof", "</s>"};
  const WordAlignment a =
      aligned(source, target,
              {{0.8f, 0.1f, 0.1f, 0, 0}, {0, 0.5f, 0.3f, 0.2f, 0}, {0.1f, 0.1f, 0.1f, 0.6f, 0.1f}, {0, 0, 0, 0, 1}});
  EXPECT_EQ(a.source, (Texts{"the", "railway", "station"}));
  EXPECT_EQ(a.target, (Texts{"der", "Bahnhof"}));
  ASSERT_EQ(a.weights.size(), 2u);
  EXPECT_FLOAT_EQ(a.weights[1][1], 0.5f);  // (0.5 + 0.3 + 0.1 + 0.1) / 2
  EXPECT_FLOAT_EQ(a.weights[1][2], 0.4f);
  // station is nobody's best, and got more than half of what "Bahnhof" gave its best.
  EXPECT_EQ(pharaoh(a), "0-0 1-1 2-1");
}

TEST(AlignmentTest, PharaohGoesBySource) {
  const Texts source = {"▁a", "▁b", "▁c", "</s>"}, target = {"▁x", "▁y", "▁z", "</s>"};
  EXPECT_EQ(pharaoh(aligned(source, target, {{0, 0, 1, 0}, {1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 0, 1}})), "0-1 1-2 2-0");
}

TEST(AlignmentTest, WhatLooksAtTheEndIsNotLinked) {
  const Texts source = {"▁a", "▁b", "</s>"}, target = {"▁x", "▁y"};  // the end was not reached
  const WordAlignment a = aligned(source, target, {{0.2f, 0.1f, 0.7f}, {0.1f, 0.9f, 0}});
  EXPECT_EQ(pharaoh(a), "0-0 1-1");  // a is x's best in spite of the end: nobody else looked at it
  const WordAlignment b = aligned(source, target, {{0.0f, 0.1f, 0.9f}, {0.0f, 0.9f, 0.1f}});
  EXPECT_EQ(pharaoh(b), "1-1");
}

// A space that is a piece of its own belongs to the word behind it; at the end there is none.
TEST(AlignmentTest, SpacesOfTheirOwn) {
  const Texts source = {"▁", "%", "s", "▁b", "▁", "</s>"}, target = {"▁", "„", "x", "“", "</s>"};
  const WordAlignment a = aligned(
      source, target,
      {{0, 1, 0, 0, 0, 0}, {0, 1, 0, 0, 0, 0}, {0.5f, 0, 0.5f, 0, 0, 0}, {0, 0, 0, 1, 0, 0}, {0, 0, 0, 0, 0, 1}});
  EXPECT_EQ(a.source, (Texts{"%s", "b"}));
  EXPECT_EQ(a.target, (Texts{"„x“"}));
  EXPECT_FLOAT_EQ(a.weights[0][0], 0.75f);
}

TEST(AlignmentTest, EmptyAndMisfits) {
  EXPECT_EQ(pharaoh(aligned({}, {}, {})), "");
  EXPECT_EQ(pharaoh(aligned({"</s>"}, {"▁x", "</s>"}, {{1}, {1}})), "");
  EXPECT_EQ(pharaoh(aligned({"▁a", "</s>"}, {"</s>"}, {{0, 1}})), "");
  EXPECT_THROW(aligned({"▁a"}, {"▁x"}, {}), Error);
  EXPECT_THROW(aligned({"▁a"}, {"▁x"}, {{1, 0}}), Error);
}

}  // namespace
}  // namespace heed::translate
