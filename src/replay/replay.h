/* What the parts of a replay share. */
#ifndef LPLB_REPLAY_REPLAY_H
#define LPLB_REPLAY_REPLAY_H

#include <lplb/replay.h>
#include <stdbool.h>

#include "base/mem.h"
#include "base/threads.h"
#include "io/json.h"

/* ---- policy.c ---- */

typedef enum lplb__placement_kind {
    LPLB__KIND_NONE, /* contiguous, no redundancy */
    LPLB__KIND_EPLB,
    LPLB__KIND_TOPOLOGY,
    LPLB__KIND_SEARCH,
    LPLB__KIND_FILE,
    LPLB__KIND_IDEAL /* ceil(total / ranks), nothing placed */
} lplb__placement_kind;

typedef struct lplb__policy {
    lplb__placement_kind kind;
    char *path;            /* of LPLB__KIND_FILE, else NULL */
    char *placement_name;  /* "eplb", "file:a.json" */
    char *solver_name;     /* "exact:tolerance=1.02"; "" for ideal */
    lplb_plan_config plan; /* solver and options; hosts and node are filled per layer */
    bool locality;         /* tokens stay on their source rank, then node, where they may */
    bool solves;           /* needs work every batch: any solver but even */
} lplb__policy;

/* Reads "PLACEMENT[+SOLVER[:option=value,...]]"; LPLB_INVALID lists what there is. */
lplb_status lplb__policy_parse(const char *text, lplb__policy *out);
void lplb__policy_destroy(lplb__policy *policy);

/* ---- the run ---- */

typedef struct lplb__replay {
    const lplb_trace *trace;
    lplb_replay_config config; /* defaults filled in */
    int32_t layers, first_layer, experts, ranks, nodes;
    int32_t slots;            /* P of placements with redundancy */
    int64_t batch_tokens;     /* 0 for counts */
    int64_t batches, history; /* the first `history` batches are not measured */
    int64_t *order;           /* [tokens] or NULL = as recorded */
    int32_t *node;            /* [G] */
    int64_t *history_counts;  /* [history][L][E] */
    lplb__policy *policy;     /* [result->policies] */
    lplb_replay_result *result;
    lplb__pool *pool;
} lplb__replay;

/* batches.c: the sequence of tokens, and what a batch counts. */
lplb_status lplb__replay_order(lplb__replay *run);
/* sources [G][E] of one layer of one batch; rank s has the tokens i with floor(i*G/B) = s. Counts
 * without tokens are spread evenly over the sources. */
void lplb__replay_sources(const lplb__replay *run, int32_t layer, int64_t batch, int64_t *sources);
/* Fills history_counts. */
lplb_status lplb__replay_history(lplb__replay *run);

/* place.c: experts in order without redundancy, the first ranks with one more where ranks do not
 * divide them. */
lplb_status lplb__replay_contiguous(const lplb__replay *run, lplb_placement **out);
/* Fills result->policy[i].placement, place_seconds, moved_slots. */
lplb_status lplb__replay_place(lplb__replay *run);

/* measure.c: everything else of result->policy[i], and result->counts. */
lplb_status lplb__replay_measure(lplb__replay *run);

/* Slots of each (expert, host) of one layer, in the order of hosts. */
void lplb__count_slots(const lplb_placement *placement, int32_t layer, const lplb_hosts *hosts,
                       int32_t *slots_of_host);
/* The even split, slot by slot, as engines have it. */
void lplb__even_over_slots(const lplb_hosts *hosts, const int32_t *slots_of_host,
                           const int64_t *tokens, int64_t *split);

/* replay.c: checks of the request that replays share; fills what run has of it but the policies. */
lplb_status lplb__replay_check(lplb__replay *run);

/* statistics.c */
lplb_distribution lplb__distribution(double *values, int64_t n); /* sorts values */
/* Fills the figures of one policy from pair_imbalance and what was measured beside it: plan_us
 * [L][measured], pair_us (predicted; NULL without a model) the same. */
lplb_status lplb__replay_sum_up(lplb__replay *run, int32_t policy, const float *plan_us,
                                const double *pair_us);

/* fraction of the whole run, in the calling thread. */
void lplb__replay_progress(const lplb__replay *run, double fraction, const char *what);

/* ---- flow.c: which tokens of a split stay where they come from ---- */

typedef struct lplb__flow {
    const int32_t *node; /* [G] */
    int32_t nodes;
    const int64_t *sources;    /* [G][E] */
    const int64_t *before;     /* [G+1][E] sums of the sources below */
    const int32_t *first_rank; /* [nodes+1] of each node */
    int64_t *on_rank,
        *on_node;       /* [G] out: tokens served on rank r that come from r, from its node */
    int64_t *node_left; /* [nodes] scratch */
} lplb__flow;
/* By the canonical dispatch rule, with or without locality (see lplb/dispatch.h). */
void lplb__flow_of_split(lplb__flow *flow, const lplb_hosts *hosts, const int64_t *split,
                         bool locality);

/* ---- gpu_model.c ---- */

struct lplb_gpu_model {
    int32_t points;
    double *tokens, *us; /* [points] time of a rank's grouped GEMMs; linear between and beyond */
    int64_t tile;        /* each expert's tokens count in whole tiles */
    double us_per_active_expert, us_per_layer, us_per_plan;
    double us_per_selection, us_per_selection_internode; /* dispatch and combine, off their rank */
};
lplb_status lplb__gpu_model_parse(const lplb__input *input, lplb_gpu_model **out);
/* Tiles and active experts of every rank under a split. */
void lplb__gpu_loads(const lplb_gpu_model *model, const lplb_hosts *hosts, const int64_t *split,
                     int64_t *tiled, int64_t *active);
double lplb__gpu_gemm_us(const lplb_gpu_model *model, double tiled_tokens, double active_experts);
double lplb__gpu_link_us(const lplb_gpu_model *model, int64_t from_node, int64_t from_elsewhere);

#endif
