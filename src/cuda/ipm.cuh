/* The interior-point method as a kernel of its own: from gathered counts to the tokens of every
 * host, by one block. Components are programs of their own and are solved side by side, each by a
 * team of warps. It is no part of the fused kernel, whose registers and instructions are for the
 * exact planner; a step with this solver counts, plans and maps in three launches. */
#ifndef LPLB_CUDA_IPM_CUH
#define LPLB_CUDA_IPM_CUH

#include "cuda/ipm_publish.cuh"
#include "cuda/solve.cuh"

enum { SHARE_BITS = 52 };

/* Of all components, in tokens over speed; as bits, which for numbers >= 0 have the same order. */
typedef struct ipm_total {
    uint64_t objective, bound, iterations, refused;
    uint64_t largest; /* tokens of an expert */
} ipm_total;

DEVICE uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
DEVICE double value_of(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Tokens of a rank so far. */
DEVICE int64_t load_of(const step &a, int32_t q) {
    return state_of(a)->narrow ? shared_array(a, load, int32_t)[q]
                               : shared_array(a, load, int64_t)[q];
}

/* Fills the part's scaled arrays and the even shares; returns the unit of objective and bound. The
 * published form divides by the largest expert, the converged one by the part's mean load. */
DEVICE double scale_part(const step &a, ipm_part *p) {
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    const int64_t *speeds = cold_table(a, speed, int64_t);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    double sum = 0, speed = 0;
    ROLLED
    for (each_rank(q, p)) {
        sum += (double)load_of(a, q);
        speed += (double)speeds[q];
    }
    ROLLED
    for (each_expert(i, p)) sum += (double)tokens[movable_of(a, p, i)];
    double scale = team_sum(&p->t, sum) / p->ranks, mean = team_sum(&p->t, speed) / p->ranks;
    if (a.ipm.published) scale = (double)ipm_array(a, result, ipm_total)->largest;
    if (!(scale > 0)) scale = 1;
    ROLLED
    for (each_rank(q, p)) {
        ipm_array(a, fixed, double)[q] = (double)load_of(a, q) / scale;
        ipm_array(a, speed, double)[q] = (double)speeds[q] / mean;
    }
    ROLLED
    for (each_expert(i, p)) {
        int32_t e = movable_of(a, p, i), first = expert[e].first_host, hosts = expert[e].hosts;
        ipm_array(a, weight, double)[e] = (double)tokens[e] / scale;
        ROLLED
        for (int32_t h = first; h < first + hosts; h++)
            ipm_array(a, share, double)[h] = 1.0 / (double)hosts;
    }
    team_barrier(&p->t);
    return scale / mean;
}

/* Largest remainder, ties to the lower rank, as round_shares of src/plan/ipm.c. */
template <typename T> DEVICE void round_shares(const step &a, int32_t e) {
    const lplb__cuda_expert at = table(a, expert, lplb__cuda_expert)[e];
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host) + at.first_host;
    const double *share = ipm_array(a, share, double) + at.first_host;
    uint64_t *remainder = ipm_array(a, change, uint64_t) + at.first_host;
    T *x = shared_array(a, x, T) + at.first_host, *load = shared_array(a, load, T);
    int64_t tokens = shared_array(a, tokens, int64_t)[e], left = tokens, sum = 0;
    ROLLED
    for (int32_t i = 0; i < at.hosts; i++) {
        double clipped = fmin(fmax(share[i], 0.0), 1.0);
        remainder[i] = (uint64_t)llround(clipped * (double)((int64_t)1 << SHARE_BITS));
        sum += (int64_t)remainder[i];
    }
    ROLLED
    for (int32_t i = 0; i < at.hosts; i++) {
        wide product = (wide)tokens * (int64_t)remainder[i];
        int64_t whole = divide_wide(product, sum);
        x[i] = (T)whole;
        remainder[i] = (uint64_t)(product - (wide)whole * sum);
        left -= whole;
    }
    ROLLED
    for (; left > 0; left--) {
        int32_t most = 0;
        ROLLED
        for (int32_t i = 1; i < at.hosts; i++)
            if (remainder[i] > remainder[most]) most = i;
        remainder[most] = 0;
        x[most]++;
    }
    ROLLED
    for (int32_t i = 0; i < at.hosts; i++) atomic_add(&load[host[i].rank], x[i]);
}

DEVICE void note_result(const step &a, const ipm_result &result, double unit) {
    ipm_total *total = ipm_array(a, result, ipm_total);
    atomic_max(&total->objective, bits_of(result.objective * unit));
    atomic_max(&total->bound, bits_of(result.bound * unit));
    atomic_max(&total->iterations, (uint64_t)result.iterations);
    if (!result.converged) atomic_max(&total->refused, (uint64_t)1);
}

