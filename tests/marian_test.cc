// Marian's checkpoints as transformers writes them: the logits and the translations it computes, from
// tests/data/marian/, which marian_goldens.py made; and a folder of ours read by transformers, where there is one.
#include "apps/translate/marian.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/translate/convert.h"
#include "apps/translate/infer.h"
#include "apps/translate/search.h"
#include "apps/translate/train.h"
#include "libtorch/safetensors.h"
#include "said.h"

namespace heed::translate {
namespace {

using heed::tests::error_of;

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

const fs::path kData = fs::path(HEED_TEST_DATA) / "marian";

json json_of(const fs::path& path) {
  std::ifstream in(path);
  return json::parse(in);
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    static int made = 0;
    path =
        fs::temp_directory_path() / ("heed_marian_test_" + std::to_string(::getpid()) + "_" + std::to_string(made++));
    fs::create_directories(path);
  }
  ~TemporaryFolder() { fs::remove_all(path); }
  fs::path path;
};

std::pair<std::shared_ptr<const Vocab>, std::shared_ptr<const Vocab>> vocabs_of(const std::string& dir) {
  return load_vocabs(dir, load_model(dir)->config());
}

// One sentence or several, padded behind their ends.
struct Sources {
  Tensor ids;
  std::vector<int64_t> lengths;
};
Sources padded(const std::vector<std::vector<int64_t>>& rows, int64_t pad) {
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row.size());
  Sources s{torch::full({static_cast<int64_t>(rows.size()), static_cast<int64_t>(width)}, pad, torch::kInt64), {}};
  for (size_t i = 0; i < rows.size(); ++i) {
    s.lengths.push_back(static_cast<int64_t>(rows[i].size()));
    s.ids[static_cast<int64_t>(i)].narrow(0, 0, s.lengths.back()).copy_(torch::tensor(rows[i], torch::kInt64));
  }
  return s;
}

Tensor logits_of(Model& model, const std::vector<int64_t>& source, const std::vector<int64_t>& target) {
  torch::NoGradGuard no_grad;
  const Batch batch{torch::tensor(source, torch::kInt64).unsqueeze(0),
                    {static_cast<int64_t>(source.size())},
                    torch::tensor(target, torch::kInt64).unsqueeze(0),
                    {},
                    {static_cast<int64_t>(target.size())}};
  return model.logits(batch);
}

// The largest difference, as a share of the number where that is above 1.
double difference(const Tensor& got, const Tensor& expected) {
  return ((got - expected).abs() / expected.abs().clamp_min(1)).max().item<double>();
}

// How far float32 may be from the goldens. The weights of "separate" magnify rounding: there transformers' own float32
// is 1.6e-5 from its float64, and 1.1e-5 from itself on another machine.
double tolerance_of(const fs::path& goldens) { return goldens.filename() == "separate" ? 5e-5 : 1e-5; }

void expect_goldens(Model& model, const fs::path& goldens) {
  const double tolerance = tolerance_of(goldens);
  const json golden = json_of(goldens / "goldens.json");
  const nn::SafeTensors tensors = nn::load_safetensors((goldens / "goldens.safetensors").string());
  const auto sources = golden["sources"].get<std::vector<std::vector<int64_t>>>();
  const auto targets = golden["targets"].get<std::vector<std::vector<int64_t>>>();
  ASSERT_FALSE(targets.empty());
  for (size_t i = 0; i < std::min(sources.size(), targets.size()); ++i) {
    const Tensor* expected = tensors.find("logits." + std::to_string(i));
    ASSERT_NE(expected, nullptr);
    const Tensor got = logits_of(model, sources[i], targets[i]);
    ASSERT_EQ(got.sizes(), expected->sizes());
    EXPECT_LT(difference(got, *expected), tolerance) << i;
  }
  const Sources batch = padded(sources, model.config().tokens.pad);
  for (const json& search : golden["generated"]) {
    BeamOptions options;
    options.beam = search["beam"];
    options.length_penalty = search["length_penalty"];
    options.max_steps.assign(sources.size(), search["max_length"].get<int64_t>() - 1);
    const auto found = beam_search(model, batch.ids, batch.lengths, options);
    for (size_t i = 0; i < sources.size(); ++i) {
      const std::string where = search["beam"].dump() + " " + search["length_penalty"].dump() + " " +
                                search["max_length"].dump() + ", source " + std::to_string(i);
      EXPECT_EQ(found[i].front().tokens, search["ids"][i].get<std::vector<int>>()) << where;
      if (!search["scores"].is_null()) {
        EXPECT_NEAR(found[i].front().score, search["scores"][i].get<double>(), 1e-4) << where;
      }
    }
  }
}

