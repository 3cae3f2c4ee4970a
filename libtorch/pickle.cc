// A pickle machine that can make nothing but tensors, and the two containers PyTorch puts its pickles in.
#include "libtorch/pickle.h"

#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <unordered_map>
#include <vector>

#include "libtorch/files.h"

namespace heed::nn {
namespace {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian, and so is this code");

// A state dict of ten thousand tensors makes a tenth of these; more is no state dict.
constexpr size_t kMostValues = 4'000'000;

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  throw Error(path + " cannot be read as weights that torch.save wrote: " + what);
}

// Bytes of a file, never read beyond their end.
class Bytes {
 public:
  Bytes(const std::string& path, std::string_view data, const char* what) : path_(path), data_(data), what_(what) {}

  std::string_view take(uint64_t n) {
    if (n > data_.size() - at_) {
      bad(path_, std::string("its ") + what_ + " ends after " + std::to_string(data_.size()) + " bytes, in the middle");
    }
    at_ += n;
    return data_.substr(at_ - n, n);
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view line() {
    const size_t end = data_.find('\n', at_);
    if (end == std::string_view::npos) take(data_.size() - at_ + 1);
    const std::string_view text = take(end - at_);
    ++at_;
    return text;
  }
  size_t at() const { return at_; }
  const std::string& path() const { return path_; }
  [[noreturn]] void refuse(const std::string& what) const { bad(path_, what); }

 private:
  const std::string& path_;
  std::string_view data_;
  const char* what_;
  size_t at_ = 0;
};

// ---- The pickle machine ----

enum class Kind { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor };
constexpr const char* kKindNames[] = {"None",   "a bool", "an integer", "a float",   "a text",  "a tuple",
                                      "a list", "a dict", "a name",     "a storage", "a tensor"};

struct Value {
  Kind kind = Kind::none;
  int64_t integer = 0;                        // boolean, integer; storage: its elements; tensor: its offset
  std::string text;                           // text, global ("module name"); storage: its key
  std::vector<Value*> items;                  // tuple, list; dict: key, value, key, value; tensor: its storage
  torch::ScalarType dtype = torch::kFloat32;  // storage
  std::vector<int64_t> sizes, strides;        // tensor
};

struct StorageType {
  const char* name;
  torch::ScalarType dtype;
};
constexpr StorageType kStorages[] = {
    {"torch FloatStorage", torch::kFloat32},     {"torch HalfStorage", torch::kFloat16},
    {"torch BFloat16Storage", torch::kBFloat16}, {"torch DoubleStorage", torch::kFloat64},
    {"torch LongStorage", torch::kInt64},        {"torch IntStorage", torch::kInt32},
    {"torch ShortStorage", torch::kInt16},       {"torch CharStorage", torch::kInt8},
    {"torch ByteStorage", torch::kUInt8},        {"torch BoolStorage", torch::kBool}};
constexpr const char* kOrderedDict = "collections OrderedDict";
constexpr const char* kRebuild = "torch._utils _rebuild_tensor_v2";
constexpr const char* kRebuildParameter = "torch._utils _rebuild_parameter";

const StorageType* storage_type(const std::string& name) {
  const auto* found =
      std::find_if(std::begin(kStorages), std::end(kStorages), [&](const StorageType& s) { return name == s.name; });
  return found == std::end(kStorages) ? nullptr : found;
}

// Runs one pickle (protocols 2 to 5, as far as torch.save uses them). Values live as long as the machine, whatever
// refers to them.
class Machine {
 public:
  explicit Machine(Bytes& in) : in_(in) {}

