/* The balancing runtime: decides when experts move, keeps a valid mapping in force whatever goes
 * wrong, and says what it did.
 *
 * Every rank runs a manager of its own with the same configuration and feeds it the same counts
 * (summed over ranks) at the same steps; all decisions are functions of these, so all managers
 * agree, and a run can be repeated bit for bit. Placements are computed on a worker thread. */
#ifndef LPLB_RUNTIME_H
#define LPLB_RUNTIME_H

#include <lplb/placement.h>
#include <lplb/status.h>
#include <lplb/tracker.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* ---- Mappings: validation, recovery ---- */

/* A mapping that may be used: every logical expert has a slot in every layer, no id is out of
 * range, dead ranks hold nothing, and, with `full`, no slot of a live rank is empty. dead [G] or
 * NULL. Names the first violation. No allocation. */
LPLB_API lplb_status lplb_mapping_validate(const lplb_placement *placement, const uint8_t *dead,
                                           int32_t full);
/* Live slots in order hold experts 0, 1, ... E-1, 0, ...; slots of dead ranks are empty.
 * LPLB_INFEASIBLE when there are fewer live slots than experts. */
LPLB_API lplb_status lplb_mapping_round_robin(lplb_placement *placement, const uint8_t *dead);
/* Order within a rank means nothing to the balance, but moving weights costs: gives every expert
 * that stays on its rank the slot that it has in `from`. */
LPLB_API lplb_status lplb_mapping_align(const lplb_placement *from, lplb_placement *to);
/* The same on every machine for the same mapping; what ranks compare. */
LPLB_API uint64_t lplb_mapping_digest(const lplb_placement *placement);

/* What remains when ranks die. */
typedef struct lplb_recovery {
    lplb_placement *placement; /* covers every expert once `lost` are loaded; NULL when slots are
                                  missing */
    int64_t n_lost;            /* (layer, expert) pairs that survive in no slot */
    lplb_move *lost;           /* [n_lost] layer, expert, and where to load it: slot, rank (-1 when
                                  slots are missing); source_rank is -1, the checkpoint */
    int32_t missing_slots;     /* live slots lacking for one copy of every expert, of each layer */
} lplb_recovery;
/* Survivors keep what they hold; lost experts take empty slots first, then those of redundant
 * copies whose going hurts least under load [L][E] (NULL = all equal). LPLB_OK: the placement can
 * be used at once, nothing has to move. LPLB_INFEASIBLE: the message names what must be loaded from
 * a checkpoint or how many slots are missing, and *out holds all of it. */
LPLB_API lplb_status lplb_recover(const lplb_placement *placement, const uint8_t *dead,
                                  const int64_t *load, lplb_recovery **out);
LPLB_API void lplb_recovery_destroy(lplb_recovery *recovery);

/* ---- Events ---- */

#define LPLB_EVENT_MAP(X)                                                                          \
    X(START, "start")             /* the manager's first mapping */                                \
    X(FALLBACK, "fallback")       /* round robin, the mapping given was refused */                 \
    X(INTERVAL, "interval")       /* the adaptive interval changed */                              \
    X(REQUEST, "request")         /* a placement was asked for */                                  \
    X(SKIP, "skip")               /* decided to stay */                                            \
    X(REFUSE, "refuse")           /* a mapping was refused, the present one stays */               \
    X(ADOPT, "adopt")             /* layers will be moved to a new mapping */                      \
    X(SWITCH, "switch")           /* layers were switched, their moves succeeded */                \
    X(MOVE_FAILED, "move_failed") /* these layers keep their mapping */                            \
    X(DONE, "done")               /* the rebalance is complete */                                  \
    X(RANK_DEAD, "rank_dead")                                                                      \
    X(RANK_BACK, "rank_back")                                                                      \
    X(RECOVERED, "recovered")         /* survivors cover every expert */                           \
    X(LOST, "lost")                   /* they do not: what must be loaded, or is missing */        \
    X(LOADS_REFUSED, "loads_refused") /* counts out of range, the batch counts as missing */       \
    X(WORKER_FAILED, "worker_failed") /* no placement came of the request */                       \
    X(WAITED, "waited")               /* a step waited for the worker, a millisecond or more */    \
    X(POSTPONED, "postponed")         /* some rank's worker was not done, adoption is later */     \
    X(RESET, "reset")                 /* the host brought a mapping of its own */                  \
    X(RESTORED, "restored")           /* state came from a checkpoint */

