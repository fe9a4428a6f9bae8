/* A grouped GEMM computes whole tiles of each expert, and reads the weights of every expert that
 * has a token: the cost of a rank is the sum over its experts of ceil(x / tile) * tile plus
 * `activation` for every x > 0. Fixed tokens count as one expert's tiles without activation.
 *
 * Tiles alone stay exact. An expert of w tokens needs n = ceil(w / tile) tiles, and n suffice when
 * all hosts but one take whole tiles; so the exact planner, given tiles for tokens, finds the
 * optimum. The tile that is not full goes to the host with the most load.
 *
 * With activation the problem contains PARTITION (experts that no optimum splits), so it is
 * NP-hard. The bound: whatever the split, expert e costs at least n tile + activation over all its
 * hosts, and the exact planner divides that freely. The heuristic: from the exact tile split, and
 * from whole experts placed longest first, take the costliest rank again and again and apply the
 * move of one of its experts to another host (all of it, or whole tiles) that leaves the smaller
 * maximum of the two; the better end result counts. */
#include <string.h>

#include "plan/plan.h"

__extension__ typedef __int128 wide;

struct lplb__tiles {
    lplb__exact *exact;
    lplb__baselines *baselines;
    int64_t tile, activation;
    int64_t *weight; /* [E] tokens of the problem given to another solver */
    int64_t *fixed;  /* [G] likewise */
    int64_t *load;   /* [G] tokens while the tiles that are not full are placed */
    int64_t *cost;   /* [G] */
    int64_t *other;  /* [offset[E]] the second start's split */
    int64_t *first;  /* [G+1] hosts of each rank, in the order of experts */
    int64_t *slot;   /* [offset[E]] */
    int32_t *expert; /* [offset[E]] expert of each host */
};

void lplb__tiles_reserve(const lplb_hosts *hosts, lplb__arena *arena) {
    int64_t G = hosts->ranks, E = hosts->experts, n = hosts->offset[E];
    lplb__arena_reserve(arena, 1, sizeof(lplb__tiles));
    lplb__arena_reserve(arena, E, sizeof(int64_t));
    for (int i = 0; i < 4; i++) lplb__arena_reserve(arena, G + 1, sizeof(int64_t));
    for (int i = 0; i < 2; i++) lplb__arena_reserve(arena, n, sizeof(int64_t));
    lplb__arena_reserve(arena, n, sizeof(int32_t));
}

void lplb__tiles_init(lplb__tiles **tiles, const lplb_plan_config *config, lplb__exact *exact,
                      lplb__baselines *baselines, lplb__arena *arena) {
    const lplb_hosts *h = &config->hosts;
    int64_t G = h->ranks, n = h->offset[h->experts];
    lplb__tiles *t = lplb__arena_take(arena, 1, sizeof *t);
    t->exact = exact;
    t->baselines = baselines;
    t->tile = config->tile > 1 ? config->tile : 1;
    t->activation = config->activation;
    t->weight = lplb__arena_take(arena, h->experts, sizeof(int64_t));
    int64_t **by_rank[] = {&t->fixed, &t->load, &t->cost, &t->first};
    for (int i = 0; i < 4; i++) *by_rank[i] = lplb__arena_take(arena, G + 1, sizeof(int64_t));
    t->other = lplb__arena_take(arena, n, sizeof(int64_t));
    t->slot = lplb__arena_take(arena, n, sizeof(int64_t));
    t->expert = lplb__arena_take(arena, n, sizeof(int32_t));
    for (int64_t i = 0; i < n; i++) t->first[h->rank[i] + 1]++;
    for (int64_t r = 0; r < G; r++) {
        t->first[r + 1] += t->first[r];
        t->load[r] = t->first[r]; /* where the next host of rank r goes */
    }
    for (int32_t e = 0; e < h->experts; e++)
        for (int64_t i = h->offset[e]; i < h->offset[e + 1]; i++) {
            t->expert[i] = e;
            t->slot[t->load[h->rank[i]]++] = i;
        }
    *tiles = t;
}

static int64_t tiles_of(const lplb__tiles *t, int64_t tokens) {
    return tokens / t->tile + (tokens % t->tile != 0);
}
static int64_t cost_of(const lplb__tiles *t, int64_t tokens) {
    return tiles_of(t, tokens) * t->tile + (tokens > 0 ? t->activation : 0);
}
static int64_t speed_of(const lplb__batch *batch, int32_t r) {
    return batch->speed ? batch->speed[r] : 1;
}

/* a/speed[r] < b/speed[q] */
static int lower(const lplb__batch *batch, int64_t a, int32_t r, int64_t b, int32_t q) {
    return (wide)a * speed_of(batch, q) < (wide)b * speed_of(batch, r);
}

