// libtorch/attention.cc: values and gradients against the formula in LibTorch's own operators.
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "libtorch/attention.h"
#include "tests/plain_attention.h"

namespace heed::nn {
namespace {

using plain::expect_near;
using plain::gradients;
using plain::mixed;
using torch::Tensor;

const torch::ScalarType kDTypes[] = {torch::kFloat64, torch::kFloat32};

Tensor random(std::vector<int64_t> shape) { return torch::randn(shape, torch::kFloat64); }

// -inf of rows that see nothing, which a loss cannot sum up, left out.
Tensor finite(const Tensor& lse) { return lse.masked_fill(lse.isinf(), 0); }

// One problem, its leaves in float64, and how a leaf becomes the argument (transposed, expanded, ...).
struct Problem {
  std::string name;
  Tensor q, k, v;    // leaves
  Tensor w = {};     //
  Tensor bias = {};  //
  Score score = Score::dot;
  std::optional<double> scale = {};
  Mask mask = {};
  std::function<Tensor(Tensor)> arrange = [](Tensor t) { return t; };       // q, k, v: leaf -> argument
  std::function<Tensor(Tensor)> arrange_bias = [](Tensor t) { return t; };  // bias: leaf -> argument
  double softcap = 0;
  Tensor alibi = {};
  Tensor sinks = {};
  double dropout = 0;

  std::vector<std::pair<std::string, Tensor>> leaves() const {
    std::vector<std::pair<std::string, Tensor>> all{{"q", q}, {"k", k}, {"v", v}};
    for (const auto& [leaf, t] : {std::pair("w", w), {"bias", bias}, {"alibi", alibi}, {"sinks", sinks}}) {
      if (t.defined()) all.emplace_back(leaf, t);
    }
    return all;
  }
};

// A problem's arguments from its leaves, of any dtype, in the order of Problem::leaves().
struct Arguments {
  Tensor q, k, v;
  AttentionOptions options;

