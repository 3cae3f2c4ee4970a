// What both models share: the batch, config.json, building by name, and the model folder.
#include "apps/translate/model.h"

#include <ATen/CPUGeneratorImpl.h>
#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <system_error>

#include "apps/translate/rnn_model.h"
#include "apps/translate/transformer_model.h"
#include "libtorch/files.h"
#include "libtorch/safetensors.h"

namespace heed::translate {
namespace {

using nlohmann::json;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";

// Sizes above this are a damaged file, not a model; it keeps products of two sizes far from overflow.
constexpr int64_t kLargestSize = int64_t{1} << 24;

std::string quoted(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

const json& member(const json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) throw Error(std::string("config.json has no key \"") + key + "\"");
  return *found;
}

int64_t size_of(const json& config, const char* key) {
  const json& value = member(config, key);
  // A fraction or a huge unsigned number must not be rounded or wrapped into something that looks fine.
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kLargestSize)) &&
                    value.get<int64_t>() >= 1 && value.get<int64_t>() <= kLargestSize;
  if (!fits) {
    throw Error("config.json's \"" + std::string(key) + "\" is " + quoted(value) +
                "; it must be a whole number from 1 to " + std::to_string(kLargestSize));
  }
  return value.get<int64_t>();
}

double probability(const json& config, const char* key) {
  const json& value = member(config, key);
  if (!value.is_number() || !(value.get<double>() >= 0 && value.get<double>() < 1)) {
    throw Error("config.json's \"" + std::string(key) + "\" is " + quoted(value) +
                "; it must be at least 0 and below 1");
  }
  return value.get<double>();
}

// The key must be there with this value, because the model is built so and in no other way.
void require(const json& config, const char* key, const json& expected) {
  const json& value = member(config, key);
  if (value != expected) {
    throw Error("config.json's \"" + std::string(key) + "\" is " + quoted(value) +
                "; heed translate reads models where it is " + quoted(expected));
  }
}

void require_same(const json& config, const char* key, const char* other) {
  const int64_t a = size_of(config, key), b = size_of(config, other);
  if (a != b) {
    throw Error("config.json's \"" + std::string(key) + "\" is " + std::to_string(a) + " and \"" + other + "\" is " +
                std::to_string(b) + "; heed translate reads models where they are equal");
  }
}

// What is constant in the models we write, by Hugging Face's names.
json special_tokens() {
  return {{"pad_token_id", kPad}, {"unk_token_id", kUnk},           {"bos_token_id", kBos},
          {"eos_token_id", kEos}, {"decoder_start_token_id", kBos}, {"forced_eos_token_id", kEos}};
}

json marian_constants() {
  return {{"activation_function", "swish"},
          {"scale_embedding", true},
          {"static_position_embeddings", true},
          {"normalize_before", false},
          {"normalize_embedding", false},
          {"add_final_layer_norm", false},
          {"share_encoder_decoder_embeddings", true},
          {"tie_word_embeddings", true},
          {"pad_token_id", kPad},
          {"eos_token_id", kEos},
          {"decoder_start_token_id", kBos}};
}

// Throws for sizes no model can be built with. Where they come from (options or a file) is the caller's to say.
void check(const ModelConfig& c) {
  if (c.arch != "rnn" && c.arch != "transformer") {
    throw Error("there is no architecture '" + c.arch + "'; choose 'rnn' or 'transformer'");
  }
  const auto size = [](const char* name, int64_t value, int64_t least) {
    if (value < least || value > kLargestSize) {
      throw Error(std::string(name) + " is " + std::to_string(value) + "; it must be from " + std::to_string(least) +
                  " to " + std::to_string(kLargestSize));
    }
  };
  size("vocab", c.vocab, kEos + 1);
  size("dim", c.dim, 1);
  if (!(c.dropout >= 0 && c.dropout < 1)) {
    throw Error("dropout is " + std::to_string(c.dropout) + "; it must be at least 0 and below 1");
  }
  if (c.arch == "rnn") {
    size("hidden", c.hidden, 1);
    if (c.layers != 1)
      throw Error("an rnn has 1 layer, not " + std::to_string(c.layers) + "; make it wider with hidden");
    return;
  }
  size("heads", c.heads, 1);
  size("layers", c.layers, 1);
  size("ffn", c.ffn, 1);
  size("max_positions", c.max_positions, 1);
  if (c.dim % c.heads != 0) {
    const int64_t below = std::max(c.heads, c.dim - c.dim % c.heads);
    throw Error("dim " + std::to_string(c.dim) + " is not divisible by " + std::to_string(c.heads) + " heads; " +
                std::to_string(below) + " is");
  }
}

