// Beam search: hypotheses are rows of the model's state, their past is a chain of (parent row, token) records.
#include "apps/translate/search.h"

#include <ATen/Parallel.h>
#include <heed/attention.h>
#include <heed/logits.h>
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
// What a logarithm of attention counts beside one of probability, and the least attention there is. bench/terms with a
// model of Multi30k (180 nouns, a synonym required for each): without attention (0) 37% behind the end of the sentence
// and 83% beside the noun itself; with 1 and 0.02, 24% and 51%; with these, 2% and 33%.
constexpr double kPlacing = 3, kLeastAttention = 0.002;

// ---- What must occur ----

// How far a hypothesis has got with the constraints of its sentence.
struct Met {
  std::vector<bool> done;           // by constraint
  int begun = -1;                   // the one whose tokens are being produced
  size_t spelling = 0, tokens = 0;  // which of its spellings, and how many of its tokens stand
  int64_t count = 0;                // done
  int64_t of_done = 0;              // tokens of those
  int last = kWithin;               // the constraint that the last token began, or one of:
  static constexpr int kOutside = -1, kWithin = -2;
  int last_token = -1;  // -1: there is none
  bool closed = false;  // the last token ended a constraint that is apart

  bool all() const { return count == static_cast<int64_t>(done.size()); }
  // The share of the beam a hypothesis competes in: one for each number of required tokens that stand. By tokens,
  // because among hypotheses that are all within a constraint the one that has just begun it is always the likeliest.
  int64_t bank() const { return of_done + (begun >= 0 ? static_cast<int64_t>(tokens) : 0); }

  void add(const std::vector<Constraint>& required, int token) {
    last_token = token;
    closed = false;
    if (begun >= 0) {
      if (begun_tokens(required)[tokens] == token) {
        ++tokens;
        last = kWithin;
        return complete(required);
      }
      begun = -1;
    }
    last = kOutside;
    for (size_t c = 0; c < required.size(); ++c) {
      const auto& spellings = required[c].spellings;
      for (size_t s = 0; !done[c] && s < spellings.size(); ++s) {
        if (spellings[s].front() != token) continue;
        begun = last = static_cast<int>(c);
        spelling = s;
        tokens = 1;
        return complete(required);
      }
    }
  }

  // Takes from a row of logits what would join a word with a constraint that is apart.
  void ban_joining(const std::vector<Constraint>& required, const Joints& joints, float* row) const {
    constexpr float kBanned = -std::numeric_limits<float>::infinity();
    if (closed) {
      for (size_t token = 0; token < joints.begins.size(); ++token)
        row[token] = joints.begins[token] ? kBanned : row[token];
    }
    if (begun >= 0 || last_token < 0 || !joints.ends[static_cast<size_t>(last_token)]) return;
    for (size_t c = 0; c < required.size(); ++c) {
      const auto& spellings = required[c].spellings;
      // The first begins with a space.
      for (size_t s = 1; required[c].apart && !done[c] && s < spellings.size(); ++s)
        row[spellings[s].front()] = kBanned;
    }
  }

  // Calls f with each token that would bring the constraints forward.
  template <class F>
  void wanted(const std::vector<Constraint>& required, const F& f) const {
    if (begun >= 0) return f(begun_tokens(required)[tokens]);
    for (size_t c = 0; c < required.size(); ++c) {
      const auto& spellings = required[c].spellings;
      for (size_t s = 0; !done[c] && s < spellings.size(); ++s) f(spellings[s].front());
    }
  }

 private:
  const std::vector<int>& begun_tokens(const std::vector<Constraint>& required) const {
    return required[static_cast<size_t>(begun)].spellings[spelling];
  }

  void complete(const std::vector<Constraint>& required) {
    if (tokens < begun_tokens(required).size()) return;
    done[static_cast<size_t>(begun)] = true;
    closed = required[static_cast<size_t>(begun)].apart;
    of_done += static_cast<int64_t>(tokens);
    ++count;
    begun = -1;
  }
};

// How well it fits that a token, which Met::last tells, was produced while the model looked at the source like this.
double placed(int last, const std::vector<Constraint>& required, const float* attention) {
  const auto there = [attention](const Constraint& c) {
    double sum = 0;
    for (int64_t s = c.from; s < c.to; ++s) sum += static_cast<double>(attention[s]);
    return sum;
  };
  if (last == Met::kWithin) return 0;
  double share = 0;
  if (last == Met::kOutside) {
    for (const Constraint& c : required) share += there(c);
    share = 1 - share;
  } else {
    const Constraint& c = required[static_cast<size_t>(last)];
    if (c.from == c.to) return 0;
    share = there(c);
  }
  return kPlacing * std::log(std::clamp(share, kLeastAttention, 1.0));
}

