// A page under docs/ that is what a test found: the test fails if it is not, and writes it with --page=FILE. Its
// program has the main() below.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

namespace heed::testing {

// The FILE of --page=FILE, or nothing.
inline std::string& page_to_write() {
  static std::string file;
  return file;
}

// program: compose_test, ...; name: features.md, ...
inline void expect_page(const std::string& text, const std::string& program, const std::string& name) {
  if (!page_to_write().empty()) {
    std::ofstream(page_to_write()) << text;
    return;
  }
  std::ifstream file(HEED_SOURCE_DIR "/docs/" + name);
  std::stringstream said;
  said << file.rdbuf();
  EXPECT_EQ(said.str(), text) << "write it anew: build/tests/" << program << " --page=docs/" << name;
}

inline int run_tests(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const std::string option = "--page=";
  for (int x = 1; x < argc; ++x)
    if (const std::string arg = argv[x]; arg.rfind(option, 0) == 0) page_to_write() = arg.substr(option.size());
  return RUN_ALL_TESTS();
}

}  // namespace heed::testing
