// The safetensors format: round trip, golden bytes, and files that lie.
#include "libtorch/safetensors.h"

#include <gtest/gtest.h>
#include <heed/attention.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "libtorch/files.h"
#include "said.h"

namespace fs = std::filesystem;
using namespace heed::nn;

namespace {

class SafeTensorsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "heed-safetensors-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    path_ = (dir_ / "t.safetensors").string();
  }
  void TearDown() override { fs::remove_all(dir_); }

  // Thousands of damaged files: without the fsync of write_file, and that which ext4 does for a truncated file.
  void put(const std::string& bytes) const {
    fs::remove(path_);
    std::ofstream(path_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  // The message load gives for a file of these bytes; empty if it loads.
  std::string error_of_bytes(const std::string& bytes) {
    put(bytes);
    try {
      load_safetensors(path_);
    } catch (const heed::Error& error) {
      EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
      return error.what();
    }
    return "";
  }
  std::string error_of(const std::string& header, size_t data_bytes) {
    return error_of_bytes(file(header, std::string(data_bytes, '\0')));
  }
  static std::string file(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
  }

  fs::path dir_;
  std::string path_;
};

TEST_F(SafeTensorsTest, RoundTripOfEveryDtype) {
  torch::manual_seed(1);
  NamedTensors tensors;
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kFloat16, torch::kBFloat16, torch::kInt64,
                           torch::kInt32, torch::kInt16, torch::kInt8, torch::kUInt8, torch::kBool}) {
    tensors.emplace_back(std::string("t.") + c10::toString(dtype), (torch::randn({3, 5}) * 10).to(dtype));
  }
  tensors.emplace_back("scalar", torch::tensor(2.5));
  tensors.emplace_back("empty", torch::empty({0, 7}));
  tensors.emplace_back("strided", torch::randn({4, 6}).t());
  tensors.emplace_back("quote \" \\ \n ü", torch::arange(5));
  save_safetensors(path_, tensors, {{"format", "pt"}, {"note", "ü \"quoted\""}});
  const SafeTensors back = load_safetensors(path_);
  EXPECT_EQ(back.tensors.size(), tensors.size());
  EXPECT_EQ(back.metadata.at("note"), "ü \"quoted\"");
  for (const auto& [name, tensor] : tensors) {
    const auto* found = back.find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(found->sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(torch::equal(*found, tensor)) << name;
  }
  EXPECT_EQ(back.find("nobody"), nullptr);

  const std::string bytes = read_file(path_);
  std::reverse(tensors.begin(), tensors.end());
  save_safetensors(path_, tensors, {{"format", "pt"}, {"note", "ü \"quoted\""}});
  EXPECT_EQ(read_file(path_), bytes) << "the order of the list must not matter";
}

// As Hugging Face's writer gives them: metadata first, widest dtype first, then names; the header padded with spaces.
TEST_F(SafeTensorsTest, GoldenBytes) {
  const auto a = torch::tensor({1.0f, -2.0f}), b = torch::tensor({1, 2}, torch::kUInt8);
  const auto c = torch::tensor({3.0f}).reshape({1, 1});
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("c":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]},"b":{"dtype":"U8","shape":[2],"data_offsets":[12,14]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  std::string data("\x00\x00\x80\x3f\x00\x00\x00\xc0\x00\x00\x40\x40\x01\x02", 14);
  save_safetensors(path_, {{"b", b}, {"c", c}, {"a", a}}, {{"format", "pt"}});
  EXPECT_EQ(read_file(path_), file(padded, data));

  EXPECT_EQ(error_of_bytes(file(header, data)), "") << "an unpadded header is good, too";
  const SafeTensors back = load_safetensors(path_);
  EXPECT_TRUE(torch::equal(*back.find("a"), a));
  EXPECT_TRUE(torch::equal(*back.find("b"), b));
  EXPECT_TRUE(torch::equal(*back.find("c"), c));
}

TEST_F(SafeTensorsTest, EveryTruncationIsAnError) {
  save_safetensors(path_, {{"a", torch::ones({2, 3})}, {"b", torch::ones({3}, torch::kInt64)}}, {{"format", "pt"}});
  const std::string whole = read_file(path_);
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_NE(error_of_bytes(whole.substr(0, n)), "") << n;
  EXPECT_SAYS(error_of_bytes(whole + "x"), "49 are there");
  EXPECT_EQ(error_of_bytes(whole), "");
}

TEST_F(SafeTensorsTest, RandomDamageNeverCrashes) {
  save_safetensors(path_, {{"a", torch::ones({2, 3})}, {"b", torch::ones({3}, torch::kBool)}}, {{"format", "pt"}});
  const std::string whole = read_file(path_);
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = whole;
    for (int k = 0; k <= round % 3; ++k) bytes[random() % (whole.size() - 20)] = static_cast<char>(random());
    put(bytes);
    try {
      load_safetensors(path_);
    } catch (const heed::Error&) {
    }
  }
}