bool knows_a_place(const std::vector<std::vector<Constraint>>& required) {
  for (const auto& of_sentence : required) {
    for (const Constraint& c : of_sentence) {
      if (c.from < c.to) return true;
    }
  }
  return false;
}

// ---- Hypotheses ----

// One continuation: row `parent` of the state followed by `token`.
struct Candidate {
  double sum = kNever;  // of log-probabilities
  double fit = 0;       // of attention to required text: the sum of placed()
  int64_t parent = 0;
  int token = 0;

  double rank() const { return sum + fit; }
  Candidate continued(int next, double log_prob) const { return {sum + log_prob, fit, parent, next}; }
};

bool before(const Candidate& a, const Candidate& b) {
  if (a.rank() != b.rank()) return a.rank() > b.rank();
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
  double sum = 0;
  size_t step = 0;
  int64_t parent = 0;
  int last = 0;
};

// A sentence that is still being translated. Its hypotheses are `width` rows of the state, side by side.
struct Sentence {
  size_t index = 0;                // in the batch
  std::vector<double> sums;        // of each of its rows; kNever for a row that is only there to fill the width
  std::vector<double> fits;        // of each of its rows
  std::vector<Met> met;            // of each of its rows, if anything is required
  std::vector<Finished> finished;  // best first, at most `beam`
};

// What a step says of the token behind one row: logits, and what makes them log-probabilities.
struct Said {
  float* logits;
  int64_t vocab;
  float log_sum;

  double log_prob(int64_t token) const { return static_cast<double>(logits[token]) - static_cast<double>(log_sum); }
};

// `from` continued with each of the k best tokens, best first; NaN and -inf are left out.
void best_tokens(const Candidate& from, const Said& said, int64_t k, std::vector<Candidate>& out) {
  out.clear();
  if (!std::isfinite(said.log_sum)) return;
  std::vector<int64_t> tokens;
  largest(said.logits, said.vocab, k, tokens);
  for (const int64_t token : tokens) out.push_back(from.continued(static_cast<int>(token), said.log_prob(token)));
}

void keep(Sentence& sentence, const Finished& next, size_t beam) {
  auto& kept = sentence.finished;
  const auto worse = [](const Finished& a, const Finished& b) { return a.score > b.score; };
  kept.insert(std::upper_bound(kept.begin(), kept.end(), next, worse), next);
  if (kept.size() > beam) kept.pop_back();
}

