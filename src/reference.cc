#include "reference.h"

#include <cmath>
#include <limits>
#include <vector>

#include "dropout.h"
#include "half.h"

namespace heed::reference {
namespace {

int64_t offset(const Shape& shape, const Shape& stride, int64_t b, int64_t h, int64_t i, int64_t d) {
  return (shape[0] == 1 ? 0 : b * stride[0]) + (shape[1] == 1 ? 0 : h * stride[1]) +
         (shape[2] == 1 ? 0 : i * stride[2]) + (shape[3] == 1 ? 0 : d * stride[3]);
}

// A gradient being summed, in double, with the shape of the tensor it belongs to; empty if it is not wanted.
class Sum {
 public:
  explicit Sum(const Tensor& target) : target_(target), stride_(dense(target.shape)) {
    if (target.data) values_.assign(target.shape[0] * stride_[0], 0.0);
  }
  void add(int64_t b, int64_t h, int64_t i, int64_t d, double value) {
    if (!values_.empty()) values_[offset(target_.shape, stride_, b, h, i, d)] += value;
  }
  void store() const {
    if (values_.empty()) return;
    const Shape& n = target_.shape;
    for (int64_t b = 0; b < n[0]; ++b)
      for (int64_t h = 0; h < n[1]; ++h)
        for (int64_t i = 0; i < n[2]; ++i)
          for (int64_t d = 0; d < n[3]; ++d) put(target_, b, h, i, d, values_[offset(n, stride_, b, h, i, d)]);
  }

 private:
  Tensor target_;
  Shape stride_;
  std::vector<double> values_;
};

// The weights of one row over a span of keys, before dropout, 0 where it does not see one, and its log-sum-exp. A row
// that sees nothing has no weights.
double weigh_row(const Problem& p, int64_t b, int64_t h, int64_t i, Span keys, std::vector<double>& weights) {
  weights.assign(keys.end - keys.begin, 0.0);
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  if (p.a.weigh == Weigh::sigmoid) {
    for (int64_t j = keys.begin; j < keys.end; ++j)
      if (p.a.mask.sees(p.mask_shape(), b, h, i, j))
        weights[j - keys.begin] = 1 / (1 + std::exp(-pair_score(p, b, h, i, j)));
    return 0;  // there is no lse
  }
  double largest = kNothing;
  bool sees = false;  // a NaN counts: it must reach the output
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    const bool visible = p.a.mask.sees(p.mask_shape(), b, h, i, j);
    const double s = weights[j - keys.begin] = visible ? pair_score(p, b, h, i, j) : kNothing;
    largest = std::fmax(largest, s);
    sees |= s != kNothing;
  }
  if (p.a.sinks.data) {
    const double sink = at(p.a.sinks, 0, h, 0, 0);
    largest = std::fmax(largest, sink);
    sees |= sink != kNothing;
  }
  if (!sees) {
    weights.assign(weights.size(), 0.0);
    return kNothing;
  }
  double sum = p.a.sinks.data ? std::exp(at(p.a.sinks, 0, h, 0, 0) - largest) : 0;
  for (double& w : weights) sum += w = std::exp(w - largest);
  for (double& w : weights) w /= sum;
  return largest + std::log(sum);
}

// What dropout multiplies the weight of a pair by.
double kept(const Problem& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (p.a.dropout == 0) return 1;
  const uint64_t row = dropout_row(p.a.seed, b * p.Hq + h, i);
  return dropout_bits(row, j) >= dropout_threshold(p.a.dropout) ? 1 / (1 - p.a.dropout) : 0;
}

}  // namespace

double at(const ConstTensor& t, int64_t b, int64_t h, int64_t i, int64_t d) {
  const int64_t k = offset(t.shape, t.stride, b, h, i, d);
  switch (t.dtype) {
    case DType::f32:
      return static_cast<const float*>(t.data)[k];
    case DType::f64:
      return static_cast<const double*>(t.data)[k];
    case DType::f16:
      return float_of_half(static_cast<const uint16_t*>(t.data)[k]);
    case DType::bf16:
      return float_of_bfloat(static_cast<const uint16_t*>(t.data)[k]);
    case DType::i8:
      return static_cast<const int8_t*>(t.data)[k];
  }
  return 0;
}

void put(const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t d, double value) {
  const int64_t k = offset(t.shape, t.stride, b, h, i, d);
  switch (t.dtype) {
    case DType::f32:
      static_cast<float*>(t.data)[k] = static_cast<float>(value);
      break;
    case DType::f64:
      static_cast<double*>(t.data)[k] = value;
      break;
    case DType::f16:
      static_cast<uint16_t*>(t.data)[k] = half_of_float(static_cast<float>(value));
      break;
    case DType::bf16:
      static_cast<uint16_t*>(t.data)[k] = bfloat_of_float(static_cast<float>(value));
      break;
    case DType::i8:  // no result has it
      break;
  }
}

