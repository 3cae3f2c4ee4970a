// Cutting passages into parts, choosing among translations, and putting them together.
#include "apps/translate/documents/passages.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <optional>
#include <unordered_map>

#include "apps/translate/documents/accelerators.h"
#include "apps/translate/documents/layout.h"
#include "apps/translate/documents/sentences.h"
#include "apps/translate/utf8.h"

namespace heed::translate {
namespace {

constexpr int64_t kLongText = 40;          // words; what clean_messages keeps for training ends there
constexpr int64_t kLongestSentence = 100;  // words
constexpr size_t kManyBytes = 1000;        // more than 40 words have, unless one of them is none
constexpr size_t kBlob = 100;              // a word of so many ASCII characters is none

// Below this confidence a translation has its placeholders only because they were forced into it, and the words between
// them, translated one by one, may be better: if they are so much surer.
constexpr double kForced = 0.25, kMuchSurer = 2;
constexpr int64_t kFewWords =
    2;  // between placeholders, that may stay as they are if the model does not get them right
constexpr const char* kNotKept = "its placeholders could not be kept";

using How = Rendering::How;

// The control characters of a text, sorted.
std::string controls(std::string_view text) {
  std::string found;
  std::copy_if(text.begin(), text.end(), std::back_inserter(found),
               [](char c) { return is_control(static_cast<unsigned char>(c)); });
  std::sort(found.begin(), found.end());
  return found;
}

// Whether there is something to translate outside the placeholders.
bool has_words(std::string_view text, std::span<const Placeholder> placeholders) {
  size_t next = 0, size = 0;
  for (size_t i = 0; i < text.size(); i += size) {
    const bool letter = is_letter(character_at(text, i, size));
    while (next < placeholders.size() && placeholders[next].end <= i) ++next;
    if (letter && (next == placeholders.size() || i < placeholders[next].begin)) return true;
  }
  return false;
}

// A key, a hash, a picture in base64.
bool is_blob(std::string_view text) {
  return text.size() > kBlob && std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

std::u32string folded(std::string_view text) {
  std::u32string out;
  for (const char32_t c : decode_utf8(text)) {
    const std::u32string small = lower(std::u32string_view(&c, 1));
    out.push_back(small.size() == 1 ? small.front() : c);
  }
  return out;
}

bool has_accelerator(std::string text, const Formats& formats) { return take_accelerator(text, formats).has_value(); }

// A model of lower-cased text writes $home for $HOME: gives what is required its capitals back.
void restore_capitals(std::string& text, const std::vector<Required>& required) {
  for (const std::string& each : lacking(text, texts_of(required))) {
    const std::u32string all = folded(text), wanted = folded(each);
    std::u32string characters = decode_utf8(text);
    const std::u32string exact = decode_utf8(each);
    const auto is_word = [](char32_t c) { return is_letter(c) || (c >= '0' && c <= '9'); };
    for (size_t at = 0; (at = all.find(wanted, at)) != std::u32string::npos; ++at) {
      const size_t end = at + wanted.size();
      const bool grown = (at > 0 && is_word(all[at - 1]) && is_word(all[at])) ||
                         (end < all.size() && is_word(all[end]) && is_word(all[end - 1]));
      if (grown || characters.compare(at, wanted.size(), exact) == 0) continue;
      characters.replace(at, wanted.size(), exact);
      text = encode_utf8(characters);
      break;
    }
  }
}

// Pairs of tags with nothing between them.
int64_t hollow_tags(std::string_view text, const Formats& formats) {
  const std::vector<Placeholder> all = find_placeholders(text, formats);
  int64_t n = 0;
  for (size_t i = 1; i < all.size(); ++i) {
    if (all[i].kind != Placeholder::Kind::tag || all[i - 1].kind != Placeholder::Kind::tag) continue;
    const bool pair = text[all[i].begin + 1] == '/' && text[all[i - 1].begin + 1] != '/';
    n += pair && trimmed(text.substr(all[i - 1].end, all[i].begin - all[i - 1].end)).empty() ? 1 : 0;
  }
  return n;
}

// What the engine is asked, each question once.
class Questions {
 public:
  size_t add(Task task) {
    std::string key = task.text;
    for (const Required& each : task.required) key += '\0' + each.text;
    const auto [it, fresh] = index_.try_emplace(std::move(key), tasks_.size());
    if (fresh) tasks_.push_back(std::move(task));
    return it->second;
  }
  void ask(const Engine& engine) {
    if (!tasks_.empty()) answers_ = engine(tasks_);
    answers_.resize(tasks_.size());
    for (size_t i = 0; i < tasks_.size(); ++i) {
      if (tasks_[i].required.empty()) continue;
      for (Candidate& candidate : answers_[i]) restore_capitals(candidate.text, tasks_[i].required);
    }
  }
  const std::vector<Candidate>& answer(size_t i) const { return answers_[i]; }

 private:
  std::vector<Task> tasks_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::vector<Candidate>> answers_;
};

// A sentence or a passage without line breaks: the smallest thing that is translated as a whole.
struct Part {
  std::string text;
  bool copied = false;  // as it is
  size_t question = 0;
  std::vector<Placeholder> placeholders;
  std::vector<std::string> terms;  // targets that it must have

  struct Piece {
    std::string before, text, after;  // white space, words, white space; the words are copied unless asked
    bool asked = false;
    size_t question = 0;
    std::vector<std::string> terms;
  };
  std::vector<Piece> pieces;  // words between placeholders, and the placeholders

  std::string result, why;
  How how = How::whole;
  Candidate chosen;
  double weighted_score = 0, weighted_log = 0;  // sums over tokens
  int64_t tokens = 0, left_out = 0;
  std::vector<int64_t> origins;
  std::vector<std::string> missing_terms;
};

// A line as parts with white space behind each.
struct Segment {
  Line line;
  std::vector<size_t> parts;
  std::vector<std::string> spaces;
};

struct Plan {
  std::optional<Accelerator> accelerator;
  std::string stripped;  // the text without the accelerator's marker
  std::vector<Segment> segments;
  std::string end;  // the separator behind the last one
};

class Renderer {
 public:
  Renderer(std::span<const Passage> passages, const Engine& engine, const RenderOptions& options)
      : passages_(passages), engine_(engine), options_(options) {}

  std::vector<Rendering> run() {
    for (const Passage& passage : passages_) plans_.push_back(plan(passage));
    first_.ask(engine_);
    for (size_t i = 0; i < plans_.size(); ++i) {
      each_part(i, [&](Part& part) { choose(part, passages_[i], plans_[i]); });
    }
    second_.ask(engine_);
    std::vector<Rendering> renderings;
    for (size_t i = 0; i < plans_.size(); ++i) {
      each_part(i, [&](Part& part) { put_together(part, passages_[i], plans_[i]); });
      renderings.push_back(rendering(passages_[i], plans_[i]));
    }
    return renderings;
  }

 private:
  template <class Function>
  void each_part(size_t i, Function function) {
    for (Segment& segment : plans_[i].segments) {
      for (const size_t part : segment.parts) function(parts_[part]);
    }
  }

  // ---- Step 1: parts ----

  Plan plan(const Passage& passage) {
    Plan plan;
    plan.stripped = passage.text;
    if (!options_.placeholders) {
      Segment segment;
      cut(segment, passage.text, passage);
      plan.segments.push_back(std::move(segment));
      return plan;
    }
    plan.accelerator = take_accelerator(plan.stripped, passage.formats);
    Layout layout = lay_out(plan.stripped, passage.formats);
    for (Line& line : layout.lines) {
      Segment segment;
      cut(segment, line.text, passage);
      segment.line = std::move(line);
      plan.segments.push_back(std::move(segment));
    }
    plan.end = std::move(layout.end);
    return plan;
  }

  void cut(Segment& segment, const std::string& text, const Passage& passage) {
    std::vector<Sentence> sentences;
    if (!is_blob(text) && (count_words(text) > kLongText || text.size() > kManyBytes)) {
      sentences = split_sentences(text, kLongestSentence);
    }
    if (sentences.empty()) {
      add_part(segment, text, "", passage);
      return;
    }
    std::vector<Placeholder> placeholders;
    if (options_.placeholders) placeholders = find_placeholders(text, passage.formats);
    size_t at = sentences.front().before.size(), next = 0;
    std::string open;  // sentences that a placeholder runs across stay together
    for (const Sentence& sentence : sentences) {
      open += sentence.text;
      at += sentence.text.size() + sentence.after.size();
      while (next < placeholders.size() && placeholders[next].end <= at) ++next;
      if (next < placeholders.size() && placeholders[next].begin < at) {
        open += sentence.after;
      } else {
        add_part(segment, std::exchange(open, {}), sentence.after, passage);
      }
    }
    if (!open.empty()) add_part(segment, open, "", passage);
  }

  void add_part(Segment& segment, const std::string& text, const std::string& space, const Passage& passage) {
    Part part;
    part.text = text;
    if (options_.placeholders) part.placeholders = find_placeholders(text, passage.formats);
    part.copied = is_blob(text) || (options_.placeholders && !has_words(text, part.placeholders));
    if (!part.copied) {
      const std::vector<Required> terms = terms_in(text, part.placeholders);
      part.terms = texts_of(terms);
      Task task{passage.prefix + text, {}};
      for (const Placeholder& each : part.placeholders) task.required.push_back(must_stay(text, each));
      task.required.insert(task.required.end(), terms.begin(), terms.end());
      part.question = first_.add(behind(passage.prefix, std::move(task)));
    }
    segment.parts.push_back(parts_.size());
    segment.spaces.push_back(space);
    parts_.push_back(std::move(part));
  }

  std::vector<Required> terms_in(const std::string& text, std::span<const Placeholder> placeholders) const {
    std::vector<Required> targets;
    if (options_.terms == nullptr) return targets;
    for (const TermMatch& match : options_.terms->find(text)) {
      const bool free = std::none_of(placeholders.begin(), placeholders.end(),
                                     [&](const Placeholder& p) { return match.begin < p.end && p.begin < match.end; });
      if (free) targets.push_back({match.term->target, match.begin, match.end, true});
    }
    return targets;
  }

  static Required must_stay(const std::string& text, const Placeholder& placeholder) {
    const auto is_word = [&text](size_t at) {
      const auto c = at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
      return c >= 0x80 || std::isalnum(c) != 0;
    };
    // <b>words</b> are touched, and a name or path that has grown is another one, which intact() sees.
    const bool directive =
        placeholder.kind == Placeholder::Kind::printf || placeholder.kind == Placeholder::Kind::brace;
    const bool touched = (placeholder.begin > 0 && is_word(placeholder.begin - 1)) || is_word(placeholder.end);
    return {text.substr(placeholder.begin, placeholder.end - placeholder.begin), placeholder.begin, placeholder.end,
            directive && !touched};
  }

  // The task with the prefix that its text has got taken into account.
  static Task behind(const std::string& prefix, Task task) {
    for (Required& each : task.required) {
      each.begin += prefix.size();
      each.end += prefix.size();
    }
    return task;
  }

  // ---- Steps 2 and 3: translations ----

  bool acceptable(const std::string& source, const Candidate& candidate, const Passage& passage,
                  const Plan& plan) const {
    if (trimmed(candidate.text).empty()) return false;
    if (!options_.placeholders) return true;
    if (candidate.left_out > 0) return false;
    if (!intact(source, candidate.text, passage.formats)) return false;
    if (hollow_tags(candidate.text, passage.formats) > hollow_tags(source, passage.formats)) return false;
    // They are separators, or inside of placeholders (a terminal's colours).
    if (controls(candidate.text) != controls(source)) return false;
    if (plan.accelerator) {
      const std::string marker(1, plan.accelerator->marker);
      if (occurrences(candidate.text, marker) != occurrences(source, marker)) return false;
    } else if (has_accelerator(candidate.text, passage.formats)) {
      return false;
    }
    return std::all_of(passage.before.begin(), passage.before.end(), [&](const auto& pair) {
      const size_t first = candidate.text.find(pair.first), second = candidate.text.find(pair.second);
      return first == std::string::npos || second == std::string::npos || first < second;
    });
  }

  // The first that is acceptable and has all terms, else the first that is acceptable.
  const Candidate* best(const std::string& source, const std::vector<Candidate>& candidates,
                        const std::vector<std::string>& terms, const Passage& passage, const Plan& plan) const {
    const Candidate* first = nullptr;
    for (const Candidate& candidate : candidates) {
      if (!acceptable(source, candidate, passage, plan)) continue;
      if (lacking(candidate.text, terms).empty()) return &candidate;
      if (first == nullptr) first = &candidate;
    }
    return first;
  }

  static void count(Part& part, const Candidate& candidate) {
    const auto tokens = static_cast<double>(std::max<int64_t>(candidate.tokens, 1));
    part.weighted_score += tokens * candidate.score;
    part.weighted_log += tokens * std::log(std::max(candidate.confidence, 1e-300));
    part.tokens += static_cast<int64_t>(tokens);
    part.left_out += candidate.left_out;
    part.origins.push_back(candidate.origin);
  }

  void choose(Part& part, const Passage& passage, const Plan& plan) {
    if (part.copied) {
      part.result = part.text;
      part.how = How::copied;
      return;
    }
    const std::vector<Candidate>& candidates = first_.answer(part.question);
    if (const Candidate* found = best(part.text, candidates, part.terms, passage, plan)) {
      part.chosen = *found;
      part.result = trimmed(found->text);
      part.missing_terms = lacking(part.result, part.terms);
      count(part, *found);
      if (part.placeholders.empty() || !options_.placeholders || found->confidence >= kForced) return;
      cut_pieces(part, passage);  // which may be better
      return;
    }
    const bool too_long =
        std::any_of(candidates.begin(), candidates.end(), [](const auto& c) { return c.left_out > 0; });
    if (!options_.placeholders || part.placeholders.empty()) {
      const bool silent =
          std::all_of(candidates.begin(), candidates.end(), [](const auto& c) { return trimmed(c.text).empty(); });
      part.why = too_long ? "too long for the model"
                 : silent ? "the model gave nothing"
                          : "the model invented a placeholder";
      return;
    }
    part.how = How::piecewise;
    cut_pieces(part, passage);
  }

  void cut_pieces(Part& part, const Passage& passage) {
    size_t at = 0;
    const auto add = [&](size_t end) {
      const std::string text = part.text.substr(at, end - at);
      if (text.empty()) return;
      Part::Piece piece;
      const std::string_view words = trimmed(text);
      const size_t begin = words.empty() ? text.size() : static_cast<size_t>(words.data() - text.data());
      piece.before = text.substr(0, begin);
      piece.text = words;
      piece.after = text.substr(begin + words.size());
      if (has_words(piece.text, {})) {
        piece.asked = true;
        const std::vector<Required> terms = terms_in(piece.text, {});
        piece.terms = texts_of(terms);
        piece.question = second_.add(behind(passage.prefix, {passage.prefix + piece.text, terms}));
      }
      part.pieces.push_back(std::move(piece));
    };
    for (const Placeholder& placeholder : part.placeholders) {
      add(placeholder.begin);
      part.pieces.push_back(
          {"", part.text.substr(placeholder.begin, placeholder.end - placeholder.begin), "", false, 0, {}});
      at = placeholder.end;
    }
    add(part.text.size());
  }

  void put_together(Part& part, const Passage& passage, const Plan& plan) {
    if (part.pieces.empty()) return;
    Part joined;
    joined.how = How::piecewise;
    for (const Part::Piece& piece : part.pieces) {
      std::string text = piece.text;
      if (piece.asked) {
        const Candidate* found = best(piece.text, second_.answer(piece.question), piece.terms, passage, plan);
        if (found != nullptr) {
          count(joined, *found);
          text = trimmed(found->text);
        } else if (count_words(text) > kFewWords) {
          joined.why = kNotKept;
          break;
        }
        // A model ends what it takes for a sentence.
        if (text.size() > 1 && text.ends_with(".") && !piece.text.ends_with(".")) text.pop_back();
      }
      joined.result += piece.before + text + piece.after;
    }
    if (joined.why.empty() && !intact(part.text, joined.result, passage.formats)) joined.why = kNotKept;
    if (part.how == How::whole) {
      const auto sure = [](const Part& p) {
        return p.weighted_log / static_cast<double>(std::max<int64_t>(p.tokens, 1));
      };
      if (!joined.why.empty() || sure(joined) < sure(part) + std::log(kMuchSurer)) return;
    }
    part.how = How::piecewise;
    part.why = joined.why;
    part.result = joined.result;
    part.weighted_score = joined.weighted_score;
    part.weighted_log = joined.weighted_log;
    part.tokens = joined.tokens;
    part.left_out = joined.left_out;
    part.origins = joined.origins;
    part.missing_terms = lacking(part.result, part.terms);
  }

  // ---- Step 5: passages ----

  // The passage with these texts as its parts'; nothing if they do not fit.
  std::optional<std::string> assemble(const Passage& passage, const Plan& plan,
                                      const std::function<const std::string&(const Part&)>& text_of) const {
    std::string out;
    for (const Segment& segment : plan.segments) {
      std::string text;
      for (size_t i = 0; i < segment.parts.size(); ++i) text += text_of(parts_[segment.parts[i]]) + segment.spaces[i];
      if (!break_again(text, segment.line, passage.formats)) return std::nullopt;
      out += segment.line.before + text;
    }
    out += plan.end;
    if (!options_.placeholders) return out;
    if (!intact(plan.stripped, out, passage.formats) || has_accelerator(out, passage.formats)) return std::nullopt;
    if (plan.accelerator) {
      const std::string without = out;
      put_accelerator(out, *plan.accelerator, passage.formats);
      std::string again = out;
      const auto found = take_accelerator(again, passage.formats);
      // "打开(&O)" gives "打开"; anything else means that the marker made or broke a placeholder.
      if (!found || again != without) return std::nullopt;
    }
    return out;
  }

  Rendering rendering(const Passage& passage, const Plan& plan) const {
    Rendering r;
    r.sentences = 0;
    double score = 0, log = 0;
    int64_t tokens = 0;
    bool piecewise = false, translated = false;
    for (const Segment& segment : plan.segments) {
      for (const size_t index : segment.parts) {
        const Part& part = parts_[index];
        if (r.why.empty()) r.why = part.why;
        score += part.weighted_score;
        log += part.weighted_log;
        tokens += part.tokens;
        r.left_out += part.left_out;
        r.origins.insert(r.origins.end(), part.origins.begin(), part.origins.end());
        piecewise = piecewise || part.how == How::piecewise;
        translated = translated || part.how == How::whole;
        r.missing_terms.insert(r.missing_terms.end(), part.missing_terms.begin(), part.missing_terms.end());
      }
      r.sentences = std::max(r.sentences, static_cast<int64_t>(segment.parts.size()));
    }
    r.how = piecewise ? How::piecewise : translated ? How::whole : How::copied;
    if (tokens > 0) {
      r.score = score / static_cast<double>(tokens);
      r.confidence = std::exp(log / static_cast<double>(tokens));
    }
    if (r.why.empty()) {
      const auto text = assemble(passage, plan, [](const Part& part) -> const std::string& { return part.result; });
      if (text) {
        r.text = *text;
      } else {
        r.why = kNotKept;
      }
    }
    if (r.why.empty()) add_alternatives(r, passage, plan);
    return r;
  }

  void add_alternatives(Rendering& r, const Passage& passage, const Plan& plan) const {
    if (plan.segments.size() != 1 || plan.segments[0].parts.size() != 1 || r.how != How::whole) return;
    const Part& part = parts_[plan.segments[0].parts[0]];
    for (const Candidate& candidate : first_.answer(part.question)) {
      if (candidate.text == part.chosen.text || !acceptable(part.text, candidate, passage, plan)) continue;
      const std::string trimmed_text(trimmed(candidate.text));
      const auto text = assemble(passage, plan, [&](const Part&) -> const std::string& { return trimmed_text; });
      if (!text) continue;
      r.alternatives.push_back(candidate);
      r.alternatives.back().text = *text;
    }
  }

  std::span<const Passage> passages_;
  const Engine& engine_;
  const RenderOptions& options_;
  std::vector<Part> parts_;
  std::vector<Plan> plans_;
  Questions first_, second_;
};

}  // namespace

std::vector<Rendering> render(std::span<const Passage> passages, const Engine& engine, const RenderOptions& options) {
  return Renderer(passages, engine, options).run();
}

}  // namespace heed::translate
