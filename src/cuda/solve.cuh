/* From the counts to the tokens of every host: totals and their checks, the even split, the plan
 * cache, and the choice of the exact planner's form. */
#ifndef LPLB_CUDA_SOLVE_CUH
#define LPLB_CUDA_SOLVE_CUH

#include "cuda/block.cuh"
#include "cuda/pairs.cuh"
#include "cuda/peers.cuh"
#include "cuda/rows_augment.cuh"
#include "cuda/sets.cuh"

/* As in src/plan/planner.c. */
enum { TOLERANCE_BITS = 16 };
/* Below this total, 32 bits are enough for what the planners compute: up to five times a load. */
enum { NARROW_BITS = 28 };

/* ---- totals ---- */

enum { SOURCES_AT_ONCE = 8 };

/* tokens and before, from counts that the caller has gathered. */
DEVICE_CALL void gather_sources(const step &a, int32_t from, int32_t threads) {
    int64_t *tokens = shared_array(a, tokens, int64_t), *before = shared_array(a, before, int64_t);
    ROLLED
    for (int32_t e = from; e < a.experts; e += threads) {
        int64_t total = 0, earlier = 0, wrong = 0, count[SOURCES_AT_ONCE];
        ROLLED
        for (int32_t first = 0; first < a.sources; first += SOURCES_AT_ONCE) {
#pragma unroll
            for (int32_t s = first, k = 0; k < SOURCES_AT_ONCE; k++, s++)
                count[k] = s < a.sources ? a.source_counts[(int64_t)s * a.experts + e] : 0;
#pragma unroll
            for (int k = 0; k < SOURCES_AT_ONCE; k++) {
                if (count[k] < 0) wrong = INT64_MIN;
                else if (count[k] > INT64_MAX - total) wrong = wrong ? wrong : INT64_MAX;
                else total += count[k];
                if (first + k == a.source - 1) earlier = total;
            }
        }
        tokens[e] = wrong ? wrong : total; /* settle_totals finds both */
        before[e] = earlier;
    }
}

/* Our row of the gathered counts must be what was counted. */
DEVICE bool agrees(const step &a, int32_t e) {
    if (!a.source_counts || !(a.stages & LPLB__CUDA_STAGE_COUNT)) return true;
    return a.source_counts[(int64_t)a.source * a.experts + e] == shared_array(a, mine, int32_t)[e];
}

/* Counts above it may be too many for 32 bits. */
DEVICE int32_t narrow_shift(const step &a) {
    return NARROW_BITS - 32 + leading_zeros((uint32_t)(a.experts + a.ranks));
}

/* tokens, before, and load in 32 bits of what cannot move. True if that may not be enough. Here the
 * blocks' own counts are all there is. */
DEVICE bool take_own_totals(const step &a) {
    int64_t *tokens = shared_array(a, tokens, int64_t), *before = shared_array(a, before, int64_t);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    int32_t shift = narrow_shift(a);
    uint32_t large = header_of(a)->speeds != 0; /* they need products of 128 bits */
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads()) {
        int32_t count = shared_array(a, mine, int32_t)[e];
        tokens[e] = count;
        before[e] = 0;
        large |= (uint32_t)count >> shift;
        if (expert[e].hosts == 1)
            atomic_add(&shared_array(a, load, int32_t)[expert[e].rank], count);
    }
    return large != 0;
}

/* The same with the counts of others, and of what is fixed. */
DEVICE_CALL bool take_totals(const step &a) {
    int64_t *tokens = shared_array(a, tokens, int64_t), *before = shared_array(a, before, int64_t);
    int32_t *load = shared_array(a, load, int32_t);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    int32_t shift = narrow_shift(a);
    uint64_t large = header_of(a)->speeds;
    bool own = !a.source_counts && !shares_with_peers(a);
    if (shares_with_peers(a) && (state_of(a)->taken ? state_of(a)->failed : !take_peers(a)))
        large = 1;
    ROLLED
    for (int32_t e = first_expert(a); e < a.experts; e += block_threads()) {
        if (!agrees(a, e)) {
            report_error(a, LPLB_INVALID, e);
            state_of(a)->failed = 1;
            large = 1;
        }
        if (own) {
            tokens[e] = shared_array(a, mine, int32_t)[e];
            before[e] = 0;
        }
        large |= (uint64_t)tokens[e] >> shift;
        if (expert[e].hosts == 1) atomic_add(&load[expert[e].rank], (int32_t)tokens[e]);
    }
    const uint16_t *rank_id = table(a, rank_id, uint16_t);
    ROLLED
    for (int32_t q = thread_index(); a.fixed && q < a.ranks; q += block_threads()) {
        int64_t fixed = a.fixed[rank_id[q]];
        large |= (uint64_t)fixed >> shift;
        atomic_add(&load[q], (int32_t)fixed);
    }
    return large != 0;
}

