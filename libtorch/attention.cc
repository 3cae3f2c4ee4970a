// Heed's operator as an autograd function over strided tensors, and LibTorch's threads as its executor.
#include "libtorch/attention.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <string>
#include <utility>

// at::parallel_for is a template: without OpenMP switched on in this file it would run everything on one thread.
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile libtorch/attention.cc with -fopenmp: this LibTorch runs its threads through OpenMP"
#endif

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// How the heads lie in a tensor: in an axis of their own (heads == 0) or packed in the last one.
struct Heads {
  int64_t query = 0;
  int64_t kv = 0;
};

std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << t.sizes();
  return text.str();
}

// Memory that an empty tensor may point at: the engine reads a null pointer as "not given".
double nowhere[1];

DType dtype_of(const Tensor& t, const char* name) {
  if (t.scalar_type() == torch::kFloat32) return DType::f32;
  if (t.scalar_type() == torch::kFloat64) return DType::f64;
  throw Error(std::string(name) + " has dtype " + c10::toString(t.scalar_type()) +
              "; attention takes float32 or float64: convert with .to(torch::kFloat32)");
}

void check_kind(const Tensor& t, const char* name) {
  if (!t.defined()) throw Error(std::string(name) + " is an undefined tensor; give it a value");
  if (!t.device().is_cpu() || t.layout() != torch::kStrided) {
    throw Error(std::string(name) + " is not a dense CPU tensor; Heed runs on the CPU: convert with .cpu()");
  }
}

void* data_of(const Tensor& t) { return t.numel() == 0 ? static_cast<void*>(nowhere) : t.data_ptr(); }

// Whether the last dimension is contiguous, which is all that the engine asks of a layout.
bool fits(const Tensor& t) { return t.dim() == 0 || t.size(-1) <= 1 || t.stride(-1) == 1; }

// The input itself, or a copy that fits.
Tensor readable(const Tensor& t) { return fits(t) ? t : t.contiguous(); }

// A place for the gradient of t, laid out like t where that fits: a permuted view gets back what it can pass on without
// a copy. An expanded t gets a dense one.
Tensor gradient_of(const Tensor& t) {
  const Tensor gradient = torch::empty_like(t);
  return fits(gradient) ? gradient : torch::empty(t.sizes(), t.options());
}

// q, k, v, out or a gradient of theirs as [batch, head, length, dim]; `heads` > 0: [B, L, heads*D] or [B, heads*D].
heed::Tensor view(const Tensor& t, const char* name, int64_t heads) {
  heed::Tensor result;
  result.data = data_of(t);
  result.dtype = dtype_of(t, name);
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  if (heads == 0) {
    if (t.dim() != 4) {
      throw Error(std::string(name) + " has shape " + shape_text(t) + "; attention needs [batch, head, length, dim]");
    }
    for (size_t axis = 0; axis < 4; ++axis) {
      result.shape[axis] = sizes[axis];
      result.stride[axis] = strides[axis];
    }
    return result;
  }
  if (t.dim() != 3 && t.dim() != 2) {
    throw Error(std::string(name) + " has shape " + shape_text(t) + "; packed attention needs [batch, length, width]");
  }
  const int64_t width = t.size(-1);
  if (width % heads != 0) {
    throw Error(std::string(name) + "'s last dimension " + std::to_string(width) + " is not divisible by " +
                std::to_string(heads) + " heads");
  }
  const int64_t dim = width / heads;
  const bool many = t.dim() == 3;
  result.shape = {sizes[0], heads, many ? sizes[1] : 1, dim};
  result.stride = {strides[0], dim, many ? strides[1] : 0, 1};
  return result;
}

// lse or its gradient, [B, Hq, L], as [B, Hq, L, 1].
heed::Tensor view_lse(const Tensor& t) {
  return {
      data_of(t), dtype_of(t, "lse"), {t.size(0), t.size(1), t.size(2), 1}, {t.stride(0), t.stride(1), t.stride(2), 1}};
}

// w or its gradient: [D] or [Hq, D] as [1, 1 or Hq, 1, D].
heed::Tensor view_w(const Tensor& t) {
  if (t.dim() != 1 && t.dim() != 2) {
    throw Error("w has shape " + shape_text(t) + "; additive attention needs [D] or [heads, D]");
  }
  const bool per_head = t.dim() == 2;
  return {data_of(t),
          dtype_of(t, "w"),
          {1, per_head ? t.size(0) : 1, 1, t.size(-1)},
          {0, per_head ? t.stride(0) : 0, 0, t.stride(-1)}};
}

// bias or its gradient: up to four dimensions, right-aligned in [B, Hq, L, S].
heed::Tensor view_bias(const Tensor& t) {
  if (t.dim() > 4) {
    throw Error("bias has shape " + shape_text(t) + "; it must broadcast to [batch, head, query, key]");
  }
  heed::Tensor result{data_of(t), dtype_of(t, "bias"), {1, 1, 1, 1}, {0, 0, 0, 0}};
  const int64_t missing = 4 - t.dim();
  for (int64_t axis = 0; axis < t.dim(); ++axis) {
    result.shape[missing + axis] = t.size(axis);
    result.stride[missing + axis] = t.stride(axis);
  }
  return result;
}

