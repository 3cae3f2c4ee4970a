// The masks of mask.h: each kind answers, row by row, which keys it lets through.
#include "heed/mask.h"

#include <algorithm>
#include <string>
#include <utility>

#include "heed/attention.h"

namespace heed {

class Mask::Node {
 public:
  virtual ~Node() = default;
  virtual Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const = 0;
  virtual bool varies_by_batch() const { return false; }
  virtual void check(const MaskShape&) const {}
  virtual bool equals(const Node& other) const = 0;
};

namespace {

// query + offset without wrapping round: offsets come from the user and may be anything.
int64_t add(int64_t a, int64_t b) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return b > 0 ? INT64_MAX : INT64_MIN;
  return sum;
}

class Window final : public Mask::Node {
 public:
  Window(int64_t left, int64_t right, std::optional<int64_t> offset) : left_(left), right_(right), offset_(offset) {}

  Span row(const MaskShape& shape, int64_t, int64_t, int64_t query) const override {
    const int64_t p = add(query, offset_.value_or(shape.keys - shape.queries));
    return {left_ < 0 ? 0 : add(p, -left_), right_ < 0 ? shape.keys : add(add(p, right_), 1)};
  }
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
    const int64_t p = query + shape.keys - shape.queries;
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
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Prefix*>(&other);
    return o && keys_ == o->keys_ && causal_.equals(o->causal_);
  }

 private:
  std::vector<int64_t> keys_;
  Window causal_;
};

class Both final : public Mask::Node {
 public:
  Both(std::shared_ptr<const Mask::Node> a, std::shared_ptr<const Mask::Node> b) : a_(std::move(a)), b_(std::move(b)) {}

  Span row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const override {
    const Span a = a_->row(shape, batch, head, query), b = b_->row(shape, batch, head, query);
    return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
  }
  bool varies_by_batch() const override { return a_->varies_by_batch() || b_->varies_by_batch(); }
  void check(const MaskShape& shape) const override {
    a_->check(shape);
    b_->check(shape);
  }
  bool equals(const Node& other) const override {
    const auto* o = dynamic_cast<const Both*>(&other);
    return o && a_->equals(*o->a_) && b_->equals(*o->b_);
  }

 private:
  std::shared_ptr<const Mask::Node> a_, b_;
};

}  // namespace

Span Mask::row(const MaskShape& shape, int64_t batch, int64_t head, int64_t query) const {
  if (!node_) return {0, shape.keys};
  const Span span = node_->row(shape, batch, head, query);
  const int64_t begin = std::max<int64_t>(span.begin, 0), end = std::min(span.end, shape.keys);
  return begin < end ? Span{begin, end} : Span{0, 0};
}

bool Mask::varies_by_batch() const { return node_ && node_->varies_by_batch(); }

void Mask::check(const MaskShape& shape) const {
  if (node_) node_->check(shape);
}

Mask operator&(const Mask& a, const Mask& b) {
  if (!a.node_) return b;
  if (!b.node_) return a;
  return Mask(std::make_shared<Both>(a.node_, b.node_));
}

bool operator==(const Mask& a, const Mask& b) {
  if (a.node_ == b.node_) return true;
  return a.node_ && b.node_ && a.node_->equals(*b.node_);
}

Mask causal(std::optional<int64_t> offset) { return window(-1, 0, offset); }

Mask window(int64_t left, int64_t right, std::optional<int64_t> offset) {
  if (left < -1 || right < -1)
    throw Error("window(" + std::to_string(left) + ", " + std::to_string(right) +
                ") has a side below -1; use -1 for an unbounded side and 0 or more for a count of neighbours");
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

}  // namespace heed
