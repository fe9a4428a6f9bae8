/* The arguments of the kernels, and how they divide a block's shared memory. */
#ifndef LPLB_CUDA_STEP_H
#define LPLB_CUDA_STEP_H

#include <lplb/cuda.h>

#include "cuda/ipm.h"
#include "cuda/tables.h"

enum {
    LPLB__CUDA_STAGE_COUNT = 1, /* ids -> counts of this source */
    LPLB__CUDA_STAGE_SOLVE = 2, /* counts -> split */
    LPLB__CUDA_STAGE_MAP = 4,   /* ids, split -> slots */
    LPLB__CUDA_STAGE_SHARES = 8 /* with MAP: this source's own tokens by given shares */
};

/* Of the block's state (block.cuh). */
enum { LPLB__CUDA_STATE_BYTES = 192 };

/* Of the small kernel: ids of a thread; bytes of a block's shared memory that its plans take. */
enum { LPLB__CUDA_LEAN_ROUNDS = 4, LPLB__CUDA_LEAN_BYTES = 2112 };

/* Ids of a thread in a tile. */
enum { LPLB__CUDA_KEPT_IDS = 18 };

/* Few threads: what all of them do costs a multiprocessor as many turns as it has warps. */
enum { LPLB__CUDA_MAX_THREADS = 640 };

/* Blocks of a launch; those that share counts have a multiprocessor each. */
enum { LPLB__CUDA_MAX_BLOCKS = 160 };

/* Numbers of a warp in the arrays seen and number: one for each expert and one for what is none,
 * up to the next border of 16 bytes. */
#define LPLB__CUDA_SEEN_STRIDE(experts)   (((experts) + 4) & ~3)
#define LPLB__CUDA_NUMBER_STRIDE(experts) (((experts) + 8) & ~7)

/* Words of all blocks' counts, for two steps: four experts to a line of 16 words. */
#define LPLB__CUDA_TOTAL_WORDS(experts) (2 * 16 * (((experts) + 3) / 4))

/* Offsets in bytes into a block's shared memory. Sizes are for the largest shape. The small
 * kernels' plans lie at 0, where there is nothing that they use besides. */
typedef struct lplb__cuda_shared {
    uint32_t state;
    uint32_t tables; /* their hot sections */
    uint32_t tokens; /* int64 [E] of all sources */
    uint32_t before; /* int64 [E] of the sources before this one */
    uint32_t own;    /* uint32 [E] of a tile, or of the later ones */
    uint32_t base;   /* uint32 [E] counted by the blocks before it */
    uint32_t mine;   /* int32 [E] counted by all blocks of this source */
    uint32_t load;   /* [G] by position */
    uint32_t x;      /* [P] tokens of each host */
    /* of the warps that look after ids */
    uint32_t seen;   /* uint32 [id warps][SEEN_STRIDE] lanes with an id */
    uint32_t number; /* uint16 [id warps][NUMBER_STRIDE] ids so far; then of the warps before */
    uint32_t kept;   /* uint32 [KEPT_IDS][id threads] ids from counting to mapping */
    /* while the split is made; */
    uint32_t edges;     /* [solver_warps] components' pairs */
    uint32_t set_hosts; /* [own chunks][LANES], 16 bytes each (sets.cuh) */
    uint32_t saved_load, saved_x, capacity;
    uint32_t level;  /* [2G+64] loads without the expert that is poured, in wide groups */
    uint32_t key;    /* uint64 [G] best way to reach a rank */
    uint32_t depth;  /* uint16 [G] */
    uint32_t owner;  /* int32 [G] */
    uint32_t status; /* uint32 [G] of each component */
    uint32_t limits; /* [components] */
    uint32_t result;
    /* and in the same place, once it is made */
    uint32_t way;                      /* [E+1] where an expert's tokens go */
    uint32_t end;                      /* int32 [P] ends of the segments */
    uint32_t slot;                     /* uint16 [P] their slots, with locality */
    uint32_t local_room, local_before; /* int64 [CHOICES] of hosts (local.cuh) */
    uint32_t local_taken;              /* int32 [CHOICES] */
    uint32_t bytes;
} lplb__cuda_shared;

/* What one planner keeps in device memory between steps, behind lplb_cuda_report. */
typedef struct lplb__cuda_memory {
    lplb_cuda_report report;
    uint64_t epoch;  /* steps that exchanged counts between blocks */
    int32_t current; /* which of the two cached plans is valid */
    int32_t cached;  /* 0 = none is */
#ifdef LPLB_CUDA_STAMPS
    /* [block][role][point]: cycles at which the first planning and the first id warp pass */
    int64_t stamp[LPLB__CUDA_MAX_BLOCKS][2][16];
#endif
} lplb__cuda_memory;

