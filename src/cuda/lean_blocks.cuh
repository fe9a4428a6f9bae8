/* The small kernel for a whole step of many blocks: count -> share -> solve -> map. Ids are
 * numbered and mapped, and counts are shared, as in the general step (ids.cuh, share.cuh); the plan
 * and all around it is that of the small kernel, in every block. */
#ifndef LPLB_CUDA_LEAN_BLOCKS_CUH
#define LPLB_CUDA_LEAN_BLOCKS_CUH

#include "cuda/lean.cuh"
#include "cuda/share.cuh"

/* Of step.cu. */
DEVICE_CALL void resume_step(const step &a, id_range range);
DEVICE_CALL void advance_memory(const step &a);

/* In the place of the tables, of which the small kernel needs nothing else: lplb__cuda_lean_expert
 * in words [E]. In that of the hosts' tokens: int32 [E+1] of the experts, the last one 0. */
DEVICE const uint64_t *block_experts(const step &a) { return shared_array(a, tables, uint64_t); }
DEVICE int32_t *block_tokens(const step &a) { return shared_array(a, x, int32_t); }

/* The warps that plan: as begin_plan of step.cu. */
DEVICE void begin_lean_plan(const step &a) {
    memory_now now = read_memory(a);
    int32_t t = thread_index(), threads = a.solver_warps * 32;
    send_quads(a.shared.tables, (const quad *)a.lean.expert, (a.experts + 1) / 2, t, threads);
    clear_quads(a.shared.own, a.experts * (int32_t)sizeof(uint32_t), t, threads);
    clear_quads(0, LPLB__CUDA_LEAN_BYTES, t, threads);
    if (t == 0) block_tokens(a)[a.experts] = 0;
    begin_state(a, now, threads);
    await_quads();
}

/* Tokens of all sources, the loads that they make, and the ways, which only miss what is split and
 * where the block's own ids begin. True if 32 bits may not be enough, or the counts of others are
 * not to be had. */
DEVICE bool take_lean_counts(const step &a, bool first) {
    int32_t shift = narrow_shift(a);
    bool peers = shares_with_peers(a), failed = peers && !take_peers(a);
    uint64_t large = 0;
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads()) {
        uint64_t expert = block_experts(a)[e];
        int64_t tokens = shared_array(a, mine, int32_t)[e];
        if (peers) tokens = shared_array(a, tokens, int64_t)[e];
        large |= (uint64_t)tokens >> shift;
        block_tokens(a)[e] = (int32_t)tokens;
        shared_array(a, way, expert_way)[e] = {(int32_t)(tokens + 1) / 2, (uint32_t)(expert >> 32)};
        settle_expert(a, expert, (int32_t)tokens, first);
        if (first && a.counts) a.counts[e] = tokens;
    }
    return failed | (large != 0);
}

/* The warps that look after ids, once the split is known. */
DEVICE void map_lean_block(const step &a, const id_range &range) {
    expert_way *way = shared_array(a, way, expert_way);
    bool peers = shares_with_peers(a);
    ROLLED
    for (int32_t e = range.warp * 32 + lane_index(); e < a.experts; e += range.threads) {
        int32_t before = (int32_t)shared_array(a, base, uint32_t)[e];
        if (peers) before += (int32_t)shared_array(a, before, int64_t)[e];
        way[e].end -= before;
    }
    part_barrier(IDS_BARRIER, range.threads);
    stamp(a, 8);
    map_block(a, range);
}

/* False: it is not for this kernel after all, and nothing has come of it. */
DEVICE bool step_lean_blocks(const step &a) {
    bool first = block_index() == 0;
    id_range range = range_of_block(a);
    lean_lane lane = fetch_lane(a, a.solver_warps);
    if (range.warp < 0) begin_lean_plan(a);
    else begin_ids(a, range);
    stamp(a, 1);
    if (block_any(is_unfit(lane, LPLB__CUDA_LEAN_STEP, a.solver_warps))) return false;
    stamp(a, 2);
    share_counts(a, range);
    stamp(a, 4);
    if (block_any(take_lean_counts(a, first))) {
        resume_step(a, range);
        return true;
    }
    stamp(a, 5);
    expert_way *way = shared_array(a, way, expert_way);
    if (thread_index() == 0) way[a.experts] = {INT32_MAX, UINT32_MAX};
    if (range.warp >= 0) {
        number_blocks(a, range);
    } else if (ranks_of(lane)) {
        pairs p = plan_group(a, lane, block_tokens(a), first);
#pragma unroll
        for (int c = 0; c < COLOURS; c++)
            if (p.lower >> c & 1) way[expert_of(lane, c)].end = p.x[c];
    }
    stamp(a, 6);
    block_barrier();
    stamp(a, 7);
    if (range.warp >= 0) map_lean_block(a, range);
    if (first && thread_index() == 0) write_lean_report(a);
    stamp(a, 9);
    if (!first || !shares_with_peers(a)) return true;
    block_barrier();
    advance_memory(a);
    return true;
}

#endif
