#include "check.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace heed {

std::string text(int64_t n) { return std::to_string(n); }

std::string text(const Shape& s) {
  std::string all;
  for (const int64_t size : s) all += (all.empty() ? "[" : ", ") + text(size);
  return all + "]";
}

const char* text(DType t) {
  constexpr const char* kNames[] = {"f32", "f64", "f16", "bf16", "i8"};
  return kNames[static_cast<int>(t)];
}

namespace {

bool narrow(DType t) { return t == DType::f16 || t == DType::bf16; }

bool empty(const Shape& s) { return s[0] * s[1] * s[2] * s[3] == 0; }

}  // namespace

void check_view(const char* name, const ConstTensor& t, bool in_pages) {
  if (!t.data && (t.shape == Shape{} || !empty(t.shape)))
    throw Error(std::string(name) + " has no data; give a tensor");
  if (t.dtype == DType::i8 && !in_pages)
    throw Error(std::string(name) + " is i8, which only keys and values in pages are; give pages.table, or widen it");
  if (t.dtype != DType::f32 && t.dtype != DType::f64 && !narrow(t.dtype) && t.dtype != DType::i8)
    throw Error(std::string(name) + " has dtype number " + text(static_cast<int64_t>(t.dtype)) +
                "; there are f32 (0), f64 (1), f16 (2) and bf16 (3)");
  double elements = 1;
  for (int axis = 0; axis < 4; ++axis) {
    if (t.shape[axis] < 0)
      throw Error(std::string(name) + " has shape " + text(t.shape) + "; a size cannot be negative");
    elements *= static_cast<double>(t.shape[axis]);
  }
  if (elements > 0x1p60)
    throw Error(std::string(name) + " has shape " + text(t.shape) + ", which no memory holds; check the sizes");
}

void check_rows(const char* name, const ConstTensor& t) {
  if (t.shape[3] > 1 && t.stride[3] != 1 && !empty(t.shape))
    throw Error(std::string(name) + "'s last dimension has stride " + text(t.stride[3]) +
                "; it must be contiguous (stride 1), so copy it or pass it transposed");
}

void check_shape(const char* name, const ConstTensor& t, const Shape& want, const char* meaning) {
  check_view(name, t);
  if (t.shape != want)
    throw Error(std::string(name) + " has shape " + text(t.shape) + " but " + meaning + " is " + text(want));
}

void check_dtype(const char* name, const ConstTensor& t, DType want, const char* of) {
  if (t.data && t.dtype != want)
    throw Error(std::string(name) + " is " + text(t.dtype) + " but " + of + " is " + text(want) +
                "; all tensors of a call share one dtype");
}

void check_writable(const char* name, const Tensor& t) {
  if (empty(t.shape)) return;
  for (int axis = 0; axis < 4; ++axis)
    if (t.shape[axis] > 1 && t.stride[axis] == 0)
      throw Error(std::string(name) + " is written but its axis " + text(axis) + " of size " + text(t.shape[axis]) +
                  " has stride 0; give it memory of its own");
}

void check_read(const char* name, const ConstTensor& t, const Shape& want, const char* meaning, DType dtype,
                const char* of) {
  check_shape(name, t, want, meaning);
  check_rows(name, t);
  check_dtype(name, t, dtype, of);
}

void check_written(const char* name, const Tensor& t, const Shape& want, const char* meaning, DType dtype,
                   const char* of) {
  check_read(name, t, want, meaning, dtype, of);
  check_writable(name, t);
}