TEST_F(SafeTensorsTest, HeadersThatLie) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"x":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_EQ(error_of(one("F32", "[2]", "[0,8]"), 8), "");
  EXPECT_EQ(error_of("{}", 0), "");
  EXPECT_SAYS(error_of_bytes("1234567"), "7 bytes");
  EXPECT_SAYS(error_of_bytes(std::string(8, '\xff') + "{}"), "18446744073709551615");
  EXPECT_SAYS(error_of_bytes(std::string("\x09\0\0\0\0\0\0\0{}", 10)), "claims 9 bytes, and 2 are there");
  EXPECT_SAYS(error_of("[1]", 0), "does not begin with '{'");
  EXPECT_SAYS(error_of("{\"x\":", 0), "not JSON");
  EXPECT_SAYS(error_of("{\"x\":7}", 0), "no description");
  EXPECT_SAYS(error_of("{\"x\":{\"dtype\":\"F32\",\"shape\":[]}}", 4), "data_offsets");
  EXPECT_SAYS(error_of(one("F33", "[2]", "[0,8]"), 8), "F33");
  EXPECT_SAYS(error_of(one("F32", "[-2]", "[0,8]"), 8), "-2");
  EXPECT_SAYS(error_of(one("F32", "[2.0]", "[0,8]"), 8), "2.0");
  EXPECT_SAYS(error_of(one("F32", "[[2]]", "[0,8]"), 8), "[2]");
  EXPECT_SAYS(error_of(one("F32", "2", "[0,8]"), 8), "not a list");
  EXPECT_SAYS(error_of(one("F32", "[4294967296,4294967296]", "[0,8]"), 8), "no memory holds");
  EXPECT_SAYS(error_of(one("F32", "[9223372036854775807,0]", "[0,0]"), 0), "no memory holds");
  EXPECT_SAYS(error_of(one("F32", "[18446744073709551616]", "[0,8]"), 8), "size");
  EXPECT_SAYS(error_of(one("F32", "[1000000000000]", "[0,4000000000000]"), 8), "of 8");
  EXPECT_SAYS(error_of(one("F32", "[3]", "[0,8]"), 8), "takes 8 bytes; dtype F32 and shape [3] need 12");
  EXPECT_SAYS(error_of(one("F32", "[2]", "[8,0]"), 8), "bytes 8 to 0");
  EXPECT_SAYS(error_of(one("F32", "[2]", "[0,8,9]"), 8), "a begin and an end");
  EXPECT_SAYS(error_of(one("F32", "[2]", "[0,16]"), 8), "0 to 16 of 8");
  EXPECT_SAYS(error_of(one("F32", "[2]", "[4,12]"), 12), "begins at byte 4");
  EXPECT_SAYS(error_of(one("F32", "[2]", "[0,8]"), 12), "take 8 bytes, and 12 are there");
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  EXPECT_SAYS(error_of("{" + a + R"(,"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6), "begins at byte 2");
  EXPECT_SAYS(error_of("{" + a + "," + a + "}", 4), "twice");
  EXPECT_SAYS(error_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}})", 4), "twice");
  EXPECT_SAYS(error_of(R"({"__metadata__":{"k":7}})", 0), "\"k\"");
  EXPECT_SAYS(error_of("{\"x\":" + std::string(100000, '['), 0), "nested");
  EXPECT_SAYS(error_of_bytes(file(one("BOOL", "[2]", "[0,2]"), "\x01\x02")), "byte 2");
}

TEST_F(SafeTensorsTest, WhatCannotBeWritten) {
  const auto error = [&](const NamedTensors& tensors) -> std::string {
    try {
      save_safetensors(path_, tensors);
    } catch (const heed::Error& e) {
      return e.what();
    }
    return "";
  };
  const auto t = torch::ones({2});
  EXPECT_SAYS(error({{"a", t}, {"a", t}}), "twice");
  EXPECT_SAYS(error({{"__metadata__", t}}), "format keeps");
  EXPECT_SAYS(error({{"a", torch::Tensor()}}), "not defined");
  EXPECT_SAYS(error({{"a", t.to(torch::kComplexFloat)}}), "ComplexFloat");
  EXPECT_SAYS(error({{"a", t.to_sparse()}}), "dense");
  EXPECT_SAYS(error({{"\xff", t}}), "UTF-8");
  EXPECT_FALSE(fs::exists(path_));
  EXPECT_THROW(load_safetensors(path_), heed::Error);
  EXPECT_THROW(load_safetensors(dir_.string()), heed::Error);
}

}  // namespace