/* With locality, in device memory: where the sources live. */
typedef struct lplb__cuda_local {
    const int32_t *source_rank;    /* [S] */
    const int32_t *node;           /* [G] of a rank, from 0 */
    const int32_t *rank_begin;     /* [G+1] sources of a rank, ascending: */
    const int32_t *source_by_rank; /* [S] */
    const int32_t *node_begin;     /* [nodes+1] sources of a node, ascending: */
    const int32_t *source_by_node; /* [S] */
    int32_t nodes;                 /* 0: no locality */
} lplb__cuda_local;

/* Ranks that share their counts through each other's memory (peers.cuh): as many as the largest
 * NVLink domain has, and a table of them still fits the kernel's arguments. */
enum { LPLB__CUDA_MAX_PEERS = 72 };

/* The words of one turn, in every rank's memory: a row for each source, of a tag word and a word
 * for each expert; epoch << 32 | value. Behind both turns' rows: a word for each rank of the node
 * that is not 0 once that rank has stopped sharing. */
enum { LPLB__CUDA_ROW_HEAD = 1 };

typedef struct lplb__cuda_peers {
    uint64_t *turns;      /* steps shared so far; then the error that ended it, 0 = none */
    uint64_t *words;      /* ours; NULL: the step does not share */
    const uint64_t *rail; /* [nodes][row_words] rows of the ranks that have our place on their
                             nodes, or NULL = one node */
    uint64_t *row;        /* a launch that only counts: where our row goes, to be brought to all */
    uint64_t *beat;       /* host memory, for the watch (watch.h), or NULL */
    int64_t turn_words;   /* from the rows of one turn to those of the next */
    int32_t row_words;
    int32_t ends;         /* nonzero: the last launch of the turn */
    int32_t nodes, node;  /* ranks are numbered node by node */
    int32_t ranks, local; /* of the node, and our number on it; ranks 0: somebody else brings the
                             rows (gather.c) */
    uint64_t timeout_ns;
    uint64_t *target[LPLB__CUDA_MAX_PEERS]; /* the words of the node's ranks, ours included */
} lplb__cuda_peers;

/* Of the small kernel (lean.cuh). */
typedef struct lplb__cuda_lean {
    const lplb__cuda_lean_lane *lane;
    const lplb__cuda_lean_expert *expert;
    int32_t groups; /* that lane has room for */
    int32_t kind;   /* what of it this step is, or 0 */
} lplb__cuda_lean;

/* What the small kernel reads comes first: each line of 64 bytes that it touches is waited for, and
 * the arguments begin 16 bytes into one. */
typedef struct lplb__cuda_step {
    lplb__cuda_lean lean;
    lplb__cuda_memory *memory;
    int32_t experts, ranks, sources;
    int32_t solver_warps; /* the first ones of a block; the others look after ids */
    /* of one step */
    const int64_t *source_counts;    /* [S][E]; NULL: this source's own counts are all there is */
    int64_t *counts, *split, *loads; /* outputs or NULL */
    float *share;
    void *counter;                      /* or NULL */
    int32_t counter_bytes, counter_add; /* 4 or 8 */
    int32_t stages, topk;
    const void *ids;
    void *out;
    int64_t n;
    const int64_t *n_device;      /* tokens of topk ids, or NULL */
    const int64_t *own_counts;    /* [E] in place of ids, or NULL */
    int32_t ids_bytes, out_bytes; /* 4 or 8 an id */
    int32_t source;
    int32_t block_share, rounds; /* ids of a block and of a thread in a tile, when n is known */
    int32_t slots;
    const int64_t *fixed;    /* [G] or NULL */
    const int64_t *split_in; /* [hosts] to map without solving */
    const float *share_in;   /* [hosts] */
    int64_t *gathered;       /* [S][E], what peers shared */
    /* fixed when the planner is made */
    const unsigned char *block; /* the tables */
    lplb__cuda_tables tables;
    lplb__cuda_shared shared;
    uint64_t *words;  /* [E][blocks], [blocks][E] counts that carry their epoch (share.cuh) */
    uint64_t *totals; /* [TOTAL_WORDS] */
    int64_t *cached;  /* [2][E+P+G] counts, split and fixed of the cached plan */
    int32_t blocks;
    int32_t solver;
    int64_t tolerance; /* fixed point, 0 = none */
    int64_t reuse;     /* fixed point, 0 = no cache */
    uint64_t timeout_ns;
    lplb__cuda_ipm ipm; /* of the interior-point kernel */
    lplb__cuda_local local;
    lplb__cuda_peers peers;
} lplb__cuda_step;

#endif