// What a call is made of besides tensors; kept by the graph for the backward pass.
struct Settings : torch::CustomClassHolder {
  Score score = Score::dot;
  std::optional<double> scale;
  Mask mask;
  Heads heads;
  bool has_w = false;
  bool has_bias = false;
};

// The tensors of a call in the order in which autograd counts them: q, k, v, then w and bias if given.
Attention problem(const Settings& settings, const variable_list& inputs) {
  Attention a;
  size_t next = 3;
  a.q = view(inputs[0], "q", settings.heads.query);
  a.k = view(inputs[1], "k", settings.heads.kv);
  if (inputs[2].defined()) a.v = view(inputs[2], "v", settings.heads.kv);
  a.score = settings.score;
  a.scale = settings.scale;
  if (settings.has_w) a.w = view_w(inputs[next++]);
  if (settings.has_bias) a.bias = view_bias(inputs[next++]);
  a.mask = settings.mask;
  a.executor = &torch_executor();
  return a;
}

// Checks what the engine cannot see, and lists the tensors. v may be undefined where only the weights are wanted.
variable_list collect(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options, Heads heads,
                      bool needs_v) {
  check_kind(q, "q");
  check_kind(k, "k");
  if (needs_v) check_kind(v, "v");
  if (heads.query > 0 && k.dim() != 3) {
    throw Error("k has shape " + shape_text(k) + "; packed attention needs [batch, keys, width]");
  }
  if (heads.query > 0 && needs_v && v.dim() != 3) {
    throw Error("v has shape " + shape_text(v) + "; packed attention needs [batch, keys, width]");
  }
  variable_list inputs;
  inputs.reserve(5);
  inputs.push_back(q);
  inputs.push_back(k);
  inputs.push_back(v);
  if (options.w.defined()) {
    check_kind(options.w, "w");
    inputs.push_back(options.w);
  }
  if (options.bias.defined()) {
    check_kind(options.bias, "bias");
    inputs.push_back(options.bias);
  }
  return inputs;
}

void make_readable(variable_list& inputs) {
  for (Tensor& input : inputs) {
    if (input.defined()) input = readable(input);
  }
}

// Runs the forward pass into fresh tensors: {out, lse}.
variable_list run_forward(const Settings& settings, const variable_list& inputs) {
  const Attention a = problem(settings, inputs);
  const Tensor& q = inputs[0];
  const int64_t batch = a.q.shape[0], heads = a.q.shape[1], queries = a.q.shape[2], dim = a.v.shape[3];
  Tensor out;
  if (q.dim() == 2) {
    out = torch::empty({batch, heads * dim}, q.options());
  } else if (q.dim() == 3) {
    out = torch::empty({batch, queries, heads * dim}, q.options());
  } else if (heads > 1 && q.stride(1) < q.stride(2)) {
    // q is a [B, L, H, D] tensor seen from the side; laid out the same way, out can be flattened without a copy.
    out = torch::empty_strided({batch, heads, queries, dim}, {queries * heads * dim, dim, heads * dim, 1}, q.options());
  } else {
    out = torch::empty({batch, heads, queries, dim}, q.options());
  }
  Tensor lse = torch::empty({batch, heads, queries}, q.options());
  heed::forward(a, {.out = view(out, "out", settings.heads.query), .lse = view_lse(lse)});
  return {out, lse};
}

