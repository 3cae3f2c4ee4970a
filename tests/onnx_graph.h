// Runs a graph of ONNX nodes over small tensors: the score_mod and prob_mod of FlexAttention. Each value is computed in
// double and rounded to its type; that is what the type's own arithmetic gives for one operation.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "onnx_protobuf.h"

namespace heed::onnx {

using Values = std::map<std::string, Array>;

// ---- Broadcasting ----

inline std::vector<int64_t> broadcast(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  std::vector<int64_t> dims(std::max(a.size(), b.size()), 1);
  for (const auto* from : {&a, &b})
    for (size_t k = 0; k < from->size(); ++k) {
      int64_t& to = dims[dims.size() - from->size() + k];
      const int64_t d = (*from)[k];
      if (to != 1 && d != 1 && to != d)
        throw Malformed("sizes " + std::to_string(to) + " and " + std::to_string(d) + " do not broadcast");
      if (to == 1) to = d;
    }
  return dims;
}

// The array repeated along its axes of 1 and new leading ones.
inline Array expanded(const Array& a, const std::vector<int64_t>& dims) {
  if (broadcast(a.dims, dims) != dims) throw Malformed("an array does not broadcast to the shape asked for");
  Array out(a.type, dims);
  for (size_t k = 0; k < out.values.size(); ++k) {
    size_t rest = k, at = 0, step = 1;
    for (size_t axis = 0; axis < a.dims.size(); ++axis) {  // counted from the last
      const auto size = static_cast<size_t>(dims[dims.size() - 1 - axis]);
      const auto own = static_cast<size_t>(a.dims[a.dims.size() - 1 - axis]);
      if (own != 1) at += rest % size * step;
      step *= own;
      rest /= size;
    }
    out.values[k] = a.values[at];
  }
  return out;
}

// ---- Nodes ----

class Interpreter {
 public:
  explicit Interpreter(const Values& outside) : outside_(outside) {}

  // The graph's only output when its first input is `x`; names it does not define are those outside.
  Array run(const Graph& graph, const Array& x) {
    if (graph.inputs.size() != 1 || graph.outputs.size() != 1)
      throw Malformed("a mod has " + std::to_string(graph.inputs.size()) + " inputs and " +
                      std::to_string(graph.outputs.size()) + " outputs; it must have one of each");
    values_ = graph.initializers;
    values_[graph.inputs[0]] = x;
    for (const Node& node : graph.nodes) {
      if (node.outputs.size() != 1) throw Malformed(node.op + " has more than one output, which is not read here");
      values_[node.outputs[0]] = result(node);
    }
    return value(graph.outputs[0]);
  }

 private:
  const Array& value(const std::string& name) const {
    if (const auto found = values_.find(name); found != values_.end()) return found->second;
    if (const auto found = outside_.find(name); found != outside_.end()) return found->second;
    throw Malformed("there is no value called '" + name + "'");
  }

  const Array& input(const Node& node, size_t k) const {
    if (k >= node.inputs.size() || node.inputs[k].empty())
      throw Malformed(node.op + " has no input " + std::to_string(k));
    return value(node.inputs[k]);
  }
  bool has(const Node& node, size_t k) const { return k < node.inputs.size() && !node.inputs[k].empty(); }

  static std::vector<int64_t> integers(const Array& a) { return {a.values.begin(), a.values.end()}; }
  static double scalar(const Array& a) {
    if (a.values.size() != 1) throw Malformed("a scalar has " + std::to_string(a.values.size()) + " elements");
    return a.values[0];
  }

  template <class F>
  static Array each(const Array& a, int type, F&& f) {
    Array out = a;
    out.type = type;
    for (double& x : out.values) x = rounded(type, f(x));
    return out;
  }

  template <class F>
  static Array pairs(const Array& a, const Array& b, int type, F&& f) {
    const std::vector<int64_t> dims = broadcast(a.dims, b.dims);
    Array x = expanded(a, dims);
    const Array y = expanded(b, dims);
    for (size_t k = 0; k < x.values.size(); ++k) x.values[k] = rounded(type, f(x.values[k], y.values[k]));
    x.type = type;
    return x;
  }

  static Array reshaped(const Array& a, std::vector<int64_t> dims) {
    size_t known = 1;
    int64_t* open = nullptr;
    for (size_t k = 0; k < dims.size(); ++k) {
      if (dims[k] == 0) dims[k] = a.dim(static_cast<int64_t>(k));
      if (dims[k] == -1)
        open = &dims[k];
      else
        known *= static_cast<size_t>(dims[k]);
    }
    if (open && known != 0) *open = static_cast<int64_t>(a.values.size() / known);
    Array out = a;
    out.dims = dims;
    if (Array::count(dims) != a.values.size()) throw Malformed("Reshape asks for another number of elements");
    return out;
  }

