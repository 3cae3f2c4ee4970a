// A U-Net (Ronneberger, Fischer, Brox 2015) whose skip connections pass through attention gates (Oktay et al. 2018), or
// not, to see what these are worth.
#pragma once

#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/json_keys.h"
#include "libtorch/vision/gates.h"

namespace heed::segment {

// What config.json says, whose model_type is "heed_unet".
struct UnetConfig {
  int64_t channels = 3;                              // of the pictures
  std::vector<int64_t> widths = {32, 64, 128, 256};  // channels of each level; each but the first halves height and
                                                     // width
  int64_t blocks = 1;                                // of each level, on the way down and again on the way up
  int64_t stem = 2;      // the first level has a 1st, 2nd or 4th of the picture's height and width: every
                         // doubling is a quarter of the arithmetic
  bool gates = true;     // false: the same network without attention
  double dropout = 0.1;  // before the head; training only
  std::vector<std::string> labels = {};  // names of the classes

  static UnetConfig from_json(const app::JsonKeys& config);  // throws heed::Error naming the key
  nlohmann::json to_json() const;
};

struct UnetOutput {
  torch::Tensor logits;             // [B, classes, ceil(H / stem), ceil(W / stem)]
  std::vector<torch::Tensor> maps;  // coefficients of each gate in (0, 1), the finest first, [B, h, w]; if asked for,
                                    // no gradient
};

// Down: a level is `blocks` residual blocks relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), the first of stride 2.
// Up: the coarser level, which is the gate's signal, is brought to the finer one's size (bilinear), joined with what
// the gate lets through, and `blocks` blocks follow. Then dropout and a 1x1 convolution. Modules: stem.N, stem_bn.N,
// down.N, gates.N, up.N, classifier.
class UnetModel : public torch::nn::Module {
 public:
  // Throws heed::Error for sizes that do not fit.
  explicit UnetModel(UnetConfig config);

  // pictures [B, C, H, W] of any size, prepared as the folder's preprocessor_config.json says. Without gates there are
  // no maps to ask for: heed::Error.
  UnetOutput forward(const torch::Tensor& pictures, bool want_maps = false);

  int64_t strides() const;  // of all levels together
  const UnetConfig& config() const { return config_; }

 private:
  class Block;
  using Level = std::vector<std::shared_ptr<Block>>;

  UnetConfig config_;
  std::vector<torch::nn::Conv2d> stem_;
  std::vector<torch::nn::BatchNorm2d> stem_bn_;
  std::vector<Level> down_, up_;          // up_[i] makes level i of level i + 1
  std::vector<nn::AttentionGate> gates_;  // gates_[i] on level i
  torch::nn::Conv2d classifier_ = nullptr;
};

// Reads config.json and model.safetensors, in eval mode. Throws heed::Error for a folder of another task, one that is
// damaged, or files that are not of one model.
std::shared_ptr<UnetModel> load_unet(const std::string& dir);

// Writes the two, each whole or not at all.
void save_unet(const UnetModel& model, const std::string& dir);

}  // namespace heed::segment
