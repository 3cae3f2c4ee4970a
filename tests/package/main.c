#include <heed/heed.h>
#include <math.h>
#include <stdio.h>

int main(void) {
  float x[32], out[32];
  heed_attention a;
  int i;
  for (i = 0; i < 32; ++i) x[i] = 0.5f;
  heed_attention_init(&a);
  a.q = a.k = a.v = heed_dense_f32(x, 1, 1, 8, 4);
  if (heed_forward(&a, heed_dense_f32(out, 1, 1, 8, 4), heed_none()) != HEED_OK) {
    puts(heed_last_error());
    return 1;
  }
  return fabsf(out[3] - 0.5f) < 1e-6f ? 0 : 1;
}