  const Value* run() {
    for (;;) {
      switch (const auto op = in_.number<uint8_t>(); op) {
        case 0x80:  // PROTO
          in_.take(1);
          break;
        case 0x95:  // FRAME
          in_.take(8);
          break;
        case '(':  // MARK
          if (marks_.size() >= kMostValues) in_.refuse("it is nested without end");
          marks_.push_back(stack_.size());
          break;
        case 'N':
          make(Kind::none);
          break;
        case 0x88:
        case 0x89:  // NEWTRUE, NEWFALSE
          make(Kind::boolean)->integer = op == 0x88;
          break;
        case 'J':
          make(Kind::integer)->integer = in_.number<int32_t>();
          break;
        case 'K':
          make(Kind::integer)->integer = in_.number<uint8_t>();
          break;
        case 'M':
          make(Kind::integer)->integer = in_.number<uint16_t>();
          break;
        case 0x8a:  // LONG1: little-endian, two's complement
          long_integer(in_.take(in_.number<uint8_t>()));
          break;
        case 'G':  // BINFLOAT: never part of a tensor, so its value is not kept
          in_.take(8);
          make(Kind::real);
          break;
        case 'X':  // BINUNICODE
        case 'T':  // BINSTRING
          text(in_.number<uint32_t>());
          break;
        case 0x8c:  // SHORT_BINUNICODE
        case 'U':   // SHORT_BINSTRING
          text(in_.number<uint8_t>());
          break;
        case 0x8d:  // BINUNICODE8
          text(in_.number<uint64_t>());
          break;
        case ')':
          make(Kind::tuple);
          break;
        case 0x85:
        case 0x86:
        case 0x87:  // TUPLE1, TUPLE2, TUPLE3
          collect(Kind::tuple, op - 0x84);
          break;
        case 't':
          collect(Kind::tuple, above_mark());
          break;
        case ']':
          make(Kind::list);
          break;
        case 'a':
          append(Kind::list, 1);
          break;
        case 'e':
          append(Kind::list, above_mark());
          break;
        case '}':
          make(Kind::dict);
          break;
        case 's':
          append(Kind::dict, 2);
          break;
        case 'u':
          append(Kind::dict, above_mark());
          break;
        case 'q':
          remember(in_.number<uint8_t>());
          break;
        case 'r':
          remember(in_.number<uint32_t>());
          break;
        case 0x94:  // MEMOIZE
          remember(static_cast<uint32_t>(memo_.size()));
          break;
        case 'h':
          recall(in_.number<uint8_t>());
          break;
        case 'j':
          recall(in_.number<uint32_t>());
          break;
        case 'c': {  // GLOBAL
          const std::string module(in_.line());
          name(module + " " + std::string(in_.line()));
          break;
        }
        case 0x93: {  // STACK_GLOBAL
          const std::string last = pop(Kind::text)->text;
          name(pop(Kind::text)->text + " " + last);
          break;
        }
        case 'Q':  // BINPERSID
          storage(pop(Kind::tuple));
          break;
        case 'R':
          reduce();
          break;
        case 'b':  // BUILD: what a dict carries beside its entries (_metadata) is of no use here
          pop();
          if (top()->kind != Kind::dict) in_.refuse("it sets the insides of " + a(top()));
          break;
        case '.':
          return pop();
        default: {
          char text[64];
          std::snprintf(text, sizeof text, "instruction 0x%02x at byte %zu is not one it uses", op, in_.at() - 1);
          in_.refuse(text);
        }
      }
    }
  }

 private:
  static std::string a(const Value* value) { return kKindNames[static_cast<size_t>(value->kind)]; }

  Value* make(Kind kind) {
    if (values_.size() >= kMostValues) in_.refuse("it has more than " + std::to_string(kMostValues) + " parts");
    values_.emplace_back().kind = kind;
    stack_.push_back(&values_.back());
    return stack_.back();
  }

