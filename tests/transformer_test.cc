// libtorch/transformer.cc: the layers against "Attention Is All You Need" written out, and decoding by steps.
#include "libtorch/transformer.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "libtorch/adamw.h"
#include "tests/plain_attention.h"

namespace heed::nn {
namespace {

using plain::expect_near;
using plain::mixed;
using torch::Tensor;

// A layer is three or four matrix products deep, each with sums as long as an attention's: so many tolerances.
double tolerance(torch::ScalarType dtype) { return 4 * plain::tolerance(dtype); }

// ---- The formulas ----

Tensor apply(const Tensor& x, const torch::nn::Linear& linear) { return x.matmul(linear->weight.t()) + linear->bias; }

Tensor apply(const Tensor& x, const torch::nn::LayerNorm& norm, double eps) {
  const Tensor centred = x - x.mean(-1, true);
  return centred / torch::sqrt(centred.pow(2).mean(-1, true) + eps) * norm->weight + norm->bias;
}

Tensor attend(MultiHeadAttentionImpl& layer, const Tensor& x, const Tensor& memory, const Mask& mask) {
  const auto& o = layer.options;
  const Tensor out = plain::attention(plain::split(apply(x, layer.q_proj), o.heads),
                                      plain::split(apply(memory, layer.k_proj), o.kv_heads),
                                      plain::split(apply(memory, layer.v_proj), o.kv_heads), {.mask = mask})
                         .out;
  return apply(plain::join(out), layer.out_proj);
}

Tensor activation(Activation kind, const Tensor& x) {
  if (kind == Activation::relu) return torch::where(x > 0, x, torch::zeros_like(x));
  if (kind == Activation::swish) return x * torch::sigmoid(x);
  return x * 0.5 * (1 + torch::erf(x / std::sqrt(2.0)));
}

// x = norm(x + f(x)), or x + f(norm(x)).
Tensor sublayer(const Tensor& x, const TransformerLayerOptions& o, const torch::nn::LayerNorm& norm,
                const std::function<Tensor(const Tensor&)>& f) {
  return o.pre_norm ? x + f(apply(x, norm, o.layer_norm_eps)) : apply(x + f(x), norm, o.layer_norm_eps);
}

Tensor plain_encoder(TransformerEncoderLayerImpl& layer, const Tensor& x, const Mask& mask) {
  const auto& o = layer.options;
  const Tensor y = sublayer(x, o, layer.self_attn_layer_norm,
                            [&](const Tensor& in) { return attend(*layer.self_attn, in, in, mask); });
  return sublayer(y, o, layer.final_layer_norm,
                  [&](const Tensor& in) { return apply(activation(o.activation, apply(in, layer.fc1)), layer.fc2); });
}

Tensor plain_decoder(TransformerDecoderLayerImpl& layer, const Tensor& x, const Tensor& memory, const Mask& mask) {
  const auto& o = layer.options;
  const Tensor y = sublayer(x, o, layer.self_attn_layer_norm,
                            [&](const Tensor& in) { return attend(*layer.self_attn, in, in, causal()); });
  const Tensor z = sublayer(y, o, layer.encoder_attn_layer_norm,
                            [&](const Tensor& in) { return attend(*layer.encoder_attn, in, memory, mask); });
  return sublayer(z, o, layer.final_layer_norm,
                  [&](const Tensor& in) { return apply(activation(o.activation, apply(in, layer.fc1)), layer.fc2); });
}

// ---- Comparison ----

using Call = std::function<Tensor(const std::vector<Tensor>& inputs)>;
void check(torch::nn::Module& module, const std::vector<Tensor>& inputs, const Call& layer, const Call& formula,
           const std::string& what) {
  {
    torch::NoGradGuard no_grad;  // biases start at 0 and norms at 1: give every parameter something to show
    for (Tensor& parameter : module.parameters()) parameter.add_(0.2 * torch::randn_like(parameter));
  }
  const auto run = [&](const Call& call, torch::ScalarType dtype) {
    module.to(dtype);
    std::vector<Tensor> leaves;
    for (const Tensor& input : inputs) leaves.push_back(input.to(dtype).clone().requires_grad_());
    const Tensor out = call(leaves);
    for (const Tensor& parameter : module.parameters()) leaves.push_back(parameter);
    std::vector<Tensor> all{out};
    for (Tensor& gradient : plain::gradients(mixed(out), leaves)) all.push_back(gradient);
    return all;
  };
  const std::vector<Tensor> exact = run(formula, torch::kFloat64);
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    const std::vector<Tensor> actual = run(layer, dtype);
    for (size_t i = 0; i < exact.size(); ++i) {
      expect_near(actual[i], exact[i], tolerance(dtype),
                  what + ", result or gradient " + std::to_string(i) + ", " + c10::toString(dtype));
    }
  }
}

std::vector<TransformerLayerOptions> variants() {
  return {{.dim = 12, .heads = 3, .ffn = 20},
          {.dim = 12, .heads = 2, .ffn = 20, .activation = Activation::swish, .layer_norm_eps = 1e-3},
          {.dim = 8, .heads = 4, .kv_heads = 2, .activation = Activation::gelu, .pre_norm = true}};
}

TEST(TransformerEncoderLayer, IsThePapersFormula) {
  for (const TransformerLayerOptions& options : variants()) {
    torch::manual_seed(1);
    TransformerEncoderLayer layer(options);
    const Mask mask = lengths({6, 4});
    check(
        *layer, {torch::randn({2, 6, options.dim})},
        [&](const std::vector<Tensor>& in) { return layer->forward(in[0], {.mask = mask}).out; },
        [&](const std::vector<Tensor>& in) { return plain_encoder(*layer, in[0], mask); },
        "encoder with activation " + std::to_string(static_cast<int>(options.activation)));
  }
}

TEST(TransformerDecoderLayer, IsThePapersFormula) {
  for (const TransformerLayerOptions& options : variants()) {
    torch::manual_seed(2);
    TransformerDecoderLayer layer(options);
    const Mask mask = lengths({7, 3});
    check(
        *layer, {torch::randn({2, 5, options.dim}), torch::randn({2, 7, options.dim})},
        [&](const std::vector<Tensor>& in) { return layer->forward(in[0], in[1], {.mask = mask}).out; },
        [&](const std::vector<Tensor>& in) { return plain_decoder(*layer, in[0], in[1], mask); },
        "decoder with activation " + std::to_string(static_cast<int>(options.activation)));
  }
}

TEST(TransformerEncoderLayer, PaddingChangesNothing) {
  torch::manual_seed(3);
  TransformerEncoderLayer layer(TransformerLayerOptions{.dim = 12, .heads = 3});
  Tensor x = torch::randn({2, 6, 12});
  x[1].slice(0, 4).fill_(NAN);
  const Attended both = layer->forward(x, {.mask = lengths({6, 4}), .want_weights = true});
  const Tensor alone = layer->forward(x[1].slice(0, 0, 4).unsqueeze(0)).out;
  expect_near(both.out[1].slice(0, 0, 4), alone[0], tolerance(torch::kFloat32), "the shorter sentence");
  EXPECT_EQ(both.weights.sizes(), (std::vector<int64_t>{2, 3, 6, 6}));
}

TEST(Transformer, HasMariansNames) {
  const auto names = [](const torch::nn::Module& module) {
    std::vector<std::string> result;
    for (const auto& item : module.named_parameters()) result.push_back(item.key());
    std::sort(result.begin(), result.end());
    return result;
  };
  std::vector<std::string> encoder, decoder;
  for (const std::string end : {"weight", "bias"}) {
    for (const std::string name : {"self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.", "self_attn.out_proj.",
                                   "self_attn_layer_norm.", "fc1.", "fc2.", "final_layer_norm."}) {
      encoder.push_back(name + end);
      decoder.push_back(name + end);
    }
    for (const std::string name : {"encoder_attn.q_proj.", "encoder_attn.k_proj.", "encoder_attn.v_proj.",
                                   "encoder_attn.out_proj.", "encoder_attn_layer_norm."}) {
      decoder.push_back(name + end);
    }
  }
  std::sort(encoder.begin(), encoder.end());
  std::sort(decoder.begin(), decoder.end());
  const TransformerLayerOptions options{.dim = 8, .heads = 2, .ffn = 12};
  TransformerEncoderLayer e(options);
  EXPECT_EQ(names(*e), encoder);
  EXPECT_EQ(names(*TransformerDecoderLayer(options)), decoder);
  EXPECT_EQ(e->fc1->weight.sizes(), (std::vector<int64_t>{12, 8}));
  EXPECT_EQ(TransformerEncoderLayer(TransformerLayerOptions{.dim = 8})->fc1->weight.size(0), 32);  // 4 * dim
  const auto copy = std::dynamic_pointer_cast<TransformerEncoderLayerImpl>(e->clone());
  const Tensor x = torch::randn({1, 3, 8});
  EXPECT_TRUE(torch::equal(copy->forward(x).out, e->forward(x).out));
}

// With weights as they are and, where no gradients are recorded, packed.
TEST(TransformerDecoderLayer, StepsEqualTheWhole) {
  torch::manual_seed(4);
  for (TransformerLayerOptions options : variants()) {
    for (const bool packed : {false, true}) {
      options.qkv_bias = options.kv_heads == 0;
      torch::AutoGradMode recording(!packed);
      TransformerDecoderLayer layer(options);
      layer->eval();
      const Tensor x = torch::randn({2, 25, options.dim}), memory = torch::randn({2, 7, options.dim});
      const AttendOptions how{.mask = lengths({7, 3}), .want_weights = true};
      const DecoderOutput whole = layer->forward(x, memory, how);
      LayerCache cache = layer->start(memory);
      EXPECT_EQ(cache.packed != nullptr, packed);
      for (int64_t t = 0; t < 25; ++t) {
        const DecoderOutput step = layer->step(x.narrow(1, t, 1), cache, how);
        EXPECT_EQ(step.out.requires_grad(), !packed);
        expect_near(step.out, whole.out.narrow(1, t, 1), tolerance(torch::kFloat32), "out");
        expect_near(step.self_weights, whole.self_weights.narrow(2, t, 1).narrow(3, 0, t + 1),
                    tolerance(torch::kFloat32), "self_weights");
        expect_near(step.cross_weights, whole.cross_weights.narrow(2, t, 1), tolerance(torch::kFloat32),
                    "cross_weights");
      }
      EXPECT_EQ(cache.self.length(), 25);
      EXPECT_FALSE(layer->step(x.narrow(1, 0, 1), cache).cross_weights.defined());
    }
  }
}

TEST(TransformerDecoderLayer, CachesShareWhatIsPackedUntilTheWeightsChange) {
  torch::manual_seed(5);
  TransformerDecoderLayer layer(TransformerLayerOptions{.dim = 8, .heads = 2});
  layer->eval();
  const Tensor memory = torch::randn({1, 3, 8}), x = torch::randn({1, 1, 8});
  const auto start = [&] {
    torch::NoGradGuard no_grad;
    return layer->start(memory);
  };
  const LayerCache one = start(), two = start();
  ASSERT_NE(one.packed, nullptr);
  EXPECT_EQ(one.packed, two.packed);
  const auto copy = std::dynamic_pointer_cast<TransformerDecoderLayerImpl>(layer->clone());
  {
    torch::NoGradGuard no_grad;
    EXPECT_NE(copy->start(memory).packed, one.packed);
    layer->fc1->weight.mul_(2);
  }
  const LayerCache three = start();
  EXPECT_NE(three.packed, one.packed);
  layer->forward(x, memory).out.sum().backward();
  AdamW(*layer, {}).step(0.1);
  LayerCache four = start();
  EXPECT_NE(four.packed, three.packed);
  torch::NoGradGuard no_grad;
  expect_near(layer->step(x, four).out, layer->forward(x, memory).out, tolerance(torch::kFloat32), "after the step");
}

// Without padding: the sequences one after another give what they give in a padded batch.
TEST(TransformerDecoderLayer, RaggedEqualsPadded) {
  torch::manual_seed(14);
  torch::NoGradGuard no_grad;
  TransformerDecoderLayer layer(TransformerLayerOptions{.dim = 12, .heads = 3});
  const std::vector<int64_t> target{4, 1, 6}, source{7, 3, 5};
  const Tensor x = torch::randn({3, 6, 12}), memory = torch::randn({3, 7, 12});
  const Tensor padded = layer->forward(x, memory, {.mask = lengths(source)}).out;
  const auto packed = [](const Tensor& t, const std::vector<int64_t>& n) {
    std::vector<Tensor> parts;
    for (int64_t b = 0; b < 3; ++b) parts.push_back(t[b].narrow(0, 0, n[static_cast<size_t>(b)]));
    return torch::cat(parts).unsqueeze(0);
  };
  const std::vector<int64_t> q{0, 4, 5, 11}, k{0, 7, 10, 15};
  const Tensor out =
      layer->forward(packed(x, target), packed(memory, source), {.mask = ragged(q, k)}, ragged(q, q, -1, 0)).out;
  expect_near(out, packed(padded, target), tolerance(torch::kFloat32), "out");
}

TEST(LayerCache, SelectFollowsTheHypotheses) {
  torch::manual_seed(5);
  torch::NoGradGuard no_grad;
  TransformerDecoderLayer layer(TransformerLayerOptions{.dim = 12, .heads = 3});
  const Tensor memory = torch::randn({3, 7, 12});
  const std::vector<int64_t> keys{7, 3, 5};
  LayerCache cache = layer->start(memory);
  Tensor prefix = torch::randn({3, 1, 12});  // what each hypothesis has read so far
  std::vector<int64_t> source{0, 1, 2};
  const auto step = [&](const Tensor& x) {
    std::vector<int64_t> mask, by_row;
    for (const int64_t s : source) mask.push_back(keys[s]);
    for (const int64_t row : cache.rows) by_row.push_back(keys[row]);
    const DecoderOutput stepped = layer->step(x, cache, {.mask = lengths(by_row), .want_weights = true});
    const DecoderOutput whole = layer->forward(prefix, memory.index_select(0, torch::tensor(source, torch::kInt64)),
                                               {.mask = lengths(mask), .want_weights = true});
    const int64_t last = prefix.size(1) - 1;
    expect_near(stepped.out.squeeze(1), whole.out.select(1, last), tolerance(torch::kFloat32), "step");
    expect_near(stepped.cross_weights, whole.cross_weights.narrow(2, last, 1), tolerance(torch::kFloat32), "weights");
  };
  step(prefix);
  // Duplicated, reordered within a sentence, one sentence finished, unequal beams, all of one sentence.
  for (const std::vector<int64_t>& rows : std::vector<std::vector<int64_t>>{{0, 0, 1, 1, 2, 2},
                                                                            {1, 0, 3, 3, 4, 4},
                                                                            {0, 1, 2, 3, 4, 5},
                                                                            {4, 5, 0, 1},
                                                                            {0, 1, 2},
                                                                            {1, 2, 2},
                                                                            {0, 1, 2},
                                                                            {2, 2}}) {
    const Tensor index = torch::tensor(rows, torch::kInt64);
    const void* cross = cache.cross.k.data_ptr();
    const std::vector<int64_t> before = source, sentences = cache.rows;
    source.clear();
    for (const int64_t row : rows) source.push_back(before[row]);
    cache.select(index);
    for (size_t i = 0; i < source.size(); ++i) {
      EXPECT_EQ(cache.rows[i / static_cast<size_t>(cache.group)], source[i]);
    }
    EXPECT_EQ(cache.cross.k.data_ptr() == cross, cache.rows == sentences) << "copied if and only if a sentence moved";
    const Tensor next = torch::randn({index.size(0), 1, 12});
    prefix = torch::cat({prefix.index_select(0, index), next}, 1);
    step(next);
  }
  EXPECT_THROW(cache.select(torch::tensor({5}, torch::kInt64)), Error);
  EXPECT_THROW(cache.select(torch::tensor({0.5})), Error);
  EXPECT_EQ(cache.rows.size(), 1u);
  EXPECT_EQ(cache.group, 2);
}

TEST(Transformer, DropsOutOnlyWhileTraining) {
  torch::manual_seed(6);
  for (const auto dropout : {&TransformerLayerOptions::dropout, &TransformerLayerOptions::activation_dropout,
                             &TransformerLayerOptions::attention_dropout}) {
    TransformerLayerOptions options{.dim = 12, .heads = 3};
    options.*dropout = 0.5;
    TransformerEncoderLayer encoder(options);
    TransformerDecoderLayer decoder(options);
    const Tensor x = torch::randn({2, 6, 12});
    EXPECT_FALSE(torch::equal(encoder->forward(x).out, encoder->forward(x).out));
    EXPECT_FALSE(torch::equal(decoder->forward(x, x).out, decoder->forward(x, x).out));
    encoder->eval();
    decoder->eval();
    EXPECT_TRUE(torch::equal(encoder->forward(x).out, encoder->forward(x).out));
    expect_near(encoder->forward(x).out, plain_encoder(*encoder, x, {}), tolerance(torch::kFloat32), "eval");
    EXPECT_TRUE(torch::equal(decoder->forward(x, x).out, decoder->forward(x, x).out));
  }
}

TEST(Transformer, ErrorsNameTheNumbers) {
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
  has(message([] { TransformerEncoderLayer(TransformerLayerOptions{.dim = 10, .heads = 3}); }), "embed_dim 10");
  has(message([] { TransformerEncoderLayer(TransformerLayerOptions{.heads = 3}); }), "dim 0");
  has(message([] { TransformerDecoderLayer(TransformerLayerOptions{.dim = 8, .dropout = 1.5}); }), "dropout 1.5");
  has(message([] { activation_from_name("tanh"); }), "\"tanh\"");
  EXPECT_EQ(activation_from_name("silu"), Activation::swish);
  has(message([] { sinusoid_positions(3, 0); }), "dim = 0");
}

TEST(SinusoidPositions, SinesThenCosines) {
  const Tensor positions = sinusoid_positions(500, 8);
  ASSERT_EQ(positions.sizes(), (std::vector<int64_t>{500, 8}));
  for (const int64_t p : {0, 1, 7, 499}) {
    for (int64_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(p) / std::pow(10000.0, static_cast<double>(i) / 4);
      EXPECT_FLOAT_EQ(positions[p][i].item<float>(), static_cast<float>(std::sin(angle)));
      EXPECT_FLOAT_EQ(positions[p][4 + i].item<float>(), static_cast<float>(std::cos(angle)));
    }
  }
  const Tensor odd = sinusoid_positions(2, 3);  // two sines, one cosine
  EXPECT_FLOAT_EQ(odd[1][0].item<float>(), std::sin(1.0F));
  EXPECT_FLOAT_EQ(odd[1][1].item<float>(), static_cast<float>(std::sin(std::pow(10000.0, -2.0 / 3))));
  EXPECT_FLOAT_EQ(odd[1][2].item<float>(), std::cos(1.0F));
}

}  // namespace
}  // namespace heed::nn