typedef enum lplb_event_kind {
#define LPLB_EVENT_ENUM(name, text) LPLB_EVENT_##name,
    LPLB_EVENT_MAP(LPLB_EVENT_ENUM)
#undef LPLB_EVENT_ENUM
        LPLB_EVENT_KINDS
} lplb_event_kind;
LPLB_API const char *lplb_event_name(lplb_event_kind kind); /* "request" */

typedef struct lplb_event {
    int64_t step;
    lplb_event_kind kind;
    lplb_status status;  /* the reason's code, LPLB_OK if nothing was wrong */
    int32_t layer, rank; /* -1 = does not apply */
    int64_t layers, moves;
    double before, after; /* predicted mean imbalance, 0 = does not apply */
    char text[200];       /* the reason, for people */
} lplb_event;

/* ---- The manager ---- */

/* How the host takes part. All are called from the thread that calls lplb_manager_step, in the same
 * order on every rank. Any may be NULL. */
typedef struct lplb_manager_hooks {
    void *user;
    /* A collective: *all_ok = every rank came with ok nonzero and the same digest. A failure counts
     * as not agreed. NULL: this process decides alone. */
    lplb_status (*agree)(void *user, uint64_t digest, int32_t ok, int32_t *all_ok);
    /* Starts to bring a layer's new experts to a staging area, without touching slots in use. A
     * move whose source is its own rank is a copy of a slot or of an earlier move of the list; one
     * with source -1 comes from a checkpoint. */
    lplb_status (*stage)(void *user, int32_t layer, const lplb_move *moves, int64_t n);
    /* Waits for what stage began; LPLB_OK only if all of it has arrived on this rank. */
    lplb_status (*staged)(void *user, int32_t layer);
    /* Use the layer's new mapping from the next batch on: staging to slots, tables exchanged.
     * Called after all ranks succeeded. It must not fail. */
    void (*commit)(void *user, int32_t layer, const int32_t *physical_to_logical);
    /* Some rank failed, perhaps this one's stage: throw the staging area of this layer away. Called
     * for every layer that stage was called for and that is not committed. */
    void (*discard)(void *user, int32_t layer);
    void (*event)(void *user, const lplb_event *event);
    /* A placement of one's own in place of lplb_place; on the worker thread. */
    lplb_status (*place)(void *user, const lplb_place_config *config, const int64_t *load,
                         int64_t samples, int32_t layers, int32_t experts,
                         const double *weight_of_sample, lplb_placement **out);
} lplb_manager_hooks;

/* A worker that is not done when its placement is to be adopted. */
typedef enum lplb_late {
    LPLB_LATE_WAIT = 0,    /* the step waits: equal inputs give equal mappings at equal steps */
    LPLB_LATE_POSTPONE = 1 /* no step waits: all ranks ask each other (agree) whether all are done,
                              and if not try again after adopt_lag more steps; when mappings change
                              then depends on time */
} lplb_late;

typedef enum lplb_interval_mode {
    LPLB_INTERVAL_ADAPTIVE = 0, /* halved when loads vary more or balance is lost, doubled when they
                                   vary less or there was nothing to gain */
    LPLB_INTERVAL_PERIODIC = 1
} lplb_interval_mode;

