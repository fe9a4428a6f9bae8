/* Sampling text from a model. */
#ifndef LPLB_TRAIN_GENERATE_H
#define LPLB_TRAIN_GENERATE_H

#include <stdio.h>

#include "train/trainer.h"

/* Writes prompt and `bytes` sampled bytes to out, stopping at the end of a document. temperature 0
 * takes the likeliest byte. One rank only; the window slides when the context is full. */
lplb_status generate_text(trainer *t, const char *prompt, int64_t bytes, double temperature,
                          uint64_t seed, FILE *out);

#endif
