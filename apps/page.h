// The demo's page: translations with their alignments, the training curve, the scores and the facts, in one HTML file
// that needs nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "apps/explain.h"

namespace heed::app {

// All text is UTF-8 and is escaped by render_page.
struct PageTranslation {
  std::string source, reference, output;
  std::vector<std::string> source_pieces, output_pieces;  // SentencePiece's, "▁" before the first of a word
  std::vector<std::vector<float>> attention;              // [output_pieces][source_pieces], rows sum to 1
  std::string boxed = {};                                 // by the model in the box; empty: there is none
};

struct PagePoint {
  double seconds = 0;
  double train_loss = 0;  // per target token, in nats; NaN: none at this point
  double valid_loss = 0;  // the same
};

struct PageScore {
  std::string name;  // "Heed", "copying the source"
  double bleu = 0, chrf = 0;
};

struct PageFact {
  std::string name, value;
};

struct Page {
  std::string title;                         // "English to German, learned in 4 minutes"
  std::string lead;                          // a paragraph under it
  std::vector<PageScore> scores;             // ours first
  std::string scores_note;                   // what was measured on what
  std::vector<PageScore> boxed_scores = {};  // the model in the box beside ours, on what neither has seen
  std::string boxed_note = {};
  std::vector<PageTranslation> translations;
  std::string translations_note;  // how they were chosen
  std::vector<PagePoint> curve;   // in order of time; with fewer than two points it is left out
  std::vector<PageFact> facts;    // what was trained on what in how long
  Explanation explanation;        // left out if it has no words
};

// The page as HTML: no link, font, image or script from elsewhere; light and dark; made for phones and screens alike.
std::string render_page(const Page& page);

// Text made safe for HTML content and double-quoted attributes.
std::string escape_html(std::string_view text);

}  // namespace heed::app