/* Adds the halves of a count, so that no sum overflows; reports what is negative. */
DEVICE void add_halves(const step &a, int64_t count, int64_t detail) {
    block_state *state = state_of(a);
    if (count < 0) {
        report_error(a, LPLB_RANGE, detail);
        state->failed = 1;
        return;
    }
    atomic_add(&state->high, count >> 31);
    atomic_add(&state->low, count & 0x7fffffff);
}

/* load in 64 bits of what cannot move. */
DEVICE void load_wide(const step &a) {
    int64_t *load = shared_array(a, load, int64_t);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    const uint16_t *rank_id = table(a, rank_id, uint16_t);
    bool fixed = a.fixed && !state_of(a)->failed;
    block_barrier();
    ROLLED
    for (int32_t q = thread_index(); q < a.ranks; q += block_threads())
        load[q] = fixed ? a.fixed[rank_id[q]] : 0;
    block_barrier();
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads())
        if (expert[e].hosts == 1) atomic_add(&load[expert[e].rank], tokens[e]);
    block_barrier();
}

/* Counts that cannot be used: every source falls back to its own tokens, split evenly. */
DEVICE void forget_counts(const step &a) {
    int64_t *tokens = shared_array(a, tokens, int64_t), *before = shared_array(a, before, int64_t);
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads()) {
        tokens[e] = a.stages & LPLB__CUDA_STAGE_COUNT ? shared_array(a, mine, int32_t)[e] : 0;
        before[e] = 0;
    }
}

/* When the quick look did not suffice: the exact total, its width, or that there is none. */
DEVICE_CALL void settle_totals(const step &a) {
    block_state *state = state_of(a);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads())
        add_halves(a, tokens[e], count_of(e));
    ROLLED
    for (int32_t r = thread_index(); a.fixed && r < a.ranks; r += block_threads())
        add_halves(a, a.fixed[r], fixed_of(r));
    block_barrier();
    if (thread_index() == 0) {
        wide total = ((wide)state->high << 31) + state->low;
        if (total > LPLB_MAX_TOKENS) {
            report_error(a, LPLB_OVERFLOW, 0);
            state->failed = 1;
        }
        state->narrow =
            !state->failed && !header_of(a)->speeds && total < (int64_t)1 << NARROW_BITS;
        state->total = (int64_t)total;
    }
    block_barrier();
    if (state->failed) forget_counts(a);
    if (!state->narrow) load_wide(a);
}

/* ---- even ---- */

/* By threads from.. in steps of `threads`. */
template <typename T>
DEVICE void split_evenly(const step &a, bool take_back, int32_t from, int32_t threads) {
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    T *x = shared_array(a, x, T), *load = shared_array(a, load, T);
    ROLLED
    for (int32_t h = from; h < header_of(a)->hosts; h += threads) {
        const lplb__cuda_expert e = expert[host[h].expert];
        T all = (T)tokens[host[h].expert], share = all / e.hosts, rest = all % e.hosts;
        share += h - e.first_host < rest;
        if (e.hosts == 1) continue;
        x[h] = take_back ? 0 : share;
        atomic_add(&load[host[h].rank], take_back ? -share : share);
    }
}

/* max load / speed <= tolerance * total / total speed, as in planner.c. */
template <typename T> DEVICE bool is_tolerable(const step &a, int64_t total) {
    bool exceeds = false;
    const int64_t *speed = cold_table(a, speed, int64_t);
    ROLLED
    for (int32_t q = thread_index(); q < a.ranks; q += block_threads()) {
        wide have = ((wide)shared_array(a, load, T)[q] * header_of(a)->total_speed)
                    << TOLERANCE_BITS;
        wide allowed = (wide)total * speed[q];
        wide least = have / a.tolerance; /* (tolerance * allowed) could exceed 127 bits */
        exceeds |= least > allowed || (least == allowed && have - least * a.tolerance > 0);
    }
    return !block_any(exceeds);
}

