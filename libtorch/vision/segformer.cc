// SegFormer: the blocks, the stages, the head.
#include "libtorch/vision/segformer.h"

#include <heed/attention.h>
#include <torch/nn/modules/container/modulelist.h>

#include <array>
#include <string>
#include <utility>

#include "libtorch/dropout.h"
#include "libtorch/probe.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::Conv2d;
using torch::nn::Conv2dOptions;
using torch::nn::LayerNorm;
using torch::nn::Linear;

LayerNorm layer_norm(int64_t width, double eps) { return LayerNorm(torch::nn::LayerNormOptions({width}).eps(eps)); }

SegformerOptions checked(SegformerOptions options) {
  if (options.stages.empty()) throw Error("Segformer got 0 stages; give at least 1");
  const auto at_least_1 = [](const std::string& where, const char* name, int64_t size) {
    if (size < 1)
      throw Error("Segformer got " + where + name + " = " + std::to_string(size) + "; it must be at least 1");
  };
  at_least_1("", "channels", options.channels);
  at_least_1("", "decoder_hidden", options.decoder_hidden);
  at_least_1("", "classes", options.classes);
  for (size_t i = 0; i < options.stages.size(); ++i) {
    const SegformerStageOptions& s = options.stages[i];
    const std::string where = "stage " + std::to_string(i) + "'s ";
    for (const auto& [name, size] : {std::pair("hidden", s.hidden),
                                     {"depth", s.depth},
                                     {"heads", s.heads},
                                     {"reduction", s.reduction},
                                     {"patch", s.patch},
                                     {"stride", s.stride},
                                     {"mlp_ratio", s.mlp_ratio}}) {
      at_least_1(where, name, size);
    }
    if (s.hidden % s.heads != 0) {
      throw Error("Segformer got " + where + "hidden " + std::to_string(s.hidden) + " and " + std::to_string(s.heads) +
                  " heads; give a divisor of " + std::to_string(s.hidden));
    }
  }
  for (const double p : {options.dropout, options.classifier_dropout, options.drop_path}) {
    if (!(p >= 0 && p < 1))
      throw Error("Segformer got dropout " + std::to_string(p) + "; it must be at least 0 and below 1");
  }
  return options;
}

// All of a picture's sublayer or nothing of it: dropout of one number for each picture.
Tensor drop_path_of(const Tensor& x, double p, bool training) {
  if (!training || p == 0) return x;
  return x * nn::dropout(torch::ones({x.size(0), 1, 1}, x.options()), p, true);
}

}  // namespace

SegformerOptions segformer_options(int size) {
  if (size < 0 || size > 5) throw Error("there is no SegFormer B" + std::to_string(size) + "; sizes are 0 to 5");
  constexpr int64_t kDepths[6][4] = {{2, 2, 2, 2},  {2, 2, 2, 2},  {3, 4, 6, 3},
                                     {3, 4, 18, 3}, {3, 8, 27, 3}, {3, 6, 40, 3}};
  SegformerOptions options;
  for (size_t s = 0; s < 4; ++s) options.stages[s].depth = kDepths[size][s];
  if (size > 0) {
    constexpr int64_t kHidden[4] = {64, 128, 320, 512};
    for (size_t s = 0; s < 4; ++s) options.stages[s].hidden = kHidden[s];
  }
  if (size > 1) options.decoder_hidden = 768;
  return options;
}

// ---- A block ----

SegformerBlockImpl::SegformerBlockImpl(SegformerStageOptions stage, SegformerOptions options, double drop_path)
    : stage(stage), options(std::move(options)), drop_path(drop_path) {
  reset();
}

void SegformerBlockImpl::reset() {
  const int64_t width = stage.hidden, inner = stage.hidden * stage.mlp_ratio, r = stage.reduction;
  const double eps = options.layer_norm_eps;
  layernorm_before = register_module("layernorm_before", layer_norm(width, eps));
  if (r > 1) {
    sequence_reduction = register_module("sequence_reduction", Conv2d(Conv2dOptions(width, width, r).stride(r)));
    reduction_norm = register_module("reduction_norm", layer_norm(width, eps));
  }
  attention = register_module("attention",
                              MultiHeadAttention(MultiHeadAttentionOptions{
                                  .embed_dim = width, .heads = stage.heads, .dropout = options.attention_dropout}));
  layernorm_after = register_module("layernorm_after", layer_norm(width, eps));
  fc1 = register_module("fc1", Linear(width, inner));
  dwconv = register_module("dwconv", Conv2d(Conv2dOptions(inner, inner, 3).padding(1).groups(inner)));
  fc2 = register_module("fc2", Linear(inner, width));
}

