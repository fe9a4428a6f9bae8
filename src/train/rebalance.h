/* The runtime's manager (lplb/runtime.h) in the training loop: every rank feeds it the same counts,
 * so all decide alike; it asks for moves, which a mover makes while training goes on. */
#ifndef LPLB_TRAIN_REBALANCE_H
#define LPLB_TRAIN_REBALANCE_H

#include <lplb/monitor.h>

#include "train/mover.h"

typedef enum balance_mode { MODE_NONE, MODE_EPLB, MODE_LPLB, MODE_SEARCH } balance_mode;

typedef struct balance_config {
    balance_mode mode;
    int64_t every; /* steps between placements at most, 0 = never */
    uint64_t seed;
    lplb_monitor *monitor; /* of this rank, or NULL */
} balance_config;

typedef struct balancer {
    balance_config config;
    const grid *grid;
    experts *experts;
    mover *mover;
    lplb_manager *manager;
    uint64_t *votes;     /* [world][2] */
    double move_seconds; /* that steps waited for deciding and moving */
} balancer;

/* NULL where the mode or `every` asks for none. The experts lie as experts_create left them. */
lplb_status balancer_create(const balance_config *config, model *m, optimizer *o, const grid *g,
                            balancer **out);
/* Not while the mover is at work: balancer_settle. */
void balancer_destroy(balancer *b);

/* Of a run that failed: ends what reports to the monitor and leaves the rest. */
void balancer_abandon(balancer *b);

/* In a step, after the gradients are summed, and after the optimizer. b may be NULL. */
lplb_status balancer_gradients(balancer *b);
lplb_status balancer_update(balancer *b, int64_t step, double scale);
/* After the step: choices [moe_layers][E] summed over all ranks. Decides, stages, switches. */
lplb_status balancer_step(balancer *b, int64_t step, const int64_t *choices);
/* Throws away what is staged, so that nothing travels any more. Every rank calls it. */
void balancer_settle(balancer *b);

/* The manager's state for a checkpoint. */
int64_t balancer_save_bytes(const balancer *b);
lplb_status balancer_save(const balancer *b, void *state, int64_t bytes);
/* The experts lie already as they did when it was saved. state NULL, or of another configuration:
 * the manager begins anew from how they lie. */
lplb_status balancer_restore(balancer *b, const void *state, int64_t bytes);

#endif
