/* The kernel of every step: any of count -> share -> solve -> map, in one launch of one block or
 * several. Every block plans for itself, from the same integers to the same plan, so the counts are
 * all that blocks wait for. */
#include "cuda/ids.cuh"
#include "cuda/ipm.cuh"
#include "cuda/lean_blocks.cuh"
#include "cuda/lean_solve.cuh"
#include "cuda/lean_step.cuh"
#include "cuda/peers.cuh"
#include "cuda/segments.cuh"
#include "cuda/share.cuh"
#include "cuda/solve.cuh"

/* The warps that plan: what they need of the tables. */
DEVICE void send_tables(const step &a, int32_t from, int32_t threads) {
    int32_t components = smaller(a.solver_warps, a.ranks / 2); /* at most that many have edges */
    int32_t edge_words = components * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES;
    send_quads(a.shared.tables, (const quad *)a.block, (int32_t)a.tables.hot_bytes / 16, from,
               threads);
    send_quads(a.shared.edges, cold_table(a, edge, quad), edge_words / 4, from, threads);
    clear_quads(a.shared.load, a.ranks * (int32_t)sizeof(int64_t), from, threads);
}

/* The warps that plan: tables, gathered counts, everything else that starts from zero. All that is
 * read is under way before anything is waited for. */
DEVICE void begin_plan(const step &a) {
    memory_now now = read_memory(a);
    int32_t t = thread_index(), threads = a.solver_warps * 32;
    send_tables(a, t, threads);
    clear_quads(a.shared.own, a.experts * (int32_t)sizeof(uint32_t), t, threads);
    if (a.source_counts && (a.stages & LPLB__CUDA_STAGE_COUNT)) gather_sources(a, t, threads);
    begin_state(a, now, threads);
    await_quads();
}

/* Tokens of the hosts, by other means than a plan. */
DEVICE_CALL void find_given_split(const step &a) {
    if (a.stages & LPLB__CUDA_STAGE_SHARES) {
        take_shares(a);
        return;
    }
    if (block_any(take_totals(a))) settle_totals(a);
    if (!a.split_in) return;
    if (thread_index() == 0) state_of(a)->narrow = 0;
    if (!state_of(a)->failed) take_split(a);
    if (state_of(a)->failed) {
        forget_counts(a);
        block_barrier();
        split_evenly<int64_t>(a, false, thread_index(), block_threads());
    }
}

DEVICE void find_split(const step &a, const id_range &range) {
    if (!(a.stages & LPLB__CUDA_STAGE_SOLVE)) {
        find_given_split(a);
        return;
    }
    bool plans = prepare_plan(a);
    stamp(a, 5);
    if (plans && range.warp < 0) make_plan(a);
    stamp(a, 6);
}

/* ---- results of the first block ---- */

/* The most tokens of a rank, and the bound with the ranks that share no expert. One warp. */
template <typename K> DEVICE limit widest_bound(const step &a, int64_t *most) {
    const block_state *state = state_of(a);
    limit bound = {state->bound_numerator, state->bound_denominator};
    ROLLED
    for (int32_t q = lane_index(); q < a.ranks; q += 32) {
        int64_t load =
            state->narrow ? shared_array(a, load, int32_t)[q] : shared_array(a, load, int64_t)[q];
        limit own = {load, K::speeds ? cold_table(a, speed, int64_t)[q] : 1};
        *most = larger(*most, load);
        if (table(a, component_of, uint16_t)[q] == LPLB__CUDA_NO_HOST && limit_less<K>(bound, own))
            bound = own;
    }
    *most = warp_max(*most);
    return warp_max_limit<K>(bound);
}

/* By one thread. */
DEVICE void add_to_counter(const step &a, int32_t outcome) {
    if (!a.counter || outcome < 0 || outcome == LPLB_OUTCOME_NOT_CONVERGED) return;
    if (a.counter_bytes == 8) atomic_add((int64_t *)a.counter, (int64_t)a.counter_add);
    else atomic_add((int32_t *)a.counter, a.counter_add);
}

/* The same in 32 bits. */
DEVICE int32_t widest_narrow_bound(const step &a, int64_t *most) {
    int32_t bound = 0, all = 0;
    ROLLED
    for (int32_t q = lane_index(); q < a.ranks; q += 32) {
        int32_t load = shared_array(a, load, int32_t)[q];
        all = larger(all, load);
        if (table(a, component_of, uint16_t)[q] == LPLB__CUDA_NO_HOST) bound = larger(bound, load);
    }
    *most = warp_max(all);
    return larger(warp_max(bound), (int32_t)state_of(a)->bound_numerator);
}

