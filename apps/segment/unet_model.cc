// The U-Net with attention gates: config.json, the levels, what the gates let through.
#include "apps/segment/unet_model.h"

#include <heed/attention.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/container/modulelist.h>

#include <regex>
#include <utility>

#include "apps/model_folder.h"
#include "libtorch/dropout.h"
#include "libtorch/sizes.h"
#include "libtorch/vision/segformer.h"

namespace heed::segment {
namespace {

using nlohmann::json;
using torch::Tensor;
using torch::nn::BatchNorm2d;
using torch::nn::Conv2d;

constexpr const char* kReader = "heed segment";

// A square kernel that keeps height and width but for the stride, begun as He et al. 2015. The norm behind it has the
// bias.
Conv2d convolution(int64_t in, int64_t out, int64_t kernel, int64_t stride) {
  Conv2d conv(torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
  torch::nn::init::kaiming_normal_(conv->weight, 0, torch::kFanOut, torch::kReLU);
  return conv;
}

app::TensorNames names() { return {{}, std::regex("^$")}; }  // the modules' own, and no others

// About how many numbers the parameters and buffers have, from the config alone.
double numbers_of(const UnetConfig& c) {
  const auto block = [](double in, double out) { return 9 * (in + out) * out + in * out; };
  double numbers = 0, in = static_cast<double>(c.channels);
  for (size_t i = 0; i < c.widths.size(); ++i) {
    const auto w = static_cast<double>(c.widths[i]);
    numbers += block(in, w) + static_cast<double>(c.blocks - 1) * block(w, w);
    if (i > 0) {
      const auto finer = static_cast<double>(c.widths[i - 1]);
      numbers += block(finer + w, finer) + static_cast<double>(c.blocks - 1) * block(finer, finer) + 4 * finer * finer;
    }
    in = w;
  }
  return numbers + static_cast<double>(c.labels.size()) * static_cast<double>(c.widths.front());
}

}  // namespace

// ---- A block ----

class UnetModel::Block : public torch::nn::Module {
 public:
  Block(int64_t in, int64_t out, int64_t stride) {
    conv1_ = register_module("conv1", convolution(in, out, 3, stride));
    bn1_ = register_module("bn1", BatchNorm2d(out));
    conv2_ = register_module("conv2", convolution(out, out, 3, 1));
    bn2_ = register_module("bn2", BatchNorm2d(out));
    if (in == out && stride == 1) return;
    shortcut_ = register_module("shortcut", convolution(in, out, 1, stride));
    shortcut_bn_ = register_module("shortcut_bn", BatchNorm2d(out));
  }

  Tensor forward(const Tensor& x) {
    Tensor y = conv1_->forward(x);
    nn::check_batch_norm(y.size(0) * y.size(2) * y.size(3), is_training(), "the network");
    y = bn2_->forward(conv2_->forward(torch::relu(bn1_->forward(y))));
    return torch::relu(y + (shortcut_ ? shortcut_bn_->forward(shortcut_->forward(x)) : x));
  }

