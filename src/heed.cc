// The C API: views and options translated, exceptions turned into status codes.
#include "heed/heed.h"

#include <algorithm>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "heed/attention.h"
#include "heed/probe.h"

struct heed_mask {
  heed::Mask mask;
};

namespace {

thread_local std::string last_error;

template <class F>
heed_status guarded(F&& f) {
  try {
    f();
    return HEED_OK;
  } catch (const heed::Error& e) {
    last_error = e.what();
    return HEED_INVALID;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory for scratch space; use shorter sequences or fewer heads at once";
    return HEED_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    last_error = std::string("internal error: ") + e.what();
    return HEED_INTERNAL;
  }
}

template <class F>
heed_mask* made(F&& f) {
  heed_mask* mask = nullptr;
  guarded([&] { mask = new heed_mask{f()}; });
  return mask;
}

// A stride along an axis of one, or in a view without elements, says nothing and may be any number: addresses are
// worked out with all of them.
template <class From, class To>
void copy_shape(const From& from, To& to) {
  const bool empty = std::count(from.shape, from.shape + 4, 0) > 0;
  for (int axis = 0; axis < 4; ++axis) {
    to.shape[axis] = from.shape[axis];
    to.stride[axis] = empty || from.shape[axis] == 1 ? 0 : from.stride[axis];
  }
}

heed::Tensor view(const heed_tensor& t) {
  heed::Tensor v;
  v.data = t.data;
  v.dtype = static_cast<heed::DType>(t.dtype);
  copy_shape(t, v);
  return v;
}

heed::KeyTensor view(const heed_keys& t) {
  heed::KeyTensor v;
  v.data = t.data;
  copy_shape(t, v);
  return v;
}

heed_tensor dense(void* data, heed_dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  return {data, dtype, {n0, n1, n2, n3}, {n1 * n2 * n3, n2 * n3, n3, 1}};
}

}  // namespace

struct heed_plan {
  heed::Plan plan;
};

namespace {

class Lent final : public heed::Executor {
 public:
  explicit Lent(const heed_executor& e) : e_(e) {}
  int concurrency() const override { return e_.concurrency < 1 ? 1 : e_.concurrency; }
  void run(int64_t tasks, void (*task)(void*, int64_t), void* context) override {
    e_.run(e_.self, tasks, task, context);
  }

 private:
  heed_executor e_;
};

class LentMod final : public heed::ScoreMod {
 public:
  explicit LentMod(const heed_score_mod& mod) : mod_(mod) {}
  void apply(const heed::ScoreRow& row, float* s, float* slope) const override { run(mod_.run_f32, row, s, slope); }
  // The steps score in double whatever the tensors are: a function for doubles may still not be there.
  void apply(const heed::ScoreRow& row, double* s, double* slope) const override {
    if (mod_.run_f64) return run(mod_.run_f64, row, s, slope);
    std::vector<float> narrow(s, s + row.count), slopes(slope ? row.count : 0);
    run(mod_.run_f32, row, narrow.data(), slope ? slopes.data() : nullptr);
    std::copy(narrow.begin(), narrow.end(), s);
    std::copy(slopes.begin(), slopes.end(), slope);
  }

 private:
  template <class F, class T>
  void run(F* f, const heed::ScoreRow& row, T* s, T* slope) const {
    const heed_score_row c{row.batch, row.head, row.query, row.key, row.count};
    f(mod_.self, &c, s, slope);
  }

