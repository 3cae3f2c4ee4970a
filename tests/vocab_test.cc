// Subword vocabularies: training, what they must keep, and bad models.
#include "apps/translate/vocab.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::error_of;

namespace fs = std::filesystem;

class VocabTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / ("heed_vocab_" + std::to_string(getpid()));
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }

  fs::path dir_;
};

// Different sentences made of syllables, so that there is something to merge.
std::vector<std::string> corpus(int lines) {
  const char* parts[] = {"haus", "tür", "fen", "ster", "lauf", "en", "ge", "macht", "schön", "er", "größ", "e", "un"};
  std::vector<std::string> out;
  uint32_t state = 7;
  const auto next = [&](uint32_t n) { return (state = state * 1664525u + 1013904223u) / 65536u % n; };
  for (int i = 0; i < lines; i++) {
    std::string line;
    for (uint32_t w = 4 + next(5); w > 0; w--) {
      if (!line.empty()) line += ' ';
      for (uint32_t k = 1 + next(3); k > 0; k--) line += parts[next(13)];
    }
    out.push_back(line + ".");
  }
  return out;
}

TEST_F(VocabTest, RoundTripsTextItHasNeverSeen) {
  for (const char* type : {"bpe", "unigram"}) {
    SCOPED_TRACE(type);
    VocabOptions options;
    options.size = 400;
    options.model_type = type;
    const Vocab vocab = Vocab::train(corpus(500), options, path("m.spm"));
    EXPECT_LE(vocab.size(), 400);
    EXPECT_TRUE(vocab.has_fixed_ids());
    EXPECT_EQ(vocab.piece(0), "<pad>");
    EXPECT_EQ(vocab.piece(1), "<unk>");
    EXPECT_EQ(vocab.piece(2), "<s>");
    EXPECT_EQ(vocab.piece(3), "</s>");
    for (const std::string text :
         {"die haustür laufen.", "Žluťoučký kůň 你好 🙂 x=1", "größer & <s> </s> <unk>", "a"}) {
      const std::vector<int> ids = vocab.encode(text);
      for (const int id : ids) EXPECT_GT(id, Vocab::kEos) << text;
      EXPECT_EQ(vocab.decode(ids), text);
      const std::vector<std::string> pieces = vocab.pieces(text);
      ASSERT_EQ(pieces.size(), ids.size());
      for (size_t i = 0; i < ids.size(); i++) {
        EXPECT_EQ(vocab.piece(ids[i]), pieces[i]);
        EXPECT_EQ(vocab.id(pieces[i]), ids[i]);
      }
      EXPECT_EQ(vocab.decode(pieces), text);
    }
    EXPECT_TRUE(vocab.encode("").empty());
    EXPECT_TRUE(vocab.encode("  \t ").empty());
    EXPECT_EQ(vocab.decode(std::vector<int>{}), "");
    std::vector<int> ids = vocab.encode("haus");
    ids.insert(ids.begin(), Vocab::kBos);
    ids.insert(ids.end(), {Vocab::kEos, Vocab::kPad, Vocab::kPad});
    EXPECT_EQ(vocab.decode(ids), "haus");
    // Merges really happened: a frequent word is not spelt letter by letter.
    EXPECT_LE(vocab.encode("haus").size(), 3u);
  }
}

TEST_F(VocabTest, SameTextSameBytesAndNoLitter) {
  for (const char* type : {"bpe", "unigram"}) {
    VocabOptions options;
    options.size = 380;
    options.model_type = type;
    const Vocab a = Vocab::train(corpus(300), options, path("a.spm"));
    const Vocab b = Vocab::train(corpus(300), options, path("b.spm"));
    EXPECT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(Vocab::load(path("a.spm")).bytes(), a.bytes());
    EXPECT_EQ(Vocab::from_bytes(a.bytes()).encode("haustür"), a.encode("haustür"));
  }
  int files = 0;
  for (const auto& entry : fs::directory_iterator(dir_)) {
    files++;
    EXPECT_EQ(entry.path().extension(), ".spm");
  }
  EXPECT_EQ(files, 2);
}

TEST_F(VocabTest, LeavesMergesOutByTheSeed) {
  VocabOptions options;
  options.size = 400;
  const Vocab vocab = Vocab::train(corpus(500), options, path("m.spm"));
  const std::vector<std::string> lines = corpus(40);
  const std::vector<std::string_view> texts(lines.begin(), lines.end());
  const auto sizes = [](const std::vector<std::vector<int>>& all) {
    size_t sum = 0;
    for (const auto& ids : all) sum += ids.size();
    return sum;
  };
  std::vector<std::vector<int>> plain;
  for (const std::string& line : lines) plain.push_back(vocab.encode(line));
  EXPECT_EQ(vocab.sample(texts, 0, 1), plain);

  const auto some = vocab.sample(texts, 0.2, 1), more = vocab.sample(texts, 0.8, 1);
  ASSERT_EQ(some.size(), texts.size());
  for (size_t i = 0; i < texts.size(); i++) EXPECT_EQ(vocab.decode(some[i]), lines[i]);
  EXPECT_GT(sizes(some), sizes(plain));
  EXPECT_GT(sizes(more), sizes(some));
  EXPECT_NE(vocab.sample(texts, 0.2, 2), some);
  // Whatever was drawn in between, by whichever thread.
  std::vector<std::vector<int>> elsewhere;
  std::thread([&] { elsewhere = vocab.sample(texts, 0.2, 1); }).join();
  EXPECT_EQ(elsewhere, some);
  EXPECT_EQ(vocab.sample(texts, 0.2, 1), some);
}

