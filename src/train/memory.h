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
    MEMORY_TRANSIENT, /* the largest of: sums over ranks, moves of experts, a checkpoint */
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
    bool moves, checkpoints; /* experts move between ranks; checkpoints are written */
    int64_t text_bytes;      /* training and held-out text */
    int64_t base_bytes;      /* memory_base() before anything is allocated, < 0 if unknown */
    const layer_tape *tape;  /* [layers] of a run, for the rows that a rank really got; NULL: as if
                                routing were even */
} memory_input;

/* By the formula; nothing is allocated that stays. */
lplb_status memory_predict(const memory_input *input, memory_plan *out);

/* A table of the parts, or one JSON document. */
void memory_print(const memory_plan *plan, int ranks, bool json, FILE *out);

/* Large blocks that are freed go back to the system at once, instead of leaving holes that only
 * smaller ones fit: buffers grow with the routing. To be called before anything is allocated. */
void memory_return_blocks(void);

/* Resident bytes of this process, now and at most so far; -1 where the system does not say. The
 * first also runs one matrix product, so that the library has its buffers. */
int64_t memory_base(void);
int64_t memory_peak(void);

#endif
