// libtorch/vision/segformer.cc and apps/segment/segformer_model.cc: the model against the paper written out in plain
// operators, folders of SegFormer against the logits transformers computes for them, and ours read by transformers.
#include "libtorch/vision/segformer.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>

#include <cmath>
#include <string>
#include <vector>

#include "apps/pictures/preprocess.h"
#include "apps/segment/segformer_model.h"
#include "apps/translate/convert.h"
#include "libtorch/safetensors.h"
#include "said.h"
#include "tests/plain_attention.h"
#include "tests/vision_goldens.h"

namespace heed::segment {
namespace {

namespace fs = std::filesystem;
namespace F = torch::nn::functional;
using heed::tests::difference;
using heed::tests::EditedFolder;
using heed::tests::error_of;
using heed::tests::json;
using heed::tests::named;
using heed::tests::pixels;
using heed::tests::TemporaryFolder;
using plain::expect_near;
using torch::Tensor;

const fs::path kData = fs::path(HEED_TEST_DATA) / "segformer";

// ---- The model ----

// Two stages of four blocks and a head are some twenty products deep, each with sums as long as an attention's.
double tolerance(torch::ScalarType dtype) { return 20 * plain::tolerance(dtype); }

nn::SegformerOptions tiny() {
  nn::SegformerOptions o;
  o.channels = 2;
  o.stages = {{.hidden = 8, .depth = 2, .heads = 2, .reduction = 3, .patch = 5, .stride = 2, .mlp_ratio = 2},
              {.hidden = 6, .depth = 2, .heads = 1, .reduction = 1, .patch = 3, .stride = 2, .mlp_ratio = 3}};
  o.decoder_hidden = 10;
  o.classes = 3;
  o.classifier_dropout = o.drop_path = 0;
  return o;
}

// Biases start at 0, norms at 1 and running means at 0: give everything something to show.
void randomise(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (Tensor& parameter : module.parameters()) parameter.add_(0.2 * torch::randn_like(parameter));
  for (Tensor& buffer : module.buffers()) {
    if (buffer.is_floating_point()) buffer.add_(torch::rand_like(buffer));
  }
}

Tensor apply(const Tensor& x, const torch::nn::Linear& linear) { return x.matmul(linear->weight.t()) + linear->bias; }

Tensor apply(const Tensor& x, const torch::nn::LayerNorm& norm) {  // eps 1e-5, whatever the options say
  const Tensor centred = x - x.mean(-1, true);
  return centred / torch::sqrt(centred.pow(2).mean(-1, true) + 1e-5) * norm->weight + norm->bias;
}

Tensor apply(const Tensor& x, const torch::nn::Conv2d& conv, int64_t stride, int64_t padding, int64_t groups = 1) {
  return torch::conv2d(x, conv->weight, conv->bias, stride, padding, /*dilation=*/1, groups);
}

Tensor sequence(const Tensor& map) { return map.flatten(2).transpose(1, 2); }
Tensor map_as(const Tensor& tokens, const Tensor& like) {
  return tokens.transpose(1, 2).reshape({like.size(0), tokens.size(2), like.size(2), like.size(3)});
}

struct Plain {
  Tensor logits;
  std::vector<std::vector<Tensor>> weights;  // of each block of each stage, [B, heads, L, S]
};

// Xie et al. 2021, section 3, in LibTorch's own operators and in the paper's order: stages are resized, joined and then
// fused.
Plain plain_segformer(nn::SegformerImpl& net, const Tensor& x) {
  Plain result;
  std::vector<Tensor> maps;
  Tensor map = x;
  for (size_t s = 0; s < net.options.stages.size(); ++s) {
    const auto& o = net.options.stages[s];
    auto& stage = net.encoder->stages[s];
    map = apply(map, stage.patch_embeddings->projection, o.stride, o.patch / 2);
    Tensor z = apply(sequence(map), stage.patch_norm);
    result.weights.emplace_back();
    for (auto& block : stage.blocks) {
      const Tensor in = apply(z, block->layernorm_before);
      Tensor memory = in;
      if (o.reduction > 1) {
        memory =
            apply(sequence(apply(map_as(in, map), block->sequence_reduction, o.reduction, 0)), block->reduction_norm);
      }
      const auto heads = [&](const Tensor& t, const torch::nn::Linear& linear) {
        return plain::split(apply(t, linear), o.heads);
      };
      auto& a = *block->attention;
      const plain::Result attended =
          plain::attention(heads(in, a.q_proj), heads(memory, a.k_proj), heads(memory, a.v_proj));
      result.weights.back().push_back(attended.weights);
      z = z + apply(plain::join(attended.out), a.out_proj);
      const Tensor wide = apply(apply(z, block->layernorm_after), block->fc1);
      const Tensor mixed = sequence(apply(map_as(wide, map), block->dwconv, 1, 1, wide.size(2)));
      z = z + apply(mixed * 0.5 * (1 + torch::erf(mixed / std::sqrt(2.0))), block->fc2);
    }
    map = map_as(apply(z, stage.layer_norm), map);
    maps.push_back(map);
  }
  auto& head = *net.decode_head;
  std::vector<Tensor> joined;
  for (size_t s = maps.size(); s-- > 0;) {
    const Tensor projected = map_as(apply(sequence(maps[s]), head.projections[s]), maps[s]);
    joined.push_back(F::interpolate(projected, F::InterpolateFuncOptions()
                                                   .size(std::vector<int64_t>{maps[0].size(2), maps[0].size(3)})
                                                   .mode(torch::kBilinear)
                                                   .align_corners(false)));
  }
  const Tensor fused = torch::conv2d(torch::cat(joined, 1), head.linear_fuse->weight);
  const auto& norm = head.batch_norm;
  const auto column = [](const Tensor& t) { return t.view({1, -1, 1, 1}); };
  const bool training = norm->is_training();
  const Tensor mean = training ? fused.mean(std::vector<int64_t>{0, 2, 3}) : norm->running_mean;
  const Tensor variance =
      training ? (fused - column(mean)).pow(2).mean(std::vector<int64_t>{0, 2, 3}) : norm->running_var;
  const Tensor normal =
      (fused - column(mean)) / torch::sqrt(column(variance) + 1e-5) * column(norm->weight) + column(norm->bias);
  result.logits = apply(torch::where(normal > 0, normal, torch::zeros_like(normal)), head.classifier, 1, 0);
  return result;
}

TEST(Segformer, IsThePapersFormulaAndItsGradients) {
  for (const bool training : {false, true}) {
    torch::manual_seed(1);
    nn::Segformer net(tiny());
    randomise(*net);
    net->train(training);
    const auto run = [&](bool formula, torch::ScalarType dtype) {
      net->to(dtype);
      std::vector<Tensor> leaves{pixels({2, 2, 14, 19}).to(dtype).requires_grad_()};
      const Tensor out = formula ? plain_segformer(*net, leaves[0]).logits : net->forward(leaves[0]).logits;
      for (const Tensor& parameter : net->parameters()) leaves.push_back(parameter);
      std::vector<Tensor> all{out};
      for (Tensor& gradient : plain::gradients(plain::mixed(out), leaves)) all.push_back(gradient);
      return all;
    };
    const std::vector<Tensor> exact = run(true, torch::kFloat64);
    EXPECT_EQ(exact[0].sizes(), (torch::IntArrayRef{2, 3, 7, 10}));
    const std::vector<Tensor> actual = run(false, torch::kFloat64);
    for (size_t i = 0; i < exact.size(); ++i) {
      expect_near(actual[i], exact[i], tolerance(torch::kFloat64), "result or gradient " + std::to_string(i));
    }
    expect_near(run(false, torch::kFloat32)[0], exact[0], tolerance(torch::kFloat32), "float32");
  }
}

TEST(Segformer, TellsWhatEachPlaceReceived) {
  torch::manual_seed(2);
  torch::NoGradGuard no_grad;
  nn::Segformer net(tiny());
  randomise(*net);
  net->eval();
  net->to(torch::kFloat64);
  const Tensor x = pixels({2, 2, 14, 19}).to(torch::kFloat64);
  const std::vector<Tensor> received = net->forward(x, /*want_attention=*/true).received;
  const Plain exact = plain_segformer(*net, x);
  ASSERT_EQ(received.size(), 2u);
  EXPECT_EQ(received[0].sizes(), (torch::IntArrayRef{2, 2, 2, 2, 3})) << "7 x 10, every third of both";
  EXPECT_EQ(received[1].sizes(), (torch::IntArrayRef{2, 2, 1, 4, 5}));
  for (size_t s = 0; s < 2; ++s) {
    for (size_t i = 0; i < 2; ++i) {
      expect_near(received[s][static_cast<int64_t>(i)].flatten(2), exact.weights[s][i].mean(2), 1e-12, "received");
    }
  }
  EXPECT_TRUE(net->forward(x).received.empty()) << "nobody asked";
}

TEST(Segformer, Learns) {
  torch::manual_seed(3);
  nn::SegformerOptions options = tiny();
  options.dropout = options.attention_dropout = options.classifier_dropout = options.drop_path = 0.05;
  nn::Segformer net(options);
  net->train();
  const Tensor x = torch::randn({4, 2, 16, 16});
  const Tensor classes = (x.select(1, 0) > 0).to(torch::kInt64) + (x.select(1, 1) > 0).to(torch::kInt64);
  torch::optim::Adam optimizer(net->parameters(), 1e-2);
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    optimizer.zero_grad();
    // The class of the pixel that a place of the map stands for.
    const Tensor loss = torch::cross_entropy_loss(
        nn::resized(net->forward(x).logits, 16, 16),
        classes.slice(1, 0, 16, 4).slice(2, 0, 16, 4).repeat_interleave(4, 1).repeat_interleave(4, 2));
    loss.backward();
    if (step == 0) {
      first = loss.item<double>();
      for (const auto& item : net->named_parameters()) EXPECT_TRUE(item.value().grad().defined()) << item.key();
    }
    optimizer.step();
    last = loss.item<double>();
  }
  EXPECT_LT(last, 0.7 * first);
}

TEST(Segformer, DropsPathsOfWholePictures) {
  torch::manual_seed(4);
  torch::NoGradGuard no_grad;
  const nn::SegformerOptions options = tiny();
  nn::SegformerBlock block(options.stages[1], options, /*drop_path=*/0.5);
  randomise(*block);
  const nn::Patches patches{torch::randn({400, 4, 6}), 2, 2};
  block->train();
  const Tensor change = (block->forward(patches).out - patches.tokens).abs().amax(torch::IntArrayRef{1, 2});
  const double untouched = (change == 0).to(torch::kFloat64).mean().item<double>();
  EXPECT_NEAR(untouched, 0.25, 0.08) << "of two sublayers neither";
  block->eval();
  EXPECT_GT((block->forward(patches).out - patches.tokens).abs().amax(torch::IntArrayRef{1, 2}).min().item<double>(),
            0);
}

TEST(Segformer, CountsItsNumbers) {
  nn::Segformer net(tiny());
  double count = 0;
  for (const Tensor& t : net->parameters()) count += static_cast<double>(t.numel());
  for (const Tensor& t : net->buffers()) count += t.is_floating_point() ? static_cast<double>(t.numel()) : 0;
  EXPECT_EQ(nn::SegformerImpl::parameters_of(tiny()), count);
  // As transformers 5.24 counts the parameters of B0 to B5 with 150 classes, among which running statistics are not.
  const double known[] = {3752694, 13715798, 27461974, 47337814, 64108374, 84708694};
  for (int size = 0; size < 6; ++size) {
    const nn::SegformerOptions options = nn::segformer_options(size);
    EXPECT_EQ(nn::SegformerImpl::parameters_of(options) - 2 * static_cast<double>(options.decoder_hidden), known[size])
        << size;
  }
  EXPECT_SAYS(error_of([] { nn::segformer_options(6); }), "no SegFormer B6");
}

TEST(Segformer, SaysWhatDoesNotFit) {
  nn::SegformerOptions options = tiny();
  options.stages[1].heads = 4;
  EXPECT_SAYS(error_of([&] { nn::Segformer{options}; }), "stage 1's hidden 6 and 4 heads");
  options = tiny();
  options.stages[0].reduction = 0;
  EXPECT_SAYS(error_of([&] { nn::Segformer{options}; }), "stage 0's reduction = 0");
  options = tiny();
  options.stages.clear();
  EXPECT_SAYS(error_of([&] { nn::Segformer{options}; }), "0 stages");
  options = tiny();
  options.drop_path = 1;
  EXPECT_SAYS(error_of([&] { nn::Segformer{options}; }), "dropout 1.0");
  nn::Segformer net(tiny());
  EXPECT_SAYS(error_of([&] { net->forward(pixels({1, 3, 14, 14})); }), "[batch, 2, height, width]");
  EXPECT_SAYS(error_of([&] {
                net->forward(pixels({1, 2, 4, 14}));
              }),
              "a map of 2 x 7, too small for its reduction by 3");
}

// ---- Folders ----

class SegformerFolder : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Folder, SegformerFolder, testing::Values("base", "odd", "half", "brain"),
                         [](const auto& p) { return p.param; });