class Marian : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Folder, Marian, testing::Values("opus", "bare", "separate", "untied", "half", "brain"),
                         [](const auto& p) { return p.param; });

TEST_P(Marian, LogitsAndTranslationsEqualTransformers) {
  const auto model = load_model((kData / GetParam()).string());
  expect_goldens(*model, kData / GetParam());
}

// What is loaded is stored under Hugging Face's names again, whatever it came under.
TEST_P(Marian, SurvivesSaving) {
  const TemporaryFolder folder;
  save_model(*load_model((kData / GetParam()).string()), folder.path.string());
  const auto again = load_model(folder.path.string());
  expect_goldens(*again, kData / GetParam());
  EXPECT_EQ(again->config().tokens, load_model((kData / GetParam()).string())->config().tokens);
  EXPECT_EQ(again->config().generation, load_model((kData / GetParam()).string())->config().generation);
}

TEST(MarianFolder, TextGoesInAndComesOut) {
  for (const char* name : {"opus", "separate"}) {
    const std::string dir = (kData / name).string();
    const auto [source, target] = vocabs_of(dir);
    const Translator translator = Translator::load(dir);
    const json golden = json_of(kData / name / "goldens.json");
    ASSERT_GE(golden["texts"].size(), 3u);
    std::vector<std::string> lines;
    for (const json& each : golden["texts"]) {
      lines.push_back(each["source"]);
      std::vector<int> ids = source->encode(lines.back());
      ids.push_back(source->eos());
      EXPECT_EQ(ids, each["ids"].get<std::vector<int>>()) << lines.back();
      EXPECT_EQ(target->decode(each["generated"].get<std::vector<int>>()), each["text"].get<std::string>());
    }
    const auto translations = translator.translate(lines, {.beam = 4, .max_length = 23});
    for (size_t i = 0; i < lines.size(); ++i) {
      EXPECT_EQ(translations[i].text, golden["texts"][i]["text"].get<std::string>()) << lines[i];
      EXPECT_EQ(translations[i].source_pieces.back(), "</s>");
    }
  }
  // It does translate.
  EXPECT_EQ(Translator::load((kData / "opus").string())
                .translate(std::vector<std::string>{">>deu<< the dog sees the man", ">>fra<< the dog runs"})[0]
                .text,
            "der Hund sieht den Mann");
}

TEST(MarianFolder, LanguageTokens) {
  const auto [source, target] = vocabs_of((kData / "opus").string());
  EXPECT_NE(source->bytes(), target->bytes());
  EXPECT_EQ(source->id("▁der"), target->id("▁der")) << "one numbering";
  const auto plain = source->pieces("the dog");
  auto pieces = source->pieces(">>fra<< the dog");
  EXPECT_EQ(pieces.front(), ">>fra<<");
  EXPECT_EQ(source->encode(">>fra<<"), std::vector<int>{source->id(">>fra<<")});
  EXPECT_NE(source->id(">>fra<<"), source->unk());
  // A code that the model does not know is text as any other: transformers makes <unk> of it and of all before "<<".
  EXPECT_NE(source->pieces(">>ita<< the dog").front(), ">>ita<<");
  EXPECT_GT(source->pieces(">>the dog<<").size(), 2u);
  EXPECT_EQ(source->encode(">> "), source->encode(">>"));
  EXPECT_TRUE(source->encode("").empty());
}