// Scaled, before softcap and bias.
static double raw_score(const Problem& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t hkv = h / p.group;
  double s = 0;
  for (int64_t d = 0; d < p.D; ++d) {
    const double q = at(p.a.q, b, h, i, d), k = at(p.a.k, b, hkv, j, d);
    s += p.a.score == Score::dot ? q * k : at(p.a.w, 0, h, 0, d) * std::tanh(q + k);
  }
  return s * p.scale;
}

// With softcap, bias and ALiBi, before the user's function.
static double plain_score(const Problem& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  double s = raw_score(p, b, h, i, j);
  if (p.a.softcap > 0) s = p.a.softcap * std::tanh(s / p.a.softcap);
  if (p.a.bias.data) s += at(p.a.bias, b, h, i, j);
  if (p.a.alibi.data) s += at(p.a.alibi, 0, h, 0, 0) * static_cast<double>(j - (i + p.S - p.L));
  return s;
}

double pair_score(const Problem& p, int64_t b, int64_t h, int64_t i, int64_t j) {
  double s = plain_score(p, b, h, i, j);
  if (p.a.score_mod) p.a.score_mod->apply({b, h, i, j, 1}, &s, nullptr);
  return s;
}

void forward(const Problem& p, const Output& result) {
  std::vector<double> weights;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.L; ++i) {
        const Span keys = p.a.mask.row(p.mask_shape(), b, h, i);
        const double lse = weigh_row(p, b, h, i, keys, weights);
        for (int64_t d = 0; d < p.Dv; ++d) {
          double o = 0;
          for (int64_t j = keys.begin; j < keys.end; ++j) {
            const double w = weights[j - keys.begin] * kept(p, b, h, i, j);
            if (w != 0) o += w * at(p.a.v, b, h / p.group, j, d);
          }
          put(result.out, b, h, i, d, o);
        }
        if (result.lse.data) put(result.lse, b, h, i, 0, lse);
      }
}

void backward(const Problem& p, const Incoming& in, const Gradients& gradients) {
  Sum d_q(gradients.d_q), d_k(gradients.d_k), d_v(gradients.d_v), d_w(gradients.d_w), d_bias(gradients.d_bias);
  Sum d_alibi(gradients.d_alibi), d_sinks(gradients.d_sinks);
  std::vector<double> weights, d_weights;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.L; ++i) {
        const int64_t hkv = h / p.group;
        const Span keys = p.a.mask.row(p.mask_shape(), b, h, i);
        const double lse = weigh_row(p, b, h, i, keys, weights);
        if (lse == -std::numeric_limits<double>::infinity()) continue;

        // out_i = sum_j w_j v_j (w_j times what dropout makes of it), so the gradient of w_j is d_out_i . v_j; a
        // softmax row then passes w_j (g_j - sum_k w_k g_k), and lse_i passes w_j d_lse_i.
        d_weights.assign(weights.size(), 0.0);
        double mean = 0;
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          const double w = weights[j - keys.begin], factor = kept(p, b, h, i, j);
          if (w == 0) continue;  // it may be hidden, and NaN
          double g = 0;
          for (int64_t d = 0; d < p.Dv; ++d) {
            g += factor * at(in.d_out, b, h, i, d) * at(p.a.v, b, hkv, j, d);
            d_v.add(b, hkv, j, d, factor * w * at(in.d_out, b, h, i, d));
          }
          d_weights[j - keys.begin] = g;
          mean += w * g;
        }
        const double d_lse = in.d_lse.data ? at(in.d_lse, b, h, i, 0) : 0.0;
        if (p.a.sinks.data) d_sinks.add(0, h, 0, 0, std::exp(at(p.a.sinks, 0, h, 0, 0) - lse) * (d_lse - mean));
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          if (weights[j - keys.begin] == 0) continue;
          const double w = weights[j - keys.begin];
          double d_score = w * (d_weights[j - keys.begin] - mean + d_lse);
          if (p.a.weigh == Weigh::sigmoid) d_score = w * (1 - w) * d_weights[j - keys.begin];
          if (p.a.score_mod) {
            double s = plain_score(p, b, h, i, j), slope;
            p.a.score_mod->apply({b, h, i, j, 1}, &s, &slope);
            d_score *= slope;
          }
          d_bias.add(b, h, i, j, d_score);
          d_alibi.add(0, h, 0, 0, d_score * static_cast<double>(j - (i + p.S - p.L)));
          if (p.a.softcap > 0) {
            const double t = std::tanh(raw_score(p, b, h, i, j) / p.a.softcap);
            d_score *= 1 - t * t;
          }
          for (int64_t d = 0; d < p.D; ++d) {
            const double q = at(p.a.q, b, h, i, d), k = at(p.a.k, b, hkv, j, d);
            if (p.a.score == Score::dot) {
              d_q.add(b, h, i, d, d_score * p.scale * k);
              d_k.add(b, hkv, j, d, d_score * p.scale * q);
            } else {
              const double t = std::tanh(q + k), g = d_score * p.scale * at(p.a.w, 0, h, 0, d) * (1 - t * t);
              d_q.add(b, h, i, d, g);
              d_k.add(b, hkv, j, d, g);
              d_w.add(0, h, 0, d, d_score * p.scale * t);
            }
          }
        }
      }
  d_q.store();
  d_k.store();
  d_v.store();
  d_w.store();
  d_bias.store();
  d_alibi.store();
  d_sinks.store();
}

