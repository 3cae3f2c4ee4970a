// The demo's page as HTML, SVG and CSS.
#include "apps/page.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "apps/page_style.h"
#include "apps/terminal.h"
#include "apps/translate/utf8.h"

namespace heed::app {
namespace {

constexpr char kEndOfSentence[] = "</s>";
constexpr char kWordStart[] = "▁";  // SentencePiece's mark, U+2581
constexpr size_t kShownWords = 12;  // of a text in the explanation
constexpr size_t kShownNumbers = 16;

std::string number(double x, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, x);
  if (text[0] == '-' && std::string_view(text).find_first_of("123456789") == std::string_view::npos) return text + 1;
  // U+2212, as wide as a digit.
  return text[0] == '-' ? "−" + std::string(text + 1) : text;
}

// A number for SVG and CSS, where the minus sign is ASCII's.
std::string coordinate(double x) {
  char text[64];
  std::snprintf(text, sizeof text, "%.1f", x);
  return text;
}

std::string share(float weight) {
  char text[16];
  std::snprintf(text, sizeof text, "%.3f", std::isfinite(weight) ? std::clamp(weight, 0.0f, 1.0f) : 0.0f);
  return text;
}

// Whether a piece has to say that it goes on with a word. A dot before a comma would only look like dirt.
bool joins(const std::string& piece) {
  for (char32_t c : translate::decode_utf8(piece)) {
    if ((c >= U'0' && c <= U'9') || translate::is_letter(c)) return true;
  }
  return false;
}

// A piece as people read it: the mark goes from pieces that start a word; those inside one get a dot.
std::string piece_text(const std::string& piece) {
  if (piece == kEndOfSentence) return "end";
  if (piece.starts_with(kWordStart)) {
    const std::string rest = piece.substr(sizeof kWordStart - 1);
    return rest.empty() ? "space" : rest;
  }
  return joins(piece) ? "·" + piece : piece;
}

std::string piece_html(const std::string& piece) {
  const std::string text = piece_text(piece);
  if (piece == kEndOfSentence || piece == kWordStart) {
    return "<em class=\"join\">" + text + "</em>";
  }
  if (piece.starts_with(kWordStart) || !joins(piece)) return escape_html(text);
  return "<span class=\"join\">·</span>" + escape_html(piece);
}

std::string heat_map(const PageOutput& t) {
  std::string out =
      "<div class=\"scroll\"><table class=\"map\" tabindex=\"0\" aria-label=\"Where the translation looked: rows are "
      "its pieces, columns the source's. Arrow keys move.\">\n<thead><tr><td></td>";
  for (const std::string& piece : t.source_pieces) {
    // The span turns the label; the mark of a piece that goes on must turn with it.
    out += "<th scope=\"col\"><span>" + piece_html(piece) + "</span></th>";
  }
  out += "</tr></thead>\n<tbody>\n";
  for (size_t i = 0; i < std::min(t.pieces.size(), t.attention.size()); ++i) {
    out += "<tr><th scope=\"row\">" + piece_html(t.pieces[i]) + "</th>";
    for (size_t j = 0; j < std::min(t.source_pieces.size(), t.attention[i].size()); ++j) {
      const std::string weight = share(t.attention[i][j]);
      out += "<td class=\"w\" style=\"--a:" + weight + "\" title=\"" + escape_html(piece_text(t.pieces[i])) + " ← " +
             weight + " of " + escape_html(piece_text(t.source_pieces[j])) + "\"></td>";
    }
    out += "</tr>\n";
  }
  return out +
         "</tbody></table></div>\n<p class=\"readout\" aria-live=\"polite\">Point at or tap a square for its "
         "weight.</p>\n";
}

std::string translations_html(const Page& page) {
  if (page.translations.empty()) return "";
  std::string out = "<section>\n<h2>Where each word came from</h2>\n<p class=\"note\">" +
                    escape_html(page.translations_note) +
                    "</p>\n<p class=\"note\">Each row is a piece of the translation, each column a piece of the "
                    "source; the stronger the square, the more weight the model gave that source piece when it wrote "
                    "the row’s. A row sums to 1. A dot before a piece says that it goes on with the word.</p>\n"
                    "<p class=\"legend\"><span>0</span><i></i><span>1</span></p>\n";
  for (const PageTranslation& t : page.translations) {
    const auto row = [](const char* name, const char* css, const std::string& text, const char* language) {
      return std::string("<dt>") + name + "</dt><dd class=\"" + css + "\"" +
             (*language ? " lang=\"" + std::string(language) + "\"" : "") + ">" +
             (text.empty() ? "<em>nothing</em>" : escape_html(text)) + "</dd>\n";
    };
    out += "<article class=\"pair\">\n<dl>\n" + row("Source", "source", t.source, "") +
           row("Translation", "output", t.output.text, "") +
           (t.boxed.text.empty() ? "" : row("The model in the box", "boxed", t.boxed.text, "")) +
           row("Reference", "reference", t.reference, "") + "</dl>\n";
    if (!t.output.attention.empty()) out += "<div class=\"looked\">" + heat_map(t.output) + "</div>\n";
    if (!t.boxed.attention.empty()) {
      out += "<details class=\"looked\"><summary>Where the model in the box looked</summary>\n" + heat_map(t.boxed) +
             "</details>\n";
    }
    out += "</article>\n";
  }
  return out + "</section>\n";
}

// ---- The curve ----

// Steps of 1, 2 or 5 times a power of ten, at most `most` of them over the span.
double tick_step(double span, int most) {
  const double raw = span / most;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) return factor * power;
  }
  return 10 * power;
}

