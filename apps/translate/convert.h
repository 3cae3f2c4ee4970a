// `heed convert`: a folder's pytorch_model.bin to the model.safetensors that everything here reads.
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

// Adds the command.
void add_convert(app::Program& program);

}  // namespace heed::translate