  Arguments(const Problem& p, const std::vector<Tensor>& leaves) {
    size_t next = 3;
    q = p.arrange(leaves[0]), k = p.arrange(leaves[1]), v = p.arrange(leaves[2]);
    const auto given = [&](const Tensor& t) { return t.defined() ? leaves[next++] : Tensor(); };
    options.score = p.score, options.scale = p.scale, options.softcap = p.softcap, options.mask = p.mask;
    options.w = given(p.w);
    if (p.bias.defined()) options.bias = p.arrange_bias(given(p.bias));
    options.alibi = given(p.alibi), options.sinks = given(p.sinks);
    options.dropout = p.dropout, options.seed = 11;
  }
  AttentionResult heed() const { return attention(q, k, v, options); }
  plain::Result formula() const {
    plain::Options o{options.score, options.scale, options.w, options.bias, options.mask};
    o.softcap = options.softcap, o.alibi = options.alibi, o.sinks = options.sinks;
    if (options.dropout > 0) {  // which weights are left is seen with values that tell keys apart
      torch::NoGradGuard no_grad;
      const Tensor one_key_each = torch::eye(k.size(2), q.options()).expand({k.size(0), k.size(1), -1, -1});
      o.factors = attention(q, k, one_key_each, options).out.ne(0).to(q.scalar_type()) / (1 - options.dropout);
    }
    return plain::attention(q, k, v, o);
  }
};

std::vector<Tensor> leaves_of(const Problem& p, torch::ScalarType dtype) {
  std::vector<Tensor> result;
  for (const auto& [name, t] : p.leaves()) result.push_back(t.detach().to(dtype).clone().requires_grad_());
  return result;
}

void check(const Problem& p) {
  const auto run = [&](torch::ScalarType dtype, bool with_heed) {
    const std::vector<Tensor> inputs = leaves_of(p, dtype);
    const Arguments given(p, inputs);
    Tensor out, lse, weights;
    if (with_heed) {
      const AttentionResult result = given.heed();
      out = result.out, lse = result.lse, weights = attention_weights(given.q, given.k, given.options);
      EXPECT_FALSE(weights.requires_grad());
    } else {
      const plain::Result result = given.formula();
      out = result.out, lse = result.lse, weights = result.weights;
    }
    std::vector<Tensor> all{out, lse, weights};
    for (Tensor& g : gradients(mixed(out) + mixed(finite(lse)), inputs)) all.push_back(g);
    return all;
  };
  const std::vector<Tensor> exact = run(torch::kFloat64, false);
  std::vector<std::string> names{"out", "lse", "weights"};
  for (const auto& leaf : p.leaves()) names.push_back("d_" + leaf.first);
  for (const auto dtype : kDTypes) {
    const std::vector<Tensor> actual = run(dtype, true);
    ASSERT_EQ(actual.size(), exact.size());
    for (size_t i = 0; i < exact.size(); ++i) {
      EXPECT_EQ(actual[i].scalar_type(), dtype);
      expect_near(actual[i], exact[i], plain::tolerance(dtype), p.name + " " + names[i] + " " + c10::toString(dtype));
    }
  }
}

Problem dot_problem(const std::string& name, int64_t B = 2, int64_t Hq = 4, int64_t Hkv = 2, int64_t L = 7,
                    int64_t S = 9, int64_t D = 5, int64_t Dv = 3) {
  torch::manual_seed(1);
  return {.name = name, .q = random({B, Hq, L, D}), .k = random({B, Hkv, S, D}), .v = random({B, Hkv, S, Dv})};
}

Problem additive_problem(const std::string& name, bool w_per_head) {
  Problem p = dot_problem(name);
  p.score = Score::additive;
  p.w = w_per_head ? random({4, 5}) : random({5});
  return p;
}

TEST(TorchAttention, DotMatchesTheFormula) {
  check(dot_problem("grouped, Dv < D"));
  check(dot_problem("one head", 1, 1, 1, 5, 5, 8, 8));
  check(dot_problem("one query", 3, 2, 2, 1, 40, 16, 20));
  check(dot_problem("longer than a tile", 1, 2, 1, 70, 75, 17, 33));
  check(dot_problem("width 1", 2, 2, 1, 3, 4, 1, 1));
  Problem p = dot_problem("scale given");
  p.scale = -0.3;
  check(p);
}

TEST(TorchAttention, AdditiveMatchesTheFormula) {
  check(additive_problem("w shared", false));
  check(additive_problem("w per head", true));
  Problem p = additive_problem("scaled, masked, biased", false);
  p.scale = 0.7;
  p.mask = lengths({9, 4}) & causal();
  p.bias = random({9});
  check(p);
}

TEST(TorchAttention, MasksAndRowsThatSeeNothing) {
  Problem p = dot_problem("causal, bottom right");
  p.mask = causal();
  check(p);
  p.name = "causal, top left";
  p.mask = causal(0);
  check(p);
  p.name = "first rows blind";
  p.mask = causal(-3);
  check(p);
  p.name = "a whole sequence blind";
  p.mask = lengths({0, 4});
  check(p);

  p = dot_problem("");
  const Tensor q = p.q.clone().requires_grad_();
  const AttentionResult result = attention(q, p.k, p.v, {.mask = lengths({0, 4})});
  EXPECT_TRUE(result.out[0].eq(0).all().item<bool>());
  EXPECT_TRUE(result.lse[0].eq(-std::numeric_limits<double>::infinity()).all().item<bool>());
  const Tensor d_q = gradients(mixed(result.out), {q})[0];
  EXPECT_TRUE(d_q[0].eq(0).all().item<bool>());
  EXPECT_TRUE(d_q[1].ne(0).any().item<bool>());
}

auto gate() {
  return score_mod(
      [](auto s, int64_t, int64_t h, int64_t, int64_t j) { return s * (h + 1) + static_cast<float>(j) / 8; },
      [](auto, int64_t, int64_t h, int64_t, int64_t) { return h + 1; });
}

TEST(TorchAttention, MasksWithHoles) {
  Problem p = dot_problem("");
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{9}, {7, 9}, {7, 1}, {4, 7, 9}, {2, 1, 7, 9}, {2, 4, 1, 9}, {2, 4, 7, 9}}) {
    const Tensor visible = random(shape).gt(-0.3);
    p.name = "a bool tensor of rank " + std::to_string(shape.size());
    p.mask = boolean_mask(visible);
    check(p);
    const Tensor all = visible.expand({2, 4, 7, 9});
    EXPECT_TRUE(torch::equal(plain::visible(p.mask, 2, 4, 7, 9), all));
    EXPECT_TRUE(torch::equal(plain::visible(boolean_mask(all.transpose(2, 3)), 2, 4, 9, 7), all.transpose(2, 3)));
  }
  p.name = "composed";
  p.mask = (dilated(4, 2) | global_tokens({0})) & !boolean_mask(random({2, 4, 7, 9}).gt(0.8));
  check(p);
  p.score = Score::additive, p.w = random({5});
  check(p);
  EXPECT_THROW(boolean_mask(torch::ones({2, 2})), Error);
  EXPECT_THROW(boolean_mask(torch::ones({1, 1, 1, 2, 2}, torch::kBool)), Error);
}

// Against LibTorch's own operators: a gate for each head and key before sigmoid weights.
TEST(TorchAttention, SigmoidAndAScoreMod) {
  const Problem p = dot_problem("");
  for (const auto dtype : kDTypes) {
    const std::vector<Tensor> x = leaves_of(p, dtype);
    AttentionOptions options;
    options.mask = causal();
    options.weigh = Weigh::sigmoid;
    options.score_mod = std::make_shared<decltype(gate())>(gate());
    const AttentionResult result = attention(x[0], x[1], x[2], options);
    EXPECT_FALSE(result.lse.defined());
    const auto by_head = torch::arange(1, 5, dtype).reshape({4, 1, 1}), by_key = torch::arange(9, torch::dtype(dtype));
    const auto repeated = [](const Tensor& t) { return t.repeat_interleave(2, 1); };
    const Tensor scores = torch::matmul(x[0], repeated(x[1]).transpose(2, 3)) / std::sqrt(5.0) * by_head + by_key / 8;
    const Tensor weights = scores.sigmoid() * plain::visible(causal(), 2, 4, 7, 9).to(dtype);
    const Tensor out = torch::matmul(weights, repeated(x[2]));
    expect_near(result.out, out, plain::tolerance(dtype), "out");
    expect_near(attention_weights(x[0], x[1], options), weights, plain::tolerance(dtype), "weights");
    const std::vector<Tensor> got = gradients(mixed(result.out), x), want = gradients(mixed(out), x);
    for (size_t i = 0; i < x.size(); ++i) expect_near(got[i], want[i], plain::tolerance(dtype), "gradient");
    EXPECT_THROW(torch::autograd::grad({attention(x[0], x[1], x[2], options).out.sum()}, {x[0]}, {}, true, true)[0]
                     .sum()
                     .backward(),
                 std::exception);  // has no second derivative, and says so
  }
}

