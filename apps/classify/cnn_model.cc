// The residual network with CBAM: config.json, the blocks, what they looked at.
#include "apps/classify/cnn_model.h"

#include <heed/attention.h>
#include <torch/nn/init.h>
#include <torch/nn/modules/container/modulelist.h>

#include <algorithm>
#include <regex>
#include <utility>

#include "apps/model_folder.h"
#include "libtorch/dropout.h"
#include "libtorch/sizes.h"
#include "libtorch/vision/gates.h"

namespace heed::classify {
namespace {

using nlohmann::json;
using torch::Tensor;
using torch::nn::BatchNorm2d;
using torch::nn::Conv2d;

constexpr const char* kReader = "heed classify";

// A square kernel that keeps height and width but for the stride, begun as He et al. 2015 (their equation 10, over the
// outputs) so that variance neither grows nor fades through ReLUs. The norm behind it has the bias.
Conv2d convolution(int64_t in, int64_t out, int64_t kernel, int64_t stride) {
  Conv2d conv(torch::nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).bias(false));
  torch::nn::init::kaiming_normal_(conv->weight, 0, torch::kFanOut, torch::kReLU);
  return conv;
}

app::TensorNames names() { return {{}, std::regex("^$")}; }  // the modules' own, and no others

// How many numbers the parameters and buffers have, from the config alone.
double numbers_of(const CnnConfig& c) {
  const auto conv = [](double in, double out, double kernel) { return in * out * kernel * kernel + 4 * out; };
  const auto first = static_cast<double>(c.widths.front()), last = static_cast<double>(c.widths.back());
  double numbers = conv(static_cast<double>(c.channels), first, c.strided_stem ? 7 : 3), in = first;
  for (const int64_t width : c.widths) {
    const auto w = static_cast<double>(width);
    const double gate = c.cbam ? 2 * w * w / static_cast<double>(c.reduction) : 0;
    numbers += conv(in, w, 3) + conv(w, w, 3) + gate + static_cast<double>(c.blocks - 1) * (2 * conv(w, w, 3) + gate);
    in = w;
  }
  return numbers + static_cast<double>(c.labels.size()) * (last + 1);
}

}  // namespace

// ---- A block ----

class CnnModel::Block : public torch::nn::Module {
 public:
  Block(int64_t in, int64_t out, int64_t stride, const CnnConfig& config) {
    conv1_ = register_module("conv1", convolution(in, out, 3, stride));
    bn1_ = register_module("bn1", BatchNorm2d(out));
    conv2_ = register_module("conv2", convolution(out, out, 3, 1));
    bn2_ = register_module("bn2", BatchNorm2d(out));
    if (config.cbam) {
      cbam_ = register_module("cbam",
                              nn::Cbam(nn::CbamOptions{.channels = out, .reduction = std::min(config.reduction, out)}));
    }
    if (in == out && stride == 1) return;
    shortcut_ = register_module("shortcut", convolution(in, out, 1, stride));
    shortcut_bn_ = register_module("shortcut_bn", BatchNorm2d(out));
  }

  // The feature map, and CBAM's spatial map [B, 1, H, W] if there is one.
  std::pair<Tensor, Tensor> forward(const Tensor& x) {
    Tensor y = conv1_->forward(x);
    // Strides may have left one position of one picture.
    nn::check_batch_norm(y.size(0) * y.size(2) * y.size(3), is_training(), "the network");
    y = bn2_->forward(conv2_->forward(torch::relu(bn1_->forward(y))));
    Tensor map;
    if (cbam_) {
      nn::CbamGated gated = cbam_->gate(y);
      y = std::move(gated.out);
      map = std::move(gated.spatial_map);
    }
    return {torch::relu(y + (shortcut_ ? shortcut_bn_->forward(shortcut_->forward(x)) : x)), map};
  }

 private:
  Conv2d conv1_ = nullptr, conv2_ = nullptr, shortcut_ = nullptr;
  BatchNorm2d bn1_ = nullptr, bn2_ = nullptr, shortcut_bn_ = nullptr;
  nn::Cbam cbam_ = nullptr;
};