/* The even split if the step wants it; true: it stays. */
template <typename T> DEVICE bool settle_for_even(const step &a) {
    block_state *state = state_of(a);
    split_evenly<T>(a, false, thread_index(), block_threads());
    block_barrier();
    if (a.solver == LPLB_SOLVER_EVEN || state->failed) {
        if (a.tolerance && !state->failed && is_tolerable<T>(a, state->total))
            state->outcome = LPLB_OUTCOME_WITHIN_TOLERANCE;
        else state->outcome = state->failed ? -1 : LPLB_OUTCOME_FEASIBLE;
        return true;
    }
    if (is_tolerable<T>(a, state->total)) {
        state->outcome = LPLB_OUTCOME_WITHIN_TOLERANCE;
        return true;
    }
    split_evenly<T>(a, true, thread_index(), block_threads());
    block_barrier();
    return false;
}

/* ---- the plan cache ---- */

DEVICE int64_t cached_words(const step &a) { return (int64_t)a.experts + a.slots + a.ranks; }
DEVICE const int64_t *cached_counts(const step &a) {
    return a.cached + state_of(a)->current * cached_words(a);
}

DEVICE int64_t fixed_tokens(const step &a, int32_t rank) { return a.fixed ? a.fixed[rank] : 0; }

/* Adds |w W' - w' W|, in three limbs of 42 bits each. */
DEVICE void add_distance(block_state *state, int64_t tokens, int64_t cached) {
    const int64_t mask = ((int64_t)1 << 42) - 1;
    wide difference = (wide)tokens * state->batch[0] - (wide)cached * state->batch[1];
    if (difference < 0) difference = -difference;
    atomic_add(&state->limbs[0], (int64_t)difference & mask);
    atomic_add(&state->limbs[1], (int64_t)(difference >> 42) & mask);
    atomic_add(&state->limbs[2], (int64_t)(difference >> 84));
}

/* Whether the batch is close enough to the one the cached plan was made for: experts and what is
 * fixed on the ranks alike. One without tokens says nothing about any other. */
DEVICE_CALL bool is_cached(const step &a) {
    block_state *state = state_of(a);
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    if (state->failed) return false;
    const int64_t *counts = cached_counts(a), *fixed = counts + a.experts + a.slots;
    int64_t movable = 0, total[2] = {0, 0};
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads()) {
        if (state->cached) total[0] += counts[e];
        movable += tokens[e];
    }
    ROLLED
    for (int32_t r = thread_index(); r < a.ranks; r += block_threads()) {
        if (state->cached) total[0] += fixed[r];
        total[1] += fixed_tokens(a, r);
    }
    atomic_add(&state->movable, movable);
    atomic_add(&state->batch[0], total[0]);
    atomic_add(&state->batch[1], total[1] + movable);
    block_barrier();
    if (!state->cached || !state->movable) return false;
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads())
        add_distance(state, tokens[e], counts[e]);
    ROLLED
    for (int32_t r = thread_index(); r < a.ranks; r += block_threads())
        add_distance(state, fixed_tokens(a, r), fixed[r]);
    block_barrier();
    wide distance = ((((wide)state->limbs[2] << 42) + state->limbs[1]) << 42) + state->limbs[0];
    wide scale = (wide)state->batch[0] * state->batch[1];
    if (scale < (wide)1 << 96) return distance << TOLERANCE_BITS <= scale * a.reuse;
    return distance <= (scale >> TOLERANCE_BITS) * a.reuse;
}

/* The cached plan's shares of today's tokens: host i of an expert ends at floor(w * (cached tokens
 * up to i) / w'). An expert without tokens then is split evenly. */
template <typename T> DEVICE_CALL void reuse_shares(const step &a) {
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    const int64_t *counts = cached_counts(a), *split = counts + a.experts;
    T *x = shared_array(a, x, T), *load = shared_array(a, load, T);
    ROLLED
    for (int32_t h = thread_index(); h < header_of(a)->hosts; h += block_threads()) {
        const lplb__cuda_expert e = expert[host[h].expert];
        int64_t tokens = shared_array(a, tokens, int64_t)[host[h].expert], before = 0;
        int64_t cached = counts[host[h].expert], nth = h - e.first_host;
        if (e.hosts == 1) continue;
        ROLLED
        for (int32_t i = e.first_host; i < h; i++) before += split[i];
        int64_t share = tokens / e.hosts + (nth < tokens % e.hosts);
        if (cached > 0)
            share = divide_wide((wide)tokens * (before + split[h]), cached) -
                    divide_wide((wide)tokens * before, cached);
        x[h] = (T)share;
        atomic_add(&load[host[h].rank], (T)share);
    }
}