// ---- Derivatives along a direction, and second derivatives ----

namespace {

// The score of one pair as a function of what moves: its value's first two derivatives by the raw score, and its
// tangent, along `t`, raw and finished.
struct Moving {
  double slope = 1, bend = 0;  // of the cap: c tanh(z / c) has 1 - t^2 and -2 t (1 - t^2) / c, t = tanh(z / c)
  double raw, finished;
};

Moving moving(const Problem& p, const Tangents& t, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t hkv = h / p.group;
  Moving m;
  m.raw = 0;
  for (int64_t d = 0; d < p.D; ++d) {
    if (t.q.data) m.raw += at(t.q, b, h, i, d) * at(p.a.k, b, hkv, j, d);
    if (t.k.data) m.raw += at(p.a.q, b, h, i, d) * at(t.k, b, hkv, j, d);
  }
  m.raw *= p.scale;
  if (p.a.softcap > 0) {
    const double th = std::tanh(raw_score(p, b, h, i, j) / p.a.softcap);
    m.slope = 1 - th * th;
    m.bend = -2 * th * m.slope / p.a.softcap;
  }
  m.finished = m.slope * m.raw;
  if (t.bias.data) m.finished += at(t.bias, b, h, i, j);
  if (t.alibi.data) m.finished += at(t.alibi, 0, h, 0, 0) * static_cast<double>(j - (i + p.S - p.L));
  return m;
}

// The weight of the row's sink, and the sink's tangent.
double sink_weight(const Problem& p, int64_t h, double lse) {
  return p.a.sinks.data ? std::exp(at(p.a.sinks, 0, h, 0, 0) - lse) : 0;
}
double sink_tangent(const Tangents& t, int64_t h) { return t.sinks.data ? at(t.sinks, 0, h, 0, 0) : 0; }

}  // namespace

void jvp(const Problem& p, const Tangents& tangents, const Output& result) {
  std::vector<double> weights, scores;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.L; ++i) {
        const int64_t hkv = h / p.group;
        const Span keys = p.a.mask.row(p.mask_shape(), b, h, i);
        const double lse = weigh_row(p, b, h, i, keys, weights);
        // lse = log sum exp(s), so it moves by the mean of the scores' tangents; a weight exp(s - lse) moves by w (t_s
        // - t_lse).
        double t_lse = 0;
        scores.assign(weights.size(), 0.0);
        if (lse != -std::numeric_limits<double>::infinity()) {
          t_lse = sink_weight(p, h, lse) * sink_tangent(tangents, h);
          for (int64_t j = keys.begin; j < keys.end; ++j) {
            const double w = weights[j - keys.begin];
            if (w != 0) t_lse += w * (scores[j - keys.begin] = moving(p, tangents, b, h, i, j).finished);
          }
        }
        for (int64_t d = 0; d < p.Dv && result.out.data; ++d) {
          double o = 0;
          for (int64_t j = keys.begin; j < keys.end; ++j) {
            const double w = weights[j - keys.begin] * kept(p, b, h, i, j);
            if (w == 0) continue;
            o += w * (scores[j - keys.begin] - t_lse) * at(p.a.v, b, hkv, j, d);
            if (tangents.v.data) o += w * at(tangents.v, b, hkv, j, d);
          }
          put(result.out, b, h, i, d, o);
        }
        if (result.lse.data) put(result.lse, b, h, i, 0, t_lse);
      }
}

