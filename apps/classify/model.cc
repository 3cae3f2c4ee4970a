// The networks behind one interface: attention as maps, heads, the folder.
#include "apps/classify/model.h"

#include <heed/attention.h>

#include <algorithm>
#include <utility>

#include "apps/model_folder.h"
#include "libtorch/adamw.h"

namespace heed::classify {
namespace {

using pictures::Preprocess;
using torch::Tensor;

// What is normalised by channel must have as many channels as the network reads.
void check_channels(const Preprocess& preprocess, int64_t channels) {
  const size_t means = preprocess.mean.size();
  if (means > 1 && static_cast<int64_t>(means) != channels) {
    throw Error("preprocessor_config.json has " + std::to_string(means) + " means and the model reads pictures of " +
                std::to_string(channels) + " channels; each channel has one, or there is one for all");
  }
  if (channels != 1 && channels != 3) {
    throw Error("the model reads pictures of " + std::to_string(channels) +
                " channels; pictures have 3, or 1 if they are grey");
  }
}

// The most heads that divide the width and have 64 numbers each at least, as ViT and DeiT do; of widths below DeiT's
// smallest, 192, 32 numbers, so that there are more than one or two.
int64_t heads_of(int64_t width) {
  int64_t heads = std::max<int64_t>(width / (width < 192 ? 32 : 64), 1);
  while (width % heads != 0) --heads;
  return heads;
}

CnnConfig cnn_config(const NetworkOptions& options, int64_t channels, int64_t side) {
  const int64_t width = options.width > 0 ? options.width : 32;
  CnnConfig c;
  c.channels = channels;
  c.image = side;
  c.widths = {width, 2 * width, 4 * width};
  if (options.depth > 0) c.blocks = options.depth;
  c.cbam = options.arch == "cnn-cbam";
  c.strided_stem = side > 64;
  c.dropout = options.dropout;
  return c;
}

VitConfig vit_config(const NetworkOptions& options, int64_t channels, int64_t side) {
  VitConfig c;
  nn::ViTOptions& e = c.encoder;
  e.hidden = options.width > 0 ? options.width : 192;
  e.layers = options.depth > 0 ? options.depth : 6;
  e.heads = heads_of(e.hidden);
  e.patch = options.patch > 0 ? options.patch : side > 64 ? 16 : 4;
  e.image = side;
  e.channels = channels;
  e.dropout = options.dropout;
  return c;
}

// Copies the tensors of the backbone from one network to another that differs from it in the head alone.
void copy_backbone(const std::vector<std::shared_ptr<torch::nn::Module>>& from,
                   const std::vector<std::shared_ptr<torch::nn::Module>>& to) {
  for (size_t i = 0; i < to.size(); ++i) nn::copy_into(nn::weights(*to[i]), nn::weights(*from[i]), "the model");
}

}  // namespace

Model::Model(std::shared_ptr<CnnModel> net, Preprocess preprocess)
    : cnn_(register_module("net", std::move(net))), preprocess_(std::move(preprocess)) {
  check_channels(preprocess_, channels());
}

Model::Model(std::shared_ptr<VitModel> net, Preprocess preprocess)
    : vit_(register_module("net", std::move(net))), preprocess_(std::move(preprocess)) {
  check_channels(preprocess_, channels());
}

Seen Model::forward(const Tensor& pictures, bool want_attention) {
  if (cnn_) {
    CnnOutput output = cnn_->forward(pictures, want_attention);
    return {std::move(output.logits), want_attention ? output.maps.back() : Tensor()};
  }
  Classified output = vit_->forward(pictures, want_attention);
  Tensor map;
  if (want_attention) {
    const int64_t rows = output.encoded.rows, columns = output.encoded.columns;
    const Tensor& rollout = output.encoded.attention.rollout;  // of all tokens, the patches last
    map = rollout.narrow(1, rollout.size(1) - rows * columns, rows * columns).reshape({-1, rows, columns});
  }
  return {std::move(output.logits), map};
}

std::string Model::arch() const { return vit_ ? "vit" : cnn_->config().cbam ? "cnn-cbam" : "cnn"; }

const std::vector<std::string>& Model::labels() const { return vit_ ? vit_->config().labels : cnn_->config().labels; }

int64_t Model::channels() const { return vit_ ? vit_->config().encoder.channels : cnn_->config().channels; }

std::vector<std::shared_ptr<torch::nn::Module>> Model::backbone() const {
  std::vector<std::shared_ptr<torch::nn::Module>> parts;
  const torch::nn::Module& net = vit_ ? static_cast<const torch::nn::Module&>(*vit_) : *cnn_;
  for (const auto& child : net.named_children()) {
    if (!child.key().ends_with("classifier")) parts.push_back(child.value());  // both networks' name for a head
  }
  return parts;
}

std::shared_ptr<Model> Model::with_labels(const std::vector<std::string>& labels) const {
  std::shared_ptr<Model> result;
  if (vit_) {
    VitConfig config = vit_->config();
    config.labels = labels;
    result = std::make_shared<Model>(std::make_shared<VitModel>(config), preprocess_);
  } else {
    CnnConfig config = cnn_->config();
    config.labels = labels;
    result = std::make_shared<Model>(std::make_shared<CnnModel>(config), preprocess_);
  }
  copy_backbone(backbone(), result->backbone());
  return result;
}

void Model::freeze_backbone() {
  frozen_ = true;
  for (const auto& part : backbone()) {
    for (Tensor& parameter : part->parameters()) parameter.requires_grad_(false);
  }
  train(is_training());
}

void Model::train(bool on) {
  torch::nn::Module::train(on);
  if (!frozen_) return;
  for (const auto& part : backbone()) part->eval();
}

void Model::save(const std::string& dir) const {
  vit_ ? save_vit(*vit_, dir) : save_cnn(*cnn_, dir);
  preprocess_.save(dir);
}

std::shared_ptr<Model> make_model(const NetworkOptions& options, int64_t channels, const Preprocess& preprocess,
                                  const std::vector<std::string>& labels) {
  if (!preprocess.resize || preprocess.resize->height != preprocess.resize->width || preprocess.resize->height < 1) {
    throw Error("a new model needs square pictures; set Preprocess::resize to equal height and width");
  }
  const int64_t side = preprocess.resize->height;
  if (options.arch == "vit") {
    VitConfig config = vit_config(options, channels, side);
    config.labels = labels;
    return std::make_shared<Model>(std::make_shared<VitModel>(config), preprocess);
  }
  if (options.arch != "cnn" && options.arch != "cnn-cbam") {
    throw Error("there is no network \"" + options.arch + "\"; there is cnn-cbam, cnn and vit");
  }
  CnnConfig config = cnn_config(options, channels, side);
  config.labels = labels;
  return std::make_shared<Model>(std::make_shared<CnnModel>(config), preprocess);
}

std::shared_ptr<Model> load_model(const std::string& dir) {
  const app::JsonKeys config = app::read_config(dir, {"heed_cnn", "vit", "deit"}, "heed classify");
  std::shared_ptr<Model> model;
  if (config.text("model_type") == "heed_cnn") {
    model = std::make_shared<Model>(load_cnn(dir), Preprocess::load(dir));
  } else {
    model = std::make_shared<Model>(load_vit(dir), Preprocess::load(dir));
  }
  model->eval();
  return model;
}

}  // namespace heed::classify