static int32_t costliest(const lplb__tiles *t, const lplb__batch *batch) {
    int32_t most = 0;
    for (int32_t r = 1; r < batch->hosts->ranks; r++)
        if (lower(batch, t->cost[most], most, t->cost[r], r)) most = r;
    return most;
}

static void sum_costs(lplb__tiles *t, const lplb__batch *batch, const int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    for (int32_t r = 0; r < h->ranks; r++) t->cost[r] = tiles_of(t, batch->fixed[r]) * t->tile;
    for (int64_t i = 0; i < h->offset[h->experts]; i++) t->cost[h->rank[i]] += cost_of(t, split[i]);
}

/* ---- tiles alone ---- */

/* Turns tiles into tokens: the host of each expert whose rank has the most load, at full tiles, is
 * the one with the tile that is not full. */
static void fill_tiles(lplb__tiles *t, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    memcpy(t->load, batch->fixed, sizeof(int64_t) * (size_t)h->ranks);
    for (int64_t i = 0; i < h->offset[h->experts]; i++) {
        split[i] *= t->tile;
        t->load[h->rank[i]] += split[i];
    }
    for (int32_t e = 0; e < h->experts; e++) {
        int64_t missing = tiles_of(t, batch->tokens[e]) * t->tile - batch->tokens[e], most = -1;
        const int32_t *rank = h->rank;
        for (int64_t k = h->offset[e]; k < h->offset[e + 1]; k++) {
            int64_t i = h->offset[e] + t->baselines->by_rank[k];
            if (split[i] > 0 && (most < 0 || lower(batch, t->load[rank[most]], rank[most],
                                                   t->load[rank[i]], rank[i])))
                most = i;
        }
        if (missing == 0) continue;
        split[most] -= missing;
        t->load[rank[most]] -= missing;
    }
}

static lplb_status solve_tiles(lplb__tiles *t, const lplb__batch *batch, lplb_plan *plan) {
    const lplb_hosts *h = batch->hosts;
    lplb__batch whole = {.hosts = h, .speed = batch->speed, .tokens = t->weight, .fixed = t->fixed};
    for (int32_t e = 0; e < h->experts; e++) t->weight[e] = tiles_of(t, batch->tokens[e]);
    for (int32_t r = 0; r < h->ranks; r++) t->fixed[r] = tiles_of(t, batch->fixed[r]);
    LPLB_TRY(lplb__exact_solve(t->exact, &whole, plan, NULL));
    fill_tiles(t, batch, plan->split);
    return LPLB_OK;
}

/* ---- with activation ---- */

typedef struct move {
    int64_t from, to, amount; /* host indices; amount 0 = none found */
    int64_t top;              /* the larger of the two costs after it, at the speed of `rank` */
    int32_t rank;
} move;

/* Keeps the move if it leaves less than the best so far. */
static void consider(const lplb__tiles *t, const lplb__batch *batch, const int64_t *split,
                     int64_t from, int64_t to, int64_t amount, move *best) {
    int32_t a = batch->hosts->rank[from], b = batch->hosts->rank[to];
    if (amount <= 0 || amount > split[from]) return;
    int64_t cost_a = t->cost[a] - cost_of(t, split[from]) + cost_of(t, split[from] - amount);
    int64_t cost_b = t->cost[b] - cost_of(t, split[to]) + cost_of(t, split[to] + amount);
    move m = {from, to, amount, cost_a, a};
    if (lower(batch, cost_a, a, cost_b, b)) {
        m.top = cost_b;
        m.rank = b;
    }
    if (lower(batch, m.top, m.rank, best->top, best->rank)) *best = m;
}

/* All of it; the tile that is not full; the two numbers of whole tiles around the even point. */
static void consider_host(const lplb__tiles *t, const lplb__batch *batch, const int64_t *split,
                          int64_t from, int64_t to, move *best) {
    int32_t a = batch->hosts->rank[from], b = batch->hosts->rank[to];
    consider(t, batch, split, from, to, split[from], best);
    consider(t, batch, split, from, to, split[from] % t->tile, best);
    wide speed_a = speed_of(batch, a), speed_b = speed_of(batch, b);
    wide target = t->cost[b] + (split[to] > 0 ? 0 : t->activation);
    wide apart = t->cost[a] * speed_b - target * speed_a;
    if (apart <= 0) return;
    int64_t even = (int64_t)(apart / (speed_a + speed_b) / t->tile) * t->tile;
    consider(t, batch, split, from, to, even, best);
    consider(t, batch, split, from, to, even + t->tile, best);
}

