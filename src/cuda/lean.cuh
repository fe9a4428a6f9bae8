/* What the small kernel's plans and steps share: pairs, few groups, and nothing to read but the
 * counts or ids and one record a rank (tables.h), which are sent for together. The time of
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

/* What the report says of all groups. */
typedef struct lean_sum {
    int32_t limit, most;
    effort spent;
    int32_t unused[3];
} lean_sum;

typedef struct lean_way {
    int32_t end;    /* tokens below it go to slots & 65535, */
    uint32_t slots; /* those from it on to slots >> 16 */
} lean_way;

/* The block's shared memory, from its beginning: the sum; int32 [LEAN_GROUPS][LANES] loads; where
 * there is one block, int32 [E+1] tokens, the last one 0. */
static_assert(sizeof(lean_sum) + LPLB__CUDA_LEAN_GROUPS * LPLB__CUDA_LANES * sizeof(int32_t) <=
                  LPLB__CUDA_LEAN_BYTES, "make room for it in step.h");
DEVICE lean_sum *lean_results() { return (lean_sum *)shared_memory(); }
DEVICE int32_t *lean_loads() { return (int32_t *)(shared_memory() + sizeof(lean_sum)); }
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

/* Of this thread, one of the `warps` that plan; warps without a group get none. */
DEVICE lean_lane fetch_lane(const step &a, int32_t warps) {
    lean_lane lane;
#pragma unroll
    for (int k = 0; k < LPLB__CUDA_LEAN_QUADS; k++) lane.part[k] = {{0, 0, 0, 0}};
    if (warp_index() >= smaller(a.lean.groups, warps)) return lane;
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
    return warp_index() == 0 & (!(kinds_of(lane) & kind) | groups_of(lane) > warps);
}

/* What starts from zero, as far as there are warps to plan. */
DEVICE void clear_lean(const step &a) {
    int32_t t = thread_index();
    if (t < LPLB__CUDA_LEAN_GROUPS * LPLB__CUDA_LANES) lean_loads()[t] = 0;
    if (t < (int32_t)(sizeof(lean_sum) / sizeof(int32_t))) ((int32_t *)lean_results())[t] = 0;
    if (t == 0) lean_tokens()[a.experts] = 0;
}

/* Tokens of one expert with one host are on their way to it; writes: as far as the caller wants to
 * know, this block says so. */
DEVICE void settle_expert(const step &a, uint64_t expert, int32_t tokens, bool writes) {
    uint32_t cell = (uint32_t)expert & 65535, host = (uint32_t)expert >> 16;
    bool single = cell != LPLB__CUDA_NO_HOST;
    if (single) atomic_add(&lean_loads()[cell], tokens);
    if (!writes) return;
    if (single & (a.split != 0)) a.split[host] = tokens;
    if (a.share && single) a.share[host] = tokens ? 1.0f : 0.0f;
}

enum { FEW_COLOURS = 4 }; /* the others are looked at if there are any */

DEVICE pairs pairs_of(const lean_lane &lane, const int32_t *tokens, int32_t *movable) {
    pairs p;
    int32_t sum = 0;
    p.lower = word_of(lane, 1) & 255;
    p.used = word_of(lane, 1) >> 8 & 255;
    p.partners[0] = word_of(lane, 2);
    p.partners[1] = word_of(lane, 3);
#pragma unroll
    for (int c = 0; c < COLOURS; c++) p.x[c] = p.weight[c] = 0;
#pragma unroll
    for (int c = 0; c < FEW_COLOURS; c++) p.weight[c] = tokens[expert_of(lane, c)];
    if (colours_of(lane) > FEW_COLOURS) {
#pragma unroll
        for (int c = FEW_COLOURS; c < COLOURS; c++) p.weight[c] = tokens[expert_of(lane, c)];
    }
#pragma unroll
    for (int c = 0; c < COLOURS; c++) sum += p.lower >> c & 1 ? p.weight[c] : 0;
    *movable = sum;
    return p;
}

DEVICE_CALL void write_share(float *share, int32_t own, int32_t all) {
    *share = all ? (float)((double)own / (double)all) : 0;
}

template <int FROM, int TO>
DEVICE void write_hosts(const step &a, const lean_lane &lane, const pairs *p) {
    if (a.split) {
#pragma unroll
        for (int c = FROM; c < TO; c++)
            if (p->used >> c & 1) a.split[host_of(lane, c)] = p->x[c];
    }
    if (a.share) {
#pragma unroll
        for (int c = FROM; c < TO; c++)
            if (p->used >> c & 1) write_share(&a.share[host_of(lane, c)], p->x[c], p->weight[c]);
    }
}

/* The plan of this warp's group; writes: with what it says of the group's hosts and ranks. tokens:
 * [E+1], the last one 0. */
DEVICE pairs plan_group(const step &a, const lean_lane &lane, const int32_t *tokens, bool writes) {
    int32_t movable, ranks = ranks_of(lane);
    uint32_t all = ranks == 32 ? 0xffffffffu : (1u << ranks) - 1;
    effort spent = {0, 0, 0};
    pairs p = pairs_of(lane, tokens, &movable);
    p.load = lean_loads()[thread_index()];
    int32_t limit = larger(mean_of(warp_sum(p.load + movable), ranks), warp_max(p.load));
    spent.sweeps = sweep_until_level(&p, colours_of(lane), limit);
    if (votes(p.load > limit)) limit = meet_limit_pairs(&p, all, limit, &spent);
    if (!writes) return p;
    int32_t most = warp_max(p.load);
    if (lane_index() == 0) {
        lean_sum *sum = lean_results();
        atomic_max(&sum->limit, limit);
        atomic_max(&sum->most, most);
        atomic_add(&sum->spent.sweeps, spent.sweeps);
        if (spent.augmentations) atomic_add(&sum->spent.augmentations, spent.augmentations);
        if (spent.restarts) atomic_add(&sum->spent.restarts, spent.restarts);
    }
    if (a.loads && rank_of(lane) != LPLB__CUDA_NO_HOST) a.loads[rank_of(lane)] = p.load;
    write_hosts<0, FEW_COLOURS>(a, lane, &p);
    if (colours_of(lane) > FEW_COLOURS) write_hosts<FEW_COLOURS, COLOURS>(a, lane, &p);
    return p;
}

/* By one thread, when all groups have their results. */
DEVICE void write_lean_report(const step &a) {
    const lean_sum sum = *lean_results();
    lplb_cuda_report *report = &a.memory->report;
    atomic_add(&report->steps, (uint64_t)1);
    report->outcome = LPLB_OUTCOME_OPTIMAL;
    report->reused = 0;
    report->sweeps = sum.spent.sweeps;
    report->augmentations = sum.spent.augmentations;
    report->restarts = sum.spent.restarts;
    report->max_load = sum.most;
    report->bound_numerator = sum.limit;
    report->bound_denominator = 1;
    if (a.counter) add_to_counter(a, LPLB_OUTCOME_OPTIMAL);
}

#endif
