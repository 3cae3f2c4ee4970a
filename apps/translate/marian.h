// Marian's models as Hugging Face keeps them: the files of a model folder around config.json and the weights.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/translate/model.h"
#include "apps/translate/vocab.h"

namespace heed::translate {

// The vocabularies of source and target in the folder of a model, one object if they are alike: source.spm and
// target.spm cut text. Where there is a vocab.json its ids count; those of the target are in target_vocab.json if
// tokenizer_config.json says "separate_vocabs". An RNN, which is always ours, has our ids. Throws heed::Error for what
// is missing or does not go together.
std::pair<std::shared_ptr<const Vocab>, std::shared_ptr<const Vocab>> load_vocabs(const std::string& dir,
                                                                                  const ModelConfig& config);

// Throws heed::Error if the vocabulary is not one of a model with `size` pieces and these tokens.
void check_vocab(const Vocab& vocab, const TokenIds& tokens, int64_t size);

// The names and contents of those files of a model folder that are about text and searching: all but config.json, the
// weights and what is for people.
std::vector<std::pair<std::string, std::string>> read_text_files(const std::string& dir);

// The names and contents of what a folder of ours needs beside config.json, model.safetensors, source.spm and
// target.spm so that transformers reads it: vocab.json, tokenizer_config.json and generation_config.json. Nothing for
// an RNN, which transformers does not have.
std::vector<std::pair<std::string, std::string>> transformers_files(const ModelConfig& config, const Vocab& vocab);

}  // namespace heed::translate
