// libtorch/vision/vit.cc and apps/classify/vit_model.cc: the encoder against the paper written out in plain operators,
// folders of ViT and DeiT against the logits transformers computes for them, and ours read by transformers.
#include "libtorch/vision/vit.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>

#include <cmath>
#include <string>
#include <vector>

#include "apps/classify/vit_model.h"
#include "apps/pictures/preprocess.h"
#include "libtorch/safetensors.h"
#include "said.h"
#include "tests/plain_attention.h"
#include "tests/vision_goldens.h"

namespace heed::classify {
namespace {

namespace fs = std::filesystem;
using heed::tests::difference;
using heed::tests::EditedFolder;
using heed::tests::error_of;
using heed::tests::json;
using heed::tests::named;
using heed::tests::pixels;
using heed::tests::TemporaryFolder;
using plain::expect_near;
using torch::Tensor;

const fs::path kData = fs::path(HEED_TEST_DATA) / "vit";

// ---- The encoder ----

// An encoder of three layers is some ten products deep, each with sums as long as an attention's.
double tolerance(torch::ScalarType dtype) { return 12 * plain::tolerance(dtype); }

nn::ViTOptions tiny() {
  return {.hidden = 12, .layers = 3, .heads = 3, .ffn = 20, .patch = 3, .image = 12, .channels = 2};
}

nn::ViT randomised(const nn::ViTOptions& options) {
  nn::ViT vit(options);
  torch::NoGradGuard no_grad;  // biases start at 0 and norms at 1: give every parameter something to show
  for (Tensor& parameter : vit->parameters()) parameter.add_(0.2 * torch::randn_like(parameter));
  vit->eval();
  return vit;
}

Tensor apply(const Tensor& x, const torch::nn::Linear& linear) {
  const Tensor product = x.matmul(linear->weight.t());
  return linear->bias.defined() ? product + linear->bias : product;
}

Tensor apply(const Tensor& x, const torch::nn::LayerNorm& norm, double eps) {
  const Tensor centred = x - x.mean(-1, true);
  return centred / torch::sqrt(centred.pow(2).mean(-1, true) + eps) * norm->weight + norm->bias;
}

struct Plain {
  Tensor tokens;
  std::vector<Tensor> weights;  // of each layer, [B, heads, T, T]
};

// Dosovitskiy et al. 2021, equations 1 to 4, in LibTorch's own operators. Patches are cut by hand, and projected one by
// one; pictures have the size the positions were made for.
Plain plain_vit(nn::ViTImpl& vit, const Tensor& x) {
  const auto& o = vit.options;
  const Tensor kernel = vit.patch_embeddings->projection->weight.flatten(1);
  std::vector<Tensor> tokens{vit.cls_token.expand({x.size(0), 1, o.hidden})};
  if (o.distillation_token) tokens.push_back(vit.distillation_token.expand({x.size(0), 1, o.hidden}));
  for (int64_t row = 0; row + o.patch <= x.size(2); row += o.patch) {
    for (int64_t column = 0; column + o.patch <= x.size(3); column += o.patch) {
      const Tensor patch = x.narrow(2, row, o.patch).narrow(3, column, o.patch).flatten(1);
      tokens.push_back((patch.matmul(kernel.t()) + vit.patch_embeddings->projection->bias).unsqueeze(1));
    }
  }
  Plain result;
  Tensor z = torch::cat(tokens, 1) + vit.position_embeddings;
  for (auto& layer : vit.layers) {
    const Tensor in = apply(z, layer->self_attn_layer_norm, o.layer_norm_eps);
    const auto heads = [&](const torch::nn::Linear& linear) { return plain::split(apply(in, linear), o.heads); };
    const auto& attention = *layer->self_attn;
    const plain::Result attended =
        plain::attention(heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj));
    result.weights.push_back(attended.weights);
    z = z + apply(plain::join(attended.out), attention.out_proj);
    const Tensor inner = apply(apply(z, layer->final_layer_norm, o.layer_norm_eps), layer->fc1);
    z = z + apply(inner * 0.5 * (1 + torch::erf(inner / std::sqrt(2.0))), layer->fc2);
  }
  result.tokens = apply(z, vit.layernorm, o.layer_norm_eps);
  return result;
}

TEST(ViT, IsThePapersFormulaAndItsGradients) {
  for (const bool plain_one : {true, false}) {
    torch::manual_seed(1);
    nn::ViTOptions options = tiny();
    options.distillation_token = !plain_one;
    options.qkv_bias = plain_one;
    options.layer_norm_eps = plain_one ? 1e-12 : 1e-2;
    nn::ViT vit = randomised(options);
    for (const auto& parameter : vit->named_parameters())
      EXPECT_TRUE(plain_one || parameter.key().find("q_proj.bias") == std::string::npos) << parameter.key();
    const auto run = [&](bool formula, torch::ScalarType dtype) {
      vit->to(dtype);
      std::vector<Tensor> leaves{pixels({2, 2, 12, 12}).to(dtype).requires_grad_()};
      const Tensor out = formula ? plain_vit(*vit, leaves[0]).tokens : vit->forward(leaves[0]).tokens;
      for (const Tensor& parameter : vit->parameters()) leaves.push_back(parameter);
      std::vector<Tensor> all{out};
      for (Tensor& gradient : plain::gradients(plain::mixed(out), leaves)) all.push_back(gradient);
      return all;
    };
    const std::vector<Tensor> exact = run(true, torch::kFloat64);
    for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
      const std::vector<Tensor> actual = run(false, dtype);
      for (size_t i = 0; i < exact.size(); ++i)
        expect_near(actual[i], exact[i], tolerance(dtype), "result or gradient " + std::to_string(i));
    }
  }
}

