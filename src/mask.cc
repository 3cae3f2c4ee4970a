// The masks of mask.h whose rows are spans of keys, and how masks combine.
#include "heed/mask.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "heed/attention.h"
#include "mask_node.h"

namespace heed {

// ---- What most kinds have in common ----

void Mask::Node::bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys,
                      uint64_t* bits) const {
  std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
  const Span seen = row(shape, batch, head, query);
  set_keys(bits, keys, seen.begin, seen.end);
}

Cover Mask::Node::cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const {
  bool none = true, all = true;
  std::vector<uint64_t> seen(words(keys.end - keys.begin));
  for (int64_t i = queries.begin; i < queries.end && (none || all); ++i) {
    if (spans()) {
      const Span s = row(shape, batch, head, i);
      none &= std::max(s.begin, keys.begin) >= std::min(s.end, keys.end);
      all &= s.begin <= keys.begin && keys.end <= s.end;
    } else {
      bits(shape, batch, head, i, keys, seen.data());
      int64_t count = 0;
      for (const uint64_t word : seen) count += std::popcount(word);
      none &= count == 0;
      all &= count == keys.end - keys.begin;
    }
  }
  return none ? Cover::empty : all ? Cover::full : Cover::partial;
}

namespace {

class Window final : public Mask::Node {
 public:
  Window(int64_t left, int64_t right, std::optional<int64_t> offset) : left_(left), right_(right), offset_(offset) {}

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t query) const override {
    const int64_t p = position(shape, query, offset_);
    return {left_ < 0 ? 0 : add(p, -left_), right_ < 0 ? shape.keys : add(add(p, right_), 1)};
  }
  bool spans() const override { return true; }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Window*>(&other);
    return o && left_ == o->left_ && right_ == o->right_ && offset_ == o->offset_;
  }

 private:
  int64_t left_, right_;  // -1: unbounded
  std::optional<int64_t> offset_;
};

class Lengths final : public Mask::Node {
 public:
  explicit Lengths(std::vector<int64_t> keys) : keys_(std::move(keys)) {}

  Span row(const MaskShape&, int64_t batch, int64_t, int64_t) const override { return {0, keys_[batch]}; }
  bool varies_by_batch() const override { return true; }
  void check(const MaskShape& shape) const override {
    if (static_cast<int64_t>(keys_.size()) != shape.batch)
      throw Error("lengths() has " + std::to_string(keys_.size()) + " entries but the batch is " +
                  std::to_string(shape.batch) + "; give one length for each batch");
  }
  bool spans() const override { return true; }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Lengths*>(&other);
    return o && keys_ == o->keys_;
  }

 private:
  std::vector<int64_t> keys_;
};

// Numbers of which there is one for each batch, or one for all.
template <class T>
const T& of_batch(const std::vector<T>& all, int64_t batch) {
  return all[all.size() == 1 ? 0 : batch];
}
template <class T>
void check_batches(const char* mask, const std::vector<T>& all, const MaskShape& shape) {
  const int64_t n = static_cast<int64_t>(all.size());
  if (n != 1 && n != shape.batch)
    throw Error(std::string(mask) + "() has " + std::to_string(n) + " entries but the batch is " +
                std::to_string(shape.batch) + "; give one for each batch or one for all");
}

// `call`: what was called, without the sides.
void check_sides(const std::string& call, int64_t left, int64_t right) {
  if (left < -1 || right < -1)
    throw Error(call + std::to_string(left) + ", " + std::to_string(right) +
                ") has a side below -1; use -1 for an unbounded side and 0 or more for a count of neighbours");
}

// Throws for a negative count of keys.
void check_counts(const char* mask, const std::vector<int64_t>& keys) {
  for (size_t b = 0; b < keys.size(); ++b)
    if (keys[b] < 0)
      throw Error(std::string(mask) + "() has " + std::to_string(keys[b]) + " for batch " + std::to_string(b) +
                  "; a length is 0 or more");
}

class Documents final : public Mask::Node {
 public:
  explicit Documents(const std::vector<std::vector<int64_t>>& lengths) {
    for (const std::vector<int64_t>& list : lengths) {
      std::vector<int64_t>& ends = ends_.emplace_back();
      int64_t end = 0;
      for (const int64_t length : list) ends.push_back(end = add(end, length));
    }
  }