std::string shape_text(torch::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// The tensors of a file by name, without what older writers of Marian checkpoints add and everyone recomputes.
bool can_be_ignored(const std::string& name) {
  return name == "model.encoder.embed_positions.weight" || name == "model.decoder.embed_positions.weight" ||
         name == "model.encoder.embed_tokens.weight" || name == "model.decoder.embed_tokens.weight" ||
         name == "lm_head.weight";
}

// Puts torch's generator back: loading must not change what is drawn after it.
class RandomStateGuard {
 public:
  RandomStateGuard() : generator_(at::detail::getDefaultCPUGenerator()), state_(generator_.get_state()) {}
  ~RandomStateGuard() { generator_.set_state(state_); }

 private:
  at::Generator generator_;
  torch::Tensor state_;
};

}  // namespace

int64_t Batch::target_tokens() const {
  int64_t sum = 0;
  for (const int64_t n : target_lengths) sum += n;
  return sum;
}

ModelConfig ModelConfig::from_json(const json& j) {
  if (!j.is_object()) throw Error("config.json does not hold a JSON object");
  const json& type = member(j, "model_type");
  ModelConfig c;
  c.vocab = size_of(j, "vocab_size");
  if (type == "marian") {
    c.arch = "transformer";
    const json constants = marian_constants();
    for (const auto& [key, value] : constants.items()) require(j, key.c_str(), value);
    require_same(j, "encoder_layers", "decoder_layers");
    require_same(j, "encoder_attention_heads", "decoder_attention_heads");
    require_same(j, "encoder_ffn_dim", "decoder_ffn_dim");
    if (j.contains("decoder_vocab_size")) require_same(j, "vocab_size", "decoder_vocab_size");
    c.dim = size_of(j, "d_model");
    c.heads = size_of(j, "encoder_attention_heads");
    c.layers = size_of(j, "encoder_layers");
    c.ffn = size_of(j, "encoder_ffn_dim");
    c.max_positions = size_of(j, "max_position_embeddings");
  } else if (type == "heed-rnn") {
    c.arch = "rnn";
    for (const char* key : {"pad_token_id", "eos_token_id", "decoder_start_token_id"}) {
      require(j, key, special_tokens()[key]);
    }
    c.layers = 1;
    c.dim = size_of(j, "embedding_size");
    c.hidden = size_of(j, "hidden_size");
  } else {
    throw Error("config.json is for a " + quoted(type) + " model; heed translate reads \"marian\" and \"heed-rnn\"");
  }
  c.dropout = probability(j, "dropout");
  if (j.contains("do_lower_case")) {
    const json& value = member(j, "do_lower_case");
    if (!value.is_boolean())
      throw Error("config.json's \"do_lower_case\" is " + quoted(value) + "; it must be true or false");
    c.lowercase = value.get<bool>();
  }
  check(c);
  return c;
}

json ModelConfig::to_json() const {
  check(*this);
  json j = special_tokens();
  j["vocab_size"] = vocab;
  j["dropout"] = dropout;
  j["do_lower_case"] = lowercase;
  j["torch_dtype"] = "float32";
  j["is_encoder_decoder"] = true;
  if (arch == "rnn") {
    j["model_type"] = "heed-rnn";
    j["embedding_size"] = dim;
    j["hidden_size"] = hidden;
    return j;
  }
  j.update(marian_constants());
  j["model_type"] = "marian";
  j["architectures"] = {"MarianMTModel"};
  j["decoder_vocab_size"] = vocab;
  j["d_model"] = dim;
  for (const std::string side : {"encoder", "decoder"}) {
    j[side + "_layers"] = layers;
    j[side + "_attention_heads"] = heads;
    j[side + "_ffn_dim"] = ffn;
    j[side + "_layerdrop"] = 0.0;
  }
  j["num_hidden_layers"] = layers;
  j["max_position_embeddings"] = max_positions;
  j["attention_dropout"] = 0.0;
  j["activation_dropout"] = 0.0;
  j["init_std"] = 1.0 / std::sqrt(static_cast<double>(dim));
  j["use_cache"] = true;
  // How `generate` in transformers is to search: pad is never an output.
  j["bad_words_ids"] = json::array({json::array({kPad})});
  j["num_beams"] = 4;
  j["max_length"] = max_positions;
  return j;
}

std::shared_ptr<Model> make_model(const ModelConfig& config) {
  check(config);
  if (config.arch == "rnn") return std::make_shared<RnnModel>(config);
  return std::make_shared<TransformerModel>(config);
}

