/* What the small kernel's plans and steps share: pairs, few groups, one block, and nothing to read
 * but the counts or ids and one record a rank (tables.h), which are sent for together. The time of
 * such a plan is that of instructions run once and of waits for memory, so all that is rare is left
 * to the general step, which the kernel holds as a function apart: tables that have become of
 * another kind since a graph was captured, tokens that take more than 32 bits, counts that cannot
 * be used. */
#ifndef LPLB_CUDA_LEAN_CUH
#define LPLB_CUDA_LEAN_CUH

#include "cuda/block.cuh"
#include "cuda/pairs.cuh"
#include "cuda/solve.cuh"

/* Of step.cu. */
DEVICE void add_to_counter(const step &a, int32_t outcome);

static_assert(sizeof(lplb__cuda_lean_lane) == LPLB__CUDA_LEAN_QUADS * sizeof(quad), "tables.h");
static_assert(sizeof(lplb__cuda_lean_expert) == sizeof(uint64_t), "tables.h");

/* A group's plan, by its warp, for the report. */
typedef struct lean_result {
    int32_t limit, most;
    effort spent;
    int32_t unused[3];
} lean_result;

typedef struct lean_way {
    int32_t end;    /* tokens below it go to slots & 65535, */
    uint32_t slots; /* those from it on to slots >> 16 */
} lean_way;

/* The block's shared memory, from its beginning: LEAN_GROUPS results; int32 [LEAN_GROUPS][LANES]
 * loads; int32 [E+1] tokens, the last one 0. */
DEVICE lean_result *lean_results() { return (lean_result *)shared_memory(); }
DEVICE int32_t *lean_loads() {
    return (int32_t *)(shared_memory() + LPLB__CUDA_LEAN_GROUPS * sizeof(lean_result));
}
DEVICE int32_t *lean_tokens() {
    return lean_loads() + LPLB__CUDA_LEAN_GROUPS * LPLB__CUDA_LANES;
}

/* A lane's record as it comes, to be taken apart where it is needed and not before it is there:
 * lplb__cuda_lean_lane in words. */
typedef struct lean_lane {
    quad part[LPLB__CUDA_LEAN_QUADS];
} lean_lane;

DEVICE uint32_t word_of(const lean_lane &lane, int i) { return lane.part[i / 4].word[i % 4]; }
DEVICE uint32_t rank_of(const lean_lane &lane) { return word_of(lane, 0) & 65535; }
DEVICE int32_t ranks_of(const lean_lane &lane) { return (int32_t)(word_of(lane, 0) >> 16 & 255); }
DEVICE int32_t colours_of(const lean_lane &lane) { return (int32_t)(word_of(lane, 0) >> 24); }
DEVICE int32_t groups_of(const lean_lane &lane) { return (int32_t)(word_of(lane, 1) >> 16 & 255); }
DEVICE uint32_t kinds_of(const lean_lane &lane) { return word_of(lane, 1) >> 24; }
DEVICE uint32_t expert_of(const lean_lane &lane, int c) { return word_of(lane, 4 + c) & 65535; }
DEVICE uint32_t host_of(const lean_lane &lane, int c) { return word_of(lane, 4 + c) >> 16; }

/* Of this thread; warps without a group get none. */
DEVICE lean_lane fetch_lane(const step &a) {
    lean_lane lane;
#pragma unroll
    for (int k = 0; k < LPLB__CUDA_LEAN_QUADS; k++) lane.part[k] = {{0, 0, 0, 0}};
    if (warp_index() >= a.lean.groups) return lane;
    const quad *from = (const quad *)a.lean.lane +
                       warp_index() * LPLB__CUDA_LEAN_QUADS * LPLB__CUDA_LANES + lane_index();
#pragma unroll
    for (int k = 0; k < LPLB__CUDA_LEAN_QUADS; k++) lane.part[k] = from[k * LPLB__CUDA_LANES];
    return lane;
}

/* lplb__cuda_lean_expert in one word. */
DEVICE uint64_t fetch_expert(const step &a, int32_t e) {
    return ((const uint64_t *)a.lean.expert)[e];
}

/* Whether the tables are no longer what the launch was chosen for. The first warp's vote counts. */
DEVICE bool is_unfit(const lean_lane &lane, uint32_t kind, int32_t warps) {
    return warp_index() == 0 && (!(kinds_of(lane) & kind) || groups_of(lane) > warps);
}

