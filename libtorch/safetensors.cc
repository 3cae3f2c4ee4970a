// Writing and reading safetensors: 8 bytes of header length, a JSON header, the tensors' bytes.
#include "libtorch/safetensors.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <heed/attention.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "libtorch/files.h"

namespace heed::nn {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and so is this code");

using Json = nlohmann::json;

// As in Hugging Face's own reader: a longer header is a broken or hostile file.
constexpr uint64_t kMaxHeader = 100'000'000;

struct Kind {
  const char* name;
  torch::ScalarType dtype;
};
constexpr Kind kKinds[] = {{"F64", torch::kFloat64},   {"F32", torch::kFloat32}, {"F16", torch::kFloat16},
                           {"BF16", torch::kBFloat16}, {"I64", torch::kInt64},   {"I32", torch::kInt32},
                           {"I16", torch::kInt16},     {"I8", torch::kInt8},     {"U8", torch::kUInt8},
                           {"BOOL", torch::kBool}};
constexpr const char* kKindNames = "F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL";

const Kind* kind_of(torch::ScalarType dtype) {
  const auto* kind =
      std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return k.dtype == dtype; });
  return kind == std::end(kKinds) ? nullptr : kind;
}

const Kind* kind_of(const std::string& name) {
  const auto* kind = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return name == k.name; });
  return kind == std::end(kKinds) ? nullptr : kind;
}

std::string number(uint64_t n) { return std::to_string(n); }

// What the header says of one tensor, after checking.
struct Entry {
  std::string name;
  torch::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;  // in the bytes behind the header
};

// An open file that knows its name, for the errors.
class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    struct stat status {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) {
      const int error = errno;
      close();
      if (error == ENOENT) throw Error("there is no file " + path);
      throw Error("cannot read " + path + ": " + std::strerror(error));
    }
    if (!S_ISREG(status.st_mode)) {
      close();
      throw Error("cannot read " + path + ": it is " +
                  (S_ISDIR(status.st_mode) ? "a directory" : "not a regular file"));
    }
    size_ = static_cast<uint64_t>(status.st_size);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { close(); }

  uint64_t size() const { return size_; }

  void read(void* to, uint64_t bytes) {
    auto* at = static_cast<char*>(to);
    while (bytes > 0) {
      const ssize_t n = ::read(descriptor_, at, std::min<uint64_t>(bytes, 1 << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw Error("cannot read " + path_ + ": " + std::strerror(errno));
      if (n == 0) throw Error(path_ + " became shorter while it was read; is another program writing it?");
      at += n;
      bytes -= static_cast<uint64_t>(n);
    }
  }

  [[noreturn]] void bad(const std::string& what) const {
    throw Error(path_ + " is not a good safetensors file: " + what);
  }

 private:
  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  std::string path_;
  int descriptor_;
  uint64_t size_ = 0;
};

// Parses the header, refusing what JSON libraries let pass: a key that is given twice, and nesting the format has not.
Json parse_header(const std::string& text, const Reader& file) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth > 3) file.bad("its header is nested more than 3 deep");
      if (event == Json::parse_event_t::object_start) keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) file.bad("\"" + key + "\" is in its header twice");
    }
    return true;
  };
  try {
    Json header = Json::parse(text, check);
    if (!header.is_object()) file.bad("its header is not a JSON object");
    return header;
  } catch (const Json::exception& error) {
    file.bad(std::string("its header is not JSON (") + error.what() + ")");
  }
}

Entry check_entry(const std::string& name, const Json& said, uint64_t data_bytes, const Reader& file) {
  const std::string who = "tensor \"" + name + "\" ";
  if (!said.is_object()) file.bad(who + "has no description");
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!said.contains(key)) file.bad(who + "has no \"" + key + "\"");
  }
  if (!said["dtype"].is_string()) file.bad(who + "has a dtype that is not a string");
  const Kind* kind = kind_of(said["dtype"].get<std::string>());
  if (kind == nullptr) {
    file.bad(who + "has dtype " + said["dtype"].get<std::string>() + "; known are " + kKindNames);
  }
  Entry entry{name, kind->dtype, {}, 0, 0};
  if (!said["shape"].is_array()) file.bad(who + "has a shape that is not a list");
  uint64_t bytes = torch::elementSize(kind->dtype);
  bool empty = false;  // a 0 makes any other size harmless, but the product must not overflow for torch either
  for (const Json& size : said["shape"]) {
    if (!size.is_number_unsigned())
      file.bad(who + "has the size " + size.dump() + "; sizes are whole and not negative");
    const auto n = size.get<uint64_t>();
    empty = empty || n == 0;
    if (n > INT64_MAX || (n != 0 && __builtin_mul_overflow(bytes, n, &bytes)) || bytes > INT64_MAX) {
      file.bad(who + "has the shape " + said["shape"].dump() + ", which no memory holds");
    }
    entry.shape.push_back(static_cast<int64_t>(n));
  }
  if (empty) bytes = 0;
  const Json& offsets = said["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    file.bad(who + "has the data_offsets " + offsets.dump() + "; they are a begin and an end");
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.begin > entry.end || entry.end > data_bytes) {
    file.bad(who + "lies at bytes " + number(entry.begin) + " to " + number(entry.end) + " of " + number(data_bytes) +
             "; the file is cut short or its header wrong");
  }
  if (entry.end - entry.begin != bytes) {
    file.bad(who + "takes " + number(entry.end - entry.begin) + " bytes; dtype " + kind->name + " and shape " +
             said["shape"].dump() + " need " + number(bytes));
  }
  return entry;
}

}  // namespace

