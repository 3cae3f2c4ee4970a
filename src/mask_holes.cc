// The masks of mask.h whose rows have holes: each answers in bits.
#include <algorithm>
#include <string>
#include <utility>

#include "heed/attention.h"
#include "mask_node.h"

namespace heed {
namespace {

// x mod n, not negative.
int64_t modulo(int64_t x, int64_t n) { return x % n < 0 ? x % n + n : x % n; }

// Sets the bits of the keys j in `keys` with j = first mod step, j in [from, to).
void set_steps(uint64_t* bits, Span keys, int64_t first, int64_t step, int64_t from, int64_t to) {
  from = std::max(from, keys.begin);
  to = std::min(to, keys.end);
  if (from >= to) return;
  // Not first - from, which may wrap round; nor may j, whatever the step.
  for (int64_t j = add(from, modulo(modulo(first, step) - modulo(from, step), step)); j < to; j = add(j, step))
    set_bit(bits, j - keys.begin);
}

class Dilated final : public Mask::Node {
 public:
  Dilated(int64_t reach, int64_t step, std::optional<int64_t> offset) : reach_(reach), step_(step), offset_(offset) {}

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t query) const override {
    const int64_t p = position(shape, query, offset_);
    return {add(p, -reach_), add(add(p, reach_), 1)};
  }
  void bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys,
            uint64_t* bits) const override {
    std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
    const Span seen = row(shape, batch, head, query);
    set_steps(bits, keys, position(shape, query, offset_), step_, seen.begin, seen.end);
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Dilated*>(&other);
    return o && reach_ == o->reach_ && step_ == o->step_ && offset_ == o->offset_;
  }

 private:
  int64_t reach_, step_;
  std::optional<int64_t> offset_;
};

class Strided final : public Mask::Node {
 public:
  Strided(int64_t local, int64_t stride, std::optional<int64_t> offset)
      : local_(local), stride_(stride), offset_(offset) {}

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t) const override { return {0, shape.keys}; }
  void bits(const MaskShape& shape, int64_t, int64_t, int64_t query, Span keys, uint64_t* bits) const override {
    std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
    const int64_t p = position(shape, query, offset_);
    set_steps(bits, keys, p, stride_, keys.begin, keys.end);
    set_keys(bits, keys, add(add(p, -local_), 1), add(p, local_));
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Strided*>(&other);
    return o && local_ == o->local_ && stride_ == o->stride_ && offset_ == o->offset_;
  }

 private:
  int64_t local_, stride_;
  std::optional<int64_t> offset_;
};

class Fixed final : public Mask::Node {
 public:
  Fixed(int64_t block, int64_t summary, std::optional<int64_t> offset)
      : block_(block), summary_(summary), offset_(offset) {}

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t) const override { return {0, shape.keys}; }
  void bits(const MaskShape& shape, int64_t, int64_t, int64_t query, Span keys, uint64_t* bits) const override {
    std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
    const int64_t p = position(shape, query, offset_);
    // Blocks that reach into the keys; their positions are not negative.
    for (int64_t b = keys.begin / block_; b <= (keys.end - 1) / block_ && summary_ > 0; ++b) {
      const int64_t end = add(b * block_, block_);
      set_keys(bits, keys, end - summary_, end);
    }
    if (p >= 0) set_keys(bits, keys, p / block_ * block_, add(p / block_ * block_, block_));
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Fixed*>(&other);
    return o && block_ == o->block_ && summary_ == o->summary_ && offset_ == o->offset_;
  }

 private:
  int64_t block_, summary_;
  std::optional<int64_t> offset_;
};

class Global final : public Mask::Node {
 public:
  Global(std::vector<int64_t> positions, std::optional<int64_t> offset)
      : positions_(std::move(positions)), offset_(offset) {
    std::sort(positions_.begin(), positions_.end());
  }

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t query) const override {
    if (is_global(position(shape, query, offset_))) return {0, shape.keys};
    return positions_.empty() ? Span{} : Span{positions_.front(), add(positions_.back(), 1)};
  }
  void bits(const MaskShape& shape, int64_t, int64_t, int64_t query, Span keys, uint64_t* bits) const override {
    std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
    if (is_global(position(shape, query, offset_))) return set_bits(bits, 0, keys.end - keys.begin);
    for (auto j = std::lower_bound(positions_.begin(), positions_.end(), keys.begin);
         j != positions_.end() && *j < keys.end; ++j)
      set_bit(bits, *j - keys.begin);
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Global*>(&other);
    return o && positions_ == o->positions_ && offset_ == o->offset_;
  }

 private:
  bool is_global(int64_t p) const { return std::binary_search(positions_.begin(), positions_.end(), p); }

  std::vector<int64_t> positions_;
  std::optional<int64_t> offset_;
};