Attended SegformerBlockImpl::forward(const Patches& patches, bool want_look) {
  const auto& [tokens, rows, columns] = patches;
  const bool training = is_training();
  const auto joined = [&](const Tensor& x, const Tensor& sublayer) {
    return x + drop_path_of(nn::dropout(sublayer, options.dropout, training), drop_path, training);
  };

  const Tensor query = layernorm_before->forward(tokens);
  Tensor memory = query;
  if (sequence_reduction) {
    const int64_t r = stage.reduction;
    if (rows < r || columns < r) {
      throw Error("a stage has a map of " + std::to_string(rows) + " x " + std::to_string(columns) +
                  ", too small for its reduction by " + std::to_string(r) + "; give larger pictures");
    }
    const Tensor reduced = sequence_reduction->forward(map_of({query, rows, columns}));
    memory = reduction_norm->forward(reduced.flatten(2).transpose(1, 2));
  }
  Attended attended = attention->forward(query, memory, {.want_look = want_look});
  const Tensor middle = joined(tokens, attended.out);

  const Tensor inner = fc1->forward(layernorm_after->forward(middle));
  const Tensor mixed = dwconv->forward(map_of({inner, rows, columns})).flatten(2).transpose(1, 2);
  const Tensor fed = fc2->forward(nn::dropout(activate(options.activation, mixed), options.dropout, training));
  return {joined(middle, fed), {}, std::move(attended.look)};
}

// ---- The encoder ----

MixTransformerImpl::MixTransformerImpl(SegformerOptions given) : options(checked(std::move(given))) {
  int64_t blocks = 0;
  for (const auto& s : options.stages) blocks += s.depth;
  const auto list = register_module("stages", torch::nn::ModuleList());
  int64_t channels = options.channels, block = 0;
  for (const SegformerStageOptions& s : options.stages) {
    Stage stage;
    const auto module = std::make_shared<torch::nn::Module>("Stage");
    stage.patch_embeddings = module->register_module(
        "patch_embeddings",
        PatchEmbed(PatchEmbedOptions{
            .channels = channels, .hidden = s.hidden, .patch = s.patch, .stride = s.stride, .padding = s.patch / 2}));
    stage.patch_norm = module->register_module("patch_norm", layer_norm(s.hidden, options.layer_norm_eps));
    const auto blocks_list = module->register_module("blocks", torch::nn::ModuleList());
    for (int64_t i = 0; i < s.depth; ++i, ++block) {
      const double share = blocks > 1 ? static_cast<double>(block) / static_cast<double>(blocks - 1) : 0;
      stage.blocks.emplace_back(s, options, options.drop_path * share);
      blocks_list->push_back(stage.blocks.back());
    }
    stage.layer_norm = module->register_module("layer_norm", layer_norm(s.hidden, options.layer_norm_eps));
    list->push_back(module);
    stages.push_back(std::move(stage));
    channels = s.hidden;
  }
}

std::vector<SegformerStageOutput> MixTransformerImpl::forward(const Tensor& pictures, bool want_attention) {
  std::vector<SegformerStageOutput> outputs;
  Tensor map = pictures;
  for (size_t i = 0; i < stages.size(); ++i) {
    Stage& stage = stages[i];
    Patches patches = stage.patch_embeddings->forward(map);
    patches.tokens = stage.patch_norm->forward(patches.tokens);
    std::vector<Tensor> received;
    for (auto& block : stage.blocks) {
      Attended attended = block->forward(patches, want_attention);
      patches.tokens = std::move(attended.out);
      if (want_attention) {
        const int64_t r = options.stages[i].reduction;
        received.push_back(
            received_weights(attended.look).unflatten(2, std::vector<int64_t>{patches.rows / r, patches.columns / r}));
      }
    }
    patches.tokens = stage.layer_norm->forward(patches.tokens);
    map = map_of(patches);
    outputs.push_back({std::move(patches), want_attention ? torch::stack(received) : Tensor()});
  }
  return outputs;
}