 private:
  Conv2d conv1_ = nullptr, conv2_ = nullptr, shortcut_ = nullptr;
  BatchNorm2d bn1_ = nullptr, bn2_ = nullptr, shortcut_bn_ = nullptr;
};

// ---- config.json ----

UnetConfig UnetConfig::from_json(const app::JsonKeys& j) {
  UnetConfig c;
  c.channels = j.size("num_channels");
  c.widths = j.sizes("hidden_sizes");
  if (c.widths.size() < 2) j.refuse("hidden_sizes", "a list with the channels of each level, two at least");
  c.blocks = j.size("blocks");
  c.stem = j.size("stem_stride");
  if (c.stem != 1 && c.stem != 2 && c.stem != 4) j.refuse("stem_stride", "1, 2 or 4");
  const std::string attention = j.text("attention");
  if (attention != "gates" && attention != "none") j.refuse("attention", "\"gates\" or \"none\"");
  c.gates = attention == "gates";
  c.dropout = j.share("dropout", c.dropout);
  c.labels = app::labels_of(j);
  return c;
}

json UnetConfig::to_json() const {
  json j = {{"model_type", "heed_unet"}, {"num_channels", channels}, {"hidden_sizes", widths},
            {"blocks", blocks},          {"stem_stride", stem},      {"attention", gates ? "gates" : "none"},
            {"dropout", dropout}};
  app::put_labels(labels, j);
  return j;
}

// ---- The network ----

UnetModel::UnetModel(UnetConfig config) : config_(std::move(config)) {
  const auto& c = config_;
  nn::check_size(c.channels, "the network", "channels");
  nn::check_size(c.blocks, "the network", "blocks");
  nn::check_size(static_cast<int64_t>(c.widths.size()) - 1, "the network", "levels below the first");
  for (const int64_t width : c.widths) nn::check_size(width, "the network", "width");
  nn::check_size(static_cast<int64_t>(c.labels.size()), "the network", "classes");
  if (c.stem != 1 && c.stem != 2 && c.stem != 4) {
    throw Error("the network got stem = " + std::to_string(c.stem) + "; it must be 1, 2 or 4");
  }

  const int64_t first = c.widths.front();
  const auto stem = register_module("stem", torch::nn::ModuleList());
  const auto stem_bn = register_module("stem_bn", torch::nn::ModuleList());
  for (int64_t stride = 1, in = c.channels; stride < c.stem || stem_.empty(); in = first) {
    stem_.push_back(convolution(in, first, 3, stride < c.stem ? 2 : 1));
    stem_bn_.push_back(BatchNorm2d(first));
    stem->push_back(stem_.back());
    stem_bn->push_back(stem_bn_.back());
    stride *= 2;
  }
  const auto level = [&](torch::nn::ModuleList list, int64_t in, int64_t out, int64_t stride) {
    Level blocks;
    torch::nn::ModuleList modules;
    for (int64_t i = 0; i < c.blocks; ++i) {
      blocks.push_back(i == 0 ? std::make_shared<Block>(in, out, stride) : std::make_shared<Block>(out, out, 1));
      modules->push_back(blocks.back());
    }
    list->push_back(modules);
    return blocks;
  };
  const auto down = register_module("down", torch::nn::ModuleList());
  const auto gates = register_module("gates", torch::nn::ModuleList());
  const auto up = register_module("up", torch::nn::ModuleList());
  for (size_t i = 0; i < c.widths.size(); ++i) {
    const int64_t width = c.widths[i];
    down_.push_back(level(down, i == 0 ? first : c.widths[i - 1], width, i == 0 ? 1 : 2));
    if (i + 1 == c.widths.size()) break;
    const int64_t coarser = c.widths[i + 1];
    up_.push_back(level(up, width + coarser, width, 1));
    if (!c.gates) continue;
    gates_.push_back(nn::AttentionGate(nn::AttentionGateOptions{.channels = width, .gate_channels = coarser}));
    gates->push_back(gates_.back());
  }
  classifier_ =
      register_module("classifier", Conv2d(torch::nn::Conv2dOptions(first, static_cast<int64_t>(c.labels.size()), 1)));
}

int64_t UnetModel::strides() const { return config_.stem << (config_.widths.size() - 1); }

UnetOutput UnetModel::forward(const Tensor& pictures, bool want_maps) {
  nn::check_feature_map(pictures, config_.channels, "the network");
  if (want_maps && !config_.gates) {
    throw Error("this model has no attention to look at; train one with --arch unet-ag or segformer");
  }
  // To whole squares of the deepest level, so that all levels lie on each other exactly, wherever a picture ends.
  const int64_t unit = strides(), height = pictures.size(2), width = pictures.size(3);
  const auto missing = [&](int64_t size) { return (unit - size % unit) % unit; };
  Tensor x = pictures;
  if (missing(height) + missing(width) > 0) {
    x = torch::replication_pad2d(x, {0, missing(width), 0, missing(height)});
  }
  for (size_t i = 0; i < stem_.size(); ++i) x = torch::relu(stem_bn_[i]->forward(stem_[i]->forward(x)));
  std::vector<Tensor> levels;
  for (const Level& level : down_) {
    for (const auto& block : level) x = block->forward(x);
    levels.push_back(x);
  }
  // The picture's part of a map of level i.
  const auto unpadded = [&](const Tensor& map, size_t i) {
    const int64_t square = config_.stem << i;
    return map.narrow(2, 0, (height + square - 1) / square).narrow(3, 0, (width + square - 1) / square);
  };
  UnetOutput output;
  for (size_t i = up_.size(); i-- > 0;) {
    Tensor skip = levels[i];
    if (config_.gates) {
      nn::Gated gated = gates_[i]->gate(skip, x);
      skip = std::move(gated.out);
      if (want_maps) output.maps.insert(output.maps.begin(), unpadded(gated.map.detach(), i).squeeze(1));
    }
    x = torch::cat({skip, nn::resized(x, skip.size(2), skip.size(3))}, 1);
    for (const auto& block : up_[i]) x = block->forward(x);
  }
  output.logits = unpadded(classifier_->forward(nn::dropout(x, config_.dropout, is_training())), 0);
  return output;
}

// ---- The folder ----

std::shared_ptr<UnetModel> load_unet(const std::string& dir) {
  const UnetConfig config = UnetConfig::from_json(app::read_config(dir, {"heed_unet"}, kReader));
  const nn::SafeTensors file = app::read_weights(dir, numbers_of(config));
  const app::RandomStateGuard guard;
  const auto model = std::make_shared<UnetModel>(config);
  app::fill(*model, file, dir, names());
  model->eval();
  return model;
}

void save_unet(const UnetModel& model, const std::string& dir) {
  app::save_model_folder(dir, model, names(), model.config().to_json());
}

}  // namespace heed::segment