  // What lies above the last mark cannot be reached by instructions that want something below it.
  void need(size_t n) const {
    if (stack_.size() < n + (marks_.empty() ? 0 : marks_.back())) in_.refuse("its instructions do not fit together");
  }
  Value* top() const {
    need(1);
    return stack_.back();
  }
  Value* pop() {
    Value* value = top();
    stack_.pop_back();
    return value;
  }
  Value* pop(Kind kind) {
    Value* value = pop();
    if (value->kind != kind) {
      in_.refuse("it has " + a(value) + " where " + kKindNames[static_cast<size_t>(kind)] + " is needed");
    }
    return value;
  }
  size_t above_mark() {
    if (marks_.empty()) in_.refuse("its instructions do not fit together");
    const size_t n = stack_.size() - marks_.back();
    marks_.pop_back();
    return n;
  }

  void text(uint64_t n) {
    const std::string_view bytes = in_.take(n);
    make(Kind::text)->text = bytes;
  }
  void long_integer(std::string_view bytes) {
    Value* value = make(Kind::integer);
    value->text = bytes;  // for the number at the head of the old format, which is longer than 8 bytes
    if (bytes.empty() || bytes.size() > 8) return;
    std::memcpy(&value->integer, bytes.data(), bytes.size());
    const auto unused = static_cast<int>(64 - 8 * bytes.size());
    value->integer = static_cast<int64_t>(static_cast<uint64_t>(value->integer) << unused) >> unused;
  }
  void collect(Kind kind, size_t n) {
    need(n);
    std::vector<Value*> items(stack_.end() - static_cast<std::ptrdiff_t>(n), stack_.end());
    stack_.resize(stack_.size() - n);
    make(kind)->items = std::move(items);
  }
  void append(Kind kind, size_t n) {
    need(n + 1);
    Value* to = stack_[stack_.size() - n - 1];
    if (to->kind != kind) in_.refuse("it adds to " + a(to));
    if (kind == Kind::dict && n % 2 != 0) in_.refuse("a dict has a key without a value");
    to->items.insert(to->items.end(), stack_.end() - static_cast<std::ptrdiff_t>(n), stack_.end());
    stack_.resize(stack_.size() - n);
  }
  void remember(uint32_t at) { memo_[at] = top(); }
  void recall(uint32_t at) {
    const auto found = memo_.find(at);
    if (found == memo_.end()) in_.refuse("its instructions do not fit together");
    stack_.push_back(found->second);
    if (stack_.size() > kMostValues) in_.refuse("it has more than " + std::to_string(kMostValues) + " parts");
  }

  void name(const std::string& name) {
    if (name != kOrderedDict && name != kRebuild && name != kRebuildParameter && storage_type(name) == nullptr) {
      const size_t space = name.find(' ');
      in_.refuse("it asks for \"" + name.substr(0, space) + "." + name.substr(space + 1) +
                 "\", which is no part of a tensor; such a file can run programs, so take it from a source you trust "
                 "and have PyTorch save its state_dict()");
    }
    make(Kind::global)->text = name;
  }

  // ('storage', torch.FloatStorage, key, device, elements), in the old format with a sixth, None but in ancient files.
  void storage(const Value* said) {
    const auto& i = said->items;
    const bool good = i.size() >= 5 && i.size() <= 6 && i[0]->kind == Kind::text && i[0]->text == "storage" &&
                      i[1]->kind == Kind::global && storage_type(i[1]->text) != nullptr && i[2]->kind == Kind::text &&
                      i[4]->kind == Kind::integer && i[4]->integer >= 0 && (i.size() == 5 || i[5]->kind == Kind::none);
    if (!good) in_.refuse("a storage is not described as PyTorch does it");
    Value* made = make(Kind::storage);
    made->text = i[2]->text;
    made->integer = i[4]->integer;
    made->dtype = storage_type(i[1]->text)->dtype;
  }

  std::vector<int64_t> integers(const Value* tuple) const {
    std::vector<int64_t> result;
    if (tuple->kind != Kind::tuple) in_.refuse("a tensor's shape is " + a(tuple));
    for (const Value* each : tuple->items) {
      if (each->kind != Kind::integer || each->integer < 0 || each->text.size() > 8) {
        in_.refuse("a tensor's shape or strides hold what is no size");
      }
      result.push_back(each->integer);
    }
    return result;
  }