DEVICE_CALL limit widest_bound_of(const step &a, int64_t *most) {
    return header_of(a)->speeds ? widest_bound<speed_loads>(a, most)
                                : widest_bound<wide_loads>(a, most);
}

/* By one warp. */
DEVICE void write_report(const step &a) {
    const block_state *state = state_of(a);
    int64_t most = 0;
    limit bound = {0, 1};
    if (state->narrow) bound.numerator = widest_narrow_bound(a, &most);
    else bound = widest_bound_of(a, &most);
    if (lane_index() != 0) return;
    lplb_cuda_report *report = &a.memory->report;
    bool exact = state->outcome == LPLB_OUTCOME_OPTIMAL;
    atomic_add(&report->steps, (uint64_t)1);
    add_to_counter(a, state->outcome);
    report->outcome = state->outcome;
    report->reused = state->reused;
    report->sweeps = state->sweeps;
    report->augmentations = state->augmentations;
    report->restarts = state->restarts;
    report->max_load = most;
    report->bound_numerator = exact ? bound.numerator : 0;
    report->bound_denominator = exact ? bound.denominator : 1;
    if (exact && !header_of(a)->speeds) report->bound_denominator = header_of(a)->first_speed;
}

/* Whether the plan is one for the cache. */
DEVICE bool keeps_plan(const step &a) {
    const block_state *state = state_of(a);
    return a.reuse && !state->reused && !state->failed && state->movable;
}

DEVICE void keep_plan(const step &a, int32_t from, int32_t threads) {
    const block_state *state = state_of(a);
    int32_t other = state->cached ? 1 - state->current : 0;
    int64_t *cached = a.cached + other * cached_words(a);
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    ROLLED
    for (int32_t e = from; e < a.experts; e += threads) cached[e] = tokens[e];
    ROLLED
    for (int32_t h = from; h < header_of(a)->hosts; h += threads)
        cached[a.experts + h] =
            expert[host[h].expert].hosts == 1 ? tokens[host[h].expert] : host_tokens(a, state, h);
    ROLLED
    for (int32_t r = from; r < a.ranks; r += threads)
        cached[a.experts + a.slots + r] = fixed_tokens(a, r);
}

/* What the sources shared; nothing of the others if they did not. */
DEVICE void write_gathered(const step &a, int32_t from, int32_t threads) {
    bool failed = state_of(a)->failed;
    ROLLED
    for (int32_t s = 0; s < a.sources; s++) {
        ROLLED
        for (int32_t e = from; e < a.experts; e += threads) {
            int64_t tokens = shared_array(a, mine, int32_t)[e];
            if (s != a.source) tokens = failed ? 0 : tokens_of_source(a, s, e);
            a.gathered[(int64_t)s * a.experts + e] = tokens;
        }
    }
}

/* By threads from.. in steps of `threads`. */
DEVICE_CALL void write_results(const step &a, int32_t from, int32_t threads) {
    const block_state *state = state_of(a);
    if (a.gathered) write_gathered(a, from, threads);
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    ROLLED
    for (int32_t e = from; a.counts && e < a.experts; e += threads) a.counts[e] = tokens[e];
    if (!(a.stages & LPLB__CUDA_STAGE_SOLVE)) return;
    ROLLED
    for (int32_t h = from; h < header_of(a)->hosts; h += threads) {
        int64_t all = tokens[host[h].expert];
        int64_t own = expert[host[h].expert].hosts == 1 ? all : host_tokens(a, state, h);
        if (a.split) a.split[h] = own;
        if (a.share) a.share[h] = all ? (float)((double)own / (double)all) : 0;
    }
    const uint16_t *rank_id = table(a, rank_id, uint16_t);
    ROLLED
    for (int32_t q = from; a.loads && q < a.ranks; q += threads)
        a.loads[rank_id[q]] =
            state->narrow ? shared_array(a, load, int32_t)[q] : shared_array(a, load, int64_t)[q];
    if (keeps_plan(a)) keep_plan(a, from, threads);
}

/* What changes between steps, once all is done. */
DEVICE_CALL void advance_memory(const step &a) {
    const block_state *state = state_of(a);
    if (thread_index() != 0) return;
    if (shares_with_peers(a)) end_turn(a);
    if (!(a.stages & LPLB__CUDA_STAGE_SOLVE) || !keeps_plan(a)) return;
    a.memory->current = state->cached ? 1 - state->current : 0;
    a.memory->cached = 1;
}

/* Counts only: the totals are all there is to write. */
DEVICE_CALL void write_counts(const step &a) {
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads())
        a.counts[e] = shared_array(a, mine, int32_t)[e];
}