  Span row(const MaskShape& shape, int64_t batch, int64_t, int64_t query) const override {
    const std::vector<int64_t>& ends = of_batch(ends_, batch);
    const int64_t p = position(shape, query, std::nullopt);
    const auto mine = std::upper_bound(ends.begin(), ends.end(), p);
    if (p < 0 || mine == ends.end()) return {};
    return {mine == ends.begin() ? 0 : mine[-1], *mine};
  }
  bool varies_by_batch() const override { return ends_.size() != 1; }
  void check(const MaskShape& shape) const override {
    check_batches("documents", ends_, shape);
    for (size_t b = 0; b < ends_.size(); ++b)
      if (!ends_[b].empty() && ends_[b].back() > shape.keys)
        throw Error("documents() of batch " + std::to_string(b) + " add up to " + std::to_string(ends_[b].back()) +
                    " keys but k has " + std::to_string(shape.keys) + "; give lengths that fit");
  }
  bool spans() const override { return true; }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Documents*>(&other);
    return o && ends_ == o->ends_;
  }

 private:
  std::vector<std::vector<int64_t>> ends_;  // of each document, one past its last key
};

class Prefix final : public Mask::Node {
 public:
  Prefix(std::vector<int64_t> keys, std::optional<int64_t> offset) : keys_(std::move(keys)), causal_(-1, 0, offset) {}

  Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const override {
    return {0, std::max(of_batch(keys_, batch), causal_.row(shape, batch, head, query).end)};
  }
  bool varies_by_batch() const override { return keys_.size() != 1; }
  void check(const MaskShape& shape) const override { check_batches("prefix_lm", keys_, shape); }
  bool spans() const override { return true; }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Prefix*>(&other);
    return o && keys_ == o->keys_ && causal_.equals(o->causal_);
  }

 private:
  std::vector<int64_t> keys_;
  Window causal_;
};

class Ragged final : public Mask::Node {
 public:
  Ragged(std::vector<int64_t> queries, std::vector<int64_t> keys, int64_t left, int64_t right)
      : queries_(std::move(queries)), keys_(std::move(keys)), left_(left), right_(right) {}

  Span row(const MaskShape&, int64_t, int64_t, int64_t query) const override {
    const auto after = std::upper_bound(queries_.begin(), queries_.end(), query);
    if (after == queries_.end()) return {};
    const int64_t n = after - queries_.begin() - 1;
    const Span keys{keys_[n], keys_[n + 1]};
    const int64_t p = query - queries_[n + 1] + keys.end;  // the last query stands at the last key
    return {left_ < 0 ? keys.begin : std::max(keys.begin, add(p, -left_)),
            right_ < 0 ? keys.end : std::min(keys.end, add(add(p, right_), 1))};
  }
  void check(const MaskShape& shape) const override {
    if (queries_.back() > shape.queries || keys_.back() > shape.keys)
      throw Error("ragged() ends with query " + std::to_string(queries_.back()) + " and key " +
                  std::to_string(keys_.back()) + " but there are " + std::to_string(shape.queries) + " and " +
                  std::to_string(shape.keys) + "; give offsets that fit");
  }
  bool spans() const override { return true; }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Ragged*>(&other);
    return o && queries_ == o->queries_ && keys_ == o->keys_ && left_ == o->left_ && right_ == o->right_;
  }

 private:
  std::vector<int64_t> queries_, keys_;
  int64_t left_, right_;
};

// ---- Combinations ----

using NodePointer = std::shared_ptr<const Mask::Node>;

class Pair : public Mask::Node {
 public:
  Pair(NodePointer a, NodePointer b) : a_(std::move(a)), b_(std::move(b)) {}
  bool varies_by_batch() const override { return a_->varies_by_batch() || b_->varies_by_batch(); }
  bool varies_by_head() const override { return a_->varies_by_head() || b_->varies_by_head(); }
  void check(const MaskShape& shape) const override {
    a_->check(shape);
    b_->check(shape);
  }

