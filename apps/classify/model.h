// A classifier of pictures, whichever network it is made of: what training, use and measuring need to know about it.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "apps/classify/cnn_model.h"
#include "apps/classify/vit_model.h"
#include "apps/pictures/preprocess.h"

namespace heed::classify {

struct Seen {
  torch::Tensor logits;     // [B, classes]
  torch::Tensor attention;  // [B, h, w], if asked for, no gradient: CBAM's last spatial map, or the rollout of ViT's
                            // layers, that is how much of each patch is in the answer
};

class Model : public torch::nn::Module {
 public:
  Model(std::shared_ptr<CnnModel> net, pictures::Preprocess preprocess);
  Model(std::shared_ptr<VitModel> net, pictures::Preprocess preprocess);

  // pictures [B, C, H, W], prepared as preprocess() says. Throws heed::Error for another shape, and for the attention
  // of a network that has none.
  Seen forward(const torch::Tensor& pictures, bool want_attention = false);

  std::string arch() const;                        // "cnn-cbam", "cnn" or "vit"
  const std::vector<std::string>& labels() const;  // names of the classes
  int64_t channels() const;                        // of the pictures
  bool has_attention() const { return arch() != "cnn"; }
  const pictures::Preprocess& preprocess() const { return preprocess_; }

  // The same network with a new head, for these classes. Only the backbone's tensors are taken over, by copy.
  std::shared_ptr<Model> with_labels(const std::vector<std::string>& labels) const;

  // From now on only the head learns: the rest takes no gradient and stays in eval mode, so that neither its dropout
  // nor its norms' statistics move.
  void freeze_backbone();
  void train(bool on = true) override;

  // config.json, model.safetensors and preprocessor_config.json, each whole or not at all.
  void save(const std::string& dir) const;

 private:
  std::vector<std::shared_ptr<torch::nn::Module>> backbone() const;

  std::shared_ptr<CnnModel> cnn_;  // one of the two
  std::shared_ptr<VitModel> vit_;
  pictures::Preprocess preprocess_;
  bool frozen_ = false;
};

// What a new network is like. The zeros stand for what suits the network and the pictures.
struct NetworkOptions {
  std::string arch = "cnn-cbam";  // or "cnn", the same without attention, or "vit"
  int64_t width = 0;              // cnn: channels of the first of three stages, each has twice as many as the one
                                  // before; 32. vit: of a token; 192
  int64_t depth = 0;              // cnn: blocks of each stage; 2. vit: layers; 6
  int64_t patch = 0;              // vit: pixels, both ways; 4, or 16 for pictures of more than 64
  double dropout = 0.1;           //
};

// A freshly initialised model (from torch's global generator) for square pictures of preprocess.resize's size. Throws
// heed::Error for an unknown arch or sizes that do not fit.
std::shared_ptr<Model> make_model(const NetworkOptions& options, int64_t channels,
                                  const pictures::Preprocess& preprocess, const std::vector<std::string>& labels);

// Reads a folder of ours, or of Hugging Face's ViT and DeiT (vit_model.h), in eval mode. Throws heed::Error.
std::shared_ptr<Model> load_model(const std::string& dir);

}  // namespace heed::classify
