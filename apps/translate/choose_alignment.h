// Which attention of a Transformer to read word alignments from.
#pragma once

#include <cstdint>
#include <vector>

#include "apps/translate/batches.h"
#include "apps/translate/transformer_model.h"

namespace heed::translate {

struct AlignmentChoice {
  AlignmentFrom from;
  double agreement = 0;         // part of the target tokens that it links as IBM Model 1 does
  double last_layers_mean = 0;  // the same of what one would take without choosing
};

// A Transformer has many attentions to the source, and most are not alignments: which layer's is one, whether one
// head's is better than all heads' mean, and whether the step that produces a token shows it or the next one, which
// reads it (Chen et al. 2020), differs from model to model. All are compared with IBM Model 1, which counts which
// tokens translate which in (at most 20,000 of) the training pairs; the one that agrees with it on most tokens of (at
// most 300 of) the held-out pairs is chosen. </s> and tokens that Model 1 links to nothing do not count. The model must
// be in eval mode.
AlignmentChoice choose_alignment(TransformerModel& model, const std::vector<Example>& train,
                                 const std::vector<Example>& held_out);

}  // namespace heed::translate