  void reduce() {
    const Value* arguments = pop(Kind::tuple);
    const std::string function = pop(Kind::global)->text;
    const auto& i = arguments->items;
    if (function == kOrderedDict) {
      if (!i.empty()) in_.refuse("an OrderedDict is not made as PyTorch does it");
      make(Kind::dict);
    } else if (function == kRebuildParameter) {
      if (i.empty() || i[0]->kind != Kind::tensor) in_.refuse("a parameter is not made of a tensor");
      stack_.push_back(i[0]);
    } else if (function == kRebuild) {
      if (i.size() < 4 || i[0]->kind != Kind::storage || i[1]->kind != Kind::integer || i[1]->integer < 0) {
        in_.refuse("a tensor is not described as PyTorch does it");
      }
      std::vector<int64_t> sizes = integers(i[2]), strides = integers(i[3]);
      if (sizes.size() != strides.size()) {
        in_.refuse("a tensor has " + std::to_string(sizes.size()) + " sizes and " + std::to_string(strides.size()) +
                   " strides");
      }
      Value* tensor = make(Kind::tensor);
      tensor->items = {i[0]};
      tensor->integer = i[1]->integer;
      tensor->sizes = std::move(sizes);
      tensor->strides = std::move(strides);
    } else {
      in_.refuse("it calls \"" + function + "\"");
    }
  }

  Bytes& in_;
  std::deque<Value> values_;
  std::vector<Value*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, Value*> memo_;
};

// ---- The zip file ----

uint32_t checksum(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = (made[i] >> 1) ^ (made[i] & 1 ? 0xEDB88320u : 0);
    }
    return made;
  }();
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

// The records of a zip file that stores them as they are, which is how PyTorch writes it.
class Zip {
 public:
  Zip(const std::string& path, std::string_view file) : path_(path), file_(file) {
    // The end record is the last thing in the file, but for a comment of up to 65535 bytes.
    const size_t end = file.rfind("PK\x05\x06");
    if (end == std::string_view::npos || end + 22 + number<uint16_t>(end + 20) != file.size()) {
      bad(path, "the end of the zip file is missing; copy the file again");
    }
    uint64_t count = number<uint16_t>(end + 10), offset = number<uint32_t>(end + 16);
    if (end >= 20 && file.substr(end - 20, 4) == "PK\x06\x07") {  // zip64
      const auto wide = number<uint64_t>(end - 20 + 8);
      if (at(wide, 4) != "PK\x06\x06") bad(path, "its zip64 directory is not where it should be");
      count = number<uint64_t>(wide + 32);
      offset = number<uint64_t>(wide + 48);
    }
    for (uint64_t i = 0; i < count; ++i) {
      if (at(offset, 4) != "PK\x01\x02") bad(path, "its directory is damaged");
      Record record;
      const auto flags = number<uint16_t>(offset + 8), method = number<uint16_t>(offset + 10);
      record.crc = number<uint32_t>(offset + 16);
      uint64_t packed = number<uint32_t>(offset + 20);
      record.size = number<uint32_t>(offset + 24);
      uint64_t local = number<uint32_t>(offset + 42);
      const uint64_t name_size = number<uint16_t>(offset + 28), extra_size = number<uint16_t>(offset + 30);
      const std::string name(at(offset + 46, name_size));
      // Sizes that 32 bits do not hold are in an extra field, in this order.
      for (uint64_t extra = offset + 46 + name_size, stop = extra + extra_size; extra + 4 <= stop;) {
        const auto id = number<uint16_t>(extra);
        uint64_t field = extra + 4;
        if (id == 1) {
          for (uint64_t* each : {&record.size, &packed, &local}) {
            if (*each != 0xFFFFFFFF) continue;
            *each = number<uint64_t>(field);
            field += 8;
          }
        }
        extra += 4 + uint64_t{number<uint16_t>(extra + 2)};
      }
      if (method != 0 || packed != record.size || (flags & 1) != 0) {
        bad(path, "its record \"" + name + "\" is compressed or encrypted, which PyTorch does not do");
      }
      record.begin = local;
      records_.emplace(name, record);
      offset += 46 + name_size + extra_size + number<uint16_t>(offset + 32);
    }
  }

