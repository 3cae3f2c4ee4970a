// Checks arguments before anything is written, and words the errors: one sentence, both numbers, what to do.
#pragma once

#include <string>

#include "heed/cache.h"
#include "plan.h"

namespace heed {

// ---- One view at a time, for every operator's check ----

std::string text(int64_t n);
std::string text(const Shape& s);
const char* text(DType t);

// A view that is there, of a known dtype, with sizes that can be. One without elements needs no data.
// i8 is for keys and values in pages alone.
void check_view(const char* name, const ConstTensor& t, bool in_pages = false);
// Whose last dimension is contiguous.
void check_rows(const char* name, const ConstTensor& t);
// A view of the shape `want`, which `meaning` describes.
void check_shape(const char* name, const ConstTensor& t, const Shape& want, const char* meaning);
// A view, if it is there, of the dtype of the tensor `of`.
void check_dtype(const char* name, const ConstTensor& t, DType want, const char* of = "q");
// Two elements of a tensor that is written must not share memory: with one row on top of another, results would race.
void check_writable(const char* name, const Tensor& t);

// All of it: a view of a shape and dtype whose last dimension is contiguous; one that may be written.
void check_read(const char* name, const ConstTensor& t, const Shape& want, const char* meaning, DType dtype,
                const char* of = "q");
void check_written(const char* name, const Tensor& t, const Shape& want, const char* meaning, DType dtype,
                   const char* of = "q");
// What sums over many elements, and states, have beside tensors of `t`: f32, and f64 for f64.
DType exact(DType t);
// A view, if it is there, of the dtype that is exact beside the tensor `of`, which has dtype q.
void check_exact(const char* name, const ConstTensor& t, DType q, const char* of = "q");

// ---- The attention operator's calls ----

Problem check_forward(const Attention& a, const Output& result);
// Every page that a query may see keys of is one of the pool's.
void check_table(const Problem& p, const Tiling& tiling);
Problem check_backward(const Attention& a, const Incoming& in, const Gradients& gradients);
Problem check_jvp(const Attention& a, const ConstTensor& lse, const Tangents& tangents, const Output& result);
// Of a call that makes weights again from lse; v may be left out.
Problem check_weights(const Attention& a, const ConstTensor& lse);
Problem check_double_backward(const Attention& a, const Incoming& in, const Tangents& dd,
                              const SecondGradients& wanted);

void check_appended(const char* name, const ConstTensor& t, const Shape& want);
void check_merge(const std::vector<Part>& parts, const Output& result);

Problem check_scores(const Attention& a, const Tensor& scores);
void check_weigh(const ConstTensor& scores, const Tensor& weights);
int64_t check_gather(const ConstTensor& weights, const ConstTensor& v, const Tensor& out);  // returns Hq / Hkv

}  // namespace heed