// Time is read in seconds below two minutes, in hours above three, in minutes between.
struct TimeUnit {
  const char* name;
  double seconds;
};
TimeUnit time_unit(double seconds) {
  if (seconds < 120) return {"seconds", 1};
  if (seconds < 3 * 3600) return {"minutes", 60};
  return {"hours", 3600};
}

struct Curve {
  double PagePoint::*loss;
  const char* css;
  const char* name;
  bool dots;  // few points, worth a mark each
};

std::string curve_svg(const std::vector<PagePoint>& points, const std::string& unit_of_loss, const char* css,
                      double width, double height) {
  static constexpr Curve kCurves[] = {{&PagePoint::train_loss, "train", "training", false},
                                      {&PagePoint::valid_loss, "valid", "validation", true}};
  double end = 0, low = INFINITY, high = -INFINITY;
  for (const PagePoint& p : points) {
    for (const Curve& curve : kCurves) {
      if (!std::isfinite(p.*curve.loss)) continue;
      low = std::min(low, p.*curve.loss);
      high = std::max(high, p.*curve.loss);
      end = std::max(end, p.seconds);
    }
  }
  if (!(high >= low) || end <= 0) return "";
  const double y_step = tick_step(std::max(high - low, 0.1), 5);
  low = std::floor(low / y_step) * y_step;
  high = std::max(std::ceil(high / y_step) * y_step, low + y_step);
  const TimeUnit unit = time_unit(end);
  const double x_step = tick_step(end / unit.seconds, width > 500 ? 8 : 5);
  constexpr double kLeft = 40, kRight = 12, kTop = 30, kBottom = 46;
  const double right = width - kRight, bottom = height - kBottom;
  const auto x = [&](double seconds) { return kLeft + (right - kLeft) * seconds / end; };
  const auto y = [&](double loss) { return bottom - (bottom - kTop) * (loss - low) / (high - low); };

  std::string out = "<svg class=\"curve " + std::string(css) + "\" viewBox=\"0 0 " + coordinate(width) + " " +
                    coordinate(height) + "\" role=\"img\" aria-label=\"Training and validation loss over time\">\n";
  const int decimals = y_step < 0.1 ? 2 : y_step < 1 ? 1 : 0;
  for (int i = 0; low + i * y_step <= high + y_step / 2; ++i) {
    const std::string at = coordinate(y(low + i * y_step));
    out += "<line class=\"grid\" x1=\"" + coordinate(kLeft) + "\" x2=\"" + coordinate(right) + "\" y1=\"" + at +
           "\" y2=\"" + at + "\"/><text x=\"" + coordinate(kLeft - 8) + "\" y=\"" + at +
           "\" text-anchor=\"end\" dominant-baseline=\"central\">" + number(low + i * y_step, decimals) + "</text>\n";
  }
  for (int i = 0; i * x_step * unit.seconds <= end * 1.0001; ++i) {
    out += "<text x=\"" + coordinate(x(i * x_step * unit.seconds)) + "\" y=\"" + coordinate(bottom + 18) +
           "\" text-anchor=\"middle\">" + number(i * x_step, x_step < 1 ? 1 : 0) + "</text>\n";
  }
  out += "<text x=\"" + coordinate((kLeft + right) / 2) + "\" y=\"" + coordinate(height - 6) +
         "\" text-anchor=\"middle\">" + unit.name + " of training</text>\n<text x=\"0\" y=\"12\">loss, nats per " +
         escape_html(unit_of_loss) + "</text>\n";
  double name_x = right;  // names stand above the plot, from the right
  for (int i = 1; i >= 0; --i) {
    const Curve& curve = kCurves[i];
    std::string path, dots;
    for (const PagePoint& p : points) {
      if (!std::isfinite(p.*curve.loss)) continue;
      const std::string px = coordinate(x(p.seconds)), py = coordinate(y(p.*curve.loss));
      path += (path.empty() ? "M" : "L") + px + " " + py;
      if (curve.dots) {
        dots += "<circle cx=\"" + px + "\" cy=\"" + py + "\" r=\"3.5\"><title>" + duration(p.seconds) + ": " +
                number(p.*curve.loss, 3) + "</title></circle>";
      }
    }
    if (path.empty()) continue;
    out += "<path class=\"" + std::string(curve.css) + "\" d=\"" + path + "\"/>" + dots + "\n<text class=\"" +
           curve.css + "\" x=\"" + coordinate(name_x) + "\" y=\"12\" text-anchor=\"end\">" +
           (curve.dots ? "● " : "— ") + curve.name + "</text>\n";
    name_x -= 92;
  }
  return out + "</svg>\n";
}