TEST(TorchAttention, NothingBehindAMaskIsRead) {
  for (const auto dtype : kDTypes) {
    const Problem p = dot_problem("");
    Tensor q = p.q.to(dtype).clone().requires_grad_(), k = p.k.to(dtype).clone(), v = p.v.to(dtype).clone();
    const Tensor clean = attention(q, k, v, {.mask = lengths({9, 4})}).out;
    k[1].slice(1, 4, 9).fill_(NAN);
    v[1].slice(1, 4, 9).fill_(NAN);
    const Tensor poisoned = attention(q, k, v, {.mask = lengths({9, 4})}).out;
    EXPECT_TRUE(torch::equal(clean, poisoned));
    EXPECT_FALSE(gradients(mixed(poisoned), {q})[0].isnan().any().item<bool>());
  }
}

TEST(TorchAttention, AnyStridesWithoutCopies) {
  Problem p = dot_problem("[B, L, H, D] seen as [B, H, L, D]");
  p.q = random({2, 7, 4, 5}), p.k = random({2, 9, 2, 5}), p.v = random({2, 9, 2, 3});
  p.arrange = [](Tensor t) { return t.transpose(1, 2); };
  check(p);
  // The result is laid out as the query is, so that flattening the heads is free.
  const Tensor out = attention(p.arrange(p.q), p.arrange(p.k), p.arrange(p.v)).out;
  EXPECT_TRUE(out.transpose(1, 2).is_contiguous());

  p = dot_problem("last dimension strided");
  p.q = random({2, 4, 5, 7}), p.k = random({2, 2, 5, 9}), p.v = random({2, 2, 3, 9});
  p.arrange = [](Tensor t) { return t.transpose(2, 3); };
  check(p);

  p = dot_problem("expanded batch");
  p.q = random({1, 4, 7, 5}), p.k = random({1, 2, 9, 5}), p.v = random({1, 2, 9, 3});
  p.arrange = [](Tensor t) { return t.expand({3, -1, -1, -1}); };
  p.mask = lengths({9, 2, 5});
  check(p);

  p = dot_problem("expanded length and head");
  p.q = random({2, 1, 1, 5}), p.k = random({2, 1, 1, 5}), p.v = random({2, 1, 1, 5});
  p.arrange = [](Tensor t) { return t.expand({-1, 2, 6, -1}); };
  check(p);

  p = dot_problem("expanded last dimension");
  p.q = random({2, 4, 7, 1}), p.k = random({2, 2, 9, 1}), p.v = random({2, 2, 9, 1});
  p.arrange = [](Tensor t) { return t.expand({-1, -1, -1, 6}); };
  check(p);

  p = dot_problem("overlapping windows");
  p.q = random({2, 4, 7}), p.k = random({2, 2, 13}), p.v = random({2, 2, 13});
  p.arrange = [](Tensor t) { return t.unfold(2, 5, 1); };  // strides [.., .., 1, 1]
  check(p);

  p = dot_problem("every other row of a larger tensor");
  p.q = random({2, 4, 14, 5}), p.k = random({2, 2, 18, 5}), p.v = random({2, 2, 18, 5});
  p.arrange = [](Tensor t) { return t.slice(2, 0, t.size(2), 2); };
  check(p);
}

TEST(TorchAttention, BiasBroadcasts) {
  const std::vector<std::vector<int64_t>> shapes = {
      {},        {1},          {9},          {7, 9},       {7, 1},       {4, 7, 9},    {4, 1, 1},
      {1, 7, 9}, {2, 4, 7, 9}, {2, 1, 1, 9}, {2, 1, 7, 1}, {1, 4, 1, 9}, {1, 1, 1, 1}, {2, 4, 1, 1}};
  for (const auto& shape : shapes) {
    Problem p = dot_problem("");
    p.bias = random(shape);
    p.name = "bias " + std::to_string(shape.size()) + "-D, " + std::to_string(p.bias.numel()) + " elements";
    p.mask = lengths({9, 6});
    check(p);
    p = additive_problem("additive, " + p.name, true);
    p.bias = random(shape);
    p.mask = causal();
    check(p);
  }
  Problem p = dot_problem("bias expanded by the caller");
  p.bias = random({1, 4, 1, 9});
  p.arrange_bias = [](Tensor t) { return t.expand({2, 4, 7, 9}); };
  check(p);
  p.name = "bias transposed";
  p.bias = random({9, 7});
  p.arrange_bias = [](Tensor t) { return t.t(); };
  check(p);
}

