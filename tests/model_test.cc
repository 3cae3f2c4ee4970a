// The translation models: training and step-by-step decoding agree, padding is invisible, folders round-trip.
#include "apps/translate/model.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "apps/translate/gru.h"
#include "apps/translate/padding.h"
#include "apps/translate/rnn_model.h"
#include "apps/translate/transformer_model.h"
#include "libtorch/beams.h"
#include "libtorch/dropout.h"
#include "libtorch/safetensors.h"
#include "said.h"

namespace heed::translate {
namespace {

namespace fs = std::filesystem;
using torch::Tensor;

ModelConfig small(const std::string& arch) {
  ModelConfig c;
  c.arch = arch;
  c.vocab = 23;
  c.dim = 12;
  c.hidden = 10;
  c.heads = 3;
  c.layers = arch == "rnn" ? 1 : 2;
  c.ffn = 20;
  c.dropout = 0;
  c.max_positions = 32;
  return c;
}

std::shared_ptr<Model> model_of(const ModelConfig& config, uint64_t seed = 7) {
  torch::manual_seed(seed);
  auto model = make_model(config);
  // Biases and norms away from their neutral start, so that a test sees when one is left out.
  torch::NoGradGuard no_grad;
  for (auto& p : model->parameters()) p.add_(torch::randn_like(p) * 0.1);
  model->eval();
  return model;
}

// Rows of different lengths; `extra` more columns of padding than needed.
Batch batch_of(const std::vector<int64_t>& source, const std::vector<int64_t>& target, int64_t extra = 0) {
  const auto rows = static_cast<int64_t>(source.size());
  const int64_t s = *std::max_element(source.begin(), source.end()) + extra;
  const int64_t t = *std::max_element(target.begin(), target.end()) + extra;
  Batch batch{torch::full({rows, s}, kPad), source, torch::full({rows, t}, kPad), torch::full({rows, t}, kPad), target};
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t n = source[static_cast<size_t>(b)], m = target[static_cast<size_t>(b)];
    for (int64_t i = 0; i < n; ++i) batch.source[b][i] = i + 1 == n ? kEos : 4 + (7 * b + 3 * i) % 19;
    for (int64_t i = 0; i < m; ++i) {
      const int64_t token = i + 1 == m ? kEos : 4 + (5 * b + 11 * i) % 19;
      batch.target_out[b][i] = token;
      if (i + 1 < m) batch.target_in[b][i + 1] = token;
    }
    batch.target_in[b][0] = kBos;
  }
  return batch;
}

double largest_difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

class Models : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Arch, Models, testing::Values("rnn", "transformer"), [](const auto& p) { return p.param; });

TEST_P(Models, ConfigSurvivesJson) {
  ModelConfig c = small(GetParam());
  c.dropout = 0.25;
  c.lowercase = true;
  if (c.arch == "rnn") c.max_positions = ModelConfig{}.max_positions;
  const ModelConfig back = ModelConfig::from_json({nlohmann::json::parse(c.to_json().dump()), "config.json"});
  EXPECT_EQ(back.arch, c.arch);
  EXPECT_EQ(back.vocab, c.vocab);
  EXPECT_EQ(back.dim, c.dim);
  EXPECT_EQ(back.layers, c.layers);
  EXPECT_EQ(back.dropout, c.dropout);
  EXPECT_EQ(back.lowercase, c.lowercase);
  EXPECT_EQ(back.max_positions, c.max_positions);
  if (c.arch == "rnn") {
    EXPECT_EQ(back.hidden, c.hidden);
  } else {
    EXPECT_EQ(back.heads, c.heads);
    EXPECT_EQ(back.ffn, c.ffn);
  }
}

TEST_P(Models, LogitsEqualSteps) {
  torch::NoGradGuard no_grad;
  const auto model = model_of(small(GetParam()));
  const Batch batch = batch_of({5, 2, 7}, {4, 6, 3});
  const Tensor logits = model->logits(batch);
  ASSERT_EQ(logits.sizes(), (std::vector<int64_t>{13, 23}));
  const auto state = model->start(batch.source, batch.source_lengths);
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < 6; ++t) steps.push_back(model->step(*state, batch.target_in.select(1, t)).clone());
  int64_t row = 0;
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t t = 0; t < batch.target_lengths[static_cast<size_t>(b)]; ++t, ++row) {
      EXPECT_LT(largest_difference(logits[row], steps[static_cast<size_t>(t)][b]), 1e-5) << b << ' ' << t;
    }
  }
}