// Stands behind every gradient that is asked for with create_graph, and explains itself when it is differentiated.
struct NoSecondDerivative : torch::autograd::Function<NoSecondDerivative> {
  static Tensor forward(AutogradContext*, const Tensor& gradient, at::TensorList) { return gradient.variable_data(); }
  static variable_list backward(AutogradContext*, variable_list) {
    throw Error(
        "Heed's attention has no second derivative; compute the first with create_graph = false, or write the formula "
        "with LibTorch's own operators where you need both");
  }
};

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static variable_list forward(AutogradContext* ctx, at::TensorList list,
                               const c10::intrusive_ptr<Settings>& settings) {
    variable_list inputs = list.vec();
    make_readable(inputs);
    variable_list results = run_forward(*settings, inputs);
    inputs.push_back(results[0]);
    inputs.push_back(results[1]);
    ctx->save_for_backward(std::move(inputs));
    ctx->saved_data["settings"] = torch::IValue::make_capsule(settings);
    ctx->set_materialize_grads(false);
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list incoming) {
    const auto settings = c10::static_intrusive_pointer_cast<Settings>(ctx->saved_data["settings"].toCapsule());
    variable_list saved = ctx->get_saved_variables();
    const size_t inputs = saved.size() - 2;
    // One for each input and one, never defined, for the settings.
    variable_list gradients(inputs + 1);
    if (!incoming[0].defined() && !incoming[1].defined()) return gradients;

    const Tensor &out = saved[inputs], &lse = saved[inputs + 1];
    // A loss of lse alone: the gradient of out is one row of zeros, seen many times.
    const Tensor d_out =
        incoming[0].defined() ? readable(incoming[0]) : torch::zeros({out.size(-1)}, out.options()).expand(out.sizes());
    Incoming in;
    in.out = view(out, "out", settings->heads.query);
    in.lse = view_lse(lse);
    in.d_out = view(d_out, "the gradient of out", settings->heads.query);
    if (incoming[1].defined()) in.d_lse = view_lse(incoming[1]);

    for (size_t i = 0; i < inputs; ++i) {
      if (ctx->needs_input_grad(i)) gradients[i] = gradient_of(saved[i]);
    }
    Gradients wanted;
    if (gradients[0].defined()) wanted.d_q = view(gradients[0], "the gradient of q", settings->heads.query);
    if (gradients[1].defined()) wanted.d_k = view(gradients[1], "the gradient of k", settings->heads.kv);
    if (gradients[2].defined()) wanted.d_v = view(gradients[2], "the gradient of v", settings->heads.kv);
    size_t next = 3;
    if (settings->has_w) {
      if (gradients[next].defined()) wanted.d_w = view_w(gradients[next]);
      ++next;
    }
    if (settings->has_bias && gradients[next].defined()) wanted.d_bias = view_bias(gradients[next]);
    const variable_list tensors(saved.begin(), saved.begin() + static_cast<int64_t>(inputs));
    heed::backward(problem(*settings, tensors), in, wanted);

    if (torch::GradMode::is_enabled()) {  // create_graph: see NoSecondDerivative
      variable_list sources = tensors;
      for (const Tensor& gradient : incoming) {
        if (gradient.defined()) sources.push_back(gradient);
      }
      for (Tensor& gradient : gradients) {
        if (gradient.defined()) gradient = NoSecondDerivative::apply(gradient, at::TensorList(sources));
      }
    }
    return gradients;
  }
};

c10::intrusive_ptr<Settings> settings_of(const AttentionOptions& options, Heads heads) {
  auto settings = c10::make_intrusive<Settings>();
  settings->score = options.score;
  settings->scale = options.scale;
  settings->mask = options.mask;
  settings->heads = heads;
  settings->has_w = options.w.defined();
  settings->has_bias = options.bias.defined();
  return settings;
}

AttentionResult attend(const Tensor& q, const Tensor& k, const Tensor& v, Heads heads,
                       const AttentionOptions& options) {
  variable_list inputs = collect(q, k, v, options, heads, /*needs_v=*/true);
  const auto settings = settings_of(options, heads);
  const bool recorded = torch::GradMode::is_enabled() &&
                        std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); });
  variable_list results;
  if (recorded) {
    results = AttentionFunction::apply(at::TensorList(inputs), settings);
  } else {
    make_readable(inputs);
    results = run_forward(*settings, inputs);
  }
  return {std::move(results[0]), std::move(results[1])};
}

Tensor weights_of(const Tensor& q, const Tensor& k, Heads heads, const AttentionOptions& options) {
  torch::NoGradGuard no_grad;
  variable_list inputs = collect(q, k, {}, options, heads, /*needs_v=*/false);
  const auto settings = settings_of(options, heads);
  make_readable(inputs);
  const Attention a = problem(*settings, inputs);
  Tensor weights = torch::empty({a.q.shape[0], a.q.shape[1], a.q.shape[2], a.k.shape[2]}, q.options());
  const heed::Tensor matrix = view(weights, "weights", 0);
  heed::score(a, matrix);
  heed::weigh(matrix, matrix);
  return weights;
}

void check_heads(int64_t heads, int64_t kv_heads) {
  if (heads < 1 || kv_heads < 1) {
    throw Error("packed attention got " + std::to_string(heads) + " query heads and " + std::to_string(kv_heads) +
                " key heads; both must be at least 1");
  }
}

class TorchExecutor : public Executor {
 public:
  int concurrency() const override { return at::in_parallel_region() ? 1 : std::max(1, at::get_num_threads()); }

  void run(int64_t tasks, void (*task)(void* context, int64_t index), void* context) override {
    const int64_t workers = std::min<int64_t>(tasks, concurrency());
    if (workers <= 1) {
      for (int64_t i = 0; i < tasks; ++i) task(context, i);
      return;
    }
    // parallel_for hands out equal ranges; tasks are not equal, so each worker takes the next one when it is free.
    std::atomic<int64_t> next{0};
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) task(context, i);
      }
    });
  }
};

}  // namespace

AttentionResult attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
  return attend(q, k, v, {}, options);
}

AttentionResult packed_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads, int64_t kv_heads,
                                 const AttentionOptions& options) {
  check_heads(heads, kv_heads);
  return attend(q, k, v, {heads, kv_heads}, options);
}

Tensor attention_weights(const Tensor& q, const Tensor& k, const AttentionOptions& options) {
  return weights_of(q, k, {}, options);
}

Tensor packed_attention_weights(const Tensor& q, const Tensor& k, int64_t heads, int64_t kv_heads,
                                const AttentionOptions& options) {
  check_heads(heads, kv_heads);
  return weights_of(q, k, {heads, kv_heads}, options);
}

Executor& torch_executor() {
  static TorchExecutor executor;
  return executor;
}

}  // namespace heed::nn
