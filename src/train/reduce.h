/* Sums of the gradients over ranks, begun while the backward pass still works: layer by layer, as
 * their gradients become final, copies of experts find each other and buckets of the replicated
 * parameters set out. Sums are taken in rank and slot order, so when they happen does not change
 * them.
 *
 * Every kind of transfer has a communicator of its own and starts on all ranks in the same order.
 */
#ifndef LPLB_TRAIN_REDUCE_H
#define LPLB_TRAIN_REDUCE_H

#include "train/model.h"

/* Data-parallel replicas of the expert-parallel group: rank = replica * ep + ep_rank. */
typedef struct grid {
    lplb__group *world, *expert, *replica; /* replica: the same expert-parallel rank of every one */
} grid;

/* The gradients of one layer's experts on their way: copies to the owner (the rank of the expert's
 * lowest slot), which adds them in slot order; the sums back to the copies; all over the replicas.
 */
typedef struct expert_sum {
    int64_t *send_rows, *recv_rows; /* [ranks] of the way there; the way back is the reverse */
    buffer send, recv;
    lplb__request *request;
} expert_sum;

typedef struct reducer {
    model *model;
    lplb__group *there, *back; /* expert-parallel ranks */
    lplb__group *replica, *world;
    int64_t *cursor; /* [ranks] next row of each */
    /* replicated parameters: buckets from the end of the layout to its start */
    int64_t bucket_items, low; /* items from `low` on have set out */
    int64_t buckets, buckets_done;
    lplb__request **bucket;
    /* experts, from the last MoE layer to the first: so many have set out, are on the way back, are
     * being summed over the replicas */
    expert_sum *sum; /* [moe_layers] */
    int32_t n_there, n_back, n_replica;
    bool overlap;    /* false: everything starts at reducer_finish */
    bool under_way;  /* between begin and a finish that succeeded */
    int32_t started; /* layers whose gradients have set out, see model.layer_done */
} reducer;

/* bucket_items: of replicated parameters that travel together. */
lplb_status reducer_create(model *m, const grid *g, int64_t bucket_items, bool overlap,
                           reducer **out);
/* Not while transfers are under way: they would write to memory that is no more. */
void reducer_destroy(reducer *r);

/* Before the last backward of a step: from here on layers start as they become final. */
void reducer_begin(reducer *r);
/* After it: starts what has not started and waits for everything. */
lplb_status reducer_finish(reducer *r);

#endif
