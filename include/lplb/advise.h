/* Advice from recorded loads: how unequal they are, how many redundant experts pay, which topology,
 * and from which batch size on planning every batch is worth its time. Everything is measured on
 * batches that the placements have not seen, where the record has a second half. */
#ifndef LPLB_ADVISE_H
#define LPLB_ADVISE_H

#include <lplb/placement.h>
#include <lplb/trace.h>

LPLB_BEGIN_DECLS

/* Zero-initialise, set struct_size. */
typedef struct lplb_advise_config {
    size_t struct_size;
    int32_t ranks;          /* G */
    int32_t slots;          /* P that the redundancy is counted from, a multiple of G; 0 = the least
                               that holds the experts */
    int32_t nodes;          /* 0 = 1 */
    int64_t batch_tokens;   /* tokens of a served batch; 0 = 4096; 0 too for counts of many steps */
    int32_t topk;           /* for one sum of counts, which does not say; 0 = 8 */
    int32_t most_redundant; /* slots a rank to try; 0 = experts a rank, 4 to 8 */
    int64_t expert_bytes;   /* 0 = unknown */
    double token_ns;        /* time that one selection costs its rank; 0 = unknown: no break-even */
    double plan_us;         /* of one layer where it would run; 0 = measured here, on one core */
    uint64_t seed;
    int32_t threads;
} lplb_advise_config;

typedef struct lplb_advice_measures {    /* mean over layers with load, and the worst */
    double cv, worst_cv;                 /* standard deviation / mean of the experts' loads */
    double hottest, worst_hottest;       /* largest expert / mean */
    double contiguous, worst_contiguous; /* imbalance of ranks without redundancy */
    int32_t layers;                      /* with load */
} lplb_advice_measures;

typedef struct lplb_advice_point { /* D slots a rank beyond the first point's */
    int32_t redundant, slots;
    double even, exact; /* mean imbalance of EPLB's placement under either split */
    int64_t bytes;      /* of a rank's redundant experts, all layers */
} lplb_advice_point;

typedef struct lplb_advice_topology {
    char name[40];
    int32_t redundant; /* slots a rank that it copies to */
    double exact;      /* mean imbalance with this topology and the exact plan */
} lplb_advice_topology;

typedef struct lplb_advice_groups { /* EPLB at the knee's redundancy with so many expert groups */
    int32_t groups;                 /* 1 = its global form; else groups stay inside nodes */
    double even, exact;
} lplb_advice_groups;

typedef struct lplb_advice_batch { /* at the knee's redundancy */
    int64_t tokens;
    double even, exact; /* mean imbalance of batches of this size */
    double gain_us;     /* saved a layer by planning; 0 without token_ns */
} lplb_advice_batch;

enum {
    LPLB_ADVICE_POINTS = 17,
    LPLB_ADVICE_TOPOLOGIES = 8,
    LPLB_ADVICE_GROUPS = 8,
    LPLB_ADVICE_BATCHES = 10
};
typedef struct lplb_advice {
    lplb_advice_measures measures;
    int32_t experts, layers, ranks;
    int32_t held_out;       /* 1: judged on the second half; 0: on redrawn batches */
    int32_t rule_groups;    /* 2, 4, 8 or min(32, E / 4) for up to 8, 32, 128 or more experts */
    int32_t rule_redundant; /* E/16, E/8 or E/4 for a CV below 0.3, below 0.6 or above */
    int32_t points, knee;   /* knee: index of the least redundancy within a tenth of what all
                               of it brings, by the exact split */
    lplb_advice_point point[LPLB_ADVICE_POINTS];
    int32_t topologies;
    lplb_advice_topology topology[LPLB_ADVICE_TOPOLOGIES]; /* that exist with at most the knee's
                                                              redundancy, best first */
    int32_t topology_pays; /* nonzero: the best of them is at least as even as the knee's point */
    int32_t group_counts;  /* measured where there is more than one node, else 0 */
    lplb_advice_groups group[LPLB_ADVICE_GROUPS]; /* best (exact) first */
    double plan_us;                               /* used for the break-even */
    int32_t plan_measured;                        /* 1: timed here */
    int32_t batches;
    lplb_advice_batch batch[LPLB_ADVICE_BATCHES];
    double break_even_tokens; /* batch from which on planning pays; 0 = never in the range, or
                                 unknown without token_ns */
} lplb_advice;

LPLB_API lplb_status lplb_advise(const lplb_trace *trace, const lplb_advise_config *config,
                                 lplb_advice *out);

LPLB_END_DECLS

#endif
