// The demo's page: translations with their alignments, pictures with where the network looked, training curves, scores
// and facts, in one HTML file that needs nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "apps/explain.h"

namespace heed::app {

// All text is UTF-8 and is escaped by render_page.
struct PageOutput {
  std::string text;
  std::vector<std::string> source_pieces = {}, pieces = {};  // SentencePiece's, "▁" before the first of a word
  std::vector<std::vector<float>> attention = {};            // [pieces][source_pieces], rows sum to 1; empty: no map
};

struct PageTranslation {
  std::string source, reference;
  PageOutput output;
  PageOutput boxed = {};  // by the model in the box; without text: there is none
};

struct PagePoint {
  double seconds = 0;
  double train_loss = 0;  // in nats; NaN: none at this point
  double valid_loss = 0;  // the same
};

struct PageScore {
  std::string name;  // "Heed", "copying the source"
  double bleu = 0, chrf = 0;
};

struct PageFact {
  std::string name, value;
};

// One view of a picture, and what it shows: "where it looked".
struct PageImage {
  std::string png;  // the file's bytes
  std::string caption;
};

struct PageShare {
  std::string name;
  double share = 0;  // from 0 to 1
};

// A picture in all its views, and the answers it got.
struct PagePicture {
  std::vector<PageImage> images;
  std::vector<PageShare> answers = {};
};

struct PageColour {
  std::string name;
  uint8_t red = 0, green = 0, blue = 0;
};

// A task on pictures.
struct PagePictures {
  std::string title;                    // "What is it?"
  std::string note;                     // what was done, how the pictures were chosen
  std::vector<PageFact> scores = {};    // large numbers and what they are of, ours first
  std::vector<PageColour> legend = {};  // what the colours in the views mean
  std::vector<PagePicture> pictures = {};
  std::vector<PagePoint> curve = {};  // as Page's
  std::string unit = {};              // of the loss: "picture"
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
  std::vector<PagePoint> curve;   // of translating, in order of time; with fewer than two points it is left out
  std::vector<PagePictures> pictures = {};
  std::vector<PageFact> facts;  // what was trained on what in how long
  Explanation explanation;      // left out if it has no words
};

// The page as HTML: no link, font, image or script from elsewhere; light and dark; made for phones and screens alike.
std::string render_page(const Page& page);

// Text made safe for HTML content and double-quoted attributes.
std::string escape_html(std::string_view text);

}  // namespace heed::app