 protected:
  bool same(const Pair* o) const { return o && a_->equals(*o->a_) && b_->equals(*o->b_); }

  // Calls f(words, one word of b's) for each word after a's bits are in `bits`.
  template <class F>
  void combine(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits,
               F&& f) const {
    a_->bits(shape, batch, head, query, keys, bits);
    uint64_t part[16];
    constexpr int64_t kPart = 64 * 16;
    for (int64_t j = keys.begin; j < keys.end; j += kPart, bits += 16) {
      const Span some{j, std::min(keys.end, j + kPart)};
      b_->bits(shape, batch, head, query, some, part);
      for (int64_t w = 0; w < words(some.end - some.begin); ++w) f(bits[w], part[w]);
    }
  }

  NodePointer a_, b_;
};

class Both final : public Pair {
 public:
  using Pair::Pair;
  Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const override {
    const Span a = a_->row(shape, batch, head, query), b = b_->row(shape, batch, head, query);
    return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
  }
  bool spans() const override { return a_->spans() && b_->spans(); }
  void bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys,
            uint64_t* bits) const override {
    combine(shape, batch, head, query, keys, bits, [](uint64_t& a, uint64_t b) { a &= b; });
  }
  Cover cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const override {
    const Cover a = a_->cover(shape, batch, head, queries, keys);
    if (a == Cover::empty) return a;
    const Cover b = b_->cover(shape, batch, head, queries, keys);
    return a == Cover::full ? b : b == Cover::full ? a : b == Cover::empty ? b : Cover::partial;
  }
  bool equals(const Node& other) const override { return same(dynamic_cast<const Both*>(&other)); }
};

class Either final : public Pair {
 public:
  using Pair::Pair;
  Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const override {
    const Span a = a_->row(shape, batch, head, query), b = b_->row(shape, batch, head, query);
    if (a.begin >= a.end) return b;
    if (b.begin >= b.end) return a;
    return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
  }
  void bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys,
            uint64_t* bits) const override {
    combine(shape, batch, head, query, keys, bits, [](uint64_t& a, uint64_t b) { a |= b; });
  }
  Cover cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const override {
    const Cover a = a_->cover(shape, batch, head, queries, keys);
    if (a == Cover::full) return a;
    const Cover b = b_->cover(shape, batch, head, queries, keys);
    return a == Cover::empty ? b : b == Cover::empty ? a : b == Cover::full ? b : Cover::partial;
  }
  bool equals(const Node& other) const override { return same(dynamic_cast<const Either*>(&other)); }
};

class Not final : public Mask::Node {
 public:
  explicit Not(NodePointer a) : a_(std::move(a)) {}
  Span row(const MaskShape& shape, int64_t, int64_t, int64_t) const override { return {0, shape.keys}; }
  void bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys,
            uint64_t* bits) const override {
    a_->bits(shape, batch, head, query, keys, bits);
    const int64_t n = keys.end - keys.begin;
    for (int64_t w = 0; w < words(n); ++w) bits[w] = ~bits[w] & bits_between(0, n - 64 * w);
  }
  Cover cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const override {
    const Cover a = a_->cover(shape, batch, head, queries, keys);
    return a == Cover::empty ? Cover::full : a == Cover::full ? Cover::empty : a;
  }
  bool varies_by_batch() const override { return a_->varies_by_batch(); }
  bool varies_by_head() const override { return a_->varies_by_head(); }
  void check(const MaskShape& shape) const override { a_->check(shape); }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Not*>(&other);
    return o && a_->equals(*o->a_);
  }

 private:
  NodePointer a_;
};

// What the negation of a mask that excludes nothing is.
class Nothing final : public Mask::Node {
 public:
  Span row(const MaskShape&, int64_t, int64_t, int64_t) const override { return {}; }
  bool spans() const override { return true; }
  bool equals(const Node& other) const override { return dynamic_cast<const Nothing*>(&other) != nullptr; }
};

}  // namespace

Span Mask::row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const {
  if (!node_) return {0, shape.keys};
  const Span span = node_->row(shape, batch, head, query);
  const int64_t begin = std::max<int64_t>(span.begin, 0), end = std::min(span.end, shape.keys);
  return begin < end ? Span{begin, end} : Span{0, 0};
}