std::string curve_html(const std::vector<PagePoint>& points, const std::string& unit, const std::string& caption) {
  if (points.size() < 2) return "";
  const std::string wide = curve_svg(points, unit, "wide", 880, 380);
  if (wide.empty()) return "";
  return "<figure>\n" + wide + curve_svg(points, unit, "narrow", 360, 300) + "<figcaption>" + caption +
         "</figcaption>\n</figure>\n";
}

std::string learning_html(const Page& page) {
  const std::string curve =
      curve_html(page.curve, "token",
                 "The loss says how surprised the model is by the right next piece: 0 is never, and e to its power is "
                 "the number of pieces it wavers between. Validation is on pairs it does not train on.");
  return curve.empty() ? "" : "<section>\n<h2>How it learned</h2>\n" + curve + "</section>\n";
}

// ---- Pictures ----

std::string base64(std::string_view bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t three = 0;
    for (size_t j = 0; j < 3; ++j)
      three = three << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    for (int digit = 3; digit >= 0; --digit) out += kDigits[three >> 6 * digit & 63];
  }
  if (bytes.size() % 3 == 1) out.replace(out.size() - 2, 2, "==");
  if (bytes.size() % 3 == 2) out.back() = '=';
  return out;
}

std::string picture_html(const PagePicture& picture) {
  std::string out = "<article class=\"picture\">\n<div class=\"views\">";
  for (const PageImage& image : picture.images) {
    const std::string caption = escape_html(image.caption);
    out += "<div><img alt=\"" + caption + "\" src=\"data:image/png;base64," + base64(image.png) + "\"><span>" +
           caption + "</span></div>";
  }
  out += "</div>\n";
  if (!picture.answers.empty()) out += "<dl class=\"answers\">\n";
  for (const PageShare& answer : picture.answers) {
    out += "<dt>" + escape_html(answer.name) + "</dt><dd><i style=\"--a:" + share(static_cast<float>(answer.share)) +
           "\"></i>" + number(100 * answer.share, 1) + "%</dd>\n";
  }
  if (!picture.answers.empty()) out += "</dl>\n";
  return out + "</article>\n";
}

