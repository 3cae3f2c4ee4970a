// Reads what ONNX files hold: TensorProto and, of models, nodes, attributes and graphs. A reader of the protobuf wire
// format of our own, because these few messages are all we need of it. Malformed bytes throw, whatever they are: every
// length is checked against what is left before it is used.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "half.h"

namespace heed::onnx {

struct Malformed : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Bytes = std::span<const uint8_t>;

// ---- The wire format: a message is a row of fields, each a number, a wire type and a value ----

struct Field {
  uint64_t number = 0;
  int wire = 0;        // 0: varint, 1: 8 bytes, 2: length and bytes, 5: 4 bytes
  uint64_t value = 0;  // wire types 0, 1 and 5
  Bytes bytes;         // wire type 2

  std::string text() const { return {bytes.begin(), bytes.end()}; }
};

class Fields {
 public:
  explicit Fields(Bytes message) : rest_(message) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = {key >> 3, static_cast<int>(key & 7), 0, {}};
    if (field.number == 0) throw Malformed("a field has number 0");
    switch (field.wire) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.value = fixed(4);
        break;
      default:
        throw Malformed("field " + std::to_string(field.number) + " has wire type " + std::to_string(field.wire) +
                        ", which there is not");
    }
    return true;
  }

  bool empty() const { return rest_.empty(); }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const uint8_t byte = take(1)[0];
      value |= shift < 64 ? uint64_t{byte & 127u} << shift : 0;
      if (byte < 128) return value;
    }
    throw Malformed("a number has more than 10 bytes");
  }

  uint64_t fixed(size_t bytes) {
    uint64_t value = 0;
    const Bytes from = take(bytes);
    for (size_t b = 0; b < bytes; ++b) value |= uint64_t{from[b]} << 8 * b;
    return value;
  }

 private:
  Bytes take(uint64_t n) {
    if (n > rest_.size())
      throw Malformed("a field of " + std::to_string(n) + " bytes has " + std::to_string(rest_.size()) + " left");
    const Bytes taken = rest_.first(n);
    rest_ = rest_.subspan(n);
    return taken;
  }

  Bytes rest_;
};

// The numbers of a repeated field: one alone, or packed, each of the wire type `wire`.
template <class F>
void each_number(const Field& field, int wire, F&& f) {
  if (field.wire == wire) return f(field.value);
  if (field.wire != 2) throw Malformed("field " + std::to_string(field.number) + " has another wire type than its own");
  for (Fields packed(field.bytes); !packed.empty();) f(wire == 0 ? packed.varint() : packed.fixed(wire == 1 ? 8 : 4));
}

// ---- Tensors ----

// ONNX's numbers for element types.
enum Type { kFloat = 1, kUint8, kInt8, kUint16, kInt16, kInt32, kInt64, kBool = 9, kHalf, kDouble, kBfloat = 16 };

inline bool is_real(int type) { return type == kFloat || type == kHalf || type == kDouble || type == kBfloat; }

inline size_t size_of(int type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
    case kHalf:
    case kBfloat:
      return 2;
    case kFloat:
    case kInt32:
      return 4;
    case kInt64:
    case kDouble:
      return 8;
    default:
      throw Malformed("element type " + std::to_string(type) + " is not one of those read here");
  }
}

// A tensor, dense and row-major, each value in double: exact for all types but integers beyond 2^53.
struct Array {
  int type = kFloat;
  std::vector<int64_t> dims;
  std::vector<double> values;

  Array() = default;
  Array(int type, std::vector<int64_t> dims) : type(type), dims(std::move(dims)), values(count(this->dims)) {}

  // Throws for sizes that are negative or whose product is beyond what any file here holds.
  static size_t count(const std::vector<int64_t>& dims) {
    constexpr int64_t kMost = int64_t{1} << 31;
    int64_t n = 1;
    bool none = false;
    for (const int64_t d : dims) {
      if (d < 0 || d > kMost) throw Malformed("a tensor has a size of " + std::to_string(d));
      none |= d == 0;
      if (d > 0 && (n *= d) > kMost) throw Malformed("a tensor has more than 2^31 elements");
    }
    return none ? 0 : static_cast<size_t>(n);
  }
  int64_t dim(int64_t axis) const { return dims.at(axis < 0 ? axis + dims.size() : axis); }
};

// x as the type would hold it.
inline double rounded(int type, double x) {
  switch (type) {
    case kFloat:
      return static_cast<float>(x);
    case kHalf:
      return float_of_half(half_of_float(static_cast<float>(x)));
    case kBfloat:
      return float_of_bfloat(bfloat_of_float(static_cast<float>(x)));
    case kDouble:
      return x;
    case kBool:
      return x != 0;
    default:
      return std::trunc(x);
  }
}

// One element of type `type`, from its bits.
inline double element(int type, uint64_t bits) {
  switch (type) {
    case kFloat:
      return std::bit_cast<float>(static_cast<uint32_t>(bits));
    case kDouble:
      return std::bit_cast<double>(bits);
    case kHalf:
      return float_of_half(static_cast<uint16_t>(bits));
    case kBfloat:
      return float_of_bfloat(static_cast<uint16_t>(bits));
    case kInt8:
      return static_cast<int8_t>(bits);
    case kInt16:
      return static_cast<int16_t>(bits);
    case kInt32:
      return static_cast<int32_t>(bits);
    case kInt64:
      return static_cast<double>(static_cast<int64_t>(bits));
    case kBool:
      return (bits & 0xFF) != 0;
    default:  // unsigned
      return static_cast<double>(bits);
  }
}

