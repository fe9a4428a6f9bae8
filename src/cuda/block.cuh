/* What every stage of a step sees: the arguments, the block's shared memory, the error word. */
#ifndef LPLB_CUDA_BLOCK_CUH
#define LPLB_CUDA_BLOCK_CUH

#include "cuda/simt.cuh"
#include "cuda/step.h"

typedef lplb__cuda_step step;

/* shared_array(a, tokens, int64_t) */
#define shared_array(a, name, type) ((type *)(shared_memory() + (a).shared.name))
/* A section of the tables: the hot ones from the block's copy, the others from where they are. */
#define table(a, name, type)                                                                       \
    ((const type *)(shared_memory() + (a).shared.tables + (a).tables.name))
#define cold_table(a, name, type) ((const type *)((a).block + (a).tables.name))

/* Where the ids of an expert go, numbered within the block's present tile. */
typedef struct alignas(8) expert_way {
    int32_t end;    /* ids below it go to slots & 65535, */
    uint32_t slots; /* those from it on to slots >> 16; int16, -1 = none */
} expert_way;

/* As slots: there are more than two segments, and end is first << 16 | number of them. */
enum : uint32_t { MANY_SLOTS = 0x80008000 };

/* Shared by the block. */
typedef struct block_state {
    int32_t narrow; /* all tokens together are below 2^28 */
    int32_t failed; /* the counts cannot be used */
    int32_t outcome, reused, sweeps, augmentations, restarts;
    int32_t exceeds;   /* a rank beyond the tolerance */
    int64_t high, low; /* sums of the tokens' upper and lower halves */
    int64_t total, max_load;
    int64_t limbs[3]; /* of the distance to the cached plan */
    int64_t bound_numerator, bound_denominator;
    int64_t batch[2];        /* totals of the cached batch and of this one, fixed tokens included */
    int64_t movable;         /* tokens of this batch's experts; 0: its plan is not worth keeping */
    int32_t cached, current; /* of lplb__cuda_memory, before any block can change them */
    uint64_t turn;           /* of sharing counts with the peers; 0 = that has ended */
    uint32_t epoch;          /* of sharing counts among blocks */
    int32_t tag;             /* lplb__cuda_header's */
    int32_t taken;           /* tokens and before are those of the peers already */
} block_state;

static_assert(sizeof(block_state) <= LPLB__CUDA_STATE_BYTES, "make room for it in step.h");

DEVICE block_state *state_of(const step &a) { return shared_array(a, state, block_state); }

DEVICE const lplb__cuda_header *header_of(const step &a) {
    return (const lplb__cuda_header *)(shared_memory() + a.shared.tables);
}

/* Counts are taken by the warps that look after ids first, which have no part in adding them up
 * (share.cuh). */
DEVICE int32_t first_expert(const step &a) {
    int32_t t = thread_index() - a.solver_warps * 32;
    return t >= 0 ? t : t + block_threads();
}

/* Where the time of a step goes (bench/cuda): a point that two of a block's warps pass. */
DEVICE void stamp(const step &a, int point) {
#ifdef LPLB_CUDA_STAMPS
    int role = warp_index() == 0 ? 0 : warp_index() == a.solver_warps ? 1 : -1;
    if (role >= 0 && lane_index() == 0) a.memory->stamp[block_index()][role][point] = cycles();
#else
    (void)a;
    (void)point;
#endif
}

/* Of two errors the graver is the larger word: the highest code, then the lowest detail. */
DEVICE uint64_t error_word(lplb_status status, int64_t detail) {
    return (uint64_t)(-(int)status) << 56 | (LPLB_CUDA_DETAIL_MASK - (uint64_t)detail);
}
DEVICE void report_error(const step &a, lplb_status status, int64_t detail) {
    atomic_max(&a.memory->report.error, error_word(status, detail));
}
/* Where an LPLB_RANGE was found, if not at the position of an id. */
DEVICE int64_t count_of(int32_t expert) { return (int64_t)LPLB_CUDA_DETAIL_COUNT | expert; }
DEVICE int64_t fixed_of(int32_t rank) { return (int64_t)LPLB_CUDA_DETAIL_FIXED | rank; }

/* Tokens of a host after solving. */
DEVICE int64_t host_tokens(const step &a, const block_state *state, int32_t host) {
    return state->narrow ? shared_array(a, x, int32_t)[host] : shared_array(a, x, int64_t)[host];
}

/* The end of the nth of `slots` equal parts of a host's tokens, the extra ones to the lower. */
DEVICE int64_t end_of_part(int64_t tokens, int32_t nth, int32_t slots) {
    if (slots == 1) return tokens;
    int64_t each = tokens / slots, extra = tokens % slots;
    return (nth + 1) * each + smaller((int64_t)nth + 1, extra);
}

/* 16 bytes, moved by one instruction; every array in shared memory and every section starts on such
 * a border and has room up to the next. */
typedef struct alignas(16) quad {
    uint32_t word[4];
} quad;

/* By threads from.. in steps of `threads`, each of which must await_quads. */
DEVICE void send_quads(uint32_t to, const quad *source, int32_t quads, int32_t from,
                       int32_t threads) {
    quad *target = (quad *)(shared_memory() + to);
    ROLLED
    for (int32_t i = from; i < quads; i += threads) send_quad(&target[i], &source[i]);
}

/* By threads from.. in steps of `threads`. */
DEVICE void clear_quads(uint32_t at, int32_t bytes, int32_t from, int32_t threads) {
    const quad zero = {{0, 0, 0, 0}};
    quad *to = (quad *)(shared_memory() + at);
    ROLLED
    for (int32_t i = from; i < (bytes + 15) / 16; i += threads) to[i] = zero;
}
DEVICE void clear_shared(uint32_t at, int32_t bytes) {
    clear_quads(at, bytes, thread_index(), block_threads());
}

#endif
