/* The interior-point method: options, the cut into parts, scaling, rounding. */
#include "plan/ipm.h"

#include <math.h>
#include <string.h>

__extension__ typedef __int128 wide;

enum { SHARE_BITS = 52 };

static int has_choice(const lplb_hosts *hosts, int32_t e) {
    return hosts->offset[e + 1] - hosts->offset[e] > 1;
}

typedef struct ipm_size {
    int64_t ranks, experts, columns;
} ipm_size;

static ipm_size size_of(const lplb_hosts *hosts) {
    ipm_size n = {hosts->ranks, 0, 0};
    for (int32_t e = 0; e < hosts->experts; e++) {
        if (!has_choice(hosts, e)) continue;
        n.experts++;
        n.columns += hosts->offset[e + 1] - hosts->offset[e];
    }
    return n;
}

lplb_status lplb__ipm_check(const lplb_ipm_options *o, const int64_t *speed,
                            lplb_ipm_options *filled) {
    if (o->published && (o->iterations || o->tolerance != 0 || o->step != 0))
        return LPLB_FAIL(LPLB_INVALID, "ipm: the published form has 5 iterations and a step of "
                                       "0.999; leave iterations, tolerance and step at 0");
    if (o->iterations < 0)
        return LPLB_FAIL(LPLB_RANGE, "ipm: %d iterations; 0 for 50, or more", o->iterations);
    if (!(o->tolerance >= 0 && o->tolerance < 1))
        return LPLB_FAIL(LPLB_RANGE, "ipm: tolerance %g is outside [0, 1)", o->tolerance);
    if (!(o->step >= 0 && o->step < 1))
        return LPLB_FAIL(LPLB_RANGE, "ipm: step %g is outside (0, 1)", o->step);
    if (o->published && speed)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "ipm: the published form knows no speeds; use the "
                                           "converged one");
    *filled = *o;
    if (!filled->iterations) filled->iterations = o->published ? 5 : 50;
    if (filled->tolerance == 0) filled->tolerance = 1e-9;
    if (filled->step == 0) filled->step = 0.999;
    return LPLB_OK;
}

/* Reserves or takes (ipm not NULL) every array, in one order. */
static void lay_out(lplb__ipm *ipm, ipm_size n, int published, lplb__arena *arena) {
    lplb__ipm unused;
    lplb__ipm *p = ipm ? ipm : &unused;
    int64_t G = n.ranks, rows = G + n.experts, variables = n.columns + G + 2;
#define ARRAY(name, count)                                                                         \
    do {                                                                                           \
        if (!ipm) lplb__arena_reserve(arena, count, sizeof *p->name);                              \
        else p->name = lplb__arena_take(arena, count, sizeof *p->name);                            \
    } while (0)
    ARRAY(part, G);
    ARRAY(rank, G);
    ARRAY(expert, n.experts);
    ARRAY(column, n.experts + 1);
    ARRAY(host, n.columns);
    ARRAY(row, n.columns);
    ARRAY(total, G);
    ARRAY(fixed, G);
    ARRAY(speed, G);
    ARRAY(load, G);
    ARRAY(slack, G);
    ARRAY(tokens, n.experts);
    ARRAY(share, n.columns);
    ARRAY(best, n.columns);
    ARRAY(price, G);
    ARRAY(remainder, G);
    if (published) {
        ARRAY(normal, rows * rows);
        ARRAY(x, variables);
        ARRAY(direction, variables);
        ARRAY(artificial, rows);
        ARRAY(bound, rows);
        ARRAY(y, rows);
        return;
    }
    ARRAY(change, n.columns);
    ARRAY(correction, G);
    ARRAY(right, G);
    ARRAY(excess, G);
    ARRAY(matrix, G * G);
#undef ARRAY
}

void lplb__ipm_reserve(const lplb_plan_config *config, lplb__arena *arena) {
    ipm_size n = size_of(&config->hosts);
    if (n.ranks + n.experts > IPM_MAX_ROWS) return; /* init refuses */
    lplb__arena_reserve(arena, 1, sizeof(lplb__ipm));
    lplb__arena_reserve(arena, n.ranks, sizeof(int32_t)); /* init's union-find */
    lay_out(NULL, n, config->ipm.published, arena);
}

static int32_t root_of(int32_t *parent, int32_t r) {
    while (parent[r] != r) r = parent[r] = parent[parent[r]];
    return r;
}

/* Ranks are of one part if experts with a choice connect them. The root is the lowest rank, so
 * parts, ranks and experts all come out in ascending order. */
static void find_parts(const lplb_hosts *h, int32_t *parent) {
    for (int32_t r = 0; r < h->ranks; r++) parent[r] = r;
    for (int32_t e = 0; e < h->experts; e++)
        for (int64_t i = h->offset[e] + 1; i < h->offset[e + 1]; i++) {
            int32_t a = root_of(parent, h->rank[i]), b = root_of(parent, h->rank[i - 1]);
            if (a < b) parent[b] = a;
            else parent[a] = b;
        }
}

