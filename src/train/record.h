/* Recording the routing of a training run as a trace that lplb replay reads. */
#ifndef LPLB_TRAIN_RECORD_H
#define LPLB_TRAIN_RECORD_H

#include "train/trainer.h"

typedef struct recorder {
    int16_t *ids; /* [tokens][moe_layers][K], rank 0 only */
    int64_t tokens, capacity;
    int16_t *mine, *all; /* of one micro-batch, of one rank and of all */
    int64_t most_tokens; /* stop here, so that memory stays bounded */
    int64_t seen;        /* tokens that came by */
} recorder;

/* Hooks into the trainer: after every micro-batch the ranks' choices go to rank 0. */
lplb_status recorder_start(recorder *r, trainer *t, int64_t most_tokens);
/* Rank 0 writes what there is so far. */
lplb_status recorder_write(const recorder *r, const trainer *t, const char *path);
/* The trainer forgets the recorder, which is freed. */
void recorder_finish(recorder *r, trainer *t);

#endif