// TensorProto: dims 1, data_type 2, float_data 4, int32_data 5 (also f16, as bits, and bool), int64_data 7, name 8,
// raw_data 9 (little-endian), double_data 10, data_location 14.
inline Array parse_tensor(Bytes message, std::string* name = nullptr) {
  Array array;
  array.type = 0;
  Bytes raw;
  bool has_raw = false;
  std::vector<uint64_t> bits;  // of what is in fields of its own
  std::vector<double> numbers;
  Field field;
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 1) each_number(field, 0, [&](uint64_t d) { array.dims.push_back(static_cast<int64_t>(d)); });
    if (field.number == 2) array.type = static_cast<int>(field.value);
    if (field.number == 4) each_number(field, 5, [&](uint64_t x) { numbers.push_back(element(kFloat, x)); });
    if (field.number == 5 || field.number == 7) each_number(field, 0, [&](uint64_t x) { bits.push_back(x); });
    if (field.number == 8 && name) *name = field.text();
    if (field.number == 9) {
      raw = field.bytes;
      has_raw = true;
    }
    if (field.number == 10) each_number(field, 1, [&](uint64_t x) { numbers.push_back(element(kDouble, x)); });
    if (field.number == 14 && field.value != 0) throw Malformed("a tensor's data is in another file");
  }
  const size_t n = Array::count(array.dims), size = size_of(array.type), apart = bits.size() + numbers.size();
  if (has_raw && raw.size() != n * size)
    throw Malformed("a tensor of " + std::to_string(n) + " elements of " + std::to_string(size) +
                    " bytes has data of " + std::to_string(raw.size()) + " bytes");
  if (has_raw && apart != 0) throw Malformed("a tensor has its data in two places");
  if (!has_raw && apart != n)
    throw Malformed("a tensor of " + std::to_string(n) + " elements has data for " + std::to_string(apart));
  array.values = std::move(numbers);
  for (const uint64_t b : bits) array.values.push_back(element(array.type, b));
  for (size_t k = 0; has_raw && k < n; ++k) {
    uint64_t b = 0;
    for (size_t byte = 0; byte < size; ++byte) b |= uint64_t{raw[k * size + byte]} << 8 * byte;
    array.values.push_back(element(array.type, b));
  }
  return array;
}

// ---- Graphs ----

struct Graph;

// Which of its values an attribute has depends on its type; the others stay empty.
struct Attribute {
  int64_t i = 0;
  double f = 0;
  std::string s;
  std::vector<int64_t> ints;
  std::vector<double> floats;
  std::vector<Array> tensor;           // none or one
  std::shared_ptr<const Graph> graph;  // or none
};

struct Node {
  std::string op, domain;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, Attribute> attributes;

  int64_t number(const std::string& name, int64_t otherwise) const {
    const auto found = attributes.find(name);
    return found == attributes.end() ? otherwise : found->second.i;
  }
};

struct Graph {
  std::vector<Node> nodes;
  std::map<std::string, Array> initializers;
  std::vector<std::string> inputs, outputs;
};

Graph parse_graph(Bytes message, int depth);

// AttributeProto: name 1, f 2, i 3, s 4, t 5, g 6, floats 7, ints 8.
inline std::pair<std::string, Attribute> parse_attribute(Bytes message, int depth) {
  std::string name;
  Attribute a;
  Field field;
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 1) name = field.text();
    if (field.number == 2) a.f = element(kFloat, field.value);
    if (field.number == 3) a.i = static_cast<int64_t>(field.value);
    if (field.number == 4) a.s = field.text();
    if (field.number == 5) a.tensor = {parse_tensor(field.bytes)};
    if (field.number == 6) a.graph = std::make_shared<const Graph>(parse_graph(field.bytes, depth + 1));
    if (field.number == 7) each_number(field, 5, [&](uint64_t x) { a.floats.push_back(element(kFloat, x)); });
    if (field.number == 8) each_number(field, 0, [&](uint64_t x) { a.ints.push_back(static_cast<int64_t>(x)); });
  }
  return {name, a};
}

// NodeProto: input 1, output 2, op_type 4, attribute 5, domain 7.
inline Node parse_node(Bytes message, int depth) {
  Node node;
  Field field;
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 1) node.inputs.push_back(field.text());
    if (field.number == 2) node.outputs.push_back(field.text());
    if (field.number == 4) node.op = field.text();
    if (field.number == 5) node.attributes.insert(parse_attribute(field.bytes, depth));
    if (field.number == 7) node.domain = field.text();
  }
  return node;
}

// GraphProto: node 1, initializer 5, input 11, output 12 (ValueInfoProto: name 1).
inline Graph parse_graph(Bytes message, int depth = 0) {
  if (depth > 8) throw Malformed("graphs within graphs, more than 8 deep");
  Graph graph;
  Field field;
  const auto value_name = [](Bytes value) {
    Field field;
    for (Fields fields(value); fields.next(field);)
      if (field.number == 1) return field.text();
    throw Malformed("an input or output of a graph has no name");
  };
  for (Fields fields(message); fields.next(field);) {
    if (field.number == 1) graph.nodes.push_back(parse_node(field.bytes, depth));
    if (field.number == 5) {
      std::string name;
      Array tensor = parse_tensor(field.bytes, &name);
      graph.initializers[name] = std::move(tensor);
    }
    if (field.number == 11) graph.inputs.push_back(value_name(field.bytes));
    if (field.number == 12) graph.outputs.push_back(value_name(field.bytes));
  }
  return graph;
}

// ModelProto: graph 7.
inline Graph parse_model(Bytes message) {
  Field field;
  for (Fields fields(message); fields.next(field);)
    if (field.number == 7) return parse_graph(field.bytes);
  throw Malformed("a model without a graph");
}

inline std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Malformed("cannot open " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace heed::onnx