DEVICE void clear_lean_loads(const step &a) {
    int32_t groups = smaller(a.lean.groups, block_threads() / 32);
    int32_t quads = groups * LPLB__CUDA_LANES / 4;
    ROLLED
    for (int32_t i = thread_index(); i < quads; i += block_threads())
        ((quad *)lean_loads())[i] = {{0, 0, 0, 0}};
    if (thread_index() == 0) lean_tokens()[a.experts] = 0;
}

/* Tokens of one expert: kept for the pairs, or on their way to the only host. */
DEVICE void settle_expert(const step &a, int32_t e, uint64_t expert, int32_t tokens) {
    uint32_t cell = (uint32_t)expert & 65535, host = (uint32_t)expert >> 16;
    lean_tokens()[e] = tokens;
    if (cell == LPLB__CUDA_NO_HOST) return;
    atomic_add(&lean_loads()[cell], tokens);
    if (a.split) a.split[host] = tokens;
    if (a.share) a.share[host] = tokens ? 1.0f : 0.0f;
}

DEVICE pairs pairs_of(const lean_lane &lane, int32_t *movable) {
    pairs p;
    int32_t sum = 0;
    p.lower = word_of(lane, 1) & 255;
    p.used = word_of(lane, 1) >> 8 & 255;
    p.partners[0] = word_of(lane, 2);
    p.partners[1] = word_of(lane, 3);
#pragma unroll
    for (int c = 0; c < COLOURS; c++) {
        p.x[c] = 0;
        p.weight[c] = lean_tokens()[expert_of(lane, c)];
        if (p.lower >> c & 1) sum += p.weight[c];
    }
    *movable = sum;
    return p;
}

DEVICE_CALL void write_share(float *share, int32_t own, int32_t all) {
    *share = all ? (float)((double)own / (double)all) : 0;
}

/* The plan of this warp's group: what it says of the group's hosts and ranks is written. */
DEVICE pairs plan_group(const step &a, const lean_lane &lane) {
    int32_t movable, ranks = ranks_of(lane);
    uint32_t all = ranks == 32 ? 0xffffffffu : (1u << ranks) - 1;
    effort spent = {0, 0, 0};
    pairs p = pairs_of(lane, &movable);
    p.load = lean_loads()[thread_index()];
    int32_t limit = larger((warp_sum(p.load + movable) + ranks - 1) / ranks, warp_max(p.load));
    spent.sweeps = sweep_until_level(&p, colours_of(lane), limit);
    if (votes(p.load > limit)) limit = meet_limit_pairs(&p, all, limit, &spent);
    int32_t most = warp_max(p.load);
    if (lane_index() == 0) lean_results()[warp_index()] = {limit, most, spent, {0, 0, 0}};
    if (a.loads && rank_of(lane) != LPLB__CUDA_NO_HOST) a.loads[rank_of(lane)] = p.load;
#pragma unroll
    for (int c = 0; c < COLOURS; c++)
        if (a.split && p.used >> c & 1) a.split[host_of(lane, c)] = p.x[c];
    if (a.share) {
#pragma unroll
        for (int c = 0; c < COLOURS; c++)
            if (p.used >> c & 1) write_share(&a.share[host_of(lane, c)], p.x[c], p.weight[c]);
    }
    return p;
}

/* By the first warp, when all groups have their results. */
DEVICE void write_lean_report(const step &a, int32_t groups) {
    lean_result own = {0, 0, {0, 0, 0}, {0, 0, 0}};
    if (lane_index() < groups) own = lean_results()[lane_index()];
    int32_t limit = warp_max(own.limit), most = warp_max(own.most);
    int32_t sweeps = warp_sum(own.spent.sweeps), restarts = warp_sum(own.spent.restarts);
    int32_t augmentations = warp_sum(own.spent.augmentations);
    if (lane_index() != 0) return;
    lplb_cuda_report *report = &a.memory->report;
    atomic_add(&report->steps, (uint64_t)1);
    if (a.counter) add_to_counter(a, LPLB_OUTCOME_OPTIMAL);
    report->outcome = LPLB_OUTCOME_OPTIMAL;
    report->reused = 0;
    report->sweeps = sweeps;
    report->augmentations = augmentations;
    report->restarts = restarts;
    report->max_load = most;
    report->bound_numerator = limit;
    report->bound_denominator = 1;
}

#endif