TEST(TorchAttention, LossesOfOneResultOnly) {
  for (const auto dtype : kDTypes) {
    const Problem p = dot_problem("");
    const auto leaf = [&](const Tensor& t) { return t.to(dtype).clone().requires_grad_(); };
    const Tensor q = leaf(p.q), k = leaf(p.k), v = leaf(p.v);
    const std::vector<Tensor> through_lse = gradients(attention(q, k, v).lse.sum(), {q, k, v});
    const std::vector<Tensor> exact_lse = gradients(plain::attention(q, k, v).lse.sum(), {q, k, v});
    const std::vector<Tensor> through_out = gradients(attention(q, k, v).out.sum(), {q, k, v});
    const std::vector<Tensor> exact_out = gradients(plain::attention(q, k, v).out.sum(), {q, k, v});
    for (size_t i = 0; i < 3; ++i) {
      // Both sides round here, and the sum of a softmax's gradient cancels: twice the tolerance.
      expect_near(through_lse[i], exact_lse[i], 2 * plain::tolerance(dtype), "lse only");
      expect_near(through_out[i], exact_out[i], 2 * plain::tolerance(dtype), "out only");
    }
  }
}

TEST(TorchAttention, FiniteDifferences) {
  Problem p = additive_problem("", true);
  p.bias = random({4, 1, 9});
  std::vector<Tensor> inputs{p.q, p.k, p.v, p.w, p.bias};
  for (Tensor& t : inputs) t = t.clone().requires_grad_();
  const auto loss = [&] {
    const AttentionResult r =
        attention(inputs[0], inputs[1], inputs[2],
                  {.score = Score::additive, .w = inputs[3], .bias = inputs[4], .mask = causal() & lengths({9, 3})});
    return mixed(r.out) + mixed(finite(r.lse));
  };
  const std::vector<Tensor> exact = gradients(loss(), inputs);
  torch::NoGradGuard no_grad;
  const double h =
      1e-5;  // truncation h^2 ~ 1e-10, rounding 1e-14 / h ~ 1e-9: 1e-7 leaves a factor for the third derivative
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor flat = inputs[i].view(-1);
    for (int64_t at = 0; at < flat.numel(); at += 1 + flat.numel() / 13) {
      const double here = flat[at].item<double>();
      flat[at] = here + h;
      const double above = loss().item<double>();
      flat[at] = here - h;
      const double below = loss().item<double>();
      flat[at] = here;
      EXPECT_NEAR((above - below) / (2 * h), exact[i].reshape(-1)[at].item<double>(), 1e-7)
          << "input " << i << " at " << at;
    }
  }
}

TEST(TorchAttention, PackedHeadsAreTheSameNumbers) {
  torch::manual_seed(3);
  const AttentionOptions options{.mask = lengths({9, 4}) & causal()};
  const Tensor q = random({2, 7, 4 * 5}).requires_grad_(), k = random({2, 9, 2 * 5}).requires_grad_(),
               v = random({2, 9, 2 * 3}).requires_grad_();
  const AttentionResult packed = packed_attention(q, k, v, 4, 2, options);
  const AttentionResult apart = attention(plain::split(q, 4), plain::split(k, 2), plain::split(v, 2), options);
  EXPECT_TRUE(torch::equal(packed.out, plain::join(apart.out)));
  EXPECT_TRUE(torch::equal(packed.lse, apart.lse));
  EXPECT_TRUE(torch::equal(packed_attention_weights(q, k, 4, 2, options),
                           attention_weights(plain::split(q, 4), plain::split(k, 2), options)));
  const auto a = gradients(mixed(packed.out), {q, k, v}), b = gradients(mixed(plain::join(apart.out)), {q, k, v});
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::equal(a[i], b[i])) << i;

  const Tensor one = q.detach().select(1, 6).clone().requires_grad_();  // one query a sentence, without its axis
  const AttentionResult single = packed_attention(one, k, v, 4, 2, options);
  EXPECT_EQ(single.out.sizes(), (std::vector<int64_t>{2, 12}));
  EXPECT_TRUE(torch::equal(single.out, packed.out.select(1, 6)));
  EXPECT_EQ(packed_attention_weights(one, k, 4, 2, options).sizes(), (std::vector<int64_t>{2, 4, 1, 9}));
  const AttentionResult axis = packed_attention(one.unsqueeze(1), k, v, 4, 2, options);
  EXPECT_TRUE(torch::equal(gradients(mixed(single.out), {one})[0], gradients(mixed(axis.out), {one})[0]));
}

