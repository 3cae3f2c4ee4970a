/* The C API from C99: a forward and a backward with known answers, masks that compose, a lent executor, errors in
 * words. */
#include <heed/heed.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed = 0, failed = 0;
#define CHECK(condition)                                              \
  do {                                                                \
    if (condition) {                                                  \
      ++passed;                                                       \
    } else {                                                          \
      ++failed;                                                       \
      printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
    }                                                                 \
  } while (0)

static void run_here(void* self, int64_t tasks, void (*task)(void*, int64_t), void* context) {
  int64_t i;
  ++*(int*)self;
  for (i = tasks; i-- > 0;) task(context, i);
}

static int odd(void* self, int64_t b, int64_t h, int64_t i, int64_t j) {
  (void)b, (void)h;
  return (i + j + *(const int*)self) % 2;
}

/* Each kind of mask sees a pair it should and not another; a NULL or a wrong number is an error. */
static void check_masks(void) {
  static const int64_t offsets[] = {0, 2, 4}, backward[] = {0, 2, 1}, size[] = {2, 2}, kernel[] = {1, 1};
  static const int64_t starts[] = {0, 1, 2}, blocks[] = {1, 0}, shape[] = {1, 1, 1, 4}, stride[] = {0, 0, 0, 1};
  static const unsigned char bytes[] = {1, 0, 2, 0};
  int zero = 0;
  heed_mask* made[13];
  /* 4 queries, 4 keys: sees (3, yes), not (3, no) */
  static const int yes[] = {2, 1, 0, 1, 0, 3, 1, 0, 0, 3, 1, 0, 3}, no[] = {0, 2, 1, 0, 3, 0, 2, 1, 1, 0, 0, 3, 0};
  int n = 0, x;
  made[n++] = heed_mask_ragged(offsets, offsets, 2, -1, 0);
  made[n++] = heed_mask_dilated(2, 2);
  made[n++] = heed_mask_strided(0, 3);
  made[n++] = heed_mask_fixed(2, 1);
  made[n++] = heed_mask_global_tokens(offsets, 1);
  made[n++] = heed_mask_neighbourhood(size, kernel, 2);
  made[n++] = heed_mask_block_sparse(2, 2, starts, 2, blocks);
  made[n++] = heed_mask_boolean(bytes, shape, stride);
  made[n++] = heed_mask_where(odd, &zero, 0, 0);
  made[n++] = heed_mask_and(made[0], made[3]);
  made[n++] = heed_mask_or(made[1], made[2]);
  made[n++] = heed_mask_not(made[5]);
  made[n++] = heed_mask_not(made[11]);
  for (x = 0; x < n; ++x) {
    const int skip = x == 6 || x == 10; /* told below */
    CHECK(made[x] != NULL);
    if (skip) continue;
    CHECK(heed_mask_sees(made[x], 1, 1, 4, 4, 0, 0, 3, yes[x]) == 1);
    CHECK(heed_mask_sees(made[x], 1, 1, 4, 4, 0, 0, 3, no[x]) == 0);
  }
  CHECK(heed_mask_sees(made[6], 1, 1, 4, 4, 0, 0, 1, 2) == 1); /* its first row of blocks sees block 1 */
  CHECK(heed_mask_sees(made[6], 1, 1, 4, 4, 0, 0, 3, 2) == 0);
  CHECK(heed_mask_sees(made[10], 1, 1, 4, 4, 0, 0, 3, 0) == 1); /* strided */
  CHECK(heed_mask_sees(made[10], 1, 1, 4, 4, 0, 0, 3, 2) == 0);
  CHECK(heed_mask_sees(made[5], 1, 1, 9, 9, 0, 0, 3, 0) == -1);
  CHECK(heed_mask_sees(made[0], 1, 1, 4, 4, 0, 0, 4, 0) == -1);
  CHECK(heed_mask_ragged(offsets, NULL, 2, -1, 0) == NULL);
  CHECK(heed_mask_ragged(offsets, backward, 2, -1, 0) == NULL);
  CHECK(strstr(heed_last_error(), "from 2 to 1") != NULL);
  CHECK(heed_mask_dilated(-1, 2) == NULL);
  CHECK(heed_mask_strided(0, 0) == NULL);
  CHECK(heed_mask_fixed(2, 3) == NULL);
  CHECK(heed_mask_global_tokens(NULL, 1) == NULL);
  CHECK(heed_mask_neighbourhood(size, size, 2) == NULL);
  CHECK(heed_mask_block_sparse(2, 2, NULL, 2, blocks) == NULL);
  CHECK(heed_mask_block_sparse(2, 2, backward, 2, blocks) == NULL);
  CHECK(heed_mask_boolean(NULL, shape, stride) == NULL);
  CHECK(heed_mask_where(NULL, NULL, 0, 0) == NULL);
  for (x = 0; x < n; ++x) heed_mask_free(made[x]);
}

