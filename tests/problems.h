// Attention problems for tests: memory, random values, odd layouts, and the reference's answer in double.
#pragma once

#include <heed/attention.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "reference.h"

namespace heed::testing {

// Random floats behind a view. Layouts: "bhld" dense; "blhd" length before heads; "gaps" rows and heads with unused
// room.
class Data {
 public:
  Data() = default;
  Data(Shape shape, std::mt19937_64& random, double spread = 1.0, const std::string& layout = "bhld") {
    Shape stride = dense(shape);
    if (layout == "blhd") stride = {shape[1] * shape[2] * shape[3], shape[3], shape[1] * shape[3], 1};
    if (layout == "gaps") {
      const int64_t row = shape[3] + 5, head = shape[2] * row + 3;
      stride = {shape[1] * head + 7, head, row, 1};
    }
    values_.resize(shape[0] * stride[0] + shape[1] * stride[1] + shape[2] * stride[2] + shape[3]);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& x : values_) x = static_cast<float>(spread) * uniform(random);
    shape_ = shape;
    stride_ = stride;
  }
  static Data empty_like(const Data& other) {
    Data d = other;
    for (float& x : d.values_) x = NAN;  // whatever is not written shows
    return d;
  }

  bool empty() const { return values_.empty(); }
  const Shape& shape() const { return shape_; }
  const Shape& stride() const { return stride_; }
  std::vector<float>& values() { return values_; }
  float& at(int64_t b, int64_t h, int64_t i, int64_t d) {
    return values_[b * stride_[0] + h * stride_[1] + i * stride_[2] + d * stride_[3]];
  }
  ConstTensor read() const {
    return values_.empty() ? ConstTensor() : ConstTensor(values_.data(), DType::f32, shape_, stride_);
  }
  Tensor write() { return values_.empty() ? Tensor{} : Tensor{values_.data(), DType::f32, shape_, stride_}; }

 private:
  std::vector<float> values_;
  Shape shape_{}, stride_{};
};

// A dense tensor in double, for the reference's results.
struct Exact {
  Shape shape{};
  std::vector<double> values;

  Exact() = default;
  explicit Exact(Shape s) : shape(s), values(s[0] * s[1] * s[2] * s[3]) {}
  Tensor write() { return values.empty() ? Tensor{} : tensor(values.data(), shape); }
};

// Largest |got - want| / (1 + |want|) over all elements; infinite where one is NaN and the other is not.
inline double error(Data& got, const Exact& want) {
  double worst = 0;
  const Shape& n = want.shape;
  size_t k = 0;
  for (int64_t b = 0; b < n[0]; ++b)
    for (int64_t h = 0; h < n[1]; ++h)
      for (int64_t i = 0; i < n[2]; ++i)
        for (int64_t d = 0; d < n[3]; ++d, ++k) {
          const double x = got.at(b, h, i, d), y = want.values[k];
          if (std::isnan(x) && std::isnan(y)) continue;
          if (std::isinf(x) && x == y) continue;
          const double e = std::fabs(x - y) / (1 + std::fabs(y));
          worst = std::isnan(e) ? INFINITY : std::fmax(worst, e);
        }
  return worst;
}

}  // namespace heed::testing