bool Mask::spans() const { return !node_ || node_->spans(); }

void Mask::bits(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, Span keys, uint64_t* bits) const {
  if (node_) return node_->bits(shape, batch, head, query, keys, bits);
  std::fill_n(bits, words(keys.end - keys.begin), uint64_t{0});
  set_bits(bits, 0, keys.end - keys.begin);
}

bool Mask::sees(const MaskShape& shape, int64_t batch, int64_t head, int64_t query, int64_t key) const {
  uint64_t one;
  bits(shape, batch, head, query, {key, key + 1}, &one);
  return one;
}

Cover Mask::cover(const MaskShape& shape, int64_t batch, int64_t head, Span queries, Span keys) const {
  return node_ ? node_->cover(shape, batch, head, queries, keys) : Cover::full;
}

bool Mask::varies_by_batch() const { return node_ && node_->varies_by_batch(); }
bool Mask::varies_by_head() const { return node_ && node_->varies_by_head(); }

void Mask::check(const MaskShape& shape) const {
  if (node_) node_->check(shape);
}

Mask operator&(const Mask& a, const Mask& b) {
  if (!a.node_) return b;
  if (!b.node_) return a;
  return Mask(std::make_shared<Both>(a.node_, b.node_));
}

Mask operator|(const Mask& a, const Mask& b) {
  if (!a.node_ || !b.node_) return {};
  return Mask(std::make_shared<Either>(a.node_, b.node_));
}

Mask operator!(const Mask& a) {
  if (!a.node_) return Mask(std::make_shared<Nothing>());
  return Mask(std::make_shared<Not>(a.node_));
}

bool operator==(const Mask& a, const Mask& b) {
  if (a.node_ == b.node_) return true;
  return a.node_ && b.node_ && a.node_->equals(*b.node_);
}

Mask causal(std::optional<int64_t> offset) { return window(-1, 0, offset); }

Mask window(int64_t left, int64_t right, std::optional<int64_t> offset) {
  check_sides("window(", left, right);
  return Mask(std::make_shared<Window>(left, right, offset));
}

Mask lengths(std::vector<int64_t> keys) {
  check_counts("lengths", keys);
  return Mask(std::make_shared<Lengths>(std::move(keys)));
}

Mask documents(std::vector<std::vector<int64_t>> lengths) {
  for (size_t b = 0; b < lengths.size(); ++b)
    for (const int64_t n : lengths[b])
      if (n < 0)
        throw Error("documents() has a length of " + std::to_string(n) + " for batch " + std::to_string(b) +
                    "; a length is 0 or more");
  return Mask(std::make_shared<Documents>(lengths));
}

Mask prefix_lm(std::vector<int64_t> prefix, std::optional<int64_t> offset) {
  check_counts("prefix_lm", prefix);
  return Mask(std::make_shared<Prefix>(std::move(prefix), offset));
}

Mask ragged(std::vector<int64_t> queries, std::vector<int64_t> keys, int64_t left, int64_t right) {
  check_sides("ragged(..., ", left, right);
  if (queries.size() != keys.size())
    throw Error("ragged() has " + std::to_string(queries.size()) + " offsets of queries but " +
                std::to_string(keys.size()) + " of keys; give one of each for every sequence, and the end");
  for (const std::vector<int64_t>* offsets : {&queries, &keys}) {
    const char* of = offsets == &queries ? "queries" : "keys";
    if (offsets->empty() || offsets->front() != 0)
      throw Error(std::string("ragged() has offsets of ") + of + " that begin with " +
                  (offsets->empty() ? "nothing" : std::to_string(offsets->front())) + "; they begin with 0");
    for (size_t n = 1; n < offsets->size(); ++n)
      if ((*offsets)[n] < (*offsets)[n - 1])
        throw Error(std::string("ragged() has the offsets of ") + of + " go from " + std::to_string((*offsets)[n - 1]) +
                    " to " + std::to_string((*offsets)[n]) + "; they ascend");
  }
  return Mask(std::make_shared<Ragged>(std::move(queries), std::move(keys), left, right));
}

}  // namespace heed