// ---- The head ----

SegformerHeadImpl::SegformerHeadImpl(SegformerOptions given) : options(checked(std::move(given))) {
  const int64_t width = options.decoder_hidden, stages = static_cast<int64_t>(options.stages.size());
  const auto list = register_module("projections", torch::nn::ModuleList());
  for (const SegformerStageOptions& s : options.stages) {
    projections.emplace_back(s.hidden, width);
    list->push_back(projections.back());
  }
  linear_fuse = register_module("linear_fuse", Conv2d(Conv2dOptions(stages * width, width, 1).bias(false)));
  batch_norm = register_module("batch_norm", torch::nn::BatchNorm2d(width));
  classifier = register_module("classifier", Conv2d(Conv2dOptions(width, options.classes, 1)));
}

Tensor SegformerHeadImpl::forward(const std::vector<SegformerStageOutput>& stages) {
  if (stages.size() != projections.size()) {
    throw Error("the head got " + std::to_string(stages.size()) + " stages and was made for " +
                std::to_string(projections.size()));
  }
  const int64_t width = options.decoder_hidden, count = static_cast<int64_t>(stages.size());
  // A 1 x 1 convolution takes every place by itself, resizing every channel by itself, so they may change places: the
  // convolution of the joined maps is the sum of each stage's share, computed where its map is small. That is a third
  // of the products of the paper's order. The last stage comes first in the weights.
  const Tensor fuse = linear_fuse->weight.flatten(1);  // [width, count * width]
  Tensor sum;
  for (int64_t s = 0; s < count; ++s) {
    const Patches& patches = stages[static_cast<size_t>(s)].patches;
    const Tensor projected = projections[static_cast<size_t>(s)]->forward(patches.tokens);
    const Tensor share = torch::linear(projected, fuse.narrow(1, (count - 1 - s) * width, width));
    const Tensor map = map_of({share, patches.rows, patches.columns});
    sum = s == 0 ? map : sum + resized(map, stages[0].patches.rows, stages[0].patches.columns);
  }
  const Tensor x = torch::relu(batch_norm->forward(sum));
  return classifier->forward(nn::dropout(x, options.classifier_dropout, is_training()));
}

Tensor resized(const Tensor& maps, int64_t height, int64_t width) {
  const std::array<int64_t, 2> size{height, width};
  return torch::upsample_bilinear2d(maps, torch::IntArrayRef(size), /*align_corners=*/false);
}

// ---- The model ----

SegformerImpl::SegformerImpl(SegformerOptions given) : options(checked(std::move(given))) {
  encoder = register_module("encoder", MixTransformer(options));
  decode_head = register_module("decode_head", SegformerHead(options));
}

SegformerOutput SegformerImpl::forward(const Tensor& pictures, bool want_attention) {
  const std::vector<SegformerStageOutput> stages = encoder->forward(pictures, want_attention);
  SegformerOutput output{decode_head->forward(stages), {}};
  if (want_attention) {
    for (const SegformerStageOutput& stage : stages) output.received.push_back(stage.received);
  }
  return output;
}

double SegformerImpl::parameters_of(const SegformerOptions& options) {
  const auto width = static_cast<double>(options.decoder_hidden);
  auto channels = static_cast<double>(options.channels);
  double sum = 4 * width + static_cast<double>(options.classes) * (width + 1);
  for (const SegformerStageOptions& s : options.stages) {
    const auto d = static_cast<double>(s.hidden), inner = d * static_cast<double>(s.mlp_ratio),
               patch = static_cast<double>(s.patch), r = static_cast<double>(s.reduction);
    double block = 4 * d * (d + 1) + inner * (d + 1) + 10 * inner + d * (inner + 1) + 4 * d;
    if (s.reduction > 1) block += d * (d * r * r + 1) + 2 * d;
    sum += d * (channels * patch * patch + 1) + 4 * d + static_cast<double>(s.depth) * block;
    sum += width * (d + 1) + width * width;
    channels = d;
  }
  return sum;
}

}  // namespace heed::nn
