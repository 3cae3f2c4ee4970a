// `heed convert`: a folder's pytorch_model.bin to the model.safetensors that everything here reads, and weights to
// smaller ones.
#pragma once

#include <cstdint>
#include <string>

#include "apps/program.h"

namespace heed::translate {

struct Converted {
  std::string path;                    // what was written
  int64_t tensors = 0, numbers = 0;    //
  int64_t copies = 0, recomputed = 0;  // left out: tied tensors but one of each, and positions
};

// Writes dir/model.safetensors, whole or not at all, from dir/pytorch_model.bin. Throws heed::Error if the one is there
// already, or the other is not or cannot be read.
Converted convert(const std::string& dir);

// Writes a second folder of the same model, its weights as `dtype` ("f16", "bf16" or "f32"), from dir's
// model.safetensors or, if there is none, its pytorch_model.bin. Throws heed::Error, and writes no config.json, if
// there is a model in `out` already, dir is none, or a weight is too large for f16.
Converted convert(const std::string& dir, const std::string& out, const std::string& dtype);

// Adds the command.
void add_convert(app::Program& program);

}  // namespace heed::translate