void expect_goldens(SegformerModel model, const fs::path& folder) {
  tests::expect_goldens(folder, [&](const Tensor& x) { return model.net->forward(x).logits; });
}

TEST_P(SegformerFolder, LogitsEqualTransformers) {
  expect_goldens(load_segformer((kData / GetParam()).string()), kData / GetParam());
}

// What is loaded is stored under the names of 4.x, whatever it came under.
TEST_P(SegformerFolder, SurvivesSaving) {
  const TemporaryFolder folder;
  save_segformer(load_segformer((kData / GetParam()).string()), folder.path.string());
  expect_goldens(load_segformer(folder.path.string()), kData / GetParam());
  EXPECT_NE(nn::load_safetensors((folder.path / "model.safetensors").string())
                .find("segformer.encoder.block.1.0.attention.self.query.weight"),
            nullptr);
}

TEST(SegformerFolders, TellWhatEachPlaceReceivedAsTransformersDoes) {
  torch::NoGradGuard no_grad;
  const nn::SafeTensors expected = nn::load_safetensors((kData / "base" / "goldens.safetensors").string());
  SegformerModel model = load_segformer((kData / "base").string());
  const auto received = model.net->forward(pixels({1, 3, 50, 83}), true).received;
  ASSERT_EQ(received.size(), 4u);
  for (size_t s = 0; s < 4; ++s) {
    EXPECT_LT(difference(received[s], *expected.find("received." + std::to_string(s))), 1e-6) << s;
    const auto places = static_cast<double>(received[s].size(3) * received[s].size(4));
    EXPECT_TRUE(places == 1 || received[s].max().item<double>() > 1.02 / places) << "flat weights would prove nothing";
  }
}

