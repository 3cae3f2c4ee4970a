// The log-sum-exp of a row of logits, and its largest numbers, against double precision and a sort.
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <heed/logits.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace {

using heed::largest;
using heed::log_sum_exp;

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_row(size_t n, unsigned seed, float spread) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(n);
  for (float& x : row) x = normal(generator);
  return row;
}

double exact(const std::vector<float>& row) {
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const float x : row) most = std::max(most, static_cast<double>(x));
  for (const float x : row) sum += std::exp(static_cast<double>(x) - most);
  return most + std::log(sum);
}

std::vector<int64_t> sorted(const std::vector<float>& row, size_t k) {
  std::vector<int64_t> places;
  for (size_t i = 0; i < row.size(); ++i)
    if (row[i] > -kInfinity) places.push_back(static_cast<int64_t>(i));
  std::stable_sort(places.begin(), places.end(),
                   [&](int64_t a, int64_t b) { return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)]; });
  places.resize(std::min(k, places.size()));
  return places;
}

int64_t size(const std::vector<float>& row) { return static_cast<int64_t>(row.size()); }

TEST(Logits, SumsAreThoseOfDoublePrecision) {
  for (size_t n = 1; n < 70; ++n) {
    for (const float spread : {0.1f, 3.0f, 40.0f}) {
      const std::vector<float> row = random_row(n, static_cast<unsigned>(n), spread);
      const double want = exact(row);
      EXPECT_NEAR(log_sum_exp(row.data(), size(row)), want, 1e-6 * std::max(1.0, std::abs(want))) << n << " " << spread;
    }
  }
  const std::vector<float> many = random_row(50001, 1, 2);
  EXPECT_NEAR(log_sum_exp(many.data(), size(many)), exact(many), 1e-5);
  const std::vector<float> far = {1e4f, -1e4f, 1e4f};
  EXPECT_NEAR(log_sum_exp(far.data(), 3), exact(far), 1e-3);
}

TEST(Logits, SumsOfWhatIsNoNumber) {
  std::vector<float> row = random_row(37, 2, 1);
  const float before = log_sum_exp(row.data(), size(row));
  row.push_back(-kInfinity);
  EXPECT_EQ(log_sum_exp(row.data(), size(row)), before);
  // 0x7FC00001: an exponent made of its bits would be a number again.
  for (const float bad : {kNaN, std::bit_cast<float>(0x7FC00001u), kInfinity}) {
    for (size_t i = 0; i < row.size(); ++i) {
      std::vector<float> other = row;
      other[i] = bad;
      EXPECT_TRUE(std::isnan(log_sum_exp(other.data(), size(other)))) << i;
    }
  }
  const std::vector<float> nothing(20, -kInfinity);
  EXPECT_EQ(log_sum_exp(nothing.data(), 20), -kInfinity);
  EXPECT_EQ(log_sum_exp(nothing.data(), 0), -kInfinity);
}

TEST(Logits, TheLargestAreThoseOfASort) {
  std::vector<int64_t> places = {7};
  for (size_t n = 0; n < 70; ++n) {
    for (size_t k : {0, 1, 2, 8, 16, 17, 100}) {
      const std::vector<float> row = random_row(n, static_cast<unsigned>(n + k), 1);
      largest(row.data(), size(row), static_cast<int64_t>(k), places);
      EXPECT_EQ(places, sorted(row, k)) << n << " " << k;
    }
  }
  std::vector<float> equal(300, 1.0f);  // many equal ones: the first
  equal[280] = 2;
  largest(equal.data(), 300, 3, places);
  EXPECT_EQ(places, (std::vector<int64_t>{280, 0, 1}));
  std::vector<float> rising(1000);  // each gets in
  std::iota(rising.begin(), rising.end(), 0.0f);
  largest(rising.data(), 1000, 4, places);
  EXPECT_EQ(places, (std::vector<int64_t>{999, 998, 997, 996}));
  std::vector<float> few(40, -kInfinity);
  few[3] = kNaN;
  few[20] = -5;
  few[39] = kInfinity;
  largest(few.data(), 40, 5, places);
  EXPECT_EQ(places, (std::vector<int64_t>{39, 20}));
}

TEST(Logits, TheSameBitsOnTargetsWithFma) {
  const std::vector<float> row = random_row(6003, 3, 3);
  std::vector<float> found;
  for (const std::string& target : heed::targets()) {
    if (target == "SSE4" || target == "SCALAR") continue;
    heed::set_target(target);
    found.push_back(log_sum_exp(row.data(), size(row)));
  }
  heed::set_target(heed::targets().front());
  for (const float x : found) EXPECT_EQ(x, found.front());
}

}  // namespace