std::string pictures_html(const PagePictures& task) {
  std::string out =
      "<section>\n<h2>" + escape_html(task.title) + "</h2>\n<p class=\"note\">" + escape_html(task.note) + "</p>\n";
  if (!task.scores.empty()) {
    out += "<table class=\"scores\"><tbody>\n";
    for (const PageFact& score : task.scores) {
      out +=
          "<tr><th scope=\"row\">" + escape_html(score.name) + "</th><td>" + escape_html(score.value) + "</td></tr>\n";
    }
    out += "</tbody></table>\n";
  }
  if (!task.legend.empty()) {
    out += "<ul class=\"colours\">";
    for (const PageColour& colour : task.legend) {
      const auto part = [](uint8_t value) { return std::to_string(value); };
      out += "<li><i style=\"background:rgb(" + part(colour.red) + " " + part(colour.green) + " " + part(colour.blue) +
             ")\"></i>" + escape_html(colour.name) + "</li>";
    }
    out += "</ul>\n";
  }
  if (!task.pictures.empty()) {
    out += "<div class=\"pictures\">\n";
    for (const PagePicture& picture : task.pictures) out += picture_html(picture);
    out += "</div>\n";
  }
  return out +
         curve_html(task.curve, task.unit,
                    "The loss says how surprised the network is by the right class: 0 is never, and e to its power is "
                    "the number of classes it wavers between. In training it is asked for less than certainty, so that "
                    "curve ends higher.") +
         "</section>\n";
}

// ---- Scores and facts ----

std::string score_table(const std::vector<PageScore>& scores, const std::string& note) {
  if (scores.empty()) return "";
  std::string out =
      "<table class=\"scores\"><thead><tr><th></th><th scope=\"col\">BLEU</th>"
      "<th scope=\"col\">chrF</th></tr></thead>\n<tbody>\n";
  for (const PageScore& s : scores) {
    out += "<tr><th scope=\"row\">" + escape_html(s.name) + "</th><td>" + number(s.bleu, 1) + "</td><td>" +
           number(s.chrf, 1) + "</td></tr>\n";
  }
  return out + "</tbody></table>\n<p class=\"note\">" + escape_html(note) + "</p>\n";
}

std::string scores_html(const Page& page) {
  if (page.scores.empty()) return "";
  return "<section>\n<h2>How good it is</h2>\n" + score_table(page.scores, page.scores_note) +
         score_table(page.boxed_scores, page.boxed_note) + "</section>\n";
}

std::string facts_html(const Page& page) {
  if (page.facts.empty()) return "";
  std::string out = "<section>\n<h2>What was trained on what</h2>\n<dl class=\"facts\">\n";
  for (const PageFact& fact : page.facts) {
    out += "<dt>" + escape_html(fact.name) + "</dt><dd>" + escape_html(fact.value) + "</dd>\n";
  }
  return out + "</dl>\n</section>\n";
}

// ---- The explanation ----

class ExplanationHtml {
 public:
  explicit ExplanationHtml(const Explanation& e)
      : e_(e), dim_(static_cast<size_t>(e.options.dim)), numbers_(std::min(dim_, kShownNumbers)) {}

  std::string write() {
    const auto quoted = [](const std::vector<std::string>& words) {
      std::string text;
      for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
      return escape_html(fit(text, 200));
    };
    out_ = "<section class=\"steps\">\n<h2>The three steps of attention</h2>\n<p>Here <em>" + quoted(e_.query) +
           "</em> looks at <em>" + quoted(e_.text) + "</em>, as <span class=\"word\">heed explain</span> prints it: " +
           "score, weigh, gather. The words’ vectors are made from their letters, not learned: words spelled alike " +
           "get similar numbers, and what a word means plays no part.</p>\n<h3>The vectors</h3>\n" + open_vectors();
    vectors("query", e_.query, e_.q);
    vectors("text", e_.text, e_.kv);
    out_ += "</tbody></table></div>\n";
    for (size_t i = 0; i < std::min(e_.query.size(), kShownWords); ++i) query_word(i);
    char difference[32];
    std::snprintf(difference, sizeof difference, "%.1e", e_.difference);
    return out_ + "<p>The fused operator does the three steps in one pass and never stores the scores. Largest " +
           "difference from the sums above: " + (e_.difference == 0 ? "0" : difference) + ".</p>\n</section>\n";
  }

 private:
  std::string cell(double x) const {
    if (std::isinf(x)) return "<td>not seen</td>";
    return "<td>" + number(x, 3) + "</td>";
  }

  template <class Values>
  std::string cells(const Values& values, size_t offset) const {
    std::string out;
    for (size_t d = 0; d < numbers_; ++d) out += cell(values[offset + d]);
    return numbers_ < dim_ ? out + "<td>…</td>" : out;
  }

  std::string open_vectors() const {
    return "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"vectors\"><table><tbody>\n";
  }

