/* The attention operator for C (C99): the same problem, options and results as <heed/attention.h>.
 *
 *   heed_attention a;
 *   heed_attention_init(&a);
 *   a.q = heed_dense_f32(q, B, H, L, D);
 *   a.k = heed_dense_f32(k, B, H, S, D);
 *   a.v = heed_dense_f32(v, B, H, S, Dv);
 *   a.mask = heed_mask_causal();
 *   if (heed_forward(&a, heed_dense_f32(out, B, H, L, Dv), heed_none()) != HEED_OK) puts(heed_last_error());
 *   heed_mask_free(a.mask);
 */
#ifndef HEED_HEED_H_
#define HEED_HEED_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum heed_status {
  HEED_OK = 0,
  HEED_INVALID = 1,       /* an argument does not fit; heed_last_error() says which and why; nothing was written */
  HEED_OUT_OF_MEMORY = 2, /* scratch memory could not be had; results are undefined */
  HEED_INTERNAL = 3       /* a defect of Heed */
} heed_status;

/* One sentence about the last call of this thread that did not return HEED_OK (for calls that return a pointer: that
 * returned NULL). Valid until this thread's next Heed call. */
const char* heed_last_error(void);

typedef enum heed_dtype { HEED_F32 = 0, HEED_F64 = 1, HEED_F16 = 2, HEED_BF16 = 3, HEED_I8 = 4 } heed_dtype;
typedef enum heed_score { HEED_DOT = 0, HEED_ADDITIVE = 1 } heed_score;
typedef enum heed_weigh { HEED_SOFTMAX = 0, HEED_SIGMOID = 1 } heed_weigh; /* how scores become weights */

/* A strided view [batch, head, length, dim], strides in elements, the last dimension contiguous. data == NULL: not
 * given, or not wanted. Inputs are never written through it. */
typedef struct heed_tensor {
  void* data;
  heed_dtype dtype;
  int64_t shape[4];
  int64_t stride[4];
} heed_tensor;

heed_tensor heed_none(void);
heed_tensor heed_dense_f32(const float* data, int64_t n0, int64_t n1, int64_t n2, int64_t n3);
heed_tensor heed_dense_f64(const double* data, int64_t n0, int64_t n1, int64_t n2, int64_t n3);
heed_tensor heed_dense(const void* data, heed_dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3);

/* A mask is a value: make it, combine it, hand it to any number of calls, free it. NULL excludes nothing. Functions
 * that make one return NULL on bad arguments or lack of memory. See <heed/mask.h> for what each lets through. */
typedef struct heed_mask heed_mask;
heed_mask* heed_mask_causal(void); /* bottom-right: query i sees key j iff j <= i + S - L */
heed_mask* heed_mask_causal_offset(int64_t offset);
heed_mask* heed_mask_window(int64_t left, int64_t right); /* -1: unbounded side */
heed_mask* heed_mask_window_offset(int64_t left, int64_t right, int64_t offset);
heed_mask* heed_mask_lengths(const int64_t* keys, size_t batch);
/* Documents of these lengths, one after the other, the same in every batch. */
heed_mask* heed_mask_documents(const int64_t* lengths, size_t documents);
heed_mask* heed_mask_prefix_lm(const int64_t* prefix, size_t batch); /* one prefix for each batch, or one for all */
/* Sequences packed without padding, offsets of n + 1 entries each; sides as of the window, right = 0 is causal. */
heed_mask* heed_mask_ragged(const int64_t* queries, const int64_t* keys, size_t n, int64_t left, int64_t right);
heed_mask* heed_mask_dilated(int64_t reach, int64_t step);
heed_mask* heed_mask_strided(int64_t local, int64_t stride);
heed_mask* heed_mask_fixed(int64_t block, int64_t summary);
heed_mask* heed_mask_global_tokens(const int64_t* positions, size_t n);
heed_mask* heed_mask_neighbourhood(const int64_t* size, const int64_t* kernel, size_t axes); /* 1 to 3 axes */
/* One table for all heads: starts has rows + 1 entries, key_blocks starts[rows], ascending in each row. */
heed_mask* heed_mask_block_sparse(int64_t query_block, int64_t key_block, const int64_t* starts, size_t rows,
                                  const int64_t* key_blocks);
