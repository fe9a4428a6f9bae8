/* A training run from options to summary; what lplb-train does after it has its ranks. */
#ifndef LPLB_TRAIN_RUN_H
#define LPLB_TRAIN_RUN_H

#include "train/options.h"

/* All ranks call with the same options. Rank 0 prints. */
lplb_status run_training(const run_options *options, lplb__group *world);

#endif