  // The folder all records are in: that of data.pkl.
  std::string root() const {
    static const std::string pickle = "data.pkl";
    for (const auto& [name, record] : records_) {
      if (name == pickle || name.ends_with("/" + pickle)) return name.substr(0, name.size() - pickle.size());
    }
    bad(path_, "the zip file has no data.pkl");
  }

  bool has(const std::string& name) const { return records_.count(name) > 0; }

  std::string_view read(const std::string& name) const {
    const auto found = records_.find(name);
    if (found == records_.end()) bad(path_, "the zip file has no record \"" + name + "\"");
    const Record& record = found->second;
    if (at(record.begin, 4) != "PK\x03\x04") bad(path_, "its record \"" + name + "\" is not where the directory says");
    const uint64_t begin =
        record.begin + 30 + number<uint16_t>(record.begin + 26) + number<uint16_t>(record.begin + 28);
    const std::string_view bytes = at(begin, record.size);
    if (record.crc != 0 && checksum(bytes) != record.crc) {
      bad(path_, "its record \"" + name + "\" is damaged: the checksum is not that of its bytes; copy the file again");
    }
    return bytes;
  }

 private:
  struct Record {
    uint64_t begin = 0, size = 0;
    uint32_t crc = 0;
  };

  std::string_view at(uint64_t offset, uint64_t n) const {
    if (offset > file_.size() || n > file_.size() - offset) bad(path_, "the zip file points behind its own end");
    return file_.substr(offset, n);
  }
  template <class T>
  T number(uint64_t offset) const {
    T value;
    std::memcpy(&value, at(offset, sizeof value).data(), sizeof value);
    return value;
  }

  const std::string& path_;
  std::string_view file_;
  std::map<std::string, Record> records_;
};

// ---- From values to tensors ----

using Storages = std::map<std::string, torch::Tensor>;

torch::Tensor storage_of(const Value& said, std::string_view bytes, const std::string& path) {
  const uint64_t width = torch::elementSize(said.dtype), have = bytes.size() / width;
  if (bytes.size() % width != 0 || have != static_cast<uint64_t>(said.integer)) {
    bad(path, "storage \"" + said.text + "\" has " + std::to_string(bytes.size()) + " bytes for " +
                  std::to_string(said.integer) + " elements of " + std::to_string(width));
  }
  torch::Tensor made = torch::empty({said.integer}, torch::TensorOptions().dtype(said.dtype));
  std::memcpy(made.data_ptr(), bytes.data(), bytes.size());
  return made;
}

torch::Tensor tensor_of(const Value& said, const Storages& storages, const std::string& name, const std::string& path) {
  const torch::Tensor& storage = storages.at(said.items[0]->text);
  int64_t count = 1, last = said.integer;
  bool fits = true;
  for (const int64_t size : said.sizes) fits = fits && !__builtin_mul_overflow(count, size, &count);
  for (size_t i = 0; fits && count > 0 && i < said.sizes.size(); ++i) {
    int64_t step = 0;
    fits = !__builtin_mul_overflow(said.sizes[i] - 1, said.strides[i], &step) &&
           !__builtin_add_overflow(last, step, &last);
  }
  // Expanded tensors are refused, too: nobody stores weights so, and a few bytes could ask for all memory.
  fits = fits && count <= storage.numel() && (count == 0 || last < storage.numel());
  if (!fits || said.items[0]->dtype != storage.scalar_type()) {
    bad(path, "tensor \"" + name + "\" does not fit its storage of " + std::to_string(storage.numel()) + " elements");
  }
  return storage.as_strided(said.sizes, said.strides, count == 0 ? 0 : said.integer);
}

// Calls visit(name, tensor) for what the dict holds.
template <class Visit>
void each_tensor(const Value* dict, const std::string& path, Visit visit) {
  if (dict->kind != Kind::dict)
    bad(path, std::string("it holds ") + kKindNames[static_cast<size_t>(dict->kind)] + ", not a dict of tensors");
  for (size_t i = 0; i + 1 < dict->items.size(); i += 2) {
    const Value *key = dict->items[i], *value = dict->items[i + 1];
    if (key->kind != Kind::text) bad(path, "a tensor's name is not a text");
    if (value->kind != Kind::tensor) {
      bad(path, "\"" + key->text + "\" is " + kKindNames[static_cast<size_t>(value->kind)] +
                    ", not a tensor; save the model's state_dict() alone");
    }
    visit(key->text, *value);
  }
}

// "torch.save"'s format before 1.6: pickles of a magic number, a version, the machine's sizes and the dict, then a
// pickled list of the storages' keys, then each storage: its elements in 8 bytes, and the bytes.
constexpr std::string_view kMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);

}  // namespace