TEST(ViT, TellsWhereItLooked) {
  torch::manual_seed(2);
  torch::NoGradGuard no_grad;
  nn::ViTOptions options = tiny();
  options.distillation_token = true;
  nn::ViT vit = randomised(options);
  vit->to(torch::kFloat64);
  const Tensor x = pixels({2, 2, 12, 12}).to(torch::kFloat64);
  const nn::ViTAttention seen = vit->forward(x, /*want_attention=*/true).attention;
  const Plain exact = plain_vit(*vit, x);
  ASSERT_EQ(seen.cls.sizes(), (torch::IntArrayRef{3, 2, 3, 18}));
  Tensor rollout = torch::eye(18, torch::kFloat64);
  for (size_t i = 0; i < exact.weights.size(); ++i) {
    expect_near(seen.cls[static_cast<int64_t>(i)], exact.weights[i].select(2, 0), 1e-12, "cls");
    rollout = ((exact.weights[i].mean(1) + torch::eye(18, torch::kFloat64)) / 2).matmul(rollout);
  }
  expect_near(seen.rollout, rollout.select(1, 0), 1e-12, "rollout");
  EXPECT_FALSE(vit->forward(x).attention.cls.defined()) << "nobody asked";
  const nn::ViTOutput wide = vit->forward(pixels({1, 2, 7, 21}).to(torch::kFloat64), true);
  EXPECT_EQ(wide.rows, 2);
  EXPECT_EQ(wide.columns, 7);
  EXPECT_EQ(wide.attention.rollout.sizes(), (torch::IntArrayRef{1, 16}));
}

// sin and cos of column and row: each patch at the place of its own that the formula gives it.
TEST(ViT, PositionsBeginAsSinusoidsOfRowAndColumn) {
  for (const int64_t hidden : {16, 18}) {  // 18: two numbers are left to chance
    const nn::ViT vit(
        nn::ViTOptions{.hidden = hidden, .layers = 1, .heads = 1, .patch = 4, .image = 20, .distillation_token = true});
    const Tensor grid = vit->position_embeddings.detach()[0].narrow(0, 2, 25).view({5, 5, hidden});
    for (int64_t row = 0; row < 5; ++row) {
      for (int64_t column = 0; column < 5; ++column) {
        for (int64_t i = 0; i < 16; ++i) {
          const double angle =
              static_cast<double>(i < 8 ? column : row) * std::pow(10000.0, -static_cast<double>(i % 4) / 4);
          const double want = (i / 4 % 2 == 0 ? std::sin(angle) : std::cos(angle)) / 2;
          ASSERT_NEAR(grid[row][column][i].item<double>(), want, 1e-6) << row << " " << column << " " << i;
        }
      }
    }
    EXPECT_TRUE(vit->position_embeddings.requires_grad());
    EXPECT_LT(vit->position_embeddings.narrow(1, 0, 2).abs().max().item<double>(), 0.2);
  }
  const nn::ViT narrow(nn::ViTOptions{.hidden = 3, .layers = 1, .heads = 1, .patch = 4, .image = 20});
  EXPECT_EQ(narrow->position_embeddings.sizes(), torch::IntArrayRef({1, 26, 3}));
}

