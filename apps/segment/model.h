// A network that gives each pixel its class, whichever it is made of: what training, use and measuring need to know.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/pictures/datasets.h"
#include "apps/pictures/preprocess.h"
#include "apps/segment/segformer_model.h"
#include "apps/segment/unet_model.h"

namespace heed::segment {

// Where the network looked, as it stands for the picture: its rows and columns lie over the picture's.
struct AttentionMap {
  std::string name;   // "gate1", the finest, or "stage1"
  torch::Tensor map;  // [B, h, w], no gradient: a gate's coefficients in (0, 1), or how much weight the places of a
                      // stage received, as the mean over its blocks, heads and queries: a map adds up to 1
};

struct Seen {
  torch::Tensor logits;                 // [B, classes, h, w], coarser than the pictures: see nn::resized
  std::vector<AttentionMap> maps = {};  // if asked for
};

class Model : public torch::nn::Module {
 public:
  // The classes' names are the network's labels. Throws heed::Error if they are not.
  Model(std::shared_ptr<UnetModel> net, pictures::Preprocess preprocess, pictures::Classes classes);
  Model(std::shared_ptr<SegformerModel> net, pictures::Preprocess preprocess, pictures::Classes classes);

  // pictures [B, C, H, W], prepared as preprocess() says. Throws heed::Error for another shape, for sides below
  // least_side(), and for the attention of a network that has none.
  Seen forward(const torch::Tensor& pictures, bool want_attention = false);

  std::string arch() const;  // "unet-ag", "unet" or "segformer"
  int64_t channels() const;
  int64_t least_side() const;  // pixels, both ways, and the strides of all levels together
  bool has_attention() const { return arch() != "unet"; }
  const pictures::Preprocess& preprocess() const { return preprocess_; }
  const pictures::Classes& classes() const { return classes_; }  // and how masks hold them
  int64_t count() const { return static_cast<int64_t>(classes_.classes.size()); }

  // The same network with a new head, for these classes. Only the backbone's tensors are taken over, by copy.
  std::shared_ptr<Model> with_classes(const pictures::Classes& classes) const;

  // From now on only the classifier learns: the rest takes no gradient and stays in eval mode.
  void freeze_backbone();
  void train(bool on = true) override;

  // config.json, model.safetensors, preprocessor_config.json and classes.txt, each whole or not at all.
  void save(const std::string& dir) const;

 private:
  std::vector<std::shared_ptr<torch::nn::Module>> backbone() const;
  const std::vector<std::string>& labels() const;

  std::shared_ptr<UnetModel> unet_;  // one of the two
  std::shared_ptr<SegformerModel> segformer_;
  pictures::Preprocess preprocess_;
  pictures::Classes classes_;
  bool frozen_ = false;
};

// What a new network is like. The zeros stand for what suits it.
struct NetworkOptions {
  std::string arch = "unet-ag";  // or "unet", the same without attention, or "segformer"
  int64_t width = 0;             // unet: channels of the first level, each has twice as many as the one before; 32.
                                 // segformer: those of a first stage, in proportion B0's; 32
  int64_t depth = 0;             // unet: levels; 4. segformer: blocks of each stage; 2
  int64_t stem = 2;              // unet: see UnetConfig
  double dropout = 0.1;          // before the classifier
};

// A freshly initialised model (from torch's global generator) for pictures of any size, normalised from -1 to 1. Throws
// heed::Error for an unknown arch or sizes that do not fit.
std::shared_ptr<Model> make_model(const NetworkOptions& options, int64_t channels,
                                  const std::optional<pictures::Size>& resize, const pictures::Classes& classes);

// Reads a folder of ours, or of Hugging Face's SegFormer (segformer_model.h), in eval mode. A folder without
// classes.txt has its labels' numbers in masks, and what its config.json ignores. Throws heed::Error.
std::shared_ptr<Model> load_model(const std::string& dir);

}  // namespace heed::segment
