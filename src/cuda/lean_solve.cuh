/* The small kernel for a plan from given counts. */
#ifndef LPLB_CUDA_LEAN_SOLVE_CUH
#define LPLB_CUDA_LEAN_SOLVE_CUH

#include "cuda/lean.cuh"

enum { LEAN_AT_ONCE = 2 }; /* experts of a thread that are sent for together */

typedef struct lean_batch {
    uint64_t expert[LEAN_AT_ONCE];
    int64_t count[LEAN_AT_ONCE]; /* of the first source */
} lean_batch;

DEVICE void fetch_experts(const step &a, int32_t first, lean_batch *batch) {
#pragma unroll
    for (int k = 0; k < LEAN_AT_ONCE; k++) {
        int32_t e = first + k * block_threads();
        if (e >= a.experts) break;
        batch->expert[k] = fetch_expert(a, e);
        batch->count[k] = a.source_counts[e];
    }
}

typedef struct lean_total {
    int64_t tokens;
    uint64_t bits; /* of all counts */
} lean_total;

/* With the counts of the other sources, which lie `experts` apart. */
DEVICE_CALL lean_total add_sources(const int64_t *counts, int32_t sources, int32_t experts,
                                   lean_total sum) {
    ROLLED
    for (int32_t first = 1; first < sources; first += SOURCES_AT_ONCE) {
        int64_t count[SOURCES_AT_ONCE];
#pragma unroll
        for (int k = 0; k < SOURCES_AT_ONCE; k++)
            count[k] = first + k < sources ? counts[(int64_t)(first + k) * experts] : 0;
#pragma unroll
        for (int k = 0; k < SOURCES_AT_ONCE; k++) {
            sum.bits |= (uint64_t)count[k];
            sum.tokens = (int64_t)((uint64_t)sum.tokens + (uint64_t)count[k]);
        }
    }
    return sum;
}

/* Tokens of all experts, and the loads that they make; true if 32 bits may not be enough. Between
 * the first sending and its use all threads meet once. */
DEVICE bool take_lean_totals(const step &a) {
    int32_t shift = NARROW_BITS - 32 + leading_zeros((uint32_t)(a.experts + a.ranks));
    uint64_t large = 0;
    lean_batch batch;
    int32_t e = thread_index();
    fetch_experts(a, e, &batch);
    clear_lean(a);
    block_barrier();
    stamp(a, 1);
    ROLLED
    while (e < a.experts) {
#pragma unroll
        for (int k = 0; k < LEAN_AT_ONCE; k++, e += block_threads()) {
            if (e >= a.experts) break;
            lean_total sum = {batch.count[k], (uint64_t)batch.count[k]};
            if (a.sources > 1) sum = add_sources(a.source_counts + e, a.sources, a.experts, sum);
            large |= sum.bits | (uint64_t)sum.tokens;
            lean_tokens()[e] = (int32_t)sum.tokens;
            settle_expert(a, batch.expert[k], (int32_t)sum.tokens, true);
        }
        fetch_experts(a, e, &batch);
    }
    return large >> shift != 0;
}

/* False: it is not for this kernel after all, and nothing has come of it. */
DEVICE bool solve_lean(const step &a) {
    lean_lane lane = fetch_lane(a, block_threads() / 32);
    bool large = take_lean_totals(a);
    bool unfit = is_unfit(lane, LPLB__CUDA_LEAN_SOLVE, block_threads() / 32);
    if (block_any(large || unfit)) return false;
    stamp(a, 5);
    if (a.counts) {
        ROLLED
        for (int32_t e = thread_index(); e < a.experts; e += block_threads())
            a.counts[e] = lean_tokens()[e];
    }
    if (ranks_of(lane)) plan_group(a, lane, lean_tokens(), true);
    stamp(a, 6);
    block_barrier();
    if (thread_index() == 0) write_lean_report(a);
    stamp(a, 9);
    return true;
}

#endif