class Neighbourhood final : public Mask::Node {
 public:
  // Axes of 1 in front do not change the numbering.
  Neighbourhood(std::vector<int64_t> size, std::vector<int64_t> kernel)
      : size_(std::move(size)), kernel_(std::move(kernel)) {
    while (size_.size() < 3) {
      size_.insert(size_.begin(), 1);
      kernel_.insert(kernel_.begin(), 1);
    }
  }

  Span row(const MaskShape&, int64_t, int64_t, int64_t query) const override {
    Span axes[3];
    around(query, axes);
    return {index(axes[0].begin, axes[1].begin, axes[2].begin),
            index(axes[0].end - 1, axes[1].end - 1, axes[2].end - 1) + 1};
  }
  void bits(const MaskShape&, int64_t, int64_t, int64_t query, Span keys, uint64_t* bits) const override {
    std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
    Span axes[3];
    around(query, axes);
    for (int64_t z = axes[0].begin; z < axes[0].end; ++z)
      for (int64_t y = axes[1].begin; y < axes[1].end; ++y)
        set_keys(bits, keys, index(z, y, axes[2].begin), index(z, y, axes[2].end));
  }
  void check(const MaskShape& shape) const override {
    const int64_t places = size_[0] * size_[1] * size_[2];
    if (shape.queries != places || shape.keys != places)
      throw Error("neighbourhood() is over " + std::to_string(places) + " positions but there are " +
                  std::to_string(shape.queries) + " queries and " + std::to_string(shape.keys) +
                  " keys; all three must be equal");
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Neighbourhood*>(&other);
    return o && size_ == o->size_ && kernel_ == o->kernel_;
  }

 private:
  int64_t index(int64_t z, int64_t y, int64_t x) const { return (z * size_[1] + y) * size_[2] + x; }
  void around(int64_t query, Span* axes) const {
    for (int axis = 2; axis >= 0; --axis) {
      const int64_t at = query % size_[axis], half = kernel_[axis] / 2;
      query /= size_[axis];
      const int64_t centre = std::clamp(at, half, size_[axis] - 1 - half);
      axes[axis] = {centre - half, centre + half + 1};
    }
  }

  std::vector<int64_t> size_, kernel_;
};

class BlockSparse final : public Mask::Node {
 public:
  explicit BlockSparse(std::vector<BlockTable> heads) : heads_(std::move(heads)) {}

  Span row(const MaskShape&, int64_t, int64_t head, int64_t query) const override {
    const BlockTable& t = of(head);
    const auto [begin, end] = blocks(t, query / t.query_block);
    return begin == end ? Span{} : Span{begin[0] * t.key_block, (end[-1] + 1) * t.key_block};
  }
  void bits(const MaskShape&, int64_t, int64_t head, int64_t query, Span keys, uint64_t* bits) const override {
    std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
    const BlockTable& t = of(head);
    const auto [begin, end] = blocks(t, query / t.query_block);
    for (const int64_t* block = std::lower_bound(begin, end, keys.begin / t.key_block);
         block != end && *block * t.key_block < keys.end; ++block)
      set_keys(bits, keys, *block * t.key_block, (*block + 1) * t.key_block);
  }
  Cover cover(const MaskShape&, int64_t, int64_t head, Span queries, Span keys) const override {
    const BlockTable& t = of(head);
    const int64_t first = keys.begin / t.key_block, last = (keys.end - 1) / t.key_block;
    bool none = true, all = true;
    for (int64_t r = queries.begin / t.query_block; r <= (queries.end - 1) / t.query_block; ++r) {
      const auto [begin, end] = blocks(t, r);
      const int64_t n = std::upper_bound(begin, end, last) - std::lower_bound(begin, end, first);
      none &= n == 0;
      all &= n == last - first + 1;
    }
    return none ? Cover::empty : all ? Cover::full : Cover::partial;
  }
  bool varies_by_head() const override { return heads_.size() != 1; }
  void check(const MaskShape& shape) const override {
    if (heads_.size() != 1 && static_cast<int64_t>(heads_.size()) != shape.heads)
      throw Error("block_sparse() has " + std::to_string(heads_.size()) + " tables but there are " +
                  std::to_string(shape.heads) + " query heads; give one for each or one for all");
    for (const BlockTable& t : heads_) {
      const int64_t rows = static_cast<int64_t>(t.starts.size()) - 1;
      const int64_t want = shape.queries / t.query_block + (shape.queries % t.query_block != 0);
      if (rows != want)
        throw Error("block_sparse() has a table of " + std::to_string(rows) + " rows of blocks but " +
                    std::to_string(shape.queries) + " queries in blocks of " + std::to_string(t.query_block) +
                    " need " + std::to_string(want) + "; give a row for each");
      const int64_t columns = shape.keys / t.key_block + (shape.keys % t.key_block != 0);
      for (const int64_t block : t.key_blocks)
        if (block >= columns)
          throw Error("block_sparse() names key block " + std::to_string(block) + " but " + std::to_string(shape.keys) +
                      " keys in blocks of " + std::to_string(t.key_block) + " are " + std::to_string(columns) +
                      ", numbered from 0");
    }
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const BlockSparse*>(&other);
    return o && std::equal(heads_.begin(), heads_.end(), o->heads_.begin(), o->heads_.end(),
                           [](const BlockTable& a, const BlockTable& b) {
                             return a.query_block == b.query_block && a.key_block == b.key_block &&
                                    a.starts == b.starts && a.key_blocks == b.key_blocks;
                           });
  }

