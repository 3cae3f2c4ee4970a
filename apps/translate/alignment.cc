// From attention over pieces to links between words.
#include "apps/translate/alignment.h"

#include <heed/attention.h>

#include <algorithm>

namespace heed::translate {
namespace {

constexpr std::string_view kSpace = "\u2581";
constexpr float kEnough = 0.5f;  // of what a target word gave its best source word

bool is_end(const std::string& piece) { return piece == "</s>"; }

// The word each piece belongs to; -1 for </s>, and for a space that is a piece of its own with no word behind it.
std::vector<int64_t> words_of(std::span<const std::string> pieces, std::vector<std::string>& words) {
  std::vector<int64_t> of;
  bool begins = true;
  for (const std::string& piece : pieces) {
    if (is_end(piece)) {
      of.push_back(-1);
      continue;
    }
    std::string_view text = piece;
    if (text.starts_with(kSpace)) {
      text.remove_prefix(kSpace.size());
      begins = true;
    }
    if (begins && text.empty()) {  // its word comes with the next piece
      of.push_back(static_cast<int64_t>(words.size()));
      continue;
    }
    if (begins) words.emplace_back();
    begins = false;
    words.back() += text;
    of.push_back(static_cast<int64_t>(words.size()) - 1);
  }
  for (int64_t& word : of) {
    if (word >= static_cast<int64_t>(words.size())) word = -1;
  }
  return of;
}

}  // namespace

WordAlignment align_words(const Looks& looks) {
  if (looks.attention.size() != looks.target_pieces.size()) {
    throw Error("the attention has " + std::to_string(looks.attention.size()) + " rows for " +
                std::to_string(looks.target_pieces.size()) + " pieces; ask the translator for the attention");
  }
  WordAlignment result;
  const std::vector<int64_t> sources = words_of(looks.source_pieces, result.source);
  const std::vector<int64_t> targets = words_of(looks.target_pieces, result.target);
  const size_t n = result.source.size();
  result.weights.assign(result.target.size(), std::vector<float>(n, 0));
  std::vector<float> pieces(result.target.size(), 0), end(result.target.size(), 0);
  for (size_t t = 0; t < targets.size(); ++t) {
    if (looks.attention[t].size() != sources.size()) {
      throw Error("row " + std::to_string(t) + " of the attention has " + std::to_string(looks.attention[t].size()) +
                  " weights for " + std::to_string(sources.size()) + " source pieces");
    }
    if (targets[t] < 0) continue;
    const auto word = static_cast<size_t>(targets[t]);
    pieces[word] += 1;
    for (size_t s = 0; s < sources.size(); ++s) {
      (sources[s] < 0 ? end[word] : result.weights[word][static_cast<size_t>(sources[s])]) += looks.attention[t][s];
    }
  }
  std::vector<bool> linked(n, false);
  for (size_t t = 0; t < result.target.size() && n > 0; ++t) {
    auto& row = result.weights[t];
    for (float& w : row) w /= pieces[t];
    const auto best = std::max_element(row.begin(), row.end());
    if (*best < end[t] / pieces[t]) continue;
    const auto s = best - row.begin();
    linked[static_cast<size_t>(s)] = true;
    result.links.push_back({s, static_cast<int64_t>(t), *best});
  }
  for (size_t s = 0; s < n && !result.target.empty(); ++s) {
    if (linked[s]) continue;
    size_t t = 0;
    for (size_t i = 1; i < result.target.size(); ++i) {
      if (result.weights[i][s] > result.weights[t][s]) t = i;
    }
    const float share = result.weights[t][s];
    const float most = *std::max_element(result.weights[t].begin(), result.weights[t].end());
    if (share > 0 && share >= kEnough * most) {
      result.links.push_back({static_cast<int64_t>(s), static_cast<int64_t>(t), share});
    }
  }
  std::sort(result.links.begin(), result.links.end(), [](const auto& a, const auto& b) {
    return a.target != b.target ? a.target < b.target : a.source < b.source;
  });
  return result;
}

std::string pharaoh(const WordAlignment& alignment) {
  auto links = alignment.links;
  std::sort(links.begin(), links.end(), [](const auto& a, const auto& b) {
    return a.source != b.source ? a.source < b.source : a.target < b.target;
  });
  std::string text;
  for (const auto& link : links) {
    text += (text.empty() ? "" : " ") + std::to_string(link.source) + "-" + std::to_string(link.target);
  }
  return text;
}

}  // namespace heed::translate
