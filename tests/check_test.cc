// Bad arguments: one sentence with both numbers, and nothing written.
#include <gtest/gtest.h>
#include <heed/attention.h>

#include <functional>

#include "problems.h"
#include "said.h"

namespace heed {
namespace {

using heed::tests::error_of;

using heed::testing::Data;

class Check : public ::testing::Test {
 protected:
  std::mt19937_64 random{1};
  Data q{{2, 4, 5, 8}, random}, k{{2, 2, 6, 8}, random}, v{{2, 2, 6, 3}, random}, out{{2, 4, 5, 3}, random};
  Data lse{{2, 4, 5, 1}, random}, bias{{1, 4, 5, 6}, random};
  Attention a{.q = q.read(), .k = k.read(), .v = v.read()};

  std::string forward_says() {
    for (float& x : out.values()) x = 42;
    const std::string text = error_of([&] { forward(a, {out.write()}); });
    if (text != "no error") {
      EXPECT_EQ(out.values(), std::vector<float>(out.values().size(), 42));
    }
    return text;
  }
};

TEST_F(Check, GoodArgumentsPass) { EXPECT_EQ(forward_says(), "no error"); }

TEST_F(Check, HeadsThatDoNotDivide) {
  a.k.shape[1] = a.v.shape[1] = 3;
  EXPECT_EQ(forward_says(), "k has 3 heads; q's 4 heads need a divisor of 4");
}

TEST_F(Check, SizesThatDiffer) {
  a.k.shape[3] = 7;
  EXPECT_EQ(forward_says(), "k has head size 7 but q has head size 8; they must be equal");
  a.k = k.read();
  a.k.shape[0] = 1;
  EXPECT_EQ(forward_says(), "k has batch 1 but q has batch 2; they must be equal");
  a.k = k.read();
  a.v.shape[2] = 5;
  EXPECT_EQ(forward_says(), "v has shape [2, 2, 5, 3] but k's [2, 2, 6, 8] needs the same batch, heads and length");
}

TEST_F(Check, MissingEmptyAndHugeTensors) {
  a.q = {};
  EXPECT_EQ(forward_says(), "q has no data; give a tensor");
  a.q = q.read();
  a.q.shape[2] = -1;
  EXPECT_EQ(forward_says(), "q has shape [2, 4, -1, 8]; a size cannot be negative");
  a.q.shape = {int64_t{1} << 40, int64_t{1} << 40, 5, 8};
  EXPECT_NE(forward_says().find("no memory holds"), std::string::npos);
}

TEST_F(Check, StridesAndTypes) {
  a.k.stride[3] = 2;
  EXPECT_EQ(forward_says(),
            "k's last dimension has stride 2; it must be contiguous (stride 1), so copy it or pass it transposed");
  a.k = k.read();
  a.v.dtype = DType::f64;
  EXPECT_EQ(forward_says(), "v is f64 but q is f32; all tensors of a call share one dtype");
  a.v.dtype = static_cast<DType>(9);
  EXPECT_EQ(forward_says(), "v has dtype number 9; there are f32 (0), f64 (1), f16 (2) and bf16 (3)");
}

TEST_F(Check, Results) {
  Tensor o = out.write();
  o.shape[3] = 4;
  EXPECT_EQ(error_of([&] { forward(a, {o}); }), "out has shape [2, 4, 5, 4] but [B, Hq, L, Dv] is [2, 4, 5, 3]");
  o = out.write();
  o.stride[0] = 0;
  EXPECT_EQ(error_of([&] { forward(a, {o}); }),
            "out is written but its axis 0 of size 2 has stride 0; give it memory of its own");
}

TEST_F(Check, BiasAndW) {
  a.bias = bias.read();
  EXPECT_EQ(forward_says(), "no error");
  a.bias.shape[2] = 4;
  EXPECT_EQ(forward_says(), "bias has shape [1, 4, 4, 6] but the scores have [2, 4, 5, 6]; axis 2 must be 1 or 5");
  a.bias = {};
  a.score = Score::additive;
  EXPECT_EQ(forward_says(), "additive scores need w, of shape [1, 4 or 1, 1, 8]");
  Data w({1, 1, 1, 7}, random);
  a.w = w.read();
  EXPECT_EQ(forward_says(), "w has shape [1, 1, 1, 7] but additive scores need [1, 4 or 1, 1, 8]");
  a.score = Score::dot;
  EXPECT_EQ(forward_says(), "w is given but the score is dot; leave w out or set score to additive");
}

TEST_F(Check, AlibiSinksAndDropout) {
  Data slopes({1, 4, 1, 1}, random), few({1, 3, 1, 1}, random);
  a.alibi = a.sinks = slopes.read();
  a.dropout = 0.5;
  EXPECT_EQ(forward_says(), "no error");
  a.alibi = few.read();
  EXPECT_EQ(forward_says(), "alibi has shape [1, 3, 1, 1] but needs [1, 4 or 1, 1, 1]");
  a.alibi = slopes.read();
  a.sinks = few.read();
  EXPECT_EQ(forward_says(), "sinks has shape [1, 3, 1, 1] but needs [1, 4 or 1, 1, 1]");
  a.sinks = slopes.read();
  a.sinks.dtype = DType::f16;
  EXPECT_EQ(forward_says(), "sinks is f16 but q is f32; all tensors of a call share one dtype");
  a.sinks = slopes.read();
  for (const double p : {1.0, -0.5, static_cast<double>(NAN)}) {
    a.dropout = p;
    EXPECT_EQ(forward_says(), "dropout is " + std::to_string(p) + "; it must be at least 0 and below 1");
  }
}

TEST_F(Check, ScaleAndMasks) {
  a.scale = INFINITY;
  EXPECT_EQ(forward_says(), "scale is inf; it must be a finite number");
  a.scale = {};
  a.mask = documents({{3, 4}});
  EXPECT_EQ(forward_says(), "documents() of batch 0 add up to 7 keys but k has 6; give lengths that fit");
  a.mask = documents({{3}, {2, 4}, {1}});
  EXPECT_EQ(forward_says(), "documents() has 3 entries but the batch is 2; give one for each batch or one for all");
  a.mask = prefix_lm({});
  EXPECT_EQ(forward_says(), "prefix_lm() has 0 entries but the batch is 2; give one for each batch or one for all");
  EXPECT_EQ(error_of([] {
              documents({{1, -2}});
            }),
            "documents() has a length of -2 for batch 0; a length is 0 or more");
  EXPECT_EQ(error_of([] { prefix_lm({-1}); }), "prefix_lm() has -1 for batch 0; a length is 0 or more");
  a.mask = lengths({1, 2, 3}) & causal();
  EXPECT_EQ(forward_says(), "lengths() has 3 entries but the batch is 2; give one length for each batch");
  EXPECT_EQ(error_of([] { lengths({5, -1}); }), "lengths() has -1 for batch 1; a length is 0 or more");
  EXPECT_NE(error_of([] { window(-2, 0); }).find("window(-2, 0)"), std::string::npos);
}

TEST_F(Check, Backward) {
  const Incoming in{out.read(), lse.read(), out.read()};
  Data d_q(q.shape(), random);
  EXPECT_EQ(error_of([&] { backward(a, in, {.d_q = d_q.write()}); }), "no error");
  Data d_bias(bias.shape(), random);
  EXPECT_EQ(error_of([&] { backward(a, in, {.d_bias = d_bias.write()}); }),
            "d_bias is asked for but there is no bias; leave it out");
  EXPECT_EQ(error_of([&] { backward(a, {out.read(), {}, out.read()}, {}); }), "lse has no data; give a tensor");
  Data per_head({1, 4, 1, 1}, random);
  EXPECT_EQ(error_of([&] { backward(a, in, {.d_alibi = per_head.write()}); }),
            "d_alibi is asked for but there is no alibi; leave it out");
  EXPECT_EQ(error_of([&] { backward(a, in, {.d_sinks = per_head.write()}); }),
            "d_sinks is asked for but there is no sinks; leave it out");
  // Sums stay f32 beside narrow tensors.
  a.q.dtype = a.k.dtype = a.v.dtype = DType::bf16;
  a.bias = bias.read();
  ConstTensor o = out.read();
  o.dtype = DType::bf16;
  Tensor narrow = d_bias.write();
  narrow.dtype = DType::bf16;
  EXPECT_EQ(error_of([&] {
              backward(a, {o, lse.read(), o}, {.d_bias = narrow});
            }),
            "d_bias is bf16 but for q of bf16 it must be f32");
  ConstTensor l = lse.read();
  l.dtype = DType::bf16;
  EXPECT_EQ(error_of([&] { backward(a, {o, l, o}, {}); }), "lse is bf16 but for q of bf16 it must be f32");
}

TEST_F(Check, SecondDerivatives) {
  const Incoming in{out.read(), lse.read(), out.read()};
  const auto jvp_says = [&](const Tangents& t) { return error_of([&] { jvp(a, lse.read(), t, {out.write()}); }); };
  const auto second_says = [&](const Tangents& t) { return error_of([&] { double_backward(a, in, t, {}); }); };
  EXPECT_EQ(jvp_says({.q = q.read(), .v = v.read()}), "no error");
  EXPECT_EQ(second_says({.q = q.read(), .v = v.read()}), "no error");
  EXPECT_EQ(jvp_says({.q = k.read()}), "tangents.q has shape [2, 2, 6, 8] but q's shape is [2, 4, 5, 8]");
  EXPECT_EQ(second_says({.bias = bias.read()}), "dd.bias is given but there is no bias; leave it out");
  EXPECT_EQ(error_of([&] { jvp(a, {}, {}, {out.write()}); }), "lse has no data; give a tensor");
  Data d_sinks({1, 4, 1, 1}, random);
  EXPECT_EQ(error_of([&] { double_backward(a, in, {}, {.d_sinks = d_sinks.write()}); }),
            "d_sinks is asked for but there is no sinks; leave it out");
  Data w({1, 1, 1, 8}, random);
  a.score = Score::additive;
  a.w = w.read();
  EXPECT_EQ(jvp_says({}),
            "additive scores have no jvp in Heed, dot scores have; write the formula with a framework's own operators "
            "where you need it");
  EXPECT_EQ(
      second_says({}),
      "additive scores have no second derivative in Heed, dot scores have; write the formula with a framework's own "
      "operators where you need it");
}

TEST_F(Check, Steps) {
  Data scores({2, 4, 5, 6}, random), wrong({2, 4, 5, 5}, random);
  EXPECT_EQ(error_of([&] { score(a, scores.write()); }), "no error");
  EXPECT_EQ(error_of([&] { score(a, wrong.write()); }),
            "scores has shape [2, 4, 5, 5] but [B, Hq, L, S] is [2, 4, 5, 6]");
  EXPECT_EQ(error_of([&] { weigh(scores.read(), wrong.write()); }),
            "weights has shape [2, 4, 5, 5] but scores' shape is [2, 4, 5, 6]");
  EXPECT_EQ(error_of([&] { gather(scores.read(), v.read(), out.write()); }), "no error");
  EXPECT_NE(error_of([&] { gather(wrong.read(), v.read(), out.write()); }).find("length 5"), std::string::npos);
}

// Numbers of dtypes that there are not, where the check of a result begins with its dtype.
TEST_F(Check, UnknownTypesOfRowsAndSums) {
  const auto unknown = [](auto t) {
    t.dtype = static_cast<DType>(1000);
    return t;
  };
  const std::string there_are = " has dtype number 1000; there are f32 (0), f64 (1), f16 (2) and bf16 (3)";
  const Incoming in{out.read(), lse.read(), out.read()};
  a.bias = bias.read();
  Data d_bias = Data::empty_like(bias);
  EXPECT_EQ(error_of([&] { forward(a, {out.write(), unknown(lse.write())}); }), "lse" + there_are);
  EXPECT_EQ(error_of([&] { backward(a, {out.read(), unknown(lse.read()), out.read()}, {}); }), "lse" + there_are);
  EXPECT_EQ(error_of([&] { backward(a, in, {.d_bias = unknown(d_bias.write())}); }), "d_bias" + there_are);
}

// What lies side by side in one buffer is told apart element by element.
TEST_F(Check, OutputsOnTopOfInputs) {
  std::vector<float> all(3 * 2 * 4 * 5 * 8, 1);
  const Shape shape{2, 4, 5, 8}, stride{5 * 3 * 32, 8, 3 * 32, 1};  // [B, L, 3, H, D]: packed q, k and v
  const auto slot = [&](int64_t n) { return tensor(all.data() + n * 32, shape, stride); };
  a = {.q = slot(0), .k = slot(1), .v = slot(1)};
  EXPECT_EQ(error_of([&] { forward(a, {slot(2)}); }), "no error");
  for (const int64_t n : {0, 1})
    EXPECT_NE(error_of([&] { forward(a, {slot(n)}); }).find("lies on the memory of"), std::string::npos) << n;
  // One behind the other, of different lengths; by a row or an element they overlap.
  a = {.q = tensor(all.data(), {1, 1, 5, 8}),
       .k = tensor(all.data() + 40, {1, 1, 5, 8}),
       .v = tensor(all.data() + 80, {1, 1, 5, 8})};
  Tensor before = tensor(all.data() + 24, {1, 1, 2, 8}, {40, 40, 8, 1});
  a.q = tensor(all.data() + 500, {1, 1, 2, 8}, {40, 40, 8, 1});
  EXPECT_EQ(error_of([&] { forward(a, {before}); }), "no error");
  for (const int64_t further : {1, 8, 15, 16, 80, 95}) {
    before.data = all.data() + 24 + further;
    EXPECT_NE(error_of([&] { forward(a, {before}); }), "no error") << further;
  }
  before.data = all.data() + 24 + 96;
  EXPECT_EQ(error_of([&] { forward(a, {before}); }), "no error");
}

TEST_F(Check, StepsOfOddViews) {
  Data scores({2, 4, 5, 6}, random);
  ConstTensor s = scores.read(), none = v.read();
  s.stride[3] = 2;
  EXPECT_NE(error_of([&] { weigh(s, scores.write()); }).find("scores's last dimension has stride 2"),
            std::string::npos);
  EXPECT_NE(error_of([&] { gather(s, v.read(), out.write()); }).find("weights's last"), std::string::npos);
  none.shape[1] = 0;
  EXPECT_NE(error_of([&] { gather(scores.read(), none, out.write()); }).find("heads that divide 4"), std::string::npos);
}

// A batch of none has results without elements, and gradients of what it shares: zeros.
TEST(EmptyBatch, GivesZeros) {
  const float none = 0, slopes[] = {1, 2};
  float d_alibi[] = {7, 7}, out = 5;
  for (const Mask& mask : {Mask(), causal(), lengths({}), where([](auto, auto, auto, auto) { return true; })}) {
    d_alibi[0] = d_alibi[1] = 7;
    Attention a{.q = tensor(&none, {0, 2, 5, 8}),
                .k = tensor(&none, {0, 2, 6, 8}),
                .v = tensor(&none, {0, 2, 6, 8}),
                .alibi = tensor(slopes, {1, 2, 1, 1}),
                .mask = mask};
    forward(a, {tensor(&out, {0, 2, 5, 8})});
    backward(a, {tensor(&none, {0, 2, 5, 8}), tensor(&none, {0, 2, 5, 1}), tensor(&none, {0, 2, 5, 8})},
             {.d_alibi = tensor(d_alibi, {1, 2, 1, 1})});
    jvp(a, tensor(&none, {0, 2, 5, 1}), {.alibi = tensor(slopes, {1, 2, 1, 1})}, {tensor(&out, {0, 2, 5, 8})});
    EXPECT_EQ(d_alibi[0], 0);
    EXPECT_EQ(d_alibi[1], 0);
    EXPECT_EQ(out, 5);
  }
}

TEST(Machine, ThreadsAndTargets) {
  EXPECT_EQ(error_of([] { set_threads(0); }), "set_threads(0) is out of range; give 1 to 1024 threads");
  EXPECT_NE(error_of([] { set_target("AVX9"); }).find("asks for 'AVX9', which this machine cannot run; it can run "),
            std::string::npos);
  EXPECT_FALSE(targets().empty());
}

}  // namespace
}  // namespace heed