  heed_score_mod mod_;
};

// Calls f with the C++ problem; the executor lives as long as the call.
template <class F>
heed_status with_problem(const heed_attention* c, F&& f) {
  return guarded([&] {
    if (!c) throw heed::Error("the problem is NULL; pass a heed_attention filled by heed_attention_init");
    if (c->size != sizeof(heed_attention))
      throw heed::Error("heed_attention.size is " + std::to_string(c->size) + " but this library's is " +
                        std::to_string(sizeof(heed_attention)) +
                        "; call heed_attention_init first, and compile with this library's heed.h");
    heed::Attention a;
    a.q = view(c->q);
    a.k = view(c->k);
    a.v = view(c->v);
    a.score = static_cast<heed::Score>(c->score);
    if (c->has_scale) a.scale = c->scale;
    a.w = view(c->w);
    a.bias = view(c->bias);
    if (c->mask) a.mask = c->mask->mask;
    a.softcap = c->softcap;
    a.alibi = view(c->alibi);
    a.sinks = view(c->sinks);
    a.dropout = c->dropout;
    a.seed = c->seed;
    if (const heed_pages& from = c->pages; from.table)
      a.pages = {from.table, from.table_stride, from.table_columns, {}, view(from.k_scale), view(from.v_scale)};
    if (c->plan) a.plan = &c->plan->plan;
    std::optional<Lent> lent;
    if (c->executor.run) a.executor = &lent.emplace(c->executor);
    a.weigh = static_cast<heed::Weigh>(c->weigh);
    std::optional<LentMod> mod;
    if (c->score_mod.run_f32) a.score_mod = &mod.emplace(c->score_mod);
    if (a.score_mod && !c->score_mod.run_f64 && a.q.dtype == heed::DType::f64)
      throw heed::Error("score_mod.run_f64 is NULL but q is f64; give the function for doubles, too");
    f(a);
  });
}

}  // namespace