void save_model(const Model& model, const std::string& dir) {
  namespace fs = std::filesystem;
  std::error_code failed;
  fs::create_directories(dir, failed);
  if (failed) throw Error("cannot make the folder " + dir + ": " + failed.message());
  nn::NamedTensors tensors;
  for (const auto& item : model.named_parameters()) tensors.emplace_back(item.key(), item.value().detach());
  for (const auto& item : model.named_buffers()) tensors.emplace_back(item.key(), item.value().detach());
  // The weights first: a folder with a config.json and no weights looks like a model and is none.
  nn::save_safetensors((fs::path(dir) / kWeightsFile).string(), tensors, {{"format", "pt"}});
  nn::write_file((fs::path(dir) / kConfigFile).string(), model.config().to_json().dump(2) + "\n");
}

std::shared_ptr<Model> load_model(const std::string& dir) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::exists(dir, ignored)) throw Error(dir + " does not exist; give the folder of a trained model");
  if (!fs::is_directory(dir, ignored)) throw Error(dir + " is not a folder; give the folder of a trained model");
  const std::string config_path = (fs::path(dir) / kConfigFile).string();
  if (!fs::exists(config_path, ignored)) {
    throw Error(dir + " has no config.json; give the folder that `heed train translate --out` made");
  }
  const json j = json::parse(nn::read_file(config_path), nullptr, /*allow_exceptions=*/false);
  if (j.is_discarded()) throw Error(config_path + " is not JSON; the file is damaged, copy the model folder again");
  if (j.is_object() && j.contains("model_type") && j["model_type"].is_string() && j["model_type"] != "marian" &&
      j["model_type"] != "heed-rnn") {
    throw Error(dir + " holds a '" + j["model_type"].get<std::string>() +
                "' model; heed translate reads 'marian' and 'heed-rnn'");
  }

  ModelConfig config;
  try {
    config = ModelConfig::from_json(j);
  } catch (const Error& error) {
    throw Error(dir + ": " + error.what());
  }
  const std::string weights_path = (fs::path(dir) / kWeightsFile).string();
  const nn::SafeTensors file = nn::load_safetensors(weights_path);
  if (const torch::Tensor* shared = file.find(config.arch == "rnn" ? "shared.weight" : "model.shared.weight");
      shared != nullptr && shared->dim() == 2 && shared->size(0) != config.vocab) {
    throw Error(weights_path + " has an embedding of " + std::to_string(shared->size(0)) +
                " pieces and config.json says " + std::to_string(config.vocab) +
                "; the two files are not of one model");
  }

  // A damaged config.json must not ask for terabytes: a model far larger than the file is refused before it is made.
  double stored = 0;
  for (const auto& [name, tensor] : file.tensors) stored += static_cast<double>(tensor.numel());
  const double wanted =
      config.arch == "rnn" ? RnnModel::parameters_of(config) : TransformerModel::parameters_of(config);
  if (wanted > 2 * stored + 1e6) {
    throw Error(weights_path + " holds " + std::to_string(static_cast<int64_t>(stored)) +
                " numbers and config.json describes a model of " + std::to_string(static_cast<int64_t>(wanted)) +
                "; the two files are not of one model");
  }
  const RandomStateGuard guard;
  const std::shared_ptr<Model> model = make_model(config);

  torch::NoGradGuard no_grad;
  std::set<std::string> known;
  const auto fill = [&](const std::string& name, torch::Tensor& into) {
    known.insert(name);
    const torch::Tensor* from = file.find(name);
    if (from == nullptr) throw Error(weights_path + " has no tensor '" + name + "' that config.json asks for");
    if (from->sizes() != into.sizes()) {
      throw Error("the tensor '" + name + "' in " + weights_path + " is " + shape_text(from->sizes()) +
                  " and config.json asks for " + shape_text(into.sizes()));
    }
    if (!from->is_floating_point())
      throw Error("the tensor '" + name + "' in " + weights_path + " does not hold fractions");
    into.copy_(*from);
  };
  for (auto& item : model->named_parameters()) fill(item.key(), item.value());
  for (auto& item : model->named_buffers()) fill(item.key(), item.value());
  for (const auto& [name, tensor] : file.tensors) {
    if (known.count(name) == 0 && !can_be_ignored(name)) {
      throw Error(weights_path + " has a tensor '" + name +
                  "' that config.json does not ask for; the two files are not of one model");
    }
  }
  model->eval();
  return model;
}

}  // namespace heed::translate