TEST(MarianFolder, WhatTheFolderSaysOfSearching) {
  const auto said = [](const char* name) { return load_model((kData / name).string())->config(); };
  EXPECT_EQ(said("opus").generation, (Generation{6, 1.0, 511}));
  EXPECT_EQ(said("bare").generation, (Generation{5, 0.8, 23}));
  EXPECT_EQ(said("untied").generation, (Generation{4, 1.2, 23}));
  EXPECT_EQ(Translator::load((kData / "opus").string()).generation().beam, 6);
  const TokenIds opus = said("opus").tokens;
  EXPECT_EQ(opus.pad, opus.start);
  EXPECT_EQ(opus.banned, std::vector<int64_t>{opus.pad});
  EXPECT_EQ(opus.forced_end, 0);
  EXPECT_TRUE(opus.renormalize);
  EXPECT_EQ(said("bare").tokens.forced_end, 0) << "the class's default, where there is no word of it";
  EXPECT_EQ(said("separate").tokens.forced_end, -1);
  EXPECT_FALSE(said("separate").tokens.renormalize);
  EXPECT_EQ(said("separate").tokens.banned.size(), 3u);
  EXPECT_EQ(said("untied").tokens.banned, (std::vector<int64_t>{5, 7})) << "the end is never banned";
}

// ---- What is refused, and in which words ----

class Edited : public testing::Test {
 protected:
  void copy(const char* name) { fs::copy(kData / name, folder_.path, fs::copy_options::recursive); }
  // What loading says once `edit` has changed a JSON file of the folder.
  std::string after(const char* file, const std::function<void(json&)>& edit) {
    const json before = json_of(folder_.path / file);
    json j = before;
    edit(j);
    std::ofstream(folder_.path / file) << j.dump();
    const std::string said = error_of([&] { Translator::load(folder_.path.string()); });
    std::ofstream(folder_.path / file) << before.dump();
    return said;
  }
  std::string after_tensors(const std::function<void(nn::NamedTensors&)>& edit) {
    const std::string path = (folder_.path / "model.safetensors").string();
    const nn::NamedTensors before = nn::load_safetensors(path).tensors;
    nn::NamedTensors tensors = before;
    edit(tensors);
    nn::save_safetensors(path, tensors);
    const std::string said = error_of([&] { load_model(folder_.path.string()); });
    nn::save_safetensors(path, before);
    return said;
  }
  TemporaryFolder folder_;
};

TEST_F(Edited, Configs) {
  copy("opus");
  const auto says = [&](const char* key, const json& value, const std::string& part) {
    const std::string said = after("config.json", [&](json& j) { j[key] = value; });
    EXPECT_SAYS(said, part);
    EXPECT_SAYS(said, std::string("\"") + key + "\"");
  };
  EXPECT_EQ(after("config.json", [](json&) {}), "no error");
  for (const char* key : {"normalize_before", "normalize_embedding", "add_final_layer_norm"}) {
    says(key, true, "reads models where it is false");
    EXPECT_EQ(after("config.json", [&](json& j) { j.erase(key); }), "no error");
  }
  says("static_position_embeddings", false, "where it is true");
  says("activation_function", "tanh", "relu, swish, silu and gelu");
  says("pad_token_id", 1000, "0 to ");
  says("eos_token_id", json::array({0, 1}), "[0,1]");
  says("decoder_vocab_size", 17, "is 17");
  says("scale_embedding", "yes", "true or false");
  EXPECT_SAYS(after("config.json", [](json& j) { j.erase("scale_embedding"); }), "no key \"scale_embedding\"");
  EXPECT_SAYS(after("generation_config.json", [](json& j) { j["bad_words_ids"] = {{1, 2}}; }), "[1,2]");
  EXPECT_SAYS(after("generation_config.json", [](json& j) { j["num_beams"] = 0; }), "\"num_beams\" is 0");
  EXPECT_SAYS(after("generation_config.json", [](json& j) { j = 3; }), "generation_config.json");
  // The files must be of one model.
  EXPECT_SAYS(after("config.json", [](json& j) { j["pad_token_id"] = 7; }), "\"pad_token_id\" is 7");
  EXPECT_SAYS(after("vocab.json", [](json& j) { std::swap(j["</s>"], j["<unk>"]); }), "numbers </s> 1");
  EXPECT_SAYS(after("vocab.json", [](json& j) { j["surplus"] = 400; }), "401 pieces");
  EXPECT_SAYS(after("vocab.json", [](json& j) { j["surplus"] = j["<pad>"]; }), "surplus");
  EXPECT_SAYS(after("vocab.json", [](json& j) { j.erase("<unk>"); }), "no number for <unk>");
  EXPECT_SAYS(after("vocab.json", [](json& j) { j["<unk>"] = "x"; }), "\"x\"");
  EXPECT_SAYS(after("vocab.json", [](json& j) { j = json::array(); }), "does not hold a JSON object");
  // Tokens that are nothing may be said, and are silent.
  EXPECT_EQ(after("vocab.json", [](json& j) { j.erase(">>fra<<"); }), "no error");
  const auto vocab =
      Vocab::load((folder_.path / "source.spm").string()).numbered_by((folder_.path / "vocab.json").string(), 400);
  EXPECT_EQ(vocab.size(), 400);
  EXPECT_EQ(vocab.decode(std::vector<int>{vocab.id("▁cat"), 399, vocab.pad()}), "cat");
  EXPECT_EQ(vocab.piece(399), "");
  fs::remove(folder_.path / "vocab.json");
  EXPECT_SAYS(error_of([&] { Translator::load(folder_.path.string()); }), "no vocab.json");
}