/* Zero-initialise, set struct_size and the shape. 0 means the default in brackets. */
typedef struct lplb_manager_config {
    size_t struct_size;
    int32_t layers, experts, ranks, slots; /* L, E, G, P */
    const int32_t *slots_per_rank;         /* [G], NULL = equal */
    int32_t nodes, groups;                 /* [1] for EPLB's hierarchical form and for sources */
    const lplb_placement *initial;         /* NULL: round robin */
    lplb_tracker_config tracker;           /* layers and experts may stay 0; [EWMA, alpha 0.01, 64
                                              samples] */
    const lplb_forecaster_config *forecaster; /* NULL = none; layers and experts may stay 0 */

    /* When */
    lplb_interval_mode mode;
    int64_t interval, min_interval, max_interval; /* steps [1000, 100, 10000]; periodic: interval */
    double shorter_above, longer_below;           /* ratio of variance to the last [1.2, 0.8] */
    /* Steps from request to adoption, the same on every rank. [50, or half of min_interval, or
     * more: what the worker needs for all layers by the work they may cost, and half as much again,
     * at steps of step_ns; a function of this configuration alone] */
    int64_t adopt_lag;
    double step_ns; /* how long a step is expected to be, for adopt_lag [10,000,000: 10 ms] */
    int32_t late;   /* when the worker is not done at the adoption: LPLB_LATE_WAIT */

    /* What */
    lplb_place_algorithm algorithm;
    const lplb_topology *topology; /* for TOPOLOGY; copied; NULL = the default of the shape */
    int32_t even_split;            /* 1: tokens split evenly over copies; 0: by the exact plan */
    int64_t work;                  /* what placing a layer may cost the worker, as lplb_place_config
                                      [30,000 a slot, at least 8,000,000: about 8 ms, times effort];
                                      < 0 = no limit, the search's full schedule */
    int32_t effort;                /* of the search, as lplb_place_config */
    int64_t max_moves_per_layer;   /* a rebalance, for SEARCH; < 0 = no limit [P / 8, at least 1] */
    int64_t max_moves;             /* a rebalance, over layers; < 0 or 0 = no limit */
    double move_rate;              /* fraction of all slots that may move in 1,000 steps on average;
                                      what is not used is saved up to max_moves_per_layer of every
                                      layer, which is also there at first; < 0 = no limit [0.05; no
                                      limit for EPLB or where the costs below are known] */
    double move_cost;              /* for SEARCH: imbalance that moving all slots of a layer must
                                      bring, each move its part [0.8] */
    double keep_below; /* layers with less predicted imbalance stay as they are [1.02] */
    double min_gain;   /* in imbalance, for a layer to move [0.01] */
    int32_t always;    /* nonzero: adopt every placement, as EPLB in engines does */
    uint64_t seed;

    /* Is it worth it: gain (ns saved a step * interval) > hysteresis * cost of moving. All three of
     * the first, or none: then min_gain alone decides. */
    int64_t expert_bytes;    /* weights of one expert of one layer */
    double link_bytes_per_s; /* one rank, one direction */
    double token_ns;         /* time that one selection costs its rank */
    double exposed;          /* fraction of the transfer that delays steps, (0, 1] [1] */
    double hysteresis;       /* [1.5] */

    /* How */
    int32_t layers_per_chunk; /* layers staged together [all] */
    int64_t moves_per_chunk;  /* and moves; a layer with more goes alone [no limit] */
    int64_t move_lag;         /* steps from staging a chunk to switching it [1] */
    int32_t load_lost;        /* nonzero: stage may load lost experts (source -1) */
    int32_t synchronous;      /* nonzero: no worker thread, the placement is computed at the step
                                 of its adoption */
    int32_t threads;          /* of the placement [1]; < 0 = all */
    double worker_timeout_s;  /* wait at adoption at most; < 0 = for ever [60] */
    lplb_manager_hooks hooks;
    struct lplb_monitor *monitor; /* events, figures and ranges go there too; NULL = none */
} lplb_manager_config;

typedef struct lplb_manager_stats {
    int64_t steps, requests, skipped, refused, adopted; /* adopted: rebalances with moves */
    int64_t layers_switched, moves, moved_bytes; /* of them done, not counting within ranks */
    int64_t loaded;                              /* experts from a checkpoint */
    int64_t move_failures, worker_failures, fallbacks, recoveries, loads_refused;
    int64_t interval;                    /* now */
    int64_t place_ns, wait_ns;           /* sum: deciding and placing on the worker; steps waiting
                                            for it */
    int64_t waits, longest_wait_ns;      /* steps that waited at all; the longest of them */
    int64_t postponed;                   /* adoptions put off because a worker was not done */
    int64_t adopt_lag;                   /* in force */
    int32_t dead_ranks, usable, pending; /* pending: a request or moves under way */
    double variance, balance_loss;       /* at the last check: relative variance of loads; predicted
                                            imbalance - 1 of the mean load under the even split */
    double predicted_before, predicted_after; /* mean imbalance over layers, last decision */
} lplb_manager_stats;