 private:
  const BlockTable& of(int64_t head) const { return heads_[heads_.size() == 1 ? 0 : head]; }
  static std::pair<const int64_t*, const int64_t*> blocks(const BlockTable& t, int64_t row) {
    return {t.key_blocks.data() + t.starts[row], t.key_blocks.data() + t.starts[row + 1]};
  }

  std::vector<BlockTable> heads_;
};

class Boolean final : public Mask::Node {
 public:
  Boolean(const unsigned char* visible, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& stride)
      : shape_(shape), row_words_(words(shape[3])) {
    if (std::count(shape.begin(), shape.end(), 0) > 0) return;  // whatever the other sizes are
    bits_.assign(shape[0] * shape[1] * shape[2] * row_words_, 0);
    uint64_t* to = bits_.data();
    for (int64_t b = 0; b < shape[0]; ++b)
      for (int64_t h = 0; h < shape[1]; ++h)
        for (int64_t i = 0; i < shape[2]; ++i, to += row_words_) {
          const unsigned char* from = visible + b * stride[0] + h * stride[1] + i * stride[2];
          for (int64_t j = 0; j < shape[3]; ++j) to[j / 64] |= uint64_t{from[j * stride[3]] != 0} << (j % 64);
        }
  }

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t) const override { return {0, shape.keys}; }
  void bits(const MaskShape&, int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits) const override {
    const int64_t n = keys.end - keys.begin, count = words(n);
    const int64_t b = shape_[0] == 1 ? 0 : batch, h = shape_[1] == 1 ? 0 : head, i = shape_[2] == 1 ? 0 : query;
    const uint64_t* from = bits_.data() + ((b * shape_[1] + h) * shape_[2] + i) * row_words_;
    if (shape_[3] == 1) {
      std::fill_n(bits, count, uint64_t{0});
      return set_bits(bits, 0, *from ? n : 0);
    }
    const int64_t first = keys.begin / 64, shift = keys.begin % 64;
    for (int64_t w = 0; w < count; ++w) {
      uint64_t word = from[first + w] >> shift;
      if (shift && first + w + 1 < row_words_) word |= from[first + w + 1] << (64 - shift);
      bits[w] = word & bits_between(0, n - 64 * w);
    }
  }
  bool varies_by_batch() const override { return shape_[0] != 1; }
  bool varies_by_head() const override { return shape_[1] != 1; }
  void check(const MaskShape& shape) const override {
    const std::array<int64_t, 4> full{shape.batch, shape.heads, shape.queries, shape.keys};
    for (int axis = 0; axis < 4; ++axis)
      if (shape_[axis] != 1 && shape_[axis] != full[axis])
        throw Error("boolean() has size " + std::to_string(shape_[axis]) + " on axis " + std::to_string(axis) +
                    " where the scores have " + std::to_string(full[axis]) + "; it must be 1 or equal");
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Boolean*>(&other);
    return o && shape_ == o->shape_ && bits_ == o->bits_;
  }

 private:
  std::array<int64_t, 4> shape_;
  int64_t row_words_;
  std::vector<uint64_t> bits_;
};

class Where final : public Mask::Node {
 public:
  Where(SeesRow sees, Varies varies) : sees_(std::move(sees)), varies_(varies) {}

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t) const override { return {0, shape.keys}; }
  void bits(const MaskShape&, int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits) const override {
    sees_(batch, head, query, keys, bits);
  }
  bool varies_by_batch() const override { return varies_.by_batch; }
  bool varies_by_head() const override { return varies_.by_head; }
  // Functions cannot be compared: only one and the same is equal.
  bool equals(const Node& other) const override { return this == &other; }

 private:
  SeesRow sees_;
  Varies varies_;
};