TEST(TorchAttention, RecordsOnlyWhatIsAsked) {
  const Problem p = dot_problem("");
  EXPECT_FALSE(attention(p.q, p.k, p.v).out.requires_grad());
  const Tensor k = p.k.clone().requires_grad_();
  {
    torch::NoGradGuard no_grad;
    EXPECT_FALSE(attention(p.q, k, p.v).out.requires_grad());
  }
  const AttentionResult result = attention(p.q, k, p.v);
  EXPECT_TRUE(result.out.requires_grad() && result.lse.requires_grad());
  const auto node = result.out.grad_fn();
  ASSERT_TRUE(node);
  EXPECT_FALSE(node->next_edge(0).is_valid());  // q needs none: its gradient is not even computed
  EXPECT_TRUE(node->next_edge(1).is_valid());
  // Several backward passes through one graph, and one that asks for a part of the inputs.
  const Tensor q = p.q.clone().requires_grad_();
  const Tensor loss = mixed(attention(q, k, p.v).out);
  const auto both = torch::autograd::grad({loss}, {q, k}, {}, /*retain_graph=*/true);
  const auto only_k = torch::autograd::grad({loss}, {k}, {}, /*retain_graph=*/true);
  EXPECT_TRUE(torch::equal(both[1], only_k[0]));
  loss.backward();
  EXPECT_TRUE(torch::equal(both[0], q.grad()));
  EXPECT_THROW(loss.backward(), c10::Error);  // freed: LibTorch's own message
}

// LibTorch's own allocator, which writes down what it is asked for.
struct Recording final : at::Allocator {
  at::Allocator* base = c10::GetCPUAllocator();
  mutable std::multiset<size_t> sizes;

  Recording() { c10::SetCPUAllocator(this, /*priority=*/1); }
  ~Recording() override { c10::SetCPUAllocator(base, /*priority=*/1); }
  at::DataPtr allocate(size_t n) const override {
    sizes.insert(n);
    return base->allocate(n);
  }
  at::DeleterFnPtr raw_deleter() const override { return base->raw_deleter(); }
};

TEST(TorchAttention, WhatNeedsNoGradientGetsNoMemory) {
  // Each tensor has a size of its own.
  const std::vector<Tensor> leaves{torch::randn({1, 2, 11, 8}), torch::randn({1, 2, 13, 8}),
                                   torch::randn({1, 2, 13, 5}), torch::randn({1, 2, 11, 13})};
  for (size_t wanted = 0; wanted < leaves.size(); ++wanted) {
    std::vector<Tensor> in;
    for (size_t i = 0; i < leaves.size(); ++i) in.push_back(leaves[i].clone().set_requires_grad(i == wanted));
    const Tensor out = attention(in[0], in[1], in[2], {.bias = in[3]}).out, d_out = torch::ones_like(out);
    const Recording recording;
    torch::autograd::grad({out}, {in[wanted]}, {d_out});
    for (size_t i = 0; i < leaves.size(); ++i)
      EXPECT_EQ(recording.sizes.count(leaves[i].nbytes()), i == wanted ? 1u : 0u) << i << " while " << wanted;
  }
}

TEST(TorchAttention, HoldsNothingAfterwards) {
  const Problem p = dot_problem("");
  const Tensor q = p.q.clone().requires_grad_(), k = p.k.clone(), v = p.v.clone();
  c10::weak_intrusive_ptr<c10::TensorImpl> weak_out = [&] {
    const AttentionResult result = attention(q, k, v);
    EXPECT_GT(k.use_count(), 1u);  // the graph needs it
    return c10::weak_intrusive_ptr<c10::TensorImpl>(result.out.getIntrusivePtr());
  }();
  EXPECT_TRUE(weak_out.expired());  // a graph that saved its own output would keep it alive
  EXPECT_EQ(k.use_count(), 1u);
  EXPECT_EQ(v.use_count(), 1u);
  mixed(attention(q, k, v).out).backward();
  EXPECT_EQ(k.use_count(), 1u);
}

TEST(TorchAttention, AnInputWrittenToAfterwardsIsNoticed) {
  const Problem p = dot_problem("");
  const Tensor q = p.q.clone().requires_grad_(), k = p.k.clone();
  const Tensor loss = mixed(attention(q, k, p.v).out);
  k.add_(1);
  EXPECT_THROW(loss.backward(), c10::Error);
}

// ---- Options, dtypes, second derivatives ----

// Dot attention with each option, and with all of them.
std::vector<Problem> with_options() {
  std::vector<Problem> all;
  const auto add = [&](const std::string& name, const std::function<void(Problem&)>& change) {
    all.push_back(dot_problem(name));
    change(all.back());
  };
  const auto cap = [](Problem& p) { p.softcap = 1.5; };
  const auto bias = [](Problem& p) { p.bias = random({2, 1, 7, 9}); };
  const auto slopes = [](Problem& p) { p.alibi = 0.3 * random({4}); };
  const auto sinks = [](Problem& p) { p.sinks = random({4}); };
  const auto drop = [](Problem& p) { p.dropout = 0.4; };
  add("softcap", cap);
  add("bias", bias);
  add("alibi", slopes);
  add("one slope", [](Problem& p) { p.alibi = torch::tensor(0.2, torch::kFloat64); });
  add("sinks", sinks);
  add("one sink", [](Problem& p) { p.sinks = torch::tensor(0.5, torch::kFloat64); });
  add("dropout", drop);
  add("all of them", [&](Problem& p) {
    for (const auto& change : {std::function<void(Problem&)>(cap), {bias}, {slopes}, {sinks}, {drop}}) change(p);
    p.mask = causal() & lengths({9, 6});
  });
  return all;
}