/* The warps that look after ids, once the split is known. */
DEVICE void map_ids(const step &a, const id_range &range) {
    make_ways(a, range.warp * 32 + lane_index(), range.threads);
    part_barrier(IDS_BARRIER, range.threads);
    stamp(a, 8);
    map_block(a, range);
}

/* Once the step's own counts are known: everything else. */
DEVICE void finish_step(const step &a, const id_range &range) {
    bool maps = a.stages & LPLB__CUDA_STAGE_MAP, solves = a.stages & LPLB__CUDA_STAGE_SOLVE;
    bool first = block_index() == 0;
    if (maps || (first && solves)) {
        find_split(a, range);
        if (maps && a.blocks > 1 && range.warp >= 0) number_blocks(a, range);
        block_barrier();
        stamp(a, 7);
        if (maps && range.warp >= 0) map_ids(a, range);
        int32_t writers = maps ? block_threads() - range.threads : block_threads();
        bool asked = a.counts || a.split || a.share || a.loads || a.gathered || a.reuse;
        if (first && asked && thread_index() < writers) write_results(a, thread_index(), writers);
        if (first && warp_index() == 0 && solves) write_report(a);
    } else if (first && a.peers.row) {
        write_row(a);
    } else if (first && a.counts) {
        write_counts(a);
    }
    stamp(a, 9);
    if (!first || (!a.reuse && !shares_with_peers(a))) return;
    block_barrier();
    advance_memory(a);
}

DEVICE void run_step(const step &a) {
    bool counts = a.stages & LPLB__CUDA_STAGE_COUNT;
    id_range range = range_of_block(a);
    if (range.warp < 0) begin_plan(a);
    else if (counts) begin_ids(a, range);
    if (a.source_counts && !counts) gather_sources(a, thread_index(), block_threads());
    stamp(a, 1);
    block_barrier();
    stamp(a, 2);
    if (counts) share_counts(a, range);
    stamp(a, 4);
    finish_step(a, range);
}

KERNEL void LPLB__CUDA_BOUNDS lplb__cuda_step_kernel(const LPLB__CUDA_CONSTANT step a) {
    stamp(a, 0);
    run_step(a);
}

/* Functions of their own, or their needs would slow down what is small: the whole step, */
DEVICE_CALL void run_apart(const step &a) { run_step(a); }

/* and what is left of it when the counts turn out not to be for the small kernel. */
DEVICE_CALL void resume_step(const step &a, id_range range) {
    if (thread_index() == 0) state_of(a)->taken = shares_with_peers(a);
    send_tables(a, thread_index(), block_threads());
    await_quads();
    block_barrier();
    finish_step(a, range);
}

/* For small problems; the whole step is in them for what turns out to be none. A kernel of its own
 * for each kind: what is not run makes the rest slower too. */
KERNEL void LPLB__CUDA_BOUNDS lplb__cuda_lean_solve_kernel(const LPLB__CUDA_CONSTANT step a) {
    stamp(a, 0);
    if (!solve_lean(a)) run_apart(a);
}

KERNEL void LPLB__CUDA_BOUNDS lplb__cuda_lean_step_kernel(const LPLB__CUDA_CONSTANT step a) {
    stamp(a, 0);
    if (!step_lean(a)) run_apart(a);
}

KERNEL void LPLB__CUDA_BOUNDS lplb__cuda_lean_blocks_kernel(const LPLB__CUDA_CONSTANT step a) {
    stamp(a, 0);
    if (!step_lean_blocks(a)) run_apart(a);
}

/* ---- the interior-point method ---- */

DEVICE void begin_ipm(const step &a) {
    memory_now now = read_memory(a);
    clear_shared(a.shared.load, a.ranks * (int32_t)sizeof(int64_t));
    clear_shared(a.ipm.result, sizeof(ipm_total));
    send_quads(a.shared.tables, (const quad *)a.block, (int32_t)a.tables.hot_bytes / 16,
               thread_index(), block_threads());
    if (a.source_counts) gather_sources(a, thread_index(), block_threads());
    begin_state(a, now, block_threads());
    await_quads();
}

/* One block. */
KERNEL void LPLB__CUDA_IPM_BOUNDS lplb__cuda_ipm_kernel(const LPLB__CUDA_CONSTANT step a) {
    begin_ipm(a);
    block_barrier();
    if (prepare_plan(a)) solve_by_ipm(a);
    block_barrier();
    write_results(a, thread_index(), block_threads());
    if (warp_index() == 0) write_report(a);
    if (thread_index() == 0) report_ipm(a);
    if (!a.reuse && !shares_with_peers(a)) return;
    block_barrier();
    advance_memory(a);
}
