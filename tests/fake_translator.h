// Models for tests, good and bad, and what they make of a file.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "apps/translate/documents/passages.h"
#include "apps/translate/documents/placeholders.h"

namespace heed::translate {

// A model whose language is English with an "e" behind every word that is no placeholder.
inline std::string good(const std::string& text,
                        const std::function<std::string(const std::string&)>& placeholder = {}) {
  std::string out;
  bool word = false;
  size_t next = 0;
  const std::vector<Placeholder> placeholders = find_placeholders(text);
  for (size_t i = 0; i <= text.size();) {
    const bool here = next < placeholders.size() && placeholders[next].begin == i;
    const auto c = static_cast<unsigned char>(i < text.size() ? text[i] : ' ');
    const bool letter = !here && (std::isalpha(c) != 0 || c >= 0x80);
    if (word && !letter) out += 'e';
    word = letter;
    if (here) {
      const std::string kept = text.substr(i, placeholders[next].end - i);
      out += placeholder ? placeholder(kept) : kept;
      i = placeholders[next++].end;
    } else {
      if (i < text.size()) out += text[i];
      ++i;
    }
  }
  return out;
}

inline Engine engine_of(const std::function<std::string(const std::string&)>& translate) {
  return [translate](std::span<const Task> tasks) {
    std::vector<std::vector<Candidate>> all;
    for (const Task& task : tasks) all.push_back({{translate(task.text), -0.5, 0.5, 4, 0}});
    return all;
  };
}

inline Engine good_engine() {
  return engine_of([](const std::string& text) { return good(text); });
}
inline Engine fixed_engine(const std::string& answer) {
  return engine_of([answer](const std::string&) { return answer; });
}
inline Engine throwing_engine() {
  return engine_of([](const std::string& text) -> std::string { throw std::logic_error("asked: " + text); });
}
inline Engine dropping_engine() {
  return engine_of([](const std::string& text) { return good(text, [](const std::string&) { return ""; }); });
}
inline Engine doubling_engine() {
  return engine_of(
      [](const std::string& text) { return good(text, [](const std::string& p) { return p + " " + p; }); });
}
inline Engine spacing_engine() {  // "% s"
  return engine_of([](const std::string& text) {
    return good(text, [](const std::string& p) { return p.substr(0, 1) + " " + p.substr(1); });
  });
}
inline Engine capital_engine() {
  return engine_of([](std::string text) {
    text = good(text);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); });
    return text;
  });
}
inline Engine swapping_engine() {  // the placeholders in the reverse order
  return engine_of([](const std::string& text) {
    std::vector<std::string> list = texts(text, find_placeholders(text));
    return good(text, [&](const std::string&) {
      std::string last = list.back();
      list.pop_back();
      return last;
    });
  });
}

// The same, and the texts are noted.
inline Engine noting(const Engine& engine, std::vector<std::string>& asked) {
  return [engine, &asked](std::span<const Task> tasks) {
    for (const Task& task : tasks) asked.push_back(task.text);
    return engine(tasks);
  };
}

// A file with these parts, each of which it holds once, changed: what it must be when it is filled.
inline std::string replaced(std::string text, const std::vector<std::pair<std::string, std::string>>& changes) {
  for (const auto& [from, to] : changes) {
    const size_t at = text.find(from);
    if (at == std::string::npos || text.find(from, at + 1) != std::string::npos) {
      ADD_FAILURE() << "not there exactly once: " << from;
    } else {
      text.replace(at, from.size(), to);
    }
  }
  return text;
}

}  // namespace heed::translate
