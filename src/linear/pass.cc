// Linear attention's passes: a matrix that tokens write to and read from, walked over from one end or the other.
//
// All of it is one kernel, walk-inl.h. With M a matrix of rows and columns, a token does
//   M = M times its decay, of each row or of each column
//   M[r][c] += x[r] * y[c]                   its writers, in order
//   out[c] = sum over r of z[r] * M[r][c]    its readers
// Forward, M is the state S [dk, dv]: x = k, y = v, z = q. The gradients are the same walk with other names:
//   d_q    M = S' [dv, dk], forward: x = v, y = k, z = d_out
//   d_k    M = D' [dv, dk], D the state's gradient, backward: x = d_out, y = scale q, z = v
//   d_v    M = D [dk, dv], backward: x = scale q, y = d_out, z = k
// A delta rule writes u = beta e, e = v - (decayed S)' k, instead of v. Once e and the gradient of u are known, which
// columns of values find out on their own, the rest is that same linear walk (corrections, below).
// So each sum runs over rows, in order and with FMA, and vectors run across columns: columns do not know of each
// other, and may be cut into pieces of work anywhere without a change of bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linear/pass.cc"
#include "targets.h"
// clang-format off
#include "hwy/foreach_target.h"  // compiles this file once for each target
// clang-format on
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "hwy/highway.h"
#include "linear.h"
#include "threads.h"
#include "walk-inl.h"

#ifndef HEED_LINEAR_PASS_ONCE
#define HEED_LINEAR_PASS_ONCE
namespace heed {

// Of the delta rules' gradients: [B * Hkv, T, dv] each, what every token stored beyond what was there (its u is beta
// times that), and the gradient of u.
struct Corrections {
  std::vector<float> e, d_u;
};

}  // namespace heed
#endif

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// Hands out parts of a worker's memory.
class Carver {
 public:
  explicit Carver(float* from) : next_(from) {}
  float* take(int64_t floats) {
    float* const mine = next_;
    next_ += round_up(floats, kLanes);
    return mine;
  }
  // Rows of `width` for each token of a tile and each of its parts.
  TokenRows rows(int64_t width, int64_t parts = 1) {
    return {take((kTokens + 1) * parts * width), parts * width, width};
  }

 private:
  float* next_;
};

// T: the type of q, k and v.
template <class T>
struct Linear {
  const LinearProblem& p;
  const int64_t G = p.group, dk = round_up(p.dk, kLanes), dv = round_up(p.dv, kLanes);

  static int64_t offset(const ConstTensor& t, int64_t b, int64_t h, int64_t i) {
    return b * t.stride[0] + (t.shape[1] == 1 ? 0 : h) * t.stride[1] + i * t.stride[2];
  }

  // Elements [x0, x0 + n) of one row, times factor, zeros up to `padded`.
  static void row(const ConstTensor& t, int64_t b, int64_t h, int64_t i, int64_t x0, int64_t n, int64_t padded,
                  float factor, float* to) {
    const int64_t at = offset(t, b, h, i) + x0;
    if (t.dtype == DType::f32)
      WidenRow(static_cast<const float*>(t.data) + at, n, padded, factor, to);
    else
      WidenRow(static_cast<const T*>(t.data) + at, n, padded, factor, to);
  }

  static void store(const float* from, const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t x0, int64_t n,
                    float factor) {
    const int64_t at = offset(t, b, h, i) + x0;
    if (t.dtype == DType::f32)
      NarrowRow(from, n, factor, static_cast<float*>(t.data) + at);
    else
      NarrowRow(from, n, factor, static_cast<T*>(t.data) + at);
  }

  // exp(g) of channels [x0, x0 + n) at token t; ones behind the last token.
  void decay_row(int64_t b, int64_t h, int64_t t, int64_t x0, int64_t n, int64_t padded, float* to) const {
    const F d;
    if (t == p.T) {
      std::fill(to, to + padded, 1.0f);
      return;
    }
    const bool one = p.a.decay.shape[3] == 1;
    if (one)
      row(p.a.decay, b, h, t, 0, 1, kLanes, 1.0f, to);
    else
      row(p.a.decay, b, h, t, x0, n, padded, 1.0f, to);
    for (int64_t x = 0; x < (one ? kLanes : padded); x += kVector) hn::StoreU(Exp(d, hn::LoadU(d, to + x)), d, to + x);
    if (one) std::fill(to, to + padded, float{to[0]});
  }