  static Array gathered(const Array& a, const Array& index, int64_t axis) {
    const auto rank = static_cast<int64_t>(a.dims.size());
    if (axis < 0) axis += rank;
    if (axis < 0 || axis >= rank) throw Malformed("Gather has axis " + std::to_string(axis));
    std::vector<int64_t> dims(a.dims.begin(), a.dims.begin() + axis);
    dims.insert(dims.end(), index.dims.begin(), index.dims.end());
    dims.insert(dims.end(), a.dims.begin() + axis + 1, a.dims.end());
    Array out(a.type, dims);
    const int64_t size = a.dims[axis];
    size_t outer = 1, inner = 1, k = 0;
    for (int64_t x = 0; x < axis; ++x) outer *= static_cast<size_t>(a.dims[x]);
    for (int64_t x = axis + 1; x < rank; ++x) inner *= static_cast<size_t>(a.dims[x]);
    for (size_t o = 0; o < outer; ++o)
      for (const double i : index.values) {
        const int64_t at = static_cast<int64_t>(i) + (i < 0 ? size : 0);
        if (at < 0 || at >= size) throw Malformed("Gather has an index outside");
        for (size_t n = 0; n < inner; ++n) out.values[k++] = a.values[(o * size + static_cast<size_t>(at)) * inner + n];
      }
    return out;
  }

  static Array unsqueezed(const Array& a, std::vector<int64_t> axes) {
    const auto rank = static_cast<int64_t>(a.dims.size() + axes.size());
    for (int64_t& axis : axes) axis += axis < 0 ? rank : 0;
    Array out = a;
    out.dims.clear();
    for (int64_t k = 0, next = 0; k < rank; ++k)
      out.dims.push_back(std::find(axes.begin(), axes.end(), k) != axes.end() ? 1 : a.dim(next++));
    return out;
  }

  static Array squeezed(const Array& a, std::vector<int64_t> axes, bool all) {
    for (int64_t& axis : axes) axis += axis < 0 ? static_cast<int64_t>(a.dims.size()) : 0;
    Array out = a;
    out.dims.clear();
    for (int64_t k = 0; k < static_cast<int64_t>(a.dims.size()); ++k) {
      const bool gone = all ? a.dims[k] == 1 : std::find(axes.begin(), axes.end(), k) != axes.end();
      if (!gone)
        out.dims.push_back(a.dims[k]);
      else if (a.dims[k] != 1)
        throw Malformed("Squeeze of an axis of size " + std::to_string(a.dims[k]));
    }
    return out;
  }

  static Array constant(const Node& node) {
    for (const auto& [name, a] : node.attributes) {
      Array out;
      if (name == "value" && !a.tensor.empty()) return a.tensor[0];
      if (name == "value_float") {
        out = Array(kFloat, {});
        out.values = {a.f};
        return out;
      }
      if (name == "value_int") {
        out = Array(kInt64, {});
        out.values = {static_cast<double>(a.i)};
        return out;
      }
      if (name == "value_ints") {
        out = Array(kInt64, {static_cast<int64_t>(a.ints.size())});
        out.values.assign(a.ints.begin(), a.ints.end());
        return out;
      }
      if (name == "value_floats") {
        out = Array(kFloat, {static_cast<int64_t>(a.floats.size())});
        out.values = a.floats;
        return out;
      }
    }
    throw Malformed("Constant has no value that is read here");
  }

  static Array range(const Array& first, const Array& last, const Array& step) {
    const double a = scalar(first), b = scalar(last), by = scalar(step);
    if (by == 0) throw Malformed("Range has step 0");
    Array out(first.type, {std::max<int64_t>(0, static_cast<int64_t>(std::ceil((b - a) / by)))});
    for (size_t k = 0; k < out.values.size(); ++k) out.values[k] = rounded(out.type, a + static_cast<double>(k) * by);
    return out;
  }

  // Axes are an input in newer operator sets and an attribute in older ones.
  std::vector<int64_t> axes(const Node& node) const {
    if (has(node, 1)) return integers(input(node, 1));
    const auto found = node.attributes.find("axes");
    return found == node.attributes.end() ? std::vector<int64_t>() : found->second.ints;
  }

