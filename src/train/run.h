/* A training run from options to summary; what lplb-train does after it has its ranks. */
#ifndef LPLB_TRAIN_RUN_H
#define LPLB_TRAIN_RUN_H

#include "train/options.h"

/* All ranks call with the same options. Rank 0 prints. *stopped: the signal that ended the training
 * early, after a checkpoint if there is a folder for it, or 0. */
lplb_status run_training(const run_options *options, lplb__group *world, int32_t *stopped);

#endif