  // Columns [x0, x0 + n) of a state, or of its transpose, which then has rows of channels.
  void load_state(const ConstTensor& s, int64_t b, int64_t h, bool transposed, int64_t x0, int64_t n, int64_t width,
                  float* m) const {
    std::fill(m, m + (transposed ? p.dv : p.dk) * width, 0.0f);
    if (!s.data) return;
    if (!transposed)
      for (int64_t i = 0; i < p.dk; ++i) row(s, b, h, i, x0, n, width, 1.0f, m + i * width);
    else
      for (int64_t i = 0; i < n; ++i) {
        const float* from = static_cast<const float*>(s.data) + offset(s, b, h, x0 + i);
        for (int64_t c = 0; c < p.dv; ++c) m[c * width + i] = from[c];
      }
  }
  void store_state(const float* m, const Tensor& s, int64_t b, int64_t h, int64_t x0, int64_t n, int64_t width) const {
    for (int64_t i = 0; i < p.dk && s.data; ++i) store(m + i * width, s, b, h, i, x0, n, 1.0f);
  }

  // ---- Forward: columns [c0, c0 + n) of one head's values ----

  int64_t forward_memory(int64_t width) const {
    return dk * width + (kTokens + 1) * ((2 + G) * dk + (3 + G) * width + 1) + 16 * kLanes;
  }

