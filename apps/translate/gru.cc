// The GRU's forward and backward by hand: pointwise parts fused, the recurrent weights' gradient as one matrix product.
#include "apps/translate/gru.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/init.h>
#include <torch/torch.h>

#include <algorithm>

// at::parallel_for is a template: without OpenMP switched on in this file it would run everything on one thread.
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile apps/translate/gru.cc with -fopenmp: this LibTorch runs its threads through OpenMP"
#endif

namespace heed::translate {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What one step's backward needs of its forward.
struct StepState {
  Tensor rz;   // [B, 2H]: r, z
  Tensor n;    // [B, H]
  Tensor h_n;  // [B, H]: the recurrent part of n, a view
};

// Fills s.rz, s.n (memory of the caller's) and s.h_n, and writes h' to `out` [B, H].
void step_forward(const Tensor& input, const Tensor& recurrent, const Tensor& h, StepState& s, Tensor out) {
  const int64_t hidden = h.size(1);
  torch::add_out(s.rz, input.narrow(1, 0, 2 * hidden), recurrent.narrow(1, 0, 2 * hidden)).sigmoid_();
  s.h_n = recurrent.narrow(1, 2 * hidden, hidden);
  torch::addcmul_out(s.n, input.narrow(1, 2 * hidden, hidden), s.rz.narrow(1, 0, hidden), s.h_n).tanh_();
  torch::lerp_out(out, s.n, h, s.rz.narrow(1, hidden, hidden));
}

// One row of the backward, written so that the compiler makes vectors of it. d_h comes in as the gradient of h' and
// goes out as the part of h's gradient that does not pass through W_hh.
template <class T>
void row_backward(int64_t hidden, const T* rz, const T* n, const T* h_n, const T* h, const T* d_out, T* d_input,
                  T* d_recurrent, T* d_h) {
  const T *r = rz, *z = rz + hidden;
  T *di_r = d_input, *di_z = d_input + hidden, *di_n = d_input + 2 * hidden;
  T *dr_r = d_recurrent, *dr_z = d_recurrent + hidden, *dr_n = d_recurrent + 2 * hidden;
#pragma omp simd
  for (int64_t i = 0; i < hidden; ++i) {
    const T g = d_out[i];
    const T dn = g * (1 - z[i]) * (1 - n[i] * n[i]);     // n = tanh(i_n + r * h_n)
    const T dz = g * (h[i] - n[i]) * z[i] * (1 - z[i]);  // h' = n + z * (h - n), z = sigmoid(...)
    const T dr = dn * h_n[i] * r[i] * (1 - r[i]);        // r = sigmoid(...)
    di_r[i] = dr_r[i] = dr;
    di_z[i] = dr_z[i] = dz;
    di_n[i] = dn;
    dr_n[i] = dn * r[i];
    d_h[i] = g * z[i];
  }
}

// Gradients of one step; all tensors have unit stride in the last dimension. d_h may be d_out's own memory.
void step_backward(const StepState& s, const Tensor& h, const Tensor& d_out, Tensor d_input, Tensor d_recurrent,
                   Tensor d_h) {
  const int64_t rows = h.size(0), hidden = h.size(1);
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "gru_step_backward", [&] {
    const auto row = [](const Tensor& t, int64_t i) { return t.data_ptr<scalar_t>() + i * t.stride(0); };
    at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / hidden), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        row_backward<scalar_t>(hidden, row(s.rz, i), row(s.n, i), row(s.h_n, i), row(h, i), row(d_out, i),
                               row(d_input, i), row(d_recurrent, i), row(d_h, i));
      }
    });
  });
}

Tensor last_dense(const Tensor& t) { return t.stride(-1) == 1 ? t : t.contiguous(); }

class StepFunction : public torch::autograd::Function<StepFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& recurrent, const Tensor& h) {
    Tensor out = torch::empty(h.sizes(), h.options());
    StepState s{torch::empty({h.size(0), 2 * h.size(1)}, h.options()), torch::empty(h.sizes(), h.options()), {}};
    step_forward(input, recurrent, h, s, out);
    ctx->save_for_backward({s.rz, s.n, recurrent, h});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor h = last_dense(saved[3]);
    const int64_t hidden = h.size(1);
    const StepState s{saved[0], saved[1], last_dense(saved[2].narrow(1, 2 * hidden, hidden))};
    Tensor d_input = torch::empty({h.size(0), 3 * hidden}, h.options());
    Tensor d_recurrent = torch::empty_like(d_input);
    Tensor d_h = torch::empty(h.sizes(), h.options());
    step_backward(s, h, last_dense(grads[0]), d_input, d_recurrent, d_h);
    return {d_input, d_recurrent, d_h};
  }
};

// Where rows end. mask(t) is [B, 1], 1 for the rows that have a step t; not needed before `shortest`.
struct Padding {
  Padding(const std::vector<int64_t>& lengths, int64_t steps, const Tensor& like)
      : shortest(*std::min_element(lengths.begin(), lengths.end())) {
    if (shortest >= steps) return;
    const Tensor length = torch::tensor(lengths, torch::kInt64).unsqueeze(0);
    masks = (torch::arange(steps).unsqueeze(1) < length).to(like.scalar_type()).unsqueeze(2);
  }
  void apply(Tensor values, int64_t step) const {
    if (step >= shortest) values.mul_(masks[step]);
  }
  int64_t shortest;
  Tensor masks;  // [S, B, 1]
};