TEST_P(Models, PaddingIsInvisible) {
  torch::NoGradGuard no_grad;
  const auto model = model_of(small(GetParam()));
  const std::vector<int64_t> source = {5, 1, 7}, target = {4, 6, 1};
  const Tensor tight = model->logits(batch_of(source, target));
  EXPECT_LT(largest_difference(tight, model->logits(batch_of(source, target, 4))), 1e-5);
  // Each row alone, and with other tokens behind the end.
  Batch noisy = batch_of(source, target, 3);
  for (int64_t b = 0; b < 3; ++b) {
    noisy.source[b].slice(0, source[static_cast<size_t>(b)]).fill_(9);
    noisy.target_in[b].slice(0, target[static_cast<size_t>(b)]).fill_(8);
  }
  EXPECT_LT(largest_difference(tight, model->logits(noisy)), 1e-5);
  int64_t begin = 0;
  for (size_t b = 0; b < 3; ++b) {
    const auto i = static_cast<int64_t>(b);
    const Batch all = batch_of(source, target);
    const Batch one{all.source.narrow(0, i, 1).narrow(1, 0, source[b]),
                    {source[b]},
                    all.target_in.narrow(0, i, 1).narrow(1, 0, target[b]),
                    all.target_out.narrow(0, i, 1).narrow(1, 0, target[b]),
                    {target[b]}};
    EXPECT_LT(largest_difference(tight.narrow(0, begin, target[b]), model->logits(one)), 1e-5) << b;
    begin += target[b];
  }
}

// The gradients of a batch are the sum of its rows' own: padding neither gets nor gives any.
TEST_P(Models, PaddingHasNoGradient) {
  const auto model = model_of(small(GetParam()));
  const auto gradients = [&](const Batch& batch) {
    model->zero_grad();
    torch::log_softmax(model->logits(batch), 1).select(1, 5).sum().backward();
    std::vector<Tensor> result;
    for (const auto& p : model->parameters()) result.push_back(p.grad().clone());
    return result;
  };
  const std::vector<int64_t> source = {5, 2}, target = {2, 6};
  const Batch both = batch_of(source, target, 3);
  std::vector<Tensor> sum;
  for (size_t b = 0; b < 2; ++b) {
    const auto i = static_cast<int64_t>(b);
    const auto one = gradients({both.source.narrow(0, i, 1).narrow(1, 0, source[b]),
                                {source[b]},
                                both.target_in.narrow(0, i, 1).narrow(1, 0, target[b]),
                                {},
                                {target[b]}});
    for (size_t p = 0; p < one.size(); ++p) {
      if (b == 0)
        sum.push_back(one[p]);
      else
        sum[p] = sum[p] + one[p];
    }
  }
  const auto together = gradients(both);
  for (size_t p = 0; p < sum.size(); ++p) {
    EXPECT_LT(largest_difference(sum[p], together[p]), 1e-4) << model->named_parameters()[p].key();
  }
}

TEST_P(Models, GradientReachesEveryParameter) {
  ModelConfig config = small(GetParam());
  config.dropout = 0.1;
  const auto model = model_of(config);
  model->train();
  torch::cross_entropy_loss(model->logits(batch_of({5, 3, 6, 4}, {4, 6, 3, 5})), torch::full({18}, 7)).backward();
  for (const auto& p : model->named_parameters()) {
    ASSERT_TRUE(p.value().grad().defined()) << p.key();
    // A bias on all keys alike changes no weight: its gradient is 0 by the definition of softmax.
    if (p.key().find("k_proj.bias") != std::string::npos) continue;
    EXPECT_GT(p.value().grad().abs().sum().item<double>(), 0) << p.key();
  }
}

TEST_P(Models, DropoutOnlyInTrainingAndSeeded) {
  ModelConfig config = small(GetParam());
  config.dropout = 0.3;
  const auto model = model_of(config);
  const Batch batch = batch_of({5, 3}, {4, 6});
  torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(model->logits(batch), model->logits(batch)));
  model->train();
  torch::manual_seed(5);
  const Tensor first = model->logits(batch), second = model->logits(batch);
  EXPECT_FALSE(torch::equal(first, second));
  torch::manual_seed(5);
  EXPECT_TRUE(torch::equal(first, model->logits(batch)));
}

