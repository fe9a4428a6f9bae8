/* What a run needs of memory, by formula (docs/training.md), and what it takes. */
#ifndef LPLB_TRAIN_MEMORY_H
#define LPLB_TRAIN_MEMORY_H

#include <stdbool.h>
#include <stdio.h>

#include "train/trainer.h"

typedef enum memory_part {
    MEMORY_WEIGHTS,
    MEMORY_GRADIENTS,
    MEMORY_MOMENTS,
    MEMORY_ATTENTION, /* kept for the backward, of all layers */
    MEMORY_DENSE,
    MEMORY_ROUTER,
    MEMORY_EXPERTS,
    MEMORY_HEAD,
    MEMORY_SCRATCH,   /* of one layer at a time */
    MEMORY_EXCHANGE,  /* tokens on their way to experts and back */
    MEMORY_COPIES,    /* gradients of copies on their way */
    MEMORY_MOVES,     /* experts on their way to other slots */
    MEMORY_RECORD,    /* the routing that is recorded, at rank 0 */
    MEMORY_TRANSIENT, /* the largest of: sums over ranks, a checkpoint, writing the recording */
    MEMORY_TEXT,
    MEMORY_BASE, /* program, libraries, MPI's buffers: measured */
    MEMORY_PARTS
} memory_part;

typedef struct memory_plan {
    int64_t bytes[MEMORY_PARTS]; /* of a rank; a checkpoint is rank 0's part */
    int64_t total;
} memory_plan;

typedef struct memory_input {
    const trainer_config *config;
    int ranks;
    bool leader;             /* rank 0, which writes what is written */
    bool moves, checkpoints; /* experts move between ranks; checkpoints are written */
    int64_t recorded_tokens; /* of all ranks' routing */
    int64_t text_bytes;      /* training and held-out text */
    int64_t held_out_bytes;  /* of these */
    int64_t base_bytes;      /* memory_base() before anything is allocated, < 0 if unknown */
    const trainer *run;      /* after a run, for the rows, copies and moves that there were; NULL:
                                as if routing were even and whole layers moved */
} memory_input;

/* By the formula; nothing is allocated that stays. */
lplb_status memory_predict(const memory_input *input, memory_plan *out);

/* A table of the parts, or one JSON document. */
void memory_print(const memory_plan *plan, int ranks, bool json, FILE *out);

/* Large blocks that are freed go back to the system at once, instead of leaving holes that only
 * smaller ones fit: buffers grow with the routing. To be called first of all: blocks from before
 * cannot be freed after. */
void memory_return_blocks(void);

/* Resident bytes of this process before a run by this configuration: what program and libraries
 * take that have done everything once. Before it counts, it takes a step with a model of a few
 * kilobytes on the same ranks, so that code and the libraries' buffers, MPI's too, are there. Every
 * rank calls; -1 where the system does not say. */
lplb_status memory_base(const trainer_config *config, lplb__group *world, int64_t *bytes);
/* At most so far, likewise. */
int64_t memory_peak(void);

#endif