TEST(TorchAttention, OptionsMatchTheFormula) {
  for (const Problem& p : with_options()) check(p);
  Problem p = additive_problem("additive with all of them", true);
  p.softcap = 1.5, p.alibi = 0.3 * random({4}), p.sinks = random({4}), p.dropout = 0.4;
  check(p);
}

TEST(TorchAttention, DropoutFollowsTorchsGenerator) {
  const Problem p = dot_problem("");
  const auto run = [&](uint64_t seed) {
    torch::manual_seed(seed);
    return attention(p.q, p.k, p.v, {.dropout = 0.5}).out;
  };
  EXPECT_TRUE(torch::equal(run(3), run(3)));
  EXPECT_FALSE(torch::equal(run(3), run(4)));
  torch::manual_seed(3);
  const Tensor first = attention(p.q, p.k, p.v, {.dropout = 0.5}).out;
  EXPECT_FALSE(torch::equal(first, attention(p.q, p.k, p.v, {.dropout = 0.5}).out));  // a call draws a new one
}

// float16 and bfloat16: all arithmetic is float32, and each result is rounded once.
TEST(TorchAttention, SixteenBits) {
  Problem p = with_options().back();
  for (const auto dtype : {torch::kFloat16, torch::kBFloat16}) {
    Problem rounded = p;
    for (Tensor* t : {&rounded.q, &rounded.k, &rounded.v, &rounded.bias, &rounded.alibi, &rounded.sinks}) {
      *t = t->to(dtype).to(torch::kFloat64);
    }
    const auto run = [&](torch::ScalarType type, bool with_heed) {
      const std::vector<Tensor> inputs = leaves_of(rounded, type);
      const Arguments given(rounded, inputs);
      std::vector<Tensor> all;
      if (with_heed) {
        const AttentionResult r = given.heed();
        EXPECT_EQ(r.lse.scalar_type(), torch::kFloat32);
        all = {r.out, r.lse};
      } else {
        // Dropout leaves the same weights in any dtype.
        const plain::Result r = given.formula();
        all = {r.out, r.lse};
      }
      // The factors of mixed(), which would be rounded to 16 bits, in float32 on both sides.
      const Tensor factors = torch::sin(torch::arange(1, all[0].numel() + 1, torch::kFloat64) * 1.7)
                                 .reshape(all[0].sizes())
                                 .to(dtype)
                                 .to(type);
      for (Tensor& g : torch::autograd::grad({all[0], all[1]}, inputs, {factors, torch::ones_like(all[1])})) {
        all.push_back(g);
      }
      return all;
    };
    const std::vector<Tensor> exact = run(torch::kFloat64, false), actual = run(dtype, true);
    const double eps = dtype == torch::kFloat16 ? 0x1p-11 : 0x1p-8;
    for (size_t i = 0; i < exact.size(); ++i) {
      // out enters the gradients rounded: a few roundings more, of values of the size of the largest.
      expect_near(actual[i], exact[i],
                  i == 1   ? 1e-5
                  : i == 0 ? eps
                           : 6 * eps,
                  c10::toString(dtype) + std::to_string(i));
      EXPECT_EQ(actual[i].scalar_type(), i == 1 ? torch::kFloat32 : dtype);
    }
  }
}

TEST(TorchAttention, AutocastCastsWhatItCastsForProducts) {
  const Problem p = with_options().back();
  const std::vector<Tensor> inputs = leaves_of(p, torch::kFloat32);
  at::autocast::set_cpu_enabled(true);
  at::autocast::set_autocast_cpu_dtype(torch::kBFloat16);
  const AttentionResult r = Arguments(p, inputs).heed();
  at::autocast::clear_cache();
  at::autocast::set_cpu_enabled(false);
  EXPECT_EQ(r.out.scalar_type(), torch::kBFloat16);
  EXPECT_EQ(r.lse.scalar_type(), torch::kFloat32);
  const std::vector<Tensor> actual = gradients(mixed(r.lse) + mixed(r.out.to(torch::kFloat32)), inputs);
  const AttentionResult e = Arguments(p, inputs).heed();
  const std::vector<Tensor> exact = gradients(mixed(e.lse) + mixed(e.out), inputs);
  for (size_t i = 0; i < exact.size(); ++i) {
    EXPECT_EQ(actual[i].scalar_type(), torch::kFloat32);
    EXPECT_FALSE(torch::equal(actual[i], exact[i]));
    expect_near(actual[i], exact[i], 16 * 0x1p-8, "bf16 near float32 " + std::to_string(i));
  }
}

// Gradients of a penalty on all first gradients and of the loss together.
std::vector<Tensor> penalised(const Problem& p, torch::ScalarType dtype, bool with_heed) {
  const std::vector<Tensor> inputs = leaves_of(p, dtype);
  const Arguments given(p, inputs);
  Tensor out, lse;
  if (with_heed) {
    const AttentionResult r = given.heed();
    out = r.out, lse = r.lse;
  } else {
    const plain::Result r = given.formula();
    out = r.out, lse = r.lse;
  }
  // Squares, so that what arrives at out and lse depends on the inputs as well.
  const Tensor loss = mixed(out.pow(2)) + mixed(finite(lse).pow(2));
  const auto first = torch::autograd::grad({loss}, inputs, {}, /*retain_graph=*/true, /*create_graph=*/true);
  Tensor penalty = loss;
  for (const Tensor& g : first) penalty = penalty + mixed(g.pow(2));
  return gradients(penalty, inputs);
}

