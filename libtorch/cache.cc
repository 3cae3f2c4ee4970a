// Projected keys and values between the steps of decoding: growing, reordering.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "libtorch/layers.h"

// at::parallel_for is a template: without OpenMP switched on in this file it would run everything on one thread.
#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "compile libtorch/cache.cc with -fopenmp: this LibTorch runs its threads through OpenMP"
#endif

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

// Rows `order` of the first `length` positions of storage [B, capacity, width], with room for another: in `spare`, if
// it has the shape and nobody else looks at it, or in a new tensor.
Tensor gathered(const Tensor& storage, int64_t length, const Tensor& order, const Tensor& spare) {
  const int64_t batch = order.size(0), width = storage.size(2);
  const int64_t capacity = storage.size(1) > length ? storage.size(1) : length + std::max<int64_t>(16, length / 2);
  const bool fits = spare.defined() && spare.scalar_type() == storage.scalar_type() &&
                    spare.sizes() == at::IntArrayRef({batch, capacity, width}) && spare.storage().use_count() == 1;
  Tensor next = fits ? spare : torch::empty({batch, capacity, width}, storage.options());
  const int64_t* row = order.data_ptr<int64_t>();
  for (int64_t i = 0; i < batch; ++i) {
    if (row[i] < 0 || row[i] >= storage.size(0)) {
      throw Error("select got row " + std::to_string(row[i]) + " of a cache of " + std::to_string(storage.size(0)));
    }
  }
  const auto bytes = static_cast<int64_t>(storage.element_size()) * width;
  const char* from = static_cast<const char*>(storage.data_ptr());
  char* to = static_cast<char*>(next.data_ptr());
  at::parallel_for(0, batch, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, bytes * length)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       std::memcpy(to + i * capacity * bytes, from + row[i] * storage.size(1) * bytes,
                                   static_cast<size_t>(length * bytes));
                     }
                   });
  return next;
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
    storage_ = {next.k.contiguous(), next.v.contiguous()};
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

void KeyValueCache::select(const Tensor& rows) {
  const bool plain = storage_.k.defined() && storage_.v.defined() && rows.dim() == 1 &&
                     rows.scalar_type() == torch::kInt64 && storage_.k.is_contiguous() && storage_.v.is_contiguous() &&
                     !(torch::GradMode::is_enabled() && (storage_.k.requires_grad() || storage_.v.requires_grad()));
  if (!plain) {
    storage_ = storage_.select(rows);
    return;
  }
  if (keeps_all(rows, storage_.k.size(0))) return;
  torch::NoGradGuard no_grad;
  const Tensor order = rows.contiguous();
  KeyValue next = {gathered(storage_.k, length_, order, spare_.k), gathered(storage_.v, length_, order, spare_.v)};
  spare_ = std::exchange(storage_, std::move(next));
}

void KeyValueCache::clear() {
  storage_ = {};
  spare_ = {};
  length_ = 0;
}

}  // namespace heed::nn
