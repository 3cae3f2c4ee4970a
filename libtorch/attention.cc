// Heed's operator as an autograd function over strided tensors, and LibTorch's threads as its executor.
#include "libtorch/attention.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>

#include "libtorch/dropout.h"

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

// The tensors a call may be made of and differentiated in. A call has a list of those it is given, in this order, which
// is the order in which autograd counts them.
enum Slot : uint8_t { kQ, kK, kV, kW, kBias, kAlibi, kSinks, kSlots };

constexpr const char* kNames[kSlots] = {"q", "k", "v", "w", "bias", "alibi", "sinks"};
constexpr ConstTensor Attention::*kInputs[kSlots] = {
    &Attention::q, &Attention::k, &Attention::v, &Attention::w, &Attention::bias, &Attention::alibi, &Attention::sinks};
constexpr heed::Tensor Gradients::*kGradients[kSlots] = {&Gradients::d_q,    &Gradients::d_k,    &Gradients::d_v,
                                                         &Gradients::d_w,    &Gradients::d_bias, &Gradients::d_alibi,
                                                         &Gradients::d_sinks};

DType dtype_of(const Tensor& t, const char* name) {
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
      throw Error(std::string(name) + " has dtype " + c10::toString(t.scalar_type()) +
                  "; attention takes float32, float16, bfloat16 or float64: convert with .to(torch::kFloat32)");
  }
}