/* One component by its team. */
DEVICE void solve_part(const step &a, ipm_part *p) {
    const int64_t *tokens = shared_array(a, tokens, int64_t);
    double unit = scale_part(a, p), any = 0, most = 0;
    ROLLED
    for (each_expert(i, p)) any = fmax(any, (double)tokens[movable_of(a, p, i)]);
    ipm_result result;
    if (team_most(&p->t, any) > 0) {
        result = a.ipm.published ? solve_published(a, p) : solve_converged(a, p);
    } else { /* nothing to choose: the fixed loads are the answer and its proof */
        ROLLED
        for (each_rank(q, p))
            most = fmax(most, ipm_array(a, fixed, double)[q] / ipm_array(a, speed, double)[q]);
        most = team_most(&p->t, most);
        result = {most, most * (1 - 0x1p-50), 0, 1};
    }
    if (p->t.thread == 0) note_result(a, result, unit);
    team_barrier(&p->t); /* the loads were read to the end */
    ROLLED
    for (each_expert(i, p)) {
        int32_t e = movable_of(a, p, i);
        if (state_of(a)->narrow) round_shares<int32_t>(a, e);
        else round_shares<int64_t>(a, e);
    }
}

/* Ranks that share no expert have what they have. */
DEVICE void note_single_ranks(const step &a) {
    ipm_result single = {0, 0, 0, 1};
    ROLLED
    for (int32_t q = thread_index(); q < a.ranks; q += block_threads())
        if (table(a, component_of, uint16_t)[q] == LPLB__CUDA_NO_HOST)
            single.objective = fmax(single.objective, (double)load_of(a, q) /
                                                          (double)cold_table(a, speed, int64_t)[q]);
    single.bound = single.objective * (1 - 0x1p-50);
    if (single.objective > 0) note_result(a, single, 1);
}

DEVICE void find_largest_expert(const step &a) {
    uint64_t *largest = &ipm_array(a, result, ipm_total)->largest;
    ROLLED
    for (int32_t e = thread_index(); e < a.experts; e += block_threads())
        atomic_max(largest, (uint64_t)shared_array(a, tokens, int64_t)[e]);
}

/* What the ranks have of movable experts, at hand. */
DEVICE void list_columns(const step &a) {
    const uint16_t *rank_host = cold_table(a, rank_host, uint16_t);
    const uint16_t *first_host = cold_table(a, first_host, uint16_t);
    const lplb__cuda_host *host = table(a, host, lplb__cuda_host);
    const lplb__cuda_expert *expert = table(a, expert, lplb__cuda_expert);
    ROLLED
    for (int32_t q = thread_index(); q <= a.ranks; q += block_threads())
        ipm_array(a, first, uint16_t)[q] = first_host[q];
    ROLLED
    for (int32_t c = thread_index(); c < first_host[a.ranks]; c += block_threads()) {
        uint16_t h = rank_host[c], e = host[h].expert;
        ipm_array(a, column, ipm_column)[c] = {h, expert[e].first_host, expert[e].hosts, e};
    }
}

/* All threads. */
DEVICE void solve_by_ipm(const step &a) {
    const lplb__cuda_component *component = table(a, component, lplb__cuda_component);
    const uint16_t *first = cold_table(a, first_movable, uint16_t);
    int32_t warps = header_of(a)->team_warps[a.ipm.published];
    ipm_part p;
    p.t.number = warp_index() / warps;
    p.t.teams = block_threads() / 32 / warps;
    p.t.threads = warps * 32;
    p.t.thread = thread_index() - p.t.number * p.t.threads;
    p.t.partial = ipm_array(a, partial, double) + p.t.number * 2 * warps;
    p.t.turn = 0;
    note_single_ranks(a);
    list_columns(a);
    if (a.ipm.published) find_largest_expert(a);
    block_barrier();
    ROLLED
    for (int32_t c = p.t.number; c < header_of(a)->components; c += p.t.teams) {
        p.rank0 = component[c].first_rank;
        p.ranks = component[c].ranks;
        p.first = first[c];
        p.experts = first[c + 1] - first[c];
        solve_part(a, &p);
    }
    block_barrier();
    const ipm_total *total = ipm_array(a, result, ipm_total);
    block_state *state = state_of(a);
    if (thread_index() != 0) return;
    state->outcome = total->refused ? LPLB_OUTCOME_NOT_CONVERGED : LPLB_OUTCOME_FEASIBLE;
    state->sweeps = (int32_t)total->iterations;
}

/* By one thread, after the rest of the report. */
DEVICE void report_ipm(const step &a) {
    const ipm_total *total = ipm_array(a, result, ipm_total);
    a.memory->report.ipm_objective = value_of(total->objective);
    a.memory->report.ipm_bound = value_of(total->bound);
}

#endif