TEST_F(Edited, Tensors) {
  copy("half");
  const auto find = [](nn::NamedTensors& tensors, const std::string& name) -> Tensor& {
    return std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; })->second;
  };
  const auto without = [](nn::NamedTensors& tensors, const std::string& name) {
    std::erase_if(tensors, [&](const auto& t) { return t.first == name; });
  };
  EXPECT_EQ(after_tensors([&](auto& t) { without(t, "lm_head.weight"); }), "no error");
  EXPECT_EQ(after_tensors([&](auto& t) { without(t, "model.decoder.embed_tokens.weight"); }), "no error");
  EXPECT_SAYS(after_tensors([&](auto& t) {
                without(t, "lm_head.weight");
                without(t, "model.decoder.embed_tokens.weight");
              }),
              "no tensor 'model.shared.weight'");
  const std::string differ = after_tensors([&](auto& t) {
    Tensor& head = find(t, "lm_head.weight");
    head = head.clone();
    head[3][4] += 1;
  });
  EXPECT_SAYS(differ, "'model.decoder.embed_tokens.weight' and 'lm_head.weight'");
  EXPECT_SAYS(differ, "tie_word_embeddings");
  EXPECT_SAYS(after_tensors([&](auto& t) { find(t, "final_logits_bias") = torch::zeros({1, 59}); }), "is [1, 59]");
  EXPECT_SAYS(after_tensors([&](auto& t) {
                find(t, "final_logits_bias") = torch::zeros({1, 59});
              }),
              "asks for [1, 60]");
  EXPECT_SAYS(
      after_tensors([](auto& t) { t.emplace_back("model.encoder.layernorm_embedding.weight", torch::ones({16})); }),
      "'model.encoder.layernorm_embedding.weight'");
}

// ---- pytorch_model.bin ----

TEST(Convert, GivesTheTensorsOfTheOtherFile) {
  for (const char* name : {"opus_bin", "opus_bin_old"}) {
    const TemporaryFolder folder;
    fs::copy(kData / name, folder.path);
    const std::string dir = folder.path.string();
    EXPECT_SAYS(error_of([&] { load_model(dir); }), "heed convert " + dir);
    const Converted done = convert(dir);
    EXPECT_EQ(done.copies, 3) << "source, target and output are one matrix";
    EXPECT_EQ(done.recomputed, 2);
    const nn::SafeTensors got = nn::load_safetensors((folder.path / "model.safetensors").string());
    const nn::SafeTensors expected = nn::load_safetensors((kData / "opus" / "model.safetensors").string());
    EXPECT_EQ(got.tensors.size(), expected.tensors.size());
    for (const auto& [tensor_name, tensor] : expected.tensors) {
      ASSERT_NE(got.find(tensor_name), nullptr) << tensor_name;
      EXPECT_TRUE(torch::equal(*got.find(tensor_name), tensor)) << tensor_name;
    }
    fs::copy(kData / "opus" / "generation_config.json", folder.path);
    expect_goldens(*load_model(dir), kData / "opus");
    EXPECT_SAYS(error_of([&] { convert(dir); }), "there already");
  }
}

TEST(Convert, LeavesNothingBehindWhenItFails) {
  const TemporaryFolder folder;
  const std::string dir = folder.path.string();
  EXPECT_SAYS(error_of([&] { convert(dir + "/none"); }), "not a folder");
  EXPECT_SAYS(error_of([&] { convert(dir); }), "pytorch_model.bin to convert");
  std::ofstream(folder.path / "pytorch_model.bin") << "version https://git-lfs.github.com/spec/v1\n";
  EXPECT_SAYS(error_of([&] { convert(dir); }), "git-lfs");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1);
}

