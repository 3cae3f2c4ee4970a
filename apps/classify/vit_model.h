// Vision Transformers that tell what is in a picture: Hugging Face's ViTForImageClassification,
// DeiTForImageClassification and DeiTForImageClassificationWithTeacher, as folders of theirs and ours.
#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/json_keys.h"
#include "libtorch/vision/vit.h"

namespace heed::classify {

// What config.json says. A model_type "deit" is one whose encoder has a distillation token; DeiT's own without one are
// "vit".
struct VitConfig {
  nn::ViTOptions encoder;
  bool teacher = false;             // two heads, of CLS and of the distillation token, whose mean is the answer
  std::vector<std::string> labels;  // names of the classes

  static VitConfig from_json(const app::JsonKeys& config);  // throws heed::Error naming the key
  nlohmann::json to_json() const;                           // with the keys of transformers 4, which 5 reads as well
};

struct Classified {
  torch::Tensor logits;   // [B, classes]
  nn::ViTOutput encoded;  // with attention if asked for
};

// The encoder and its head: classifier, or with a teacher cls_classifier and distillation_classifier.
class VitModel : public torch::nn::Module {
 public:
  explicit VitModel(VitConfig config);

  // pictures [B, C, H, W], prepared as the folder's preprocessor_config.json says (apps/pictures/preprocess.h).
  Classified forward(const torch::Tensor& pictures, bool want_attention = false);

  const VitConfig& config() const { return config_; }

 private:
  VitConfig config_;
  nn::ViT encoder_ = nullptr;
  torch::nn::Linear classifier_ = nullptr;
  torch::nn::Linear distillation_classifier_ = nullptr;
};

// Reads config.json and model.safetensors (F32, F16 or BF16, names of transformers 4 or 5), in eval mode. Throws
// heed::Error for a folder of another task, one that is damaged, or files that are not of one model.
std::shared_ptr<VitModel> load_vit(const std::string& dir);

// Writes the two, so that transformers opens them; each whole or not at all.
void save_vit(const VitModel& model, const std::string& dir);

}  // namespace heed::classify
