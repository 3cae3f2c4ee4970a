// A residual network that tells what is in a picture (He et al. 2016), with CBAM (Woo et al. 2018) in each block or
// without, to see what it is worth.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/json_keys.h"

namespace heed::classify {

// What config.json says, whose model_type is "heed_cnn". As they stand, for grey pictures of 28 x 28.
struct CnnConfig {
  int64_t channels = 1;                         // of the pictures
  int64_t image = 28;                           // pixels both ways, what it is trained on; other sizes are read, too
  std::vector<int64_t> widths = {32, 64, 128};  // channels of each stage; each but the first halves height and width
  int64_t blocks = 2;                           // of each stage
  bool cbam = true;                             // false: the same network without attention
  int64_t reduction = 8;                        // of CBAM's channel gate; the paper's 16 leaves 32 channels only 2
  bool strided_stem = false;  // begins with ResNet's 7x7 and maximum, to a quarter both ways; false: with a 3x3
  double dropout = 0.1;       // before the head; training only
  std::vector<std::string> labels = {};  // names of the classes

  static CnnConfig from_json(const app::JsonKeys& config);  // throws heed::Error naming the key
  nlohmann::json to_json() const;
};

struct CnnOutput {
  torch::Tensor logits;             // [B, classes]
  std::vector<torch::Tensor> maps;  // of each block CBAM's spatial map, [B, h, w] in (0, 1); if asked for, no gradient
};

// A block is relu(cbam(bn2(conv2(relu(bn1(conv1(x)))))) + shortcut(x)); behind the last one the mean over all
// positions, dropout and a linear layer. Modules: stem, stem_bn, blocks.N.{conv1, bn1, conv2, bn2, cbam, shortcut,
// shortcut_bn}, classifier.
class CnnModel : public torch::nn::Module {
 public:
  // Throws heed::Error for sizes that do not fit.
  explicit CnnModel(CnnConfig config);

  // pictures [B, C, H, W], prepared as the folder's preprocessor_config.json says (apps/pictures/preprocess.h). Without
  // CBAM there are no maps to ask for: heed::Error.
  CnnOutput forward(const torch::Tensor& pictures, bool want_maps = false);

  const CnnConfig& config() const { return config_; }

 private:
  class Block;

  CnnConfig config_;
  torch::nn::Conv2d stem_ = nullptr;
  torch::nn::BatchNorm2d stem_bn_ = nullptr;
  std::vector<std::shared_ptr<Block>> blocks_;
  torch::nn::Linear classifier_ = nullptr;
};

// Reads config.json and model.safetensors, in eval mode. Throws heed::Error for a folder of another task, one that is
// damaged, or files that are not of one model.
std::shared_ptr<CnnModel> load_cnn(const std::string& dir);

// Writes the two, each whole or not at all.
void save_cnn(const CnnModel& model, const std::string& dir);

}  // namespace heed::classify
