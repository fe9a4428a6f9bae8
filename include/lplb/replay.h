/* Replay: a recorded trace driven through policies, batch by batch. */
#ifndef LPLB_REPLAY_H
#define LPLB_REPLAY_H

#include <lplb/placement.h>
#include <lplb/plan.h>
#include <lplb/trace.h>

LPLB_BEGIN_DECLS

typedef enum lplb_replay_order {
    LPLB_ORDER_RECORDED = 0,
    LPLB_ORDER_INTERLEAVE = 1, /* one token of each sequence in turn, as decoding does */
    LPLB_ORDER_SHUFFLE = 2     /* seeded */
} lplb_replay_order;

/* A measured cost model of one GPU, for predictions; see docs/formats.md ("gpu model"). */
typedef struct lplb_gpu_model lplb_gpu_model;
LPLB_API lplb_status lplb_gpu_model_read(const char *path, lplb_gpu_model **out);
LPLB_API void lplb_gpu_model_destroy(lplb_gpu_model *model);

/* Zero-initialise, set struct_size. */
typedef struct lplb_replay_config {
    size_t struct_size;
    int32_t ranks;        /* G */
    int32_t redundant;    /* slots a rank beyond E/G: P = E + G*redundant, a multiple of G */
    int32_t slots;        /* P itself, a multiple of G, in place of redundant: for ranks that do not
                             divide the experts; 0 = by redundant */
    int32_t nodes;        /* 0 = 1 */
    int32_t groups;       /* EPLB's expert groups, 0 = 1 */
    const char *topology; /* name or file of an r2o, NULL = default */
    int64_t batch_tokens; /* 0 = 4096; must be 0 for traces of counts */
    lplb_replay_order order;
    int32_t first_layer, last_layer; /* inclusive; both 0 with all_layers nonzero = all */
    int32_t all_layers;
    double history; /* fraction of batches used to place, in [0, 1); default 0.5 when < 0 */
    const char *const *policy; /* [policies] "PLACEMENT[+SOLVER[:option=value,...]]" */
    int32_t policies;     /* 0 = none, eplb, eplb+exact, lplb (where G divides E), search+exact,
                             ideal */
    int64_t expert_bytes; /* weights of one expert, 0 = unknown */
    const lplb_gpu_model *gpu_model;
    uint64_t seed;
    int32_t threads;    /* 0 = all */
    int32_t keep_loads; /* nonzero: fill lplb_policy_result.loads */
    /* progress in [0, 1] and what is being done; may be NULL; called from the calling thread */
    void (*progress)(double fraction, const char *what, void *user);
    void *progress_user;
} lplb_replay_config;

typedef struct lplb_distribution {
    double mean, p50, p99, max; /* nearest rank */
} lplb_distribution;

typedef struct lplb_policy_result {
    char *policy;              /* as given */
    char *placement_name;      /* "topology" for lplb, "file:a.json" */
    char *solver_name;         /* with its options: "even", "exact:tolerance=1.02"; "" for ideal */
    lplb_placement *placement; /* [L] layers replayed; NULL for ideal */
    lplb_distribution imbalance; /* over (layer, batch) pairs with load */
    double balancedness;         /* mean over the pairs of mean/max */
    int32_t has_plan_time;
    double plan_us_p50, plan_us_p99;
    double place_seconds;     /* time to compute the placement */
    int64_t moved_tokens;     /* selections served off their source rank */
    int64_t internode_tokens; /* selections served off their source node */
    int64_t moved_slots;      /* moves against the contiguous placement */
    int64_t not_converged;    /* pairs whose solver gave up or whose answer was rejected */
    int32_t has_prediction;
    double ms_per_layer, tokens_per_s; /* 0 without a gpu model; tokens_per_s 0 for counts */
    int64_t redundant_bytes;
    double *pair_imbalance;         /* [L][measured], 0 = no load */
    double *layer_mean, *layer_max; /* [L] */
    int64_t *loads;                 /* [L][measured][G] with keep_loads, else NULL */
} lplb_policy_result;

typedef struct lplb_replay_result {
    int64_t tokens, batches, measured; /* batches of the whole trace; those after the history */
    int32_t layers, first_layer, experts, topk, ranks, slots, nodes;
    int64_t batch_tokens;
    int64_t *counts; /* [L][measured][E] logical counts of the measured batches */
    int32_t policies;
    lplb_policy_result *policy; /* [policies] */
    double seconds, place_seconds;
} lplb_replay_result;

LPLB_API lplb_status lplb_replay(const lplb_trace *trace, const lplb_replay_config *config,
                                 lplb_replay_result **out);
LPLB_API void lplb_replay_result_destroy(lplb_replay_result *result);

/* ---- What still limits a policy: `lplb explain` and the report share it ---- */

/* A set of ranks that a batch cannot get below W(S) / |S| tokens each, because the experts that
 * live only inside it brought W(S) tokens. A batch whose smallest such set is all ranks is limited
 * by nothing: it can be perfectly even. */
typedef struct lplb_bottleneck {
    int32_t layer; /* row of the result, 0-based: model layer - result->first_layer */
    int32_t n_ranks, n_experts;
    int32_t *rank;          /* [n_ranks] ascending */
    int32_t *expert;        /* [n_experts] with every host inside the set, by falling tokens in the
                               batches where the set binds */
    int64_t *expert_tokens; /* [n_experts] these tokens */
    int64_t pairs;          /* measured batches of this layer in which it binds */
    double excess;          /* mean over them of bound / mean load - 1 */
} lplb_bottleneck;

/* One more slot on `rank`, holding a copy of `expert`. */
typedef struct lplb_next_replica {
    int32_t layer, expert, rank; /* layer as in lplb_bottleneck */
    double before, after; /* best reachable imbalance of the layer, mean over the batches that
                             were tried */
} lplb_next_replica;

typedef struct lplb_analysis_config {
    size_t struct_size;
    int32_t layer;      /* one row of the result, or -1 = all */
    int64_t batch;      /* one measured batch, or -1 = all */
    int32_t max_sets;   /* sets to list; 0 = 10 */
    int32_t max_trials; /* batches of a layer on which replicas are tried, evenly spaced; 0 = 16 */
    int32_t threads;    /* 0 = all */
} lplb_analysis_config;

typedef struct lplb_analysis {
    int64_t pairs;        /* (layer, batch) pairs with load that were looked at */
    int64_t limited;      /* those with a bottleneck */
    double imbalance;     /* mean over pairs under the policy */
    double bound;         /* mean over pairs of the least any split could reach with this placement:
                             imbalance - bound is lost by the split, bound - 1 by the placement */
    double *layer_bound;  /* [L] mean of the bound, 0 where empty or not looked at */
    int64_t n_sets;       /* distinct (layer, set) that bind somewhere */
    int32_t sets;         /* how many of them are listed */
    lplb_bottleneck *set; /* [sets] most pairs first, then largest excess, layer, ranks */
    int32_t replicas;
    lplb_next_replica *replica; /* [replicas] the best one of each layer where one helps, largest
                                   gain first */
} lplb_analysis;

/* Analyses result->policy[policy]; LPLB_UNSUPPORTED for `ideal`, which has no placement. */
LPLB_API lplb_status lplb_replay_analyze(const lplb_replay_result *result, int32_t policy,
                                         const lplb_analysis_config *config, lplb_analysis **out);
LPLB_API void lplb_analysis_destroy(lplb_analysis *analysis);

/* One self-contained HTML file report.html in dir (made if missing). */
LPLB_API lplb_status lplb_report_write(const lplb_replay_result *result, const char *title,
                                       const char *dir);

LPLB_END_DECLS

#endif
