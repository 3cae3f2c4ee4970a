// A model folder in Hugging Face's layout, config.json and model.safetensors, whose tensors have other names than the
// module's and, by the release of transformers that wrote them, two kinds of names.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/ivalue.h>  // first: without it Clang in C++20 refuses LibTorch 1.13's other headers
#include <torch/nn/module.h>
#include <torch/types.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <vector>

#include "apps/json_keys.h"
#include "libtorch/safetensors.h"
#include "libtorch/transformer.h"

namespace heed::app {

// The config.json of a folder. Throws heed::Error if there is none, or its model_type is none of `model_types`;
// `reader` is who says so ("heed classify").
JsonKeys read_config(const std::string& dir, const std::vector<std::string>& model_types, const std::string& reader);

// An activation function by its name, gelu if there is none.
nn::Activation activation_of(const JsonKeys& config, const char* key);

// The names of the classes, by number: id2label, or LABEL_0, LABEL_1, ... as transformers makes them up when there is
// none, num_labels of them or 2.
std::vector<std::string> labels_of(const JsonKeys& config);
void put_labels(const std::vector<std::string>& labels, nlohmann::json& config);  // as id2label and label2id

// A rule for names: what matches `ours` in the name of a module's parameter or buffer is called `v4` in files written
// by transformers 4, and in nearly all there are (5 writes them, too, unless told otherwise), and `v5` inside of
// transformers 5. Both may refer to groups ($1).
struct Renaming {
  std::regex ours;
  std::string v4, v5;
};

struct TensorNames {
  std::vector<Renaming> rules;  // each applied to what those before it have made
  std::regex spare;             // tensors that a file may have beside the module's, and nobody needs

  std::string v4(std::string name) const;
  std::string v5(std::string name) const;
};

// The folder's model.safetensors. Throws heed::Error if there is none or config.json describes a model far larger than
// the file, of so many `numbers`: a damaged one must not ask for terabytes.
nn::SafeTensors read_weights(const std::string& dir, double numbers);

// Copies the tensors of the file, in F32, F16 or BF16 and under either name, into the module's parameters and buffers.
// Throws heed::Error if one is missing, has another shape, or is left over.
void fill(torch::nn::Module& module, const nn::SafeTensors& file, const std::string& dir, const TensorNames& names);

// Writes model.safetensors under the v4 names and then config.json, each whole or not at all, making the folder.
void save_model_folder(const std::string& dir, const torch::nn::Module& module, const TensorNames& names,
                       const nlohmann::json& config);

// Puts torch's generator back: loading must not change what is drawn after it.
class RandomStateGuard {
 public:
  RandomStateGuard();
  ~RandomStateGuard();
  RandomStateGuard(const RandomStateGuard&) = delete;
  RandomStateGuard& operator=(const RandomStateGuard&) = delete;

 private:
  at::Generator generator_;
  torch::Tensor state_;
};

}  // namespace heed::app
