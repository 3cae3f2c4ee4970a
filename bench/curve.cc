// The same small Transformer trained twice, with Heed's attention and with LibTorch's own operators, unfused: the same
// losses but for rounding, and at long sequences a fraction of the memory.
//
//   build/bench_curve [STEPS]
//
// The task: a line of random symbols that repeats itself; from the second time on the next symbol can be known.
#include <heed/attention.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "libtorch/attention.h"

namespace {

constexpr int64_t kSymbols = 32, kWidth = 128, kHeads = 4, kLayers = 2;

using torch::Tensor;

Tensor plain(const Tensor& q, const Tensor& k, const Tensor& v) {
  const int64_t length = q.size(2);
  const Tensor hidden = torch::ones({length, length}, torch::kBool).triu(1);
  const Tensor scores = q.matmul(k.transpose(-1, -2)) / std::sqrt(static_cast<double>(q.size(-1)));
  return torch::softmax(scores.masked_fill(hidden, -INFINITY), -1).matmul(v);
}

Tensor fused(const Tensor& q, const Tensor& k, const Tensor& v) {
  heed::nn::AttentionOptions options;
  options.mask = heed::causal();
  return heed::nn::attention(q, k, v, options).out;
}

struct Layer : torch::nn::Module {
  Layer()
      : norm1(torch::nn::LayerNormOptions({kWidth})),
        norm2(torch::nn::LayerNormOptions({kWidth})),
        qkv(kWidth, 3 * kWidth),
        out(kWidth, kWidth),
        up(kWidth, 4 * kWidth),
        down(4 * kWidth, kWidth) {
    register_module("norm1", norm1), register_module("norm2", norm2), register_module("qkv", qkv);
    register_module("out", out), register_module("up", up), register_module("down", down);
  }
  Tensor forward(const Tensor& x, bool heed) {
    const int64_t batch = x.size(0), length = x.size(1);
    const auto parts = qkv(norm1(x)).view({batch, length, 3, kHeads, -1}).permute({2, 0, 3, 1, 4}).unbind(0);
    const Tensor y = (heed ? fused : plain)(parts[0], parts[1], parts[2]).transpose(1, 2).reshape({batch, length, -1});
    const Tensor z = x + out(y);
    return z + down(torch::relu(up(norm2(z))));
  }
  torch::nn::LayerNorm norm1, norm2;
  torch::nn::Linear qkv, out, up, down;
};

struct Model : torch::nn::Module {
  explicit Model(int64_t length) : symbols(kSymbols, kWidth), places(length, kWidth), head(kWidth, kSymbols) {
    register_module("symbols", symbols), register_module("places", places), register_module("head", head);
    for (int64_t l = 0; l < kLayers; ++l)
      layers.push_back(register_module("layer" + std::to_string(l), std::make_shared<Layer>()));
  }
  Tensor loss(const Tensor& text, bool heed) {
    const int64_t length = text.size(1) - 1;
    Tensor x = symbols(text.narrow(1, 0, length)) + places(torch::arange(length));
    for (const auto& layer : layers) x = layer->forward(x, heed);
    return torch::nn::functional::cross_entropy(head(x).flatten(0, 1), text.narrow(1, 1, length).flatten());
  }
  torch::nn::Embedding symbols, places;
  torch::nn::Linear head;
  std::vector<std::shared_ptr<Layer>> layers;
};

// Losses of each step; `batch` lines of length + 1 symbols.
std::vector<double> train(bool heed, int64_t steps, int64_t batch, int64_t length) {
  torch::manual_seed(1);
  Model model(length);
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(1e-3));
  std::vector<double> losses;
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor half = torch::randint(kSymbols, {batch, length / 2 + 1}, torch::kLong);
    const Tensor loss = model.loss(torch::cat({half, half}, 1).narrow(1, 0, length + 1), heed);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    losses.push_back(loss.item<double>());
  }
  return losses;
}

double resident(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string word;
  double kilobytes = 0;
  while (status >> word)
    if (word == name + ":") status >> kilobytes;
  return kilobytes / 1024;
}

// What one way of training needs beside the program itself at length 4096, in a process of its own.
bool measure(bool heed) {
  const pid_t child = fork();
  if (child != 0) {
    int status = 0;
    waitpid(child, &status, 0);
    return status == 0;
  }
  const double before = resident("VmHWM");
  const auto start = std::chrono::steady_clock::now();
  train(heed, 2, 1, 4096);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("length 4096, 1 line, 2 steps, %-8s %6.0f MB beside the program, %5.1f s\n",
              heed ? "Heed:" : "LibTorch:", resident("VmHWM") - before, seconds);
  std::fflush(stdout);
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t steps = argc > 1 ? std::max(1, std::atoi(argv[1])) : 150;
  bool good = measure(true) && measure(false);  // before this process has threads, which fork would leave behind
  const auto ours = train(true, steps, 8, 128), theirs = train(false, steps, 8, 128);
  double apart = 0;
  for (int64_t i = 0; i < steps; ++i) {
    apart = std::max(apart, std::fabs(ours[i] - theirs[i]));
    if (i % std::max<int64_t>(1, steps / 10) == 0 || i + 1 == steps)
      std::printf("step %4ld   Heed %.6f   LibTorch %.6f   apart %.1e\n", static_cast<long>(i), ours[i], theirs[i],
                  std::fabs(ours[i] - theirs[i]));
  }
  // Rounding alone: 6e-8 a step in the weights, which training multiplies.
  good &= std::fabs(ours[0] - theirs[0]) < 1e-5 && apart < 0.02;
  std::printf("losses at most %.1e apart: %s\n", apart, good ? "the same curve" : "NOT the same curve");
  return good ? 0 : 1;
}
