/* Placement: which expert copy lives in which slot of which rank, for every layer. */
#ifndef LPLB_PLACEMENT_H
#define LPLB_PLACEMENT_H

#include <lplb/plan.h>
#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* Slots of a rank are contiguous: rank r owns [rank_offset[r], rank_offset[r+1]). The arrays belong
 * to the struct; make one with lplb_placement_create. */
typedef struct lplb_placement {
    int32_t layers;               /* L */
    int32_t experts;              /* E logical */
    int32_t slots;                /* P physical */
    int32_t ranks;                /* G */
    int32_t *rank_offset;         /* [G+1] */
    int32_t *physical_to_logical; /* [L][P], -1 = empty slot */
} lplb_placement;

/* slots_per_rank NULL: slots must be a multiple of ranks, else LPLB_INVALID names the remainder.
 * Otherwise its sum must be slots. All slots start empty. */
LPLB_API lplb_status lplb_placement_create(int32_t layers, int32_t experts, int32_t slots,
                                           int32_t ranks, const int32_t *slots_per_rank,
                                           lplb_placement **out);
LPLB_API void lplb_placement_destroy(lplb_placement *placement);
LPLB_API lplb_status lplb_placement_copy(const lplb_placement *from, lplb_placement **out);

/* Every id in [-1, E), every expert present in every layer. Names layer, slot, expert. */
LPLB_API lplb_status lplb_placement_validate(const lplb_placement *placement);

/* slot p of every layer holds expert p mod E (the engines' initial map). */
LPLB_API void lplb_placement_fill_trivial(lplb_placement *placement);

/* replica_count [L][E]; returns the largest count X. */
LPLB_API int32_t lplb_placement_replica_count(const lplb_placement *placement, int32_t *count);
/* logical_to_physical [L][E][X] padded with -1, slots ascending; X >= the largest count. */
LPLB_API lplb_status lplb_placement_logical_to_physical(const lplb_placement *placement, int32_t X,
                                                        int32_t *map);

/* Hosts of every expert of one layer in ascending rank, two slots of an expert on one rank being
 * one host. offset [E+1], rank [P] (the first offset[E] entries are written). */
LPLB_API lplb_status lplb_placement_hosts(const lplb_placement *placement, int32_t layer,
                                          int64_t *offset, int32_t *rank, lplb_hosts *hosts);

/* A (layer, rank, expert) pair that was not there before; source = a rank that held the expert, -1
 * if none survives (load it from a checkpoint). */
typedef struct lplb_move {
    int32_t layer, slot, expert, rank, source_rank;
} lplb_move;
/* Writes at most capacity moves in (layer, slot) order; *n_moves is the full number. from and to
 * agree in layers and experts; ranks may differ. */
LPLB_API lplb_status lplb_placement_moves(const lplb_placement *from, const lplb_placement *to,
                                          lplb_move *moves, int64_t capacity, int64_t *n_moves);

/* ---- EPLB (github.com/deepseek-ai/EPLB), same results; ties to the lower index ---- */

/* weight [L][n] float32; packs of exactly n/packs items; pack_index, rank_in_pack [L][n]. */
LPLB_API lplb_status lplb_eplb_balanced_packing(const float *weight, int32_t layers, int32_t items,
                                                int32_t packs, int32_t *pack_index,
                                                int32_t *rank_in_pack);
/* physical_to_logical, replica_rank [L][n_physical]; replica_count [L][n_logical]. */
LPLB_API lplb_status lplb_eplb_replicate_experts(const float *weight, int32_t layers,
                                                 int32_t n_logical, int32_t n_physical,
                                                 int32_t *physical_to_logical,
                                                 int32_t *replica_rank, int32_t *replica_count);
/* weight [L][E]; slots a multiple of ranks. groups % nodes == 0 chooses the hierarchical form,
 * anything else the global one. physical_to_logical [L][slots]; replica_count [L][E] and
 * logical_to_physical [L][E][X], X = slots - E + 1, may be NULL. */
LPLB_API lplb_status lplb_eplb_rebalance_experts(const float *weight, int32_t layers,
                                                 int32_t experts, int32_t slots, int32_t groups,
                                                 int32_t nodes, int32_t ranks,
                                                 int32_t *physical_to_logical,
                                                 int32_t *logical_to_physical,
                                                 int32_t *replica_count);