class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& w_hh, const Tensor& b_hh,
                        const std::vector<int64_t>& lengths, bool reverse) {
    const int64_t steps = input.size(0), batch = input.size(1), hidden = w_hh.size(1);
    const Padding padding(lengths, steps, input);
    Tensor states = torch::empty({steps, batch, hidden}, input.options());
    Tensor rz = torch::empty({steps, batch, 2 * hidden}, input.options());
    Tensor n = torch::empty_like(states);
    Tensor recurrent = torch::empty({steps, batch, 3 * hidden}, input.options());
    const Tensor w = w_hh.t();
    Tensor h = torch::zeros({batch, hidden}, input.options());
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = reverse ? steps - 1 - i : i;
      Tensor out = states[t];
      Tensor gates = recurrent[t];
      torch::addmm_out(gates, b_hh, h, w);
      StepState s{rz[t], n[t], {}};
      step_forward(input[t], gates, h, s, out);
      padding.apply(out, t);
      h = out;
    }
    ctx->saved_data["lengths"] = lengths;
    ctx->saved_data["reverse"] = reverse;
    ctx->save_for_backward({w_hh, states, rz, n, recurrent.narrow(2, 2 * hidden, hidden)});
    return states;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &w_hh = saved[0], &states = saved[1], &rz = saved[2], &n = saved[3], &h_n = saved[4];
    const bool reverse = ctx->saved_data["reverse"].toBool();
    const int64_t steps = states.size(0), batch = states.size(1), hidden = states.size(2);
    const Padding padding(ctx->saved_data["lengths"].toIntVector(), steps, states);
    const Tensor d_states = grads[0];
    Tensor d_input = torch::empty({steps, batch, 3 * hidden}, states.options());
    Tensor d_recurrent = torch::empty_like(d_input);
    // previous[t] is the state that step t started from: the states moved by one, with zeros at the start.
    Tensor previous = torch::empty_like(states);
    const int64_t first = reverse ? steps - 1 : 0;
    previous[first].zero_();
    if (steps > 1) {
      previous.narrow(0, reverse ? 0 : 1, steps - 1).copy_(states.narrow(0, reverse ? 1 : 0, steps - 1));
    }
    Tensor d_h = torch::zeros({batch, hidden}, states.options());
    for (int64_t i = steps - 1; i >= 0; --i) {
      const int64_t t = reverse ? steps - 1 - i : i;
      d_h.add_(d_states[t]);
      padding.apply(d_h, t);
      step_backward({rz[t], n[t], h_n[t]}, previous[t], d_h, d_input[t], d_recurrent[t], d_h);
      if (t != first) d_h.addmm_(d_recurrent[t], w_hh);
    }
    const Tensor flat = d_recurrent.flatten(0, 1);
    Tensor d_w, d_b;
    if (ctx->needs_input_grad(1)) d_w = flat.t().mm(previous.flatten(0, 1));
    if (ctx->needs_input_grad(2)) d_b = flat.sum(0);
    return {d_input, d_w, d_b, Tensor(), Tensor()};
  }
};

}  // namespace

Tensor gru_step(const Tensor& input, const Tensor& recurrent, const Tensor& h) {
  return StepFunction::apply(input, recurrent, h);
}

Tensor gru_layer(const Tensor& input, const Tensor& w_hh, const Tensor& b_hh, const std::vector<int64_t>& lengths,
                 bool reverse) {
  return LayerFunction::apply(input, w_hh, b_hh, lengths, reverse);
}

Gru::Gru(int64_t input, int64_t hidden) {
  torch::NoGradGuard no_grad;
  weight_ih = register_parameter("weight_ih", torch::empty({3 * hidden, input}));
  weight_hh = register_parameter("weight_hh", torch::empty({3 * hidden, hidden}));
  bias_ih = register_parameter("bias_ih", torch::zeros({3 * hidden}));
  bias_hh = register_parameter("bias_hh", torch::zeros({3 * hidden}));
  for (int64_t gate = 0; gate < 3; ++gate) {
    torch::nn::init::xavier_uniform_(weight_ih.narrow(0, gate * hidden, hidden));
    torch::nn::init::orthogonal_(weight_hh.narrow(0, gate * hidden, hidden));
  }
}

Tensor Gru::gates(const Tensor& x) const { return torch::nn::functional::linear(x, weight_ih, bias_ih); }

Tensor Gru::run(const Tensor& gates, const std::vector<int64_t>& lengths, bool reverse) const {
  return gru_layer(gates, weight_hh, bias_hh, lengths, reverse);
}

Tensor Gru::step(const Tensor& gates, const Tensor& h) const {
  return gru_step(gates, torch::addmm(bias_hh, h, weight_hh.t()), h);
}

}  // namespace heed::translate