// Reordered hypotheses go on as if they had been decoded in that order: grouped, in disorder, dropped and repeated.
TEST_P(Models, SelectReorders) {
  torch::NoGradGuard no_grad;
  const auto model = model_of(small(GetParam()));
  const Batch batch = batch_of({5, 2, 7}, {4, 6, 3});
  const std::vector<std::vector<int64_t>> selections = {
      {0, 0, 1, 1, 2, 2}, {1, 0, 2, 2, 5, 4}, {2, 3, 4, 5}, {3, 0, 1, 1, 2}, {4}, {0, 0}};
  // Per hypothesis: its sentence and the tokens it was fed.
  struct Past {
    int64_t sentence;
    std::vector<int64_t> tokens;
  };
  std::vector<Past> pasts = {{0, {}}, {1, {}}, {2, {}}};
  const auto state = model->start(batch.source, batch.source_lengths);
  int64_t salt = 0;
  for (const auto& selection : selections) {
    std::vector<int64_t> tokens;
    for (auto& past : pasts) tokens.push_back(past.tokens.empty() ? kBos : 4 + (salt++ * 5) % 19);
    for (size_t i = 0; i < pasts.size(); ++i) pasts[i].tokens.push_back(tokens[i]);
    const Tensor logits = model->step(*state, torch::tensor(tokens));
    const Tensor looks = model->alignment(*state);
    ASSERT_EQ(logits.size(0), static_cast<int64_t>(pasts.size()));
    for (size_t i = 0; i < pasts.size(); ++i) {
      const auto alone = model->start(batch.source.narrow(0, pasts[i].sentence, 1),
                                      {batch.source_lengths[static_cast<size_t>(pasts[i].sentence)]});
      Tensor expected;
      for (const int64_t token : pasts[i].tokens) expected = model->step(*alone, torch::tensor({token}));
      EXPECT_LT(largest_difference(logits[static_cast<int64_t>(i)], expected[0]), 1e-5);
      EXPECT_LT(largest_difference(looks[static_cast<int64_t>(i)], model->alignment(*alone)[0]), 1e-5);
    }
    model->select(*state, torch::tensor(selection));
    std::vector<Past> next;
    for (const int64_t row : selection) next.push_back(pasts[static_cast<size_t>(row)]);
    pasts = next;
    // What the last step looked at is reordered with the hypotheses.
    const Tensor reordered = model->alignment(*state);
    EXPECT_LT(largest_difference(reordered, looks.index_select(0, torch::tensor(selection))), 1e-5);
  }
}

TEST_P(Models, AlignmentIsADistributionOverTheSource) {
  torch::NoGradGuard no_grad;
  const auto model = model_of(small(GetParam()));
  const Batch batch = batch_of({5, 2, 7}, {4, 6, 3}, 2);
  const auto state = model->start(batch.source, batch.source_lengths);
  EXPECT_THROW(model->alignment(*state), Error);
  for (int64_t t = 0; t < 3; ++t) {
    model->step(*state, batch.target_in.select(1, t));
    const Tensor looks = model->alignment(*state);
    ASSERT_EQ(looks.sizes(), (std::vector<int64_t>{3, 9}));
    EXPECT_LT(largest_difference(looks.sum(1), torch::ones({3})), 1e-5);
    EXPECT_GT(looks.std().item<double>(), 1e-4);
    for (int64_t b = 0; b < 3; ++b) {
      EXPECT_EQ(looks[b].slice(0, batch.source_lengths[static_cast<size_t>(b)]).abs().sum().item<double>(), 0);
    }
  }
}

// A few steps on one batch must bring the loss near zero: the parts work together, not only each.
TEST_P(Models, LearnsABatchByHeart) {
  const auto model = model_of(small(GetParam()));
  model->train();
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-2));
  const Batch batch = batch_of({5, 3, 6, 4}, {4, 6, 3, 5});
  const Tensor real = real_positions(batch.target_lengths, batch.target_out.size(1), 1);
  const Tensor targets = batch.target_out.flatten().index_select(0, real);
  double loss = 0;
  for (int i = 0; i < 150; ++i) {
    optimizer.zero_grad();
    const Tensor l = torch::cross_entropy_loss(model->logits(batch), targets);
    l.backward();
    optimizer.step();
    loss = l.item<double>();
  }
  EXPECT_LT(loss, 0.05);
}