TEST(Convert, HalvesAFolder) {
  for (const char* name : {"opus", "opus_bin"}) {  // from either file
    const TemporaryFolder folder;
    const std::string out = (folder.path / "half").string();
    const Converted done = convert((kData / name).string(), out, "f16");
    EXPECT_EQ(done.path, out + "/model.safetensors");
    const nn::SafeTensors whole = nn::load_safetensors((kData / "opus" / "model.safetensors").string());
    const nn::SafeTensors half = nn::load_safetensors(done.path);
    for (const auto& [tensor_name, tensor] : half.tensors) {
      EXPECT_EQ(tensor.dtype(), torch::kFloat16) << tensor_name;
      EXPECT_TRUE(torch::equal(tensor, whole.find(tensor_name)->to(torch::kFloat16))) << tensor_name;
    }
    EXPECT_EQ(json::parse(std::ifstream(fs::path(out) / "config.json"))["torch_dtype"], "float16");
    EXPECT_NE(load_model(out), nullptr);
    if (std::string(name) == "opus") Translator::load(out);  // every file it needs is there
    EXPECT_SAYS(error_of([&] { convert((kData / name).string(), out, "f16"); }), "already");
  }
}

TEST(Convert, RefusesWhatF16CannotHold) {
  const TemporaryFolder folder;
  fs::copy(kData / "opus", folder.path);
  const std::string dir = folder.path.string(), out = dir + "/out";
  nn::NamedTensors tensors = nn::load_safetensors(dir + "/model.safetensors").tensors;
  tensors[0].second = tensors[0].second.clone();
  tensors[0].second.view(-1)[0] = 70000;
  nn::save_safetensors(dir + "/model.safetensors", tensors);
  EXPECT_SAYS(error_of([&] { convert(dir, out, "f16"); }), "'" + tensors[0].first + "'");
  EXPECT_FALSE(fs::exists(out));
  EXPECT_EQ(convert(dir, out, "bf16").tensors, static_cast<int64_t>(tensors.size()));
  EXPECT_SAYS(error_of([&] { convert(dir, dir + "/other", "f8"); }), "choose f32, f16 or bf16");
  EXPECT_SAYS(error_of([&] { convert(dir + "/none", dir + "/other", "f16"); }), "no config.json");
}

// ---- A folder of ours ----

std::vector<Pair> pairs() {
  std::vector<Pair> result;
  for (const auto& [who, wer] :
       {std::pair("the dog", "der Hund"), {"a man", "ein Mann"}, {"the child", "das Kind"}, {"she", "sie"}}) {
    for (const auto& [what, was] :
         {std::pair("runs", "läuft"), {"sleeps", "schläft"}, {"reads", "liest"}, {"sings", "singt"}}) {
      result.push_back({std::string(who) + " " + what, std::string(wer) + " " + was});
    }
  }
  return result;
}

void train_small(const std::string& out, const std::string& arch) {
  TrainOptions options;
  options.out = out;
  options.model.arch = arch;
  options.model.vocab = 320;
  options.model.dim = options.model.hidden = 24;
  options.model.ffn = 32;
  options.model.heads = 3;
  options.model.layers = arch == "rnn" ? 1 : 2;
  options.model.dropout = 0;
  options.model.max_positions = 48;
  options.steps = 120;
  options.learning_rate = 1e-2;
  options.validate_every = 60;
  train(pairs(), pairs(), options);
}

