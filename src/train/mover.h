/* Experts that move to other ranks while training goes on, a layer at a time.
 *
 * Between two steps the layer's weights and both moments of AdamW set out to a staging area. They
 * travel during the whole next step, in which the layer works where it is. The step's gradients of
 * the moving experts follow as soon as they are summed, and the same update is applied to what was
 * staged, so that it has the bits of the original. Then the layer switches, between two steps.
 * Nothing in use is touched before, so a move can be thrown away at any time. */
#ifndef LPLB_TRAIN_MOVER_H
#define LPLB_TRAIN_MOVER_H

#include "train/optimizer.h"

/* One expert that comes to a slot of this rank. */
typedef struct arrival {
    int32_t slot, expert;
    int64_t row; /* of the staging area; after the rows received lie those copied on this rank */
    bool local;  /* this rank has the expert already, or receives it in the same row */
} arrival;

typedef struct mover {
    model *model;
    optimizer *optimizer;
    lplb__group *weights, *gradients; /* expert-parallel ranks, a communicator for each */
    int32_t layer;                    /* being moved, -1 = none */
    int64_t *send_rows, *recv_rows;   /* [ranks] */
    int64_t *cursor;                  /* [ranks] */
    int32_t *outgoing;                /* [rows] slot of every row sent, in order of sending */
    int64_t outgoing_capacity;
    arrival *arriving; /* [local slots] */
    int32_t arrivals;
    buffer send, staged;                 /* rows of weights and both moments: 3 * expert_items */
    buffer send_gradient, recv_gradient; /* rows of expert_items */
    lplb__request *weight_request, *gradient_request;
    bool travelling, following; /* these requests are under way */
    expert_maps maps;           /* of the layer after the switch */
    int64_t moved_bytes;        /* sent from here so far */
} mover;

lplb_status mover_create(model *m, optimizer *o, lplb__group *expert_ranks, mover **out);
/* Numbers that all buffers together have held at most. */
int64_t mover_items(const mover *v);
/* Not while transfers are under way. */
void mover_destroy(mover *v);

/* moves: as hooks of the runtime's manager get them, the same on every rank. All ranks succeed, or
 * none. */
lplb_status mover_stage(mover *v, int32_t layer, const lplb_move *moves, int64_t n);
/* In a step, after the gradients are summed: they set out. */
lplb_status mover_follow(mover *v);
/* After the optimizer's step, with the same step and scale: what was staged takes it too. */
lplb_status mover_update(mover *v, int64_t step, double scale);
/* Everything staged is here. */
lplb_status mover_staged(mover *v);
/* Staged experts to their slots; the layer works by the new mapping from here on. */
void mover_commit(mover *v, const int32_t *physical_to_logical);
/* Waits for what travels and forgets it. */
void mover_discard(mover *v);

#endif
