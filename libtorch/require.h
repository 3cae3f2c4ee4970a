// Options that must fit. Needs no LibTorch.
#pragma once

#include <heed/attention.h>

#include <sstream>

namespace heed::nn {

// Throws heed::Error, "WHAT is VALUE; RULE", unless it is good.
template <class T>
void require(bool good, const char* what, T value, const char* rule) {
  if (good) return;
  std::ostringstream text;
  text << what << " is " << value << "; " << rule;
  throw Error(text.str());
}

}  // namespace heed::nn