// ---- The folder ----

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class Folder : public Models {
 protected:
  void SetUp() override {
    const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    std::string safe = name;
    std::replace(safe.begin(), safe.end(), '/', '_');
    dir_ = fs::temp_directory_path() / ("heed_model_test_" + std::to_string(::getpid()) + "_" + safe);
    fs::remove_all(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  // What load_model says about the folder after `edit` has changed its config.
  std::string complaint(const std::function<void(nlohmann::json&)>& edit) {
    nlohmann::json j = nlohmann::json::parse(bytes_of(dir_ / "config.json"));
    const std::string before = j.dump();
    edit(j);
    std::ofstream(dir_ / "config.json") << j.dump();
    const std::string said = complaint();
    std::ofstream(dir_ / "config.json") << before;
    return said;
  }
  std::string complaint() {
    try {
      load_model(dir_.string());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  // The same after `edit` has changed the tensors.
  std::string complaint_of_tensors(const std::function<void(nn::NamedTensors&)>& edit) {
    const std::string path = (dir_ / "model.safetensors").string();
    const nn::NamedTensors before = nn::load_safetensors(path).tensors;
    nn::NamedTensors tensors = before;
    edit(tensors);
    nn::save_safetensors(path, tensors);
    const std::string said = complaint();
    nn::save_safetensors(path, before);
    return said;
  }

  fs::path dir_;
};
INSTANTIATE_TEST_SUITE_P(Arch, Folder, testing::Values("rnn", "transformer"), [](const auto& p) { return p.param; });

TEST_P(Folder, RoundTrip) {
  const auto model = model_of(small(GetParam()));
  save_model(*model, (dir_ / "a").string());
  const auto loaded = load_model((dir_ / "a").string());
  EXPECT_FALSE(loaded->is_training());
  save_model(*loaded, (dir_ / "b").string());
  for (const char* file : {"config.json", "model.safetensors"}) {
    EXPECT_EQ(bytes_of(dir_ / "a" / file), bytes_of(dir_ / "b" / file)) << file;
    EXPECT_FALSE(bytes_of(dir_ / "a" / file).empty());
  }
  torch::NoGradGuard no_grad;
  const Batch batch = batch_of({5, 2, 7}, {4, 6, 3});
  EXPECT_TRUE(torch::equal(model->logits(batch), loaded->logits(batch)));
}

TEST_P(Folder, LoadingDrawsNoRandomNumbers) {
  save_model(*model_of(small(GetParam())), dir_.string());
  torch::manual_seed(3);
  const Tensor expected = torch::rand({4});
  torch::manual_seed(3);
  load_model(dir_.string());
  EXPECT_TRUE(torch::equal(torch::rand({4}), expected));
}

TEST_P(Folder, SizesMatchTheFormula) {
  const auto model = model_of(small(GetParam()));
  int64_t n = 0;
  for (const auto& p : model->parameters()) n += p.numel();
  save_model(*model, dir_.string());
  // load_model refuses a config that is far too large by the formula: see DamagedConfig. Here it is exact.
  const double formula =
      GetParam() == "rnn" ? RnnModel::parameters_of(model->config()) : TransformerModel::parameters_of(model->config());
  EXPECT_EQ(static_cast<double>(n), formula);
}

TEST_P(Folder, MissingParts) {
  EXPECT_SAYS(complaint(), "does not exist");
  fs::create_directories(dir_);
  EXPECT_SAYS(complaint(), "has no config.json");
  save_model(*model_of(small(GetParam())), dir_.string());
  EXPECT_EQ(complaint(), "");
  fs::rename(dir_ / "model.safetensors", dir_ / "gone");
  EXPECT_SAYS(complaint(), "model.safetensors");
  fs::rename(dir_ / "gone", dir_ / "model.safetensors");
  std::ofstream(dir_ / "config.json") << "{\"model_type\": ";
  EXPECT_SAYS(complaint(), "not JSON");
  std::ofstream(dir_ / "config.json") << "[1, 2]";
  EXPECT_SAYS(complaint(), "JSON object");
}

TEST_P(Folder, DamagedConfig) {
  save_model(*model_of(small(GetParam())), dir_.string());
  EXPECT_SAYS(complaint([](auto& j) { j["model_type"] = "vit"; }),
              "holds a 'vit' model; heed translate reads 'marian' and 'heed-rnn'");
  EXPECT_SAYS(complaint([](auto& j) { j["model_type"] = 3; }),
              "a '3' model; heed translate reads 'marian' and 'heed-rnn'");
  EXPECT_SAYS(complaint([](auto& j) { j.erase("model_type"); }), "no key \"model_type\"");
  EXPECT_SAYS(complaint([](auto& j) { j["vocab_size"] = 24; }), "24");
  EXPECT_SAYS(complaint([](auto& j) { j["pad_token_id"] = 23; }), "\"pad_token_id\" is 23");
  EXPECT_SAYS(complaint([](auto& j) { j["dropout"] = 1.5; }), "1.5");
  EXPECT_SAYS(complaint([](auto& j) { j["dropout"] = "much"; }), "much");
  EXPECT_SAYS(complaint([](auto& j) { j["vocab_size"] = nullptr; }), "no key \"vocab_size\"");
  for (const nlohmann::json& bad :
       {nlohmann::json(-1), nlohmann::json(1.5), nlohmann::json(UINT64_MAX), nlohmann::json("12")}) {
    EXPECT_SAYS(complaint([&](auto& j) { j["vocab_size"] = bad; }), "\"vocab_size\" is " + bad.dump());
  }
  const bool rnn = GetParam() == "rnn";
  const char* width = rnn ? "hidden_size" : "d_model";
  EXPECT_SAYS(complaint([&](auto& j) { j.erase(width); }), "no key \"" + std::string(width) + "\"");
  EXPECT_SAYS(complaint([&](auto& j) { j[width] = 9; }), "config.json asks for [");
  EXPECT_SAYS(complaint([&](auto& j) { j[width] = 9'000'000; }), "not of one model");
  if (rnn) return;
  EXPECT_SAYS(complaint([](auto& j) { j["activation_function"] = "tanh"; }), "tanh");
  EXPECT_SAYS(complaint([](auto& j) { j["encoder_layers"] = 3; }), "no tensor 'model.encoder.layers.2.");
  EXPECT_SAYS(complaint([](auto& j) { j["encoder_layers"] = j["decoder_layers"] = 1; }), "does not ask for");
  EXPECT_SAYS(complaint([](auto& j) { j["encoder_layers"] = j["decoder_layers"] = 3; }), "no tensor");
  EXPECT_SAYS(complaint([](auto& j) { j["encoder_attention_heads"] = j["decoder_attention_heads"] = 5; }),
              "not divisible by 5 heads");
}

TEST_P(Folder, DamagedTensors) {
  save_model(*model_of(small(GetParam())), dir_.string());
  EXPECT_SAYS(complaint_of_tensors([](auto& t) { t.emplace_back("surplus", torch::ones({2})); }), "'surplus'");
  EXPECT_EQ(
      complaint_of_tensors([](auto& t) { t.emplace_back("model.encoder.embed_positions.weight", torch::ones({2})); }),
      "");
  const std::string bias = GetParam() == "rnn" ? "output_bias" : "model.decoder.layers.1.fc1.bias";
  const auto is_bias = [&](const auto& t) { return t.first == bias; };
  EXPECT_SAYS(complaint_of_tensors([&](auto& t) { std::erase_if(t, is_bias); }), "no tensor '" + bias + "'");
  EXPECT_SAYS(complaint_of_tensors([&](auto& t) {
                std::find_if(t.begin(), t.end(), is_bias)->second = torch::zeros({4, 5});
              }),
              "is [4, 5]");
  EXPECT_SAYS(complaint_of_tensors([&](auto& t) {
                auto& tensor = std::find_if(t.begin(), t.end(), is_bias)->second;
                tensor = tensor.to(torch::kInt64);
              }),
              "does not hold fractions");
}

// What models from elsewhere have otherwise: of everything the other side's, and other tokens.
ModelConfig strange() {
  ModelConfig c = small("transformer");
  c.decoder_heads = 4;
  c.decoder_layers = 1;
  c.decoder_ffn = 28;
  c.activation = "gelu";
  c.scale_embedding = false;
  c.target_vocab = 25;
  c.shared_embedding = false;
  c.tokens = {.pad = 22, .unk = 1, .eos = 0, .start = 21, .banned = {22, 21, 7}, .renormalize = false, .forced_end = 0};
  c.generation = {6, 0.5, 30};
  return c;
}

TEST(StrangeModels, SurviveJsonAndFolders) {
  for (const bool tied : {false, true}) {
    ModelConfig c = strange();
    c.tied_output = tied;
    const ModelConfig back = ModelConfig::from_json({c.to_json(), "config.json"});
    EXPECT_EQ(back.to_json(), c.to_json());
    EXPECT_EQ(back.tokens, c.tokens);
    EXPECT_EQ(back.generation, c.generation);
    EXPECT_EQ(back.decoder_ffn, 28);
    EXPECT_EQ(back.tied_output, tied);
    EXPECT_FALSE(back.shared_embedding);
    const auto model = model_of(c);
    int64_t n = 0;
    for (const auto& p : model->parameters()) n += p.numel();
    EXPECT_EQ(static_cast<double>(n), TransformerModel::parameters_of(c));
    const fs::path dir = fs::temp_directory_path() / ("heed_model_test_strange_" + std::to_string(::getpid()));
    save_model(*model, dir.string());
    const auto loaded = load_model(dir.string());
    fs::remove_all(dir);
    torch::NoGradGuard no_grad;
    const Batch batch = batch_of({5, 2, 7}, {4, 6, 3});
    const Tensor logits = model->logits(batch);
    EXPECT_EQ(logits.size(1), 25);
    EXPECT_TRUE(torch::equal(logits, loaded->logits(batch)));
    // Padding begins with zeros, wherever it is.
    const auto fresh = make_model(c);
    EXPECT_EQ(fresh->named_parameters()["model.encoder.embed_tokens.weight"][22].abs().sum().item<double>(), 0);
  }
}

TEST(ModelConfigTest, RefusesSizesThatDoNotFit) {
  const auto complaint = [](const std::function<void(ModelConfig&)>& edit, const std::string& arch) {
    ModelConfig c = small(arch);
    edit(c);
    try {
      make_model(c);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_SAYS(complaint([](auto& c) { c.arch = "lstm"; }, "rnn"), "'lstm'");
  EXPECT_SAYS(complaint([](auto& c) { c.dim = 250, c.heads = 4; }, "transformer"),
              "dim 250 is not divisible by 4 heads");
  EXPECT_SAYS(complaint([](auto& c) { c.vocab = 3; }, "rnn"), "vocab is 3");
  EXPECT_SAYS(complaint([](auto& c) { c.layers = 2; }, "rnn"), "1 layer, not 2");
  EXPECT_SAYS(complaint([](auto& c) { c.layers = 0; }, "transformer"), "layers is 0");
  EXPECT_SAYS(complaint([](auto& c) { c.dropout = 1; }, "rnn"), "dropout");
  EXPECT_SAYS(complaint([](auto& c) { c.tokens.eos = 4; }, "rnn"), "an rnn numbers");
  EXPECT_SAYS(complaint([](auto& c) { c.tokens.eos = 40; }, "transformer"), "it must be from 41");
  EXPECT_SAYS(complaint([](auto& c) { c.tokens.banned = {40}; }, "transformer"), "it must be from 41");
  EXPECT_SAYS(complaint([](auto& c) { c.decoder_heads = 5; }, "transformer"), "not divisible by 5 heads");
  EXPECT_SAYS(complaint([](auto& c) { c.target_vocab = 30; }, "transformer"), "23 and 30 pieces");
  EXPECT_SAYS(complaint([](auto& c) { c.tied_output = false; }, "transformer"), "not the first");
  EXPECT_SAYS(complaint([](auto& c) { c.activation = "tanh"; }, "transformer"), "\"tanh\"");
}

TEST(TransformerModelTest, HasMariansNamesAndKeys) {
  const auto model = make_model(small("transformer"));
  std::set<std::string> names;
  for (const auto& p : model->named_parameters()) names.insert(p.key());
  EXPECT_EQ(model->buffers().size(), 0u);
  for (const char* name :
       {"model.shared.weight", "final_logits_bias", "model.encoder.layers.0.self_attn.q_proj.weight",
        "model.encoder.layers.1.self_attn_layer_norm.bias", "model.encoder.layers.0.fc1.weight",
        "model.decoder.layers.1.encoder_attn.out_proj.bias", "model.decoder.layers.0.encoder_attn_layer_norm.weight",
        "model.decoder.layers.1.final_layer_norm.weight", "model.decoder.layers.0.self_attn.k_proj.bias"}) {
    EXPECT_EQ(names.count(name), 1u) << name;
  }
  EXPECT_EQ(names.size(), 2u + 2 * 16 + 2 * 26);
  const nlohmann::json j = model->config().to_json();
  EXPECT_EQ(j["model_type"], "marian");
  EXPECT_EQ(j["d_model"], 12);
  EXPECT_EQ(j["decoder_ffn_dim"], 20);
  EXPECT_EQ(j["pad_token_id"], 0);
  EXPECT_EQ(j["eos_token_id"], 3);
  EXPECT_EQ(j["decoder_start_token_id"], 2);
  EXPECT_EQ(j["bad_words_ids"], nlohmann::json::parse("[[0],[2]]"));
  EXPECT_TRUE(j["forced_eos_token_id"].is_null());
}

// What both models compute, once more from their tensors by name: in plain operations, one sentence, one step after the
// other. Logits [T, vocab] and where each step looked [T, S].
struct Plain {
  Tensor logits, looks;
};

Plain plain_rnn(const Model& model, const Tensor& source, const Tensor& target_in) {
  const auto named = model.named_parameters();
  const auto p = [&](const std::string& name) { return named[name].detach(); };
  const auto embed = [&](const Tensor& ids) { return p("shared.weight").index_select(0, ids) * std::sqrt(12.0); };
  const auto cell = [&](const std::string& name, const Tensor& x, const Tensor& h) {
    const auto i = (p(name + ".weight_ih").mv(x) + p(name + ".bias_ih")).chunk(3);
    const auto r = (p(name + ".weight_hh").mv(h) + p(name + ".bias_hh")).chunk(3);
    const Tensor reset = torch::sigmoid(i[0] + r[0]), update = torch::sigmoid(i[1] + r[1]);
    return (1 - update) * torch::tanh(i[2] + reset * r[2]) + update * h;
  };
  const Tensor x = embed(source);
  const int64_t n = source.size(0), hidden = model.config().hidden;
  std::vector<Tensor> right(static_cast<size_t>(n)), left(static_cast<size_t>(n)), both;
  Tensor h = torch::zeros({hidden});
  for (int64_t i = 0; i < n; ++i) right[static_cast<size_t>(i)] = h = cell("encoder_forward", x[i], h);
  h = torch::zeros({hidden});
  for (int64_t i = n - 1; i >= 0; --i) left[static_cast<size_t>(i)] = h = cell("encoder_backward", x[i], h);
  for (size_t i = 0; i < right.size(); ++i) both.push_back(torch::cat({right[i], left[i]}));
  const Tensor memory = torch::stack(both);
  Tensor s = torch::tanh(p("start.weight").mv(left[0]) + p("start.bias"));
  std::vector<Tensor> logits, looks;
  for (int64_t t = 0; t < target_in.size(0); ++t) {
    const Tensor e = embed(target_in.narrow(0, t, 1))[0];
    const Tensor met =
        torch::tanh(memory.mm(p("attention.memory_layer.weight").t()) + p("attention.query_layer.weight").mv(s));
    const Tensor a = torch::softmax(met.mv(p("attention.v")), 0);
    const Tensor c = a.unsqueeze(0).mm(memory)[0];
    s = cell("decoder", torch::cat({e, c}), s);
    const Tensor out = torch::tanh(p("readout.weight").mv(torch::cat({s, c, e})) + p("readout.bias"));
    logits.push_back(p("shared.weight").mv(out) + p("output_bias"));
    looks.push_back(a);
  }
  return {torch::stack(logits), torch::stack(looks)};
}

Plain plain_transformer(const Model& model, const Tensor& source, const Tensor& target_in) {
  const auto named = model.named_parameters();
  const ModelConfig& c = model.config();
  const auto p = [&](const std::string& name) { return named[name].detach(); };
  const auto linear = [&](const std::string& name, const Tensor& x) {
    return x.mm(p(name + ".weight").t()) + p(name + ".bias");
  };
  const auto norm = [&](const std::string& name, const Tensor& x) {
    const Tensor centred = x - x.mean(1, true);
    return centred / (centred.square().mean(1, true) + 1e-5).sqrt() * p(name + ".weight") + p(name + ".bias");
  };
  const auto embed = [&](const Tensor& ids) {
    Tensor x = p("model.shared.weight").index_select(0, ids) * std::sqrt(static_cast<double>(c.dim));
    for (int64_t t = 0; t < ids.size(0); ++t) {
      for (int64_t i = 0; i < c.dim / 2; ++i) {
        const double angle =
            static_cast<double>(t) / std::pow(10000.0, 2.0 * static_cast<double>(i) / static_cast<double>(c.dim));
        x[t][i] += std::sin(angle);
        x[t][c.dim / 2 + i] += std::cos(angle);
      }
    }
    return x;
  };
  Tensor looks;  // of the last attention computed, mean over heads
  const auto attend = [&](const std::string& name, const Tensor& x, const Tensor& memory, bool causal) {
    const int64_t width = c.dim / c.heads;
    const auto q = linear(name + ".q_proj", x).split(width, 1), k = linear(name + ".k_proj", memory).split(width, 1),
               v = linear(name + ".v_proj", memory).split(width, 1);
    std::vector<Tensor> outs, weights;
    for (size_t h = 0; h < q.size(); ++h) {
      Tensor scores = q[h].mm(k[h].t()) / std::sqrt(static_cast<double>(width));
      if (causal) scores = scores + torch::full_like(scores, -1e30).triu(1);
      weights.push_back(torch::softmax(scores, 1));
      outs.push_back(weights.back().mm(v[h]));
    }
    looks = torch::stack(weights).mean(0);
    return linear(name + ".out_proj", torch::cat(outs, 1));
  };
  const auto feed = [&](const std::string& layer, const Tensor& x) {
    const Tensor inner = linear(layer + "fc1", x);
    return norm(layer + "final_layer_norm", x + linear(layer + "fc2", inner * torch::sigmoid(inner)));
  };
  Tensor memory = embed(source), x = embed(target_in);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "model.encoder.layers." + std::to_string(i) + ".";
    memory = norm(layer + "self_attn_layer_norm", memory + attend(layer + "self_attn", memory, memory, false));
    memory = feed(layer, memory);
  }
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "model.decoder.layers." + std::to_string(i) + ".";
    x = norm(layer + "self_attn_layer_norm", x + attend(layer + "self_attn", x, x, true));
    x = norm(layer + "encoder_attn_layer_norm", x + attend(layer + "encoder_attn", x, memory, false));
    x = feed(layer, x);
  }
  return {x.mm(p("model.shared.weight").t()) + p("final_logits_bias"), looks};
}

TEST_P(Models, FollowTheirEquations) {
  torch::NoGradGuard no_grad;
  const auto model = model_of(small(GetParam()));
  const Batch batch = batch_of({6}, {5});
  const auto plain = GetParam() == "rnn" ? plain_rnn : plain_transformer;
  const Plain expected = plain(*model, batch.source[0], batch.target_in[0]);
  EXPECT_LT(largest_difference(model->logits(batch), expected.logits), 1e-5);
  const auto state = model->start(batch.source, batch.source_lengths);
  for (int64_t t = 0; t < 5; ++t) {
    EXPECT_LT(largest_difference(model->step(*state, batch.target_in.select(1, t))[0], expected.logits[t]), 1e-5);
    EXPECT_LT(largest_difference(model->alignment(*state)[0], expected.looks[t]), 1e-5);
  }
}

// ---- The parts ----

TEST(GruTest, EqualsTorchOnPackedSequences) {
  torch::manual_seed(1);
  const std::vector<int64_t> lengths = {3, 6, 1, 4};  // in no order, the longest shorter than the padded length
  auto torch_gru = torch::nn::GRU(torch::nn::GRUOptions(5, 7).bidirectional(true));
  Gru right(5, 7), left(5, 7);
  {
    torch::NoGradGuard no_grad;
    for (const char* name : {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}) {
      right.named_parameters()[name].copy_(torch_gru->named_parameters()[std::string(name) + "_l0"]);
      left.named_parameters()[name].copy_(torch_gru->named_parameters()[std::string(name) + "_l0_reverse"]);
    }
  }
  const Tensor x = torch::randn({8, 4, 5});
  const Tensor x1 = x.clone().requires_grad_(), x2 = x.clone().requires_grad_();
  const Tensor d_out = torch::randn({8, 4, 14});
  const auto packed = torch::nn::utils::rnn::pack_padded_sequence(x1, torch::tensor(lengths), false, false);
  const auto run = std::get<0>(torch_gru->forward_with_packed_input(packed));
  const Tensor expected = std::get<0>(torch::nn::utils::rnn::pad_packed_sequence(run, false, 0.0, 8));
  const Tensor got =
      torch::cat({right.run(right.gates(x2), lengths, false), left.run(left.gates(x2), lengths, true)}, 2);
  EXPECT_LT(largest_difference(got, expected), 1e-6);
  (expected * d_out).sum().backward();
  (got * d_out).sum().backward();
  EXPECT_LT(largest_difference(x1.grad(), x2.grad()), 1e-5);
  for (const char* name : {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}) {
    EXPECT_LT(largest_difference(right.named_parameters()[name].grad(),
                                 torch_gru->named_parameters()[std::string(name) + "_l0"].grad()),
              1e-5)
        << name;
    EXPECT_LT(largest_difference(left.named_parameters()[name].grad(),
                                 torch_gru->named_parameters()[std::string(name) + "_l0_reverse"].grad()),
              1e-5)
        << name;
  }
}

TEST(GruTest, StepGradientsEqualAutograd) {
  torch::manual_seed(2);
  const auto doubles = torch::TensorOptions().dtype(torch::kFloat64);
  const std::vector<Tensor> start = {torch::randn({3, 12}, doubles), torch::randn({3, 12}, doubles),
                                     torch::randn({3, 4}, doubles)};
  const Tensor d_out = torch::randn({4, 3}, doubles).t();  // with strides, as gradients may come
  const auto gradients = [&](const auto& cell) {
    std::vector<Tensor> in;
    for (const Tensor& t : start) in.push_back(t.clone().requires_grad_());
    const Tensor out = cell(in[0], in[1], in[2]);
    (out * d_out).sum().backward();
    return std::vector<Tensor>{out.detach(), in[0].grad(), in[1].grad(), in[2].grad()};
  };
  const auto a = gradients([](const Tensor& i, const Tensor& r, const Tensor& h) { return gru_step(i, r, h); });
  const auto b = gradients([](const Tensor& i, const Tensor& r, const Tensor& h) {
    const auto ic = i.chunk(3, 1), rc = r.chunk(3, 1);
    const Tensor reset = torch::sigmoid(ic[0] + rc[0]), update = torch::sigmoid(ic[1] + rc[1]);
    const Tensor n = torch::tanh(ic[2] + reset * rc[2]);
    return (1 - update) * n + update * h;
  });
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LT(largest_difference(a[i], b[i]), 1e-12) << i;
}

TEST(DropoutTest, KeepsTheMeanAndRepeatsInTheBackward) {
  torch::manual_seed(4);
  const Tensor x = torch::ones({300, 1001}).requires_grad_();
  for (const double p : {0.1, 0.5, 0.9}) {
    x.mutable_grad().reset();
    const Tensor y = nn::dropout(x, p, true);
    const double n = 300 * 1001, zeros = (y == 0).sum().item<double>();
    EXPECT_NEAR(zeros / n, p, 5 * std::sqrt(p * (1 - p) / n) + 1e-5);
    EXPECT_NEAR(y.max().item<double>(), 1 / (1 - p), 1e-3);
    y.sum().backward();
    EXPECT_TRUE(torch::equal(x.grad(), y));
    // Rows and columns get their share too.
    EXPECT_LT(((y == 0).to(torch::kFloat32).mean(1) - p).abs().max().item<double>(), 6 * std::sqrt(p * (1 - p) / 1001));
    EXPECT_LT(((y == 0).to(torch::kFloat32).mean(0) - p).abs().max().item<double>(), 6 * std::sqrt(p * (1 - p) / 300));
  }
  EXPECT_FALSE(torch::equal(nn::dropout(x, 0.5, true), nn::dropout(x, 0.5, true)));
  EXPECT_TRUE(torch::equal(nn::dropout(x, 0.5, false), x));
  EXPECT_THROW(nn::dropout(x, 1.0, true), Error);
}

TEST(DropoutTest, DoesNotDependOnThreads) {
  const Tensor x = torch::randn({200, 500});
  const int threads = torch::get_num_threads();
  std::vector<Tensor> results;
  for (const int n : {1, 2}) {
    torch::set_num_threads(n);
    torch::manual_seed(9);
    results.push_back(nn::dropout(x, 0.3, true));
  }
  torch::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(results[0], results[1]));
}

TEST(PaddingTest, Layouts) {
  EXPECT_EQ(nn::layout_of({5, 5, 5, 7, 7, 7}).group, 3);
  EXPECT_EQ(nn::layout_of({5, 5, 5, 7, 7, 7}).sources, (std::vector<int64_t>{5, 7}));
  EXPECT_EQ(nn::layout_of({5, 5, 7}).group, 1);
  EXPECT_EQ(nn::layout_of({5, 5, 7}).sources, (std::vector<int64_t>{5, 5, 7}));
  EXPECT_EQ(nn::layout_of({1}).group, 1);
  EXPECT_EQ(nn::layout_of({}).group, 1);
}

}  // namespace
}  // namespace heed::translate