  Array result(const Node& node) const {
    using Unary = double (*)(double);
    using Binary = double (*)(double, double);
    using Test = bool (*)(double, double);
    static const std::map<std::string, Unary> unary = {
        {"Neg", [](double x) { return -x; }},
        {"Abs", [](double x) { return std::fabs(x); }},
        {"Exp", [](double x) { return std::exp(x); }},
        {"Log", [](double x) { return std::log(x); }},
        {"Sqrt", [](double x) { return std::sqrt(x); }},
        {"Reciprocal", [](double x) { return 1 / x; }},
        {"Tanh", [](double x) { return std::tanh(x); }},
        {"Sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }},
        {"Relu", [](double x) { return x > 0 || std::isnan(x) ? x : 0; }},
        {"Floor", [](double x) { return std::floor(x); }},
        {"Ceil", [](double x) { return std::ceil(x); }},
        {"Round", [](double x) { return std::nearbyint(x); }},
        {"Sin", [](double x) { return std::sin(x); }},
        {"Cos", [](double x) { return std::cos(x); }},
        {"Sign", [](double x) { return static_cast<double>((x > 0) - (x < 0)); }},
        {"Identity", [](double x) { return x; }},
    };
    static const std::map<std::string, Binary> binary = {
        {"Add", [](double x, double y) { return x + y; }},
        {"Sub", [](double x, double y) { return x - y; }},
        {"Mul", [](double x, double y) { return x * y; }},
        {"Div", [](double x, double y) { return x / y; }},
        {"Pow", [](double x, double y) { return std::pow(x, y); }},
        {"Min", [](double x, double y) { return std::isnan(x) || x < y ? x : y; }},
        {"Max", [](double x, double y) { return std::isnan(x) || x > y ? x : y; }},
    };
    static const std::map<std::string, Test> test = {
        {"Greater", [](double x, double y) { return x > y; }},
        {"GreaterOrEqual", [](double x, double y) { return x >= y; }},
        {"Less", [](double x, double y) { return x < y; }},
        {"LessOrEqual", [](double x, double y) { return x <= y; }},
        {"Equal", [](double x, double y) { return x == y; }},
        {"And", [](double x, double y) { return x != 0 && y != 0; }},
        {"Or", [](double x, double y) { return x != 0 || y != 0; }},
        {"Xor", [](double x, double y) { return (x != 0) != (y != 0); }},
    };
    const std::string& op = node.op;
    if (const auto f = unary.find(op); f != unary.end()) return each(input(node, 0), input(node, 0).type, f->second);
    if (const auto f = binary.find(op); f != binary.end()) {
      Array out = input(node, 0);
      const int type = out.type;
      if (op == "Div" && !is_real(type))
        for (const double y : input(node, 1).values)
          if (y == 0) throw Malformed("Div of integers by 0");
      for (size_t k = 1; k < node.inputs.size(); ++k) out = pairs(out, input(node, k), type, f->second);
      return out;
    }
    if (const auto f = test.find(op); f != test.end()) return pairs(input(node, 0), input(node, 1), kBool, f->second);
    if (op == "Not") return each(input(node, 0), kBool, [](double x) { return x == 0; });
    if (op == "Mod") {
      const bool as_c = node.number("fmod", 0) != 0;
      return pairs(input(node, 0), input(node, 1), input(node, 0).type, [&](double x, double y) {
        const double m = std::fmod(x, y);
        return as_c || m == 0 || (m < 0) == (y < 0) ? m : m + y;
      });
    }
    if (op == "Where") {
      const Array &test_of = input(node, 0), &x = input(node, 1), &y = input(node, 2);
      const std::vector<int64_t> dims = broadcast(test_of.dims, broadcast(x.dims, y.dims));
      Array out = expanded(x, dims);
      const Array c = expanded(test_of, dims), other = expanded(y, dims);
      for (size_t k = 0; k < out.values.size(); ++k)
        if (c.values[k] == 0) out.values[k] = other.values[k];
      return out;
    }
    if (op == "Cast" || op == "CastLike") {
      const int to = op == "Cast" ? static_cast<int>(node.number("to", 0)) : input(node, 1).type;
      size_of(to);  // throws for what there is not
      return each(input(node, 0), to, [](double x) { return x; });
    }
    if (op == "Shape") {
      const auto rank = static_cast<int64_t>(input(node, 0).dims.size());
      const auto clip = [&](int64_t x) { return std::clamp<int64_t>(x < 0 ? x + rank : x, 0, rank); };
      const int64_t start = clip(node.number("start", 0)), end = clip(node.number("end", rank));
      Array out(kInt64, {std::max<int64_t>(0, end - start)});
      for (size_t k = 0; k < out.values.size(); ++k)
        out.values[k] = static_cast<double>(input(node, 0).dims[static_cast<size_t>(start) + k]);
      return out;
    }
    if (op == "Size") {
      Array out(kInt64, {});
      out.values = {static_cast<double>(input(node, 0).values.size())};
      return out;
    }
    if (op == "Constant") return constant(node);
    if (op == "ConstantOfShape") {
      const auto found = node.attributes.find("value");
      Array one(kFloat, {1});
      if (found != node.attributes.end() && !found->second.tensor.empty()) one = found->second.tensor[0];
      Array out(one.type, integers(input(node, 0)));
      std::fill(out.values.begin(), out.values.end(), scalar(one));
      return out;
    }
    if (op == "Range") return range(input(node, 0), input(node, 1), input(node, 2));
    if (op == "Reshape") return reshaped(input(node, 0), integers(input(node, 1)));
    if (op == "Expand") return expanded(input(node, 0), broadcast(input(node, 0).dims, integers(input(node, 1))));
    if (op == "Unsqueeze") return unsqueezed(input(node, 0), axes(node));
    if (op == "Squeeze") return squeezed(input(node, 0), axes(node), axes(node).empty());
    if (op == "Gather") return gathered(input(node, 0), input(node, 1), node.number("axis", 0));
    throw Malformed("operator " + op + " is not one that is run here");
  }

  const Values& outside_;
  Values values_;
};

}  // namespace heed::onnx
