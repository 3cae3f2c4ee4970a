// Self attention of a picture's positions to those near them: Swin's windows, and neighbourhoods.
#include "libtorch/vision/windows.h"

#include <heed/attention.h>
#include <heed/mask.h>
#include <torch/types.h>

#include <algorithm>
#include <string>
#include <vector>

#include "libtorch/attention.h"
#include "libtorch/sizes.h"

namespace heed::nn {
namespace {

using torch::Tensor;
using torch::nn::Linear;
using torch::nn::LinearOptions;

void check_heads(int64_t dim, int64_t heads, const char* layer) {
  check_size(dim, layer, "dim");
  check_size(heads, layer, "heads");
  if (dim % heads != 0) {
    throw Error(std::string(layer) + " got dim " + std::to_string(dim) + " and " + std::to_string(heads) +
                " heads; give a divisor of dim");
  }
}

void check_picture(const Tensor& x, int64_t dim, const char* layer) {
  if (x.defined() && x.dim() == 4 && x.size(3) == dim && x.size(1) > 0 && x.size(2) > 0) return;
  throw Error(std::string(layer) + " got " + shape_of(x) + "; it needs [batch, height, width, " + std::to_string(dim) +
              "]");
}

// `count` windows side by side along an axis, each `length` positions, from `begin`.
struct Run {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t length = 0;
  int64_t size() const { return count * length; }
};

// An axis cut at shift, shift + window, ...: what lies before the first cut and behind the last is a window, too.
std::vector<Run> cut(int64_t size, int64_t window, int64_t shift) {
  const int64_t first = std::min(shift, size), whole = (size - first) / window, end = first + whole * window;
  std::vector<Run> runs;
  for (const Run run : {Run{0, 1, first}, Run{first, whole, window}, Run{end, 1, size - end}}) {
    if (run.size() > 0) runs.push_back(run);
  }
  return runs;
}

// The windows where these rows and columns cross: [B, H, W, C] -> [B * windows, positions of a window, C]; and back to
// their part of the map.
Tensor windows_of(const Tensor& map, const Run& rows, const Run& columns) {
  return map.narrow(1, rows.begin, rows.size())
      .narrow(2, columns.begin, columns.size())
      .reshape({map.size(0), rows.count, rows.length, columns.count, columns.length, map.size(3)})
      .transpose(2, 3)
      .reshape({map.size(0) * rows.count * columns.count, rows.length * columns.length, map.size(3)});
}
Tensor map_of(const Tensor& windows, const Run& rows, const Run& columns) {
  const int64_t batch = windows.size(0) / (rows.count * columns.count);
  return windows.view({batch, rows.count, columns.count, rows.length, columns.length, windows.size(2)})
      .transpose(2, 3)
      .reshape({batch, rows.size(), columns.size(), windows.size(2)});
}

// Rows of the table for the pairs of a height x width window, which is a corner of one of window x window:
// [height * width, height * width].
Tensor table_rows(int64_t window, int64_t height, int64_t width) {
  const int64_t n = height * width;
  const auto place = [&](int64_t i) { return i / width * window + i % width; };
  Tensor rows = torch::empty({n, n}, torch::kInt64);
  int64_t* at = rows.data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) *at++ = swin_row(place(i), place(j), window, window);
  }
  return rows;
}

// Puts the weights of windows [B * windows, heads, n, n] in their places in `all` [B, heads, H, W, H, W].
void place_weights(const Tensor& weights, const Run& rows, const Run& columns, const Tensor& all) {
  const int64_t height = rows.length, width = columns.length;
  const Tensor parts =
      weights.view({all.size(0), rows.count, columns.count, weights.size(1), height, width, height, width});
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t c = 0; c < columns.count; ++c) {
      const int64_t y = rows.begin + r * height, x = columns.begin + c * width;
      all.narrow(2, y, height)
          .narrow(3, x, width)
          .narrow(4, y, height)
          .narrow(5, x, width)
          .copy_(parts.select(1, r).select(1, c));
    }
  }
}

}  // namespace

// ---- Windows ----

WindowAttentionImpl::WindowAttentionImpl(WindowAttentionOptions options) : options(options) {
  check_heads(options.dim, options.heads, "WindowAttention");
  check_size(options.window, "WindowAttention", "window");
  if (options.shift < 0 || options.shift >= options.window) {
    throw Error("WindowAttention got shift " + std::to_string(options.shift) +
                "; it must be at least 0 and below the window of " + std::to_string(options.window));
  }
  reset();
}