void double_backward(const Problem& p, const Incoming& in, const Tangents& dd, const SecondGradients& wanted) {
  Sum d_q(wanted.d_q), d_k(wanted.d_k), d_v(wanted.d_v), d_bias(wanted.d_bias), d_alibi(wanted.d_alibi);
  Sum d_sinks(wanted.d_sinks), d_d_out(wanted.d_d_out), d_d_lse(wanted.d_d_lse);
  struct Pair {
    double w, factor, a;  // weight, what dropout makes of it, gradient of the weight
    Moving t;             // dd's way through the score
    double v;             // and past it: the dropped-out d_out . dd_v
  };
  std::vector<double> weights;
  std::vector<Pair> pairs;
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hq; ++h)
      for (int64_t i = 0; i < p.L; ++i) {
        const int64_t hkv = h / p.group;
        const Span keys = p.a.mask.row(p.mask_shape(), b, h, i);
        const double lse = weigh_row(p, b, h, i, keys, weights);
        if (lse == -std::numeric_limits<double>::infinity()) continue;

        // What backward did: the gradient of the weight is a_j = factor d_out . v_j; with delta = sum_j w_j a_j - d_lse
        // the gradient of the score is ds_j = w_j (a_j - delta); then d_q += scale ds_j k_j, d_k_j += scale ds_j q,
        // d_v_j
        // += factor w_j d_out. So all that dd is multiplied with adds up to
        //   sum_j ds_j t_j + factor w_j d_out . dd_v_j,
        // t_j the tangent of the score along dd; the sink is one more pair, with a = 0. Its gradients follow.
        const double d_lse = in.d_lse.data ? at(in.d_lse, b, h, i, 0) : 0;
        const double w_sink = sink_weight(p, h, lse), t_sink = sink_tangent(dd, h);
        double delta = -d_lse, mean_t = w_sink * t_sink;  // of t: the gradient of d_lse
        pairs.assign(weights.size(), {});
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          Pair& x = pairs[j - keys.begin];
          x.w = weights[j - keys.begin];
          if (x.w == 0) continue;
          x.factor = kept(p, b, h, i, j);
          x.t = moving(p, dd, b, h, i, j);
          for (int64_t d = 0; d < p.Dv; ++d) {
            x.a += x.factor * at(in.d_out, b, h, i, d) * at(p.a.v, b, hkv, j, d);
            if (dd.v.data) x.v += x.factor * at(in.d_out, b, h, i, d) * at(dd.v, b, hkv, j, d);
          }
          delta += x.w * x.a;
          mean_t += x.w * x.t.finished;
        }
        d_d_lse.add(b, h, i, 0, mean_t);

        // The gradient of a weight w_j: t_j (a_j - delta) + v_j directly, and -mean_t a_j through delta. A softmax row
        // then passes w_j (g_j - sum_k w_k g_k).
        const auto of_weight = [&](const Pair& x) { return x.t.finished * (x.a - delta) - mean_t * x.a + x.v; };
        double mean = -w_sink * t_sink * delta;
        for (const Pair& x : pairs)
          if (x.w != 0) mean += x.w * of_weight(x);
        d_sinks.add(0, h, 0, 0, w_sink * (-t_sink * delta - mean));
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          const Pair& x = pairs[j - keys.begin];
          if (x.w == 0) continue;
          const double score = x.w * (of_weight(x) - mean);
          d_bias.add(b, h, i, j, score);
          d_alibi.add(0, h, 0, 0, score * static_cast<double>(j - (i + p.S - p.L)));
          // ds t contains the raw score once more, in the cap's slope.
          const double ds = x.w * (x.a - delta);
          const double to_raw = p.scale * (score * x.t.slope + ds * x.t.bend * x.t.raw);
          const double again = p.scale * ds * x.t.slope;  // dd_q . k_j and q . dd_k_j contain k_j and q
          for (int64_t d = 0; d < p.D; ++d) {
            d_q.add(b, h, i, d, to_raw * at(p.a.k, b, hkv, j, d) + (dd.k.data ? again * at(dd.k, b, hkv, j, d) : 0));
            d_k.add(b, hkv, j, d, to_raw * at(p.a.q, b, h, i, d) + (dd.q.data ? again * at(dd.q, b, h, i, d) : 0));
          }
          const double of_a = x.factor * x.w * (x.t.finished - mean_t);
          for (int64_t d = 0; d < p.Dv; ++d) {
            d_v.add(b, hkv, j, d, of_a * at(in.d_out, b, h, i, d));
            d_d_out.add(b, h, i, d,
                        of_a * at(p.a.v, b, hkv, j, d) + (dd.v.data ? x.factor * x.w * at(dd.v, b, hkv, j, d) : 0));
          }
        }
      }
  for (const Sum* sum : {&d_q, &d_k, &d_v, &d_bias, &d_alibi, &d_sinks, &d_d_out, &d_d_lse}) sum->store();
}

}  // namespace heed::reference
