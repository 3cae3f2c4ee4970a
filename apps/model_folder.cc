// Reading and writing a model folder: what may be wrong with it, and the names of its tensors.
#include "apps/model_folder.h"

#include <ATen/CPUGeneratorImpl.h>
#include <heed/attention.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "libtorch/files.h"

namespace heed::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

constexpr const char *kConfig = "config.json", *kWeights = "model.safetensors", *kPickle = "pytorch_model.bin";

std::string in(const std::string& dir, const char* name) { return (fs::path(dir) / name).string(); }

std::string shape_text(torch::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// "'marian'", "'vit' and 'deit'"
std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + ("'" + words[i] + "'");
  }
  return text;
}

}  // namespace

// ---- config.json ----

JsonKeys read_config(const std::string& dir, const std::vector<std::string>& model_types, const std::string& reader) {
  std::error_code ignored;
  if (!fs::exists(dir, ignored)) throw Error(dir + " does not exist; give the folder of a trained model");
  if (!fs::is_directory(dir, ignored)) throw Error(dir + " is not a folder; give the folder of a trained model");
  const std::string path = in(dir, kConfig);
  if (!fs::exists(path, ignored)) throw Error(dir + " has no config.json; give the folder of a trained model");
  JsonKeys config = JsonKeys::read(path);
  const json& said = config.at("model_type");
  const std::string type = said.is_string() ? said.get<std::string>() : quoted(said);
  if (std::find(model_types.begin(), model_types.end(), type) == model_types.end())
    throw Error(dir + " holds a '" + type + "' model; " + reader + " reads " + listed(model_types));
  return config;
}

nn::Activation activation_of(const JsonKeys& config, const char* key) {
  const std::string name = config.text(key, "gelu");
  try {
    return nn::activation_from_name(name);
  } catch (const Error& error) {
    throw Error(config.file() + "'s \"" + key + "\": " + error.what());
  }
}

std::vector<std::string> labels_of(const JsonKeys& config) {
  std::vector<std::string> labels;
  if (!config.says("id2label")) {
    const int64_t count = config.size("num_labels", 2);
    for (int64_t i = 0; i < count; ++i) labels.push_back("LABEL_" + std::to_string(i));
    return labels;
  }
  const json& names = config.at("id2label");
  if (!names.is_object() || names.empty()) config.refuse("id2label", "an object with a name for each class");
  for (size_t i = 0; i < names.size(); ++i) {
    const auto name = names.find(std::to_string(i));
    if (name == names.end() || !name->is_string()) {
      throw Error(config.file() + "'s \"id2label\" has " + std::to_string(names.size()) +
                  " classes and no name for class " + std::to_string(i) + "; they are numbered from 0");
    }
    labels.push_back(name->get<std::string>());
  }
  return labels;
}

void put_labels(const std::vector<std::string>& labels, json& config) {
  json names = json::object(), numbers = json::object();
  for (size_t i = 0; i < labels.size(); ++i) {
    names[std::to_string(i)] = labels[i];
    numbers[labels[i]] = i;
  }
  config["id2label"] = std::move(names);
  config["label2id"] = std::move(numbers);
}

// ---- model.safetensors ----

std::string TensorNames::v4(std::string name) const {
  for (const Renaming& rule : rules) name = std::regex_replace(name, rule.ours, rule.v4);
  return name;
}

std::string TensorNames::v5(std::string name) const {
  for (const Renaming& rule : rules) name = std::regex_replace(name, rule.ours, rule.v5);
  return name;
}

nn::SafeTensors read_weights(const std::string& dir, double numbers) {
  const std::string path = in(dir, kWeights);
  std::error_code ignored;
  if (!fs::exists(path, ignored) && fs::exists(in(dir, kPickle), ignored)) {
    throw Error(dir + " has its weights in pytorch_model.bin; `heed convert " + dir +
                "` makes a model.safetensors of it");
  }
  nn::SafeTensors file = nn::load_safetensors(path);
  double stored = 0;
  for (const auto& [name, tensor] : file.tensors) stored += static_cast<double>(tensor.numel());
  if (numbers > 2 * stored + 1e6) {
    throw Error(path + " holds " + std::to_string(static_cast<int64_t>(stored)) +
                " numbers and config.json describes a model of " + std::to_string(static_cast<int64_t>(numbers)) +
                "; the two files are not of one model");
  }
  return file;
}

void fill(torch::nn::Module& module, const nn::SafeTensors& file, const std::string& dir, const TensorNames& names) {
  const std::string path = in(dir, kWeights);
  torch::NoGradGuard no_grad;
  std::set<std::string> used;
  const auto copy = [&](const std::string& ours, Tensor& into) {
    std::string name = names.v4(ours);
    const Tensor* from = file.find(name);
    if (from == nullptr) from = file.find(name = names.v5(ours));
    if (from == nullptr) {
      if (!into.is_floating_point()) return;  // BatchNorm's count of steps, which old files have not
      throw Error(path + " has no tensor '" + names.v4(ours) + "' that config.json asks for");
    }
    used.insert(name);
    if (from->sizes() != into.sizes()) {
      throw Error("the tensor '" + name + "' in " + path + " is " + shape_text(from->sizes()) +
                  " and config.json asks for " + shape_text(into.sizes()));
    }
    if (from->is_floating_point() != into.is_floating_point())
      throw Error("the tensor '" + name + "' in " + path + " holds " + c10::toString(from->scalar_type()) +
                  "; the model needs " + c10::toString(into.scalar_type()));
    into.copy_(*from);
  };
  for (auto& item : module.named_parameters()) copy(item.key(), item.value());
  for (auto& item : module.named_buffers()) copy(item.key(), item.value());
  for (const auto& [name, tensor] : file.tensors) {
    if (used.count(name) == 0 && !std::regex_search(name, names.spare)) {
      throw Error(path + " has a tensor '" + name +
                  "' that config.json does not ask for; the two files are not of one model");
    }
  }
}

void save_model_folder(const std::string& dir, const torch::nn::Module& module, const TensorNames& names,
                       const json& config) {
  nn::make_folder(dir);
  nn::NamedTensors tensors;
  for (const auto& item : module.named_parameters()) tensors.emplace_back(names.v4(item.key()), item.value().detach());
  for (const auto& item : module.named_buffers()) tensors.emplace_back(names.v4(item.key()), item.value().detach());
  // The weights first: a folder with a config.json and no weights looks like a model and is none.
  nn::save_safetensors(in(dir, kWeights), tensors, {{"format", "pt"}});
  nn::write_file(in(dir, kConfig), config.dump(2) + "\n");
}

RandomStateGuard::RandomStateGuard()
    : generator_(at::detail::getDefaultCPUGenerator()), state_(generator_.get_state()) {}

RandomStateGuard::~RandomStateGuard() { generator_.set_state(state_); }

}  // namespace heed::app
