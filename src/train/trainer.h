/* Training: batches, steps, evaluation, on a grid of ranks. */
#ifndef LPLB_TRAIN_TRAINER_H
#define LPLB_TRAIN_TRAINER_H

#include <signal.h>

#include "train/corpus.h"
#include "train/rebalance.h"
#include "train/sha256.h"

typedef struct trainer_config {
    model_config model;
    optimizer_config optimizer;
    int64_t global_batch;    /* sequences of a step, over all ranks */
    int64_t micro_batch;     /* sequences of one rank at a time */
    int32_t expert_ranks;    /* expert-parallel ranks; 0 = all */
    int32_t redundant;       /* expert slots a rank beyond E / expert_ranks */
    balance_mode mode;       /* how copies are placed, and */
    int64_t rebalance_every; /* how often at most, in steps; 0 = never */
    lplb_solver solver;
    bool locality;
    kept_kind kept;       /* numbers that matrix products read */
    int32_t overlap;      /* sums of gradients travel during the backward */
    int64_t bucket_items; /* gradients of replicated parameters that travel together */
    uint64_t seed;
    char text_digest[SHA256_HEX_BYTES]; /* of all the text, to know it again; "" = unknown */
    lplb_monitor *monitor;              /* of this rank; NULL = none */
    const volatile sig_atomic_t *stop;  /* nonzero: this rank was told to stop; NULL = never is */
} trainer_config;

/* What one step did; the same on all ranks. */
typedef struct step_report {
    int64_t step;
    double loss;       /* cross-entropy per counted token, nats */
    double balance, z; /* auxiliary losses per token, coefficients included */
    double grad_norm, rate;
    int64_t tokens, dropped;
    double seconds;                           /* of this rank */
    double imbalance_before, imbalance_after; /* mean over layers of max/mean rank load: contiguous
                                                 placement, and as planned */
    double plan_us;                           /* mean of a layer's plan */
    double expert_cpu_max, expert_cpu_mean;   /* seconds in experts: over the ranks */
    int32_t stop;                             /* signal that a rank was told to stop by, or 0 */
} step_report;

typedef struct trainer {
    trainer_config config;
    grid grid;
    model *model;
    optimizer *optimizer;
    reducer *reducer;
    balancer *balancer; /* NULL where experts stay where they are */
    bool failed;        /* a step did: transfers may be under way that nobody will end */
    sampler sampler;
    int64_t step;                    /* steps done */
    int64_t saved_step;              /* of the last checkpoint written or read, 0 = none */
    int32_t *token, *target, *first; /* [local sequences][T] */
    int64_t local_sequences;
    /* Called after every forward of a micro-batch, if set: recording. */
    lplb_status (*after_forward)(struct trainer *t, const batch *b, void *user);
    void *after_forward_user;
} trainer;

void trainer_config_default(trainer_config *config);
/* Every rank calls with its own view of the same corpus, NULL if it will take no steps. world stays
 * the caller's. */
lplb_status trainer_create(const trainer_config *config, lplb__group *world, const corpus *text,
                           trainer **out);
/* Every rank calls, in the same state of training. */
void trainer_destroy(trainer *t);
/* One step. LPLB_CHECK_FAILED when the loss is not finite; nothing was updated then. */
lplb_status trainer_step(trainer *t, step_report *report);
/* Mean loss per counted token over the first `sequences` windows of a held-out text. */
lplb_status trainer_evaluate(trainer *t, const corpus *text, int64_t sequences, double *loss);

#endif