extern "C" {

const char* heed_last_error(void) { return last_error.c_str(); }

heed_tensor heed_none(void) { return dense(nullptr, HEED_F32, 0, 0, 0, 0); }
heed_tensor heed_dense_f32(const float* data, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  return dense(const_cast<float*>(data), HEED_F32, n0, n1, n2, n3);
}
heed_tensor heed_dense_f64(const double* data, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  return dense(const_cast<double*>(data), HEED_F64, n0, n1, n2, n3);
}

heed_tensor heed_dense(const void* data, heed_dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  return dense(const_cast<void*>(data), dtype, n0, n1, n2, n3);
}

heed_tensor heed_relative_bias(float* by_distance, int64_t H, int64_t L, int64_t S) {
  const heed::Tensor t = heed::relative_bias(by_distance, H, L, S);
  return {t.data, HEED_F32, {1, H, L, S}, {t.stride[0], t.stride[1], t.stride[2], t.stride[3]}};
}
int64_t heed_t5_bucket(int64_t distance, int both_directions, int64_t buckets, int64_t max_distance) {
  int64_t bucket = -1;
  guarded([&] { bucket = heed::t5_bucket(distance, both_directions != 0, buckets, max_distance); });
  return bucket;
}

heed_mask* heed_mask_causal(void) {
  return made([] { return heed::causal(); });
}
heed_mask* heed_mask_causal_offset(int64_t offset) {
  return made([&] { return heed::causal(offset); });
}
heed_mask* heed_mask_window(int64_t left, int64_t right) {
  return made([&] { return heed::window(left, right); });
}
heed_mask* heed_mask_window_offset(int64_t left, int64_t right, int64_t offset) {
  return made([&] { return heed::window(left, right, offset); });
}
heed_mask* heed_mask_lengths(const int64_t* keys, size_t batch) {
  return made([&] {
    if (!keys) throw heed::Error("the lengths are NULL; give one length for each batch");
    return heed::lengths(std::vector<int64_t>(keys, keys + batch));
  });
}
heed_mask* heed_mask_documents(const int64_t* lengths, size_t documents) {
  return made([&] {
    if (!lengths) throw heed::Error("the lengths are NULL; give one length for each document");
    return heed::documents({std::vector<int64_t>(lengths, lengths + documents)});
  });
}
heed_mask* heed_mask_prefix_lm(const int64_t* prefix, size_t batch) {
  return made([&] {
    if (!prefix) throw heed::Error("the prefixes are NULL; give one for each batch, or one for all");
    return heed::prefix_lm(std::vector<int64_t>(prefix, prefix + batch));
  });
}
heed_mask* heed_mask_ragged(const int64_t* queries, const int64_t* keys, size_t n, int64_t left, int64_t right) {
  return made([&] {
    if (!queries || !keys) throw heed::Error("the offsets are NULL; give n + 1 of queries and of keys");
    return heed::ragged({queries, queries + n + 1}, {keys, keys + n + 1}, left, right);
  });
}
heed_mask* heed_mask_dilated(int64_t reach, int64_t step) {
  return made([&] { return heed::dilated(reach, step); });
}
heed_mask* heed_mask_strided(int64_t local, int64_t stride) {
  return made([&] { return heed::strided(local, stride); });
}
heed_mask* heed_mask_fixed(int64_t block, int64_t summary) {
  return made([&] { return heed::fixed(block, summary); });
}
heed_mask* heed_mask_global_tokens(const int64_t* positions, size_t n) {
  return made([&] {
    if (!positions && n) throw heed::Error("the positions are NULL; give n of them");
    return heed::global_tokens(std::vector<int64_t>(positions, positions + n));
  });
}
heed_mask* heed_mask_neighbourhood(const int64_t* size, const int64_t* kernel, size_t axes) {
  return made([&] {
    if (!size || !kernel) throw heed::Error("the sizes or kernels are NULL; give one of each for every axis");
    return heed::neighbourhood({size, size + axes}, {kernel, kernel + axes});
  });
}
heed_mask* heed_mask_block_sparse(int64_t query_block, int64_t key_block, const int64_t* starts, size_t rows,
                                  const int64_t* key_blocks) {
  return made([&] {
    if (!starts) throw heed::Error("the starts are NULL; give one more than rows of blocks");
    const int64_t n = starts[rows];
    if (n < 0 || (n > 0 && !key_blocks))
      throw heed::Error("the starts end with " + std::to_string(n) + " but there are no key blocks; give as many");
    return heed::block_sparse(
        heed::BlockTable{query_block, key_block, {starts, starts + rows + 1}, {key_blocks, key_blocks + n}});
  });
}
heed_mask* heed_mask_boolean(const void* visible, const int64_t shape[4], const int64_t stride[4]) {
  return made([&] {
    if (!shape || !stride) throw heed::Error("the shape or the strides are NULL; give four of each");
    return heed::boolean(static_cast<const bool*>(visible), {shape[0], shape[1], shape[2], shape[3]},
                         {stride[0], stride[1], stride[2], stride[3]});
  });
}
heed_mask* heed_mask_where(int (*sees)(void*, int64_t, int64_t, int64_t, int64_t), void* self, int by_batch,
                           int by_head) {
  return made([&] {
    if (!sees) throw heed::Error("the function is NULL; give one of batch, head, query and key");
    return heed::where([=](int64_t b, int64_t h, int64_t i, int64_t j) { return sees(self, b, h, i, j) != 0; },
                       {by_batch != 0, by_head != 0});
  });
}
heed_mask* heed_mask_and(const heed_mask* a, const heed_mask* b) {
  return made([&] { return (a ? a->mask : heed::Mask()) & (b ? b->mask : heed::Mask()); });
}
heed_mask* heed_mask_or(const heed_mask* a, const heed_mask* b) {
  return made([&] { return (a ? a->mask : heed::Mask()) | (b ? b->mask : heed::Mask()); });
}
heed_mask* heed_mask_not(const heed_mask* a) {
  return made([&] { return !(a ? a->mask : heed::Mask()); });
}
int heed_mask_sees(const heed_mask* mask, int64_t batches, int64_t heads, int64_t queries, int64_t keys, int64_t batch,
                   int64_t head, int64_t query, int64_t key) {
  int sees = -1;
  guarded([&] {
    const heed::MaskShape shape{batches, heads, queries, keys};
    const auto inside = [](int64_t x, int64_t n) { return 0 <= x && x < n; };
    if (!inside(batch, batches) || !inside(head, heads) || !inside(query, queries) || !inside(key, keys))
      throw heed::Error("the pair lies outside the problem; batch, head, query and key count from 0");
    if (mask) mask->mask.check(shape);
    sees = !mask || mask->mask.sees(shape, batch, head, query, key);
  });
  return sees;
}
void heed_mask_free(heed_mask* mask) { delete mask; }

heed_plan* heed_plan_new(void) {
  heed_plan* plan = nullptr;
  guarded([&] { plan = new heed_plan; });
  return plan;
}
void heed_plan_free(heed_plan* plan) { delete plan; }

heed_status heed_forward(const heed_attention* a, heed_tensor out, heed_tensor lse) {
  return with_problem(a, [&](heed::Attention& problem) {
    if (problem.pages.table && a->pages.keys) {
      // As many as the batch: read after two tensors agree on what that is.
      const int64_t batch = problem.q.shape[0];
      if (batch != out.shape[0])
        throw heed::Error("out has batch " + std::to_string(out.shape[0]) + " but q has batch " +
                          std::to_string(batch) + "; they must be equal");
      if (batch > 0) problem.pages.keys.assign(a->pages.keys, a->pages.keys + batch);
    }
    heed::forward(problem, {view(out), view(lse)});
  });
}

heed_status heed_backward(const heed_attention* a, const heed_incoming* in, const heed_gradients* g) {
  return with_problem(a, [&](const heed::Attention& problem) {
    if (!in || !g) throw heed::Error("the incoming or the wanted gradients are NULL; pass both structs");
    heed::backward(
        problem, {view(in->out), view(in->lse), view(in->d_out), view(in->d_lse)},
        {view(g->d_q), view(g->d_k), view(g->d_v), view(g->d_w), view(g->d_bias), view(g->d_alibi), view(g->d_sinks)});
  });
}

heed_keys heed_dense_keys(int64_t* data, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  return {data, {n0, n1, n2, n3}, {n1 * n2 * n3, n2 * n3, n3, 1}};
}

heed_status heed_probe(const heed_attention* a, heed_tensor lse, const heed_probes* w) {
  return with_problem(a, [&](const heed::Attention& problem) {
    if (!w) throw heed::Error("the probes are NULL; pass a heed_probes");
    if (!w->rows && w->n_rows) throw heed::Error("the rows are NULL; give n_rows of them");
    heed::Probes wanted{view(w->top_keys), view(w->top_weights), view(w->largest_key), view(w->largest),
                        view(w->entropy),  view(w->mass),        view(w->mass_factor)};
    if (w->has_mass_queries) wanted.mass_queries = heed::Span{w->mass_queries[0], w->mass_queries[1]};
    for (size_t n = 0; n < w->n_rows; ++n) wanted.rows.push_back({w->rows[n].batch, w->rows[n].head, w->rows[n].query});
    wanted.weights = view(w->weights);
    heed::probe(problem, view(lse), wanted);
  });
}

heed_status heed_score_step(const heed_attention* a, heed_tensor scores) {
  return with_problem(a, [&](const heed::Attention& problem) { heed::score(problem, view(scores)); });
}
heed_status heed_weigh_step(heed_tensor scores, heed_tensor weights) {
  return guarded([&] { heed::weigh(view(scores), view(weights)); });
}
heed_status heed_gather_step(heed_tensor weights, heed_tensor v, heed_tensor out) {
  return guarded([&] { heed::gather(view(weights), view(v), view(out)); });
}

int heed_threads(void) { return heed::threads(); }
heed_status heed_set_threads(int n) {
  return guarded([&] { heed::set_threads(n); });
}
const char* heed_target(void) {
  thread_local std::string name;
  return guarded([] { name = heed::target(); }) == HEED_OK ? name.c_str() : nullptr;
}
heed_status heed_set_target(const char* name) {
  return guarded([&] { heed::set_target(name ? name : ""); });
}
const char* heed_version(void) {
  static const std::string version = heed::version();
  return version.c_str();
}

}  // extern "C"
