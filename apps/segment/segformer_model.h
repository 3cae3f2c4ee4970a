// SegFormers that give each pixel of a picture its class: Hugging Face's SegformerForSemanticSegmentation, as folders
// of theirs and ours.
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/json_keys.h"
#include "libtorch/vision/segformer.h"

namespace heed::segment {

// What config.json says. Its layer_norm_eps is not what the model computes with: see SegformerOptions.
struct SegformerConfig {
  nn::SegformerOptions options;     // whose `classes` follow the labels
  std::vector<std::string> labels;  // names of the classes
  int64_t ignored = 255;            // the number of no class, for pixels of a mask that do not count in training

  static SegformerConfig from_json(const app::JsonKeys& config);  // throws heed::Error naming the key
  nlohmann::json to_json() const;                                 // with the keys of transformers 4, which 5 reads, too
};

struct SegformerModel {
  explicit SegformerModel(SegformerConfig config);

  SegformerConfig config;
  nn::Segformer net = nullptr;
};

// Reads config.json and model.safetensors (F32, F16 or BF16, names of transformers 4 or 5), in eval mode. Throws
// heed::Error for a folder of another task, one that is damaged, or files that are not of one model.
SegformerModel load_segformer(const std::string& dir);

// Writes the two, so that transformers opens them; each whole or not at all.
void save_segformer(const SegformerModel& model, const std::string& dir);

}  // namespace heed::segment