TEST(ViT, PositionsOfOtherGrids) {
  torch::manual_seed(3);
  torch::NoGradGuard no_grad;
  nn::ViTOptions options = tiny();  // a grid of 4 x 4
  options.distillation_token = true;
  nn::ViT vit = randomised(options);
  const Tensor positions = vit->position_embeddings;
  EXPECT_TRUE(vit->positions(4, 4).is_same(positions));
  const Tensor wide = vit->positions(2, 8);
  ASSERT_EQ(wide.sizes(), (torch::IntArrayRef{1, 18, 12}));
  EXPECT_TRUE(torch::equal(wide.narrow(1, 0, 2), positions.narrow(1, 0, 2))) << "CLS and DIST stand nowhere";
  // Resized twice as wide and half as high, a slope in the columns stays one and is not turned over into the rows.
  for (int64_t i = 0; i < 16; ++i) vit->position_embeddings[0][2 + i].fill_(static_cast<double>(i % 4));
  const Tensor sloped = vit->positions(2, 8).narrow(1, 2, 16).select(2, 0).view({2, 8});
  EXPECT_LT(difference(sloped[0], sloped[1]), 1e-6);
  EXPECT_NEAR(sloped[0][3].item<double>(), 1.25, 0.05);
  EXPECT_NEAR(sloped[0][4].item<double>(), 1.75, 0.05);
}

TEST(ViT, Learns) {
  torch::manual_seed(4);
  VitConfig config{tiny(), /*teacher=*/true, {"a", "b", "c"}};
  config.encoder.distillation_token = true;
  config.encoder.dropout = config.encoder.attention_dropout = 0.05;
  VitModel model(config);
  model.train();
  const Tensor x = torch::randn({6, 2, 12, 12}), classes = torch::tensor({0, 1, 2, 2, 1, 0}, torch::kInt64);
  torch::optim::Adam optimizer(model.parameters(), 1e-2);
  double first = 0, last = 0;
  for (int step = 0; step < 25; ++step) {
    optimizer.zero_grad();
    const Tensor loss = torch::cross_entropy_loss(model.forward(x).logits, classes);
    loss.backward();
    if (step == 0) {
      first = loss.item<double>();
      for (const auto& item : model.named_parameters()) EXPECT_TRUE(item.value().grad().defined()) << item.key();
    }
    optimizer.step();
    last = loss.item<double>();
  }
  EXPECT_LT(last, 0.3 * first);
}

TEST(ViT, CountsItsNumbers) {
  for (const bool odd : {false, true}) {
    nn::ViTOptions options = tiny();
    options.image = odd ? 14 : 12;
    options.distillation_token = odd;
    options.qkv_bias = !odd;
    double count = 0;
    for (const Tensor& parameter : nn::ViT(options)->parameters()) count += static_cast<double>(parameter.numel());
    EXPECT_EQ(nn::ViTImpl::parameters_of(options), count);
  }
  EXPECT_EQ(nn::ViTImpl::parameters_of({}), 85798656) << "ViT-Base/16 without a head";
}

TEST(ViT, SaysWhatDoesNotFit) {
  nn::ViTOptions options = tiny();
  options.heads = 5;
  EXPECT_SAYS(error_of([&] { nn::ViT{options}; }), "hidden 12 and 5 heads");
  options = tiny();
  options.patch = 13;
  EXPECT_SAYS(error_of([&] { nn::ViT{options}; }), "patch 13 and image 12");
  options = tiny();
  options.layers = 0;
  EXPECT_SAYS(error_of([&] { nn::ViT{options}; }), "layers = 0");
  nn::ViT vit(tiny());
  EXPECT_SAYS(error_of([&] { vit->forward(pixels({2, 3, 12, 12})); }), "[2, 3, 12, 12]");
  EXPECT_SAYS(error_of([&] { vit->forward(pixels({2, 3, 12, 12})); }), "[batch, 2, height, width]");
  EXPECT_SAYS(error_of([&] { vit->forward(pixels({2, 12, 12})); }), "[2, 12, 12]");
  EXPECT_SAYS(error_of([&] { vit->forward(pixels({1, 2, 2, 12})); }), "2 x 12 pixels and a patch has 3 x 3");
  EXPECT_SAYS(error_of([&] { vit->forward(torch::zeros({1, 2, 12, 12}, torch::kUInt8)); }), "Byte");
  EXPECT_SAYS(error_of([] { VitModel({tiny(), /*teacher=*/true, {"a"}}); }), "distillation token");
}