typedef struct lplb_manager lplb_manager;
LPLB_API lplb_status lplb_manager_create(const lplb_manager_config *config, lplb_manager **out);
LPLB_API void lplb_manager_destroy(lplb_manager *manager);

/* After the batch of `step` (rising from call to call): counts [L][E] summed over ranks, NULL when
 * they are not known or mean nothing. Counts out of range are refused with an event, and the step
 * goes on. Calls the hooks that are due. Allocates nothing. LPLB_INVALID for a step that does not
 * rise. */
LPLB_API lplb_status lplb_manager_step(lplb_manager *manager, int64_t step, lplb_stage stage,
                                       const int64_t *counts);
LPLB_API lplb_status lplb_manager_step_real(lplb_manager *manager, int64_t step, lplb_stage stage,
                                            const float *loads);

/* Which ranks are dead now, dead [G]; every surviving rank calls it between the same steps.
 * Survivors' copies are in force when it returns LPLB_OK. LPLB_INFEASIBLE: no mapping can serve
 * every expert; the message and an event say what is missing. The manager tries again when ranks
 * return and every min_interval steps. A rank that returns has lost its weights. */
LPLB_API lplb_status lplb_manager_set_dead(lplb_manager *manager, const uint8_t *dead);

/* While no mapping serves every expert: the (layer, expert) pairs without a copy, each with the
 * slot and rank to load it into (-1 when slots are missing), and how many live slots are lacking in
 * each layer. *lost [n] is valid until the next call of step, set_dead, reset or restore. 0 and 0
 * while there is a mapping. */
LPLB_API int64_t lplb_manager_lost(const lplb_manager *manager, const lplb_move **lost,
                                   int32_t *missing_slots);

/* The host has brought the weights to this mapping by its own means (reloaded a checkpoint, say):
 * it is validated and in force when this returns; a request or moves under way are dropped. Every
 * rank calls it between the same steps. */
LPLB_API lplb_status lplb_manager_reset(lplb_manager *manager, const lplb_placement *placement);

/* The mapping in force, valid until the next call of step, set_dead,
 * reset or restore. LPLB_STATE, with
 * the reason, while there is none that serves every expert. */
LPLB_API lplb_status lplb_manager_placement(const lplb_manager *manager,
                                            const lplb_placement **placement);
LPLB_API void lplb_manager_get_stats(const lplb_manager *manager, lplb_manager_stats *stats);
/* The last events, oldest first; returns how many were written. 256 are kept. */
LPLB_API int64_t lplb_manager_events(const lplb_manager *manager, lplb_event *events,
                                     int64_t capacity);
LPLB_API const lplb_tracker *lplb_manager_tracker(const lplb_manager *manager);
/* NULL without one. */
LPLB_API const lplb_forecaster *lplb_manager_forecaster(const lplb_manager *manager);

/* Everything that decisions depend on, moves under way and a pending request included: a restored
 * manager of the same configuration goes on as the saved one would have, and would save the same
 * bytes. Counts are kept; events and times (place_ns, wait_ns, waits, longest_wait_ns) are not,
 * they stay the restoring manager's own. As lplb_tracker_save; staging that was under way begins
 * anew. The weights must be where the saved mapping has them. */
LPLB_API size_t lplb_manager_save_bytes(const lplb_manager *manager);
LPLB_API lplb_status lplb_manager_save(const lplb_manager *manager, void *buffer, size_t capacity);
LPLB_API lplb_status lplb_manager_restore(lplb_manager *manager, const void *buffer, size_t bytes);

LPLB_END_DECLS

#endif