TEST(SegformerFolders, WhatConfigJsonSays) {
  const SegformerConfig base = load_segformer((kData / "base").string()).config;
  EXPECT_EQ(base.labels[4], "class 4");
  EXPECT_EQ(base.options.classes, 5);
  EXPECT_EQ(base.options.layer_norm_eps, 1e-5) << "whatever the file says";
  EXPECT_EQ(base.ignored, 255);
  const SegformerConfig odd = load_segformer((kData / "odd").string()).config;
  EXPECT_EQ(odd.labels, (std::vector<std::string>{"LABEL_0", "LABEL_1"}));
  EXPECT_EQ(odd.options.stages.size(), 3u);
  EXPECT_EQ(odd.options.stages[0].stride, 3);
}

TEST(SegformerFolders, PicklesAreConverted) {
  const TemporaryFolder folder;
  fs::copy(kData / "pickle", folder.path);
  const std::string dir = folder.path.string(), half = dir + "/half";
  EXPECT_SAYS(error_of([&] { load_segformer(dir); }), "heed convert " + dir);
  translate::convert(dir);
  expect_goldens(load_segformer(dir), kData / "pickle");
  translate::convert(dir, half, "bf16");
  EXPECT_NO_THROW(load_segformer(half));
  EXPECT_EQ(pictures::Preprocess::load(half), pictures::Preprocess::load(dir)) << "the folder is whole";
}

