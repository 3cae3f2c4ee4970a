// Pickled weights: what PyTorch wrote, in both of its formats, and what nobody should have written.
#include "libtorch/pickle.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>

#include "libtorch/files.h"

namespace heed::nn {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

const std::string kNew = std::string(HEED_TEST_DATA) + "/marian/opus_bin/pytorch_model.bin";
const std::string kOld = std::string(HEED_TEST_DATA) + "/marian/opus_bin_old/pytorch_model.bin";

// What loading a file of these bytes gives: tensors, or what it says.
struct Outcome {
  std::optional<NamedTensors> tensors;
  std::string said;
};
Outcome load(const std::string& bytes) {
  const fs::path path = fs::temp_directory_path() / ("heed_pickle_test_" + std::to_string(::getpid()) + ".bin");
  std::ofstream(path, std::ios::binary) << bytes;
  Outcome outcome;
  try {
    outcome.tensors = load_pickle(path.string());
  } catch (const Error& error) {  // anything else ends the test
    outcome.said = error.what();
    EXPECT_NE(outcome.said.find(path.string()), std::string::npos) << outcome.said;
  }
  fs::remove(path);
  return outcome;
}
#define EXPECT_REFUSED(bytes, part)                                        \
  do {                                                                     \
    const Outcome outcome = load(bytes);                                   \
    EXPECT_FALSE(outcome.tensors.has_value());                             \
    EXPECT_NE(outcome.said.find(part), std::string::npos) << outcome.said; \
  } while (false)

// A file of the old format around a pickle of ours, with one storage "0" of four floats 1 2 3 4.
std::string file_of(const std::string& pickle) {
  const std::string head =
      "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."s + "\x80\x02M\xe9\x03."s + "\x80\x02}."s;
  const std::string keys = "\x80\x02]X\x01\0\0\0"s + "0a."s;
  std::string storage = "\x04\0\0\0\0\0\0\0"s;
  for (const float value : {1.f, 2.f, 3.f, 4.f}) storage.append(reinterpret_cast<const char*>(&value), 4);
  return head + "\x80\x02"s + pickle + keys + storage;
}
std::string text(const std::string& value) { return "X"s + static_cast<char>(value.size()) + "\0\0\0"s + value; }
std::string number(int32_t value) { return "J"s + std::string(reinterpret_cast<const char*>(&value), 4); }
std::string tuple(const std::string& items) { return "(" + items + "t"; }
// A tensor of storage "0", of which the pickle says that it has `elements`.
std::string tensor(int32_t offset, const std::string& sizes, const std::string& strides, int32_t elements = 4,
                   const std::string& type = "FloatStorage") {
  const std::string storage =
      tuple(text("storage") + "ctorch\n" + type + "\n" + text("0") + text("cpu") + number(elements) + "N") + "Q";
  return "ctorch._utils\n_rebuild_tensor_v2\n" +
         tuple(storage + number(offset) + tuple(sizes) + tuple(strides) + "\x89" + "ccollections\nOrderedDict\n)R") +
         "R";
}
std::string dict(const std::string& entries) { return "}(" + entries + "u."; }

TEST(Pickle, BothFormatsGiveTheSame) {
  const NamedTensors zip = load_pickle(kNew), stream = load_pickle(kOld);
  ASSERT_EQ(zip.size(), stream.size());
  EXPECT_GT(zip.size(), 60u);
  const auto find = [&](const std::string& name) {
    return std::find_if(zip.begin(), zip.end(), [&](const auto& t) { return t.first == name; })->second;
  };
  for (size_t i = 0; i < zip.size(); ++i) {
    EXPECT_EQ(zip[i].first, stream[i].first);
    EXPECT_TRUE(torch::equal(zip[i].second, stream[i].second)) << zip[i].first;
  }
  EXPECT_EQ(find("lm_head.weight").data_ptr(), find("model.shared.weight").data_ptr()) << "tied tensors share memory";
}

TEST(Pickle, ReadsViews) {
  const Outcome outcome = load(file_of(dict(text("whole") + tensor(0, number(2) + number(2), number(2) + number(1)) +
                                            text("turned") + tensor(0, number(2) + number(2), number(1) + number(2)) +
                                            text("end") + tensor(3, number(1), number(1)) + text("scalar") +
                                            tensor(2, "", "") + text("none") + tensor(4, number(0), number(1)))));
  ASSERT_TRUE(outcome.tensors.has_value()) << outcome.said;
  const NamedTensors& t = *outcome.tensors;
  ASSERT_EQ(t.size(), 5u);
  EXPECT_TRUE(torch::equal(t[0].second, torch::tensor({{1.f, 2.f}, {3.f, 4.f}})));
  EXPECT_TRUE(torch::equal(t[1].second, torch::tensor({{1.f, 3.f}, {2.f, 4.f}})));
  EXPECT_TRUE(torch::equal(t[2].second, torch::tensor({4.f})));
  EXPECT_EQ(t[3].second.item<float>(), 3.f);
  EXPECT_EQ(t[4].second.numel(), 0);
}

TEST(Pickle, RunsNothing) {
  const fs::path trace = fs::temp_directory_path() / ("heed_pickle_trace_" + std::to_string(::getpid()));
  EXPECT_REFUSED(file_of("cos\nsystem\n" + text("touch " + trace.string()) + "\x85R."), "\"os.system\"");
  EXPECT_REFUSED(file_of("cbuiltins\neval\n" + text("1") + "\x85R."), "\"builtins.eval\"");
  EXPECT_REFUSED(file_of("c__builtin__\ngetattr\n)R."), "getattr");
  EXPECT_REFUSED(file_of(text("posix") + text("system") + "\x93."), "\"posix.system\"");
  EXPECT_REFUSED(file_of("ctorch\nload\n."), "\"torch.load\"");
  EXPECT_REFUSED(file_of("ccollections\nOrderedDict\n)\x81."), "0x81");  // NEWOBJ
  EXPECT_REFUSED(file_of("ctorch\nFloatStorage\n)R."), "FloatStorage");
  EXPECT_REFUSED(file_of("(cos\nsystem\no."), "\"os.system\"");
  EXPECT_FALSE(fs::exists(trace));
}

TEST(Pickle, RefusesWhatIsNoStateDict) {
  EXPECT_REFUSED(file_of("N."), "None, not a dict");
  EXPECT_REFUSED(file_of(dict(text("model") + "}")), "\"model\" is a dict");
  EXPECT_REFUSED(file_of(dict(text("step") + number(3))), "\"step\" is an integer");
  EXPECT_REFUSED(file_of(dict(number(3) + tensor(0, number(4), number(1)))), "name is not a text");
  EXPECT_REFUSED(file_of("}(" + text("a") + "u."), "without a value");
  EXPECT_REFUSED("", "neither of the two formats");
  EXPECT_REFUSED("PK\x03\x04", "end of the zip file");
}

TEST(Pickle, TensorsStayWithinTheirStorage) {
  const int32_t huge = INT32_MAX;
  for (const std::string& bad :
       {tensor(0, number(5), number(1)), tensor(1, number(4), number(1)), tensor(0, number(2), number(4)),
        tensor(0, number(-1), number(1)), tensor(-1, number(1), number(1)), tensor(0, number(2), number(-1)),
        tensor(0, number(huge), number(0)),
        tensor(0, number(huge) + number(huge) + number(huge), number(0) + number(0) + number(0)),
        tensor(0, number(4), number(huge)), tensor(0, number(2) + number(2), number(1)),
        tensor(0, number(4), number(1), 5), tensor(0, number(4), number(1), -4), tensor(0, number(4), number(1), huge),
        tensor(0, number(4), "N"), tensor(0, number(2), number(1), 4, "DoubleStorage"), tensor(4, "", "")}) {
    EXPECT_REFUSED(file_of(dict(text("w") + bad)), "cannot be read as weights");
  }
  // One storage that two tensors call different things.
  EXPECT_REFUSED(file_of(dict(text("a") + tensor(0, number(4), number(1)) + text("b") +
                              tensor(0, number(4), number(1), 4, "IntStorage"))),
                 "storage");
}

TEST(Pickle, InstructionsThatDoNotFit) {
  for (const std::string& bad : {"."s,
                                 "a."s,
                                 "u."s,
                                 "t."s,
                                 "(u."s,
                                 "s."s,
                                 "\x87."s,
                                 "(N\x86."s,
                                 "R."s,
                                 "NR."s,
                                 "N)R."s,
                                 "Q."s,
                                 "NQ."s,
                                 ")Q."s,
                                 "h\x07."s,
                                 "j\x07\0\0\0."s,
                                 "q\x01."s,
                                 "Nb."s,
                                 "NNb."s,
                                 "N(N."s + "("s,
                                 "\x94."s,
                                 "X\xff\xff\xff\x7f"s,
                                 "\x8d\xff\xff\xff\xff\xff\xff\xff\xff"s,
                                 "c"s,
                                 "cos"s,
                                 "\x8a\xff"s,
                                 "N(]Na."s,
                                 "}NNN\x86."s,
                                 "\x80"s,
                                 ""s,
                                 "I1\n."s,
                                 "(N(N(\x85."s}) {
    EXPECT_REFUSED(file_of(bad), "cannot be read as weights");
  }
  EXPECT_REFUSED(file_of(std::string(5'000'000, '(')), "nested without end");
  EXPECT_REFUSED(file_of(std::string(5'000'000, 'N')), "4000000 parts");
  EXPECT_REFUSED(file_of("Nq\x01"s +
                         [] {
                           std::string all;
                           for (int i = 0; i < 4'100'000; ++i) all += "h\x01";
                           return all;
                         }()),
                 "4000000 parts");
  // A list that holds itself is no reason to loop or to leak.
  EXPECT_REFUSED(file_of("]q\x01h\x01"s + "a."s), "a list, not a dict");
}

TEST(Pickle, CutShortAnywhere) {
  for (const std::string& path : {kNew, kOld}) {
    const std::string whole = read_file(path);
    for (size_t n = 0; n < whole.size(); n += n < 700 || n + 700 > whole.size() ? 7 : 997) {
      EXPECT_FALSE(load(whole.substr(0, n)).tensors.has_value()) << path << " cut to " << n;
    }
    EXPECT_FALSE(load(whole.substr(0, whole.size() - 1)).tensors.has_value());
  }
}

TEST(Pickle, DamagedAnywhere) {
  std::mt19937 random(1);
  const NamedTensors good = load_pickle(kNew);
  for (const std::string& path : {kNew, kOld}) {
    const std::string whole = read_file(path);
    int refused = 0;
    for (int i = 0; i < 600; ++i) {
      std::string damaged = whole;
      const size_t at = random() % damaged.size();
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
      const Outcome outcome = load(damaged);
      refused += !outcome.tensors.has_value();
      if (path != kNew || !outcome.tensors.has_value()) continue;
      // The zip file has checksums: what gets through is what was written.
      ASSERT_EQ(outcome.tensors->size(), good.size());
      for (size_t t = 0; t < good.size(); ++t) {
        EXPECT_EQ((*outcome.tensors)[t].first, good[t].first);
        EXPECT_TRUE(torch::equal((*outcome.tensors)[t].second, good[t].second)) << at;
      }
    }
    EXPECT_GT(refused, 20) << path;
  }
}

}  // namespace
}  // namespace heed::nn
