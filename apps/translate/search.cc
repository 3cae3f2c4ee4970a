// Beam search: hypotheses are rows of the model's state, their past is a chain of (parent row, token) records.
#include "apps/translate/search.h"

#include <ATen/Parallel.h>
#include <heed/attention.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>

// at::parallel_for is a template: without OpenMP switched on in this file it would run everything on one thread.
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile apps/translate/search.cc with -fopenmp: this LibTorch runs its threads through OpenMP"
#endif

namespace heed::translate {
namespace {

using torch::Tensor;

constexpr double kNever = -std::numeric_limits<double>::infinity();

// One continuation: row `parent` of the state followed by `token`.
struct Candidate {
  double sum = kNever;  // of log-probabilities
  int64_t parent = 0;
  int token = 0;
};

bool before(const Candidate& a, const Candidate& b) {
  if (a.sum != b.sum) return a.sum > b.sum;
  return a.parent != b.parent ? a.parent < b.parent : a.token < b.token;
}

// What one step chose: row i of the next state continues row parent[i] of this one with token[i].
struct Step {
  std::vector<int64_t> parent;
  std::vector<int> token;
  Tensor attention;  // [rows of this state, S]
};

// The end of a chain: token `last`, produced in step `step` by row `parent`.
struct Finished {
  double score = kNever;
  size_t step = 0;
  int64_t parent = 0;
  int last = 0;
};

// A sentence that is still being translated. Its hypotheses are `width` rows of the state, side by side.
struct Sentence {
  size_t index = 0;                // in the batch
  std::vector<double> sums;        // of each of its rows; kNever for a row that is only there to fill the width
  std::vector<Finished> finished;  // best first, at most `beam`
};

// The k best tokens of a row of log-probabilities, best first; NaN and -inf are left out.
void best_tokens(const float* row, int64_t vocab, size_t k, double sum, int64_t parent, std::vector<Candidate>& out) {
  out.clear();
  float least = -std::numeric_limits<float>::infinity();  // what a token must exceed to get in
  for (int64_t token = 0; token < vocab; ++token) {
    if (!(row[token] > least)) continue;
    const Candidate next{sum + static_cast<double>(row[token]), parent, static_cast<int>(token)};
    if (out.size() == k) out.pop_back();
    out.insert(std::upper_bound(out.begin(), out.end(), next, before), next);
    if (out.size() == k) least = row[out.back().token];
  }
}

double scored(double sum, size_t length, double penalty) {
  return sum / std::pow(static_cast<double>(length), penalty);
}

void keep(Sentence& sentence, const Finished& next, size_t beam) {
  auto& kept = sentence.finished;
  const auto worse = [](const Finished& a, const Finished& b) { return a.score > b.score; };
  kept.insert(std::upper_bound(kept.begin(), kept.end(), next, worse), next);
  if (kept.size() > beam) kept.pop_back();
}

Hypothesis unwound(const std::vector<Step>& steps, const Finished& end, int64_t source_length) {
  Hypothesis result;
  result.score = end.score;
  std::vector<Tensor> looks;
  int64_t parent = end.parent;
  int token = end.last;
  for (size_t t = end.step + 1; t-- > 0;) {
    result.tokens.push_back(token);
    if (steps[t].attention.defined()) looks.push_back(steps[t].attention[parent].narrow(0, 0, source_length));
    if (t == 0) break;
    const auto row = static_cast<size_t>(parent);
    token = steps[t - 1].token[row];
    parent = steps[t - 1].parent[row];
  }
  std::reverse(result.tokens.begin(), result.tokens.end());
  std::reverse(looks.begin(), looks.end());
  if (!looks.empty()) result.attention = torch::stack(looks);
  return result;
}

// Adds log_probs [rows, vocab] to the running sums and moves the sentence on by one step. Returns whether it goes on;
// then `next` has got its `beam` rows.
bool advance(Sentence& sentence, int64_t first_row, std::vector<Candidate> candidates, size_t step,
             const BeamOptions& options, Step& next) {
  const auto beam = static_cast<size_t>(options.beam);
  std::sort(candidates.begin(), candidates.end(), before);
  if (candidates.size() > 2 * beam) candidates.resize(2 * beam);
  std::vector<Candidate> live;
  for (size_t rank = 0; rank < candidates.size() && live.size() < beam; ++rank) {
    const Candidate& c = candidates[rank];
    if (c.token != kEos) {
      live.push_back(c);
    } else if (rank < beam) {
      keep(sentence, {scored(c.sum, step + 1, options.length_penalty), step, c.parent, c.token}, beam);
    }
  }
  const bool last = static_cast<int64_t>(step) + 1 >= options.max_steps[sentence.index];
  const auto& kept = sentence.finished;
  bool over = live.empty() || last;
  if (!over && kept.size() == beam) {
    over = kept.back().score >= scored(live.front().sum, step + 1, options.length_penalty);
  }
  if (over) {
    if (last) {
      for (const Candidate& c : live) {
        keep(sentence, {scored(c.sum, step + 1, options.length_penalty), step, c.parent, c.token}, beam);
      }
    }
    if (kept.empty())
      throw Error("the model's outputs are not numbers; its weights are damaged, train or copy it again");
    return false;
  }
  sentence.sums.assign(beam, kNever);
  for (size_t i = 0; i < beam; ++i) {
    if (i < live.size()) sentence.sums[i] = live[i].sum;
    next.parent.push_back(i < live.size() ? live[i].parent : first_row);
    next.token.push_back(i < live.size() ? live[i].token : static_cast<int>(kEos));
  }
  return true;
}

}  // namespace

std::vector<Hypothesis> beam_search(Model& model, const Tensor& source, const std::vector<int64_t>& lengths,
                                    const BeamOptions& options) {
  torch::NoGradGuard no_grad;
  const size_t batch = lengths.size();
  std::vector<Hypothesis> results(batch);
  std::vector<Sentence> live(batch);
  for (size_t i = 0; i < batch; ++i) live[i] = {i, {0.0}, {}};
  std::vector<Step> steps;
  std::vector<int> tokens(batch, static_cast<int>(kBos));
  if (batch == 0) return results;
  const auto state = model.start(source, lengths);

  for (size_t t = 0; !live.empty(); ++t) {
    const Tensor fed = torch::tensor(tokens, torch::kInt64);
    Tensor log_probs = model.step(*state, fed);
    log_probs.select(1, kPad).fill_(kNever);
    log_probs.select(1, kBos).fill_(kNever);
    log_probs = torch::log_softmax(log_probs.to(torch::kFloat32), 1).contiguous();
    Step step;
    if (options.attention) step.attention = model.alignment(*state).to(torch::kFloat32);

    const int64_t rows = log_probs.size(0), vocab = log_probs.size(1);
    const int64_t width = rows / static_cast<int64_t>(live.size());
    std::vector<std::vector<Candidate>> best(static_cast<size_t>(rows));
    at::parallel_for(0, rows, std::max<int64_t>(1, 32768 / vocab), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const double sum = live[static_cast<size_t>(row / width)].sums[static_cast<size_t>(row % width)];
        if (sum == kNever) continue;
        best_tokens(log_probs.data_ptr<float>() + row * vocab, vocab, static_cast<size_t>(2 * options.beam), sum, row,
                    best[static_cast<size_t>(row)]);
      }
    });

    std::vector<Sentence> going_on, over;
    for (size_t s = 0; s < live.size(); ++s) {
      const auto first = static_cast<int64_t>(s) * width;
      std::vector<Candidate> candidates;
      for (int64_t row = first; row < first + width; ++row) {
        const auto& of_row = best[static_cast<size_t>(row)];
        candidates.insert(candidates.end(), of_row.begin(), of_row.end());
      }
      const bool goes_on = advance(live[s], first, std::move(candidates), t, options, step);
      (goes_on ? going_on : over).push_back(std::move(live[s]));
    }
    steps.push_back(std::move(step));
    for (const Sentence& sentence : over) {
      results[sentence.index] = unwound(steps, sentence.finished.front(), lengths[sentence.index]);
    }
    live = std::move(going_on);
    tokens = steps.back().token;
    if (!live.empty()) model.select(*state, torch::tensor(steps.back().parent, torch::kInt64));
  }
  return results;
}

}  // namespace heed::translate