/* ---- exact ---- */

DEVICE void add_effort(const step &a, const effort &spent) {
    block_state *state = state_of(a);
    if (spent.sweeps) atomic_add(&state->sweeps, spent.sweeps);
    if (spent.augmentations) atomic_add(&state->augmentations, spent.augmentations);
    if (spent.restarts) atomic_add(&state->restarts, spent.restarts);
}

DEVICE void solve_components_as_pairs(const step &a) {
    const lplb__cuda_component *component = table(a, component, lplb__cuda_component);
    effort spent = {0, 0, 0};
    ROLLED
    for (int32_t c = warp_index(); c < header_of(a)->components; c += a.solver_warps) {
        const uint32_t *edge =
            c < a.solver_warps ? shared_array(a, edges, uint32_t) : cold_table(a, edge, uint32_t);
        int32_t limit =
            solve_pairs(component[c], edge + c * LPLB__CUDA_PAIR_COLOURS * LPLB__CUDA_LANES,
                        shared_array(a, tokens, int64_t), shared_array(a, load, int32_t),
                        shared_array(a, x, int32_t), table(a, expert, lplb__cuda_expert), &spent);
        if (lane_index() == 0)
            atomic_max((uint64_t *)&state_of(a)->bound_numerator, (uint64_t)limit);
    }
    if (lane_index() == 0) add_effort(a, spent);
}

DEVICE_CALL void solve_components_as_sets(const step &a) {
    const lplb__cuda_component *component = table(a, component, lplb__cuda_component);
    effort spent = {0, 0, 0};
    sets s;
    s.tokens = shared_array(a, tokens, int64_t);
    s.x = shared_array(a, x, int32_t);
    s.saved_x = shared_array(a, saved_x, int32_t);
    s.inverse = 0xffffffffu / (uint32_t)(lane_index() + 1);
    ROLLED
    for (int32_t c = warp_index(); c < header_of(a)->components; c += a.solver_warps) {
        const lplb__cuda_component here = component[c];
        s.ranks = here.ranks;
        s.chunks = here.chunks;
        s.host = shared_array(a, set_hosts, set_host) + here.first_chunk * LANES + lane_index();
        s.load = shared_array(a, load, int32_t) + here.first_rank;
        s.level = shared_array(a, key, uint64_t) + here.first_rank;
        int32_t movable = take_experts(&s, cold_table(a, set, lplb__cuda_set) + here.first_movable,
                                       table(a, expert, lplb__cuda_expert), here.movables);
        int32_t limit = first_limit(&s, movable);
        take_hosts(&s, cold_table(a, own_chunk, uint32_t) + here.first_chunk,
                   cold_table(a, lane, lplb__cuda_lane) + lane_index(), here.first_rank);
        limit = solve_sets(&s, limit, &spent);
        if (lane_index() == 0)
            atomic_max((uint64_t *)&state_of(a)->bound_numerator, (uint64_t)limit);
    }
    if (lane_index() == 0) add_effort(a, spent);
}

template <typename K> DEVICE rows<K> rows_of(const step &a) {
    typedef typename K::number T;
    rows<K> r;
    r.component = table(a, component, lplb__cuda_component);
    r.component_of = table(a, component_of, uint16_t);
    r.row = cold_table(a, row, uint32_t);
    r.chunk = cold_table(a, chunk, uint8_t);
    r.lane = cold_table(a, lane, lplb__cuda_lane);
    r.speed = cold_table(a, speed, int64_t);
    r.tokens = shared_array(a, tokens, int64_t);
    r.load = shared_array(a, load, T);
    r.x = shared_array(a, x, T);
    r.saved_load = shared_array(a, saved_load, T);
    r.saved_x = shared_array(a, saved_x, T);
    r.capacity = shared_array(a, capacity, T);
    r.level = shared_array(a, level, T);
    r.key = shared_array(a, key, uint64_t);
    r.depth = shared_array(a, depth, uint16_t);
    r.owner = shared_array(a, owner, int32_t);
    r.status = shared_array(a, status, uint32_t);
    r.limits = shared_array(a, limits, limit);
    r.result = shared_array(a, result, rows_result);
    r.ranks = a.ranks;
    r.hosts = header_of(a)->hosts;
    r.components = header_of(a)->components;
    r.n_rows = header_of(a)->rows;
    r.chunks = header_of(a)->chunks;
    r.threads = larger(smaller(a.solver_warps, header_of(a)->widest_row), 1) * 32;
    return r;
}

