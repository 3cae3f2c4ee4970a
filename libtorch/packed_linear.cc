// oneDNN's matmul with weights in the layout it likes best.
#include "libtorch/packed_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <heed/attention.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "libtorch/splitmix.h"

#ifdef HEED_ONEDNN
#include <dnnl.hpp>
#endif

namespace heed::nn {

using torch::Tensor;

#ifdef HEED_ONEDNN

namespace {

using dnnl::memory;

const dnnl::engine& processor() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

memory::desc dense(int64_t rows, int64_t columns) {
  return {{rows, columns}, memory::data_type::f32, memory::format_tag::ab};
}

// oneDNN makes machine code for each number of rows, which takes milliseconds and which a search, whose rows become
// fewer from step to step, would wait for all the time. So rows go in pieces of these sizes, the largest that fit
// first.
constexpr std::array<int64_t, 5> kPieces = {256, 64, 16, 4, 1};

// The products of pieces with weights of one shape, all in the layout that the largest piece likes best. Each is made
// when it is first wanted: one sentence needs two of them.
class Products {
 public:
  Products(int64_t in, int64_t out, bool biased)
      : in_(in), out_(out), biased_(biased), layout_({in, out}, memory::data_type::f32, memory::format_tag::any) {
    layout_ = described(0).weights_desc();
  }

  const memory::desc& layout() const { return layout_; }

  struct Product {
    dnnl::matmul run;
    memory::desc scratch;
  };
  const Product& of_piece(size_t i) const {
    std::call_once(made_[i], [&] {
      const dnnl::matmul::primitive_desc chosen = described(i);
      products_[i] = {dnnl::matmul(chosen), chosen.scratchpad_desc()};
    });
    return products_[i];
  }

 private:
  dnnl::matmul::primitive_desc described(size_t i) const {
    const memory::desc x = dense(kPieces[i], in_), y = dense(kPieces[i], out_);
    dnnl::primitive_attr how;
    how.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // the library's own belongs to the thread that made it
    const auto wanted = biased_ ? dnnl::matmul::desc(x, layout_, dense(1, out_), y) : dnnl::matmul::desc(x, layout_, y);
    return {wanted, how, processor()};
  }

  const int64_t in_, out_;
  const bool biased_;
  memory::desc layout_;
  mutable std::array<std::once_flag, kPieces.size()> made_;
  mutable std::array<Product, kPieces.size()> products_;
};

// Made once for each shape and number of threads, which oneDNN wants to know ahead.
std::shared_ptr<const Products> products_of(int64_t in, int64_t out, bool biased) {
  static std::mutex lock;
  static std::map<std::tuple<int64_t, int64_t, bool, int>, std::shared_ptr<const Products>> known;
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const std::lock_guard guard(lock);
  auto& found = known[{in, out, biased, threads}];
  if (!found) found = std::make_shared<Products>(in, out, biased);
  return found;
}

}  // namespace

struct PackedLinear::Packed {
  int64_t in, out;
  std::shared_ptr<const Products> products;
  memory weight, bias;

  Packed(const Tensor& w, const Tensor& b)
      : in(w.size(1)), out(w.size(0)), products(products_of(in, out, b.defined())) {
    memory from({{in, out}, memory::data_type::f32, memory::format_tag::ba}, processor(), w.data_ptr<float>());
    weight = memory(products->layout(), processor());
    dnnl::stream stream(processor());
    dnnl::reorder(from, weight).execute(stream, from, weight);
    stream.wait();
    if (!b.defined()) return;
    bias = memory(dense(1, out), processor());
    std::copy_n(b.data_ptr<float>(), out, static_cast<float*>(bias.get_data_handle()));
  }

  void multiply(float* x, int64_t rows, float* y) const {
    dnnl::stream stream(processor());
    for (size_t i = 0; i < kPieces.size(); ++i) {
      const int64_t piece = kPieces[i];
      if (rows < piece) continue;
      const Products::Product& product = products->of_piece(i);
      memory from(dense(piece, in), processor(), x), to(dense(piece, out), processor(), y);
      std::unordered_map<int, memory> arguments{{DNNL_ARG_SRC, from},
                                                {DNNL_ARG_WEIGHTS, weight},
                                                {DNNL_ARG_DST, to},
                                                {DNNL_ARG_SCRATCHPAD, memory(product.scratch, processor())}};
      if (bias) arguments.emplace(DNNL_ARG_BIAS, bias);
      for (; rows >= piece; rows -= piece, x += piece * in, y += piece * out) {
        from.set_data_handle(x);
        to.set_data_handle(y);
        product.run.execute(stream, arguments);
      }
    }
    stream.wait();
  }
};

#else

struct PackedLinear::Packed {
  Packed(const Tensor&, const Tensor&) {}
  void multiply(float*, int64_t, float*) const {}
};

#endif

uint64_t stamp_of(const std::vector<Tensor>& tensors) {
  uint64_t stamp = 0;
  for (const Tensor& t : tensors) {
    if (!t.defined()) continue;
    stamp = splitmix(stamp, reinterpret_cast<uintptr_t>(t.data_ptr()));
    stamp = splitmix(stamp, static_cast<uint64_t>(t._version()));
  }
  return stamp;
}

PackedLinear::PackedLinear(const Tensor& weight, const Tensor& bias) {
  if (weight.dim() != 2 || (bias.defined() && (bias.dim() != 1 || bias.size(0) != weight.size(0)))) {
    std::ostringstream text;
    text << "the weights are " << weight.sizes();
    if (bias.defined()) text << " and the bias " << bias.sizes();
    throw Error(text.str() + "; they must be [out, in] and [out]");
  }
  torch::NoGradGuard no_grad;
#ifdef HEED_ONEDNN
  const auto fits = [](const Tensor& t) {
    return !t.defined() || (t.scalar_type() == torch::kFloat32 && t.numel() > 0);
  };
  if (fits(weight) && fits(bias)) {
    packed_ = std::make_shared<Packed>(weight.contiguous(), bias.defined() ? bias.contiguous() : bias);
    return;
  }
#endif
  weight_ = weight.clone();
  if (bias.defined()) bias_ = bias.clone();
}

Tensor PackedLinear::forward(const Tensor& x, Tensor out) const {
  const int64_t inputs = packed_ ? packed_->in : weight_.size(1), outputs = packed_ ? packed_->out : weight_.size(0);
  std::vector<int64_t> shape = x.sizes().vec();
  if (!shape.empty()) shape.back() = outputs;
  if (shape.empty() || x.size(-1) != inputs || (out.defined() && (out.sizes() != shape || !out.is_contiguous()))) {
    std::ostringstream text;
    text << "the input is " << x.sizes();
    if (out.defined()) text << " and the output " << out.sizes();
    text << "; they must be [..., " << inputs << "] and [..., " << outputs << "], the output contiguous";
    throw Error(text.str());
  }
  torch::NoGradGuard no_grad;
  if (!packed_) {
    const Tensor y = torch::linear(x, weight_, bias_);
    return out.defined() ? out.copy_(y) : y;
  }
  if (!out.defined()) out = torch::empty(shape, x.options());
  const Tensor rows = x.contiguous();
  if (rows.numel() > 0) packed_->multiply(rows.data_ptr<float>(), rows.numel() / inputs, out.data_ptr<float>());
  return out;
}

}  // namespace heed::nn