TEST(SegformerFolders, SayWhatIsWrong) {
  EditedFolder edited(kData / "odd", [](const std::string& dir) { load_segformer(dir); });
  EXPECT_EQ(edited.says(), "no error");
  const auto says = [&](const char* key, const json& value, const std::string& part) {
    const std::string said = edited.after_config([&](json& j) { j[key] = value; });
    EXPECT_SAYS(said, part);
    EXPECT_SAYS(said, key);
  };
  EXPECT_SAYS(edited.after_config([](json& j) { j["model_type"] = "vit"; }),
              "holds a 'vit' model; heed segment reads 'segformer'");
  says("architectures", {"SegformerForImageClassification"}, "[\"SegformerForSemanticSegmentation\"]");
  says("depths", {1, 2}, "a list of 3 numbers, one for each encoder block");
  says("sr_ratios", {4, 0, 2}, "[4,0,2]");
  says("mlp_ratios", 4, "a list");
  says("num_attention_heads", {2, 4, 1}, "6 is not by 4");
  says("hidden_act", "tanh", "relu, swish, silu and gelu");
  says("drop_path_rate", 1.5, "below 1");
  EXPECT_SAYS(edited.after_config([](json& j) { j.erase("decoder_hidden_size"); }), "no key \"decoder_hidden_size\"");
  EXPECT_SAYS(edited.after_config([](json& j) { j["depths"] = {1, 2, 900000}; }), "not of one model");

  const auto without = [&](const std::string& name) {
    return edited.after_tensors([&](auto& t) { std::erase_if(t, [&](const auto& x) { return x.first == name; }); });
  };
  EXPECT_EQ(without("decode_head.batch_norm.num_batches_tracked"), "no error");
  EXPECT_SAYS(without("decode_head.batch_norm.running_var"), "no tensor 'decode_head.batch_norm.running_var'");
  EXPECT_SAYS(without("segformer.stages.0.blocks.0.mlp.dwconv.dwconv.bias"),
              "no tensor 'segformer.encoder.block.0.0.mlp.dwconv.dwconv.bias'");
  EXPECT_SAYS(edited.after_tensors([](auto& t) {
    named(t, "segformer.stages.0.patch_embeddings.proj.weight") = torch::zeros({4, 3, 5, 5});
  }),
              "is [4, 3, 5, 5] and config.json asks for [4, 1, 5, 5]");
  EXPECT_SAYS(edited.after_tensors([](auto& t) { t.emplace_back("decode_head.x", torch::zeros({1})); }),
              "'decode_head.x'");
}

TEST(SegformerFolders, TransformersComputesTheSame) {
  SKIP_WITHOUT_TRANSFORMERS();
  const TemporaryFolder folder;
  torch::manual_seed(6);
  SegformerConfig config{tiny(), {"sky", "road"}};
  config.options.channels = 3;
  config.options.classifier_dropout = 0.1;
  SegformerModel model(config);
  randomise(*model.net);
  {
    torch::NoGradGuard no_grad;  // an eps of 1e-6 in the norm behind would be seen
    for (Tensor& parameter : model.net->encoder->stages[0].patch_embeddings->parameters()) parameter.mul_(0.01);
  }
  model.net->eval();
  save_segformer(model, folder.path.string());
  pictures::Preprocess::defaults(pictures::Preprocess::Kind::segformer).save(folder.path.string());
  tests::expect_transformers_computes(folder.path, [&](const Tensor& x) { return model.net->forward(x).logits; },
                                      {{2, 3, 24, 24}, {1, 3, 15, 31}});
}

}  // namespace
}  // namespace heed::segment
