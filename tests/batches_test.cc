// Encoding, grouping and padding of sentence pairs.
#include "apps/translate/batches.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <set>

namespace fs = std::filesystem;
using namespace heed::translate;

namespace {

Example example(std::vector<int32_t> source, const std::vector<int32_t>& target) {
  Example e{std::move(source), {static_cast<int32_t>(kBos)}};
  e.source.push_back(static_cast<int32_t>(kEos));
  e.target.insert(e.target.end(), target.begin(), target.end());
  e.target.push_back(static_cast<int32_t>(kEos));
  return e;
}

std::vector<Example> many(int n) {
  std::mt19937 random(3);
  std::vector<Example> examples;
  for (int i = 0; i < n; ++i) {
    examples.push_back(example(std::vector<int32_t>(1 + random() % 30, 7), std::vector<int32_t>(1 + random() % 30, 8)));
  }
  return examples;
}

TEST(Batches, MakeBatchPads) {
  const std::vector<Example> examples = {example({5, 6, 7}, {8}), example({9}, {10, 11, 12})};
  const Batch batch = make_batch(examples, std::vector<int64_t>{1, 0});
  EXPECT_TRUE(torch::equal(batch.source, torch::tensor({{9, 3, 0, 0}, {5, 6, 7, 3}})));
  EXPECT_TRUE(torch::equal(batch.target_in, torch::tensor({{2, 10, 11, 12}, {2, 8, 0, 0}})));
  EXPECT_TRUE(torch::equal(batch.target_out, torch::tensor({{10, 11, 12, 3}, {8, 3, 0, 0}})));
  EXPECT_EQ(batch.source_lengths, (std::vector<int64_t>{2, 4}));
  EXPECT_EQ(batch.target_lengths, (std::vector<int64_t>{4, 2}));
  EXPECT_EQ(batch.target_tokens(), 6);
}

TEST(Batches, EveryPairOnceWithinTheLimitWithLittlePadding) {
  const auto examples = many(2000);
  int64_t real = 0, padded = 0;
  std::multiset<int64_t> seen;
  for (const auto& indices : make_batches(examples, 400, 1, 0)) {
    ASSERT_FALSE(indices.empty());
    seen.insert(indices.begin(), indices.end());
    const Batch batch = make_batch(examples, indices);
    EXPECT_LE(batch.target_in.numel(), 400);
    EXPECT_LE(batch.source.numel(), 600);
    real += batch.target_tokens();
    padded += batch.target_in.numel();
  }
  EXPECT_EQ(seen.size(), 2000u);
  EXPECT_EQ(std::set<int64_t>(seen.begin(), seen.end()).size(), 2000u);
  EXPECT_LT(static_cast<double>(padded), 1.1 * static_cast<double>(real));
}

TEST(Batches, ALongPairIsABatchOfItsOwn) {
  const std::vector<Example> examples = {example({5}, std::vector<int32_t>(50, 6)), example({5}, {6})};
  const auto batches = make_batches(examples, 10, 1, 0);
  ASSERT_EQ(batches.size(), 2u);
  EXPECT_EQ(batches[0].size(), 1u);
  EXPECT_EQ(make_batches(examples, 1, 1, 0).size(), 2u);
  EXPECT_TRUE(make_batches({}, 10, 1, 0).empty());
  EXPECT_THROW(make_batches(examples, 0, 1, 0), heed::Error);
}

TEST(Batches, OrderDependsOnSeedAndEpochAlone) {
  const auto examples = many(300);
  const auto first = make_batches(examples, 200, 1, 0);
  EXPECT_EQ(make_batches(examples, 200, 1, 0), first);
  EXPECT_NE(make_batches(examples, 200, 1, 1), first);
  EXPECT_NE(make_batches(examples, 200, 2, 0), first);
  std::set<std::vector<int64_t>> groups, next;
  for (auto batch : first) groups.insert((std::sort(batch.begin(), batch.end()), batch));
  for (auto batch : make_batches(examples, 200, 1, 1)) next.insert((std::sort(batch.begin(), batch.end()), batch));
  EXPECT_NE(groups, next) << "pairs of a length must meet others in the next pass";
}

TEST(Batches, SharesAreTheWholeAndAboutAlike) {
  const auto examples = many(300);
  for (const auto& batch : make_batches(examples, 200, 1, 0)) {
    for (const int world : {1, 2, 3, 7, 400}) {
      std::vector<int64_t> all;
      int64_t least = INT64_MAX, most = 0, longest = 0;
      for (int rank = 0; rank < world; ++rank) {
        const auto share = share_of(examples, batch, rank, world);
        int64_t tokens = 0;
        for (const int64_t i : share) {
          const Example& e = examples[static_cast<size_t>(i)];
          const auto n = static_cast<int64_t>(e.source.size() + e.target.size());
          longest = std::max(longest, n);
          tokens += n;
        }
        auto at = batch.begin();  // rows keep their order
        for (const int64_t i : share) at = std::find(at, batch.end(), i);
        EXPECT_TRUE(share.empty() || at != batch.end());
        all.insert(all.end(), share.begin(), share.end());
        least = std::min(least, tokens);
        most = std::max(most, tokens);
      }
      EXPECT_LE(most - least, longest);
      auto expected = batch;
      std::sort(all.begin(), all.end());
      std::sort(expected.begin(), expected.end());
      EXPECT_EQ(all, expected);
    }
  }
}

// The constant was computed a second time in Python, from the definitions of MT19937-64 and of our mixing.
TEST(Batches, ShuffledIsTheSameEverywhere) {
  const auto order = shuffled(10, 1);
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(sorted[static_cast<size_t>(i)], i);
  EXPECT_EQ(order, (std::vector<int64_t>{1, 4, 9, 8, 0, 7, 6, 2, 5, 3}));
  EXPECT_TRUE(shuffled(0, 1).empty());
  std::vector<int> first(10);  // each number comes first about as often
  for (uint64_t seed = 0; seed < 5000; ++seed) ++first[static_cast<size_t>(shuffled(10, seed)[0])];
  for (const int n : first) EXPECT_NEAR(n, 500, 100);
}

TEST(Batches, EncodesOnceAndCountsWhatItDrops) {
  std::string dir = (fs::temp_directory_path() / "heed-batches-XXXXXX").string();
  ASSERT_NE(::mkdtemp(dir.data()), nullptr);
  std::vector<std::string> lines;
  for (int i = 0; i < 200; ++i) lines.push_back("word" + std::to_string(i % 17) + " and number " + std::to_string(i));
  VocabOptions options;
  options.size = 320;
  const Vocab vocab = Vocab::train(lines, options, dir + "/v.spm");
  std::string endless;
  for (int i = 0; i < 300; ++i) endless += "word1 ";
  const Examples examples =
      encode_pairs({{"word1", "word2"}, {endless, "x"}, {"x", endless}, {"word3", ""}}, vocab, vocab);
  ASSERT_EQ(examples.examples.size(), 1u);
  EXPECT_EQ(examples.too_long, 2);
  EXPECT_EQ(examples.empty, 1);
  EXPECT_EQ(examples.summary(), "1 pairs; 2 longer than 250 pieces left out; 1 with an empty side left out");
  const Example& e = examples.examples[0];
  EXPECT_EQ(e.source.back(), kEos);
  EXPECT_EQ(e.target.front(), kBos);
  EXPECT_EQ(e.target.back(), kEos);
  EXPECT_EQ(vocab.decode(std::vector<int>(e.target.begin(), e.target.end())), "word2");
  // A model of other ids.
  const Examples other = encode_pairs({{"word1", "word2"}, {"word1 word1", "x"}}, vocab, vocab, kMaxPieces,
                                      {.pad = 300, .eos = 7, .start = 300});
  EXPECT_EQ(other.examples[0].source.back(), 7);
  EXPECT_EQ(other.examples[0].target.front(), 300);
  EXPECT_EQ(other.examples[0].target.back(), 7);
  const Batch batch = make_batch(other.examples, std::vector<int64_t>{0, 1}, 300);
  EXPECT_EQ(batch.source[0][-1].item<int64_t>(), 300);
  EXPECT_NE(batch.source[1][-1].item<int64_t>(), 300);
  fs::remove_all(dir);
}

}  // namespace
