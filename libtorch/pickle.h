// Reads what torch.save writes of a state dict (pytorch_model.bin), without Python and without running anything.
#pragma once

#include <string>

#include "libtorch/safetensors.h"

namespace heed::nn {

// The tensors of a state dict, in its order: from the zip file that PyTorch writes since 1.6 and from the stream it
// wrote before. Tensors that are one in the file share memory here. A pickle is a program; the machine that reads it
// here knows text, numbers, tuples, lists, dicts and tensors, and refuses every other name a file may ask for. Throws
// heed::Error, naming the file, for one that is missing, damaged (zip files carry checksums), or holds anything else.
NamedTensors load_pickle(const std::string& path);

}  // namespace heed::nn
