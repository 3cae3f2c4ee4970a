// The safetensors file format (https://github.com/huggingface/safetensors, "Format"): named tensors and a little text.
#pragma once

#include <torch/types.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace heed::nn {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

struct SafeTensors {
  NamedTensors tensors;                         // in the order of the file's bytes
  std::map<std::string, std::string> metadata;  // the header's "__metadata__"

  const torch::Tensor* find(const std::string& name) const;  // nullptr if there is none
};

// Writes the tensors, whole or not at all (files.h). dtypes F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL. Equal contents
// give equal bytes whatever the order of the list: the file is sorted by element size, widest first, then by name, as
// Hugging Face's own writer does, so that every tensor is aligned. Strided tensors are written dense. Throws
// heed::Error for a name that is given twice or reserved, another dtype, or when writing fails.
void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata = {});

// Reads all tensors into memory of their own. Everything the header says is checked against the file before anything is
// allocated for it. Throws heed::Error, naming the file and the numbers, for a file that is missing, cut short, or not
// as the format says.
SafeTensors load_safetensors(const std::string& path);

}  // namespace heed::nn