/* Bytes, nonzero: visible; shape [B or 1, Hq or 1, L or 1, S or 1], strides in bytes. Copied. */
heed_mask* heed_mask_boolean(const void* visible, const int64_t shape[4], const int64_t stride[4]);
/* Any function of batch, query head, query and key, nonzero: visible. Called from several threads. by_batch, by_head:
 * whether it looks at them. `self` must live as long as the mask and all that is made of it. */
heed_mask* heed_mask_where(int (*sees)(void* self, int64_t batch, int64_t head, int64_t query, int64_t key), void* self,
                           int by_batch, int by_head);
/* A new mask; a and b stay yours. */
heed_mask* heed_mask_and(const heed_mask* a, const heed_mask* b);
heed_mask* heed_mask_or(const heed_mask* a, const heed_mask* b);
heed_mask* heed_mask_not(const heed_mask* a);
/* Whether query `query` sees key `key` in a problem of this size: 1 or 0; -1 if the mask does not fit it. */
int heed_mask_sees(const heed_mask* mask, int64_t batches, int64_t heads, int64_t queries, int64_t keys, int64_t batch,
                   int64_t head, int64_t query, int64_t key);
void heed_mask_free(heed_mask* mask); /* NULL is fine */

/* Runs work in parallel with threads of yours: must call task(context, i) once for each i in [0, tasks) and return when
 * all are done, and must accept calls from several threads at once. run == NULL: Heed's own threads. */
typedef struct heed_executor {
  void* self;
  int concurrency;
  void (*run)(void* self, int64_t tasks, void (*task)(void* context, int64_t index), void* context);
} heed_executor;

/* What calls work out before they compute, and their scratch memory: keep one and hand it to calls of the same shape.
 * One call at a time. NULL for want of memory. See heed::Plan. */
typedef struct heed_plan heed_plan;
heed_plan* heed_plan_new(void);
void heed_plan_free(heed_plan* plan); /* NULL is fine */

/* Keys and values in pages, for heed_forward alone: with a table, k and v are pools [pages, Hkv, P, D]. See heed::Pages
 * for what each field is. */
typedef struct heed_pages {
  const int32_t* table; /* NULL: k and v lie in one piece */
  int64_t table_stride, table_columns;
  const int64_t* keys;          /* [B] */
  heed_tensor k_scale, v_scale; /* HEED_I8 alone */
} heed_pages;

/* A step of yours between score and mask, see heed::ScoreMod: the scores s of a query with keys [key, key + count)
 * become f(s), in place, and slope, unless it is NULL, df/ds. Called from several threads. f64 is for f64 tensors and
 * may be NULL without them. run_f32 == NULL: none. */
typedef struct heed_score_row {
  int64_t batch, head, query, key, count;
} heed_score_row;
typedef struct heed_score_mod {
  void* self;
  void (*run_f32)(void* self, const heed_score_row* row, float* s, float* slope);
  void (*run_f64)(void* self, const heed_score_row* row, double* s, double* slope);
} heed_score_mod;

/* A bias of relative positions as a view of by_distance [H, L + S - 1]; see heed::relative_bias. Also as d_bias. */
heed_tensor heed_relative_bias(float* by_distance, int64_t H, int64_t L, int64_t S);
/* T5's bucket of a distance j - i; -1 for numbers that do not fit (heed::t5_bucket says which). */
int64_t heed_t5_bucket(int64_t distance, int both_directions, int64_t buckets, int64_t max_distance);

