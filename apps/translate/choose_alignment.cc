// Every layer, head and step against IBM Model 1.
#include "apps/translate/choose_alignment.h"

#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <span>
#include <tuple>

#include "apps/translate/word_model.h"

namespace heed::translate {
namespace {

constexpr size_t kTrain = 20000, kHeldOut = 300;
constexpr int64_t kBatchTokens = 1000;

// Without the start of the target and the ends of both.
TokenPair words_of(const Example& example) {
  return {std::span(example.source).first(example.source.size() - 1),
          std::span(example.target).subspan(1, example.target.size() - 2)};
}

}  // namespace

AlignmentChoice choose_alignment(TransformerModel& model, const std::vector<Example>& train,
                                 const std::vector<Example>& held_out) {
  torch::NoGradGuard no_grad;
  std::vector<TokenPair> pairs;
  for (size_t i = 0; i < std::min(train.size(), kTrain); ++i) pairs.push_back(words_of(train[i]));
  const WordModel word_model(pairs);
  const std::vector<Example> some(held_out.begin(),
                                  held_out.begin() + static_cast<long>(std::min(held_out.size(), kHeldOut)));

  std::map<std::tuple<int64_t, int64_t, bool>, int64_t> agreed;  // by layer, head, next
  int64_t counted = 0;
  for (const auto& indices : make_batches(some, kBatchTokens, 0, 0)) {
    const std::vector<torch::Tensor> layers = model.looks(make_batch(some, indices, model.config().tokens.pad));
    // [B, heads and their mean, T, S]
    std::vector<torch::Tensor> looks;
    for (const torch::Tensor& weights : layers) {
      looks.push_back(torch::cat({weights, weights.mean(1, /*keepdim=*/true)}, 1).contiguous());
    }
    for (size_t row = 0; row < indices.size(); ++row) {
      const TokenPair words = words_of(some[static_cast<size_t>(indices[row])]);
      const std::vector<int64_t> places = word_model.align(words);
      if (words.source.empty()) continue;
      counted += static_cast<int64_t>(places.size()) - std::count(places.begin(), places.end(), -1);
      for (size_t layer = 0; layer < looks.size(); ++layer) {
        const auto at = looks[layer].accessor<float, 4>();
        for (int64_t head = 0; head < looks[layer].size(1); ++head) {
          for (const bool next : {false, true}) {
            int64_t& same = agreed[{static_cast<int64_t>(layer), head + 1 == looks[layer].size(1) ? -1 : head, next}];
            for (size_t t = 0; t < places.size(); ++t) {
              if (places[t] < 0) continue;
              const float* weights = at[static_cast<int64_t>(row)][head][static_cast<int64_t>(t) + next].data();
              same += std::max_element(weights, weights + words.source.size()) - weights == places[t];
            }
          }
        }
      }
    }
  }
  AlignmentChoice choice;
  if (counted == 0) return choice;
  const auto part = [counted](int64_t n) { return static_cast<double>(n) / static_cast<double>(counted); };
  choice.last_layers_mean = part(agreed[{model.config().decoder_layers - 1, -1, false}]);
  choice.agreement = -1;
  for (const auto& [from, same] : agreed) {
    if (part(same) <= choice.agreement) continue;
    const auto [layer, head, next] = from;
    choice = {{layer, head, next}, part(same), choice.last_layers_mean};
  }
  return choice;
}

}  // namespace heed::translate