void WindowAttentionImpl::reset() {
  const auto& o = options;
  qkv = register_module("qkv", Linear(LinearOptions(o.dim, 3 * o.dim).bias(o.bias)));
  proj = register_module("proj", Linear(o.dim, o.dim));
  const int64_t reach = 2 * o.window - 1;
  relative_position_bias_table =
      register_parameter("relative_position_bias_table", torch::randn({reach * reach, o.heads}) * 0.02);
}

Attended WindowAttentionImpl::attend(const Tensor& x, bool want_weights) {
  check_picture(x, options.dim, "WindowAttention");
  const int64_t height = x.size(1), width = x.size(2), window = options.window;
  const int64_t below = (window - height % window) % window, right = (window - width % window) % window;
  const bool pad = options.attend_padding && below + right > 0;
  const Tensor map = pad ? torch::constant_pad_nd(x, {0, 0, 0, right, 0, below}) : x;

  Attended result;
  Tensor all;  // weights
  std::vector<Tensor> strips;
  for (const Run& rows : cut(map.size(1), window, options.shift)) {
    std::vector<Tensor> parts;
    for (const Run& columns : cut(map.size(2), window, options.shift)) {
      const std::vector<Tensor> packed = qkv->forward(windows_of(map, rows, columns)).chunk(3, -1);
      const AttentionOptions how{
          .bias = torch::embedding(relative_position_bias_table, table_rows(window, rows.length, columns.length))
                      .permute({2, 0, 1})};
      const Tensor out = packed_attention(packed[0], packed[1], packed[2], options.heads, options.heads, how).out;
      parts.push_back(map_of(out, rows, columns));
      if (want_weights) {
        const Tensor weights = packed_attention_weights(packed[0], packed[1], options.heads, options.heads, how);
        if (!all.defined()) {
          all = torch::zeros({x.size(0), options.heads, map.size(1), map.size(2), map.size(1), map.size(2)},
                             weights.options());
        }
        place_weights(weights, rows, columns, all);
      }
    }
    strips.push_back(torch::cat(parts, 2));
  }
  Tensor out = torch::cat(strips, 1);
  if (pad) out = out.narrow(1, 0, height).narrow(2, 0, width);
  result.out = proj->forward(out);
  if (want_weights) {
    result.weights =
        all.narrow(2, 0, height).narrow(3, 0, width).narrow(4, 0, height).narrow(5, 0, width).flatten(2, 3).flatten(3);
  }
  return result;
}

Tensor WindowAttentionImpl::forward(const Tensor& x) { return attend(x, /*want_weights=*/false).out; }

// ---- Neighbourhoods ----

NeighborhoodAttentionImpl::NeighborhoodAttentionImpl(NeighborhoodAttentionOptions options) : options(options) {
  check_heads(options.dim, options.heads, "NeighborhoodAttention");
  if (options.kernel < 1 || options.kernel % 2 == 0) {
    throw Error("NeighborhoodAttention got kernel " + std::to_string(options.kernel) +
                "; it must be odd and at least 1");
  }
  reset();
}

void NeighborhoodAttentionImpl::reset() {
  qkv = register_module("qkv", Linear(LinearOptions(options.dim, 3 * options.dim).bias(options.bias)));
  proj = register_module("proj", Linear(options.dim, options.dim));
}

Attended NeighborhoodAttentionImpl::attend(const Tensor& x, bool want_weights) {
  check_picture(x, options.dim, "NeighborhoodAttention");
  const int64_t height = x.size(1), width = x.size(2), kernel = options.kernel;
  if (kernel > height || kernel > width) {
    throw Error("NeighborhoodAttention got a map of " + std::to_string(height) + " x " + std::to_string(width) +
                " and kernel " + std::to_string(kernel) + "; the kernel can be at most the smaller side");
  }
  const std::vector<Tensor> packed = qkv->forward(x.flatten(1, 2)).chunk(3, -1);
  const AttentionOptions how{.mask = neighbourhood({height, width}, {kernel, kernel})};
  Attended result;
  const Tensor out = packed_attention(packed[0], packed[1], packed[2], options.heads, options.heads, how).out;
  result.out = proj->forward(out).view(x.sizes());
  if (want_weights) {
    result.weights = packed_attention_weights(packed[0], packed[1], options.heads, options.heads, how);
  }
  return result;
}

Tensor NeighborhoodAttentionImpl::forward(const Tensor& x) { return attend(x, /*want_weights=*/false).out; }

}  // namespace heed::nn
