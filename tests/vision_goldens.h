// What the tests of vision models share: the folders that tests/data/vision_goldens.py made, edited copies of them, and
// folders of ours given to transformers.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "libtorch/safetensors.h"
#include "said.h"

namespace heed::tests {

using nlohmann::json;

// The same numbers as vision_goldens.py's.
inline torch::Tensor pixels(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  const torch::Tensor n = torch::arange(count, torch::kInt64);
  return ((n * n * 31 + n * 7919).remainder(251).to(torch::kFloat64) / 125 - 1).to(torch::kFloat32).reshape(shape);
}

inline json json_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  return json::parse(in);
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    static int made = 0;
    path = std::filesystem::temp_directory_path() /
           ("heed_vision_test_" + std::to_string(::getpid()) + "_" + std::to_string(made++));
    std::filesystem::create_directories(path);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

// The largest difference, as a share of the number where that is above 1.
inline double difference(const torch::Tensor& got, const torch::Tensor& expected) {
  if (got.sizes() != expected.sizes()) return 1e9;
  return ((got - expected).abs() / expected.abs().clamp_min(1)).max().item<double>();
}

using Logits = std::function<torch::Tensor(const torch::Tensor& pictures)>;

inline void expect_goldens(const std::filesystem::path& folder, const Logits& logits) {
  const auto shapes = json_of(folder / "goldens.json")["pictures"].get<std::vector<std::vector<int64_t>>>();
  ASSERT_FALSE(shapes.empty());
  const nn::SafeTensors tensors = nn::load_safetensors((folder / "goldens.safetensors").string());
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const torch::Tensor* expected = tensors.find("logits." + std::to_string(i));
    ASSERT_NE(expected, nullptr);
    EXPECT_LT(difference(logits(pixels(shapes[i])), *expected), 1e-5) << folder << ", pictures " << i;
  }
}

// A copy of a golden folder, and what loading says of it once it is edited. Each edit is undone.
class EditedFolder {
 public:
  EditedFolder(const std::filesystem::path& folder, std::function<void(const std::string& dir)> load)
      : load_(std::move(load)) {
    std::filesystem::copy(folder, folder_.path);
  }
  std::string after_config(const std::function<void(json&)>& edit) {
    const json before = json_of(path() / "config.json");
    json j = before;
    edit(j);
    std::ofstream(path() / "config.json") << j.dump();
    const std::string said = says();
    std::ofstream(path() / "config.json") << before.dump();
    return said;
  }
  std::string after_tensors(const std::function<void(nn::NamedTensors&)>& edit) {
    const std::string file = (path() / "model.safetensors").string();
    const nn::NamedTensors before = nn::load_safetensors(file).tensors;
    nn::NamedTensors tensors = before;
    edit(tensors);
    nn::save_safetensors(file, tensors);
    const std::string said = says();
    nn::save_safetensors(file, before);
    return said;
  }
  std::string says() {
    return error_of([&] { load_(folder_.path.string()); });
  }
  const std::filesystem::path& path() const { return folder_.path; }

 private:
  TemporaryFolder folder_;
  std::function<void(const std::string&)> load_;
};

inline torch::Tensor& named(nn::NamedTensors& tensors, const std::string& name) {
  for (auto& [key, tensor] : tensors) {
    if (key == name) return tensor;
  }
  ADD_FAILURE() << "no tensor " << name;
  return tensors.front().second;
}

// Runs tests/vision_roundtrip.py, which opens the folder with transformers and compares its logits with ours.
inline void expect_transformers_computes(const std::filesystem::path& folder, const Logits& logits,
                                         const std::vector<std::vector<int64_t>>& shapes) {
  torch::NoGradGuard no_grad;
  nn::NamedTensors expected;
  for (size_t i = 0; i < shapes.size(); ++i) {
    expected.emplace_back("pictures." + std::to_string(i), pixels(shapes[i]));
    expected.emplace_back("logits." + std::to_string(i), logits(pixels(shapes[i])));
  }
  const std::string file = (folder / "expected.safetensors").string();
  nn::save_safetensors(file, expected);
  const std::string command = std::string("OMP_NUM_THREADS=1 '") + std::getenv("HEED_TRANSFORMERS") +
                              "' '" HEED_SOURCE_DIR "/tests/vision_roundtrip.py' '" + folder.string() + "' '" + file +
                              "'";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

#define SKIP_WITHOUT_TRANSFORMERS()                                                             \
  if (const char* python = std::getenv("HEED_TRANSFORMERS"); python == nullptr || *python == 0) \
  GTEST_SKIP() << "set HEED_TRANSFORMERS to a Python that has transformers"

}  // namespace heed::tests