static void halve(void* self, const heed_score_row* row, float* s, float* slope) {
  int64_t n;
  for (n = 0; n < row->count; ++n) {
    s[n] /= 2;
    if (slope) slope[n] = 0.5f;
  }
  (void)self;
}

/* Half of every score, sigmoid weights, a bias for each distance: numbers that can be worked out by hand. */
static void check_scores(void) {
  const float q[] = {1, 1}, k[] = {0, 4}, v[] = {8, 80};
  float out[2], scores[4], by_distance[] = {0, 1, -4, 0, 0};
  heed_attention a;
  heed_attention_init(&a);
  a.q = heed_dense_f32(q, 1, 1, 2, 1);
  a.k = heed_dense_f32(k, 1, 1, 2, 1);
  a.v = heed_dense_f32(v, 1, 1, 2, 1);
  a.weigh = HEED_SIGMOID;
  CHECK(heed_forward(&a, heed_dense_f32(out, 1, 1, 2, 1), heed_none()) == HEED_OK);
  CHECK(fabs(out[0] - (4 + 80 / (1 + exp(-4.0)))) < 1e-4);
  a.score_mod.run_f32 = halve;
  CHECK(heed_forward(&a, heed_dense_f32(out, 1, 1, 2, 1), heed_none()) == HEED_OK);
  CHECK(fabs(out[1] - (4 + 80 / (1 + exp(-2.0)))) < 1e-4);
  /* The steps compute in double; a function of floats is enough for them. */
  CHECK(heed_score_step(&a, heed_dense_f32(scores, 1, 1, 2, 2)) == HEED_OK);
  CHECK(scores[0] == 0 && scores[1] == 2 && scores[2] == 0 && scores[3] == 2);
  a.score_mod.run_f32 = NULL;
  a.bias = heed_relative_bias(by_distance, 1, 2, 2); /* -1, 0, 1: 0, 1, -4 */
  CHECK(heed_forward(&a, heed_dense_f32(out, 1, 1, 2, 1), heed_none()) == HEED_OK);
  CHECK(fabs(out[0] - (8 / (1 + exp(-1.0)) + 40)) < 1e-4);
  CHECK(fabs(out[1] - (4 + 80 / (1 + exp(-5.0)))) < 1e-4);
  CHECK(heed_forward(&a, heed_dense_f32(out, 1, 1, 2, 1), heed_dense_f32(out, 1, 1, 2, 1)) == HEED_INVALID);
  CHECK(heed_t5_bucket(-16, 1, 32, 128) == 10);
  CHECK(heed_t5_bucket(-16, 1, 3, 128) == -1);
}

