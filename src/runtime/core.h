/* The rebalance manager without threads, clocks and I/O: a state machine that is fed steps, loads
 * and answers, and says what to do next. Equal inputs give equal actions. The shell (manager.c)
 * performs them; a simulator (tests) can as well.
 *
 *   lplb__core_step(...)                         time passes
 *   while (lplb__core_next(core, &action))       everything that is due now
 *       perform it, then answer with lplb__core_answer(core, status)
 */
#ifndef LPLB_RUNTIME_CORE_H
#define LPLB_RUNTIME_CORE_H

#include "base/mem.h"
#include "runtime/propose.h"

typedef enum lplb__action_kind {
    LPLB__START_JOB, /* begin to compute core->job into core->proposal */
    LPLB__ASK_JOB,   /* is it done? answer LPLB_OK, or anything else for no; does not wait */
    LPLB__TAKE_JOB,  /* wait for it; answer: the worker's failure, or LPLB_OK (then the proposal's
                        own status counts) */
    LPLB__AGREE,     /* exchange digest and ok; answer LPLB_OK if all agree */
    LPLB__STAGE,     /* layer, moves */
    LPLB__FINISH,    /* layer; answer LPLB_OK if all of it has arrived here */
    LPLB__COMMIT,    /* layer, row */
    LPLB__DISCARD    /* layer */
} lplb__action_kind;

typedef struct lplb__action {
    lplb__action_kind kind;
    int32_t layer, ok;
    uint64_t digest;
    const lplb_move *moves;
    int64_t n_moves;
    const int32_t *row; /* [P] */
} lplb__action;

enum { LPLB__EVENTS = 256 };

/* What is being done in the present step; the order of the enum is no order of time. */
typedef enum lplb__doing {
    LPLB__IDLE,
    LPLB__STARTING,
    LPLB__ASKING,
    LPLB__AGREEING_DONE,
    LPLB__TAKING,
    LPLB__AGREEING_PLACEMENT,
    LPLB__STAGING,
    LPLB__FINISHING,
    LPLB__AGREEING_MOVES,
    LPLB__COMMITTING,
    LPLB__DISCARDING,
    LPLB__ANNOUNCING /* committing every layer after a recovery */
} lplb__doing;

typedef struct lplb__core {
    lplb_manager_config config; /* defaults filled in, arrays our own */
    lplb__arena arena;
    lplb__slots slots; /* dead points to `dead` */
    int64_t cells;     /* L * E */
    int64_t now;       /* last step, -1 before the first */

    lplb_tracker *tracker;
    lplb_forecaster *forecaster;
    lplb_placement *active;
    uint8_t *dead; /* [G] */
    int32_t usable;
    int64_t retry_step; /* while not usable */

    int64_t interval, last_decision, next_decision, next_check;
    double credit;                           /* moves saved up, where move_rate limits them */
    double last_variance, last_loss;         /* < 0 before the first check */
    int32_t measured_layers, measured_known; /* of the measure under way */
    double measured_variance, measured_loss;

    int32_t job_running, job_stale; /* stale: ranks changed since the request */
    int32_t job_busy;               /* set by the shell: an abandoned worker still uses the job */
    int32_t repair_wanted;          /* ranks changed: the next request fills and rebalances */
    int32_t requested_repair;       /* the request under way is one */
    int64_t repair_step;            /* not before */
    int32_t restart_job, restage;   /* restored while these were under way */
    lplb_status start_status;       /* of START_JOB, reported at its adoption */
    char start_text[200];
    int64_t adopt_step;
    lplb__job job;
    lplb__proposal proposal;

    lplb__doing doing;
    int32_t at;             /* layer of the chunk, or of all, that is next */
    int32_t moving;         /* a target is being moved in */
    int32_t repairing;      /* it is the repair, not the proposal */
    lplb_placement *repair; /* active with lost experts loaded */
    lplb_placement *target; /* proposal.to or repair */
    uint8_t *todo;          /* [L] layers of the target still to be moved */
    int32_t *chunk;         /* [L] */
    int32_t chunk_layers, staged_layers;
    int64_t chunk_step, chunk_moves, target_moves;
    lplb_status chunk_status;
    char chunk_text[200];
    int64_t target_switched; /* layers */
    int32_t announce;        /* every layer's mapping changed without moves: tell the host */
    int64_t n_lost;          /* pairs without a copy, while not usable */
    lplb_move *lost;         /* [L * E] */
    int32_t slots_missing;

    float *mean, *variance; /* [L][E] scratch */
    float *slot_share;      /* [L][P] fraction of its expert that a slot serves, evenly split */
    int32_t *copies;        /* [E] scratch */
    uint8_t *layer_flag;    /* [L] scratch */
    int64_t *expert_load;   /* [E] scratch */
    uint64_t *seen;         /* [(E + 63) / 64] scratch */
    lplb__diff_scratch diff;
    lplb_move *move; /* [P] */
    int64_t sample_capacity;
    int32_t refusing_loads;  /* the last batch was refused */
    int32_t *slots_per_rank; /* [G] own copy, or NULL */
    lplb_topology *topology; /* own copy, or NULL */

    lplb_manager_stats stats;
    int64_t n_events; /* ever; the last LPLB__EVENTS are kept */
    lplb_event *event;
    int64_t told; /* events the shell has passed on */
} lplb__core;

/* What a core allocates is allocated here. */
lplb_status lplb__core_create(const lplb_manager_config *config, lplb__core **out);
void lplb__core_destroy(lplb__core *core);

/* Loads for this step have been fed to core->tracker by the caller through lplb__core_feed. */
lplb_status lplb__core_feed(lplb__core *core, int64_t step, lplb_stage stage, const int64_t *counts,
                            const float *loads);
void lplb__core_step(lplb__core *core);
/* LPLB_OK, or LPLB_INFEASIBLE when survivors do not cover every expert (a repair may be due). */
lplb_status lplb__core_set_dead(lplb__core *core, const uint8_t *dead); /* core_ranks.c */
lplb_status lplb__core_reset(lplb__core *core, const lplb_placement *placement);
bool lplb__core_next(lplb__core *core, lplb__action *action);
void lplb__core_answer(lplb__core *core, lplb_status status);

/* core.c and core_create.c, for each other and core_ranks.c */
lplb_status lplb__core_check_mapping(lplb__core *core, const lplb_placement *placement);
void lplb__copy_map(lplb_placement *to, const lplb_placement *from);
void lplb__core_all_shares(lplb__core *core);
double lplb__most_credit(const lplb__core *core); /* moves that can be saved up */

/* core_config.c */
lplb_status lplb__fill_manager_config(const lplb_manager_config *given,
                                      lplb_manager_config *config);
/* core_measure.c: relative variance of loads and loss of balance of the mean load. */
void lplb__core_shares(lplb__core *core, int32_t layer); /* after active changed */
void lplb__core_measure(lplb__core *core, bool all);
void lplb__core_measured(lplb__core *core, double *variance, double *loss); /* and begins anew */
/* core_save.c */
lplb_status lplb__core_pack(const lplb__core *core, void *buffer, size_t capacity, size_t *bytes);
lplb_status lplb__core_unpack(lplb__core *core, const void *buffer, size_t bytes);

lplb_event *lplb__core_event(lplb__core *core, lplb_event_kind kind, lplb_status status,
                             const char *format, ...) __attribute__((format(printf, 4, 5)));

static inline int32_t *lplb__row(const lplb_placement *p, int32_t layer) {
    return p->physical_to_logical + (int64_t)layer * p->slots;
}

#endif
