// The kernel of linear attention: a walk over tokens that write to a matrix and read from it. With M a matrix of rows
// and columns, a token does
//   M = M times its decay, of each row or of each column
//   M[r][c] += x[r] * y[c]                   its writers, in order
//   out[c] = sum over r of z[r] * M[r][c]    its readers
// Each sum runs over rows, in order and with FMA, and vectors run across columns. Per-target code.
#if defined(HEED_LINEAR_WALK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEED_LINEAR_WALK_INL_H_
#undef HEED_LINEAR_WALK_INL_H_
#else
#define HEED_LINEAR_WALK_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "softmax-inl.h"

#ifndef HEED_LINEAR_WALK_ONCE
#define HEED_LINEAR_WALK_ONCE
namespace heed {

inline constexpr int64_t kTokens = 32;   // whose rows are widened at a time
inline constexpr int64_t kColumns = 64;  // of the matrix of one piece of work: with 128 rows it fills a 32 KB cache

enum class Decay { none, row, column };

// Rows of floats, one or more for each token.
struct TokenRows {
  float* data = nullptr;
  int64_t token = 0, part = 0;
  float* at(int64_t t, int64_t p = 0) const { return data + t * token + p * part; }
};

// A walk over some tokens.
struct Walk {
  float* m;
  int64_t rows, width;  // width is a multiple of kLanes
  Decay by = Decay::none;
  TokenRows decay = {};
  int writers = 1;
  TokenRows x = {}, y = {};
  int readers = 1;
  TokenRows z = {}, out = {};
  const float* other = nullptr;  // Extra::dots: a matrix like m
  TokenRows extra = {};  // where what is extra goes: to this token's row, or what is looked ahead for to the next
};

// What a step does behind its readers, while it has the matrix in registers.
enum class Extra {
  none,
  dots,  // sums products with the walk's other matrix
  look,  // the next token's decay, then what its key reads: the first half of a delta rule
};

}  // namespace heed
#endif