TEST(TorchAttention, SecondDerivativesMatchTheFormula) {
  std::vector<Problem> all = with_options();
  all.push_back(dot_problem("plain"));
  all.push_back(dot_problem("causal"));
  all.back().mask = causal();
  all.push_back(dot_problem("permuted"));
  all.back().arrange = [](Tensor t) { return t.transpose(1, 2).contiguous().transpose(1, 2); };
  all.push_back(dot_problem("strided"));
  all.back().arrange = [](Tensor t) { return torch::cat({t, t}, 2).narrow(2, 0, t.size(2)).flip(3).flip(3); };
  for (const Problem& p : all) {
    const std::vector<Tensor> exact = penalised(p, torch::kFloat64, false);
    for (const auto dtype : kDTypes) {
      const std::vector<Tensor> actual = penalised(p, dtype, true);
      for (size_t i = 0; i < exact.size(); ++i) {
        EXPECT_EQ(actual[i].scalar_type(), dtype);
        // First derivatives of size 10 are squared.
        expect_near(actual[i], exact[i], 4 * plain::tolerance(dtype),
                    p.name + " d_" + p.leaves()[i].first + " " + c10::toString(dtype));
      }
    }
  }
}

// As torch.autograd.gradgradcheck: every gradient of every input against difference quotients of first derivatives.
TEST(TorchAttention, SecondDerivativesMatchDifferences) {
  const Problem p = with_options().back();
  std::vector<Tensor> inputs = leaves_of(p, torch::kFloat64);
  const auto first = [&](bool create) {
    const AttentionResult r = Arguments(p, inputs).heed();
    const auto g = torch::autograd::grad({mixed(r.out) + mixed(r.lse)}, inputs, {}, /*retain_graph=*/create, create);
    Tensor sum = torch::zeros({}, torch::kFloat64);
    for (const Tensor& x : g) sum = sum + mixed(x);
    return sum;
  };
  const std::vector<Tensor> exact = gradients(first(true), inputs);
  const double h = 1e-5;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor flat = inputs[i].data().view(-1);
    for (int64_t at = 0; at < flat.numel(); at += 1 + flat.numel() / 13) {
      const double here = flat[at].item<double>();
      flat[at] = here + h;
      const double above = first(false).item<double>();
      flat[at] = here - h;
      const double below = first(false).item<double>();
      flat[at] = here;
      EXPECT_NEAR((above - below) / (2 * h), exact[i].reshape(-1)[at].item<double>(), 1e-6)
          << p.leaves()[i].first << " at " << at;
    }
  }
}

// What cannot be differentiated says so when it is tried, and not before.
TEST(TorchAttention, FurtherDerivativesAreRefusedInWords) {
  const auto refusal = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const std::exception& e) {
      return e.what();
    }
    return "no error";
  };
  const auto grad = [](const Tensor& loss, const Tensor& of) {
    return torch::autograd::grad({loss}, {of}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
  };
  const Problem p = additive_problem("", false);
  const Tensor q = p.q.clone().requires_grad_();
  const Tensor additive = grad(mixed(attention(q, p.k, p.v, {.score = Score::additive, .w = p.w}).out), q);
  EXPECT_NE(refusal([&] { additive.pow(2).sum().backward(); }).find("additive scores have no second derivative"),
            std::string::npos);
  const Tensor loss = mixed(attention(q, p.k, p.v).out);
  const Tensor one = grad(loss, q);
  expect_near(one, gradients(mixed(attention(q, p.k, p.v).out), {q})[0], 0, "the first derivative is as without");
  const Tensor two = grad(one.pow(2).sum(), q);
  EXPECT_NE(refusal([&] { two.pow(2).sum().backward(); }).find("no third derivative"), std::string::npos);
}