  void forward(const LinearOutput& result, int64_t b, int64_t h, int64_t c0, int64_t n, float* memory) const {
    const int64_t width = round_up(n, kLanes);
    Carver carver(memory);
    Walk walk{.m = carver.take(p.dk * width), .rows = p.dk, .width = width};
    walk.by = p.decays() ? Decay::row : Decay::none;
    walk.decay = carver.rows(dk);
    walk.x = carver.rows(dk);
    walk.y = carver.rows(width);
    walk.readers = static_cast<int>(G);
    walk.z = carver.rows(dk, G);
    walk.out = carver.rows(width, G);
    walk.extra = walk.y;
    const TokenRows v = p.corrects() ? carver.rows(width) : walk.y;  // a delta rule writes another
    float* const beta = carver.take(kTokens + kLanes);
    load_state(p.a.state, b, h, false, c0, n, width, walk.m);
    for (int64_t t0 = 0; t0 < p.T; t0 += kTokens) {
      const int64_t tokens = std::min(kTokens, p.T - t0);
      for (int64_t t = 0; t < tokens; ++t) {
        if (p.decays()) decay_row(b, h, t0 + t, 0, p.dk, dk, walk.decay.at(t));
        if (p.corrects()) row(p.a.beta, b, h, t0 + t, 0, 1, 1, 1.0f, beta + t);
        row(p.a.k, b, h, t0 + t, 0, p.dk, dk, 1.0f, walk.x.at(t));
        row(p.a.v, b, h, t0 + t, c0, n, width, 1.0f, v.at(t));
        for (int64_t g = 0; g < G; ++g) row(p.a.q, b, h * G + g, t0 + t, 0, p.dk, dk, 1.0f, walk.z.at(t, g));
      }
      if (p.corrects())
        GoDelta(walk, tokens, beta, v);
      else
        Go(walk, tokens, false);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t g = 0; g < G; ++g)
          store(walk.out.at(t, g), result.out, b, h * G + g, t0 + t, c0, n, static_cast<float>(p.scale));
    }
    store_state(walk.m, result.state, b, h, c0, n, width);
  }

  // ---- Backward, of values: columns [c0, c0 + n) of d_v and of the first state's gradient ----

  int64_t values_memory(int64_t width) const { return forward_memory(width); }

  // What a delta rule's tokens stored: e of these columns.
  void corrections(Corrections& found, int64_t b, int64_t h, int64_t c0, int64_t n, float* memory) const {
    const int64_t width = round_up(n, kLanes);
    Carver carver(memory);
    Walk walk{.m = carver.take(p.dk * width), .rows = p.dk, .width = width};
    walk.by = p.decays() ? Decay::row : Decay::none;
    walk.decay = carver.rows(dk);
    walk.x = carver.rows(dk);
    walk.y = walk.extra = carver.rows(width);
    walk.readers = 0;
    const TokenRows v = carver.rows(width);
    float* const beta = carver.take(kTokens + kLanes);
    load_state(p.a.state, b, h, false, c0, n, width, walk.m);
    for (int64_t t0 = 0; t0 < p.T; t0 += kTokens) {
      const int64_t tokens = std::min(kTokens, p.T - t0);
      for (int64_t t = 0; t < tokens; ++t) {
        if (p.decays()) decay_row(b, h, t0 + t, 0, p.dk, dk, walk.decay.at(t));
        row(p.a.beta, b, h, t0 + t, 0, 1, 1, 1.0f, beta + t);
        row(p.a.k, b, h, t0 + t, 0, p.dk, dk, 1.0f, walk.x.at(t));
        row(p.a.v, b, h, t0 + t, c0, n, width, 1.0f, v.at(t));
      }
      GoDelta(walk, tokens, beta, v);
      for (int64_t t = 0; t < tokens; ++t) std::copy_n(v.at(t), n, found_row(found.e, b, h, t0 + t) + c0);
    }
  }

  // Row t of one of Corrections.
  template <class Floats>
  auto* found_row(Floats& of, int64_t b, int64_t h, int64_t t) const {
    return of.data() + ((b * p.Hkv + h) * p.T + t) * p.dv;
  }

  // found: where a delta rule's d_u goes.
  void values(const LinearIncoming& in, const LinearGradients& out, Corrections& found, int64_t b, int64_t h,
              int64_t c0, int64_t n, float* memory) const {
    const int64_t width = round_up(n, kLanes);
    Carver carver(memory);
    Walk walk{.m = carver.take(p.dk * width), .rows = p.dk, .width = width};
    walk.by = p.decays() ? Decay::row : Decay::none;
    walk.decay = carver.rows(dk);  // of the token after: it is what lies between the two
    walk.writers = static_cast<int>(G);
    walk.x = carver.rows(dk, G);
    walk.y = carver.rows(width, G);
    walk.z = carver.rows(dk);
    walk.out = carver.rows(width);
    const TokenRows less = carver.rows(width);
    float* const beta = carver.take(kTokens + kLanes);
    load_state(in.d_state, b, h, false, c0, n, width, walk.m);
    for (int64_t t0 = (p.T - 1) / kTokens * kTokens; t0 >= 0 && p.T > 0; t0 -= kTokens) {
      const int64_t tokens = std::min(kTokens, p.T - t0);
      for (int64_t t = 0; t < tokens; ++t) {
        if (p.decays()) decay_row(b, h, t0 + t + 1, 0, p.dk, dk, walk.decay.at(t));
        for (int64_t g = 0; g < G; ++g) {
          row(p.a.q, b, h * G + g, t0 + t, 0, p.dk, dk, static_cast<float>(p.scale), walk.x.at(t, g));
          row(in.d_out, b, h * G + g, t0 + t, c0, n, width, 1.0f, walk.y.at(t, g));
        }
        row(p.a.k, b, h, t0 + t, 0, p.dk, dk, 1.0f, walk.z.at(t));
        if (p.corrects()) row(p.a.beta, b, h, t0 + t, 0, 1, 1, 1.0f, beta + t);
      }
      if (p.corrects())
        GoDeltaBack(walk, tokens, beta, less);
      else
        Go(walk, tokens, true);
      for (int64_t t = 0; t < tokens; ++t) {
        if (p.corrects()) std::copy_n(walk.out.at(t), n, found_row(found.d_u, b, h, t0 + t) + c0);
        if (out.d_v.data && p.corrects()) store(less.at(t), out.d_v, b, h, t0 + t, c0, n, -1.0f);
        if (out.d_v.data && !p.corrects()) store(walk.out.at(t), out.d_v, b, h, t0 + t, c0, n, 1.0f);
      }
    }
    if (!out.d_state.data) return;
    if (p.decays() && p.T > 0) {
      float* const first = walk.decay.at(0);
      decay_row(b, h, 0, 0, p.dk, dk, first);
      for (int64_t i = 0; i < p.dk; ++i)
        for (int64_t c = 0; c < width; ++c) walk.m[i * width + c] *= first[i];
    }
    store_state(walk.m, out.d_state, b, h, c0, n, width);
  }

  // ---- Backward, of keys: columns [i0, i0 + n) of d_q, d_k and d_decay ----

  // Tokens between two states that are kept.
  int64_t chunk() const {
    return round_up(static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(p.T)))), kTokens);
  }

  int64_t keys_memory(int64_t width, bool with_decay) const {
    const int64_t states = with_decay ? chunk() + (p.T + chunk() - 1) / chunk() : 0;
    const int64_t read = p.corrects() ? round_up(p.T * width, kLanes) : 0;
    return (2 + states) * (dv * width + kLanes) + read + (kTokens + 1) * ((2 + G) * dv + (7 + 2 * G) * width) +
           20 * kLanes;
  }

  // d_channels: where d_decay of each channel goes, [T, dk], if decay has one number for all of them.
  void keys(const LinearIncoming& in, const LinearGradients& out, const Corrections& found, int64_t b, int64_t h,
            int64_t i0, int64_t n, float* d_channels, float* memory) const {
    const int64_t width = round_up(n, kLanes), size = p.dv * width, every = chunk();
    const bool with_decay = out.d_decay.data != nullptr, backwards = with_decay || out.d_k.data;
    Carver carver(memory);
    Walk state{.m = carver.take(size), .rows = p.dv, .width = width};
    Walk gradient = state;
    gradient.m = carver.take(size);
    const TokenRows v = carver.rows(dv), d_out = carver.rows(dv, G), k = carver.rows(width), q = carver.rows(width, G);
    const TokenRows now = carver.rows(width), after = carver.rows(width);
    state.by = gradient.by = p.decays() ? Decay::column : Decay::none;
    state.decay = now;
    state.x = v;
    state.y = k;
    state.readers = out.d_q.data ? static_cast<int>(G) : 0;
    state.z = d_out;
    state.out = carver.rows(width, G);
    gradient.decay = after;
    gradient.writers = static_cast<int>(G);
    gradient.x = d_out;
    gradient.y = q;
    gradient.z = v;
    gradient.out = carver.rows(width);
    gradient.extra = carver.rows(width);
    float* const kept = with_decay ? carver.take((p.T + every - 1) / every * size) : nullptr;  // before each chunk
    float* const before = with_decay ? carver.take(every * size) : nullptr;  // before each token of one

    // A delta rule reads S' times the gradient of e before a token writes, and takes that gradient from D under the
    // key.
    Walk look = state, take = gradient;
    float* reads = nullptr;  // [T, width]
    if (p.corrects()) {
      const TokenRows d_e = carver.rows(dv);
      reads = carver.take(p.T * width);
      look.writers = 0;
      look.readers = 1;
      look.z = d_e;
      look.out = carver.rows(width);
      state.by = take.by = Decay::none;  // look has decayed it
      take.writers = 1;
      take.x = d_e;
      take.y = carver.rows(width);  // minus k
      take.readers = 0;
    }

    const auto read = [&](int64_t t0, int64_t tokens) {
      for (int64_t t = 0; t < tokens; ++t) {
        if (p.decays()) {
          decay_row(b, h, t0 + t, i0, n, width, now.at(t));
          decay_row(b, h, t0 + t + 1, i0, n, width, after.at(t));
        }
        row(p.a.k, b, h, t0 + t, i0, n, width, 1.0f, k.at(t));
        if (p.corrects()) {
          float beta;
          row(p.a.beta, b, h, t0 + t, 0, 1, 1, 1.0f, &beta);
          WidenRow(found_row(found.e, b, h, t0 + t), p.dv, dv, beta, v.at(t));  // u
          WidenRow(found_row(found.d_u, b, h, t0 + t), p.dv, dv, beta, look.z.at(t));
          row(p.a.k, b, h, t0 + t, i0, n, width, -1.0f, take.y.at(t));
        } else {
          row(p.a.v, b, h, t0 + t, 0, p.dv, dv, 1.0f, v.at(t));
        }
        for (int64_t g = 0; g < G; ++g) {
          row(in.d_out, b, h * G + g, t0 + t, 0, p.dv, dv, 1.0f, d_out.at(t, g));
          row(p.a.q, b, h * G + g, t0 + t, i0, n, width, static_cast<float>(p.scale), q.at(t, g));
        }
      }
    };

    if (out.d_q.data || with_decay || p.corrects()) {
      load_state(p.a.state, b, h, true, i0, n, width, state.m);
      for (int64_t t0 = 0; t0 < p.T; t0 += kTokens) {
        const int64_t tokens = std::min(kTokens, p.T - t0);
        if (with_decay && t0 % every == 0) std::copy(state.m, state.m + size, kept + t0 / every * size);
        read(t0, tokens);
        if (!p.corrects()) Go(state, tokens, false);
        for (int64_t t = 0; t < tokens && p.corrects(); ++t) {
          GoOne<Extra::none>(look, t);
          std::copy_n(look.out.at(t), width, reads + (t0 + t) * width);
          GoOne<Extra::none>(state, t);
        }
        for (int64_t t = 0; t < tokens && out.d_q.data; ++t)
          for (int64_t g = 0; g < G; ++g)
            store(state.out.at(t, g), out.d_q, b, h * G + g, t0 + t, i0, n, static_cast<float>(p.scale));
      }
    }
    if (!backwards) return;

    load_state(in.d_state, b, h, true, i0, n, width, gradient.m);
    for (int64_t c0 = (p.T - 1) / every * every; c0 >= 0 && p.T > 0; c0 -= every) {
      const int64_t c1 = std::min(c0 + every, p.T);
      if (with_decay) {  // the chunk's states once more
        std::copy(kept + c0 / every * size, kept + (c0 / every + 1) * size, before);
        for (int64_t t0 = c0; t0 + 1 < c1; t0 += kTokens) {
          const int64_t tokens = std::min(kTokens, c1 - 1 - t0);
          read(t0, tokens);
          for (int64_t t = 0; t < tokens; ++t)
            Advance(state, t, before + (t0 + t - c0) * size, before + (t0 + t + 1 - c0) * size);
        }
      }
      for (int64_t t0 = c0 + (c1 - c0 - 1) / kTokens * kTokens; t0 >= c0; t0 -= kTokens) {
        const int64_t tokens = std::min(kTokens, c1 - t0);
        read(t0, tokens);
        if (!with_decay && !p.corrects()) Go(gradient, tokens, true);
        for (int64_t t = tokens - 1; t >= 0 && (with_decay || p.corrects()); --t) {
          Walk& last = p.corrects() ? take : gradient;
          if (p.corrects()) GoOne<Extra::none>(gradient, t);
          if (!with_decay) {
            GoOne<Extra::none>(last, t);
            continue;
          }
          last.other = before + (t0 + t - c0) * size;
          GoOne<Extra::dots>(last, t);
          float* const d_decay = last.extra.at(t);
          for (int64_t i = 0; i < n; ++i) d_decay[i] *= now.at(t)[i];
          if (d_channels)
            std::copy(d_decay, d_decay + n, d_channels + (t0 + t) * p.dk + i0);
          else
            store(d_decay, out.d_decay, b, h, t0 + t, i0, n, 1.0f);
        }
        for (int64_t t = 0; t < tokens && out.d_k.data; ++t) {
          float* const d_k = gradient.out.at(t);
          for (int64_t i = 0; i < n && p.corrects(); ++i) d_k[i] -= reads[(t0 + t) * width + i];
          store(d_k, out.d_k, b, h, t0 + t, i0, n, 1.0f);
        }
      }
    }
  }

  // ---- All heads ----

  // As wide as keeps all workers busy.
  int64_t width_of(int64_t columns, int64_t pieces_wanted) const {
    int64_t width = kColumns;
    while (width > kLanes && p.B * p.Hkv * ((columns + width - 1) / width) < pieces_wanted) width /= 2;
    return width;
  }

  void run_forward(const LinearOutput& result) const {
    const int most = workers(p.a.executor);
    const int64_t width = width_of(p.dv, most), blocks = (p.dv + width - 1) / width;
    std::vector<Memory> memory(most);
    parallel(p.a.executor, most, p.B * p.Hkv * blocks, [&](int worker, int64_t piece) {
      const int64_t head = piece / blocks, c0 = piece % blocks * width;
      forward(result, head / p.Hkv, head % p.Hkv, c0, std::min(width, p.dv - c0),
              memory[worker].floats(forward_memory(width)));
    });
  }

  // d_beta = d_u . e, summed over heads if beta is shared by them.
  void store_d_beta(const Corrections& found, const Tensor& d_beta) const {
    const bool shared = d_beta.shape[1] == 1;
    parallel(p.a.executor, p.B * (shared ? 1 : p.Hkv), [&](int64_t piece) {
      const int64_t b = shared ? piece : piece / p.Hkv, first = shared ? 0 : piece % p.Hkv;
      for (int64_t t = 0; t < p.T; ++t) {
        double sum = 0;
        for (int64_t h = first; h < (shared ? p.Hkv : first + 1); ++h) {
          const float *e = found_row(found.e, b, h, t), *d_u = found_row(found.d_u, b, h, t);
          for (int64_t c = 0; c < p.dv; ++c) sum += double{d_u[c]} * double{e[c]};
        }
        const float rounded = static_cast<float>(sum);
        store(&rounded, d_beta, b, first, t, 0, 1, 1.0f);
      }
    });
  }

  // d_decay of a head is the sum of its channels'.
  void store_d_decay(const std::vector<float>& d_channels, const Tensor& d_decay) const {
    parallel(p.a.executor, p.B * p.Hkv, [&](int64_t head) {
      for (int64_t t = 0; t < p.T; ++t) {
        const float* each = d_channels.data() + (head * p.T + t) * p.dk;
        double sum = 0;
        for (int64_t i = 0; i < p.dk; ++i) sum += each[i];
        const float rounded = static_cast<float>(sum);
        store(&rounded, d_decay, head / p.Hkv, head % p.Hkv, t, 0, 1, 1.0f);
      }
    });
  }

  void run_backward(const LinearIncoming& in, const LinearGradients& out) const {
    const int most = workers(p.a.executor);
    const bool with_decay = out.d_decay.data != nullptr, per_head = with_decay && out.d_decay.shape[3] == 1;
    const bool of_keys = out.d_q.data || out.d_k.data || with_decay;
    // A delta rule's keys need what its values find out.
    const bool of_values = out.d_v.data || out.d_state.data || (p.corrects() && (of_keys || out.d_beta.data));
    const int64_t heads = p.B * p.Hkv, i_width = width_of(p.dk, most), c_width = width_of(p.dv, most);
    const int64_t i_blocks = of_keys ? (p.dk + i_width - 1) / i_width : 0;
    const int64_t c_blocks = of_values ? (p.dv + c_width - 1) / c_width : 0;
    const int64_t floats = std::max(keys_memory(i_width, with_decay), values_memory(c_width));
    std::vector<float> d_channels(per_head ? heads * p.T * p.dk : 0);
    Corrections found;
    if (p.corrects()) {
      found.e.resize(heads * p.T * p.dv);
      found.d_u.resize(heads * p.T * p.dv);
    }
    std::vector<Memory> memory(most);

    const auto pieces = [&](int64_t i_some, int64_t c_some) {
      const int64_t blocks = i_some + c_some;
      parallel(p.a.executor, most, heads * blocks, [&](int worker, int64_t piece) {
        const int64_t head = piece / blocks, block = piece % blocks, b = head / p.Hkv, h = head % p.Hkv;
        float* const mine = memory[worker].floats(floats);
        if (block < i_some) {
          const int64_t i0 = block * i_width;
          float* const channels = per_head ? d_channels.data() + head * p.T * p.dk : nullptr;
          keys(in, out, found, b, h, i0, std::min(i_width, p.dk - i0), channels, mine);
          return;
        }
        const int64_t c0 = (block - i_some) * c_width, n = std::min(c_width, p.dv - c0);
        if (p.corrects()) corrections(found, b, h, c0, n, mine);
        values(in, out, found, b, h, c0, n, mine);
      });
    };
    if (p.corrects()) {
      pieces(0, c_blocks);
      pieces(i_blocks, 0);
    } else {
      pieces(i_blocks, c_blocks);
    }
    if (per_head) store_d_decay(d_channels, out.d_decay);
    if (out.d_beta.data) store_d_beta(found, out.d_beta);
  }
};

template <class Function>
void WithType(const LinearProblem& p, Function&& f) {
  if (p.a.q.dtype == DType::f16)
    f(Linear<hwy::float16_t>{p});
  else if (p.a.q.dtype == DType::bf16)
    f(Linear<hwy::bfloat16_t>{p});
  else
    f(Linear<float>{p});
}

void LinearForward(const LinearProblem& p, const LinearOutput& result) {
  WithType(p, [&](const auto& linear) { linear.run_forward(result); });
}
void LinearBackward(const LinearProblem& p, const LinearIncoming& in, const LinearGradients& gradients) {
  WithType(p, [&](const auto& linear) { linear.run_backward(in, gradients); });
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace heed {
HWY_EXPORT(LinearForward);
HWY_EXPORT(LinearBackward);
void linear_forward_pass(const LinearProblem& p, const LinearOutput& result) {
  HWY_DYNAMIC_DISPATCH(LinearForward)(p, result);
}
void linear_backward_pass(const LinearProblem& p, const LinearIncoming& in, const LinearGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(LinearBackward)(p, in, gradients);
}
}  // namespace heed
#endif