// What the engine gives lse and sums over many elements in.
torch::ScalarType exact(torch::ScalarType q) { return q == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32; }

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
Tensor gradient_of(const Tensor& t, torch::ScalarType dtype) {
  const Tensor gradient = torch::empty_like(t, t.options().dtype(dtype));
  return fits(gradient) ? gradient : torch::empty(t.sizes(), gradient.options());
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

// alibi, sinks or a gradient of theirs: [] or [Hq] as [1, 1 or Hq, 1, 1].
heed::Tensor view_per_head(const Tensor& t, const char* name) {
  if (t.dim() > 1) {
    throw Error(std::string(name) + " has shape " + shape_text(t) + "; it must be one number or one for each head");
  }
  const bool per_head = t.dim() == 1;
  return {data_of(t), dtype_of(t, name), {1, per_head ? t.size(0) : 1, 1, 1}, {0, per_head ? t.stride(0) : 0, 0, 1}};
}

// The tensor of a slot, or its gradient.
heed::Tensor view_slot(Slot slot, const Tensor& t, Heads heads) {
  switch (slot) {
    case kQ:
      return view(t, kNames[slot], heads.query);
    case kK:
    case kV:
      return view(t, kNames[slot], heads.kv);
    case kW:
      return view_w(t);
    case kBias:
      return view_bias(t);
    default:
      return view_per_head(t, kNames[slot]);
  }
}

// What a call is made of besides its list of tensors; kept by the graph for the backward pass.
struct Settings : torch::CustomClassHolder {
  Attention how;                              // without tensors
  std::shared_ptr<const ScoreMod> score_mod;  // keeps how.score_mod
  Heads heads;
  std::array<Slot, kSlots> slots{};  // of the first, second, ... tensor
};

// The engine's problem: the list may go on behind the slots.
Attention problem(const Settings& settings, const variable_list& inputs, size_t count) {
  Attention a = settings.how;
  for (size_t i = 0; i < count; ++i) {
    a.*kInputs[settings.slots[i]] = view_slot(settings.slots[i], inputs[i], settings.heads);
  }
  return a;
}

// LibTorch 2.4 gave the question a name that goes by device.
bool autocasts() {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
  return at::autocast::is_autocast_enabled(torch::kCPU);
#else
  return at::autocast::is_cpu_enabled();
#endif
}
torch::ScalarType autocast_dtype() {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
  return at::autocast::get_autocast_dtype(torch::kCPU);
#else
  return at::autocast::get_autocast_cpu_dtype();
#endif
}

// A call's settings, and its tensors as the engine can read them. Casts and copies are made here, in sight of autograd:
// gradients find their way through them.
struct Call {
  c10::intrusive_ptr<Settings> settings = c10::make_intrusive<Settings>();
  variable_list inputs;

  // v may be undefined where only the weights are wanted.
  Call(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options, Heads heads, bool needs_v) {
    settings->heads = heads;
    inputs.reserve(kSlots + 2);  // and what is saved with them
    add(kQ, q);
    add(kK, k);
    if (needs_v) add(kV, v);
    for (const auto& [slot, t] : {std::pair(kW, &options.w), std::pair(kBias, &options.bias),
                                  std::pair(kAlibi, &options.alibi), std::pair(kSinks, &options.sinks)}) {
      if (t->defined()) add(slot, *t);
    }
    if (heads.query > 0 && k.dim() != 3) {
      throw Error("k has shape " + shape_text(k) + "; packed attention needs [batch, keys, width]");
    }
    if (heads.query > 0 && needs_v && v.dim() != 3) {
      throw Error("v has shape " + shape_text(v) + "; packed attention needs [batch, keys, width]");
    }
    Attention& how = settings->how;
    how.score = options.score;
    how.scale = options.scale;
    how.softcap = options.softcap;
    how.score_mod = (settings->score_mod = options.score_mod).get();
    how.mask = options.mask;
    how.weigh = options.weigh;
    how.executor = &torch_executor();
    if (needs_v && options.dropout != 0) {
      how.dropout = options.dropout;
      how.seed = options.seed ? *options.seed : draw_seed();
    }
  }

 private:
  void add(Slot slot, const Tensor& t) {
    check_kind(t, kNames[slot]);
    settings->slots[inputs.size()] = slot;
    // float32 is welcome beside 16 bits behind the score, and more exact.
    const bool cast = autocasts() && (slot < kBias || t.scalar_type() != torch::kFloat32);
    inputs.push_back(readable(cast ? at::autocast::cached_cast(autocast_dtype(), t, torch::kCPU) : t));
  }
};

// Runs the forward pass into fresh tensors: {out, lse}, of sigmoid weights a stand-in for it.
variable_list run_forward(const Settings& settings, const variable_list& inputs) {
  const Attention a = problem(settings, inputs, inputs.size());
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
  Tensor lse = torch::empty({batch, heads, queries}, q.options().dtype(exact(q.scalar_type())));
  const bool sigmoid = a.weigh == Weigh::sigmoid;
  if (sigmoid) lse.zero_();
  heed::forward(a, {.out = view(out, "out", settings.heads.query), .lse = sigmoid ? heed::Tensor() : view_lse(lse)});
  return {out, lse};
}

// What a backward needs: the call's tensors, then out and lse, then the gradients that arrived at them. The list in
// this order is what both functions below go by.
struct Back {
  const Settings& settings;
  const variable_list& list;
  size_t inputs = list.size() - 4;  // of the call
  size_t d_out = inputs + 2, d_lse = inputs + 3;

  Attention attention() const { return problem(settings, list, inputs); }
  Incoming incoming() const {
    if (settings.how.weigh == Weigh::sigmoid)
      return {{}, {}, view(list[d_out], "the gradient of out", settings.heads.query), {}};
    return {view(list[inputs], "out", settings.heads.query), view_lse(list[inputs + 1]),
            view(list[d_out], "the gradient of out", settings.heads.query), view_lse(list[d_lse])};
  }
  // A place for the gradient of the i-th input: sums over many elements are as exact as lse.
  Tensor place(size_t i) const {
    const auto q = list[kQ].scalar_type();
    return gradient_of(list[i], settings.slots[i] <= kV ? q : exact(q));
  }
};

// Which of the first `count` tensors gradients are wanted of, a bit for each.
uint64_t wanted_of(const AutogradContext* ctx, size_t count) {
  uint64_t bits = 0;
  for (size_t i = 0; i < count; ++i) bits |= uint64_t{ctx->needs_input_grad(i)} << i;
  return bits;
}

// The gradients of the wanted inputs, in order. What is not wanted takes no memory and no work.
variable_list run_backward(const Back& back, uint64_t wanted) {
  variable_list gradients;
  Gradients places;
  for (size_t i = 0; i < back.inputs; ++i) {
    if (!(wanted >> i & 1)) continue;
    const Slot slot = back.settings.slots[i];
    gradients.push_back(back.place(i));
    places.*kGradients[slot] = view_slot(slot, gradients.back(), back.settings.heads);
  }
  heed::backward(back.attention(), back.incoming(), places);
  return gradients;
}

constexpr ConstTensor Tangents::*kTangents[kSlots] = {&Tangents::q,    &Tangents::k,     &Tangents::v,    nullptr,
                                                      &Tangents::bias, &Tangents::alibi, &Tangents::sinks};
constexpr heed::Tensor SecondGradients::*kSecond[kSlots] = {
    &SecondGradients::d_q,    &SecondGradients::d_k,     &SecondGradients::d_v,    nullptr,
    &SecondGradients::d_bias, &SecondGradients::d_alibi, &SecondGradients::d_sinks};

// Stands behind second derivatives that are asked for with create_graph, and explains itself when it is differentiated.
struct NoThirdDerivative : torch::autograd::Function<NoThirdDerivative> {
  static Tensor forward(AutogradContext*, const Tensor& gradient, at::TensorList) { return gradient.variable_data(); }
  static variable_list backward(AutogradContext*, variable_list) {
    throw Error(
        "Heed's attention has no third derivative; compute the second with create_graph = false, or write the formula "
        "with LibTorch's own operators where you need more");
  }
};

// The first derivative as a function of the call's tensors and of what arrived at out and lse. out and lse themselves
// come without history: the second derivative knows how they depend on the tensors.
struct AttentionGradient : torch::autograd::Function<AttentionGradient> {
  static variable_list forward(AutogradContext* ctx, at::TensorList list, const c10::intrusive_ptr<Settings>& settings,
                               int64_t wanted) {
    const variable_list saved = list.vec();
    const Back back{*settings, saved};
    ctx->save_for_backward(saved);
    ctx->saved_data["settings"] = torch::IValue::make_capsule(settings);
    ctx->saved_data["wanted"] = wanted;
    ctx->set_materialize_grads(false);
    return run_backward(back, static_cast<uint64_t>(wanted));
  }

  static variable_list backward(AutogradContext* ctx, variable_list arrived) {
    const auto settings = c10::static_intrusive_pointer_cast<Settings>(ctx->saved_data["settings"].toCapsule());
    const uint64_t wanted = static_cast<uint64_t>(ctx->saved_data["wanted"].toInt());
    const variable_list saved = ctx->get_saved_variables();
    const Back back{*settings, saved};
    variable_list gradients(saved.size() + 2);  // and of the settings and `wanted`: none
    if (std::none_of(arrived.begin(), arrived.end(), [](const Tensor& t) { return t.defined(); })) return gradients;

    Tangents along;
    SecondGradients places;
    std::vector<Tensor> kept;  // what the tangents point at
    for (size_t i = 0, next = 0; i < back.inputs; ++i) {
      const Slot slot = settings->slots[i];
      if ((wanted >> i & 1) && arrived[next++].defined() && slot != kW) {
        kept.push_back(readable(arrived[next - 1]));
        along.*kTangents[slot] = view_slot(slot, kept.back(), settings->heads);
      }
      if (ctx->needs_input_grad(i) && slot != kW) {
        gradients[i] = back.place(i);
        places.*kSecond[slot] = view_slot(slot, gradients[i], settings->heads);
      }
    }
    for (const size_t i : {back.d_out, back.d_lse}) {
      if (ctx->needs_input_grad(i)) gradients[i] = gradient_of(saved[i], saved[i].scalar_type());
    }
    if (gradients[back.d_out].defined()) {
      places.d_d_out = view(gradients[back.d_out], "the second gradient of out", settings->heads.query);
    }
    if (gradients[back.d_lse].defined()) places.d_d_lse = view_lse(gradients[back.d_lse]);
    heed::double_backward(back.attention(), back.incoming(), along, places);  // throws for additive scores

    variable_list sources = saved;
    std::copy_if(arrived.begin(), arrived.end(), std::back_inserter(sources),
                 [](const Tensor& t) { return t.defined(); });
    for (size_t i = 0; i < saved.size(); ++i) {
      if (!gradients[i].defined()) continue;
      gradients[i] = gradients[i].to(saved[i].scalar_type());
      if (torch::GradMode::is_enabled()) gradients[i] = NoThirdDerivative::apply(gradients[i], at::TensorList(sources));
    }
    return gradients;
  }
};

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static variable_list forward(AutogradContext* ctx, at::TensorList list,
                               const c10::intrusive_ptr<Settings>& settings) {
    variable_list saved = list.vec();
    variable_list results = run_forward(*settings, saved);
    saved.push_back(results[0]);
    saved.push_back(results[1]);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["settings"] = torch::IValue::make_capsule(settings);
    ctx->set_materialize_grads(false);
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list incoming) {
    const auto settings = c10::static_intrusive_pointer_cast<Settings>(ctx->saved_data["settings"].toCapsule());
    variable_list list = ctx->get_saved_variables();
    const size_t inputs = list.size() - 2;
    // One for each input and one, never defined, for the settings.
    variable_list gradients(inputs + 1);
    if (!incoming[0].defined() && !incoming[1].defined()) return gradients;
    list[inputs] = list[inputs].detach();
    list[inputs + 1] = list[inputs + 1].detach();
    // A loss of one result alone: zeros for the other, one row or number seen many times.
    for (size_t i = 0; i < 2; ++i) {
      const Tensor& of = list[inputs + i];
      list.push_back(incoming[i].defined() ? readable(incoming[i])
                                           : torch::zeros({i == 0 ? of.size(-1) : 1}, of.options()).expand(of.sizes()));
    }

    const uint64_t wanted = wanted_of(ctx, inputs);
    const variable_list found =
        torch::GradMode::is_enabled()  // create_graph
            ? AttentionGradient::apply(at::TensorList(list), settings, static_cast<int64_t>(wanted))
            : run_backward({*settings, list}, wanted);
    for (size_t i = 0, next = 0; i < inputs; ++i) {
      if (wanted >> i & 1) gradients[i] = found[next++].to(list[i].scalar_type());
    }
    return gradients;
  }
};