// ---- config.json ----

CnnConfig CnnConfig::from_json(const app::JsonKeys& j) {
  CnnConfig c;
  c.channels = j.size("num_channels");
  c.image = j.size("image_size");
  c.widths = j.sizes("hidden_sizes");
  if (c.widths.empty()) j.refuse("hidden_sizes", "a list with the channels of each stage");
  c.blocks = j.size("blocks");
  const std::string attention = j.text("attention");
  if (attention != "cbam" && attention != "none") j.refuse("attention", "\"cbam\" or \"none\"");
  c.cbam = attention == "cbam";
  c.reduction = j.size("reduction", c.reduction);
  c.strided_stem = j.flag("strided_stem");
  c.dropout = j.share("dropout", c.dropout);
  c.labels = app::labels_of(j);
  return c;
}

json CnnConfig::to_json() const {
  json j = {{"model_type", "heed_cnn"}, {"num_channels", channels},
            {"image_size", image},      {"hidden_sizes", widths},
            {"blocks", blocks},         {"attention", cbam ? "cbam" : "none"},
            {"reduction", reduction},   {"strided_stem", strided_stem},
            {"dropout", dropout}};
  app::put_labels(labels, j);
  return j;
}

// ---- The network ----

CnnModel::CnnModel(CnnConfig config) : config_(std::move(config)) {
  const auto& c = config_;
  nn::check_size(c.channels, "the network", "channels");
  nn::check_size(c.blocks, "the network", "blocks");
  nn::check_size(static_cast<int64_t>(c.widths.size()), "the network", "stages");
  for (const int64_t width : c.widths) nn::check_size(width, "the network", "width");
  nn::check_size(static_cast<int64_t>(c.labels.size()), "the network", "classes");

  int64_t in = c.widths.front();
  stem_ =
      register_module("stem", c.strided_stem ? convolution(c.channels, in, 7, 2) : convolution(c.channels, in, 3, 1));
  stem_bn_ = register_module("stem_bn", BatchNorm2d(in));
  const auto list = register_module("blocks", torch::nn::ModuleList());
  for (size_t stage = 0; stage < c.widths.size(); ++stage) {
    for (int64_t i = 0; i < c.blocks; ++i) {
      blocks_.push_back(std::make_shared<Block>(in, c.widths[stage], stage > 0 && i == 0 ? 2 : 1, c));
      list->push_back(blocks_.back());
      in = c.widths[stage];
    }
  }
  classifier_ = register_module("classifier", torch::nn::Linear(in, static_cast<int64_t>(c.labels.size())));
}

CnnOutput CnnModel::forward(const Tensor& pictures, bool want_maps) {
  nn::check_feature_map(pictures, config_.channels, "the network");
  if (want_maps && !config_.cbam) {
    throw Error("this model has no attention to look at; train one with --arch cnn-cbam or vit");
  }
  Tensor x = torch::relu(stem_bn_->forward(stem_->forward(pictures)));
  if (config_.strided_stem) x = torch::max_pool2d(x, 3, 2, 1);
  CnnOutput output;
  for (const auto& block : blocks_) {
    auto [features, map] = block->forward(x);
    x = std::move(features);
    if (want_maps) output.maps.push_back(map.detach().squeeze(1));
  }
  output.logits = classifier_->forward(nn::dropout(x.mean({2, 3}), config_.dropout, is_training()));
  return output;
}

// ---- The folder ----

std::shared_ptr<CnnModel> load_cnn(const std::string& dir) {
  const CnnConfig config = CnnConfig::from_json(app::read_config(dir, {"heed_cnn"}, kReader));
  const nn::SafeTensors file = app::read_weights(dir, numbers_of(config));
  const app::RandomStateGuard guard;
  const auto model = std::make_shared<CnnModel>(config);
  app::fill(*model, file, dir, names());
  model->eval();
  return model;
}

void save_cnn(const CnnModel& model, const std::string& dir) {
  app::save_model_folder(dir, model, names(), model.config().to_json());
}

}  // namespace heed::classify