TEST_F(VocabTest, DrawsLinesByTheSeed) {
  VocabOptions options;
  options.size = 380;
  options.max_lines = 40;
  const Vocab one = Vocab::train(corpus(2000), options, path("1.spm"));
  const Vocab again = Vocab::train(corpus(2000), options, path("1.spm"));
  options.seed = 2;
  const Vocab two = Vocab::train(corpus(2000), options, path("2.spm"));
  EXPECT_EQ(one.bytes(), again.bytes());
  EXPECT_NE(one.bytes(), two.bytes());
}

TEST_F(VocabTest, SmallTextGivesFewerPiecesAndANote) {
  for (const char* type : {"bpe", "unigram"}) {
    VocabOptions options;
    options.model_type = type;
    const Vocab vocab = Vocab::train(std::vector<std::string>{"hello world", "", "hello heed"}, options, path("s.spm"));
    EXPECT_LT(vocab.size(), 400);
    EXPECT_NE(vocab.note().find(std::to_string(vocab.size()) + " pieces, not 8000"), std::string::npos) << vocab.note();
    EXPECT_EQ(vocab.decode(vocab.encode("hello you")), "hello you");
  }
  VocabOptions fits;
  fits.size = 350;
  EXPECT_EQ(Vocab::train(corpus(300), fits, path("f.spm")).note(), "");
}

TEST_F(VocabTest, NormalizationIsAnOption) {
  VocabOptions options;
  options.size = 350;
  const Vocab folded = Vocab::train(corpus(200), options, path("n.spm"));
  EXPECT_EQ(folded.decode(folded.encode("ﬁn，１\tx")), "fin,1 x");
  options.normalization = "identity";
  const Vocab plain = Vocab::train(corpus(200), options, path("i.spm"));
  EXPECT_EQ(plain.decode(plain.encode("ﬁn，１")), "ﬁn，１");
}

TEST_F(VocabTest, BadRequestsSayWhatIsWrong) {
  const auto train = [&](auto change) {
    VocabOptions options;
    options.size = 400;
    change(options);
    return error_of([&] { Vocab::train(corpus(100), options, path("x.spm")); });
  };
  EXPECT_NE(train([](VocabOptions& o) { o.size = 260; }).find("260"), std::string::npos);
  EXPECT_NE(train([](VocabOptions& o) { o.size = -1; }).find("-1"), std::string::npos);
  EXPECT_NE(train([](VocabOptions& o) { o.model_type = "word2vec"; }).find("word2vec"), std::string::npos);
  EXPECT_NE(train([](VocabOptions& o) { o.coverage = 1.5; }).find("1.5"), std::string::npos);
  EXPECT_NE(train([](VocabOptions& o) { o.normalization = "x"; }).find("\"x\""), std::string::npos);
  EXPECT_NE(train([](VocabOptions& o) { o.size = 262; }).find("too small"), std::string::npos)
      << train([](VocabOptions& o) { o.size = 262; });
  EXPECT_NE(train([](VocabOptions& o) { o.size = 262, o.model_type = "unigram"; }).find("too small"), std::string::npos)
      << train([](VocabOptions& o) { o.size = 262, o.model_type = "unigram"; });
  EXPECT_FALSE(fs::exists(path("x.spm")));
  EXPECT_NE(error_of([&] {
              Vocab::train(std::vector<std::string>{"", "  "}, {}, path("x.spm"));
            }).find("2 lines"),
            std::string::npos);
  EXPECT_NE(error_of([&] { Vocab::train(corpus(50), {}, path("no/such/x.spm")); }).find("cannot be written"),
            std::string::npos);
}

TEST_F(VocabTest, IdsOutsideAreErrors) {
  VocabOptions options;
  options.size = 350;
  const Vocab vocab = Vocab::train(corpus(100), options, path("m.spm"));
  for (const int bad : {-1, vocab.size(), 1 << 30}) {
    EXPECT_THROW(vocab.piece(bad), Error);
    EXPECT_NE(error_of([&] { vocab.decode(std::vector<int>{5, bad}); }).find(std::to_string(bad)), std::string::npos);
  }
}

TEST_F(VocabTest, DamagedModelsAreErrorsOrLoadButNeverCrash) {
  EXPECT_NE(error_of([&] { Vocab::load(path("missing.spm")); }).find("no such file"), std::string::npos);
  EXPECT_NE(error_of([&] { Vocab::load(dir_.string()); }).find("directory"), std::string::npos);
  EXPECT_NE(error_of([&] { Vocab::from_bytes(""); }).find("not a SentencePiece model"), std::string::npos);
  EXPECT_NE(error_of([&] { Vocab::from_bytes("hello"); }).find("not a SentencePiece model"), std::string::npos);
  EXPECT_NE(error_of([&] { Vocab::from_bytes(std::string(5000, '\0')); }).find("not a"), std::string::npos);
  VocabOptions options;
  options.size = 330;
  const std::string good = Vocab::train(corpus(100), options, path("m.spm")).bytes();
  int refused = 0;
  for (size_t n = 0; n < good.size(); n += 1 + good.size() / 300) {
    try {
      Vocab::from_bytes(std::string_view(good).substr(0, n)).encode("haustür 你好");
    } catch (const Error&) {
      refused++;
    }
  }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace heed::translate