TEST(OurFolder, SaysTheSameWithAndWithoutTheFilesForTransformers) {
  const TemporaryFolder folder;
  const std::string dir = (folder.path / "model").string();
  train_small(dir, "transformer");
  const std::vector<std::string> lines = {"the dog sings", "a man", "ein ☃ xyz"};
  const auto texts = [&] {
    std::vector<std::string> result;
    const Translator translator = Translator::load(dir);
    for (const Translation& t : translator.translate(lines, {.beam = 3})) result.push_back(t.text);
    return result;
  };
  const auto with = texts();
  EXPECT_EQ(with[0], "der Hund singt");
  EXPECT_EQ(load_model(dir)->config().tokens, TokenIds{});
  EXPECT_FALSE(vocabs_of(dir).first->is_numbered()) << "a vocab.json of the model's own ids changes nothing";
  const auto [source, target] = vocabs_of(dir);
  EXPECT_EQ(source, target) << "no second copy of one vocabulary";
  // As folders were before there was a vocab.json, with a forced end that was never meant.
  for (const char* name : {"vocab.json", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_TRUE(fs::remove(fs::path(dir) / name)) << name;
  }
  json config = json_of(fs::path(dir) / "config.json");
  config["forced_eos_token_id"] = 3;
  config["bad_words_ids"] = {{0}};
  config.erase("length_penalty");
  config.erase("renormalize_logits");
  std::ofstream(fs::path(dir) / "config.json") << config.dump();
  EXPECT_EQ(load_model(dir)->config().tokens, TokenIds{});
  EXPECT_EQ(texts(), with);
}

TEST(OurFolder, AnRnnMayTakeATransformersPlace) {
  const TemporaryFolder folder;
  const std::string dir = folder.path.string();
  fs::copy(kData / "opus", folder.path, fs::copy_options::recursive);
  train_small(dir, "rnn");
  EXPECT_EQ(Translator::load(dir).translate(std::vector<std::string>{"the dog sings"})[0].source_pieces.back(), "</s>");
}

TEST(OurFolder, AnRnnHasNoFilesForTransformers) {
  ModelConfig config;
  config.arch = "rnn";
  EXPECT_TRUE(transformers_files(config, Vocab::load((kData / "opus" / "source.spm").string())).empty());
}

// Runs tests/marian_roundtrip.py, which opens the folder with MarianMTModel and MarianTokenizer.
TEST(OurFolder, TransformersComputesTheSame) {
  const char* python = std::getenv("HEED_TRANSFORMERS");
  if (python == nullptr || *python == '\0') GTEST_SKIP() << "set HEED_TRANSFORMERS to a Python that has transformers";
  const TemporaryFolder folder;
  const std::string dir = (folder.path / "model").string();
  train_small(dir, "transformer");
  const Translator translator = Translator::load(dir);
  const auto model = load_model(dir);
  const auto [vocab, target] = vocabs_of(dir);
  json said = {{"sources", json::array()},
               {"targets", json::array()},
               {"logits", json::array()},
               {"texts", json::array()},
               {"generated", json::array()}};
  std::vector<std::string> lines;
  std::vector<std::vector<int64_t>> sources;
  for (const Pair& pair : pairs()) {
    if (lines.size() == 6) break;
    lines.push_back(pair.source);
  }
  lines.push_back("the child reads ☃ the dog");
  lines.push_back("she sings sings");
  for (const std::string& line : lines) {
    std::vector<int64_t> source, in = {kBos};
    for (const int id : vocab->encode(line)) source.push_back(id);
    for (const int id : vocab->encode("das Kind " + line)) in.push_back(id);
    source.push_back(kEos);
    const Tensor logits = logits_of(*model, source, in).contiguous();
    said["sources"].push_back(source);
    said["targets"].push_back(in);
    said["logits"].push_back(std::vector<float>(logits.data_ptr<float>(), logits.data_ptr<float>() + logits.numel()));
    sources.push_back(source);
  }
  const Sources batch = padded(sources, kPad);
  for (const int64_t beam : {1, 4, 6}) {
    BeamOptions options;
    options.beam = beam;
    options.length_penalty = beam == 6 ? 0.7 : 1;
    options.max_steps.assign(sources.size(), 20);
    json ids = json::array();
    for (const auto& best : beam_search(*model, batch.ids, batch.lengths, options)) ids.push_back(best.front().tokens);
    said["generated"].push_back(
        {{"beam", beam}, {"length_penalty", options.length_penalty}, {"max_length", 21}, {"ids", ids}});
  }
  const auto translations = translator.translate(lines, {.beam = 4, .max_length = 20});
  for (size_t i = 0; i < lines.size(); ++i) {
    said["texts"].push_back({{"source", lines[i]}, {"text", translations[i].text}});
  }
  const std::string expected = (folder.path / "expected.json").string();
  std::ofstream(expected) << said.dump();
  const std::string command = std::string("OMP_NUM_THREADS=1 '") + python +
                              "' '" HEED_SOURCE_DIR "/tests/marian_roundtrip.py' '" + dir + "' '" + expected + "'";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

}  // namespace
}  // namespace heed::translate