/* Tokens of the movable experts of every component, for first_limits. */
template <typename K> DEVICE int64_t *movable_tokens(const step &a, const rows<K> *r) {
    int64_t *movable = shared_array(a, key, int64_t); /* free until the first search */
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    ROLLED
    for (int32_t c = thread_index(); c < r->components; c += r->threads) {
        movable[c] = 0;
        r->status[c] = COMPONENT_SWEEPS;
    }
    rows_barrier(r);
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += r->threads)
        if (expert[e].hosts > 1)
            atomic_add(&movable[r->component_of[expert[e].rank]], r->tokens[e]);
    rows_barrier(r);
    return movable;
}

template <typename K> DEVICE_CALL void solve_components_as_rows(const step &a) {
    rows<K> r = rows_of<K>(a);
    if (thread_index() >= r.threads) return; /* fewer warps meet sooner */
    effort spent = {0, 0, 0};
    limit bound = {0, 1};
    first_limits(&r, movable_tokens(a, &r));
    rows_barrier(&r);
    split_evenly<typename K::number>(a, false, thread_index(), r.threads);
    rows_barrier(&r);
    sweep_until_within(&r, &spent);
    ROLLED
    for (int32_t c = 0; c < r.components; c++) {
        limit t = meet_limit_rows(&r, c, r.limits[c], &spent);
        if (limit_less<K>(bound, t)) bound = t;
    }
    add_effort(a, spent);
    if (thread_index() != 0) return;
    state_of(a)->bound_numerator = bound.numerator;
    state_of(a)->bound_denominator = bound.denominator;
}

/* ---- one plan ---- */

/* For is_tolerable, when settle_totals had no reason to. */
DEVICE void add_up_total(const step &a) {
    int64_t *total = &state_of(a)->total;
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads())
        atomic_add(total, shared_array(a, tokens, int64_t)[e]);
    ROLLED
    for (int32_t r = thread_index(); a.fixed && r < a.ranks; r += block_threads())
        atomic_add(total, a.fixed[r]);
    block_barrier();
}

/* What stands between totals and planner: those that need 64 bits, the plan cache, the even split.
 * False: nothing is left to the planner. */
DEVICE_CALL bool settle(const step &a, bool large) {
    block_state *state = state_of(a);
    if (large) settle_totals(a);
    if (a.reuse && is_cached(a)) {
        if (state->narrow) reuse_shares<int32_t>(a);
        else reuse_shares<int64_t>(a);
        state->outcome = LPLB_OUTCOME_FEASIBLE;
        state->reused = 1;
        return false;
    }
    if (!state->failed && a.solver != LPLB_SOLVER_EVEN && !a.tolerance) return true;
    if (a.tolerance && !large) add_up_total(a);
    return !(state->narrow ? settle_for_even<int32_t>(a) : settle_for_even<int64_t>(a));
}

/* All threads: everything before the planner itself. False: nothing is left to it. */
DEVICE bool prepare_plan(const step &a) {
    bool others = a.source_counts || a.fixed || shares_with_peers(a);
    bool large = block_any(others ? take_totals(a) : take_own_totals(a));
    if (!large && !a.reuse && !a.tolerance && a.solver != LPLB_SOLVER_EVEN) return true;
    return settle(a, large);
}

/* The first solver_warps warps. */
DEVICE void make_plan(const step &a) {
    if (header_of(a)->speeds) solve_components_as_rows<speed_loads>(a);
    else if (!state_of(a)->narrow) solve_components_as_rows<wide_loads>(a);
    else if (header_of(a)->engine == LPLB__CUDA_ROWS) solve_components_as_rows<narrow_loads>(a);
    else if (header_of(a)->engine == LPLB__CUDA_SETS) solve_components_as_sets(a);
    else solve_components_as_pairs(a);
}

#endif
