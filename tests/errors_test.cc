// Every argument error of the public API: one table, each entry run, its sentence held against docs/errors.md, which
// --page=FILE writes. An error says what is wrong in one sentence, and nothing has been written.
#include <gtest/gtest.h>
#include <heed/attention.h>
#include <heed/cache.h>
#include <heed/linear.h>
#include <heed/norm.h>
#include <heed/probe.h>
#include <heed/rotary.h>

#include <cmath>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "written_page.h"

namespace heed {
namespace {

// A problem that fits, in f32, for each entry to break: B 2, Hq 4, Hkv 2, L 5, S 6, D 8, Dv 3.
struct World {
  std::vector<float> q, k, v, w, bias, heads, out, lse, d_out, d_q, d_k, d_v, d_bias, state, scores;
  std::vector<double> f64;
  std::vector<int8_t> bytes;
  std::vector<int32_t> table{0, 1};
  Attention a;
  Output result;
  Incoming in;
  Gradients g;
  SecondGradients second;

  World()
      : q(320, 1),
        k(192, 1),
        v(72, 1),
        w(32, 1),
        bias(120, 1),
        heads(4, 1),
        out(120, 42),
        lse(40, 42),
        d_out(120, 1),
        d_q(320, 42),
        d_k(192, 42),
        d_v(72, 42),
        d_bias(120, 42),
        state(512, 42),
        scores(240, 42),
        f64(512, 42),
        bytes(512, 1) {
    a = {.q = tensor(cq(), {2, 4, 5, 8}), .k = tensor(c(k), {2, 2, 6, 8}), .v = tensor(c(v), {2, 2, 6, 3})};
    result = {tensor(out.data(), {2, 4, 5, 3}), tensor(lse.data(), {2, 4, 5, 1})};
    in = {tensor(c(d_out), {2, 4, 5, 3}), tensor(c(lse), {2, 4, 5, 1}), tensor(c(d_out), {2, 4, 5, 3})};
    g = {.d_q = tensor(d_q.data(), {2, 4, 5, 8})};
  }
  static const float* c(const std::vector<float>& x) { return x.data(); }
  const float* cq() const { return q.data(); }
  // Nothing that is written has been.
  bool untouched() const {
    const auto all = [](const auto& x) {
      for (const auto y : x)
        if (y != 42) return false;
      return true;
    };
    return all(out) && all(lse) && all(d_q) && all(d_k) && all(d_v) && all(d_bias) && all(state) && all(scores) &&
           all(f64);
  }
  // Pages of 16 keys, one for each sequence.
  void in_pages() {
    k.resize(2 * 2 * 16 * 8, 1), v.resize(2 * 2 * 16 * 3, 1);
    a.k = tensor(c(k), {2, 2, 16, 8});
    a.v = tensor(c(v), {2, 2, 16, 3});
    a.pages = {table.data(), 1, 1, {6, 6}, {}, {}};
  }
};

struct Entry {
  const char* call;
  const char* what;  // is wrong
  std::function<void(World&)> run;
};
struct Group {
  const char* title;
  std::vector<Entry> entries;
};

void run_forward(World& x) { forward(x.a, x.result); }
void run_backward(World& x) { backward(x.a, x.in, x.g); }

// An entry that breaks the problem and calls forward, or backward.
Entry bad(const char* what, std::function<void(World&)> breaks) {
  return {"forward", what, [breaks](World& x) { breaks(x), run_forward(x); }};
}
Entry bad_backward(const char* what, std::function<void(World&)> breaks) {
  return {"backward", what, [breaks](World& x) { breaks(x), run_backward(x); }};
}
Entry call(const char* name, const char* what, std::function<void(World&)> run) { return {name, what, std::move(run)}; }

const std::vector<Group>& table() {
  static const std::vector<Group> all = {
      {"Tensors",
       {bad("q is not given", [](World& x) { x.a.q = {}; }),
        bad("v is not given", [](World& x) { x.a.v = {}; }),
        bad("out is not given", [](World& x) { x.result.out = {}; }),
        bad("a negative size", [](World& x) { x.a.q.shape[2] = -5; }),
        bad("more elements than memory has", [](World& x) { x.a.q.shape[2] = x.a.k.shape[2] = int64_t{1} << 58; }),
        bad("no heads", [](World& x) { x.a.q.shape[1] = 0; }),
        bad("heads that do not divide", [](World& x) { x.a.k.shape[1] = x.a.v.shape[1] = 3; }),
        bad("another batch", [](World& x) { x.a.k.shape[0] = 1; }),
        bad("another head size", [](World& x) { x.a.k.shape[3] = 7; }),
        bad("values of another length", [](World& x) { x.a.v.shape[2] = 5; }),
        bad("an out of another shape", [](World& x) { x.result.out.shape[3] = 2; }),
        bad("an lse of another shape", [](World& x) { x.result.lse.shape[2] = 4; }),
        bad("a last dimension that is not contiguous", [](World& x) { x.a.q.stride[3] = 2; }),
        bad("an unknown dtype", [](World& x) { x.a.q.dtype = static_cast<DType>(9); }),
        bad("dtypes that differ", [](World& x) { x.a.k.dtype = DType::f16; }),
        bad("i8 that is not in pages", [](World& x) { x.a.q.dtype = DType::i8; }),
        bad("an lse in 16 bits",
            [](World& x) {
              x.a.q.dtype = x.a.k.dtype = x.a.v.dtype = x.result.out.dtype = x.result.lse.dtype = DType::f16;
            }),
        bad("rows that are written on top of each other", [](World& x) { x.result.out.stride[1] = 0; }),
        bad("an out that lies on q", [](World& x) { x.result.out.data = x.q.data(); }),
        bad("an out that overlaps v",
            [](World& x) {
              x.a.v = tensor(World::c(x.out) + 3, {2, 4, 5, 3});
              x.a.k = tensor(World::c(x.q), {2, 4, 5, 8});
            })}},
      {"Scores and weights",
       {bad("an unknown score", [](World& x) { x.a.score = static_cast<Score>(7); }),
        bad("an unknown way to weigh", [](World& x) { x.a.weigh = static_cast<Weigh>(7); }),
        bad("additive scores without w", [](World& x) { x.a.score = Score::additive; }),
        bad("w of another size",
            [](World& x) {
              x.a.score = Score::additive, x.a.w = tensor(World::c(x.w), {1, 1, 1, 7});
            }),
        bad("w beside dot scores",
            [](World& x) {
              x.a.w = tensor(World::c(x.w), {1, 1, 1, 8});
            }),
        bad("a scale that is NaN", [](World& x) { x.a.scale = NAN; }),
        bad("a negative softcap", [](World& x) { x.a.softcap = -1; }),
        bad("a bias that does not broadcast",
            [](World& x) {
              x.a.bias = tensor(World::c(x.bias), {1, 1, 4, 6});
            }),
        bad("slopes for other heads",
            [](World& x) {
              x.a.alibi = tensor(World::c(x.heads), {1, 3, 1, 1});
            }),
        bad("sinks for other heads",
            [](World& x) {
              x.a.sinks = tensor(World::c(x.heads), {1, 3, 1, 1});
            }),
        bad("sinks beside sigmoid weights",
            [](World& x) {
              x.a.weigh = Weigh::sigmoid, x.a.sinks = tensor(World::c(x.heads), {1, 1, 1, 1});
            }),
        bad("an lse of sigmoid weights", [](World& x) { x.a.weigh = Weigh::sigmoid; }),
        bad("a dropout of 1", [](World& x) { x.a.dropout = 1; }),
        bad("a dropout that is NaN", [](World& x) { x.a.dropout = NAN; }),
        call("t5_bucket", "too few buckets", [](World&) { t5_bucket(3, true, 3); }),
        call("t5_bucket", "a distance below the exact ones", [](World&) { t5_bucket(3, false, 32, 9); })}},
      {"Masks",
       {call("window", "a side below -1", [](World&) { window(-2, 0); }),
        call("lengths", "a negative length",
             [](World&) {
               lengths({3, -1});
             }),
        bad("lengths for another batch",
            [](World& x) {
              x.a.mask = lengths({1, 2, 3});
            }),
        call("documents", "a negative length",
             [](World&) {
               documents({{3, -1}});
             }),
        bad("documents longer than the keys",
            [](World& x) {
              x.a.mask = documents({{3, 4}});
            }),
        bad("documents for another batch",
            [](World& x) {
              x.a.mask = documents({{3}, {3}, {3}});
            }),
        call("prefix_lm", "a negative prefix", [](World&) { prefix_lm({-1}); }),
        bad("prefixes for another batch",
            [](World& x) {
              x.a.mask = prefix_lm({1, 2, 3});
            }),
        call("ragged", "offsets that go back",
             [](World&) {
               ragged({0, 3, 2}, {0, 1, 2});
             }),
        call("ragged", "offsets that do not begin with 0",
             [](World&) {
               ragged({1, 3}, {0, 1});
             }),
        call("ragged", "different numbers of sequences",
             [](World&) {
               ragged({0, 3}, {0, 1, 2});
             }),
        call("ragged", "a side below -1",
             [](World&) {
               ragged({0, 3}, {0, 1}, -2);
             }),
        bad("ragged sequences longer than the tensor",
            [](World& x) {
              x.a.mask = ragged({0, 9}, {0, 6});
            }),
        call("dilated", "a step of 0", [](World&) { dilated(3, 0); }),
        call("strided", "a stride of 0", [](World&) { strided(3, 0); }),
        call("fixed", "a summary larger than a block", [](World&) { fixed(4, 5); }),
        call("global_tokens", "a negative position",
             [](World&) {
               global_tokens({3, -1});
             }),
        call("neighbourhood", "four axes",
             [](World&) {
               neighbourhood({2, 2, 2, 2}, {1, 1, 1, 1});
             }),
        call("neighbourhood", "an even kernel", [](World&) { neighbourhood({5}, {2}); }),
        call("neighbourhood", "a kernel larger than its axis", [](World&) { neighbourhood({5}, {7}); }),
        bad("a neighbourhood of another size",
            [](World& x) {
              x.a.mask = neighbourhood({3, 3}, {1, 1});
            }),
        call("block_sparse", "no table", [](World&) { block_sparse(std::vector<BlockTable>{}); }),
        call("block_sparse", "blocks of nothing",
             [](World&) {
               block_sparse(BlockTable{0, 4, {0}, {}});
             }),
        call("block_sparse", "key blocks that do not ascend",
             [](World&) {
               block_sparse(BlockTable{4, 4, {0, 2}, {3, 1}});
             }),
        call("block_sparse", "starts that go back",
             [](World&) {
               block_sparse(BlockTable{4, 4, {0, 2, 1}, {0}});
             }),
        call("block_sparse", "starts that end elsewhere",
             [](World&) {
               block_sparse(BlockTable{4, 4, {0, 2}, {0}});
             }),
        bad("a table with too few rows",
            [](World& x) {
              x.a.mask = block_sparse(BlockTable{4, 4, {0, 1}, {0}});
            }),
        bad("a key block behind the keys",
            [](World& x) {
              x.a.mask = block_sparse(BlockTable{5, 4, {0, 1}, {2}});
            }),
        bad("tables for other heads",
            [](World& x) {
              x.a.mask = block_sparse({BlockTable{5, 6, {0, 0}, {}}, BlockTable{5, 6, {0, 0}, {}}});
            }),
        call("boolean", "no data",
             [](World&) {
               boolean(nullptr, {1, 1, 5, 6});
             }),
        call("boolean", "a negative size",
             [](World&) {
               boolean(nullptr, {1, 1, -5, 6});
             }),
        bad("a bool tensor that does not broadcast",
            [](World& x) {
              static const bool visible[20] = {};
              x.a.mask = boolean(visible, {1, 1, 4, 5});
            }),
        call("where_rows", "no function", [](World&) { where_rows(nullptr); })}},
      {"Gradients",
       {bad_backward("no d_out", [](World& x) { x.in.d_out = {}; }),
        bad_backward("an lse of another shape", [](World& x) { x.in.lse.shape[1] = 2; }),
        bad_backward("a d_lse beside sigmoid weights",
                     [](World& x) { x.a.weigh = Weigh::sigmoid, x.in.d_lse = x.in.lse; }),
        bad_backward("a gradient of another shape", [](World& x) { x.g.d_q.shape[3] = 7; }),
        bad_backward("the gradient of what is not there",
                     [](World& x) {
                       x.g.d_bias = tensor(x.d_bias.data(), {1, 4, 5, 6});
                     }),
        bad_backward("a gradient in another dtype",
                     [](World& x) {
                       x.g.d_q = tensor(x.f64.data(), {2, 4, 5, 8});
                     }),
        bad_backward("a gradient that lies on its input", [](World& x) { x.g.d_q.data = x.q.data(); }),
        bad_backward("gradients that lie on each other",
                     [](World& x) {
                       x.a.k = x.a.q, x.a.v = x.a.q;
                       x.in.out = x.in.d_out = tensor(World::c(x.q), {2, 4, 5, 8});
                       x.g.d_k = x.g.d_q;
                     }),
        bad_backward("a score_mod without a slope",
                     [](World& x) {
                       static const auto mod = score_mod([](auto s, int64_t, int64_t, int64_t, int64_t) { return s; });
                       x.a.score_mod = &mod;
                     }),
        bad_backward("keys in pages", [](World& x) { x.in_pages(); }),
        call("double_backward", "additive scores",
             [](World& x) {
               x.a.score = Score::additive;
               double_backward(x.a, x.in, {}, x.second);
             }),
        call("double_backward", "sigmoid weights",
             [](World& x) {
               x.a.weigh = Weigh::sigmoid;
               double_backward(x.a, x.in, {}, x.second);
             }),
        call("double_backward", "a tangent of what is not there",
             [](World& x) {
               Tangents dd;
               dd.sinks = tensor(World::c(x.heads), {1, 4, 1, 1});
               double_backward(x.a, x.in, dd, x.second);
             }),
        call("probe", "sigmoid weights",
             [](World& x) {
               x.a.weigh = Weigh::sigmoid;
               probe(x.a, x.in.lse, {});
             }),
        call("probe", "a mass of another shape",
             [](World& x) {
               probe(x.a, x.in.lse, {.mass = tensor(x.d_q.data(), {2, 4, 1, 5})});
             }),
        call("probe", "a row that is not there",
             [](World& x) {
               Probes wanted;
               wanted.rows = {{0, 4, 0}};
               wanted.weights = tensor(x.d_q.data(), {1, 1, 1, 6});
               probe(x.a, x.in.lse, wanted);
             }),
        call("jvp", "a score_mod",
             [](World& x) {
               static const auto mod = score_mod([](auto s, int64_t, int64_t, int64_t, int64_t) { return s; });
               x.a.score_mod = &mod;
               jvp(x.a, x.in.lse, {}, x.result);
             }),
        call("jvp", "a tangent of another shape",
             [](World& x) {
               jvp(x.a, x.in.lse, {.q = tensor(World::c(x.q), {2, 4, 4, 8})}, x.result);
             })}},
      {"Pages and caches",
       {bad("a sequence without its number of keys", [](World& x) { x.in_pages(), x.a.pages.keys = {6}; }),
        bad("a negative number of keys",
            [](World& x) {
              x.in_pages(), x.a.pages.keys = {6, -1};
            }),
        bad("more keys than the table has pages for",
            [](World& x) {
              x.in_pages(), x.a.pages.keys = {6, 17};
            }),
        bad("a page that is not in the pool", [](World& x) { x.in_pages(), x.table[1] = 2; }),
        bad("pages of bytes without scales", [](World& x) { x.in_pages(), x.a.k.dtype = x.a.v.dtype = DType::i8; }),
        bad("scales of pages that are not bytes",
            [](World& x) {
              x.in_pages(), x.a.pages.k_scale = tensor(World::c(x.k), {2, 2, 16, 1});
            }),
        bad("pages of two dtypes", [](World& x) { x.in_pages(), x.a.v.dtype = DType::bf16; }),
        call("Cache", "no head size", [](World&) { Cache cache({.batch = 1, .kv_heads = 1}); }),
        call("Cache", "pages that are not of 16 keys", [](World&) { Cache cache({.head_size = 8, .page_keys = 20}); }),
        call("Cache", "a negative window", [](World&) { Cache cache({.head_size = 8, .window = -1}); }),
        call("Cache::append", "keys of another head size",
             [](World& x) {
               Cache cache({.batch = 2, .kv_heads = 2, .head_size = 7, .value_size = 3});
               cache.append(x.a.k, x.a.v);
             }),
        call("Cache::append", "a sequence that is not there",
             [](World& x) {
               Cache cache({.batch = 2, .kv_heads = 2, .head_size = 8, .value_size = 3});
               cache.append(2, x.a.k, x.a.v);
             }),
        call("Cache::truncate", "more keys than there are", [](World&) { Cache({.head_size = 8}).truncate(0, 1); }),
        call("Cache::select", "another number of sequences",
             [](World&) {
               Cache({.head_size = 8}).select({0, 0});
             }),
        call("merge", "a part of another shape",
             [](World& x) {
               merge({{tensor(World::c(x.d_out), {2, 4, 4, 3}), x.in.lse}}, x.result);
             })}},
      {"The steps, and what models do around them",
       {call("score", "an output of another shape",
             [](World& x) {
               score(x.a, tensor(x.scores.data(), {2, 4, 5, 5}));
             }),
        call("weigh", "an output of another shape",
             [](World& x) {
               weigh(tensor(World::c(x.bias), {1, 4, 5, 6}), tensor(x.scores.data(), {2, 4, 5, 6}));
             }),
        call("gather", "values of another length",
             [](World& x) {
               gather(tensor(World::c(x.bias), {1, 4, 5, 6}), x.a.v, x.result.out);
             }),
        call("rotate", "an odd number of channels",
             [](World& x) {
               rotate(x.a.q, tensor(x.d_q.data(), {2, 4, 5, 8}), {.channels = 3});
             }),
        call("rotate", "an output of another shape",
             [](World& x) {
               rotate(x.a.q, tensor(x.d_q.data(), {2, 4, 5, 6}));
             }),
        call("normalize", "an output of another shape",
             [](World& x) {
               normalize(x.a.q, tensor(x.d_q.data(), {2, 4, 5, 6}));
             }),
        call("normalize", "a negative epsilon",
             [](World& x) {
               normalize(x.a.q, tensor(x.d_q.data(), {2, 4, 5, 8}), {.epsilon = -1});
             }),
        call("forward(LinearAttention)", "a rule without its beta",
             [](World& x) {
               LinearAttention a{.q = tensor(World::c(x.q), {2, 2, 5, 8}),
                                 .k = tensor(World::c(x.k), {2, 2, 5, 8}),
                                 .v = tensor(World::c(x.v), {2, 2, 5, 3}),
                                 .update = Update::delta};
               forward(a, LinearOutput{tensor(x.out.data(), {2, 2, 5, 3})});
             }),
        call("forward(LinearAttention)", "keys of another length",
             [](World& x) {
               LinearAttention a{.q = tensor(World::c(x.q), {2, 2, 5, 8}),
                                 .k = tensor(World::c(x.k), {2, 2, 4, 8}),
                                 .v = tensor(World::c(x.v), {2, 2, 5, 3})};
               forward(a, LinearOutput{tensor(x.out.data(), {2, 2, 5, 3})});
             })}},
      {"The machine",
       {call("set_threads", "no threads", [](World&) { set_threads(0); }),
        call("set_target", "a target there is not", [](World&) { set_target("Z80"); })}},
  };
  return all;
}

std::string said(const Entry& e, World& world) {
  try {
    e.run(world);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Errors, OneSentenceAndNothingWritten) {
  for (const Group& group : table())
    for (const Entry& e : group.entries) {
      SCOPED_TRACE(std::string(e.call) + ": " + e.what);
      World world;
      const std::string text = said(e, world);
      ASSERT_FALSE(text.empty()) << "no error";
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      EXPECT_TRUE(text.find_first_of(";,") != std::string::npos || text.find(" must be ") != std::string::npos)
          << "what to do? " << text;
      EXPECT_NE(text.back(), '.') << text;
      EXPECT_TRUE(world.untouched()) << text;
    }
}

TEST(Errors, TheProblemThatIsBrokenFits) {
  World world;
  run_forward(world);
  EXPECT_FALSE(world.untouched());
  World other;
  run_backward(other);
  World third;
  third.in_pages();
  run_forward(third);
}

std::string page() {
  std::ostringstream text;
  text << "# Errors\n\nEvery argument that does not fit throws heed::Error (in C: HEED_INVALID and "
          "heed_last_error) before anything is written.\nGenerated by `build/tests/errors_test "
          "--page=docs/errors.md`, which runs each: the sentences are what it got.\n";
  for (const Group& group : table()) {
    text << "\n## " << group.title << "\n\n| call | what is wrong | heed::Error::what() |\n|---|---|---|\n";
    for (const Entry& e : group.entries) {
      World world;
      std::string sentence = said(e, world);
      if (const size_t rest = sentence.find("it can run ");
          rest != std::string::npos)  // differs from machine to machine
        sentence.replace(rest, std::string::npos, "it can run ...");
      text << "| `" << e.call << "` | " << e.what << " | " << sentence << " |\n";
    }
  }
  return text.str();
}

TEST(Errors, ThePageSaysThem) { heed::testing::expect_page(page(), "errors_test", "errors.md"); }

}  // namespace
}  // namespace heed

int main(int argc, char** argv) { return heed::testing::run_tests(argc, argv); }
