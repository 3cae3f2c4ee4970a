// Projected keys and values between the steps of decoding: growing, reordering.
#include <algorithm>
#include <string>

#include "libtorch/layers.h"

namespace heed::nn {
namespace {

using torch::Tensor;

// `have` rows of storage [B, capacity, width], then next [B, L, width]; grown in place if there is room.
void put_behind(Tensor& storage, int64_t have, const Tensor& next) {
  const int64_t need = have + next.size(1);
  if (storage.size(1) < need) {
    // Half as much again: what is appended one by one is copied a constant number of times, and a beam search, which
    // reorders the whole storage at every step, does not carry much that is empty.
    Tensor grown =
        torch::empty({storage.size(0), need + std::max<int64_t>(16, need / 2), storage.size(2)}, storage.options());
    grown.narrow(1, 0, have).copy_(storage.narrow(1, 0, have));
    storage = grown;
  }
  storage.narrow(1, have, next.size(1)).copy_(next);
}

// Whether rows are 0, 1, ..., batch - 1: nothing to move.
bool keeps_all(const Tensor& rows, int64_t batch) {
  if (rows.size(0) != batch) return false;
  const auto at = rows.accessor<int64_t, 1>();
  for (int64_t i = 0; i < batch; ++i) {
    if (at[i] != i) return false;
  }
  return true;
}

}  // namespace

KeyValue KeyValue::select(const Tensor& rows) const {
  if (rows.dim() != 1 || rows.scalar_type() != torch::kInt64) {
    throw Error("select got rows of dtype " + std::string(c10::toString(rows.scalar_type())) + " and " +
                std::to_string(rows.dim()) + " dimensions; it needs one dimension of int64");
  }
  if (!k.defined() || keeps_all(rows, k.size(0))) return *this;
  return {k.index_select(0, rows), v.index_select(0, rows)};
}

void KeyValueCache::append(const KeyValue& next) {
  if (!storage_.k.defined()) {
    storage_ = next;
    length_ = next.k.size(1);
    return;
  }
  if (next.k.size(0) != storage_.k.size(0)) {
    throw Error("the cache holds a batch of " + std::to_string(storage_.k.size(0)) + " and was given " +
                std::to_string(next.k.size(0)) + " more rows; call select first to make them match");
  }
  const bool differentiable =
      torch::GradMode::is_enabled() &&
      (next.k.requires_grad() || next.v.requires_grad() || storage_.k.requires_grad() || storage_.v.requires_grad());
  if (differentiable) {
    // Earlier steps' graphs hold what they attended to: it must not be written to.
    const KeyValue before = all();
    storage_ = {torch::cat({before.k, next.k}, 1), torch::cat({before.v, next.v}, 1)};
  } else {
    torch::NoGradGuard no_grad;
    put_behind(storage_.k, length_, next.k);
    put_behind(storage_.v, length_, next.v);
  }
  length_ += next.k.size(1);
}

KeyValue KeyValueCache::all() const {
  if (!storage_.k.defined() || storage_.k.size(1) == length_) return storage_;
  return {storage_.k.narrow(1, 0, length_), storage_.v.narrow(1, 0, length_)};
}

void KeyValueCache::select(const Tensor& rows) { storage_ = storage_.select(rows); }

void KeyValueCache::clear() {
  storage_ = {};
  length_ = 0;
}

}  // namespace heed::nn
