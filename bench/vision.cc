// One of the programs that bench/vision times: a Hugging Face ViT or SegFormer, and the same pictures again and again.
//
//   build/bench_vision MODEL DATA.safetensors OUT.safetensors
//
// DATA holds "pictures" [B, C, H, W] f32 and "targets" of int64, [B] or [B, H, W]. Each line of standard input is an
// order, and its answer a line of standard output: "infer N" and "train N" answer with the
// seconds that N forwards, or N steps of AdamW, took, "loss" with the last loss; "logits" writes those of the pictures
// to OUT and "fresh" loads the weights anew, and both answer 0.
#include <torch/nn/functional/loss.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "apps/classify/vit_model.h"
#include "apps/segment/segformer_model.h"
#include "libtorch/adamw.h"
#include "libtorch/runtime.h"
#include "libtorch/safetensors.h"

namespace {

using torch::Tensor;

// Either of the two models: what to call, and what to train.
struct Network {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensor(const Tensor&)> forward;
};

Network load(const std::string& dir) {
  std::ifstream config(dir + "/config.json");
  if (nlohmann::json::parse(config).at("model_type") == "segformer") {
    const auto model = std::make_shared<heed::segment::SegformerModel>(heed::segment::load_segformer(dir));
    return {model->net.ptr(), [model](const Tensor& x) { return model->net->forward(x).logits; }};
  }
  const auto model = heed::classify::load_vit(dir);
  return {model, [model](const Tensor& x) { return model->forward(x).logits; }};
}

class Bench {
 public:
  Bench(std::string dir, const heed::nn::SafeTensors& data)
      : dir_(std::move(dir)), pictures_(*data.find("pictures")), targets_(*data.find("targets")) {
    fresh();
  }

  void fresh() {
    network_ = load(dir_);
    // torch.optim.AdamW's numbers, so that both walk the same way.
    optimizer_ = std::make_unique<heed::nn::AdamW>(
        *network_.module, heed::nn::AdamWOptions{.beta2 = 0.999, .weight_decay = 0, .clip = 0, .average = 0});
  }

  Tensor logits() {
    const torch::NoGradGuard no_grad;
    network_.module->eval();
    return network_.forward(pictures_);
  }

  void infer() { logits(); }

  void train() {
    network_.module->train();
    Tensor logits = network_.forward(pictures_);
    if (logits.dim() == 4) logits = heed::nn::resized(logits, targets_.size(1), targets_.size(2));
    const Tensor loss = torch::nn::functional::cross_entropy(logits, targets_);
    loss.backward();
    optimizer_->step(1e-4);
    loss_ = loss.item<double>();
  }

  double loss() const { return loss_; }

 private:
  std::string dir_;
  Tensor pictures_, targets_;
  Network network_;
  std::unique_ptr<heed::nn::AdamW> optimizer_;
  double loss_ = 0;
};

template <class Work>
double seconds_of(int times, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < times; ++i) work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  heed::nn::prepare_process(argv);
  if (argc != 4) {
    std::fprintf(stderr, "usage: bench_vision MODEL DATA.safetensors OUT.safetensors\n");
    return 2;
  }
  try {
    heed::nn::use_threads();
    Bench bench(argv[1], heed::nn::load_safetensors(argv[2]));
    const heed::nn::Runtime runtime = heed::nn::runtime();
    std::printf("LibTorch %s, %s\n", runtime.torch_version.c_str(), runtime.blas.c_str());
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream words(line);
      std::string order;
      int times = 1;
      words >> order >> times;
      double answer = 0;
      if (order == "logits") heed::nn::save_safetensors(argv[3], {{"logits", bench.logits()}});
      if (order == "fresh") bench.fresh();
      if (order == "infer") answer = seconds_of(times, [&] { bench.infer(); });
      if (order == "train") answer = seconds_of(times, [&] { bench.train(); });
      if (order == "loss") answer = bench.loss();
      std::printf("%.9g\n", answer);
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_vision: %s\n", error.what());
    return 1;
  }
  return 0;
}
