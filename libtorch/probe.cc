// The engine's probes on LibTorch's tensors.
#include "libtorch/probe.h"

#include <heed/attention.h>
#include <heed/probe.h>

#include <string>

#include "libtorch/attention.h"

namespace heed::nn {
namespace {

using torch::Tensor;

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case torch::kFloat32:
      return DType::f32;
    case torch::kFloat64:
      return DType::f64;
    case torch::kFloat16:
      return DType::f16;
    case torch::kBFloat16:
      return DType::bf16;
    default:
      throw Error(std::string("a look holds ") + c10::toString(t.scalar_type()) +
                  "; it takes what an attention layer gives: float32, float16, bfloat16 or float64");
  }
}

// A tensor of four axes as the engine sees it.
heed::Tensor view(const Tensor& t) {
  heed::Tensor result{t.data_ptr(), dtype_of(t), {}, {}};
  for (size_t axis = 0; axis < 4; ++axis) {
    result.shape[axis] = t.size(static_cast<int64_t>(axis));
    result.stride[axis] = t.stride(static_cast<int64_t>(axis));
  }
  return result;
}

// [B, L, heads*D] -> [B, heads, L, D], no copy.
heed::Tensor view_heads(const Tensor& t, int64_t heads) {
  return view(t.view({t.size(0), t.size(1), heads, t.size(2) / heads}).transpose(1, 2));
}

Attention problem(const Look& look) {
  Attention a{.q = view_heads(look.q, look.heads), .k = view_heads(look.k, look.kv_heads)};
  a.scale = look.scale;
  a.mask = look.mask;
  if (look.bias.defined()) {
    Tensor bias = look.bias;
    while (bias.dim() < 4) bias = bias.unsqueeze(0);
    a.bias = view(bias);
  }
  a.executor = &torch_executor();
  return a;
}

heed::Tensor view_lse(const Look& look) { return view(look.lse.unsqueeze(-1)); }

// lse has the dtype results come in.
Tensor zeros(const Look& look, torch::IntArrayRef shape) { return torch::zeros(shape, look.lse.options()); }

}  // namespace

Tensor query_weights(const Look& look, int64_t query) {
  const int64_t batch = look.q.size(0);
  std::vector<WeightRow> rows;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < look.heads; ++h) rows.push_back({b, h, query});
  }
  Tensor weights = zeros(look, {1, 1, batch * look.heads, look.k.size(1)});
  probe(problem(look), view_lse(look), {.rows = rows, .weights = view(weights)});
  return weights.view({batch, look.heads, look.k.size(1)});
}

Tensor received_weights(const Look& look) {
  Tensor mass = zeros(look, {look.q.size(0), look.heads, 1, look.k.size(1)});
  probe(problem(look), view_lse(look), {.mass = view(mass)});
  return mass.squeeze(2).div_(static_cast<double>(look.q.size(1)));
}

Tensor rollout_row(const std::vector<Look>& layers, int64_t query) {
  if (layers.empty()) throw Error("a rollout got 0 layers; it needs at least 1");
  std::vector<RolloutLayer> problems;
  for (const Look& look : layers) problems.push_back({problem(look), view_lse(look)});
  Tensor out = zeros(layers[0], {layers[0].q.size(0), 1, 1, layers[0].q.size(1)});
  heed::rollout_row(problems, query, view(out));
  return out.flatten(1);
}

}  // namespace heed::nn