void check_table(const BlockTable& t) {
  if (t.query_block < 1 || t.key_block < 1)
    throw Error("block_sparse() has blocks of " + std::to_string(t.query_block) + " queries by " +
                std::to_string(t.key_block) + " keys; both are 1 or more");
  if (t.starts.empty() || t.starts.front() != 0 || t.starts.back() != static_cast<int64_t>(t.key_blocks.size()))
    throw Error("block_sparse() has " + std::to_string(t.key_blocks.size()) + " key blocks but starts that end with " +
                (t.starts.empty() ? "nothing" : std::to_string(t.starts.back())) +
                "; starts begin with 0 and end with their number");
  for (size_t r = 0; r + 1 < t.starts.size(); ++r) {
    const int64_t begin = t.starts[r], end = t.starts[r + 1];
    if (begin > end || end > t.starts.back())
      throw Error("block_sparse() has starts that go from " + std::to_string(begin) + " to " + std::to_string(end) +
                  " in row " + std::to_string(r) + "; they ascend");
    for (int64_t n = begin; n < end; ++n)
      if (t.key_blocks[n] < 0 || (n > begin && t.key_blocks[n] <= t.key_blocks[n - 1]))
        throw Error("block_sparse() has key block " + std::to_string(t.key_blocks[n]) + " behind " +
                    std::to_string(n > begin ? t.key_blocks[n - 1] : -1) + " in row " + std::to_string(r) +
                    "; the blocks of a row ascend from 0");
  }
}

}  // namespace

Mask dilated(int64_t reach, int64_t step, std::optional<int64_t> offset) {
  if (reach < 0 || step < 1)
    throw Error("dilated() has reach " + std::to_string(reach) + " and step " + std::to_string(step) +
                "; reach is 0 or more, step 1 or more");
  return Mask(std::make_shared<Dilated>(reach, step, offset));
}

Mask strided(int64_t local, int64_t stride, std::optional<int64_t> offset) {
  if (local < 0 || stride < 1)
    throw Error("strided() has local " + std::to_string(local) + " and stride " + std::to_string(stride) +
                "; local is 0 or more, stride 1 or more");
  return Mask(std::make_shared<Strided>(local, stride, offset));
}

Mask fixed(int64_t block, int64_t summary, std::optional<int64_t> offset) {
  if (block < 1 || summary < 0 || summary > block)
    throw Error("fixed() has blocks of " + std::to_string(block) + " and a summary of " + std::to_string(summary) +
                "; blocks are 1 or more, their summary 0 to all of one");
  return Mask(std::make_shared<Fixed>(block, summary, offset));
}

Mask global_tokens(std::vector<int64_t> positions, std::optional<int64_t> offset) {
  for (const int64_t p : positions)
    if (p < 0) throw Error("global_tokens() has position " + std::to_string(p) + "; positions are 0 or more");
  return Mask(std::make_shared<Global>(std::move(positions), offset));
}

Mask neighbourhood(std::vector<int64_t> size, std::vector<int64_t> kernel) {
  if (size.empty() || size.size() > 3 || size.size() != kernel.size())
    throw Error("neighbourhood() has " + std::to_string(size.size()) + " sizes and " + std::to_string(kernel.size()) +
                " kernels; give one of each for 1 to 3 axes");
  for (size_t axis = 0; axis < size.size(); ++axis)
    if (kernel[axis] < 1 || kernel[axis] % 2 == 0 || kernel[axis] > size[axis] || size[axis] > (1 << 20))
      throw Error("neighbourhood() has kernel " + std::to_string(kernel[axis]) + " on an axis of " +
                  std::to_string(size[axis]) + "; a kernel is odd and at most the axis, which is at most 1048576");
  return Mask(std::make_shared<Neighbourhood>(std::move(size), std::move(kernel)));
}

Mask block_sparse(std::vector<BlockTable> heads) {
  if (heads.empty()) throw Error("block_sparse() has 0 tables; give one for each query head or one for all");
  for (const BlockTable& t : heads) check_table(t);
  return Mask(std::make_shared<BlockSparse>(std::move(heads)));
}
Mask block_sparse(BlockTable all) { return block_sparse(std::vector<BlockTable>{std::move(all)}); }

Mask boolean(const bool* visible, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& stride) {
  double pairs = 1;
  for (const int64_t n : shape) {
    if (n < 0) throw Error("boolean() has a size of " + std::to_string(n) + "; a size cannot be negative");
    pairs *= static_cast<double>(n);
  }
  if (pairs > 0x1p50) throw Error("boolean() has sizes that no memory holds; check them");
  if (!visible && pairs > 0) throw Error("boolean() has no data; give a tensor");
  // A byte that is neither 0 nor 1 is no bool, but what other libraries' tensors may hold.
  return Mask(std::make_shared<Boolean>(reinterpret_cast<const unsigned char*>(visible), shape, stride));
}
Mask boolean(const bool* visible, const std::array<int64_t, 4>& shape) {
  return boolean(visible, shape, {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1});
}

Mask where_rows(SeesRow sees, Varies varies) {
  if (!sees) throw Error("where_rows() has no function; give one of batch, head, query, keys and bits");
  return Mask(std::make_shared<Where>(std::move(sees), varies));
}

}  // namespace heed
