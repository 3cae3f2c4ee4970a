// What both models share: the batch, config.json, building by name, and the model folder.
#include "apps/translate/model.h"

#include <heed/attention.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <set>
#include <system_error>

#include "apps/model_folder.h"
#include "apps/translate/rnn_model.h"
#include "apps/translate/transformer_model.h"
#include "libtorch/files.h"
#include "libtorch/safetensors.h"
#include "libtorch/transformer.h"

namespace heed::translate {
namespace {

using app::JsonKeys;
using app::quoted;
using nlohmann::json;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kGenerationFile = "generation_config.json";
constexpr const char* kVocabFile = "vocab.json";
constexpr const char* kWeightsFile = "model.safetensors";

// The key must be there with this value, because the model is built so and in no other way.
void require(const JsonKeys& config, const char* key, const json& expected) {
  if (config.at(key) != expected) {
    throw Error(config.file() + "'s \"" + key + "\" is " + quoted(config.at(key)) +
                "; heed translate reads models where it is " + quoted(expected));
  }
}

void require_same(const JsonKeys& config, const char* key, const char* other) {
  const int64_t a = config.size(key), b = config.size(other);
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

// What every Marian model has: one that says otherwise is none of those transformers computes. They need not say it.
json marian_constants() {
  return {{"static_position_embeddings", true},
          {"normalize_before", false},
          {"normalize_embedding", false},
          {"add_final_layer_norm", false}};
}

// What a Marian model's config.json says of its tokens.
TokenIds tokens_of(const JsonKeys& j, int64_t vocab, int64_t target_vocab) {
  const auto token = [&](const char* key, int64_t size) { return j.whole(key, 0, size - 1); };
  TokenIds ids;
  ids.pad = token("pad_token_id", std::min(vocab, target_vocab));
  ids.eos = token("eos_token_id", std::min(vocab, target_vocab));
  ids.start = token("decoder_start_token_id", target_vocab);
  ids.unk = j.says("unk_token_id") ? token("unk_token_id", vocab) : std::min(kUnk, vocab - 1);

  // Padding and the start are never a word, whether the file lists them or, as the oldest do, leaves it to the program.
  ids.banned.clear();
  const auto ban = [&ids](int64_t id) {
    if (id != ids.eos && std::count(ids.banned.begin(), ids.banned.end(), id) == 0) ids.banned.push_back(id);
  };
  ban(ids.pad);
  ban(ids.start);
  if (j.says("bad_words_ids")) {
    const json& list = j.at("bad_words_ids");
    for (const json& word : list.is_array() ? list : json::array({list})) {
      if (!word.is_array() || word.size() != 1) {
        throw Error("config.json's \"bad_words_ids\" holds " + quoted(word) +
                    "; heed translate can ban single tokens, as in [[59]]");
      }
      ban(JsonKeys({{"bad_words_ids", word[0]}}, j.file()).whole("bad_words_ids", 0, target_vocab - 1));
    }
  }
  // In Marian's files the end is forced unless they say null. Our own have said 3 without ever meaning it.
  if (!j.object().contains("forced_eos_token_id")) ids.forced_end = ids.eos;
  if (j.says("forced_eos_token_id")) ids.forced_end = token("forced_eos_token_id", target_vocab);
  if (ids.pad == kPad && ids.unk == kUnk && ids.start == kBos && ids.eos == kEos) ids.forced_end = -1;
  if (j.object().contains("renormalize_logits")) ids.renormalize = j.flag("renormalize_logits", false);
  return ids;
}

Generation generation_of(const JsonKeys& j) {
  Generation g;
  g.beam = static_cast<int>(j.whole("num_beams", 1, 1000, g.beam));
  if (j.says("length_penalty")) {
    if (!j.at("length_penalty").is_number()) j.refuse("length_penalty", "a number");
    g.length_penalty = j.at("length_penalty").get<double>();
  }
  // Hugging Face counts what the decoder is fed first, too.
  g.max_length = static_cast<int>(j.whole("max_length", 1, app::kLargestSize, 1)) - 1;
  return g;
}

// config.json with what generation_config.json says of searching in its place, as transformers does it: of three keys
// even what the second leaves out is said by it, for they then are off.
JsonKeys overlaid(const JsonKeys& config, const JsonKeys& generation) {
  json all = config.object();
  for (const char* key : {"num_beams", "length_penalty", "max_length"}) {
    if (generation.says(key)) all[key] = generation.at(key);
  }
  for (const char* key : {"bad_words_ids", "forced_eos_token_id", "renormalize_logits"}) {
    all[key] = generation.says(key) ? generation.at(key) : json(nullptr);
  }
  return {std::move(all), config.file()};
}

// Throws for sizes no model can be built with. Where they come from (options or a file) is the caller's to say.
void check(const ModelConfig& given) {
  const ModelConfig c = given.completed();
  if (c.arch != "rnn" && c.arch != "transformer") {
    throw Error("there is no architecture '" + c.arch + "'; choose 'rnn' or 'transformer'");
  }
  const auto size = [](const char* name, int64_t value, int64_t least) {
    if (value < least || value > app::kLargestSize) {
      throw Error(std::string(name) + " is " + std::to_string(value) + "; it must be from " + std::to_string(least) +
                  " to " + std::to_string(app::kLargestSize));
    }
  };
  const TokenIds& t = c.tokens;
  size("vocab", c.vocab, 1 + std::max({t.pad, t.unk, t.eos}));
  size("dim", c.dim, 1);
  if (!(c.dropout >= 0 && c.dropout < 1)) {
    throw Error("dropout is " + std::to_string(c.dropout) + "; it must be at least 0 and below 1");
  }
  if (c.arch == "rnn") {
    size("hidden", c.hidden, 1);
    if (c.tokens != TokenIds{})
      throw Error("an rnn numbers <pad>, <unk>, <s> and </s> as 0, 1, 2 and 3 and in no other way");
    if (c.layers != 1)
      throw Error("an rnn has 1 layer, not " + std::to_string(c.layers) + "; make it wider with hidden");
    return;
  }
  size("target_vocab", c.target_vocab, 1 + std::max({t.pad, t.eos, t.start, t.forced_end}));
  for (const int64_t banned : t.banned) size("target_vocab", c.target_vocab, 1 + banned);
  size("max_positions", c.max_positions, 1);
  for (const auto& [layers, heads, ffn] :
       {std::array{c.layers, c.heads, c.ffn}, std::array{c.decoder_layers, c.decoder_heads, c.decoder_ffn}}) {
    size("heads", heads, 1);
    size("layers", layers, 1);
    size("ffn", ffn, 1);
    if (c.dim % heads != 0) {
      const int64_t below = std::max(heads, c.dim - c.dim % heads);
      throw Error("dim " + std::to_string(c.dim) + " is not divisible by " + std::to_string(heads) + " heads; " +
                  std::to_string(below) + " is");
    }
  }
  nn::activation_from_name(c.activation);
  if (c.shared_embedding && c.target_vocab != c.vocab) {
    throw Error("source and target share one embedding and have " + std::to_string(c.vocab) + " and " +
                std::to_string(c.target_vocab) + " pieces; they need as many");
  }
  if (c.shared_embedding && !c.tied_output) {
    throw Error(
        "an embedding shared by source and target is the output's, too; a model without the second has not the first");
  }
}

std::string shape_text(torch::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// A model file's tensors, each to be had under its name with and without the leading "model." (transformers'
// MarianModel saves without). Keeps count of what has been asked for.
class Tensors {
 public:
  Tensors(const std::string& path, const nn::SafeTensors& file) : path_(path), file_(file) {}

  // The tensor of this name, or nullptr. Throws if it is not `shape` or not of fractions.
  const torch::Tensor* find(const std::string& name, torch::IntArrayRef shape) {
    std::string found = name;
    const torch::Tensor* tensor = file_.find(found);
    if (tensor == nullptr && name.starts_with(kPrefix)) {
      found = name.substr(kPrefix.size());
      tensor = file_.find(found);
    }
    if (tensor == nullptr) return nullptr;
    used_.insert(found);
    if (tensor->sizes() != shape) {
      throw Error("the tensor '" + found + "' in " + path_ + " is " + shape_text(tensor->sizes()) +
                  " and config.json asks for " + shape_text(shape));
    }
    if (!tensor->is_floating_point())
      throw Error("the tensor '" + found + "' in " + path_ + " does not hold fractions");
    return tensor;
  }

  // Of names for one and the same tensor, the first that is there; all that are there must be equal.
  const torch::Tensor* find_one(const std::vector<std::string>& names, torch::IntArrayRef shape) {
    const torch::Tensor* first = nullptr;
    std::string first_name;
    for (const std::string& name : names) {
      const torch::Tensor* tensor = find(name, shape);
      if (tensor == nullptr) continue;
      if (first == nullptr) {
        first = tensor;
        first_name = name;
      } else if (!torch::equal(*first, *tensor)) {
        throw Error(
            "the tensors '" + first_name + "' and '" + name + "' in " + path_ +
            " differ and config.json says that they are one; set \"tie_word_embeddings\" to false there if they "
            "are two");
      }
    }
    return first;
  }

  // Throws if the file has a tensor that nobody has asked for, but for what writers add and everyone recomputes, and an
  // embedding beside those that have taken its place.
  void check_all_used() const {
    for (const auto& [name, tensor] : file_.tensors) {
      if (used_.count(name) > 0 || name.ends_with("embed_positions.weight") || name.ends_with("shared.weight"))
        continue;
      throw Error(path_ + " has a tensor '" + name +
                  "' that config.json does not ask for; the two files are not of one model");
    }
  }

 private:
  inline static const std::string kPrefix = "model.";
  const std::string& path_;
  const nn::SafeTensors& file_;
  std::set<std::string> used_;
};

// The names under which a parameter may be in a file: tied matrices under any of theirs.
std::vector<std::string> names_of(const std::string& parameter, const ModelConfig& config) {
  static const std::string shared = "model.shared.weight", source = "model.encoder.embed_tokens.weight",
                           target = "model.decoder.embed_tokens.weight", output = "lm_head.weight";
  if (parameter == shared) return {shared, source, target, output};
  if (parameter == target && config.tied_output) return {target, output};
  return {parameter};
}

}  // namespace

int64_t Batch::target_tokens() const {
  int64_t sum = 0;
  for (const int64_t n : target_lengths) sum += n;
  return sum;
}

ModelConfig ModelConfig::from_json(const JsonKeys& j) {
  const json& type = j.at("model_type");
  ModelConfig c;
  c.vocab = j.size("vocab_size");
  if (type == "marian") {
    c.arch = "transformer";
    const json constants = marian_constants();
    for (const auto& [key, value] : constants.items()) {
      if (j.says(key.c_str())) require(j, key.c_str(), value);
    }
    c.tied_output = j.flag("tie_word_embeddings", true);
    // transformers ties nothing at all when tie_word_embeddings is false.
    const bool shared = j.flag("share_encoder_decoder_embeddings", true);
    c.shared_embedding = shared && c.tied_output;
    c.target_vocab = j.size("decoder_vocab_size", c.vocab);
    if (shared && j.says("decoder_vocab_size")) require_same(j, "vocab_size", "decoder_vocab_size");
    c.dim = j.size("d_model");
    c.heads = j.size("encoder_attention_heads");
    c.layers = j.size("encoder_layers");
    c.ffn = j.size("encoder_ffn_dim");
    c.decoder_heads = j.size("decoder_attention_heads");
    c.decoder_layers = j.size("decoder_layers");
    c.decoder_ffn = j.size("decoder_ffn_dim");
    c.max_positions = j.size("max_position_embeddings");
    c.scale_embedding = j.flag("scale_embedding");
    c.activation = j.text("activation_function");
    app::activation_of(j, "activation_function");  // throws for one that there is not
    c.tokens = tokens_of(j, c.vocab, c.target_vocab);
    c.generation = generation_of(j);
  } else if (type == "heed-rnn") {
    c.arch = "rnn";
    for (const char* key : {"pad_token_id", "eos_token_id", "decoder_start_token_id"}) {
      require(j, key, special_tokens()[key]);
    }
    c.layers = 1;
    c.dim = j.size("embedding_size");
    c.hidden = j.size("hidden_size");
  } else {
    throw Error("config.json is for a " + quoted(type) + " model; heed translate reads \"marian\" and \"heed-rnn\"");
  }
  c.dropout = c.arch == "rnn" ? j.share("dropout") : j.share("dropout", c.dropout);
  c.lowercase = j.flag("do_lower_case", false);
  if (c.arch == "transformer" && j.says("heed_alignment")) {
    const JsonKeys from(j.at("heed_alignment"), j.file() + "'s heed_alignment");
    c.alignment = {from.whole("layer", -1, c.completed().decoder_layers - 1),
                   from.whole("head", -1, c.completed().decoder_heads - 1), from.flag("next")};
  }
  check(c);
  return c;
}

ModelConfig ModelConfig::completed() const {
  ModelConfig c = *this;
  if (c.target_vocab == 0) c.target_vocab = c.vocab;
  if (c.decoder_heads == 0) c.decoder_heads = c.heads;
  if (c.decoder_layers == 0) c.decoder_layers = c.layers;
  if (c.decoder_ffn == 0) c.decoder_ffn = c.ffn;
  return c;
}

json ModelConfig::to_json() const {
  check(*this);
  json j = special_tokens();
  j["vocab_size"] = vocab;
  j["dropout"] = dropout;
  j["do_lower_case"] = lowercase;
  if (alignment != AlignmentFrom{}) {
    j["heed_alignment"] = {{"layer", alignment.layer}, {"head", alignment.head}, {"next", alignment.next}};
  }
  j["torch_dtype"] = "float32";
  j["is_encoder_decoder"] = true;
  if (arch == "rnn") {
    j["model_type"] = "heed-rnn";
    j["embedding_size"] = dim;
    j["hidden_size"] = hidden;
    return j;
  }
  const ModelConfig c = completed();
  j.update(marian_constants());
  j["model_type"] = "marian";
  j["architectures"] = {"MarianMTModel"};
  j["activation_function"] = c.activation;
  j["scale_embedding"] = c.scale_embedding;
  j["share_encoder_decoder_embeddings"] = c.shared_embedding;
  j["tie_word_embeddings"] = c.tied_output;
  j["decoder_vocab_size"] = c.target_vocab;
  j["d_model"] = dim;
  for (const std::string side : {"encoder", "decoder"}) {
    j[side + "_layers"] = side == "encoder" ? c.layers : c.decoder_layers;
    j[side + "_attention_heads"] = side == "encoder" ? c.heads : c.decoder_heads;
    j[side + "_ffn_dim"] = side == "encoder" ? c.ffn : c.decoder_ffn;
    j[side + "_layerdrop"] = 0.0;
  }
  j["num_hidden_layers"] = layers;
  j["max_position_embeddings"] = max_positions;
  j["attention_dropout"] = 0.0;
  j["activation_dropout"] = 0.0;
  j["init_std"] = 1.0 / std::sqrt(static_cast<double>(dim));
  j["use_cache"] = true;
  j["pad_token_id"] = tokens.pad;
  j["unk_token_id"] = tokens.unk;
  j["bos_token_id"] = tokens == TokenIds{} ? json(kBos) : json(nullptr);
  j["eos_token_id"] = tokens.eos;
  j["decoder_start_token_id"] = tokens.start;
  j.update(generation_json());
  return j;
}

json ModelConfig::generation_json() const {
  json j = {{"decoder_start_token_id", tokens.start},
            {"eos_token_id", tokens.eos},
            {"pad_token_id", tokens.pad},
            {"num_beams", generation.beam},
            {"length_penalty", generation.length_penalty},
            {"max_length", generation.max_length > 0 ? generation.max_length + 1 : max_positions},
            {"renormalize_logits", tokens.renormalize},
            {"forced_eos_token_id", tokens.forced_end < 0 ? json(nullptr) : json(tokens.forced_end)},
            {"bad_words_ids", json::array()}};
  for (const int64_t id : tokens.banned) j["bad_words_ids"].push_back(json::array({id}));
  return j;
}

std::shared_ptr<Model> make_model(const ModelConfig& config) {
  check(config);
  if (config.arch == "rnn") return std::make_shared<RnnModel>(config);
  return std::make_shared<TransformerModel>(config);
}

void save_model(const Model& model, const std::string& dir) {
  namespace fs = std::filesystem;
  nn::make_folder(dir);
  nn::NamedTensors tensors;
  for (const auto& item : model.named_parameters()) tensors.emplace_back(item.key(), item.value().detach());
  for (const auto& item : model.named_buffers()) tensors.emplace_back(item.key(), item.value().detach());
  // The weights first: a folder with a config.json and no weights looks like a model and is none.
  nn::save_safetensors((fs::path(dir) / kWeightsFile).string(), tensors, {{"format", "pt"}});
  nn::write_file((fs::path(dir) / kConfigFile).string(), model.config().to_json().dump(2) + "\n");
}

std::shared_ptr<Model> load_model(const std::string& dir, std::optional<double> dropout) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  // Its errors call it config.json, and the folder comes before.
  JsonKeys j(app::read_config(dir, {"marian", "heed-rnn"}, "heed translate").object(), kConfigFile);

  ModelConfig config;
  try {
    const std::string generation = (fs::path(dir) / kGenerationFile).string();
    if (fs::exists(generation, ignored)) j = overlaid(j, JsonKeys::read(generation));
    config = ModelConfig::from_json(j);
    const std::string vocab = (fs::path(dir) / kVocabFile).string();
    if (config.arch == "transformer" && !j.says("unk_token_id") && fs::exists(vocab, ignored)) {
      config.tokens.unk = JsonKeys::read(vocab).whole("<unk>", 0, config.vocab - 1, config.tokens.unk);
    }
  } catch (const Error& error) {
    throw Error(dir + ": " + error.what());
  }
  if (dropout) config.dropout = *dropout;
  const std::string weights_path = (fs::path(dir) / kWeightsFile).string();
  const nn::SafeTensors file = app::read_weights(
      dir, config.arch == "rnn" ? RnnModel::parameters_of(config) : TransformerModel::parameters_of(config));
  for (const char* name : {"shared.weight", "model.shared.weight"}) {
    const torch::Tensor* shared = config.shared_embedding ? file.find(name) : nullptr;
    if (shared != nullptr && shared->dim() == 2 && shared->size(0) != config.vocab) {
      throw Error(weights_path + " has an embedding of " + std::to_string(shared->size(0)) +
                  " pieces and config.json says " + std::to_string(config.vocab) +
                  "; the two files are not of one model");
    }
  }
  const app::RandomStateGuard guard;
  const std::shared_ptr<Model> model = make_model(config);

  torch::NoGradGuard no_grad;
  Tensors tensors(weights_path, file);
  const auto fill = [&](const std::string& name, torch::Tensor& into) {
    const torch::Tensor* from = tensors.find_one(names_of(name, config), into.sizes());
    // An embedding of its own that the file has not is the shared one.
    if (from == nullptr && name.ends_with("embed_tokens.weight"))
      from = tensors.find("model.shared.weight", into.sizes());
    if (from != nullptr) {
      into.copy_(*from);
    } else if (config.arch == "transformer" && name == "final_logits_bias") {
      into.zero_();
    } else {
      throw Error(weights_path + " has no tensor '" + name + "' that config.json asks for");
    }
  };
  for (auto& item : model->named_parameters()) fill(item.key(), item.value());
  for (auto& item : model->named_buffers()) fill(item.key(), item.value());
  tensors.check_all_used();
  model->eval();
  return model;
}

}  // namespace heed::translate
