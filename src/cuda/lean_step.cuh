/* The small kernel for a whole step of few ids: count -> solve -> map, one source. The first
 * solver_warps warps plan; each of the others has LEAN_ROUNDS times 32 consecutive ids, which stay
 * in registers. */
#ifndef LPLB_CUDA_LEAN_STEP_CUH
#define LPLB_CUDA_LEAN_STEP_CUH

#include "cuda/ids.cuh"
#include "cuda/lean.cuh"

enum { LEAN_ROUNDS = LPLB__CUDA_LEAN_ROUNDS };
static_assert(LEAN_ROUNDS == 4, "a round's count of an expert has a byte of a word");

/* This thread's ids. */
typedef struct lean_ids {
    uint32_t expert[LEAN_ROUNDS]; /* or 2^32-1 */
    uint32_t below[LEAN_ROUNDS];  /* of the expert's ids of the round, those before */
    int32_t first, n;             /* position of the first; of all */
} lean_ids;

/* Behind the tokens: lean_way [E]; uint32 [warps][E] counts of an expert's ids, a byte a round;
 * uint32 [warps][E] ids of the warps before. All starting on borders of 16 bytes. */
DEVICE lean_way *lean_ways(const step &a) {
    return (lean_way *)(lean_tokens() + (a.experts + 4) / 4 * 4);
}
DEVICE uint32_t *lean_counts(const step &a) {
    return (uint32_t *)(lean_ways(a) + (a.experts + 1) / 2 * 2);
}
DEVICE uint32_t sum_of_bytes(uint32_t word) { return word * 0x01010101u >> 24; }

DEVICE lean_ids fetch_lean_ids(const step &a, int32_t warp) {
    lean_ids ids;
    ids.first = warp * 32 * LEAN_ROUNDS + lane_index();
    ids.n = (int32_t)a.n;
    uint64_t raw[LEAN_ROUNDS];
#pragma unroll
    for (int r = 0; r < LEAN_ROUNDS; r++) {
        raw[r] = UINT64_MAX;
        int32_t at = ids.first + r * 32;
        if (at < ids.n && a.ids_bytes == 8) raw[r] = ((const uint64_t *)a.ids)[at];
        if (at < ids.n && a.ids_bytes == 4) raw[r] = ((const uint32_t *)a.ids)[at];
    }
    if (a.n_device) ids.n = ids_of_step(a);
    uint64_t none = a.ids_bytes == 8 ? UINT64_MAX : UINT32_MAX;
#pragma unroll
    for (int r = 0; r < LEAN_ROUNDS; r++) {
        if (ids.first + r * 32 >= ids.n) raw[r] = none;
        bool is_expert = raw[r] < (uint64_t)a.experts;
        ids.expert[r] = is_expert ? (uint32_t)raw[r] : UINT32_MAX;
        if (!is_expert && raw[r] != none) report_id(a, ids.first + r * 32);
    }
    return ids;
}

/* Lanes that have the same expert find each other by the bits of its number; the first of them
 * notes how many they are. */
DEVICE void number_lean_ids(const step &a, int32_t warp, lean_ids *ids) {
    uint32_t same[LEAN_ROUNDS];
#pragma unroll
    for (int r = 0; r < LEAN_ROUNDS; r++) same[r] = votes(ids->expert[r] != UINT32_MAX);
    ROLLED
    for (int32_t bits = 0; a.experts - 1 >> bits; bits++) {
#pragma unroll
        for (int r = 0; r < LEAN_ROUNDS; r++) {
            bool bit = ids->expert[r] >> bits & 1;
            uint32_t set = votes(bit);
            same[r] &= bit ? set : ~set;
        }
    }
    uint8_t *count = (uint8_t *)(lean_counts(a) + warp * a.experts);
#pragma unroll
    for (int r = 0; r < LEAN_ROUNDS; r++) {
        ids->below[r] = (uint32_t)bits_set(same[r] & lanes_below());
        if (ids->expert[r] != UINT32_MAX && ids->below[r] == 0)
            count[ids->expert[r] * LEAN_ROUNDS + r] = (uint8_t)bits_set(same[r]);
    }
}