Hypothesis unwound(const std::vector<Step>& steps, const Finished& end, int64_t source_length, bool attention) {
  Hypothesis result;
  result.score = end.score;
  result.log_probability = end.sum;
  std::vector<Tensor> looks;
  int64_t parent = end.parent;
  int token = end.last;
  for (size_t t = end.step + 1; t-- > 0;) {
    result.tokens.push_back(token);
    if (attention) looks.push_back(steps[t].attention[parent].narrow(0, 0, source_length));
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

// Of the candidates, best first, the `beam` that go on, best first: the beam in equal parts for the candidates that
// have 0, 1, ... of the required tokens, what a part does not need for the others, from the one that has most.
std::vector<size_t> allocate(const std::vector<Met>& candidates, size_t beam) {
  size_t parts = 0;
  for (const Met& met : candidates) parts = std::max(parts, static_cast<size_t>(met.bank()) + 1);
  std::vector<std::vector<size_t>> members(parts);
  for (size_t i = 0; i < candidates.size(); ++i) members[static_cast<size_t>(candidates[i].bank())].push_back(i);
  std::vector<size_t> taken(parts, 0), chosen;
  for (bool room = true; room && chosen.size() < beam;) {
    room = false;
    for (size_t b = parts; b-- > 0 && chosen.size() < beam;) {
      if (taken[b] == members[b].size()) continue;
      chosen.push_back(members[b][taken[b]++]);
      room = true;
    }
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// What is the same for all sentences and steps of a search.
class Search {
 public:
  Search(const BeamOptions& options, const ModelConfig& config, const std::vector<int64_t>& lengths)
      : options_(options),
        tokens_(config.tokens),
        lengths_(lengths),
        beam_(static_cast<size_t>(options.beam)),
        next_(config.alignment.next) {}

  const std::vector<Constraint>& required(const Sentence& sentence) const {
    static const std::vector<Constraint> none;
    return options_.required.empty() ? none : options_.required[sentence.index];
  }

  // A row of logits in step t, what must not be said taken out.
  Said read(const Sentence& sentence, size_t t, float* logits, int64_t vocab) const {
    // What still lacks a required token must not end here.
    const bool last = static_cast<int64_t>(t) + 1 >= options_.max_steps[sentence.index] && sentence.met.empty();
    if (tokens_.forced_end >= 0 && last) {
      std::fill_n(logits, vocab, -std::numeric_limits<float>::infinity());
      logits[tokens_.forced_end] = 0;
      return {logits, vocab, 0};
    }
    const auto ban = [&] {
      for (const int64_t banned : tokens_.banned) logits[banned] = -std::numeric_limits<float>::infinity();
    };
    if (tokens_.renormalize) ban();
    const float log_sum = log_sum_exp(logits, vocab);
    ban();
    return {logits, vocab, log_sum};
  }

  // The continuations of a row that are worth a look: the best, and what is required. attention [S], or nullptr: of the
  // step that produces them or, if `next_`, of the one that has read the row's last token.
  void propose(const Sentence& sentence, size_t place, const Said& said, int64_t row, const float* attention,
               std::vector<Candidate>& out) const {
    Candidate from{sentence.sums[place], sentence.fits[place], row};
    const auto many = 2 * static_cast<int64_t>(beam_);
    if (sentence.met.empty()) return best_tokens(from, said, many, out);
    const std::vector<Constraint>& constraints = required(sentence);
    const Met& met = sentence.met[place];
    if (attention != nullptr && next_) from.fit += placed(met.last, constraints, attention);
    if (options_.joints != nullptr) met.ban_joining(constraints, *options_.joints, said.logits);
    best_tokens(from, said, many, out);
    met.wanted(constraints, [&](int token) {
      const bool there = std::any_of(out.begin(), out.end(), [token](const Candidate& c) { return c.token == token; });
      if (!there && std::isfinite(said.log_prob(token))) out.push_back(from.continued(token, said.log_prob(token)));
    });
    if (attention == nullptr || next_) return;
    for (Candidate& c : out) {
      Met then = met;
      then.add(constraints, c.token);
      c.fit += placed(then.last, constraints, attention);
    }
  }

  // Moves the sentence on by one step. Returns whether it goes on; then `next` has got its `beam` rows.
  // covered [width, S], if defined: the attention each row's source positions have received, this step's included.
  bool advance(Sentence& sentence, int64_t first_row, std::vector<Candidate> candidates, size_t step,
               const Tensor& covered, Step& next) const {
    const bool constrained = !sentence.met.empty();
    const bool last = static_cast<int64_t>(step) + 1 >= options_.max_steps[sentence.index];
    const auto finish = [&](const Candidate& c) {
      const double score = scored(c.rank(), step + 1) + coverage(covered, c.parent - first_row, sentence.index);
      keep(sentence, {score, c.sum, step, c.parent, c.token}, beam_);
    };
    std::sort(candidates.begin(), candidates.end(), before);
    if (!constrained && candidates.size() > 2 * beam_) candidates.resize(2 * beam_);
    std::vector<Candidate> live;
    size_t allowed = 0;  // rank among those that may be what they are
    for (const Candidate& c : candidates) {
      if (!constrained && live.size() == beam_) break;
      if (c.token != tokens_.eos) {
        live.push_back(c);
      } else {
        if (constrained && !sentence.met[static_cast<size_t>(c.parent - first_row)].all()) continue;
        if (constrained || allowed < beam_) finish(c);
      }
      ++allowed;
    }
    std::vector<Met> met;
    if (constrained) {
      std::vector<Met> of_live;
      for (const Candidate& c : live) {
        of_live.push_back(sentence.met[static_cast<size_t>(c.parent - first_row)]);
        of_live.back().add(required(sentence), c.token);
      }
      std::vector<Candidate> chosen;
      for (const size_t i : allocate(of_live, beam_)) {
        chosen.push_back(live[i]);
        met.push_back(std::move(of_live[i]));
      }
      live = std::move(chosen);
    }
    const auto& kept = sentence.finished;
    bool over = live.empty() || last;
    if (!over && kept.size() == beam_) over = kept.back().score >= scored(live.front().rank(), step + 1);
    if (over) {
      if (last) {
        // Of a constrained sentence's unfinished hypotheses those that have met most, and only if none has finished.
        int64_t most = 0;
        for (const Met& m : met) most = std::max(most, m.count);
        const bool wanted = !constrained || kept.empty();
        for (size_t i = 0; wanted && i < live.size(); ++i) {
          if (!constrained || met[i].count == most) finish(live[i]);
        }
      }
      if (kept.empty())
        throw Error("the model's outputs are not numbers; its weights are damaged, train or copy it again");
      return false;
    }
    sentence.sums.assign(beam_, kNever);
    sentence.fits.assign(beam_, 0);
    if (constrained) met.resize(beam_, Met());
    for (size_t i = 0; i < beam_; ++i) {
      if (i < live.size()) {
        sentence.sums[i] = live[i].sum;
        sentence.fits[i] = live[i].fit;
      }
      next.parent.push_back(i < live.size() ? live[i].parent : first_row);
      next.token.push_back(i < live.size() ? live[i].token : static_cast<int>(tokens_.eos));
    }
    sentence.met = std::move(met);
    return true;
  }

 private:
  double scored(double sum, size_t length) const {
    return sum / std::pow(static_cast<double>(length), options_.length_penalty);
  }

  double coverage(const Tensor& covered, int64_t place, size_t index) const {
    if (!covered.defined()) return 0;
    const Tensor row = covered[place].narrow(0, 0, lengths_[index]).clamp(1e-6, 1);
    return options_.coverage_penalty * row.log().sum().item<double>();
  }

  const BeamOptions& options_;
  const TokenIds& tokens_;
  const std::vector<int64_t>& lengths_;
  size_t beam_;
  bool next_;  // the model's alignment() is of the token a step has read
};

}  // namespace

std::vector<std::vector<Hypothesis>> beam_search(Model& model, const Tensor& source,
                                                 const std::vector<int64_t>& lengths, const BeamOptions& options) {
  torch::NoGradGuard no_grad;
  const TokenIds& ids = model.config().tokens;
  const Search search(options, model.config(), lengths);
  const size_t batch = lengths.size();
  std::vector<std::vector<Hypothesis>> results(batch);
  std::vector<Sentence> live(batch);
  for (size_t i = 0; i < batch; ++i) {
    live[i] = {i, {0.0}, {0.0}, {}, {}};
    if (const size_t n = search.required(live[i]).size(); n > 0) live[i].met = {Met{std::vector<bool>(n)}};
  }
  std::vector<Step> steps;
  std::vector<int> tokens(batch, static_cast<int>(ids.start));
  if (batch == 0) return results;
  const auto state = model.start(source, lengths);
  const bool covering = options.coverage_penalty != 0, placing = knows_a_place(options.required);
  Tensor covered;  // [rows, S]: the attention each position has received

  for (size_t t = 0; !live.empty(); ++t) {
    const Tensor fed = torch::tensor(tokens, torch::kInt64);
    const Tensor logits = model.step(*state, fed).to(torch::kFloat32).contiguous();
    const int64_t rows = logits.size(0), vocab = logits.size(1);
    const int64_t width = rows / static_cast<int64_t>(live.size());
    Step step;
    if (options.attention || covering || placing)
      step.attention = model.alignment(*state).to(torch::kFloat32).contiguous();
    if (covering) covered = covered.defined() ? covered + step.attention : step.attention;

    std::vector<std::vector<Candidate>> best(static_cast<size_t>(rows));
    at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / vocab), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const Sentence& sentence = live[static_cast<size_t>(row / width)];
        const auto place = static_cast<size_t>(row % width);
        if (sentence.sums[place] == kNever) continue;
        const Said said = search.read(sentence, t, logits.data_ptr<float>() + row * vocab, vocab);
        const float* looks = placing ? step.attention.data_ptr<float>() + row * step.attention.size(1) : nullptr;
        search.propose(sentence, place, said, row, looks, best[static_cast<size_t>(row)]);
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
      const Tensor of_sentence = covering ? covered.narrow(0, first, width) : Tensor();
      const bool goes_on = search.advance(live[s], first, std::move(candidates), t, of_sentence, step);
      (goes_on ? going_on : over).push_back(std::move(live[s]));
    }
    steps.push_back(std::move(step));
    for (const Sentence& sentence : over) {
      const auto wanted = std::min(sentence.finished.size(), static_cast<size_t>(options.nbest));
      for (size_t i = 0; i < wanted; ++i) {
        results[sentence.index].push_back(
            unwound(steps, sentence.finished[i], lengths[sentence.index], options.attention));
      }
    }
    live = std::move(going_on);
    tokens = steps.back().token;
    if (live.empty()) break;
    const Tensor parents = torch::tensor(steps.back().parent, torch::kInt64);
    model.select(*state, parents);
    if (covering) covered = covered.index_select(0, parents);
  }
  return results;
}

}  // namespace heed::translate