TEST(TorchAttention, ErrorsNameTheArgument) {
  const Problem p = dot_problem("");
  const auto message = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const auto has = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(message([&] { attention(p.q.to(torch::kInt), p.k, p.v); }), "q has dtype Int");
  has(message([&] { attention(p.q, p.k, p.v, {.sinks = random({3, 1})}); }), "sinks has shape [3, 1]");
  has(message([&] { attention(p.q, p.k, p.v, {.alibi = random({3})}); }), "alibi has shape [1, 3, 1, 1]");
  has(message([&] { attention(p.q, p.k, p.v, {.dropout = 1}); }), "dropout is 1");
  has(message([&] { attention(p.q, Tensor(), p.v); }), "k is an undefined tensor");
  has(message([&] { attention(p.q[0], p.k, p.v); }), "q has shape [4, 7, 5]");
  has(message([&] { attention(p.q, p.k, p.v, {.bias = random({1, 2, 4, 7, 9})}); }), "bias has shape [1, 2, 4, 7, 9]");
  has(message([&] { attention(p.q, p.k, p.v, {.score = Score::additive, .w = random({1, 4, 5})}); }), "w has shape");
  has(message([&] {
        packed_attention(random({2, 7, 10}), random({2, 9, 10}), random({2, 9, 10}), 3, 1);
      }),
      "10 is not divisible by 3 heads");
  has(message([&] { packed_attention(random({2, 7, 10}), random({2, 10}), random({2, 9, 10}), 1, 1); }), "k has shape");
  has(message([&] {
        packed_attention(random({2, 7, 10}), random({2, 9, 10}), random({2, 9, 10}), 0, 1);
      }),
      "at least 1");
  // What the engine checks comes through: another head count, another dtype, a mask for another batch.
  EXPECT_THROW(attention(p.q, random({2, 3, 9, 5}), random({2, 3, 9, 3})), Error);
  EXPECT_THROW(attention(p.q, p.k.to(torch::kFloat32), p.v), Error);
  EXPECT_THROW(attention(p.q, p.k, p.v, {.mask = lengths({1, 2, 3})}), Error);
  EXPECT_THROW(attention(p.q, p.k, p.v, {.score = Score::additive}), Error);
}

TEST(TorchAttention, WithoutQueriesNothingAndWithoutKeysZeros) {
  const auto options = torch::TensorOptions().requires_grad(true);
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    const Tensor q = torch::ones({1, 2, 3, 4}, options.dtype(dtype)),
                 none = torch::ones({1, 2, 0, 4}, options.dtype(dtype));
    const Tensor no_rows = attention(none, q, q).out, zeros = attention(q, none, none).out;
    EXPECT_EQ(no_rows.sizes(), none.sizes());
    EXPECT_TRUE(torch::equal(zeros, torch::zeros_like(q)));
    (no_rows.sum() + zeros.sum()).backward();
    EXPECT_TRUE(torch::equal(q.grad(), torch::zeros_like(q)));
    EXPECT_EQ(none.grad().sizes(), none.sizes());
  }
}

// ---- The executor ----

// LibTorch's first guess may be one thread; these tests need two.
class TorchExecutor : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(2); }
  void TearDown() override { at::set_num_threads(before_); }

 private:
  int before_ = at::get_num_threads();
};

TEST_F(TorchExecutor, RunsEachTaskOnce) {
  std::vector<std::atomic<int>> counts(1000);
  torch_executor().run(
      1000, [](void* context, int64_t i) { ++(*static_cast<std::vector<std::atomic<int>>*>(context))[i]; }, &counts);
  for (const auto& count : counts) EXPECT_EQ(count, 1);
  torch_executor().run(
      0, [](void*, int64_t) { FAIL() << "there is no task"; }, nullptr);
}

TEST_F(TorchExecutor, UsesLibTorchsThreads) {
  EXPECT_EQ(torch_executor().concurrency(), 2);
  struct Seen {
    std::mutex mutex;
    std::set<std::thread::id> ids;
    std::atomic<int> waiting{0};
  } seen;
  // Two tasks that wait for each other: they end early only if two threads run them.
  torch_executor().run(
      2,
      [](void* context, int64_t) {
        Seen& s = *static_cast<Seen*>(context);
        ++s.waiting;
        for (int i = 0; i < 2000 && s.waiting < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        const std::lock_guard lock(s.mutex);
        s.ids.insert(std::this_thread::get_id());
      },
      &seen);
  EXPECT_EQ(seen.ids.size(), 2u) << "was libtorch/attention.cc compiled without -fopenmp?";
  at::set_num_threads(1);
  EXPECT_EQ(torch_executor().concurrency(), 1);
}

TEST_F(TorchExecutor, InsideAParallelRegionItIsSerial) {
  std::atomic<int> done{0};
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      EXPECT_EQ(torch_executor().concurrency(), 1);
      torch_executor().run(
          5, [](void* context, int64_t) { ++*static_cast<std::atomic<int>*>(context); }, &done);
    }
  });
  EXPECT_EQ(done, 10);
}

TEST_F(TorchExecutor, ThreadsDoNotChangeTheBits) {
  torch::manual_seed(5);
  std::vector<std::vector<Tensor>> results;
  const Tensor q = torch::randn({2, 4, 150, 24}), k = torch::randn({2, 2, 170, 24}), v = torch::randn({2, 2, 170, 40});
  for (const int n : {1, 2, 3}) {
    at::set_num_threads(n);
    const std::vector<Tensor> inputs{q.clone().requires_grad_(), k.clone().requires_grad_(),
                                     v.clone().requires_grad_()};
    const Tensor out = attention(inputs[0], inputs[1], inputs[2], {.mask = causal()}).out;
    std::vector<Tensor> all{out.detach()};
    for (const Tensor& g : torch::autograd::grad({out}, inputs, {torch::ones_like(out)})) all.push_back(g);
    results.push_back(all);
  }
  for (size_t n = 1; n < results.size(); ++n) {
    for (size_t i = 0; i < results[0].size(); ++i) EXPECT_TRUE(torch::equal(results[0][i], results[n][i])) << n << i;
  }
}

}  // namespace
}  // namespace heed::nn