NamedTensors load_pickle(const std::string& path) {
  const std::string file = read_file(path);
  std::deque<Bytes> inputs;  // behind machines, whose values the result is made from
  std::deque<Machine> machines;
  const auto run = [&](Bytes& in) -> const Value* { return machines.emplace_back(in).run(); };
  Storages storages;
  const Value* dict = nullptr;

  if (file.starts_with("PK\x03\x04")) {
    const Zip zip(path, file);
    const std::string root = zip.root();
    if (zip.has(root + "byteorder") && zip.read(root + "byteorder") != "little") {
      bad(path, "its numbers are big-endian; save it on a little-endian machine");
    }
    dict = run(inputs.emplace_back(path, zip.read(root + "data.pkl"), "data.pkl"));
    each_tensor(dict, path, [&](const std::string&, const Value& tensor) {
      const Value& storage = *tensor.items[0];
      if (storages.count(storage.text) == 0) {
        storages.emplace(storage.text, storage_of(storage, zip.read(root + "data/" + storage.text), path));
      }
    });
  } else if (file.starts_with(kMagic)) {
    Bytes& in = inputs.emplace_back(path, file, "file");
    for (int skipped = 0; skipped < 3; ++skipped) run(in);
    dict = run(in);
    const Value* keys = run(in);
    std::map<std::string, const Value*> wanted;
    each_tensor(dict, path,
                [&](const std::string&, const Value& tensor) { wanted[tensor.items[0]->text] = tensor.items[0]; });
    if (keys->kind != Kind::list) bad(path, "the list of its storages is missing");
    for (const Value* key : keys->items) {
      const auto found = wanted.find(key->text);
      if (found == wanted.end()) bad(path, "it has a storage \"" + key->text + "\" of no tensor");
      const auto elements = in.number<uint64_t>();
      const uint64_t width = torch::elementSize(found->second->dtype);
      if (elements > file.size() / width) bad(path, "storage \"" + key->text + "\" is longer than the file");
      storages.emplace(key->text, storage_of(*found->second, in.take(elements * width), path));
    }
  } else {
    bad(path,
        "it begins like neither of the two formats of torch.save; if it is a few bytes of text, git-lfs has not "
        "fetched the file");
  }

  NamedTensors result;
  each_tensor(dict, path, [&](const std::string& name, const Value& tensor) {
    if (storages.count(tensor.items[0]->text) == 0) bad(path, "storage \"" + tensor.items[0]->text + "\" is missing");
    result.emplace_back(name, tensor_of(tensor, storages, name, path));
  });
  return result;
}

}  // namespace heed::nn
