/* Expert parallelism: token copies go to the ranks that host their experts and come back. One
 * `experts` serves all layers; a layer's forward leaves what its backward needs in an
 * `expert_tape`. */
#ifndef LPLB_TRAIN_EXPERTS_H
#define LPLB_TRAIN_EXPERTS_H

#include <lplb/lplb.h>
#include <stdbool.h>

#include "comm/group.h"
#include "train/buffer.h"
#include "train/config.h"
#include "train/ops.h"

/* What is derived from one layer's placement. */
typedef struct expert_maps {
    lplb_dispatcher *dispatcher;
    lplb_planner *planner;
} expert_maps;

typedef struct experts {
    const model_config *config;
    const ops *ops;
    lplb__group *group; /* expert-parallel ranks */
    lplb_solver solver;
    bool locality;
    /* placement of every MoE layer, and what is derived from it */
    lplb_placement *placement;
    expert_maps *maps; /* [moe_layers] */
    int64_t *split;    /* [slots] */
    int32_t first_slot, local_slots;
    /* weights and gradients of the local slots: [moe_layers][local_slots][expert_items] */
    real *weight, *gradient;
    kept *kept_weight; /* weight for products; weight itself unless ops.rounds */
    int64_t expert_items;
    /* scratch of a call */
    int64_t *count, *all_counts;           /* [E], [ranks][E] */
    int64_t *slot_count;                   /* [slots] copies of mine per slot */
    int64_t *all_slot_counts;              /* [ranks][slots] */
    int64_t *tokens;                       /* [E] over all ranks */
    buffer send, recv, hidden, dgate, dup; /* kept numbers */
    buffer draft;                          /* products of a slot before they are rounded */
    /* what the last forward of each layer did, for metrics */
    lplb_plan *plan;      /* [moe_layers] loads within */
    int64_t *plan_loads;  /* [moe_layers][ranks] planned tokens */
    int64_t *plain_loads; /* [moe_layers][ranks] what contiguous placement would give */
    /* summed since experts_clear_times */
    double plan_seconds, expert_cpu_seconds;
    double dispatch_seconds, comm_seconds;
    int64_t comm_bytes, moved_tokens; /* to and from other ranks; selections served there */
} experts;

typedef struct expert_tape {
    int64_t copies, rows;              /* sent from here; computed here */
    int64_t most_rows, most_slot_rows; /* of all batches so far: what the buffers have held */
    int32_t *position;                 /* [N*K] row in send order of each choice, -1 if not sent */
    int64_t position_capacity;
    int64_t *send_rows, *recv_rows; /* [ranks] */
    int64_t *slot_rows;             /* [local_slots] */
    int64_t *segment;               /* [local_slots][ranks] rows from each source, slot-major */
    /* kept numbers */
    buffer input;    /* [rows][D] slot-major */
    buffer gate, up; /* [rows][F] */
    buffer output;   /* [copies][D] in send order, back from the experts */
} expert_tape;

lplb_status experts_create(const model_config *config, const ops *table, lplb__group *group,
                           int32_t moe_layers, int64_t expert_items, int32_t redundant,
                           lplb_solver solver, bool locality, experts **out);
void experts_destroy(experts *x);
lplb_status expert_tape_create(const experts *x, expert_tape *tape);
void expert_tape_destroy(expert_tape *tape);

/* Replaces the maps after the placement changed (weights are the caller's business). */
lplb_status experts_use_placement(experts *x, const lplb_placement *placement);
/* The same for one layer in two parts, of which the second, which takes the maps, cannot fail. */
lplb_status expert_maps_create(const experts *x, const lplb_placement *placement, int32_t layer,
                               expert_maps *maps);
void expert_maps_destroy(expert_maps *maps);
void experts_use_maps(experts *x, int32_t layer, const int32_t *physical_to_logical,
                      expert_maps *maps);

void experts_clear_times(experts *x);

/* After weights changed: products read them from here on. One slot of a layer, and all. */
void experts_keep_slot(experts *x, int32_t layer, int32_t local_slot);
void experts_keep_weights(experts *x);

/* out[N][D] += sum over k of gate[n][k] * expert(x[n]); chosen[N][K] experts or -1. */
lplb_status experts_forward(experts *x, int32_t layer, const kept *in, const int32_t *chosen,
                            const real *gate, int64_t N, expert_tape *tape, real *out);

/* From dout[N][D]: dgate[N][K] overwritten, din[N][D] +=, gradients of the local slots +=. */
lplb_status experts_backward(experts *x, int32_t layer, const real *dout, const real *gate,
                             int64_t N, expert_tape *tape, real *dgate, real *din);

#endif
