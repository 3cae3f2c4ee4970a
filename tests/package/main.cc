// A separate project against the installed package: the engine alone.
#include <heed/attention.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  std::vector<float> x(2 * 8 * 4, 0.5f), out(x.size());
  const heed::Shape shape{1, 2, 8, 4};
  heed::forward(
      {.q = heed::tensor(x.data(), shape), .k = heed::tensor(x.data(), shape), .v = heed::tensor(x.data(), shape)},
      {heed::tensor(out.data(), shape)});
  std::printf("%s %g\n", heed::version().c_str(), out[5]);
  return std::fabs(out[5] - 0.5f) < 1e-6f ? 0 : 1;
}