  void vectors(const char* name, const std::vector<std::string>& words, const std::vector<float>& values) {
    for (size_t i = 0; i < std::min(words.size(), kShownWords); ++i) {
      out_ += "<tr><th class=\"name\">" + std::string(i == 0 ? name : "") + "</th><th scope=\"row\">" +
              escape_html(words[i]) + "</th>" + cells(values, i * dim_) + "</tr>\n";
    }
  }

  void query_word(size_t i) {
    const size_t S = e_.text.size();
    const float* weights = e_.weights.data() + i * S;
    std::vector<size_t> order(S);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
    const size_t shown = std::min(S, kShownWords);
    std::vector<size_t> rest(order.begin() + static_cast<std::ptrdiff_t>(shown), order.end());
    order.resize(shown);
    std::sort(order.begin(), order.end());

    out_ += "<h3>" + escape_html(e_.query[i]) + "</h3>\n" +
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"the steps of one word\"><table><thead>" +
            "<tr><th></th><th class=\"n\" scope=\"col\">1 score</th><th class=\"n\" scope=\"col\">2 weigh</th>" +
            "<th></th><th class=\"g\" scope=\"col\" colspan=\"" + std::to_string(numbers_ + (numbers_ < dim_)) +
            "\">3 gather: weight × vector</th></tr></thead><tbody>\n";
    double sum = 0;
    for (size_t j = 0; j < S; ++j) sum += weights[j];
    for (size_t j : order) {
      out_ += line("", e_.text[j], cell(e_.scores[i * S + j]), weights[j], weighted({j}, weights));
    }
    if (!rest.empty()) {
      double others = 0;
      for (size_t j : rest) others += weights[j];
      out_ += line("rest", thousands(static_cast<long long>(rest.size())) + " others", "<td></td>", others,
                   weighted(rest, weights));
    }
    const std::vector<double> out(e_.out.begin() + static_cast<std::ptrdiff_t>(i * dim_),
                                  e_.out.begin() + static_cast<std::ptrdiff_t>((i + 1) * dim_));
    out_ += "<tr class=\"sum\"><th scope=\"row\">sum</th><td></td>" + cell(sum) + "<td></td>" + cells(out, 0) +
            "</tr>\n</tbody></table></div>\n";
  }

  std::vector<double> weighted(const std::vector<size_t>& words, const float* weights) const {
    std::vector<double> sum(dim_, 0.0);
    for (size_t j : words) {
      for (size_t d = 0; d < dim_; ++d) sum[d] += double{weights[j]} * e_.kv[j * dim_ + d];
    }
    return sum;
  }

  std::string line(const char* css, const std::string& word, const std::string& score, double weight,
                   const std::vector<double>& values) const {
    return "<tr class=\"" + std::string(css) + "\"><th scope=\"row\">" + escape_html(word) + "</th>" + score +
           cell(weight) + "<td class=\"bar\"><i style=\"--a:" + share(static_cast<float>(weight)) + "\"></i></td>" +
           cells(values, 0) + "</tr>\n";
  }

  const Explanation& e_;
  const size_t dim_, numbers_;
  std::string out_;
};

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  // Invalid bytes become U+FFFD, and control characters too, which HTML does not allow.
  for (char c : printable(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string render_page(const Page& page) {
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      // Belt and braces beside the escaping: nothing may be fetched, whatever the text says.
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'; img-src data:\">\n"
      "<link rel=\"icon\" href=\"data:,\">\n<title>" +
      escape_html(page.title) + " · Heed</title>\n<style>" + kPageStyle + "</style>\n</head>\n<body>\n<main>\n" +
      "<header>\n<h1>" + escape_html(page.title) + "</h1>\n<p class=\"lead\">" + escape_html(page.lead) +
      "</p>\n</header>\n";
  out += scores_html(page);
  out += translations_html(page);
  out += learning_html(page);
  for (const PagePictures& task : page.pictures) out += pictures_html(task);
  out += facts_html(page);
  if (!page.explanation.query.empty()) out += ExplanationHtml(page.explanation).write();
  return out + "</main>\n<footer>Written by heed " + escape_html(heed::version()) +
         ". This page is one file and asks the network for nothing.</footer>\n<script>" + kPageScript +
         "</script>\n</body>\n</html>\n";
}

}  // namespace heed::app
