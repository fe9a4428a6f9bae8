/* Warps that solve one component of an interior-point problem together. */
#ifndef LPLB_CUDA_IPM_TEAM_CUH
#define LPLB_CUDA_IPM_TEAM_CUH

#include <math.h>

#include "cuda/block.cuh"

typedef struct team {
    int32_t number, teams;
    int32_t thread, threads;
    double *partial; /* [2][warps of the team] */
    int32_t turn;    /* which half of partial is next */
} team;

DEVICE void team_barrier(const team *t) {
    if (t->threads == 32) warp_barrier();
    else part_barrier(1 + t->number, t->threads);
}

/* Of numbers >= 0, whose bits have the same order; what is not a number is the most. */
DEVICE double warp_most(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    int32_t high = (int32_t)(bits >> 32), low = (int32_t)((uint32_t)bits ^ 0x80000000u);
    int32_t most = warp_max(high), rest = warp_max(high == most ? low : INT32_MIN);
    bits = (uint64_t)(uint32_t)most << 32 | ((uint32_t)rest ^ 0x80000000u);
    memcpy(&value, &bits, sizeof bits);
    return value;
}

DEVICE double warp_sum_of(double value) {
#pragma unroll
    for (int32_t d = 16; d; d >>= 1) value += shuffle_xor(value, d);
    return value;
}

/* Over all threads of the team, the sum or, of numbers >= 0, the most, in an order that depends on
 * nothing but their number. Orders memory like a barrier. */
template <bool MOST> DEVICE double reduce_team(team *t, double value) {
#define combined(x, y) (MOST ? fmax((x), (y)) : (x) + (y))
    value = MOST ? warp_most(value) : warp_sum_of(value);
    if (t->threads > 32) {
        int32_t warps = t->threads / 32;
        double *partial = t->partial + t->turn * warps;
        t->turn ^= 1; /* read by others until the reduction after this one */
        if (lane_index() == 0) partial[t->thread / 32] = value;
        team_barrier(t);
        value = partial[0];
        ROLLED
        for (int32_t w = 1; w < warps; w++) value = combined(value, partial[w]);
    } else {
        warp_barrier();
    }
#undef combined
    return value;
}
DEVICE double team_sum(team *t, double value) { return reduce_team<false>(t, value); }
DEVICE double team_most(team *t, double value) { return reduce_team<true>(t, value); }

/* One component and what its team knows of it. */
typedef struct ipm_part {
    int32_t rank0, ranks;   /* positions [rank0, rank0 + ranks) */
    int32_t first, experts; /* [first, first + experts) of the table of movables */
    team t;
} ipm_part;

/* In tokens over speed, once a part is done. */
typedef struct ipm_result {
    double objective; /* max load / speed of the shares, before rounding */
    double bound;     /* no split has less */
    int32_t iterations;
    int32_t converged;
} ipm_result;

DEVICE int32_t movable_of(const step &a, const ipm_part *p, int32_t i) {
    return cold_table(a, movable, uint16_t)[p->first + i];
}
#define ipm_array(a, name, type) ((type *)(shared_memory() + (a).ipm.name))

/* for each of the part's ranks / experts that are this thread's */
#define each_rank(q, p)                                                                            \
    int32_t q = (p)->rank0 + (p)->t.thread; q < (p)->rank0 + (p)->ranks; q += (p)->t.threads
#define each_expert(i, p) int32_t i = (p)->t.thread; i < (p)->experts; i += (p)->t.threads

#endif
