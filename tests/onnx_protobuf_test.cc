// The reader of ONNX files: all the ways a tensor is written, and bytes that are cut off, wrong or garbage.
#include "onnx_protobuf.h"

#include <gtest/gtest.h>

#include <random>

namespace heed::onnx {
namespace {

using Message = std::vector<uint8_t>;

void varint(Message& to, uint64_t x) {
  for (; x > 127; x >>= 7) to.push_back(static_cast<uint8_t>(x | 128));
  to.push_back(static_cast<uint8_t>(x));
}
void number(Message& to, int field, uint64_t x) {
  varint(to, field << 3);
  varint(to, x);
}
void bytes(Message& to, int field, const Message& x) {
  varint(to, field << 3 | 2);
  varint(to, x.size());
  to.insert(to.end(), x.begin(), x.end());
}
void text(Message& to, int field, const std::string& x) { bytes(to, field, {x.begin(), x.end()}); }
template <class T>
Message raw(const std::vector<T>& values) {
  Message m(values.size() * sizeof(T));
  std::memcpy(m.data(), values.data(), m.size());
  return m;
}
Message tensor(const std::vector<int64_t>& dims, int type, int field, const Message& data) {
  Message m;
  for (const int64_t d : dims) number(m, 1, d);
  number(m, 2, type);
  text(m, 8, "name");
  bytes(m, field, data);
  return m;
}

TEST(Tensor, EveryWayToWriteOne) {
  std::string name;
  const Array a = parse_tensor(tensor({2, 1, 3}, kFloat, 9, raw<float>({1, -2, 3.5f, 0, 1e30f, -0.25f})), &name);
  EXPECT_EQ(name, "name");
  EXPECT_EQ(a.dims, (std::vector<int64_t>{2, 1, 3}));
  EXPECT_EQ(a.values, (std::vector<double>{1, -2, 3.5, 0, 1e30f, -0.25}));
  EXPECT_EQ(parse_tensor(tensor({2}, kFloat, 4, raw<float>({0.5f, 20}))).values, (std::vector<double>{0.5, 20}));
  EXPECT_EQ(parse_tensor(tensor({2}, kDouble, 10, raw<double>({0.1, -20}))).values, (std::vector<double>{0.1, -20}));
  EXPECT_EQ(parse_tensor(tensor({2}, kDouble, 9, raw<double>({0.1, -20}))).values, (std::vector<double>{0.1, -20}));
  EXPECT_EQ(parse_tensor(tensor({2}, kInt64, 9, raw<int64_t>({-5, 7}))).values, (std::vector<double>{-5, 7}));
  EXPECT_EQ(parse_tensor(tensor({3}, kBool, 9, {1, 0, 1})).values, (std::vector<double>{1, 0, 1}));
  EXPECT_EQ(parse_tensor(tensor({2}, kHalf, 9, raw<uint16_t>({0x3C00, 0xC000}))).values, (std::vector<double>{1, -2}));
  EXPECT_EQ(parse_tensor(tensor({1}, kBfloat, 9, raw<uint16_t>({0x3F80}))).values, (std::vector<double>{1}));
  Message packed;
  for (const int64_t x : {-1, 300}) varint(packed, static_cast<uint64_t>(x));
  EXPECT_EQ(parse_tensor(tensor({2}, kInt64, 7, packed)).values, (std::vector<double>{-1, 300}));
  EXPECT_EQ(parse_tensor(tensor({2}, kInt32, 5, packed)).values, (std::vector<double>{-1, 300}));
  Message loose;  // dims packed, values one by one, a field we do not know
  bytes(loose, 1, {2});
  number(loose, 2, kInt64);
  number(loose, 99, 5);
  number(loose, 7, 4);
  number(loose, 7, 5);
  EXPECT_EQ(parse_tensor(loose).values, (std::vector<double>{4, 5}));
  Message scalar;
  number(scalar, 2, kFloat);
  bytes(scalar, 4, raw<float>({3}));
  EXPECT_EQ(parse_tensor(scalar).values, (std::vector<double>{3}));
  EXPECT_TRUE(parse_tensor(tensor({0, 5}, kFloat, 9, {})).values.empty());
}

std::string said(const Message& m) {
  try {
    parse_tensor(m);
  } catch (const Malformed& e) {
    return e.what();
  }
  return "nothing";
}

TEST(Tensor, WhatCannotBe) {
  EXPECT_EQ(said(tensor({4}, kFloat, 9, raw<float>({1, 2, 3}))),
            "a tensor of 4 elements of 4 bytes has data of 12 bytes");
  EXPECT_EQ(said(tensor({1}, kFloat, 9, {1, 2, 3, 4, 5})), "a tensor of 1 elements of 4 bytes has data of 5 bytes");
  EXPECT_EQ(said(tensor({4}, kFloat, 4, raw<float>({1, 2, 3}))), "a tensor of 4 elements has data for 3");
  EXPECT_EQ(said(tensor({-1}, kFloat, 9, {})), "a tensor has a size of -1");
  EXPECT_EQ(said(tensor({1 << 20, 1 << 20}, kFloat, 9, {})), "a tensor has more than 2^31 elements");
  EXPECT_EQ(said(tensor({1}, 8, 9, {0})), "element type 8 is not one of those read here");
  EXPECT_EQ(said({}), "element type 0 is not one of those read here");
  Message two = tensor({1}, kFloat, 9, raw<float>({1}));
  bytes(two, 4, raw<float>({1}));
  EXPECT_EQ(said(two), "a tensor has its data in two places");
  Message elsewhere = tensor({1}, kFloat, 9, raw<float>({1}));
  number(elsewhere, 14, 1);
  EXPECT_EQ(said(elsewhere), "a tensor's data is in another file");
  EXPECT_EQ(said({0x4A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 1}), "a field of 4294967295 bytes has 1 left");
  EXPECT_EQ(said({8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1}),
            "a number has more than 10 bytes");
  EXPECT_EQ(said({0x0B}), "field 1 has wire type 3, which there is not");
  EXPECT_EQ(said({0x00, 0x00}), "a field has number 0");
  EXPECT_EQ(said({0x09, 0, 0, 0, 0, 0, 0, 0, 0}), "field 1 has another wire type than its own");
}

// A model: y = x + bias in a graph attribute.
Message model() {
  Message attribute, node, graph, inner, value, add, all;
  text(value, 1, "x");
  text(add, 1, "x");
  text(add, 1, "name");
  text(add, 2, "y");
  text(add, 4, "Add");
  bytes(inner, 1, add);
  bytes(inner, 5, tensor({1}, kFloat, 4, raw<float>({0.5f})));
  bytes(inner, 11, value);
  bytes(inner, 12, value);
  text(attribute, 1, "score_mod");
  bytes(attribute, 6, inner);
  text(node, 4, "FlexAttention");
  bytes(node, 5, attribute);
  bytes(graph, 1, node);
  bytes(all, 7, graph);
  return all;
}

TEST(Model, AGraphInANode) {
  const Graph g = parse_model(model());
  const Graph& mod = *g.nodes.at(0).attributes.at("score_mod").graph;
  EXPECT_EQ(mod.nodes.at(0).op, "Add");
  EXPECT_EQ(mod.initializers.at("name").values, std::vector<double>{0.5});
  EXPECT_EQ(mod.inputs, std::vector<std::string>{"x"});
}

TEST(Malformed, CutOffAnywhere) {
  const Message whole = tensor({2, 3}, kFloat, 9, raw<float>({1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(said(whole), "nothing");
  for (size_t n = 0; n < whole.size(); ++n)
    EXPECT_NE(said(Message(whole.begin(), whole.begin() + static_cast<int64_t>(n))), "nothing") << n;
  const Message graphs = model();
  for (size_t n = 0; n < graphs.size(); ++n) EXPECT_THROW(parse_model(Bytes(graphs.data(), n)), Malformed) << n;
}

TEST(Malformed, AGraphWithinItselfWithoutEnd) {
  Message m;
  for (int depth = 0; depth < 2000; ++depth) {
    Message attribute, node, graph;
    bytes(attribute, 6, m);
    bytes(node, 5, attribute);
    bytes(graph, 1, node);
    m = graph;
  }
  EXPECT_THROW(parse_graph(m), Malformed);
}

TEST(Malformed, GarbageNeverCrashes) {
  std::mt19937 random(1);
  const Message good = tensor({2, 3}, kFloat, 9, raw<float>({1, 2, 3, 4, 5, 6})), graphs = model();
  for (int round = 0; round < 20000; ++round) {
    Message m = round % 3 == 0 ? good : graphs;
    if (round % 3 == 2) m.resize(random() % 64);
    for (int changes = 1 + random() % 4; changes > 0 && !m.empty(); --changes)
      m[random() % m.size()] = static_cast<uint8_t>(random());
    try {
      parse_tensor(m);
    } catch (const Malformed&) {
    }
    try {
      parse_model(m);
    } catch (const Malformed&) {
    }
  }
}

TEST(Malformed, NoFile) { EXPECT_THROW(read_file("/nowhere/at/all.pb"), Malformed); }

}  // namespace
}  // namespace heed::onnx
