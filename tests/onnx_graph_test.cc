// The interpreter of score_mod and prob_mod: the graphs people write, each operator, and graphs that cannot be run.
#include "onnx_graph.h"

#include <gtest/gtest.h>

namespace heed::onnx {
namespace {

Array array(int type, std::vector<int64_t> dims, std::vector<double> values) {
  Array a(type, std::move(dims));
  a.values = std::move(values);
  return a;
}
Array scalar(int type, double x) { return array(type, {}, {x}); }

Node node(const std::string& op, std::vector<std::string> inputs, const std::string& output,
          std::map<std::string, int64_t> numbers = {}) {
  Node n;
  n.op = op;
  n.inputs = std::move(inputs);
  n.outputs = {output};
  for (const auto& [name, i] : numbers) n.attributes[name].i = i;
  return n;
}

Graph graph(std::vector<Node> nodes, Values initializers = {}) {
  Graph g;
  g.inputs = {"x"};
  g.outputs = {"y"};
  g.nodes = std::move(nodes);
  g.initializers = std::move(initializers);
  return g;
}

Array run(const Graph& g, const Array& x, const Values& outside = {}) { return Interpreter(outside).run(g, x); }

std::string said(const Graph& g, const Array& x) {
  try {
    run(g, x);
  } catch (const Malformed& e) {
    return e.what();
  }
  return "nothing";
}

const Array kScores = array(kFloat, {1, 2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});

// Range over axis `axis` of x, reshaped to `shape`, as `name`.
void add_positions(std::vector<Node>& nodes, Values& values, const std::string& name, int64_t axis,
                   std::vector<double> shape) {
  const auto rank = static_cast<int64_t>(shape.size());
  values["axis_" + name] = scalar(kInt64, static_cast<double>(axis));
  values["shape_" + name] = array(kInt64, {rank}, std::move(shape));
  values["zero"] = scalar(kInt64, 0);
  values["one"] = scalar(kInt64, 1);
  nodes.push_back(node("Shape", {"x"}, "sizes"));
  nodes.push_back(node("Gather", {"sizes", "axis_" + name}, "size_" + name));
  nodes.push_back(node("Range", {"zero", "size_" + name, "one"}, "range_" + name));
  nodes.push_back(node("Reshape", {"range_" + name, "shape_" + name}, name));
}

TEST(Mods, Causal) {
  std::vector<Node> nodes;
  Values values = {{"hidden", scalar(kFloat, -INFINITY)}};
  add_positions(nodes, values, "i", 2, {1, 1, -1, 1});
  add_positions(nodes, values, "j", 3, {1, 1, 1, -1});
  nodes.push_back(node("GreaterOrEqual", {"i", "j"}, "sees"));
  nodes.push_back(node("Where", {"sees", "x", "hidden"}, "y"));
  const double h = -INFINITY;
  const Array y = run(graph(nodes, values), kScores);
  EXPECT_EQ(y.dims, kScores.dims);
  EXPECT_EQ(y.values, (std::vector<double>{1, h, h, 4, 5, h, 7, h, h, 10, 11, h}));
}

TEST(Mods, RelativePosition) {
  std::vector<Node> nodes;
  Values values;
  add_positions(nodes, values, "i", 2, {-1, 1});
  add_positions(nodes, values, "j", 3, {1, -1});
  nodes.push_back(node("Sub", {"i", "j"}, "apart"));
  nodes.push_back(node("Cast", {"apart"}, "as_float", {{"to", kFloat}}));
  nodes.push_back(node("Add", {"x", "as_float"}, "y"));
  EXPECT_EQ(run(graph(nodes, values), kScores).values, (std::vector<double>{1, 1, 1, 5, 5, 5, 7, 7, 7, 11, 11, 11}));
}

TEST(Mods, SoftcapRoundsEachStep) {
  const Graph g = graph({node("Div", {"x", "cap"}, "a"), node("Tanh", {"a"}, "b"), node("Mul", {"b", "cap"}, "y")},
                        {{"cap", scalar(kFloat, 20)}});
  const Array y = run(g, kScores);
  for (size_t k = 0; k < y.values.size(); ++k) {
    const float a = static_cast<float>(kScores.values[k] / 20), b = static_cast<float>(std::tanh(double{a}));
    EXPECT_EQ(y.values[k], b * 20);
  }
}

TEST(Mods, ValuesFromOutside) {
  const Graph g = graph({node("Add", {"x", "table"}, "y")});
  EXPECT_EQ(run(g, kScores, {{"table", array(kFloat, {3}, {0, 10, 20})}}).values[1], 12);
}

// One operator on x = [2, -3] and the second input, if any.
std::vector<double> one(const std::string& op, const Array& second = {}, int type = kFloat,
                        std::map<std::string, int64_t> numbers = {}) {
  const bool binary = !second.values.empty() || !second.dims.empty();
  return run(graph({node(op, binary ? std::vector<std::string>{"x", "b"} : std::vector<std::string>{"x"}, "y",
                         std::move(numbers))},
                   {{"b", second}}),
             array(type, {2}, {2, -3}))
      .values;
}

TEST(Operators, OneByOne) {
  using V = std::vector<double>;
  const Array b = array(kFloat, {2}, {2, 4}), n = array(kInt64, {2}, {2, 2});
  EXPECT_EQ(one("Neg"), (V{-2, 3}));
  EXPECT_EQ(one("Abs"), (V{2, 3}));
  EXPECT_EQ(one("Relu"), (V{2, 0}));
  EXPECT_EQ(one("Sign"), (V{1, -1}));
  EXPECT_EQ(one("Exp")[0], static_cast<float>(std::exp(2.0)));
  EXPECT_EQ(one("Sub", b), (V{0, -7}));
  EXPECT_EQ(one("Min", b), (V{2, -3}));
  EXPECT_EQ(one("Max", b), (V{2, 4}));
  EXPECT_EQ(one("Pow", b), (V{4, 81}));
  EXPECT_EQ(one("Div", n, kInt64), (V{1, -1}));  // towards 0
  EXPECT_EQ(one("Mod", n, kInt64), (V{0, 1}));
  EXPECT_EQ(one("Mod", b, kFloat, {{"fmod", 1}}), (V{0, -3}));
  EXPECT_EQ(one("Less", b), (V{0, 1}));
  EXPECT_EQ(one("LessOrEqual", b), (V{1, 1}));
  EXPECT_EQ(one("Greater", b), (V{0, 0}));
  EXPECT_EQ(one("Equal", b), (V{1, 0}));
  EXPECT_EQ(one("Not"), (V{0, 0}));
  EXPECT_EQ(one("Size"), (V{2}));
  EXPECT_EQ(one("Shape"), (V{2}));
  EXPECT_EQ(one("Cast", {}, kFloat, {{"to", kBool}}), (V{1, 1}));
  EXPECT_EQ(one("Expand", array(kInt64, {2}, {2, 1})), (V{2, -3, 2, -3}));
  EXPECT_EQ(one("Gather", array(kInt64, {3}, {-1, 0, 1})), (V{-3, 2, -3}));
}

TEST(Operators, Shapes) {
  const Array axes = array(kInt64, {2}, {0, -1});
  const auto dims = [&](const std::string& op, const Array& x) {
    return run(graph({node(op, {"x", "axes"}, "y")}, {{"axes", axes}}), x).dims;
  };
  EXPECT_EQ(dims("Unsqueeze", kScores), (std::vector<int64_t>{1, 1, 2, 2, 3, 1}));
  EXPECT_EQ(dims("Squeeze", array(kFloat, {1, 2, 1}, {5, 6})), (std::vector<int64_t>{2}));
  EXPECT_EQ(run(graph({node("Gather", {"x", "i"}, "y", {{"axis", 2}})}, {{"i", scalar(kInt64, 1)}}), kScores).values,
            (std::vector<double>{4, 5, 6, 10, 11, 12}));
}

TEST(Errors, AreSentences) {
  EXPECT_EQ(said(graph({node("Conv", {"x"}, "y")}), kScores), "operator Conv is not one that is run here");
  EXPECT_EQ(said(graph({node("Add", {"x", "z"}, "y")}), kScores), "there is no value called 'z'");
  EXPECT_EQ(said(graph({node("Add", {"x", "z"}, "y")}, {{"z", array(kFloat, {2}, {1, 2})}}), kScores),
            "sizes 3 and 2 do not broadcast");
  EXPECT_EQ(said(graph({node("Where", {"x"}, "y")}), kScores), "Where has no input 1");
  EXPECT_EQ(said(graph({}), kScores), "there is no value called 'y'");
  EXPECT_EQ(said(graph({node("Cast", {"x"}, "y", {{"to", 8}})}), kScores),
            "element type 8 is not one of those read here");
  EXPECT_EQ(said(graph({node("Range", {"a", "a", "a"}, "y")}, {{"a", scalar(kInt64, 0)}}), kScores),
            "Range has step 0");
  EXPECT_EQ(said(graph({node("Div", {"i", "i"}, "y")}, {{"i", scalar(kInt64, 0)}}), kScores), "Div of integers by 0");
  EXPECT_EQ(said(graph({node("Reshape", {"x", "i"}, "y")}, {{"i", array(kInt64, {1}, {5})}}), kScores),
            "Reshape asks for another number of elements");
  EXPECT_EQ(said(graph({node("Gather", {"x", "i"}, "y", {{"axis", 7}})}, {{"i", scalar(kInt64, 0)}}), kScores),
            "Gather has axis 7");
  EXPECT_EQ(said(graph({node("Gather", {"x", "i"}, "y")}, {{"i", scalar(kInt64, 5)}}), kScores),
            "Gather has an index outside");
}

}  // namespace
}  // namespace heed::onnx