/* One attention problem; heed_attention_init gives every field its default. Shapes as in <heed/attention.h>. */
typedef struct heed_attention {
  size_t size; /* sizeof(heed_attention), set by init: lets a later version tell what the caller was compiled with */
  heed_tensor q, k, v;
  heed_score score;
  int has_scale; /* 0: the default, 1/sqrt(D) for dot and 1 for additive */
  double scale;
  heed_tensor w;
  heed_tensor bias;
  const heed_mask* mask;
  heed_executor executor;
  double softcap;  /* 0: off */
  heed_plan* plan; /* NULL: one for this call alone */
  heed_tensor alibi, sinks;
  double dropout; /* 0: off */
  uint64_t seed;
  heed_pages pages;
  heed_weigh weigh;
  heed_score_mod score_mod;
} heed_attention;

/* Inline, so that it clears what its caller was compiled with, which may be less than the library knows. A binding
 * from another language clears the struct itself and sets size. */
static inline void heed_attention_init(heed_attention* a) {
  if (!a) return;
  memset(a, 0, sizeof(heed_attention));
  a->size = sizeof(heed_attention);
}

/* out [B, Hq, L, Dv]; lse [B, Hq, L, 1] or heed_none(). */
heed_status heed_forward(const heed_attention* a, heed_tensor out, heed_tensor lse);

typedef struct heed_incoming {
  heed_tensor out, lse, d_out, d_lse; /* d_lse may be heed_none() */
} heed_incoming;

typedef struct heed_gradients {
  heed_tensor d_q, d_k, d_v, d_w, d_bias, d_alibi, d_sinks; /* any may be heed_none(), or zeroed */
} heed_gradients;

heed_status heed_backward(const heed_attention* a, const heed_incoming* in, const heed_gradients* gradients);

/* A strided view of numbers of keys; data == NULL: not wanted. */
typedef struct heed_keys {
  int64_t* data;
  int64_t shape[4];
  int64_t stride[4];
} heed_keys;

heed_keys heed_dense_keys(int64_t* data, int64_t n0, int64_t n1, int64_t n2, int64_t n3);

typedef struct heed_weight_row {
  int64_t batch, head, query;
} heed_weight_row;

/* Where the attention went; <heed/probe.h> says what each is. Zeroed: nothing is wanted. */
typedef struct heed_probes {
  heed_keys top_keys;          /* [B, Hq, L, k] */
  heed_tensor top_weights;     /* [B, Hq, L, k] */
  heed_keys largest_key;       /* [B, Hq, L, 1] */
  heed_tensor largest;         /* [B, Hq, L, 1] */
  heed_tensor entropy;         /* [B, Hq, L, 1] */
  heed_tensor mass;            /* [B, Hq, 1, S] */
  heed_tensor mass_factor;     /* [B, Hq, L, 1] or heed_none(): read */
  int has_mass_queries;        /* 0: all of them */
  int64_t mass_queries[2];     /* from, to */
  const heed_weight_row* rows; /* n_rows rows of the weights, dense: */
  size_t n_rows;
  heed_tensor weights; /* [1, 1, n_rows, S] */
} heed_probes;

/* lse: from heed_forward; a->v may be heed_none(). */
heed_status heed_probe(const heed_attention* a, heed_tensor lse, const heed_probes* wanted);

/* The three steps on their own, dense. */
heed_status heed_score_step(const heed_attention* a, heed_tensor scores);
heed_status heed_weigh_step(heed_tensor scores, heed_tensor weights);
heed_status heed_gather_step(heed_tensor weights, heed_tensor v, heed_tensor out);

int heed_threads(void);
heed_status heed_set_threads(int n);
const char* heed_target(void); /* NULL if HEED_TARGET names none; valid until this thread's next call of it */
heed_status heed_set_target(const char* name);
const char* heed_version(void);

#ifdef __cplusplus
}
#endif
#endif /* HEED_HEED_H_ */
