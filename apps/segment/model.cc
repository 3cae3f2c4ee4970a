// The networks behind one interface: attention as maps, heads, the folder.
#include "apps/segment/model.h"

#include <heed/attention.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "apps/model_folder.h"
#include "libtorch/adamw.h"
#include "libtorch/files.h"

namespace heed::segment {
namespace {

namespace fs = std::filesystem;
using pictures::Classes;
using pictures::Preprocess;
using torch::Tensor;

constexpr const char* kClasses = "classes.txt";

std::vector<std::string> names_of(const Classes& classes) {
  std::vector<std::string> names;
  for (const pictures::Class& c : classes.classes) names.push_back(c.name);
  return names;
}

void check(const Preprocess& preprocess, int64_t channels, const Classes& classes,
           const std::vector<std::string>& labels) {
  const size_t means = preprocess.mean.size();
  if (means > 1 && static_cast<int64_t>(means) != channels) {
    throw Error("preprocessor_config.json has " + std::to_string(means) + " means and the model reads pictures of " +
                std::to_string(channels) + " channels; each channel has one, or there is one for all");
  }
  if (channels != 1 && channels != 3) {
    throw Error("the model reads pictures of " + std::to_string(channels) +
                " channels; pictures have 3, or 1 if they are grey");
  }
  if (names_of(classes) != labels) {
    throw Error("config.json has " + std::to_string(labels.size()) + " classes and " + kClasses + " has " +
                std::to_string(classes.classes.size()) +
                ", or they have other names; the two files are not of one model");
  }
}

Classes numbered(const std::vector<std::string>& labels, int64_t ignored) {
  Classes classes;
  for (size_t i = 0; i < labels.size(); ++i) classes.classes.push_back({labels[i], {}, static_cast<int64_t>(i)});
  if (ignored >= static_cast<int64_t>(labels.size()) && ignored <= 65535) {
    classes.ignored.push_back({"ignored", {}, ignored});
  }
  return classes;
}

}  // namespace

Model::Model(std::shared_ptr<UnetModel> net, Preprocess preprocess, Classes classes)
    : unet_(register_module("net", std::move(net))), preprocess_(std::move(preprocess)), classes_(std::move(classes)) {
  check(preprocess_, channels(), classes_, labels());
}

Model::Model(std::shared_ptr<SegformerModel> net, Preprocess preprocess, Classes classes)
    : segformer_(std::move(net)), preprocess_(std::move(preprocess)), classes_(std::move(classes)) {
  register_module("net", segformer_->net);
  check(preprocess_, channels(), classes_, labels());
}

Seen Model::forward(const Tensor& pictures, bool want_attention) {
  if (unet_) {
    UnetOutput output = unet_->forward(pictures, want_attention);
    Seen seen{std::move(output.logits)};
    for (size_t i = 0; i < output.maps.size(); ++i) {
      seen.maps.push_back({"gate" + std::to_string(i + 1), std::move(output.maps[i])});
    }
    return seen;
  }
  nn::SegformerOutput output = segformer_->net->forward(pictures, want_attention);
  Seen seen{std::move(output.logits)};
  for (size_t i = 0; i < output.received.size(); ++i) {
    seen.maps.push_back({"stage" + std::to_string(i + 1), output.received[i].mean(torch::IntArrayRef({0, 2}))});
  }
  return seen;
}

std::string Model::arch() const { return segformer_ ? "segformer" : unet_->config().gates ? "unet-ag" : "unet"; }

int64_t Model::channels() const { return segformer_ ? segformer_->config.options.channels : unet_->config().channels; }

int64_t Model::least_side() const {
  if (unet_) return unet_->strides();
  int64_t side = 1, least = 1;
  for (const nn::SegformerStageOptions& stage : segformer_->config.options.stages) {
    side *= stage.stride;
    least = std::max(least, side * stage.reduction);
  }
  return least;
}

const std::vector<std::string>& Model::labels() const {
  return segformer_ ? segformer_->config.labels : unet_->config().labels;
}

std::vector<std::shared_ptr<torch::nn::Module>> Model::backbone() const {
  std::vector<std::shared_ptr<torch::nn::Module>> parts;
  const auto take = [&](const torch::nn::Module& net) {
    for (const auto& child : net.named_children()) {
      if (child.key() != "classifier" && child.key() != "decode_head") parts.push_back(child.value());
    }
  };
  if (unet_) {
    take(*unet_);
  } else {
    take(*segformer_->net);
    take(*segformer_->net->decode_head);
  }
  return parts;
}

std::shared_ptr<Model> Model::with_classes(const Classes& classes) const {
  std::shared_ptr<Model> result;
  if (unet_) {
    UnetConfig config = unet_->config();
    config.labels = names_of(classes);
    result = std::make_shared<Model>(std::make_shared<UnetModel>(config), preprocess_, classes);
  } else {
    SegformerConfig config = segformer_->config;
    config.labels = names_of(classes);
    result = std::make_shared<Model>(std::make_shared<SegformerModel>(config), preprocess_, classes);
  }
  const auto from = backbone(), to = result->backbone();
  for (size_t i = 0; i < to.size(); ++i) nn::copy_into(nn::weights(*to[i]), nn::weights(*from[i]), "the model");
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
  unet_ ? save_unet(*unet_, dir) : save_segformer(*segformer_, dir);
  preprocess_.save(dir);
  nn::write_file((fs::path(dir) / kClasses).string(), pictures::classes_text(classes_));
}

std::shared_ptr<Model> make_model(const NetworkOptions& options, int64_t channels,
                                  const std::optional<pictures::Size>& resize, const Classes& classes) {
  Preprocess preprocess = Preprocess::defaults(Preprocess::Kind::segformer);
  preprocess.resize = resize;
  preprocess.mean = preprocess.std = std::vector<double>(static_cast<size_t>(channels), 0.5);
  if (options.arch == "segformer") {
    SegformerConfig config;
    nn::SegformerOptions& o = config.options;
    o.channels = channels;
    o.classifier_dropout = options.dropout;
    for (nn::SegformerStageOptions& stage : o.stages) {
      // Heads of B0 are 32 numbers wide.
      if (options.width > 0) {
        const int64_t width = stage.heads * options.width;
        stage.hidden = width;
      }
      if (options.depth > 0) stage.depth = options.depth;
    }
    config.labels = names_of(classes);
    return std::make_shared<Model>(std::make_shared<SegformerModel>(config), preprocess, classes);
  }
  if (options.arch != "unet" && options.arch != "unet-ag") {
    throw Error("there is no network \"" + options.arch + "\"; there is unet-ag, unet and segformer");
  }
  UnetConfig config;
  config.channels = channels;
  config.widths.clear();
  const int64_t levels = options.depth > 0 ? options.depth : 4;
  if (levels < 2 || levels > 8) {
    throw Error("depth is " + std::to_string(levels) + "; a U-Net has from 2 to 8 levels");
  }
  for (int64_t i = 0; i < levels; ++i) config.widths.push_back((options.width > 0 ? options.width : 32) << i);
  config.stem = options.stem;
  config.gates = options.arch == "unet-ag";
  config.dropout = options.dropout;
  config.labels = names_of(classes);
  return std::make_shared<Model>(std::make_shared<UnetModel>(config), preprocess, classes);
}

std::shared_ptr<Model> load_model(const std::string& dir) {
  const app::JsonKeys config = app::read_config(dir, {"heed_unet", "segformer"}, "heed segment");
  const std::string path = (fs::path(dir) / kClasses).string();
  std::error_code ignored;
  const bool listed = fs::exists(path, ignored);
  std::shared_ptr<Model> model;
  if (config.text("model_type") == "heed_unet") {
    std::shared_ptr<UnetModel> net = load_unet(dir);
    const Classes classes = listed ? pictures::read_classes(path) : numbered(net->config().labels, -1);
    model = std::make_shared<Model>(std::move(net), Preprocess::load(dir), classes);
  } else {
    auto net = std::make_shared<SegformerModel>(load_segformer(dir));
    const Classes classes = listed ? pictures::read_classes(path) : numbered(net->config.labels, net->config.ignored);
    model = std::make_shared<Model>(std::move(net), Preprocess::load(dir), classes);
  }
  model->eval();
  return model;
}

}  // namespace heed::segment