/* Inserts the expert's hosts as columns, by ascending rank. */
static void add_columns(lplb__ipm *ipm, int32_t list_position, const int32_t *row_of) {
    const lplb_hosts *h = ipm->hosts;
    int32_t e = ipm->expert[list_position];
    int64_t first = ipm->column[list_position], end = first;
    for (int64_t i = h->offset[e]; i < h->offset[e + 1]; i++, end++) {
        int64_t at = end;
        for (; at > first && h->rank[ipm->host[at - 1]] > h->rank[i]; at--)
            ipm->host[at] = ipm->host[at - 1];
        ipm->host[at] = i;
    }
    for (int64_t c = first; c < end; c++) ipm->row[c] = row_of[h->rank[ipm->host[c]]];
    ipm->column[list_position + 1] = end;
}

static void make_lists(lplb__ipm *ipm, int32_t *parent) {
    const lplb_hosts *h = ipm->hosts;
    int32_t ranks = 0, experts = 0;
    for (int32_t root = 0; root < h->ranks; root++) {
        if (root_of(parent, root) != root) continue;
        ipm_part *part = &ipm->part[ipm->parts++];
        *part = (ipm_part){.rank0 = ranks, .expert0 = experts};
        for (int32_t r = root; r < h->ranks; r++)
            if (root_of(parent, r) == root) ipm->rank[ranks++] = r;
        for (int32_t e = 0; e < h->experts; e++)
            if (has_choice(h, e) && root_of(parent, h->rank[h->offset[e]]) == root)
                ipm->expert[experts++] = e;
        part->ranks = ranks - part->rank0;
        part->experts = experts - part->expert0;
    }
    for (int32_t p = 0; p < ipm->parts; p++) /* parent has served; now it holds the rows */
        for (int32_t i = 0; i < ipm->part[p].ranks; i++)
            parent[ipm->rank[ipm->part[p].rank0 + i]] = i;
    for (int32_t k = 0; k < experts; k++) add_columns(ipm, k, parent);
}

lplb_status lplb__ipm_init(lplb__ipm **out, const lplb_plan_config *config, lplb__arena *arena) {
    ipm_size n = size_of(&config->hosts);
    lplb_ipm_options options;
    LPLB_TRY(lplb__ipm_check(&config->ipm, config->speed, &options));
    if (n.ranks + n.experts > IPM_MAX_ROWS)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "ipm: %d ranks and %lld experts with several hosts make more than %d "
                         "rows; use the exact solver",
                         config->hosts.ranks, (long long)n.experts, IPM_MAX_ROWS);
    lplb__ipm *ipm = lplb__arena_take(arena, 1, sizeof *ipm);
    int32_t *parent = lplb__arena_take(arena, n.ranks, sizeof *parent);
    lay_out(ipm, n, config->ipm.published, arena);
    ipm->hosts = &config->hosts;
    ipm->options = options;
    find_parts(ipm->hosts, parent);
    make_lists(ipm, parent);
    *out = ipm;
    return LPLB_OK;
}

double lplb__ipm_objective(lplb__ipm *ipm, const ipm_part *part, const double *share) {
    double *load = ipm->load + part->rank0, most = 0;
    memcpy(load, ipm->fixed + part->rank0, sizeof(double) * (size_t)part->ranks);
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++)
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            load[ipm->row[c]] += ipm->tokens[k] * share[c];
    for (int32_t r = 0; r < part->ranks; r++)
        most = fmax(most, load[r] / ipm->speed[part->rank0 + r]);
    return most;
}

double lplb__ipm_bound(lplb__ipm *ipm, const ipm_part *part) {
    double *price = ipm->price + part->rank0, sum = 0, bound = 0;
    int64_t terms = part->ranks;
    for (int32_t r = 0; r < part->ranks; r++) sum += price[r] * ipm->speed[part->rank0 + r];
    if (!(sum > 0) || !isfinite(sum)) return -INFINITY;
    for (int32_t r = 0; r < part->ranks; r++) {
        price[r] /= sum;
        bound += price[r] * ipm->fixed[part->rank0 + r];
    }
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        double least = INFINITY;
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            least = fmin(least, price[ipm->row[c]]);
        bound += ipm->tokens[k] * least;
        terms++;
    }
    /* all terms are >= 0, so each of the sums is off by less than terms * 2^-53 of itself */
    return bound * (1 - (double)(2 * terms + 8) * 0x1p-53);
}

/* Largest remainder, ties to the lower rank: the shares as fixed-point numbers q_i give each host
 * floor(w q_i / sum q) and the tokens left to the hosts with the largest remainders. Exact for any
 * number of tokens. */
