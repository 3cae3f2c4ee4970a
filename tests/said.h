// What an error said.
#pragma once

#include <gtest/gtest.h>
#include <heed/attention.h>

#include <functional>
#include <string>

namespace heed::tests {

// The words of the heed::Error that `run` throws; "no error" if it throws none.
inline std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

inline void expect_in(const std::string& part, const std::string& text) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in \"" << text << "\"";
}

}  // namespace heed::tests

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << "said: " << (text)