const torch::Tensor* SafeTensors::find(const std::string& name) const {
  for (const auto& [have, tensor] : tensors) {
    if (have == name) return &tensor;
  }
  return nullptr;
}

void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::vector<const std::pair<std::string, torch::Tensor>*> order;
  for (const auto& named : tensors) {
    const auto& [name, tensor] = named;
    const std::string who = "cannot write " + path + ": tensor \"" + name + "\" ";
    if (name == "__metadata__") throw Error(who + "has the name the format keeps for itself");
    if (!tensor.defined()) throw Error(who + "is not defined");
    if (tensor.layout() != torch::kStrided) throw Error(who + "is not a dense tensor");
    if (kind_of(tensor.scalar_type()) == nullptr) {
      throw Error(who + "has dtype " + std::string(c10::toString(tensor.scalar_type())) + "; the file can hold " +
                  kKindNames);
    }
    order.push_back(&named);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    const auto wide_a = a->second.element_size(), wide_b = b->second.element_size();
    return wide_a != wide_b ? wide_a > wide_b : a->first < b->first;
  });

  // Written by hand, key by key, because the order of the keys is the order of the bytes.
  std::string text = "{";
  uint64_t offset = 0;
  std::set<std::string> names;
  try {
    if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
    for (const auto* named : order) {
      const auto& [name, tensor] = *named;
      if (!names.insert(name).second) throw Error("cannot write " + path + ": tensor \"" + name + "\" is given twice");
      const uint64_t end = offset + static_cast<uint64_t>(tensor.numel()) * tensor.element_size();
      if (text.size() > 1) text += ',';
      text += Json(name).dump() + ":{\"dtype\":\"" + kind_of(tensor.scalar_type())->name +
              "\",\"shape\":" + Json(tensor.sizes().vec()).dump() + ",\"data_offsets\":[" + number(offset) + "," +
              number(end) + "]}";
      offset = end;
    }
  } catch (const Json::exception& error) {
    throw Error("cannot write " + path + ": a name or the metadata is not UTF-8 (" + error.what() + ")");
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the format pads with spaces, so that the data are aligned
  if (text.size() > kMaxHeader) {
    throw Error("cannot write " + path + ": its header would have " + number(text.size()) +
                " bytes, the format allows " + number(kMaxHeader));
  }

  torch::NoGradGuard no_grad;
  write_file(path, [&](std::ostream& out) {
    const uint64_t length = text.size();
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto* named : order) {
      const auto dense = named->second.detach().to(torch::kCPU).contiguous();
      out.write(static_cast<const char*>(dense.data_ptr()), static_cast<std::streamsize>(dense.nbytes()));
    }
  });
}

SafeTensors load_safetensors(const std::string& path) {
  Reader file(path);
  uint64_t length = 0;
  if (file.size() < sizeof length) {
    file.bad("it has " + number(file.size()) + " bytes, and the length of the header alone takes 8");
  }
  file.read(&length, sizeof length);
  if (length > kMaxHeader) {
    file.bad("its header claims " + number(length) + " bytes, the format allows " + number(kMaxHeader));
  }
  if (length > file.size() - sizeof length) {
    file.bad("its header claims " + number(length) + " bytes, and " + number(file.size() - sizeof length) +
             " are there");
  }
  std::string text(length, '\0');
  file.read(text.data(), length);
  const uint64_t data_bytes = file.size() - sizeof length - length;
  if (text.empty() || text[0] != '{') file.bad("its header does not begin with '{'");
  const Json header = parse_header(text, file);

  SafeTensors result;
  std::vector<Entry> entries;
  for (const auto& [name, said] : header.items()) {
    if (name != "__metadata__") {
      entries.push_back(check_entry(name, said, data_bytes, file));
      continue;
    }
    if (!said.is_object()) file.bad("its __metadata__ is not an object");
    for (const auto& [key, value] : said.items()) {
      if (!value.is_string()) file.bad("its metadata \"" + key + "\" is not a string");
      result.metadata[key] = value.get<std::string>();
    }
  }

  // The tensors must cover the bytes once each, without holes: then the file is exactly as long as it has to be.
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      file.bad("tensor \"" + entry.name + "\" begins at byte " + number(entry.begin) + ", the one before it ends at " +
               number(covered));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    file.bad("its tensors take " + number(covered) + " bytes, and " + number(data_bytes) + " are there");
  }

  for (const Entry& entry : entries) {
    auto tensor = torch::empty(entry.shape, torch::TensorOptions().dtype(entry.dtype));
    file.read(tensor.data_ptr(), entry.end - entry.begin);
    if (entry.dtype == torch::kBool) {
      const auto* byte = static_cast<const uint8_t*>(tensor.data_ptr());
      for (uint64_t i = 0; i < entry.end - entry.begin; ++i) {
        if (byte[i] > 1) file.bad("tensor \"" + entry.name + "\" is BOOL and holds the byte " + number(byte[i]));
      }
    }
    result.tensors.emplace_back(entry.name, std::move(tensor));
  }
  return result;
}

}  // namespace heed::nn
