/* AdamW (Loshchilov and Hutter, 2019), and schedules.
 * One rule for scale: every gradient is a sum over tokens divided by the tokens of the whole step
 * (model.h, batch.tokens), so ranks and micro-batches are only ever added up. */
#ifndef LPLB_TRAIN_OPTIMIZER_H
#define LPLB_TRAIN_OPTIMIZER_H

#include "train/reduce.h"

typedef enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_WSD } schedule_kind;

typedef struct optimizer_config {
    double rate, min_rate;                        /* peak and final learning rate */
    double beta1, beta2, eps, weight_decay, clip; /* clip 0 = none */
    schedule_kind schedule; /* warm-up, then cosine; or warm-up, stable, linear decay */
    int64_t warmup_steps, steps, decay_steps; /* decay_steps: last ones of WSD */
    int64_t schedule_steps; /* when the final rate is reached, and kept from there; 0 = steps */
} optimizer_config;

typedef struct optimizer {
    optimizer_config config;
    real *m1, *m2;               /* [layout.items] moments */
    real *expert_m1, *expert_m2; /* [moe_layers][local_slots][expert_items] */
} optimizer;

void optimizer_config_default(optimizer_config *config);
lplb_status optimizer_config_check(const optimizer_config *config);
/* The length of the schedule. */
int64_t schedule_steps(const optimizer_config *config);
/* Learning rate of 0-based step. */
double learning_rate(const optimizer_config *config, int64_t step);

lplb_status optimizer_create(const optimizer_config *config, const model *m, optimizer **out);
void optimizer_destroy(optimizer *o);

/* Norm of the whole gradient, every logical expert once; the same on all ranks. */
lplb_status optimizer_norm(const model *m, const grid *g, double *norm);
/* One AdamW step with gradients scaled by `scale` (clipping). step is 0-based. */
void optimizer_step(optimizer *o, model *m, int64_t step, double scale);
/* The same step for rows of experts that lie elsewhere: the bits that it would give in place. */
void optimizer_update_rows(const optimizer *o, const ops *table, int64_t step, double scale,
                           real *weight, const real *gradient, real *m1, real *m2, int64_t n);

#endif