// ---- Folders ----

class VitFolder : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Folder, VitFolder,
                         testing::Values("base", "odd", "half", "brain", "deit", "teacher", "teacher_new"),
                         [](const auto& p) { return p.param; });

void expect_goldens(VitModel& model, const fs::path& folder) {
  tests::expect_goldens(folder, [&](const Tensor& x) { return model.forward(x).logits; });
}

TEST_P(VitFolder, LogitsEqualTransformers) {
  expect_goldens(*load_vit((kData / GetParam()).string()), kData / GetParam());
}

// What is loaded is stored under the names of 4.x, whatever it came under.
TEST_P(VitFolder, SurvivesSaving) {
  const TemporaryFolder folder;
  save_vit(*load_vit((kData / GetParam()).string()), folder.path.string());
  expect_goldens(*load_vit(folder.path.string()), kData / GetParam());
  const std::string root = load_vit(folder.path.string())->config().encoder.distillation_token ? "deit" : "vit";
  EXPECT_NE(nn::load_safetensors((folder.path / "model.safetensors").string())
                .find(root + ".encoder.layer.1.attention.attention.query.weight"),
            nullptr);
}

TEST(VitFolders, TellWhereTheyLookedAsTransformersDoes) {
  torch::NoGradGuard no_grad;
  for (const char* name : {"base", "deit"}) {
    const nn::SafeTensors expected = nn::load_safetensors((kData / name / "goldens.safetensors").string());
    const auto seen = load_vit((kData / name).string())->forward(pixels({2, 3, 16, 16}), true).encoded.attention;
    EXPECT_LT(difference(seen.cls, *expected.find("cls")), 1e-6) << name;
    EXPECT_LT(difference(seen.rollout, *expected.find("rollout")), 1e-6) << name;
    EXPECT_GT(seen.cls.max().item<double>(), 0.2) << "flat weights would prove nothing";
  }
}

TEST(VitFolders, WhatConfigJsonSays) {
  const VitConfig base = load_vit((kData / "base").string())->config();
  EXPECT_EQ(base.labels[4], "class 4");
  EXPECT_EQ(base.encoder.dropout, 0.1);
  EXPECT_EQ(base.encoder.layer_norm_eps, 1e-12);
  const VitConfig odd = load_vit((kData / "odd").string())->config();
  EXPECT_EQ(odd.labels, (std::vector<std::string>{"LABEL_0", "LABEL_1"})) << "as transformers makes them up";
  EXPECT_EQ(odd.encoder.image, 13);
  EXPECT_EQ(odd.encoder.dropout, 0);
  EXPECT_FALSE(odd.encoder.qkv_bias);
  EXPECT_TRUE(load_vit((kData / "teacher").string())->config().teacher);
  EXPECT_FALSE(load_vit((kData / "deit").string())->config().teacher);
}

TEST(VitFolders, LoadingDrawsNoRandomNumbers) {
  torch::manual_seed(5);
  const Tensor expected = torch::rand({3});
  torch::manual_seed(5);
  load_vit((kData / "base").string());
  EXPECT_TRUE(torch::equal(torch::rand({3}), expected));
}