/* Tokens and ids of the warps before, of one expert; where all its ids go if its tokens cannot
 * move. */
DEVICE void total_expert(const step &a, int32_t warps, int32_t e, uint64_t expert) {
    const uint32_t *count = lean_counts(a) + e;
    uint32_t *before = lean_counts(a) + warps * a.experts + e, sum = 0;
#pragma unroll 4
    for (int32_t w = 0; w < warps; w++) {
        before[w * a.experts] = sum;
        sum += sum_of_bytes(count[w * a.experts]);
    }
    lean_ways(a)[e] = {(int32_t)(sum + 1) / 2, (uint32_t)(expert >> 32)};
    if (a.counts) a.counts[e] = sum;
    lean_tokens()[e] = (int32_t)sum;
    settle_expert(a, expert, (int32_t)sum, true);
}

/* Where among its expert's ids each of this thread's is. */
DEVICE void place_lean_ids(const step &a, int32_t warp, int32_t warps, lean_ids *ids) {
    const uint32_t *count = lean_counts(a) + warp * a.experts;
#pragma unroll
    for (int r = 0; r < LEAN_ROUNDS; r++) {
        if (ids->expert[r] == UINT32_MAX) continue;
        const uint32_t *own = count + ids->expert[r];
        uint32_t earlier = sum_of_bytes(*own & ((1u << 8 * r) - 1));
        ids->below[r] += earlier + own[warps * a.experts];
    }
}

DEVICE void map_lean_ids(const step &a, const lean_ids &ids) {
#pragma unroll
    for (int r = 0; r < LEAN_ROUNDS; r++) {
        int32_t at = ids.first + r * 32, slot = -1;
        if (at >= ids.n) break;
        if (ids.expert[r] != UINT32_MAX) {
            lean_way way = lean_ways(a)[ids.expert[r]];
            slot = (int32_t)((int32_t)ids.below[r] < way.end ? way.slots & 65535 : way.slots >> 16);
        }
        if (a.out_bytes == 8) ((int64_t *)a.out)[at] = slot;
        else ((int32_t *)a.out)[at] = slot;
    }
}

/* False: it is not for this kernel after all, and nothing has come of it. */
DEVICE bool step_lean(const step &a) {
    int32_t warp = warp_index() - a.solver_warps, warps = block_threads() / 32 - a.solver_warps;
    lean_ids ids;
    lean_lane lane = fetch_lane(a, a.solver_warps);
    uint64_t expert = 0;
    if (thread_index() < a.experts) expert = fetch_expert(a, thread_index());
    if (warp >= 0) ids = fetch_lean_ids(a, warp);
    clear_lean(a);
    int32_t quads = (warps * a.experts + 3) / 4;
    ROLLED
    for (int32_t i = thread_index(); i < quads; i += block_threads())
        ((quad *)lean_counts(a))[i] = {{0, 0, 0, 0}};
    block_barrier();
    stamp(a, 1);
    if (warp >= 0) number_lean_ids(a, warp, &ids);
    if (block_any(is_unfit(lane, LPLB__CUDA_LEAN_STEP, a.solver_warps))) return false;
    stamp(a, 2);
    ROLLED
    for (int32_t e = thread_index(); e < a.experts;) {
        total_expert(a, warps, e, expert);
        e += block_threads();
        if (e < a.experts) expert = fetch_expert(a, e);
    }
    block_barrier();
    stamp(a, 5);
    if (warp >= 0) {
        place_lean_ids(a, warp, warps, &ids);
    } else if (ranks_of(lane)) {
        pairs p = plan_group(a, lane, lean_tokens(), true);
#pragma unroll
        for (int c = 0; c < COLOURS; c++)
            if (p.lower >> c & 1) lean_ways(a)[expert_of(lane, c)].end = p.x[c];
    }
    stamp(a, 6);
    block_barrier();
    if (warp >= 0) map_lean_ids(a, ids);
    if (thread_index() == 0) write_lean_report(a);
    stamp(a, 9);
    return true;
}

#endif
