// Vocabularies of a model folder, and what transformers wants to find there.
#include "apps/translate/marian.h"

#include <heed/attention.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "libtorch/files.h"

namespace heed::translate {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// Whether source and target have a numbering each.
bool separate(const fs::path& dir) {
  const fs::path path = dir / "tokenizer_config.json";
  if (!there(path)) return there(dir / "target_vocab.json");
  const json j = json::parse(nn::read_file(path.string()), nullptr, /*allow_exceptions=*/false);
  if (!j.is_object())
    throw Error(path.string() + " is not a JSON object; the file is damaged, copy the model folder again");
  const auto found = j.find("separate_vocabs");
  return found != j.end() && *found == true;
}

}  // namespace

std::pair<std::shared_ptr<const Vocab>, std::shared_ptr<const Vocab>> load_vocabs(const std::string& folder,
                                                                                  const ModelConfig& config) {
  const fs::path dir = folder;
  const std::string source_path = (dir / "source.spm").string(), target_path = (dir / "target.spm").string();
  const std::string table = (dir / "vocab.json").string();
  const Vocab source = Vocab::load(source_path);
  const Vocab target = there(target_path) ? Vocab::load(target_path) : source;
  const bool alike = target.bytes() == source.bytes(), numbered = config.arch == "transformer" && there(table),
             two_tables = numbered && separate(dir);
  if (!alike && !numbered) {
    throw Error(source_path + " and " + target_path + " differ and there is no vocab.json to number their pieces" +
                "; copy it from where the model comes from");
  }
  const auto made = [&](const Vocab& vocab, const std::string& ids, int64_t size) {
    return std::make_shared<const Vocab>(numbered ? vocab.numbered_by(ids, size) : vocab);
  };
  const auto first = made(source, table, config.vocab);
  if (alike && !two_tables) return {first, first};
  return {first, made(target, two_tables ? (dir / "target_vocab.json").string() : table, config.target_vocab)};
}

void check_vocab(const Vocab& vocab, const TokenIds& tokens, int64_t size) {
  if (vocab.size() != size) {
    throw Error("the vocabulary has " + std::to_string(vocab.size()) + " pieces and the model " + std::to_string(size) +
                "; they do not belong together");
  }
  if (!vocab.is_numbered() && !vocab.has_fixed_ids()) {
    throw Error(
        "the vocabulary does not number <pad>, <unk>, <s> and </s> as 0, 1, 2 and 3; use the one the model was "
        "trained with, and its vocab.json if it has one");
  }
  const auto same = [](const char* piece, const char* key, int64_t in_vocab, int64_t in_config) {
    if (in_vocab != in_config) {
      throw Error(std::string("the vocabulary numbers ") + piece + " " + std::to_string(in_vocab) +
                  " and config.json's \"" + key + "\" is " + std::to_string(in_config) +
                  "; they do not belong together");
    }
  };
  same("<pad>", "pad_token_id", vocab.pad(), tokens.pad);
  same("</s>", "eos_token_id", vocab.eos(), tokens.eos);
}

std::vector<std::pair<std::string, std::string>> read_text_files(const std::string& dir) {
  std::vector<std::pair<std::string, std::string>> files;
  for (const char* name : {"source.spm", "target.spm", "vocab.json", "target_vocab.json", "tokenizer_config.json",
                           "special_tokens_map.json", "generation_config.json"}) {
    const fs::path path = fs::path(dir) / name;
    if (there(path)) files.emplace_back(name, nn::read_file(path.string()));
  }
  return files;
}

std::vector<std::pair<std::string, std::string>> transformers_files(const ModelConfig& config, const Vocab& vocab) {
  if (config.arch != "transformer") return {};
  const json tokenizer = {{"tokenizer_class", "MarianTokenizer"},
                          {"unk_token", "<unk>"},
                          {"eos_token", "</s>"},
                          {"pad_token", "<pad>"},
                          {"separate_vocabs", false},
                          {"clean_up_tokenization_spaces", false},
                          {"model_max_length", config.max_positions}};
  return {{"vocab.json", vocab.numbering_json()},
          {"tokenizer_config.json", tokenizer.dump(2) + "\n"},
          {"generation_config.json", config.generation_json().dump(2) + "\n"}};
}

}  // namespace heed::translate