DType exact(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

void check_exact(const char* name, const ConstTensor& t, DType q, const char* of) {
  if (t.data && t.dtype != exact(q))
    throw Error(std::string(name) + " is " + text(t.dtype) + " but for " + of + " of " + text(q) + " it must be " +
                text(exact(q)));
}

namespace {

// Whether `apart` elements lie between some element of one view and one of another that begins so far behind it; both
// have the strides `stride`. On each axis from `axis` on the index of the first less that of the second is above
// -second and below first.
bool reachable(const Shape& first, const Shape& second, const Shape& stride, int axis, int64_t apart) {
  if (axis == 3) return -second[3] < apart && apart < first[3];
  if (std::max(first[axis], second[axis]) <= 1 || stride[axis] == 0)
    return reachable(first, second, stride, axis + 1, apart);
  const int64_t steps = apart / stride[axis];  // strides nest, so it is these or one more
  for (int64_t n = steps - 1; n <= steps + 1; ++n)
    if (-second[axis] < n && n < first[axis] && reachable(first, second, stride, axis + 1, apart - n * stride[axis]))
      return true;
  return false;
}

// A tensor that is written must not lie on one that is read or on another that is written. Views of the same strides
// can be told apart element by element (packed q, k and v do not overlap); of others only that they begin at one place.
void check_apart(const char* name, const Tensor& t, const char* other_name, const ConstTensor& other) {
  if (!t.data || !other.data || empty(t.shape) || empty(other.shape)) return;
  bool overlap = t.data == other.data;
  if (t.stride == other.stride && t.dtype == other.dtype) {
    const int64_t apart = (static_cast<const char*>(t.data) - static_cast<const char*>(other.data)) / bytes_of(t.dtype);
    overlap = reachable(other.shape, t.shape, t.stride, 0, apart);
  }
  if (overlap)
    throw Error(std::string(name) + " of shape " + text(t.shape) + " lies on the memory of " + other_name +
                " of shape " + text(other.shape) + "; give it memory of its own");
}

// Of the inputs of a call.
void check_apart(const char* name, const Tensor& t, const Attention& a) {
  for (const auto& [other, view] : {std::pair("q", &a.q), {"k", &a.k}, {"v", &a.v}, {"w", &a.w}, {"bias", &a.bias}})
    check_apart(name, t, other, *view);
}

// One number for each query head, or one for all.
void check_head_values(const char* name, const ConstTensor& t, const Problem& p) {
  if (!t.data) return;
  check_view(name, t);
  if (t.shape != Shape{1, 1, 1, 1} && t.shape != Shape{1, p.Hq, 1, 1})
    throw Error(std::string(name) + " has shape " + text(t.shape) + " but needs [1, " + text(p.Hq) + " or 1, 1, 1]");
  if (t.dtype != DType::f32 || !narrow(p.a.q.dtype)) check_dtype(name, t, p.a.q.dtype);
}

// A pool of pages, of a dtype that goes with q's.
void check_pool(const char* name, const ConstTensor& t, const Attention& a) {
  check_view(name, t, true);
  check_rows(name, t);
  if (t.dtype != a.q.dtype && t.dtype != DType::i8 && !(a.q.dtype == DType::f32 && narrow(t.dtype)))
    throw Error(std::string(name) + " is " + text(t.dtype) + " but q is " + text(a.q.dtype) +
                "; pages hold q's dtype or i8, or, for q of f32, f16 or bf16");
}

// What 1 is worth in the keys or values of a pool.
void check_scale(const char* name, const ConstTensor& t, const ConstTensor& pool) {
  if (pool.dtype != DType::i8) {
    if (t.data) throw Error(std::string(name) + " is given but the pages are " + text(pool.dtype) + "; leave it out");
    return;
  }
  const Shape& n = pool.shape;
  check_shape(name, t, {n[0], n[1], n[2], 1}, "pages of i8 need one for each key, which");
  if (t.dtype != DType::f32) throw Error(std::string(name) + " is " + text(t.dtype) + "; it must be f32");
}

// k and v in pages, and the table that says which; entries are looked at by check_table.
void check_pages(const Attention& a) {
  const Pages& pages = a.pages;
  if (a.q.dtype == DType::f64) throw Error("q is f64 and k and v lie in pages; give f64 keys and values in one piece");
  check_pool("k", a.k, a);
  check_pool("v", a.v, a);
  if (a.k.dtype != a.v.dtype)
    throw Error("k's pages are " + std::string(text(a.k.dtype)) + " and v's " + text(a.v.dtype) +
                "; they must be equal");
  if (a.v.shape[0] != a.k.shape[0] || a.v.shape[1] != a.k.shape[1] || a.v.shape[2] != a.k.shape[2])
    throw Error("v has shape " + text(a.v.shape) + " but k's " + text(a.k.shape) +
                " needs the same pages, heads and keys of a page");
  check_scale("k_scale", pages.k_scale, a.k);
  check_scale("v_scale", pages.v_scale, a.v);
  if (a.score == Score::additive && a.k.dtype == DType::i8)
    throw Error("the pages are i8 and the score is additive, which needs keys of q's dtype; keep them so");
  if (static_cast<int64_t>(pages.keys.size()) != a.q.shape[0])
    throw Error("pages.keys has " + text(static_cast<int64_t>(pages.keys.size())) + " sequences but q has batch " +
                text(a.q.shape[0]) + "; give each its number of keys");
  const int64_t P = a.k.shape[2];
  const int64_t columns = std::clamp<int64_t>(pages.table_columns, 0, INT64_MAX / std::max<int64_t>(1, P));
  for (const int64_t n : pages.keys) {
    if (n < 0) throw Error("a sequence has " + text(n) + " keys; it cannot have fewer than 0");
    if (n > 0 && (P == 0 || columns < n / P + (n % P != 0)))
      throw Error("a sequence has " + text(n) + " keys but its " + text(columns) + " pages hold " + text(columns * P) +
                  "; give the table a column for every " + text(P) + " keys");
    if (n > P && P % kLanes != 0)
      throw Error("a page holds " + text(P) + " keys; it must be a multiple of " + text(kLanes) +
                  " where a sequence has several, such as 16, 64 or 256");
  }
}

Problem check_problem(const Attention& a, bool with_v, bool with_pages = false) {
  const bool paged = a.pages.table;
  if (paged && !with_pages) throw Error("k and v lie in pages, which forward alone takes; give them in one piece");
  check_view("q", a.q);
  check_view("k", a.k, paged);
  check_rows("q", a.q);
  check_rows("k", a.k);
  if (a.q.shape[1] < 1 || a.k.shape[1] < 1)
    throw Error("q has " + text(a.q.shape[1]) + " heads and k has " + text(a.k.shape[1]) + "; both need at least 1");
  Problem p{a, a.q.shape[0], a.q.shape[1], a.k.shape[1], 0, a.q.shape[2], a.k.shape[2], a.q.shape[3], 0, 0};
  if (paged) {
    check_pages(a);
    p.page_keys = std::max<int64_t>(1, a.k.shape[2]);
    p.S = p.B == 0 ? 0 : *std::max_element(a.pages.keys.begin(), a.pages.keys.end());
    for (const int64_t n : a.pages.keys) p.ragged |= n != p.S;
  } else if (a.k.shape[0] != p.B)
    throw Error("k has batch " + text(a.k.shape[0]) + " but q has batch " + text(p.B) + "; they must be equal");
  if (p.Hq % p.Hkv != 0)
    throw Error("k has " + text(p.Hkv) + " heads; q's " + text(p.Hq) + " heads need a divisor of " + text(p.Hq));
  p.group = p.Hq / p.Hkv;
  if (a.k.shape[3] != p.D)
    throw Error("k has head size " + text(a.k.shape[3]) + " but q has head size " + text(p.D) + "; they must be equal");
  if (!paged) check_dtype("k", a.k, a.q.dtype);
  if (paged) {
    p.Dv = a.v.shape[3];
  } else if (with_v) {
    check_view("v", a.v);
    check_rows("v", a.v);
    if (a.v.shape[0] != p.B || a.v.shape[1] != p.Hkv || a.v.shape[2] != p.S)
      throw Error("v has shape " + text(a.v.shape) + " but k's " + text(a.k.shape) +
                  " needs the same batch, heads and length");
    p.Dv = a.v.shape[3];
    check_dtype("v", a.v, a.q.dtype);
  }

  if (a.score == Score::additive) {
    if (!a.w.data) throw Error("additive scores need w, of shape [1, " + text(p.Hq) + " or 1, 1, " + text(p.D) + "]");
    check_view("w", a.w);
    check_rows("w", a.w);
    if (a.w.shape != Shape{1, 1, 1, p.D} && a.w.shape != Shape{1, p.Hq, 1, p.D})
      throw Error("w has shape " + text(a.w.shape) + " but additive scores need [1, " + text(p.Hq) + " or 1, 1, " +
                  text(p.D) + "]");
    check_dtype("w", a.w, a.q.dtype);
  } else if (a.score == Score::dot) {
    if (a.w.data) throw Error("w is given but the score is dot; leave w out or set score to additive");
  } else {
    throw Error("score is number " + text(static_cast<int64_t>(a.score)) + "; it must be dot (0) or additive (1)");
  }

  p.scale = a.scale.value_or(a.score == Score::dot ? 1.0 / std::sqrt(static_cast<double>(p.D)) : 1.0);
  if (!std::isfinite(p.scale)) throw Error("scale is " + std::to_string(p.scale) + "; it must be a finite number");

  if (a.bias.data) {
    check_view("bias", a.bias);
    check_rows("bias", a.bias);
    const Shape full{p.B, p.Hq, p.L, p.S};
    for (int axis = 0; axis < 4; ++axis)
      if (a.bias.shape[axis] != 1 && a.bias.shape[axis] != full[axis])
        throw Error("bias has shape " + text(a.bias.shape) + " but the scores have " + text(full) + "; axis " +
                    text(axis) + " must be 1 or " + text(full[axis]));
    if (a.bias.dtype != DType::f32 || !narrow(a.q.dtype)) check_dtype("bias", a.bias, a.q.dtype);
  }
  check_head_values("alibi", a.alibi, p);
  check_head_values("sinks", a.sinks, p);
  if (a.weigh != Weigh::softmax && a.weigh != Weigh::sigmoid)
    throw Error("weigh is number " + text(static_cast<int64_t>(a.weigh)) + "; it must be softmax (0) or sigmoid (1)");
  if (a.weigh == Weigh::sigmoid && a.sinks.data)
    throw Error("sinks are given but sigmoid weights do not share a sum that a sink could be part of; leave them out");
  if (!(a.dropout >= 0 && a.dropout < 1))
    throw Error("dropout is " + std::to_string(a.dropout) + "; it must be at least 0 and below 1");
  if (!(a.softcap >= 0 && a.softcap <= 1e30))
    throw Error("softcap is " + std::to_string(a.softcap) + "; it must be positive, or 0 for none");
  a.mask.check(p.mask_shape());
  return p;
}

// One number for each row: lse and its like.
void check_read_rows(const char* name, const ConstTensor& t, const Problem& p) {
  check_view(name, t);
  check_exact(name, t, p.a.q.dtype);
  check_read(name, t, {p.B, p.Hq, p.L, 1}, "[B, Hq, L, 1]", t.dtype);
}
void check_written_rows(const char* name, const Tensor& t, const Problem& p) {
  check_view(name, t);
  check_exact(name, t, p.a.q.dtype);
  check_written(name, t, {p.B, p.Hq, p.L, 1}, "[B, Hq, L, 1]", t.dtype);
}

// Sigmoid weights have no log-sum-exp.
void check_no_lse(const Problem& p, const char* name, const void* data) {
  if (p.a.weigh == Weigh::sigmoid && data)
    throw Error(std::string(name) + " is given but sigmoid weights have no log-sum-exp; leave it out");
}

void check_incoming(const Problem& p, const Incoming& in) {
  if (p.a.weigh == Weigh::sigmoid) {
    check_no_lse(p, "d_lse", in.d_lse.data);
  } else {
    check_read("out", in.out, {p.B, p.Hq, p.L, p.Dv}, "[B, Hq, L, Dv]", p.a.q.dtype);
    check_read_rows("lse", in.lse, p);
  }
  check_read("d_out", in.d_out, {p.B, p.Hq, p.L, p.Dv}, "[B, Hq, L, Dv]", p.a.q.dtype);
  if (in.d_lse.data) check_read_rows("d_lse", in.d_lse, p);
}

// What has derivatives beyond the first.
void check_twice(const Attention& a, const char* derivative) {
  if (a.score_mod || a.weigh != Weigh::softmax)
    throw Error(std::string(a.score_mod ? "a score_mod has" : "sigmoid weights have") + " no " + derivative +
                " in Heed; use softmax weights of plain scores, or write the formula with a framework's operators");
  if (a.score == Score::additive)
    throw Error(std::string("additive scores have no ") + derivative +
                " in Heed, dot scores have; write the formula with a framework's own operators where you need it");
}

// A tangent, called `prefix` and the name of its input, which must be there.
void check_tangent(const std::string& prefix, const ConstTensor& t, const std::string& input, const ConstTensor& of,
                   DType dtype) {
  const std::string name = prefix + input;
  if (!t.data) return;
  if (!of.data) throw Error(name + " is given but there is no " + input + "; leave it out");
  check_read(name.c_str(), t, of.shape, (input + "'s shape").c_str(), dtype);
}

void check_tangents(const std::string& prefix, const Attention& a, const Tangents& t) {
  const DType q = a.q.dtype;
  const auto or_f32 = [&](const ConstTensor& x) { return narrow(q) && x.dtype == DType::f32 ? DType::f32 : q; };
  check_tangent(prefix, t.q, "q", a.q, q);
  check_tangent(prefix, t.k, "k", a.k, q);
  check_tangent(prefix, t.v, "v", a.v, q);
  check_tangent(prefix, t.bias, "bias", a.bias, or_f32(t.bias));
  check_tangent(prefix, t.alibi, "alibi", a.alibi, or_f32(t.alibi));
  check_tangent(prefix, t.sinks, "sinks", a.sinks, or_f32(t.sinks));
}

// A gradient that is wanted, of an input that must be there.
void check_gradient(const char* d_name, const Tensor& d, const char* name, const ConstTensor& of, DType q) {
  if (!d.data) return;
  if (!of.data) throw Error(std::string(d_name) + " is asked for but there is no " + name + "; leave it out");
  check_view(d_name, d);
  check_exact(d_name, d, q);
  check_written(d_name, d, of.shape, (std::string(name) + "'s shape").c_str(), d.dtype);
}

// What Gradients and SecondGradients have in common.
template <class G>
void check_gradients(const Attention& a, const G& g) {
  const DType t = a.q.dtype;
  if (g.d_q.data) check_written("d_q", g.d_q, a.q.shape, "q's shape", t);
  if (g.d_k.data) check_written("d_k", g.d_k, a.k.shape, "k's shape", t);
  if (g.d_v.data) check_written("d_v", g.d_v, a.v.shape, "v's shape", t);
  check_gradient("d_bias", g.d_bias, "bias", a.bias, t);
  check_gradient("d_alibi", g.d_alibi, "alibi", a.alibi, t);
  check_gradient("d_sinks", g.d_sinks, "sinks", a.sinks, t);
  for (const auto& [name, view] : {std::pair("d_q", &g.d_q), {"d_k", &g.d_k}, {"d_v", &g.d_v}})
    check_apart(name, *view, a);
  check_apart("d_q", g.d_q, "d_k", g.d_k);
  check_apart("d_q", g.d_q, "d_v", g.d_v);
  check_apart("d_k", g.d_k, "d_v", g.d_v);
}

}  // namespace

Problem check_forward(const Attention& a, const Output& result) {
  const Problem p = check_problem(a, true, true);
  check_written("out", result.out, {p.B, p.Hq, p.L, p.Dv}, "[B, Hq, L, Dv]", a.q.dtype);
  check_apart("out", result.out, a);
  check_no_lse(p, "lse", result.lse.data);
  if (result.lse.data) check_written_rows("lse", result.lse, p);
  return p;
}

void check_table(const Problem& p, const Tiling& tiling) {
  if (p.page_keys == 0) return;
  const Pages& pages = p.a.pages;
  for (int64_t x = 0; x < p.B * p.Hkv; ++x) {
    const int64_t b = x / p.Hkv;
    const Span seen = tiling.keys(b, x % p.Hkv);
    for (int64_t j = seen.begin; j < seen.end; j = (j / p.page_keys + 1) * p.page_keys) {
      const int64_t page = pages.table[b * pages.table_stride + j / p.page_keys];
      if (page < 0 || page >= p.a.k.shape[0])
        throw Error("sequence " + text(b) + " sees its key " + text(j) + ", which is in page " + text(page) +
                    ", but there are " + text(p.a.k.shape[0]) + "; mend the table, or mask what is not there");
    }
  }
}

Problem check_backward(const Attention& a, const Incoming& in, const Gradients& g) {
  const Problem p = check_problem(a, true);
  if (a.score_mod && !a.score_mod->has_slope())
    throw Error("score_mod has no derivative, which the backward needs; give score_mod() a second function, df/ds");
  check_incoming(p, in);
  check_gradients(a, g);
  check_gradient("d_w", g.d_w, "w", a.w, a.q.dtype);
  return p;
}

Problem check_weights(const Attention& a, const ConstTensor& lse) {
  const Problem p = check_problem(a, a.v.data != nullptr);
  if (a.weigh == Weigh::sigmoid)
    throw Error("sigmoid weights have no log-sum-exp, which probes start from; take score() and the sigmoid of each");
  check_read_rows("lse", lse, p);
  return p;
}

Problem check_jvp(const Attention& a, const ConstTensor& lse, const Tangents& tangents, const Output& result) {
  check_twice(a, "jvp");
  const Problem p = check_problem(a, true);
  check_read_rows("lse", lse, p);
  check_tangents("tangents.", a, tangents);
  if (result.out.data)
    check_written("the tangent of out", result.out, {p.B, p.Hq, p.L, p.Dv}, "[B, Hq, L, Dv]", a.q.dtype);
  if (result.lse.data) check_written_rows("the tangent of lse", result.lse, p);
  return p;
}

Problem check_double_backward(const Attention& a, const Incoming& in, const Tangents& dd, const SecondGradients& g) {
  check_twice(a, "second derivative");
  const Problem p = check_problem(a, true);
  check_incoming(p, in);
  check_tangents("dd.", a, dd);
  check_gradients(a, g);
  if (g.d_bias.data && g.d_bias.shape[2] > 1 && g.d_bias.stride[2] == -1)
    throw Error("d_bias has stride -1 from query to query; a second derivative needs it whole, [B or 1, H or 1, L, S]");
  if (g.d_d_out.data) check_written("d_d_out", g.d_d_out, {p.B, p.Hq, p.L, p.Dv}, "[B, Hq, L, Dv]", a.q.dtype);
  if (g.d_d_lse.data) check_written_rows("d_d_lse", g.d_d_lse, p);
  return p;
}

void check_appended(const char* name, const ConstTensor& t, const Shape& want) {
  check_view(name, t);
  if (t.shape != want)
    throw Error(std::string(name) + " has shape " + text(t.shape) + " but the cache takes " + text(want));
  check_rows(name, t);
  if (t.dtype == DType::f64) throw Error(std::string(name) + " is f64; a cache takes f32, f16 and bf16");
}

void check_merge(const std::vector<Part>& parts, const Output& result) {
  const Tensor& out = result.out;
  const DType wide = exact(out.dtype);
  const Shape rows{out.shape[0], out.shape[1], out.shape[2], 1};
  const auto check = [&](const std::string& name, const ConstTensor& t, const Shape& want, bool right) {
    check_shape(name.c_str(), t, want, "for the result's out it");
    check_rows(name.c_str(), t);
    if (!right)
      throw Error(name + " is " + text(t.dtype) + " but the result's out is " + text(out.dtype) +
                  "; an out has that dtype, or f32 beside f16 and bf16, an lse is f32, or f64 beside f64");
  };
  check("the result's out", out, out.shape, true);
  check_writable("the result's out", out);
  for (size_t x = 0; x < parts.size(); ++x) {
    const std::string name = "part " + text(static_cast<int64_t>(x)) + "'s ";
    check(name + "out", parts[x].out, out.shape, parts[x].out.dtype == out.dtype || parts[x].out.dtype == wide);
    check(name + "lse", parts[x].lse, rows, parts[x].lse.dtype == wide);
  }
  if (!result.lse.data) return;
  check("the result's lse", result.lse, rows, result.lse.dtype == wide);
  check_writable("the result's lse", result.lse);
}

Problem check_scores(const Attention& a, const Tensor& scores) {
  const Problem p = check_problem(a, false);
  check_written("scores", scores, {p.B, p.Hq, p.L, p.S}, "[B, Hq, L, S]", a.q.dtype);
  return p;
}

void check_weigh(const ConstTensor& scores, const Tensor& weights) {
  check_view("scores", scores);
  check_rows("scores", scores);
  check_written("weights", weights, scores.shape, "scores' shape", scores.dtype);
}

int64_t check_gather(const ConstTensor& weights, const ConstTensor& v, const Tensor& out) {
  check_view("weights", weights);
  check_rows("weights", weights);
  check_view("v", v);
  check_rows("v", v);
  const int64_t heads = weights.shape[1];
  if (v.shape[0] != weights.shape[0] || v.shape[2] != weights.shape[3] || v.shape[1] == 0 || heads % v.shape[1] != 0)
    throw Error("v has shape " + text(v.shape) + " but weights " + text(weights.shape) + " need batch " +
                text(weights.shape[0]) + ", length " + text(weights.shape[3]) + " and heads that divide " +
                text(heads));
  check_written("out", out, {weights.shape[0], heads, weights.shape[2], v.shape[3]}, "[B, Hq, L, Dv]", weights.dtype);
  return heads / v.shape[1];
}

}  // namespace heed