TEST(VitFolders, SayWhatIsWrong) {
  EditedFolder edited(kData / "base", [](const std::string& dir) { load_vit(dir); });
  EXPECT_EQ(edited.says(), "no error");
  const auto says = [&](const char* key, const json& value, const std::string& part) {
    const std::string said = edited.after_config([&](json& j) { j[key] = value; });
    EXPECT_SAYS(said, part);
    EXPECT_SAYS(said, key);
  };
  EXPECT_SAYS(edited.after_config([](json& j) { j["model_type"] = "segformer"; }),
              "holds a 'segformer' model; heed classify reads 'vit' and 'deit'");
  EXPECT_SAYS(edited.after_config([](json& j) { j.erase("hidden_size"); }), "no key \"hidden_size\"");
  EXPECT_SAYS(edited.after_config([](json& j) { j = 3; }), "config.json does not hold a JSON object");
  EXPECT_EQ(edited.after_config([](json& j) { j.erase("architectures"); }), "no error");
  says("architectures", {"ViTModel"}, "[\"ViTForImageClassification\"]");
  says("num_attention_heads", 5, "is 12; it must be divisible by \"num_attention_heads\", 5");
  says("hidden_size", 12.5, "12.5");
  says("hidden_size", -1, "from 1 to");
  says("image_size", {16, 20}, "[16,20]");
  says("patch_size", 17, "at most \"image_size\", 16");
  says("hidden_act", "quick_gelu", "quick_gelu");
  says("hidden_dropout_prob", 1, "below 1");
  says("qkv_bias", "yes", "true or false");
  EXPECT_SAYS(edited.after_config([](json& j) { j["id2label"].erase("3"); }), "4 classes and no name for class 3");
  // A damaged config.json must not ask for terabytes.
  const std::string large = edited.after_config([](json& j) {
    j["hidden_size"] = 12 << 19;
    j["num_hidden_layers"] = 1000;
  });
  EXPECT_SAYS(large, "not of one model");

  EXPECT_SAYS(edited.after_tensors([](auto& t) {
    named(t, "classifier.weight") = torch::zeros({7, 12});
  }),
              "'classifier.weight'");
  EXPECT_SAYS(edited.after_tensors([](auto& t) {
    named(t, "classifier.weight") = torch::zeros({7, 12});
  }),
              "is [7, 12] and config.json asks for [5, 12]");
  EXPECT_SAYS(edited.after_tensors([](auto& t) { named(t, "classifier.bias") = torch::zeros({5}, torch::kInt64); }),
              "Long");
  EXPECT_SAYS(edited.after_tensors([](auto& t) {
    std::erase_if(t, [](const auto& x) { return x.first == "vit.encoder.layer.1.layernorm_after.bias"; });
  }),
              "no tensor 'vit.encoder.layer.1.layernorm_after.bias'");
  EXPECT_SAYS(edited.after_tensors([](auto& t) { t.emplace_back("vit.encoder.layer.3.x", torch::zeros({1})); }),
              "'vit.encoder.layer.3.x'");

  fs::remove(edited.path() / "model.safetensors");
  EXPECT_SAYS(edited.says(), "no file");
  std::ofstream(edited.path() / "pytorch_model.bin") << "x";
  EXPECT_SAYS(edited.says(), "heed convert " + edited.path().string());
  fs::remove(edited.path() / "config.json");
  EXPECT_SAYS(edited.says(), "no config.json");
  EXPECT_SAYS(error_of([] { load_vit("/nowhere"); }), "does not exist");
  EXPECT_SAYS(error_of([] { load_vit("/dev/null"); }), "not a folder");
}

TEST(VitFolders, TransformersComputesTheSame) {
  SKIP_WITHOUT_TRANSFORMERS();
  for (const int kind : {0, 1, 2}) {
    const TemporaryFolder folder;
    torch::manual_seed(6);
    VitConfig config{tiny(), kind == 2, {"cat", "dog", "a \"third\""}};
    config.encoder.channels = 3;
    config.encoder.distillation_token = kind > 0;
    config.encoder.qkv_bias = kind != 0;
    VitModel model(config);
    {
      torch::NoGradGuard no_grad;
      for (Tensor& parameter : model.parameters()) parameter.add_(0.2 * torch::randn_like(parameter));
    }
    model.eval();
    save_vit(model, folder.path.string());
    pictures::Preprocess::defaults(kind == 0 ? pictures::Preprocess::Kind::vit : pictures::Preprocess::Kind::deit)
        .save(folder.path.string());
    tests::expect_transformers_computes(folder.path, [&](const Tensor& x) { return model.forward(x).logits; },
                                        {{2, 3, 12, 12}, {1, 3, 9, 17}});
  }
}

}  // namespace
}  // namespace heed::classify
