// `heed demo`: everything once, on text this machine downloads for itself, and a page to look at.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "apps/translate/pairs.h"

namespace heed::app {

struct Program;

struct DemoOptions {
  std::string out = "demo";  // the folder of index.html
  std::string work;          // downloads and the model; empty: out/work
  double minutes = 5.25;     // of training, all tasks together
  uint64_t seed = 1;
};

// Prints its progress to standard output and error. Returns the program's exit code; throws heed::Error.
int demo(const DemoOptions& options);

// `count` pairs whose source has 3 to 10 words, the first in the order of a hash of the source: chosen by nobody, and
// the same on every machine.
std::vector<translate::Pair> choose_examples(std::span<const translate::Pair> pairs, size_t count);

void add_demo(Program& program);

}  // namespace heed::app