/* Each step lowers the costliest rank and leaves the other below where that was. */
static int32_t improve(lplb__tiles *t, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    int64_t limit = 4 * h->offset[h->experts] + 64;
    int32_t steps = 0;
    sum_costs(t, batch, split);
    for (; steps < limit; steps++) {
        int32_t top = costliest(t, batch);
        move best = {0, 0, 0, t->cost[top], top};
        for (int64_t k = t->first[top]; k < t->first[top + 1]; k++) {
            int64_t from = t->slot[k], first = h->offset[t->expert[from]];
            if (split[from] == 0) continue;
            for (int64_t j = first; j < h->offset[t->expert[from] + 1]; j++) {
                int64_t to = first + t->baselines->by_rank[j];
                if (to != from) consider_host(t, batch, split, from, to, &best);
            }
        }
        if (best.amount == 0) break;
        t->cost[h->rank[best.from]] -=
            cost_of(t, split[best.from]) - cost_of(t, split[best.from] - best.amount);
        t->cost[h->rank[best.to]] +=
            cost_of(t, split[best.to] + best.amount) - cost_of(t, split[best.to]);
        split[best.from] -= best.amount;
        split[best.to] += best.amount;
    }
    return steps;
}

/* The relaxation that gives the bound; leaves the weights and fixed loads for the greedy start. */
static lplb_status bound_cost(lplb__tiles *t, const lplb__batch *batch, lplb_plan *plan) {
    const lplb_hosts *h = batch->hosts;
    lplb__batch relaxed = {
        .hosts = h, .speed = batch->speed, .tokens = t->weight, .fixed = t->fixed};
    for (int32_t e = 0; e < h->experts; e++) t->weight[e] = cost_of(t, batch->tokens[e]);
    for (int32_t r = 0; r < h->ranks; r++) t->fixed[r] = tiles_of(t, batch->fixed[r]) * t->tile;
    LPLB_TRY(lplb__exact_solve(t->exact, &relaxed, plan, NULL));
    lplb__baselines_solve(t->baselines, LPLB_SOLVER_GREEDY, &relaxed, t->other, NULL);
    for (int32_t e = 0; e < h->experts; e++)
        for (int64_t i = h->offset[e]; i < h->offset[e + 1]; i++)
            if (t->other[i] > 0) t->other[i] = batch->tokens[e];
    return LPLB_OK;
}

static lplb_status solve_activation(lplb__tiles *t, const lplb__batch *batch, lplb_plan *plan) {
    const lplb_hosts *h = batch->hosts;
    lplb_fraction bound;
    int64_t most_tokens;
    LPLB_TRY(bound_cost(t, batch, plan));
    lplb__exact_limit(t->exact, &bound, &most_tokens);
    LPLB_TRY(solve_tiles(t, batch, plan));
    plan->bound = (double)bound.numerator / (double)bound.denominator;
    plan->sweeps = improve(t, batch, t->other);
    int32_t rank = costliest(t, batch);
    int64_t cost = t->cost[rank];
    plan->sweeps += improve(t, batch, plan->split);
    int32_t own = costliest(t, batch);
    if (lower(batch, cost, rank, t->cost[own], own))
        memcpy(plan->split, t->other, sizeof(int64_t) * (size_t)h->offset[h->experts]);
    sum_costs(t, batch, plan->split);
    own = costliest(t, batch);
    plan->objective = (double)t->cost[own] / (double)speed_of(batch, own);
    int met =
        (wide)t->cost[own] * bound.denominator <= (wide)bound.numerator * speed_of(batch, own);
    plan->outcome = met ? LPLB_OUTCOME_OPTIMAL : LPLB_OUTCOME_FEASIBLE;
    return LPLB_OK;
}

lplb_status lplb__tiles_solve(lplb__tiles *t, const lplb__batch *batch, lplb_plan *plan) {
    const lplb_hosts *h = batch->hosts;
    wide total = 0;
    for (int32_t e = 0; e < h->experts; e++)
        total += (wide)batch->tokens[e] + t->tile + t->activation;
    for (int32_t r = 0; r < h->ranks; r++) total += (wide)batch->fixed[r] + t->tile;
    if (total > LPLB_MAX_TOKENS)
        return LPLB_FAIL(LPLB_OVERFLOW, "tokens, rounded up to tiles and with activation, exceed "
                                        "2^62");
    if (t->activation > 0) return solve_activation(t, batch, plan);
    LPLB_TRY(solve_tiles(t, batch, plan)); /* optimal */
    sum_costs(t, batch, plan->split);
    int32_t top = costliest(t, batch);
    plan->objective = plan->bound = (double)t->cost[top] / (double)speed_of(batch, top);
    return LPLB_OK;
}
