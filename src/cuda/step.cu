/* The kernel of every step: any of count -> share -> solve -> map, in one launch of one block, one
 * cluster of blocks, or several clusters. Every block plans for itself, from the same integers to
 * the same plan, so the counts are all that blocks wait for. */
#include "cuda/ids.cuh"
#include "cuda/segments.cuh"
#include "cuda/share.cuh"
#include "cuda/solve.cuh"

DEVICE void copy_rest(const step &a, uint32_t to, const quad *from, int32_t quads) {
    ROLLED
    for (int32_t i = block_threads() + thread_index(); i < quads; i += block_threads())
        ((quad *)(shared_memory() + to))[i] = from[i];
}

/* Shared memory as the stages expect it. All that is read is sent for before anything is waited
 * for: the first tile of ids (raw), the tables, the gathered counts. */
DEVICE void begin_block(const step &a, const id_range &range, uint64_t *raw) {
    const quad *tables = (const quad *)a.block, *edges = cold_table(a, edge, quad);
    int32_t table_quads = (int32_t)a.tables.hot_bytes / 16, t = thread_index();
    int32_t edge_quads = a.solver_warps * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES / 4;
    quad first_table, first_edge;
    if (t < table_quads) first_table = tables[t];
    if (t < edge_quads) first_edge = edges[t];
    if (a.stages & LPLB__CUDA_STAGE_COUNT) fetch_tile(a, range, range.begin, raw);
    clear_shared(a.shared.state, sizeof(block_state));
    clear_shared(a.shared.own, a.experts * (int32_t)sizeof(uint32_t));
    clear_shared(a.shared.load, a.ranks * (int32_t)sizeof(int64_t));
    if (a.stages & LPLB__CUDA_STAGE_MAP) {
        clear_shared(a.shared.number, range.threads / 32 * (a.experts + 2) * 2);
        clear_shared(a.shared.seen, range.threads / 32 * (a.experts + 1) * 4);
    }
    if (t < table_quads) shared_array(a, tables, quad)[t] = first_table;
    if (t < edge_quads) shared_array(a, edges, quad)[t] = first_edge;
    copy_rest(a, a.shared.tables, tables, table_quads);
    copy_rest(a, a.shared.edges, edges, edge_quads);
    if (a.source_counts) gather_sources(a);
    block_barrier();
    if (t != 0) return;
    block_state *state = state_of(a); /* first used after the next barrier */
    state->narrow = 1;
    state->bound_denominator = 1;
    if (a.reuse) state->cached = a.memory->cached;
    if (a.reuse) state->current = a.memory->current;
}

/* Tokens of the hosts, by whatever the stages say; meanwhile the other warps number the ids. */
DEVICE void find_split(const step &a, const id_range &range) {
    bool plans = false;
    if (a.stages & LPLB__CUDA_STAGE_SHARES) take_shares(a);
    else if (a.stages & LPLB__CUDA_STAGE_SOLVE) plans = prepare_plan(a);
    else if (block_any(take_totals(a))) settle_totals(a);
    if (a.split_in) {
        if (thread_index() == 0) state_of(a)->narrow = 0;
        if (!state_of(a)->failed) take_split(a);
        if (state_of(a)->failed) {
            forget_counts(a);
            block_barrier();
            split_evenly<int64_t>(a, false);
        }
    }
    stamp(a, 4);
    if (range.warp < 0) {
        if (plans) make_plan(a);
    } else if (a.stages & LPLB__CUDA_STAGE_MAP) {
        number_tile(a, range);
    }
    stamp(a, 5);
}

/* ---- results of the first block ---- */

/* The most tokens of a rank, and the bound with the ranks that share no expert. One warp. */
template <typename K> DEVICE limit widest_bound(const step &a, int64_t *most) {
    const block_state *state = state_of(a);
    limit bound = {state->bound_numerator, state->bound_denominator};
    ROLLED
    for (int32_t q = lane_index(); q < a.ranks; q += 32) {
        int64_t load = state->narrow ? shared_array(a, load, int32_t)[q]
                                     : shared_array(a, load, int64_t)[q];
        limit own = {load, K::speeds ? cold_table(a, speed, int64_t)[q] : 1};
        *most = larger(*most, load);
        if (table(a, component_of, uint16_t)[q] == LPLB__CUDA_NO_HOST &&
            limit_less<K>(bound, own))
            bound = own;
    }
    *most = warp_max(*most);
    return warp_max_limit<K>(bound);
}