HWY_BEFORE_NAMESPACE();
namespace heed {
namespace HWY_NAMESPACE {

// e^x. Within 2 ulp; 0 below 2^-125, infinity from 2^127.5 on.
HWY_INLINE VF Exp(F d, VF x) {
  const hn::RebindToSigned<F> di;
  const VF n = hn::Round(hn::Mul(x, hn::Set(d, kLog2e)));
  // ln 2 in two parts, the first so short that n times it is exact without FMA, too.
  const VF r = hn::NegMulAdd(n, hn::Set(d, 0x1.7f7d1cp-20f), hn::NegMulAdd(n, hn::Set(d, 0x1.62e4p-1f), x));
  const VF f = hn::Mul(r, hn::Set(d, kLog2e));
  const VF p = hn::MulAdd(Exp2Slope(d, f), f, hn::Set(d, 1.0f));
  const VF y = hn::BitCast(d, hn::Add(hn::BitCast(di, p), ExponentBits(d, n)));
  const VF small = hn::IfThenZeroElse(hn::Lt(n, hn::Set(d, -125.0f)), y);
  const VF all = hn::IfThenElse(hn::Gt(n, hn::Set(d, 127.0f)), hn::Inf(d), small);
  return hn::IfThenElse(hn::Eq(x, x), all, x);
}

// N tokens after each other, each with W writers from w on and R readers from r on, on V vectors of columns. With
// Extra::look, kBy is the next token's.
template <Decay kBy, int N, int W, int R, int V, Extra kExtra = Extra::none>
HWY_INLINE void Step(const Walk& k, const int64_t (&token)[N], int w, int r, int64_t column) {
  const F d;
  const float *decay[N], *x[N][W ? W : 1], *z[N][R ? R : 1];
  VF y[N][W ? W : 1][V], out[N][R ? R : 1][V], by_column[N][V], extra[V];
  static_assert(kExtra == Extra::none || N == 1);
  constexpr bool kLook = kExtra == Extra::look, kDots = kExtra == Extra::dots;
  const float *next_x = nullptr, *next_decay = nullptr, *other = nullptr;
  if constexpr (kDots) other = k.other + column;
  if constexpr (kLook) {
    next_x = k.x.at(token[0] + 1);
    next_decay = k.decay.at(token[0] + 1);
  }
  HEED_UNROLL
  for (int v = 0; v < V; ++v) extra[v] = hn::Zero(d);
  HEED_UNROLL
  for (int n = 0; n < N; ++n) {
    const int64_t t = token[n];
    if constexpr (kBy == Decay::row) decay[n] = k.decay.at(t);
    HEED_UNROLL
    for (int i = 0; i < W; ++i) x[n][i] = k.x.at(t, w + i);
    HEED_UNROLL
    for (int i = 0; i < R; ++i) z[n][i] = k.z.at(t, r + i);
    HEED_UNROLL
    for (int v = 0; v < V; ++v) {
      const int64_t c = column + v * kVector;
      if constexpr (kBy == Decay::column) by_column[n][v] = hn::LoadU(d, k.decay.at(t) + c);
      HEED_UNROLL
      for (int i = 0; i < W; ++i) y[n][i][v] = hn::LoadU(d, k.y.at(t, w + i) + c);
      HEED_UNROLL
      for (int i = 0; i < R; ++i) out[n][i][v] = hn::Zero(d);
    }
  }
  float* HWY_RESTRICT m = k.m + column;
  for (int64_t row = 0; row < k.rows; ++row, m += k.width) {
    VF s[V];
    HEED_UNROLL
    for (int v = 0; v < V; ++v) s[v] = hn::LoadU(d, m + v * kVector);
    HEED_UNROLL
    for (int n = 0; n < N; ++n) {
      HEED_UNROLL
      for (int v = 0; v < V; ++v) {
        if constexpr (kBy == Decay::row && !kLook) s[v] = hn::Mul(s[v], hn::Set(d, decay[n][row]));
        if constexpr (kBy == Decay::column) s[v] = hn::Mul(s[v], by_column[n][v]);
      }
      HEED_UNROLL
      for (int i = 0; i < W; ++i) {
        const VF a = hn::Set(d, x[n][i][row]);
        HEED_UNROLL
        for (int v = 0; v < V; ++v) s[v] = hn::MulAdd(a, y[n][i][v], s[v]);
      }
      HEED_UNROLL
      for (int i = 0; i < R; ++i) {
        const VF a = hn::Set(d, z[n][i][row]);
        HEED_UNROLL
        for (int v = 0; v < V; ++v) out[n][i][v] = hn::MulAdd(a, s[v], out[n][i][v]);
      }
    }
    HEED_UNROLL
    for (int v = 0; v < V; ++v) {
      if constexpr (kDots) extra[v] = hn::MulAdd(s[v], hn::LoadU(d, other + row * k.width + v * kVector), extra[v]);
      if constexpr (kLook && kBy == Decay::row) s[v] = hn::Mul(s[v], hn::Set(d, next_decay[row]));
      if constexpr (kLook) extra[v] = hn::MulAdd(hn::Set(d, next_x[row]), s[v], extra[v]);
    }
    if constexpr (W > 0 || kBy != Decay::none) {
      HEED_UNROLL
      for (int v = 0; v < V; ++v) hn::StoreU(s[v], d, m + v * kVector);
    }
  }
  HEED_UNROLL
  for (int n = 0; n < N; ++n) {
    HEED_UNROLL
    for (int i = 0; i < R; ++i) {
      HEED_UNROLL
      for (int v = 0; v < V; ++v) hn::StoreU(out[n][i][v], d, k.out.at(token[n], r + i) + column + v * kVector);
    }
  }
  if constexpr (kExtra != Extra::none) {
    float* to = k.extra.at(token[0] + (kLook ? 1 : 0)) + column;
    HEED_UNROLL
    for (int v = 0; v < V; ++v) hn::StoreU(extra[v], d, to + v * kVector);
  }
}

// One token with any number of writers and readers, two at a time; what is extra comes with the last.
template <Decay kBy, int V, Extra kExtra = Extra::none>
inline void Token(const Walk& k, int64_t t, int64_t column) {
  const int64_t token[1] = {t};
  const auto step = [&]<Decay kNow, Extra kLast>(int w, int nw, int r, int nr) HWY_ATTR {
    switch (3 * nw + nr) {
      case 1:
        return Step<kNow, 1, 0, 1, V, kLast>(k, token, w, r, column);
      case 2:
        return Step<kNow, 1, 0, 2, V, kLast>(k, token, w, r, column);
      case 3:
        return Step<kNow, 1, 1, 0, V, kLast>(k, token, w, r, column);
      case 4:
        return Step<kNow, 1, 1, 1, V, kLast>(k, token, w, r, column);
      case 5:
        return Step<kNow, 1, 1, 2, V, kLast>(k, token, w, r, column);
      case 6:
        return Step<kNow, 1, 2, 0, V, kLast>(k, token, w, r, column);
      case 7:
        return Step<kNow, 1, 2, 1, V, kLast>(k, token, w, r, column);
      default:
        return Step<kNow, 1, 2, 2, V, kLast>(k, token, w, r, column);
    }
  };
  constexpr bool kLook = kExtra == Extra::look;
  constexpr Decay kFirst = kLook ? Decay::none : kBy, kLater = kLook ? kBy : Decay::none;
  int w = 0, r = 0;
  while (w < k.writers || r < k.readers) {
    const int nw = std::min(2, k.writers - w), nr = w + nw == k.writers ? std::min(2, k.readers - r) : 0;
    const bool first = w == 0 && r == 0, last = w + nw == k.writers && r + nr == k.readers;
    if (first && last)
      step.template operator()<kBy, kExtra>(w, nw, r, nr);
    else if (last)
      step.template operator()<kLater, kExtra>(w, nw, r, nr);
    else if (first)
      step.template operator()<kFirst, Extra::none>(w, nw, r, nr);
    else
      step.template operator()<Decay::none, Extra::none>(w, nw, r, nr);
    w += nw;
    r += nr;
  }
}

template <Decay kBy, int V>
HWY_NOINLINE void Strip(const Walk& k, int64_t tokens, bool back, int64_t column) {
  int64_t t = 0;
  const auto nth = [&](int64_t n) { return back ? tokens - 1 - n : n; };
  // Two tokens for each load and store of the matrix.
  if (k.writers == 1 && k.readers == 1)
    for (; t + 2 <= tokens; t += 2) {
      const int64_t two[2] = {nth(t), nth(t + 1)};
      Step<kBy, 2, 1, 1, V>(k, two, 0, 0, column);
    }
  for (; t < tokens; ++t) Token<kBy, V>(k, nth(t), column);
}

template <Decay kBy, int V>
HWY_NOINLINE void DeltaStrip(const Walk& k, int64_t tokens, const float* beta, const TokenRows& v, int64_t column) {
  const F d;
  Walk first = k;
  first.writers = 0;
  first.readers = 1;
  first.z = k.x;
  first.out = k.y;
  const int64_t token[1] = {0};
  Step<kBy, 1, 0, 1, V>(first, token, 0, 0, column);
  for (int64_t t = 0; t < tokens; ++t) {
    float* const u = k.y.at(t);
    for (int64_t c = column; c < column + V * kVector; c += kVector) {
      const VF error = hn::Sub(hn::LoadU(d, v.at(t) + c), hn::LoadU(d, u + c));
      hn::StoreU(error, d, v.at(t) + c);
      hn::StoreU(hn::Mul(hn::Set(d, beta[t]), error), d, u + c);
    }
    if (t + 1 < tokens)
      Token<kBy, V, Extra::look>(k, t, column);
    else
      Token<Decay::none, V>(k, t, column);
  }
}

// Calls f.operator()<V>(column) for strips of V vectors that cover the width.
template <class Function>
inline void Strips(int64_t width, Function&& f) {
  for (int64_t column = 0; column < width;) {
    if (width - column >= kPanel) {
      f.template operator()<kWide>(column);
      column += kPanel;
    } else {
      f.template operator()<1>(column);
      column += kVector;
    }
  }
}

// Tokens [0, tokens) of the walk's rows; from the last to the first if `back`.
inline void Go(const Walk& k, int64_t tokens, bool back) {
  Strips(k.width, [&]<int V>(int64_t column) HWY_ATTR {
    switch (k.by) {
      case Decay::none:
        return Strip<Decay::none, V>(k, tokens, back, column);
      case Decay::row:
        return Strip<Decay::row, V>(k, tokens, back, column);
      case Decay::column:
        return Strip<Decay::column, V>(k, tokens, back, column);
    }
  });
}

// The delta rules' way: what is written is beta e, e = v - M' k, read from the decayed matrix. v: rows of the width,
// which become e. A token reads what the next one needs while it has the matrix in registers.
inline void GoDelta(const Walk& k, int64_t tokens, const float* beta, const TokenRows& v) {
  Strips(k.width, [&]<int V>(int64_t column) HWY_ATTR {
    if (k.by == Decay::row)
      DeltaStrip<Decay::row, V>(k, tokens, beta, v, column);
    else
      DeltaStrip<Decay::none, V>(k, tokens, beta, v, column);
  });
}

// From the last token to the first: what k.out has read, u's gradient, times beta is taken from the matrix again, under
// the key k.z. less: minus that.
inline void GoDeltaBack(const Walk& k, int64_t tokens, const float* beta, const TokenRows& less) {
  const F d;
  Walk take = k;
  take.writers = 1;
  take.x = k.z;
  take.y = less;
  take.readers = 0;
  Strips(k.width, [&]<int V>(int64_t column) HWY_ATTR {
    for (int64_t t = tokens - 1; t >= 0; --t) {
      if (k.by == Decay::row)
        Token<Decay::row, V>(k, t, column);
      else
        Token<Decay::none, V>(k, t, column);
      for (int64_t c = column; c < column + V * kVector; c += kVector)
        hn::StoreU(hn::Mul(hn::Set(d, -beta[t]), hn::LoadU(d, k.out.at(t) + c)), d, less.at(t) + c);
      Token<Decay::none, V>(take, t, column);
    }
  });
}

// Token t alone; with kExtra == dots also the sums of products with `other`, in `extra`.
template <Extra kExtra>
inline void GoOne(const Walk& k, int64_t t) {
  Strips(k.width, [&]<int V>(int64_t column) HWY_ATTR {
    if (k.by == Decay::column)
      Token<Decay::column, V, kExtra>(k, t, column);
    else
      Token<Decay::none, V, kExtra>(k, t, column);
  });
}

// Token t of a walk with one writer and decays by column, from one matrix to another.
inline void Advance(const Walk& k, int64_t t, const float* HWY_RESTRICT from, float* HWY_RESTRICT to) {
  const F d;
  const float *x = k.x.at(t), *y = k.y.at(t), *decay = k.decay.at(t);
  for (int64_t row = 0; row < k.rows; ++row, from += k.width, to += k.width) {
    const VF a = hn::Set(d, x[row]);
    for (int64_t c = 0; c < k.width; c += kVector) {
      const VF kept = hn::Mul(hn::LoadU(d, from + c), hn::LoadU(d, decay + c));
      hn::StoreU(hn::MulAdd(a, hn::LoadU(d, y + c), kept), d, to + c);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace heed
HWY_AFTER_NAMESPACE();
#endif  // toggle
