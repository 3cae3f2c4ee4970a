// Catalogues and translation memories as passages, and back.
#include "apps/translate/documents/fill.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "apps/terminal.h"
#include "apps/translate/documents/plural_forms.h"

namespace heed::translate {
namespace {

using app::thousands;

// GNOME's and KDE's place for the names of those who translated.
bool asks_for_names(const PoEntry& entry) {
  return entry.id == "translator-credits" || entry.id == "translator_credits" ||
         entry.context == "NAME OF TRANSLATORS" || entry.context == "EMAIL OF TRANSLATORS";
}

std::string less_sure_than(double least) {
  char text[64];
  std::snprintf(text, sizeof text, "less sure than %.2f", least);
  return text;
}

PluralForms plural_forms_of(const PoFile& file, std::vector<std::string>& notes) {
  const auto forms = parse_plural_forms(file.header());
  if (forms) return *forms;
  size_t most = 2;
  bool needed = false;
  for (const PoEntry& entry : file.entries()) {
    if (!entry.has_plural) continue;
    most = std::max(most, entry.forms.size());
    needed = needed || entry.untranslated();
  }
  if (needed) {
    notes.push_back("the header names no number of plural forms (nplurals); " + std::to_string(most) +
                    " are assumed, the first of them the singular");
  }
  return {static_cast<int64_t>(most), 0, most == 2};
}

// Whether the form for n = 1 can be made from msgid: its directives must be those of msgid_plural, or, if the form is
// for n = 1 alone, the first of them.
bool singular_fits(const PoEntry& entry, const PluralForms& forms, const Formats& formats) {
  if (forms.count == 1) return false;
  if (intact(entry.plural, entry.id, formats)) return true;
  if (!forms.singular_is_one) return false;
  const auto few = directives_in_order(entry.id, formats), all = directives_in_order(entry.plural, formats);
  return few.size() <= all.size() && std::equal(few.begin(), few.end(), all.begin());
}

}  // namespace

std::vector<std::string> Filled::summary() const {
  std::map<std::string, std::pair<int64_t, int64_t>> reasons;  // and the first line
  int64_t filled = 0, copied = 0, piecewise = 0, without_terms = 0;
  for (const FilledEntry& entry : entries) {
    if (!entry.why.empty()) {
      auto& [count, line] = reasons[entry.why];
      if (++count == 1) line = entry.line;
      continue;
    }
    ++filled;
    copied += entry.how == Rendering::How::copied ? 1 : 0;
    piecewise += entry.how == Rendering::How::piecewise ? 1 : 0;
    without_terms += entry.missing_terms.empty() ? 0 : 1;
  }
  std::vector<std::string> lines;
  const auto missing = static_cast<int64_t>(entries.size());
  std::string first = "filled " + thousands(filled) + " of " + thousands(missing) +
                      (missing == 1 ? " entry" : " entries") + " without a translation";
  std::string how;
  if (copied > 0) how += thousands(copied) + " copied";
  if (piecewise > 0) how += (how.empty() ? "" : ", ") + thousands(piecewise) + " piece by piece around placeholders";
  if (!how.empty()) first += " (" + how + ")";
  first += "; " + thousands(translated) + " were translated";
  if (fuzzy > 0) first += ", " + thousands(fuzzy) + " fuzzy";
  if (obsolete > 0) first += ", " + thousands(obsolete) + " obsolete";
  lines.push_back(first);
  for (const auto& [why, count] : reasons) {
    lines.push_back("left untranslated: " + thousands(count.first) + ", " + why + " (line " + thousands(count.second) +
                    (count.first > 1 ? " first)" : ")"));
  }
  if (without_terms > 0) {
    lines.push_back(thousands(without_terms) + (without_terms == 1 ? " of them lacks" : " of them lack") +
                    " a term of the list; --json tells which");
  }
  return lines;
}

Filled fill_po(const PoFile& file, const Engine& engine, const FillOptions& options) {
  Filled result;
  result.obsolete = file.obsolete();
  if (file.header().empty()) {
    result.notes.push_back("there is no header entry; UTF-8 is assumed, and msgfmt -c may miss the header");
  } else if (file.named_charset().empty()) {
    result.notes.push_back("the header names no charset; UTF-8 is assumed");
  }
  const PluralForms forms = plural_forms_of(file, result.notes);

  struct Work {
    size_t entry;                  // of the file
    size_t report;                 // of result.entries
    std::vector<size_t> passages;  // one for each form
  };
  std::vector<Work> works;
  std::vector<Passage> passages;
  for (size_t i = 0; i < file.entries().size(); ++i) {
    const PoEntry& entry = file.entries()[i];
    if (!entry.untranslated()) {
      ++(entry.has_flag("fuzzy") ? result.fuzzy : result.translated);
      continue;
    }
    FilledEntry report;
    report.line = entry.line;
    report.source = entry.id;
    if (!entry.is_text) {
      report.why = "not text in the file's charset";
      report.source.clear();
    } else if (entry.id.empty()) {
      report.why = "msgid is empty";
    } else if (asks_for_names(entry)) {
      report.why = "asks for the translators' names";
    } else if (entry.id.find('\0') != std::string::npos || entry.plural.find('\0') != std::string::npos) {
      report.why = "holds a NUL character";
    } else {
      const Formats formats = Formats::of(entry.flags);
      Work work{i, result.entries.size(), {passages.size()}};
      if (entry.has_plural) {
        const size_t singular = passages.size(),
                     plural = singular_fits(entry, forms, formats) ? singular + 1 : singular;
        if (plural != singular) passages.push_back({entry.id, formats, {}, options.prefix});
        passages.push_back({entry.plural, formats, {}, options.prefix});
        work.passages.clear();
        for (int64_t k = 0; k < forms.count; ++k) work.passages.push_back(k == forms.singular ? singular : plural);
      } else {
        passages.push_back({entry.id, formats, {}, options.prefix});
      }
      works.push_back(std::move(work));
    }
    result.entries.push_back(std::move(report));
  }

  RenderOptions render_options;
  render_options.terms = options.terms;
  const std::vector<Rendering> renderings = render(passages, engine, render_options);
  std::vector<PoFile::Filling> fillings;
  for (const Work& work : works) {
    FilledEntry& report = result.entries[work.report];
    for (size_t k = 0; k < work.passages.size() && report.why.empty(); ++k) {
      const Rendering& r = renderings[work.passages[k]];
      report.why = r.why;
      if (r.why.empty() && !file.can_write(r.text)) {
        report.why = "its translation has a character that the charset " + file.named_charset() + " lacks";
      }
      if (r.why.empty() && r.confidence < options.least_confidence)
        report.why = less_sure_than(options.least_confidence);
      report.texts.push_back(r.text);
      report.confidence = std::min(report.confidence, r.confidence);
      if (r.how == Rendering::How::piecewise || k == 0) report.how = r.how;
      const bool again = k > 0 && work.passages[k] == work.passages[k - 1];
      if (!again) {
        report.missing_terms.insert(report.missing_terms.end(), r.missing_terms.begin(), r.missing_terms.end());
      }
    }
    if (report.why.empty()) {
      fillings.push_back({work.entry, report.texts});
    } else {
      report.texts.clear();
    }
  }
  result.bytes = file.filled(fillings);
  return result;
}

Filled fill_tmx(const TmxFile& file, const Languages& languages, const Engine& engine, const FillOptions& options) {
  Filled result;
  struct Work {
    size_t report;
    TmxFile::Filling filling;
  };
  std::vector<Work> works;
  std::vector<Passage> passages;
  for (size_t i = 0; i < file.units().size(); ++i) {
    const TmxUnit& unit = file.units()[i];
    const auto source = find_variant(unit, languages.source), target = find_variant(unit, languages.target);
    if (target && !unit.variants[*target].empty) {
      ++result.translated;
      continue;
    }
    FilledEntry report;
    report.line = unit.line;
    if (!source || source == target || unit.variants[*source].empty) {
      report.why = "no text in " + languages.source;
    } else {
      TmxText text = file.text(unit.variants[*source]);
      report.source = text.text;
      passages.push_back({text.text, {}, text.before, options.prefix});
      works.push_back({result.entries.size(), {i, target, languages.target, std::move(text), ""}});
    }
    result.entries.push_back(std::move(report));
  }
  RenderOptions render_options;
  render_options.terms = options.terms;
  const std::vector<Rendering> renderings = render(passages, engine, render_options);
  std::vector<TmxFile::Filling> fillings;
  for (size_t i = 0; i < works.size(); ++i) {
    const Rendering& r = renderings[i];
    FilledEntry& report = result.entries[works[i].report];
    report.why = r.why;
    if (r.why.empty() && r.confidence < options.least_confidence) report.why = less_sure_than(options.least_confidence);
    if (!report.why.empty()) continue;
    report.texts = {r.text};
    report.how = r.how;
    report.confidence = r.confidence;
    report.missing_terms = r.missing_terms;
    works[i].filling.text = r.text;
    fillings.push_back(std::move(works[i].filling));
  }
  result.bytes = file.filled(fillings);
  return result;
}

}  // namespace heed::translate