/* By one warp. */
DEVICE_CALL void write_report(const step &a) {
    const block_state *state = state_of(a);
    int64_t most = 0;
    limit bound = header_of(a)->speeds ? widest_bound<speed_loads>(a, &most)
                                       : widest_bound<wide_loads>(a, &most);
    if (lane_index() != 0) return;
    lplb_cuda_report *report = &a.memory->report;
    bool exact = state->outcome == LPLB_OUTCOME_OPTIMAL;
    atomic_add(&report->steps, (uint64_t)1);
    report->outcome = state->outcome;
    report->reused = state->reused;
    report->sweeps = state->sweeps;
    report->augmentations = state->augmentations;
    report->restarts = state->restarts;
    report->max_load = most;
    report->bound_numerator = exact ? bound.numerator : 0;
    report->bound_denominator = exact ? bound.denominator : 1;
    if (exact && !header_of(a)->speeds) report->bound_denominator = cold_table(a, speed, int64_t)[0];
}

DEVICE void keep_plan(const step &a, int32_t from, int32_t threads) {
    const block_state *state = state_of(a);
    int32_t other = state->cached ? 1 - state->current : 0;
    int64_t *cached = a.cached + other * (int64_t)(a.experts + a.slots);
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    ROLLED
    for (int32_t e = from; e < a.experts; e += threads) cached[e] = tokens[e];
    ROLLED
    for (int32_t h = from; h < header_of(a)->hosts; h += threads)
        cached[a.experts + h] = expert[host[h].expert].hosts == 1 ? tokens[host[h].expert]
                                                                  : host_tokens(a, state, h);
}

/* By threads from.. in steps of `threads`. */
DEVICE_CALL void write_results(const step &a, int32_t from, int32_t threads) {
    const block_state *state = state_of(a);
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
        a.loads[rank_id[q]] = state->narrow ? shared_array(a, load, int32_t)[q]
                                            : shared_array(a, load, int64_t)[q];
    if (a.reuse && !state->reused && !state->failed) keep_plan(a, from, threads);
}

/* What changes between steps, once no block can still ask for the old. */
DEVICE void advance_memory(const step &a, uint32_t epoch) {
    const block_state *state = state_of(a);
    if (thread_index() != 0) return;
    if (a.clusters > 1) a.memory->epoch = epoch;
    if (!(a.stages & LPLB__CUDA_STAGE_SOLVE) || !a.reuse || state->reused || state->failed) return;
    a.memory->current = state->cached ? 1 - state->current : 0;
    a.memory->cached = 1;
}

/* Counts only: the totals are all there is to write. */
DEVICE void write_counts(const step &a) {
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads())
        a.counts[e] = shared_array(a, mine, int32_t)[e];
}

KERNEL void LPLB__CUDA_BOUNDS lplb__cuda_step_kernel(const LPLB__CUDA_CONSTANT step a) {
    uint32_t epoch = 0;
    uint64_t raw[KEPT];
    stamp(a, 0);
    cluster_arrive();
    id_range range = range_of_block(a, cluster_blocks() * a.clusters);
    if (a.clusters > 1) epoch = (uint32_t)load_word(&a.memory->epoch) + 1;
    begin_block(a, range, raw);
    stamp(a, 1);
    if (a.stages & LPLB__CUDA_STAGE_COUNT) {
        count_block(a, range, raw);
        block_barrier();
        stamp(a, 2);
        share_counts(a, epoch);
    } else {
        cluster_wait();
        block_barrier();
    }
    stamp(a, 3);
    bool first = block_index() == 0, maps = a.stages & LPLB__CUDA_STAGE_MAP;
    if (maps || (first && (a.stages & LPLB__CUDA_STAGE_SOLVE))) {
        find_split(a, range);
        block_barrier();
        stamp(a, 6);
        if (maps) {
            make_ways(a);
            block_barrier();
            stamp(a, 7);
            map_block(a, range);
        }
        if (first && !maps) write_results(a, thread_index(), block_threads());
        if (first && maps && range.warp < 0)
            write_results(a, thread_index(), block_threads() - range.threads);
        if (first && warp_index() == 0 && (a.stages & LPLB__CUDA_STAGE_SOLVE)) write_report(a);
    } else if (first && a.counts) {
        write_counts(a);
    }
    stamp(a, 8);
    if (!first || (!a.reuse && a.clusters == 1)) return;
    block_barrier();
    advance_memory(a, epoch);
}
