/* New placements during training: computed from the routing of the last steps, the same on every
 * rank, and the weights and optimizer state moved to where they belong, layer by layer. */
#ifndef LPLB_TRAIN_REBALANCE_H
#define LPLB_TRAIN_REBALANCE_H

#include "train/trainer.h"

typedef struct rebalance_report {
    int64_t moved_slots; /* (layer, rank, expert) that were not there before */
    int64_t moved_bytes; /* weights and moments that crossed ranks, in one replica */
    double place_seconds, move_seconds;
} rebalance_report;

/* Computes a placement for the counts in t->window on rank 0, adopts it everywhere and clears the
 * window. Nothing changes on failure. */
lplb_status trainer_rebalance(trainer *t, lplb_place_algorithm algorithm, rebalance_report *report);
/* Whether the algorithm can place these experts on these ranks at all, known before training. */
lplb_status trainer_can_rebalance(const trainer *t, lplb_place_algorithm algorithm);
/* Moves weights and optimizer state to this placement and adopts it. */
lplb_status trainer_move_experts(trainer *t, const lplb_placement *placement,
                                 rebalance_report *report);

#endif
