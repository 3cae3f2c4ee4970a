// An evaluator for C's expressions over n, as gettext's manual has them in "Plural forms".
#include "apps/translate/documents/plural_forms.h"

#include <heed/attention.h>

#include <cctype>

namespace heed::translate {
namespace {

constexpr int kDeepest = 100;

// Computes the expression for one n while it reads it. Throws heed::Error when it does not make sense.
class Expression {
 public:
  Expression(std::string_view text, int64_t n) : text_(text), n_(n) {}

  int64_t value() {
    const int64_t v = choice();
    space();
    if (at_ != text_.size()) throw Error("text behind the expression");
    return v;
  }

 private:
  void space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
  }

  bool take(std::string_view token) {
    space();
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }

  int64_t choice() {
    if (++depth_ > kDeepest) throw Error("nested too deeply");
    const int64_t condition = either();
    int64_t v = condition;
    if (take("?")) {
      const int64_t yes = choice();
      if (!take(":")) throw Error("? without :");
      const int64_t no = choice();
      v = condition != 0 ? yes : no;
    }
    --depth_;
    return v;
  }

  int64_t either() {
    int64_t v = both();
    while (take("||")) v = static_cast<int64_t>(both() != 0) | static_cast<int64_t>(v != 0);
    return v;
  }

  int64_t both() {
    int64_t v = equal();
    while (take("&&")) v = static_cast<int64_t>(equal() != 0) & static_cast<int64_t>(v != 0);
    return v;
  }

  int64_t equal() {
    int64_t v = less();
    for (;;) {
      if (take("==")) {
        v = static_cast<int64_t>(v == less());
      } else if (take("!=")) {
        v = static_cast<int64_t>(v != less());
      } else {
        return v;
      }
    }
  }

  int64_t less() {
    int64_t v = sum();
    for (;;) {
      if (take("<=")) {
        v = static_cast<int64_t>(v <= sum());
      } else if (take(">=")) {
        v = static_cast<int64_t>(v >= sum());
      } else if (take("<")) {
        v = static_cast<int64_t>(v < sum());
      } else if (take(">")) {
        v = static_cast<int64_t>(v > sum());
      } else {
        return v;
      }
    }
  }

  // Small numbers only, so that nothing overflows.
  static int64_t small(int64_t v) {
    if (v > 1'000'000 || v < -1'000'000) throw Error("a number is too large");
    return v;
  }

  int64_t sum() {
    int64_t v = product();
    for (;;) {
      if (take("+")) {
        v = small(v + product());
      } else if (take("-")) {
        v = small(v - product());
      } else {
        return v;
      }
    }
  }

  int64_t product() {
    int64_t v = operand();
    for (;;) {
      space();
      if (take("*")) {
        v = small(v * operand());
      } else if (take("%") || take("/")) {
        const bool rest = text_[at_ - 1] == '%';
        const int64_t by = operand();
        if (by == 0) throw Error("division by zero");
        v = rest ? v % by : v / by;
      } else {
        return v;
      }
    }
  }

  int64_t operand() {
    space();
    if (take("!")) {
      if (++depth_ > kDeepest) throw Error("nested too deeply");
      const int64_t v = static_cast<int64_t>(operand() == 0);
      --depth_;
      return v;
    }
    if (take("(")) {
      const int64_t v = choice();
      if (!take(")")) throw Error("( without )");
      return v;
    }
    if (take("n")) return n_;
    if (at_ == text_.size() || std::isdigit(static_cast<unsigned char>(text_[at_])) == 0) throw Error("no operand");
    int64_t v = 0;
    for (; at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])) != 0; ++at_) {
      v = small(v * 10 + (text_[at_] - '0'));
    }
    return v;
  }

  std::string_view text_;
  int64_t n_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

std::optional<PluralForms> parse_plural_forms(std::string_view header) {
  constexpr std::string_view kCount = "nplurals=", kRule = "plural=";
  const size_t at = header.find(kCount);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view behind = header.substr(at + kCount.size());
  PluralForms forms;
  forms.count = 0;
  size_t i = 0;
  while (i < behind.size() && behind[i] == ' ') ++i;
  for (; i < behind.size() && std::isdigit(static_cast<unsigned char>(behind[i])) != 0 && forms.count < 1000; ++i) {
    forms.count = forms.count * 10 + (behind[i] - '0');
  }
  if (forms.count < 1 || forms.count > 20) return std::nullopt;
  forms.singular_is_one = forms.count > 1;
  const size_t rule = behind.find(kRule);
  if (rule == std::string_view::npos) return forms;
  std::string_view text = behind.substr(rule + kRule.size());
  text = text.substr(0, text.find_first_of(";\n"));
  try {
    const int64_t one = Expression(text, 1).value();
    if (one < 0 || one >= forms.count) return forms;
    bool only = true;
    for (int64_t n = 0; n <= 1000 && only; ++n) only = n == 1 || Expression(text, n).value() != one;
    forms.singular = one;
    forms.singular_is_one = only;
  } catch (const Error&) {
    // The header is the user's; msgfmt will tell what is wrong with it.
  }
  return forms;
}

}  // namespace heed::translate
