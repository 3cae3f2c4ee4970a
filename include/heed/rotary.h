// Rotary position embedding (RoPE): a pass over queries or keys that turns pairs of channels by angles that grow with
// the position, so that a score q . k depends on how far apart the two are. Su et al. 2021, arXiv:2104.09864.
//
//   heed::rotate(heed::tensor(q, {B, H, L, D}), heed::tensor(q, {B, H, L, D}));                    // in place
//   heed::rotate(key, key, {.offset = cached, .base = 500000});                                    // a row of a decode
//   heed::rotate(d_rotated, d_q, {.inverse = true});                                               // its gradient
#pragma once

#include <cstdint>

#include "heed/attention.h"

namespace heed {

// Which channels are turned together. Weights trained with one do not work with the other.
enum class Pairs {
  halves,       // j and j + R/2: GPT-NeoX, Llama in Hugging Face's layout, ONNX's default
  interleaved,  // 2j and 2j + 1: the paper, GPT-J, Llama in Meta's layout
};

struct Rotary {
  Pairs pairs = Pairs::halves;
  int64_t channels = 0;  // R: the first R channels of each head turn, the others pass through; even; 0: all D
  // Where a row is. Row i is at positions[i], or at positions[b * L + i] if each batch has its own, or, without
  // positions, at offset + i. `offset` is not used beside positions.
  const int64_t* positions = nullptr;  // [L] or [B, L], dense
  int64_t position_batches = 1;        // 1 or B: how many rows `positions` has
  int64_t offset = 0;
  // The angles. Without tables, pair j at position p turns by p * base^(-2j / R), worked out in double. With both
  // tables by the angle whose cosine and sine they hold, either
  //   [1, 1, P, R/2]: one row for each position; a row of x looks up its own, or
  //   [B, 1, L, R/2]: one row for each row of x; then there are neither positions nor an offset.
  // Any dtype, whatever x is; rounded to the type of the arithmetic.
  ConstTensor cos = {};
  ConstTensor sin = {};
  double base = 10000;
  bool inverse = false;          // turn back, by minus the angle
  Executor* executor = nullptr;  // nullptr: Heed's own threads
};

// out = x with its pairs turned: (a, b) becomes (a cos - b sin, a sin + b cos). x and out: [B, H, L, D], of one dtype,
// any strides; out may be x itself (the same data and strides), and must not overlap it otherwise. f32 arithmetic for
// f32, f16 and bf16, double for f64; results are rounded once. A row's bits depend on its values and its position (or
// its rows of the tables) alone. A turn is an orthogonal map, so its gradient, and its undoing, is the inverse turn of
// what arrives. Throws heed::Error for what does not fit and for a position that a table does not have; then nothing is
// written.
void rotate(const ConstTensor& x, const Tensor& out, const Rotary& how = {});

// Fills the tables that rotate(x, out, {.base = base}) would work out, for positions first, first + 1, ...: whoever
// rotates again and again keeps them. cos and sin: [1, 1, P, R/2].
void rotary_tables(const Tensor& cos, const Tensor& sin, int64_t first = 0, double base = 10000);

}  // namespace heed
