// A row of logits as a beam search wants it: its log-sum-exp and the few largest, in walks over a row that stays in the
// cache. A log-softmax of all the step's rows is three walks over megabytes, of which two numbers a beam are used.
#pragma once

#include <cstdint>
#include <vector>

namespace heed {

// The logarithm of the sum of exp(row[0..n)), to about 1e-6 of the larger of it and 1, with the same bits on all SIMD
// targets that have FMA. -inf if all are, or there are none; NaN if one is NaN or +inf.
float log_sum_exp(const float* row, int64_t n);

// The places of the k largest numbers of the row, the largest first, of equal ones the one that comes first; fewer if
// fewer are neither NaN nor -inf. Replaces what `places` held.
void largest(const float* row, int64_t n, int64_t k, std::vector<int64_t>& places);

}  // namespace heed