static void round_shares(lplb__ipm *ipm, int32_t k, int64_t tokens, int64_t *split) {
    int64_t first = ipm->column[k], n = ipm->column[k + 1] - first, left = tokens, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double share = fmin(fmax(ipm->share[first + i], 0), 1);
        ipm->remainder[i] = (uint64_t)llround(ldexp(share, SHARE_BITS));
        sum += (int64_t)ipm->remainder[i];
    }
    for (int64_t i = 0; i < n; i++) {
        wide product = (wide)tokens * (int64_t)ipm->remainder[i];
        int64_t whole = (int64_t)(product / sum);
        split[ipm->host[first + i]] = whole;
        ipm->remainder[i] = (uint64_t)(product - (wide)whole * sum);
        left -= whole;
    }
    for (; left > 0; left--) {
        int64_t most = 0;
        for (int64_t i = 1; i < n; i++)
            if (ipm->remainder[i] > ipm->remainder[most]) most = i;
        ipm->remainder[most] = 0;
        split[ipm->host[first + most]]++;
    }
}

/* Fixed tokens by list position, those of experts without a choice included; these experts' split.
 */
static void place_fixed(lplb__ipm *ipm, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = ipm->hosts;
    for (int32_t e = 0; e < h->experts; e++)
        if (!has_choice(h, e)) split[h->offset[e]] = batch->tokens[e];
    for (int32_t i = 0; i < h->ranks; i++) ipm->total[i] = batch->fixed[ipm->rank[i]];
    /* remainder, free until the rounding, holds each rank's list position */
    for (int32_t i = 0; i < h->ranks; i++) ipm->remainder[ipm->rank[i]] = (uint64_t)i;
    for (int32_t e = 0; e < h->experts; e++)
        if (!has_choice(h, e))
            ipm->total[ipm->remainder[h->rank[h->offset[e]]]] += batch->tokens[e];
}

/* The published form divides by the largest expert, the converged one by the part's mean load. */
static double scale_of(const lplb__ipm *ipm, const ipm_part *part, const lplb__batch *batch) {
    if (ipm->options.published) {
        int64_t most = 0;
        for (int32_t e = 0; e < ipm->hosts->experts; e++)
            if (batch->tokens[e] > most) most = batch->tokens[e];
        return (double)most;
    }
    double sum = 0;
    for (int32_t i = 0; i < part->ranks; i++) sum += (double)ipm->total[part->rank0 + i];
    for (int32_t k = 0; k < part->experts; k++)
        sum += (double)batch->tokens[ipm->expert[part->expert0 + k]];
    return sum / part->ranks;
}

/* Fills the scaled arrays of a part; returns the unit of objective and bound, load/speed. */
static double scale_part(lplb__ipm *ipm, const ipm_part *part, const lplb__batch *batch) {
    double scale = scale_of(ipm, part, batch), mean_speed = 0;
    if (!(scale > 0)) scale = 1;
    for (int32_t i = part->rank0; i < part->rank0 + part->ranks; i++) {
        ipm->speed[i] = batch->speed ? (double)batch->speed[ipm->rank[i]] : 1;
        mean_speed += ipm->speed[i] / part->ranks;
        ipm->fixed[i] = (double)ipm->total[i] / scale;
    }
    for (int32_t i = part->rank0; i < part->rank0 + part->ranks; i++) ipm->speed[i] /= mean_speed;
    for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++) {
        ipm->tokens[k] = (double)batch->tokens[ipm->expert[k]] / scale;
        int64_t n = ipm->column[k + 1] - ipm->column[k];
        for (int64_t c = ipm->column[k]; c < ipm->column[k + 1]; c++)
            ipm->share[c] = 1.0 / (double)n;
    }
    return scale / mean_speed;
}

static ipm_result solve_part(lplb__ipm *ipm, const ipm_part *part) {
    double tokens = 0;
    for (int32_t k = 0; k < part->experts; k++) tokens += ipm->tokens[part->expert0 + k];
    if (tokens == 0) { /* nothing to choose: the fixed loads are the answer and its proof */
        double objective = lplb__ipm_objective(ipm, part, ipm->share);
        return (ipm_result){objective, objective * (1 - 0x1p-50), 0, 1};
    }
    return ipm->options.published ? lplb__ipm_publish(ipm, part) : lplb__ipm_converge(ipm, part);
}

lplb_status lplb__ipm_solve(lplb__ipm *ipm, const lplb__batch *batch, lplb_plan *plan) {
    double objective = 0, bound = 0;
    int converged = 1;
    plan->sweeps = plan->rejected = 0;
    place_fixed(ipm, batch, plan->split);
    for (int32_t p = 0; p < ipm->parts; p++) {
        const ipm_part *part = &ipm->part[p];
        double unit = scale_part(ipm, part, batch);
        ipm_result result = solve_part(ipm, part);
        objective = fmax(objective, result.objective * unit);
        bound = fmax(bound, result.bound * unit);
        if (result.iterations > plan->sweeps) plan->sweeps = result.iterations;
        converged &= result.converged;
        for (int32_t k = part->expert0; k < part->expert0 + part->experts; k++)
            round_shares(ipm, k, batch->tokens[ipm->expert[k]], plan->split);
    }
    plan->rejected = ipm->options.published && !converged;
    plan->outcome = converged ? LPLB_OUTCOME_FEASIBLE : LPLB_OUTCOME_NOT_CONVERGED;
    plan->bound = bound;
    plan->ipm_gap = objective > 0 ? objective / bound - 1 : 0;
    return LPLB_OK;
}