int main(void) {
  enum { B = 2, H = 4, G = 2, L = 160, S = 170, D = 16, E = 24 };
  float *q = malloc(sizeof(float) * B * H * L * D), *k = malloc(sizeof(float) * B * G * S * D);
  float *v = malloc(sizeof(float) * B * G * S * E), *out = malloc(sizeof(float) * B * H * L * E);
  float *again = malloc(sizeof(float) * B * H * L * E), *lse = malloc(sizeof(float) * B * H * L);
  float *scores = malloc(sizeof(float) * B * H * L * S), *dq = malloc(sizeof(float) * B * H * L * D);
  double largest = 0;
  int i, calls = 0;
  const int64_t keys[B] = {S, 33};
  heed_attention a;
  heed_incoming in;
  heed_gradients g;
  heed_mask *causal, *lengths, *both;
  heed_tensor bad;

  for (i = 0; i < B * H * L * D; ++i) q[i] = (float)sin(i * 0.7);
  for (i = 0; i < B * G * S * D; ++i) k[i] = (float)cos(i * 0.3);
  for (i = 0; i < B * G * S * E; ++i) v[i] = (float)sin(i * 1.1);

  heed_attention_init(&a);
  a.q = heed_dense_f32(q, B, H, L, D);
  a.k = heed_dense_f32(k, B, G, S, D);
  a.v = heed_dense_f32(v, B, G, S, E);
  causal = heed_mask_causal();
  lengths = heed_mask_lengths(keys, B);
  a.mask = both = heed_mask_and(causal, lengths);
  heed_mask_free(causal);
  heed_mask_free(lengths);
  CHECK(a.mask != NULL);
  CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_dense_f32(lse, B, H, L, 1)) == HEED_OK);

  /* The three steps give what the fused pass gave. */
  CHECK(heed_score_step(&a, heed_dense_f32(scores, B, H, L, S)) == HEED_OK);
  CHECK(scores[S - 1] == -INFINITY); /* query 0 does not see the last key */
  CHECK(heed_weigh_step(heed_dense_f32(scores, B, H, L, S), heed_dense_f32(scores, B, H, L, S)) == HEED_OK);
  CHECK(heed_gather_step(heed_dense_f32(scores, B, H, L, S), a.v, heed_dense_f32(again, B, H, L, E)) == HEED_OK);
  for (i = 0; i < B * H * L * E; ++i)
    if (!(fabs(out[i] - again[i]) <= largest)) largest = fabs(out[i] - again[i]);
  CHECK(largest < 1e-5);

  /* The same weights are what the probes see: the strongest key of query 0 of head 1, and what keys received. */
  {
    heed_probes probes;
    heed_weight_row row;
    float *list = malloc(sizeof(float) * S), *masses = malloc(sizeof(float) * B * H * S);
    const float* w = scores + L * S;
    double sum = 0;
    int strongest = 0;
    int64_t* places = malloc(sizeof(int64_t) * B * H * L);
    memset(&probes, 0, sizeof probes);
    memset(&row, 0, sizeof row);
    row.head = 1;
    probes.largest_key = heed_dense_keys(places, B, H, L, 1);
    probes.mass = heed_dense_f32(masses, B, H, 1, S);
    probes.has_mass_queries = 1;
    probes.mass_queries[1] = 1;
    probes.rows = &row;
    probes.n_rows = 1;
    probes.weights = heed_dense_f32(list, 1, 1, 1, S);
    CHECK(heed_probe(&a, heed_dense_f32(lse, B, H, L, 1), &probes) == HEED_OK);
    for (i = 0; i < S; ++i) {
      if (w[i] > w[strongest]) strongest = i;
      sum += fabs(list[i] - w[i]) + fabs(masses[S + i] - w[i]);
    }
    CHECK(sum < 1e-5);
    CHECK(places[L] == strongest);
    row.head = H;
    CHECK(heed_probe(&a, heed_dense_f32(lse, B, H, L, 1), &probes) == HEED_INVALID);
    CHECK(strstr(heed_last_error(), "row 0 of the list") != NULL);
    CHECK(heed_probe(&a, heed_dense_f32(lse, B, H, L, 1), NULL) == HEED_INVALID);
    free(list), free(masses), free(places);
  }

  /* A lent executor does the work, in another order, to the same bits. */
  a.executor.self = &calls;
  a.executor.concurrency = 2;
  a.executor.run = run_here;
  CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_OK);
  CHECK(calls > 0);
  CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) == 0);

  /* A plan that is kept gives the same bits, and softcap other ones. */
  a.plan = heed_plan_new();
  CHECK(a.plan != NULL);
  for (i = 0; i < 2; ++i) {
    memset(again, 0, sizeof(float) * B * H * L * E);
    CHECK(heed_forward(&a, heed_dense(again, HEED_F32, B, H, L, E), heed_none()) == HEED_OK);
    CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) == 0);
  }
  a.softcap = 2;
  CHECK(heed_forward(&a, heed_dense(again, HEED_F32, B, H, L, E), heed_none()) == HEED_OK);
  CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) != 0);
  a.softcap = -1;
  CHECK(heed_forward(&a, heed_dense(again, HEED_F32, B, H, L, E), heed_none()) == HEED_INVALID);
  CHECK(strstr(heed_last_error(), "softcap is -1") != NULL);
  a.softcap = 0;
  heed_plan_free(a.plan);
  a.plan = NULL;

  /* The gradient of sum(out) against a difference quotient. */
  for (i = 0; i < B * H * L * E; ++i) again[i] = 1;
  memset(&in, 0, sizeof in);
  memset(&g, 0, sizeof g);
  in.out = heed_dense_f32(out, B, H, L, E);
  in.lse = heed_dense_f32(lse, B, H, L, 1);
  in.d_out = heed_dense_f32(again, B, H, L, E);
  g.d_q = heed_dense_f32(dq, B, H, L, D);
  CHECK(heed_backward(&a, &in, &g) == HEED_OK);
  {
    double sum[2];
    int sign;
    const float kept = q[5];
    for (sign = 0; sign < 2; ++sign) {
      q[5] = kept + (sign ? 0.01f : -0.01f);
      CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_none()) == HEED_OK);
      for (i = 0, sum[sign] = 0; i < E; ++i) sum[sign] += out[i]; /* only query 0 depends on q[5] */
    }
    q[5] = kept;
    CHECK(fabs((sum[1] - sum[0]) / 0.02 - dq[5]) < 1e-3);
    CHECK(fabs(dq[5]) > 1e-3);
  }

  /* A sink that outweighs every key takes all: out is nearly 0, lse the sink; ALiBi and dropout change the result, a
   * seed the dropped weights; and their gradients arrive where they are asked for. */
  {
    float sinks[4] = {30, 30, 30, 30}, slopes[4] = {0.5f, 0.5f, 0.5f, 0.5f}, d_sinks[4], d_slopes[4];
    double all = 0;
    a.sinks = heed_dense_f32(sinks, 1, H, 1, 1);
    CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_dense_f32(lse, B, H, L, 1)) == HEED_OK);
    for (i = 0, largest = 0; i < B * H * L * E; ++i)
      if (!(fabs(out[i]) <= largest)) largest = fabs(out[i]);
    CHECK(largest < 1e-6);
    CHECK(fabs(lse[0] - 30) < 1e-3);
    for (i = 0; i < H; ++i) sinks[i] = d_sinks[i] = d_slopes[i] = 0;
    a.alibi = heed_dense_f32(slopes, 1, H, 1, 1);
    CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_dense_f32(lse, B, H, L, 1)) == HEED_OK);
    in.out = heed_dense_f32(out, B, H, L, E);
    g.d_sinks = heed_dense_f32(d_sinks, 1, H, 1, 1);
    g.d_alibi = heed_dense_f32(d_slopes, 1, H, 1, 1);
    CHECK(heed_backward(&a, &in, &g) == HEED_OK);
    for (i = 0; i < H; ++i) all += fabs(d_sinks[i] - d_slopes[i]);
    CHECK(fabs(d_sinks[0]) > 1e-3);
    CHECK(fabs(d_slopes[0]) > 1e-3);
    CHECK(all > 1e-3);
    a.dropout = 0.5;
    CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_OK);
    CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) != 0);
    memcpy(out, again, sizeof(float) * B * H * L * E);
    a.seed = 7;
    CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_OK);
    CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) != 0);
    a.sinks = a.alibi = heed_none(); /* the arrays end here */
  }

  /* The first document alone is what the first lengths see; a prefix of all keys hides nothing. */
  {
    int64_t first[1], every[1];
    const heed_mask* before = a.mask;
    heed_mask *documents, *prefix;
    first[0] = 2;
    every[0] = S;
    documents = heed_mask_documents(first, 1);
    prefix = heed_mask_prefix_lm(every, 1);
    CHECK(documents != NULL && prefix != NULL);
    a.mask = prefix;
    CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_OK);
    a.mask = NULL;
    CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_none()) == HEED_OK);
    CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) == 0);
    a.mask = documents;
    CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_OK);
    CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) != 0);
    CHECK(heed_mask_documents(NULL, 1) == NULL);
    CHECK(heed_mask_prefix_lm(NULL, 1) == NULL);
    check_masks();
    check_scores();
    a.mask = before;
    CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_dense_f32(lse, B, H, L, 1)) == HEED_OK);
    heed_mask_free(documents);
    heed_mask_free(prefix);
  }

  /* Keys and values in pages give the bits of those in one piece; an entry that names no page is refused. */
  {
    const heed_tensor k_before = a.k, v_before = a.v;
    int32_t table[B];
    int64_t keys[B];
    for (i = 0; i < B; ++i) table[i] = i, keys[i] = S;
    a.dropout = 0;
    CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_none()) == HEED_OK);
    a.pages.table = table;
    a.pages.table_stride = a.pages.table_columns = 1;
    a.pages.keys = keys;
    CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_OK);
    CHECK(memcmp(out, again, sizeof(float) * B * H * L * E) == 0);
    table[B - 1] = B;
    CHECK(heed_forward(&a, heed_dense_f32(again, B, H, L, E), heed_none()) == HEED_INVALID);
    CHECK(strstr(heed_last_error(), "mend the table") != NULL);
    CHECK(heed_backward(&a, &in, &g) == HEED_INVALID);
    memset(&a.pages, 0, sizeof a.pages);
    a.k = k_before;
    a.v = v_before;
  }

  /* Errors: a status, a sentence with both numbers, and nothing written. */
  out[0] = 42;
  bad = a.k;
  bad.shape[1] = 3;
  a.k = bad;
  CHECK(heed_forward(&a, heed_dense_f32(out, B, H, L, E), heed_none()) == HEED_INVALID);
  CHECK(strcmp(heed_last_error(), "k has 3 heads; q's 4 heads need a divisor of 4") == 0);
  CHECK(out[0] == 42);
  CHECK(heed_forward(NULL, heed_none(), heed_none()) == HEED_INVALID);
  memset(&a, 0, sizeof a);
  CHECK(heed_forward(&a, heed_none(), heed_none()) == HEED_INVALID);
  CHECK(strstr(heed_last_error(), "heed_attention_init") != NULL);
  CHECK(heed_mask_window(-2, 0) == NULL);
  CHECK(strstr(heed_last_error(), "-2") != NULL);
  CHECK(heed_set_target("Z80") == HEED_INVALID);
  CHECK(heed_set_threads(0) == HEED_INVALID);
  CHECK(heed_threads() >= 1);
  CHECK(heed_target() != NULL);
  CHECK(strlen(heed_version()) >= 5);

  heed_mask_free(both);
  free(q), free(k), free(v), free(out), free(again), free(lse), free(scores), free(dq);
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
