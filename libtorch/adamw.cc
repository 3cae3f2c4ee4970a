// The fused AdamW step and its bookkeeping.
#include "libtorch/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <heed/attention.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

namespace heed::nn {
namespace {

// Elements in one piece of work: six float streams of this length fit a 512 KiB cache.
constexpr int64_t kPiece = 16384;

struct Piece {
  size_t slot;
  int64_t begin, size;
};

// The tensor's memory as a vector, whatever its (dense) strides.
torch::Tensor flat(const torch::Tensor& t) { return t.detach().as_strided({t.numel()}, {1}); }

bool floating(const torch::Tensor& t) {
  return t.scalar_type() == torch::kFloat32 || t.scalar_type() == torch::kFloat64;
}

std::string sizes_text(const torch::Tensor& t) {
  std::ostringstream text;
  text << c10::toString(t.scalar_type()) << " " << t.sizes();
  return text.str();
}

}  // namespace

NamedTensors weights(const torch::nn::Module& module) {
  NamedTensors result;
  std::set<const void*> seen;
  const auto add = [&](const auto& named) {
    for (const auto& item : named) {
      if (item.value().defined() && seen.insert(item.value().unsafeGetTensorImpl()).second) {
        result.emplace_back(item.key(), item.value());
      }
    }
  };
  add(module.named_parameters());
  add(module.named_buffers());
  return result;
}

void copy_into(const NamedTensors& to, const NamedTensors& from, const std::string& what) {
  std::map<std::string, const torch::Tensor*> have;
  for (const auto& [name, tensor] : from) have[name] = &tensor;
  for (const auto& [name, tensor] : to) {
    const auto found = have.find(name);
    if (found == have.end()) throw Error(what + " has no \"" + name + "\"");
    if (found->second->sizes() != tensor.sizes() || found->second->scalar_type() != tensor.scalar_type()) {
      throw Error(what + " has \"" + name + "\" as " + sizes_text(*found->second) + ", and " + sizes_text(tensor) +
                  " is needed");
    }
  }
  torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : to) {
    auto target = tensor;
    target.copy_(*have[name]);
  }
}

AdamW::AdamW(torch::nn::Module& module, const AdamWOptions& options) : options_(options) {
  for (const auto& [name, tensor] : weights(module)) {
    const bool trained = tensor.requires_grad();
    if (!trained && !(options.average > 0 && floating(tensor))) continue;
    if (!floating(tensor) || !tensor.is_non_overlapping_and_dense()) {
      throw Error("cannot train \"" + name + "\": it is " + sizes_text(tensor) +
                  ", not a dense float or double tensor");
    }
    Slot slot{name, tensor, {}, {}, {}, 0};
    if (trained) {
      slot.first = torch::zeros_like(tensor);
      slot.second = torch::zeros_like(tensor);
      slot.weight_decay = tensor.dim() > 1 ? options.weight_decay : 0;
    }
    if (options.average > 0) slot.average = tensor.detach().clone();
    slots_.push_back(std::move(slot));
  }
  if (std::none_of(slots_.begin(), slots_.end(), [](const Slot& s) { return s.first.defined(); })) {
    throw Error("there is nothing to train: no parameter of the model requires a gradient");
  }
}

double AdamW::step(double rate) {
  torch::NoGradGuard no_grad;
  // Gradients with the strides of their weights, as flat vectors; undefined where the loss did not reach.
  struct Flat {
    torch::Tensor value, gradient, first, second, average;
  };
  std::vector<Flat> flats;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    Flat f{flat(slot.value), {}, {}, {}, {}};
    if (slot.first.defined()) {
      f.first = flat(slot.first);
      f.second = flat(slot.second);
      auto gradient = slot.value.grad();
      if (gradient.defined()) {
        if (gradient.strides() != slot.value.strides()) gradient = torch::empty_like(slot.value).copy_(gradient);
        f.gradient = flat(gradient);
        slot.value.mutable_grad().reset();
      }
    }
    if (slot.average.defined()) f.average = flat(slot.average);
    flats.push_back(std::move(f));
    for (int64_t begin = 0; begin < slot.value.numel(); begin += kPiece) {
      pieces.push_back({i, begin, std::min(kPiece, slot.value.numel() - begin)});
    }
  }
  const auto for_pieces = [&](const auto& work) {
    at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView no_autograd;  // workers do not inherit NoGradGuard
      for (int64_t i = begin; i < end; ++i) work(i, pieces[static_cast<size_t>(i)]);
    });
  };

  std::vector<double> squares(pieces.size(), 0.0);
  for_pieces([&](int64_t i, const Piece& piece) {
    const auto& gradient = flats[piece.slot].gradient;
    if (!gradient.defined()) return;
    const double norm = gradient.narrow(0, piece.begin, piece.size).norm().template item<double>();
    squares[static_cast<size_t>(i)] = norm * norm;
  });
  double norm = 0;
  for (const double square : squares) norm += square;  // in order: the same bits for any number of threads
  norm = std::sqrt(norm);
  if (!std::isfinite(norm)) return norm;

  ++steps_;
  const double t = static_cast<double>(steps_);
  const double correction2 = std::sqrt(1 - std::pow(options_.beta2, t));
  const double step_size = rate * correction2 / (1 - std::pow(options_.beta1, t));
  const double epsilon = options_.epsilon * correction2;
  const double scale = options_.clip > 0 && norm > options_.clip ? options_.clip / norm : 1;
  const double average = static_cast<double>(options_.average);
  const double share = std::min(1.0, average / (t + average - 1));
  for_pieces([&](int64_t, const Piece& piece) {
    const Flat& f = flats[piece.slot];
    auto value = f.value.narrow(0, piece.begin, piece.size);
    if (f.gradient.defined()) {
      auto gradient = f.gradient.narrow(0, piece.begin, piece.size);
      auto first = f.first.narrow(0, piece.begin, piece.size);
      auto second = f.second.narrow(0, piece.begin, piece.size);
      if (scale != 1) gradient.mul_(scale);
      first.mul_(options_.beta1).add_(gradient, 1 - options_.beta1);
      second.mul_(options_.beta2).addcmul_(gradient, gradient, 1 - options_.beta2);
      const double decay = slots_[piece.slot].weight_decay;
      if (decay != 0) value.mul_(1 - rate * decay);
      value.addcdiv_(first, second.sqrt().add_(epsilon), -step_size);
    }
    if (f.average.defined()) f.average.narrow(0, piece.begin, piece.size).lerp_(value, share);
  });
  // What the workers wrote below autograd's sight counts as written (stamp_of in packed_linear.h, and saved tensors).
  for (const Slot& slot : slots_)
    if (slot.first.defined()) slot.value.unsafeGetTensorImpl()->bump_version();
  return norm;
}

void AdamW::exchange_average() {
  torch::NoGradGuard no_grad;
  for (Slot& slot : slots_) {
    if (!slot.average.defined()) continue;
    const auto value = slot.value.detach().clone();
    slot.value.copy_(slot.average);
    slot.average.copy_(value);
  }
}

NamedTensors AdamW::state() const {
  NamedTensors result;
  for (const Slot& slot : slots_) {
    if (slot.first.defined()) {
      result.emplace_back("exp_avg." + slot.name, slot.first);
      result.emplace_back("exp_avg_sq." + slot.name, slot.second);
    }
    if (slot.average.defined()) result.emplace_back("average." + slot.name, slot.average);
  }
  return result;
}

}  // namespace heed::nn