/* ---- Topology: LPLB's redundant_to_original ---- */

/* r2o [group_size][redundant]: redundant slot k of rank r copies the k-th heaviest expert of rank
 * r2o[r][k mod redundant] of its group; every column is a permutation without fixed points. */
typedef struct lplb_topology {
    int32_t group_size; /* G' */
    int32_t redundant;  /* D */
    int32_t *r2o;       /* [G'][D] */
} lplb_topology;

/* name: "cube", "hypercube", "ring", "torus:MxN", or "" for the default of (ranks, redundant):
 * ring for 1; cube for 2 and 8 | ranks; else a torus where one exists. LPLB_UNSUPPORTED says what
 * would fit. Free with lplb_topology_destroy. */
LPLB_API lplb_status lplb_topology_create(const char *name, int32_t ranks, int32_t redundant,
                                          lplb_topology **out);
LPLB_API lplb_status lplb_topology_from_r2o(const int32_t *r2o, int32_t group_size,
                                            int32_t redundant, lplb_topology **out);
/* text: a name as above, or the path of a JSON file with the r2o as rows, bare or under "r2o"; its
 * group size must divide ranks. */
LPLB_API lplb_status lplb_topology_open(const char *text, int32_t ranks, int32_t redundant,
                                        lplb_topology **out);
LPLB_API void lplb_topology_destroy(lplb_topology *topology);

/* ---- One entry for all algorithms ---- */

typedef enum lplb_place_algorithm {
    LPLB_PLACE_EPLB = 0,
    LPLB_PLACE_TOPOLOGY = 1,
    LPLB_PLACE_SEARCH = 2
} lplb_place_algorithm;

/* Zero-initialise, set struct_size. */
typedef struct lplb_place_config {
    size_t struct_size;
    lplb_place_algorithm algorithm;
    int32_t ranks, slots;          /* G, P */
    const int32_t *slots_per_rank; /* [G] or NULL */
    int32_t nodes, groups;         /* 0 = 1 */
    const lplb_topology *topology; /* for TOPOLOGY; NULL = default */
    const lplb_placement *from;    /* present placement to stay close to, or NULL */
    int64_t max_moves;             /* a layer, with from; < 0 = no limit */
    const uint8_t *dead_ranks;     /* [G] nonzero = dead, or NULL: their slots stay empty */
    const int64_t *speed;          /* [G] or NULL */
    int64_t batch_tokens;          /* tokens (not selections) of a served batch; 0 = unknown */
    int32_t topk;                  /* selections per token, for resampling; 0 = 1 */
    uint64_t seed;
    int32_t effort;         /* search: 0 = default; larger = longer, better */
    int32_t threads;        /* 0 = all */
    int32_t exact_split;    /* search: 1 = score by the per-batch optimum (default when 0),
                               2 = score by the even split */
    int32_t samples_as_are; /* search, several samples: nonzero = score on them as they are; 0 = on
                               smaller batches made from them, for a load that is yet to come */
    double move_cost; /* search with from: imbalance that moving all slots of a layer must bring,
                         each move its part; moves that bring less are left; 0 = 0.02 */
    int64_t work;     /* search: what a layer may cost, in units of about a nanosecond of one core,
                         counted and not timed, so that the result is the same on every machine.
                         Fewer and better aimed trials; layers that gain nothing end early. 0 = no
                         limit, the schedule of `effort` */
} lplb_place_config;

/* load: counts [samples][L][E] >= 0 (one sample: a sum; several: real batches or steps, kept as the
 * distribution to be robust against). weight_of_sample [samples] or NULL = equal: several workloads
 * at once. Allocates; thread-safe. LPLB_INFEASIBLE when the surviving ranks have too few slots,
 * naming how many are missing. Layers without load get the trivial map. */
LPLB_API lplb_status lplb_place(const lplb_place_config *config, const int64_t *load,
                                int64_t samples, int32_t layers, int32_t experts,
                                const double *weight_of_sample, lplb_placement **out);

/* Imbalance (max over ranks / mean over ranks) of every (sample, layer): out [samples][L], 0 where
 * the layer's load is zero. */
LPLB_API lplb_status lplb_placement_imbalance(const lplb_placement *placement, const int64_t *load,
                                              int64_t samples, lplb_solver solver, int32_t threads,
                                              double *out);

LPLB_END_DECLS

#endif
