/* From loads to a new mapping and what it would bring: a pure function, run on the worker. */
#ifndef LPLB_RUNTIME_PROPOSE_H
#define LPLB_RUNTIME_PROPOSE_H

#include <lplb/runtime.h>

#include "runtime/mapping.h"

/* What a decision is made from; owned by the manager, not touched while the worker runs. */
typedef struct lplb__job {
    int64_t step;         /* of the request */
    int64_t interval;     /* steps that the result is expected to serve */
    int32_t repair;       /* ranks died or came back: every layer, without limit of moves */
    lplb_placement *from; /* the mapping in force */
    uint8_t *dead;        /* [G] */
    int64_t *load;        /* [L][E] what to place for */
    int64_t samples;      /* real batches; 0 = there is only load */
    int64_t *sample;      /* [samples][L][E] */
    int64_t budget;       /* moves that may be made, of all layers */
    int64_t selections;   /* mean of a batch and layer */
} lplb__job;

typedef struct lplb__proposal {
    lplb_status status;
    char text[200];                 /* why there is no mapping, or what it is */
    lplb_placement *to;             /* aligned with job->from */
    double *before, *after;         /* [L] imbalance, mean over samples; 0 = no load */
    int64_t *moves;                 /* [L] that cross ranks */
    uint8_t *take;                  /* [L] nonzero: worth moving */
    int32_t layers;                 /* of them */
    double mean_before, mean_after; /* over layers with load, if the taken layers move */
    int64_t place_ns;               /* judging and placing */
    /* scratch */
    double *by_sample[2]; /* [max(samples, 1)][L] */
    int32_t *chosen;      /* [L] layers to place, then to take */
    int64_t *chosen_load; /* [max(samples, 1)][L][E] */
    int32_t *row, *taken; /* [P] */
    uint64_t *seen;
    lplb__diff_scratch diff;
    lplb_move *move; /* [P] */
} lplb__proposal;

/* config: as filled by the manager. Fills proposal; its status says how it went. */
void lplb__propose(const lplb_manager_config *config, const lplb__job *job,
                   lplb__proposal *proposal);

#endif