AttentionResult attend(const Tensor& q, const Tensor& k, const Tensor& v, Heads heads,
                       const AttentionOptions& options) {
  const Call call(q, k, v, options, heads, /*needs_v=*/true);
  const bool recorded = torch::GradMode::is_enabled() && std::any_of(call.inputs.begin(), call.inputs.end(),
                                                                     [](const Tensor& t) { return t.requires_grad(); });
  variable_list results = recorded ? AttentionFunction::apply(at::TensorList(call.inputs), call.settings)
                                   : run_forward(*call.settings, call.inputs);
  return {std::move(results[0]), options.weigh == Weigh::sigmoid ? Tensor() : std::move(results[1])};
}

Tensor weights_of(const Tensor& q, const Tensor& k, Heads heads, const AttentionOptions& options) {
  torch::NoGradGuard no_grad;
  Call call(q, k, {}, options, heads, /*needs_v=*/false);
  // The engine rounds scores to q's dtype, which 16 bits are too few for.
  const auto dtype = exact(call.inputs[kQ].scalar_type());
  const bool narrow = dtype != call.inputs[kQ].scalar_type();
  for (Tensor& t : call.inputs) {
    if (narrow) t = t.to(dtype);
  }
  const Attention a = problem(*call.settings, call.inputs, call.inputs.size());
  const int64_t keys = a.k.shape[2];
  // A sink is one more column while the rows are weighed.
  const int64_t columns = keys + (options.sinks.defined() ? 1 : 0);
  const Tensor all =
      torch::empty({a.q.shape[0], a.q.shape[1], a.q.shape[2], columns}, call.inputs[kQ].options().dtype(dtype));
  const Tensor weights = all.narrow(3, 0, keys);
  heed::score(a, view(weights, "weights", 0));
  if (options.weigh == Weigh::sigmoid) return weights.sigmoid_();
  if (columns > keys) all.select(3, keys).copy_(call.inputs.back().reshape({-1, 1}));
  heed::weigh(view(all, "weights", 0), view(all, "weights", 0));
  return weights.contiguous();
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

Mask boolean_mask(const Tensor& visible) {
  if (visible.scalar_type() != torch::kBool || visible.dim() > 4)
    throw Error("the mask is " + std::string(c10::toString(visible.scalar_type())) + " of shape " +
                shape_text(visible) + "; give a bool tensor that broadcasts to [batch, head, query, key]");
  const Tensor t = visible.cpu();
  std::array<int64_t, 4> shape{1, 1, 1, 1}, stride{0, 0, 0, 0};
  for (int64_t axis = 0; axis < t.dim(); ++axis) {
    shape[4 - t.dim() + axis] = t.size(axis);
    stride[4 - t.dim() + axis] = t.stride(axis);
  }
  return heed::boolean(t.data_ptr<bool>(), shape, stride);
}

Executor& torch_executor() {
  static TorchExecutor executor;
  return executor;
}

}  // namespace heed::nn
