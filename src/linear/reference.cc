// Linear attention in plain loops and double, the truth for the tests of pass.cc. Read this first.
#include "reference.h"

#include <cmath>
#include <vector>

#include "linear.h"

namespace heed::reference {
namespace {

using State = std::vector<double>;  // [dk, dv]

// exp(g) of channel i; 1 without a gate.
double kept(const LinearProblem& p, int64_t b, int64_t h, int64_t t, int64_t i) {
  return p.decays() ? std::exp(at(p.a.decay, b, h, t, i)) : 1;  // at() repeats an axis of 1
}

State first_state(const LinearProblem& p, const ConstTensor& given, int64_t b, int64_t h) {
  State s(p.dk * p.dv, 0.0);
  for (int64_t i = 0; i < p.dk && given.data; ++i)
    for (int64_t c = 0; c < p.dv; ++c) s[i * p.dv + c] = at(given, b, h, i, c);
  return s;
}

void store_state(const LinearProblem& p, const Tensor& to, int64_t b, int64_t h, const State& s) {
  for (int64_t i = 0; i < p.dk && to.data; ++i)
    for (int64_t c = 0; c < p.dv; ++c) put(to, b, h, i, c, s[i * p.dv + c]);
}

// What a token does to the state: with P = exp(g) S, S becomes P + k u', where u is v, or, for a delta rule, beta e
// with e = v - P' k.
struct Token {
  State decayed;             // P
  std::vector<double> e, u;  // [dv]
};

// Takes the state from before token t to behind it.
Token update(const LinearProblem& p, int64_t b, int64_t h, int64_t t, State& s) {
  for (int64_t i = 0; i < p.dk; ++i)
    for (int64_t c = 0; c < p.dv; ++c) s[i * p.dv + c] *= kept(p, b, h, t, i);
  Token token{s, std::vector<double>(p.dv), std::vector<double>(p.dv)};
  for (int64_t c = 0; c < p.dv; ++c) {
    double e = at(p.a.v, b, h, t, c);
    for (int64_t i = 0; i < p.dk && p.corrects(); ++i) e -= s[i * p.dv + c] * at(p.a.k, b, h, t, i);
    token.e[c] = e;
    token.u[c] = p.corrects() ? at(p.a.beta, b, h, t, 0) * e : e;
  }
  for (int64_t i = 0; i < p.dk; ++i)
    for (int64_t c = 0; c < p.dv; ++c) s[i * p.dv + c] += at(p.a.k, b, h, t, i) * token.u[c];
  return token;
}

}  // namespace

void forward(const LinearProblem& p, const LinearOutput& result) {
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hkv; ++h) {
      State s = first_state(p, p.a.state, b, h);
      for (int64_t t = 0; t < p.T; ++t) {
        update(p, b, h, t, s);
        for (int64_t hq = h * p.group; hq < (h + 1) * p.group; ++hq)
          for (int64_t c = 0; c < p.dv; ++c) {
            double o = 0;
            for (int64_t i = 0; i < p.dk; ++i) o += at(p.a.q, b, hq, t, i) * s[i * p.dv + c];
            put(result.out, b, hq, t, c, p.scale * o);
          }
      }
      store_state(p, result.state, b, h, s);
    }
}

void backward(const LinearProblem& p, const LinearIncoming& in, const LinearGradients& g) {
  std::vector<double> d_beta(p.B * p.T, 0.0);  // summed over heads if they share beta
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hkv; ++h) {
      std::vector<State> states = {first_state(p, p.a.state, b, h)};  // [t]: before token t
      std::vector<Token> tokens;
      for (int64_t t = 0; t < p.T; ++t) {
        states.push_back(states.back());
        tokens.push_back(update(p, b, h, t, states.back()));
      }
      // d: the gradient of the state after token t. It arrives from later tokens, and this token's reading adds to it
      // (o = scale S' q). What was written, k u', then gives the gradients of k and u, and u those of beta, v and,
      // through e, of P and k once more. P's is passed on through the decay.
      State d = first_state(p, in.d_state, b, h);
      for (int64_t t = p.T - 1; t >= 0; --t) {
        const State& after = states[t + 1];
        const Token& token = tokens[t];
        for (int64_t hq = h * p.group; hq < (h + 1) * p.group; ++hq)
          for (int64_t i = 0; i < p.dk; ++i) {
            double d_q = 0;
            for (int64_t c = 0; c < p.dv; ++c) {
              const double d_o = p.scale * at(in.d_out, b, hq, t, c);
              d_q += d_o * after[i * p.dv + c];
              d[i * p.dv + c] += d_o * at(p.a.q, b, hq, t, i);
            }
            if (g.d_q.data) put(g.d_q, b, hq, t, i, d_q);
          }
        std::vector<double> d_e(p.dv);
        for (int64_t c = 0; c < p.dv; ++c) {
          double d_u = 0;
          for (int64_t i = 0; i < p.dk; ++i) d_u += at(p.a.k, b, h, t, i) * d[i * p.dv + c];
          d_e[c] = p.corrects() ? at(p.a.beta, b, h, t, 0) * d_u : d_u;
          d_beta[b * p.T + t] += d_u * token.e[c];
          if (g.d_v.data) put(g.d_v, b, h, t, c, d_e[c]);
        }
        if (g.d_beta.data) {
          put(g.d_beta, b, h, t, 0, d_beta[b * p.T + t]);
          if (g.d_beta.shape[1] != 1) d_beta[b * p.T + t] = 0;  // the next head has its own
        }
        double d_head = 0;
        for (int64_t i = 0; i < p.dk; ++i) {
          double d_k = 0, d_decay = 0;
          for (int64_t c = 0; c < p.dv; ++c) {
            double& d_s = d[i * p.dv + c];
            d_k += d_s * token.u[c];
            if (p.corrects()) {
              d_k -= token.decayed[i * p.dv + c] * d_e[c];
              d_s -= at(p.a.k, b, h, t, i) * d_e[c];
            }
            d_decay += d_s * token.decayed[i * p.dv + c];
            d_s *= kept(p, b, h, t, i);
          }
          d_head += d_decay;
          if (g.d_k.data) put(g.d_k, b, h, t, i, d_k);
          if (g.d_decay.data) put(g.d_decay, b, h, t, i, g.d_decay.shape[3] == 1 ? d_head : d_decay);
        }
      }
      store_state(p, g.d_state, b, h, d);
    }
}

}  // namespace heed::reference
