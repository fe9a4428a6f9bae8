/* lplb_planner: validates, chooses the solver, sums up the plan. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/bits.h"
#include "plan/plan.h"

static const uint64_t PLANNER_MAGIC = 0x6c706c62706c616eu; /* "lplbplan" */

struct lplb_planner {
    uint64_t magic;
    lplb__arena arena;
    lplb_plan_config config; /* points to our copies */
    lplb__exact *exact;
    lplb__locality *locality;
    lplb__ipm *ipm;
    lplb__active *active;
    lplb__tiles *tiles;
    lplb__baselines baselines;
    int64_t *zero;     /* [G] fixed loads when there are none */
    int64_t *loads;    /* [G] when the caller does not want them */
    int64_t *capacity; /* [G] */
    int64_t total_speed, tolerance_fixed;
};

/* Tolerances are compared in integers, with this many binary places. */
enum { TOLERANCE_BITS = 16 };

const char *lplb_solver_name(lplb_solver solver) {
    static const char *const names[] = {"exact", "ipm", "even", "greedy", "waterfill", "balance"};
    return (unsigned)solver < sizeof names / sizeof names[0] ? names[solver] : "unknown";
}

const char *lplb_outcome_name(lplb_outcome outcome) {
    static const char *const names[] = {"optimal", "within_tolerance", "feasible", "not_converged"};
    return (unsigned)outcome < sizeof names / sizeof names[0] ? names[outcome] : "unknown";
}

/* ---- creation ---- */

static lplb_status check_expert_hosts(const lplb_hosts *hosts, int32_t e, int32_t *seen) {
    int64_t row = hosts->offset[e], end = hosts->offset[e + 1];
    if (end <= row)
        return LPLB_FAIL(LPLB_INVALID, "expert %d has no host; every expert needs a rank", e);
    for (int64_t i = row; i < end; i++) {
        int32_t r = hosts->rank[i];
        if (r < 0 || r >= hosts->ranks)
            return LPLB_FAIL(LPLB_RANGE, "expert %d: host rank %d is outside [0, %d)", e, r,
                             hosts->ranks);
        if (seen[r] == e + 1)
            return LPLB_FAIL(LPLB_INVALID, "expert %d names host rank %d twice", e, r);
        seen[r] = e + 1;
    }
    return LPLB_OK;
}

lplb_status lplb__check_hosts(const lplb_hosts *hosts) {
    if (hosts->ranks < 1 || hosts->ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_RANGE, "%d ranks; from 1 to %d are supported", hosts->ranks,
                         LPLB_MAX_RANKS);
    if (hosts->experts < 0 || !hosts->offset || (hosts->experts > 0 && !hosts->rank))
        return LPLB_FAIL(LPLB_INVALID, "hosts: negative number of experts or missing arrays");
    if (hosts->offset[0] != 0)
        return LPLB_FAIL(LPLB_INVALID, "hosts: offset[0] is %lld, must be 0",
                         (long long)hosts->offset[0]);
    int32_t *seen;
    LPLB_TRY(LPLB_CALLOC(seen, hosts->ranks));
    lplb_status status = LPLB_OK;
    for (int32_t e = 0; e < hosts->experts && status == LPLB_OK; e++)
        status = check_expert_hosts(hosts, e, seen);
    lplb__free(seen);
    return status;
}

lplb_status lplb__check_speed(const int64_t *speed, int32_t ranks) {
    for (int32_t r = 0; speed && r < ranks; r++)
        if (speed[r] < 1 || speed[r] > LPLB_MAX_SPEED)
            return LPLB_FAIL(LPLB_RANGE, "speed %lld of rank %d is outside [1, %d]",
                             (long long)speed[r], r, LPLB_MAX_SPEED);
    return LPLB_OK;
}

static lplb_status check_cost(const lplb_plan_config *config) {
    if (config->objective != LPLB_OBJECTIVE_COST) {
        if (config->cost)
            return LPLB_FAIL(LPLB_INVALID, "a cost table needs objective LPLB_OBJECTIVE_COST");
        return LPLB_OK;
    }
    if (!config->cost || config->cost_entries < 1)
        return LPLB_FAIL(LPLB_INVALID, "the cost objective needs a table with entries");
    if (config->speed)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "give speeds or cost tables, not both: put the speed "
                                           "into the table");
    for (int32_t r = 0; r < config->hosts.ranks; r++) {
        const double *table = config->cost + r * config->cost_entries;
        for (int64_t n = 0; n < config->cost_entries; n++)
            if (!isfinite(table[n]) || (n > 0 && table[n] < table[n - 1]))
                return LPLB_FAIL(LPLB_INVALID,
                                 "cost[%d][%lld] = %g: entries must be finite and must not fall", r,
                                 (long long)n, table[n]);
    }
    return LPLB_OK;
}

enum { MAX_TILE = 1 << 30 };

static int has_tiles(const lplb_plan_config *config) {
    return config->tile > 1 || config->activation > 0;
}

static lplb_status check_objective(const lplb_plan_config *config) {
    if ((unsigned)config->objective > LPLB_OBJECTIVE_ACTIVE)
        return LPLB_FAIL(LPLB_INVALID, "objective %d does not exist", (int)config->objective);
    if (config->tile < 0 || config->tile > MAX_TILE || config->activation < 0 ||
        config->activation > MAX_TILE)
        return LPLB_FAIL(LPLB_RANGE, "tile %lld, activation %lld; from 0 to %d are supported",
                         (long long)config->tile, (long long)config->activation, MAX_TILE);
    if (has_tiles(config) && config->objective != LPLB_OBJECTIVE_TOKENS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "tile and activation need the tokens objective");
    if (has_tiles(config) && config->solver != LPLB_SOLVER_EXACT)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "tile and activation need the exact solver, not %s",
                         lplb_solver_name(config->solver));
    if (has_tiles(config) && config->tolerance != 0)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "a tolerance does not go with tile or activation");
    return LPLB_OK;
}

static lplb_status check_config(const lplb_plan_config *config) {
    if (config->struct_size != sizeof(lplb_plan_config))
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_plan_config))",
                         config->struct_size, sizeof(lplb_plan_config));
    LPLB_TRY(lplb__check_hosts(&config->hosts));
    LPLB_TRY(lplb__check_speed(config->speed, config->hosts.ranks));
    LPLB_TRY(check_cost(config));
    LPLB_TRY(check_objective(config));
    if ((unsigned)config->solver > LPLB_SOLVER_BALANCE)
        return LPLB_FAIL(LPLB_INVALID, "solver %d does not exist", (int)config->solver);
    if (config->solver != LPLB_SOLVER_EXACT && config->objective != LPLB_OBJECTIVE_TOKENS)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "only the exact solver has other objectives than tokens");
    if (config->tolerance != 0 && !(config->tolerance >= 1 && config->tolerance <= 1e4))
        return LPLB_FAIL(LPLB_RANGE, "tolerance %g; 0 for none, or from 1 to 10000",
                         config->tolerance);
    if (config->tolerance != 0 && config->objective != LPLB_OBJECTIVE_TOKENS)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "a tolerance needs the tokens objective");
    return LPLB_OK;
}

static void reserve_all(const lplb_plan_config *c, lplb__arena *arena) {
    int64_t G = c->hosts.ranks, E = c->hosts.experts, n = c->hosts.offset[E];
    lplb__arena_reserve(arena, 1, sizeof(lplb_planner));
    lplb__arena_reserve(arena, E + 1, sizeof(int64_t));
    lplb__arena_reserve(arena, n, sizeof(int32_t));
    lplb__arena_reserve(arena, G, sizeof(int64_t));
    lplb__arena_reserve(arena, G, sizeof(int32_t));
    if (c->cost) lplb__arena_reserve(arena, G * c->cost_entries, sizeof(double));
    for (int i = 0; i < 3; i++) lplb__arena_reserve(arena, G, sizeof(int64_t));
    lplb__baselines_reserve(&c->hosts, arena);
    if (c->solver == LPLB_SOLVER_EXACT) {
        lplb__exact_reserve(&c->hosts, arena);
        lplb__locality_reserve(c, arena);
    }
    if (c->objective == LPLB_OBJECTIVE_ACTIVE) lplb__active_reserve(&c->hosts, arena);
    if (has_tiles(c)) lplb__tiles_reserve(&c->hosts, arena);
    if (c->solver == LPLB_SOLVER_IPM) lplb__ipm_reserve(c, arena);
}

static void *copied(lplb__arena *arena, const void *from, int64_t count, size_t item_bytes) {
    void *to = lplb__arena_take(arena, count, item_bytes);
    if (from && count) memcpy(to, from, (size_t)count * item_bytes);
    return from ? to : NULL;
}

static lplb_status build(lplb_planner *p, lplb__arena *arena) {
    lplb_plan_config *c = &p->config;
    int64_t G = c->hosts.ranks, E = c->hosts.experts, n = c->hosts.offset[E];
    c->hosts.offset = copied(arena, c->hosts.offset, E + 1, sizeof(int64_t));
    c->hosts.rank = copied(arena, c->hosts.rank, n, sizeof(int32_t));
    c->speed = copied(arena, c->speed, G, sizeof(int64_t));
    c->node = copied(arena, c->node, G, sizeof(int32_t));
    if (c->cost) c->cost = copied(arena, c->cost, G * c->cost_entries, sizeof(double));
    p->zero = lplb__arena_take(arena, G, sizeof(int64_t));
    p->loads = lplb__arena_take(arena, G, sizeof(int64_t));
    p->capacity = lplb__arena_take(arena, G, sizeof(int64_t));
    for (int64_t r = 0; r < G; r++) p->total_speed += c->speed ? c->speed[r] : 1;
    p->tolerance_fixed = llround(c->tolerance * (1 << TOLERANCE_BITS));
    lplb__baselines_init(&p->baselines, &c->hosts, arena);
    if (c->solver == LPLB_SOLVER_EXACT) {
        const int64_t *speed = c->objective == LPLB_OBJECTIVE_ACTIVE ? NULL : c->speed;
        LPLB_TRY(lplb__exact_init(&p->exact, &c->hosts, speed, c->cost, c->cost_entries, arena));
        LPLB_TRY(lplb__locality_init(&p->locality, c, arena));
    }
    if (c->objective == LPLB_OBJECTIVE_ACTIVE)
        lplb__active_init(&p->active, &c->hosts, p->exact, &p->baselines, arena);
    if (has_tiles(c)) lplb__tiles_init(&p->tiles, c, p->exact, &p->baselines, arena);
    if (c->solver == LPLB_SOLVER_IPM) LPLB_TRY(lplb__ipm_init(&p->ipm, c, arena));
    return LPLB_OK;
}

lplb_status lplb_planner_create(const lplb_plan_config *config, lplb_planner **out) {
    *out = NULL;
    LPLB_TRY(check_config(config));
    lplb__arena arena = {0};
    reserve_all(config, &arena);
    LPLB_TRY(lplb__arena_create(&arena));
    lplb_planner *p = lplb__arena_take(&arena, 1, sizeof(lplb_planner));
    p->config = *config;
    lplb_status status = build(p, &arena);
    if (status != LPLB_OK) {
        lplb__arena_destroy(&arena);
        return status;
    }
    p->arena = arena;
    p->magic = PLANNER_MAGIC;
    *out = p;
    return LPLB_OK;
}

void lplb_planner_destroy(lplb_planner *planner) {
    if (!planner || planner->magic != PLANNER_MAGIC) return;
    planner->magic = 0;
    lplb__arena arena = planner->arena; /* the planner lives inside it */
    lplb__arena_destroy(&arena);
}

/* ---- one batch ---- */

/* Adds n counts to *total; LPLB_RANGE for negative ones. Two halves, so that nothing overflows and
 * the loop vectorises. */
static lplb_status add_counts(const int64_t *count, int64_t n, const char *what, __int128 *total) {
    int64_t signs = 0, high = 0, low = 0;
    for (int64_t i = 0; i < n; i++) {
        signs |= count[i];
        high += count[i] >> 31;
        low += count[i] & 0x7fffffff;
    }
    *total += ((__int128)high * ((int64_t)1 << 31)) + low;
    if (signs >= 0) return LPLB_OK;
    for (int64_t i = 0; i < n; i++)
        if (count[i] < 0)
            return LPLB_FAIL(LPLB_RANGE, "%s[%lld] is %lld; counts cannot be negative", what,
                             (long long)i, (long long)count[i]);
    return LPLB_OK;
}

lplb_status lplb__check_input(const lplb_hosts *hosts, const lplb_plan_input *input,
                              int64_t *total_tokens) {
    __int128 total = 0;
    LPLB_TRY(add_counts(input->tokens, hosts->experts, "tokens", &total));
    if (input->fixed) LPLB_TRY(add_counts(input->fixed, hosts->ranks, "fixed", &total));
    if (total > LPLB_MAX_TOKENS)
        return LPLB_FAIL(LPLB_OVERFLOW, "the tokens of one problem exceed 2^62");
    *total_tokens = (int64_t)total;
    if (!input->sources) return LPLB_OK;
    for (int64_t e = 0; e < hosts->experts; e++) {
        __int128 sum = 0;
        for (int64_t r = 0; r < hosts->ranks; r++) {
            int64_t count = input->sources[r * hosts->experts + e];
            if (count < 0)
                return LPLB_FAIL(LPLB_RANGE,
                                 "sources[%lld][%lld] is %lld; counts cannot be "
                                 "negative",
                                 (long long)r, (long long)e, (long long)count);
            sum += count;
        }
        if (sum != input->tokens[e])
            return LPLB_FAIL(LPLB_INVALID,
                             "the sources of expert %lld add up to %lld, its tokens "
                             "are %lld",
                             (long long)e, (long long)sum, (long long)input->tokens[e]);
    }
    return LPLB_OK;
}

static void sum_up(const lplb_planner *p, const lplb__batch *batch, lplb_plan *plan,
                   int64_t *loads) {
    const lplb_hosts *hosts = batch->hosts;
    int64_t n = hosts->offset[hosts->experts];
    memcpy(loads, batch->fixed, sizeof(int64_t) * (size_t)hosts->ranks);
    for (int64_t i = 0; i < n; i++) loads[hosts->rank[i]] += plan->split[i];
    plan->max_load = 0;
    int64_t top_load = 0, top_speed = 1;
    for (int32_t r = 0; r < hosts->ranks; r++) {
        int64_t speed = batch->speed ? batch->speed[r] : 1;
        if (loads[r] > plan->max_load) plan->max_load = loads[r];
        if ((__int128)loads[r] * top_speed > (__int128)top_load * speed) {
            top_load = loads[r];
            top_speed = speed;
        }
    }
    if (p->active || p->tiles) return; /* they have set the objective */
    plan->objective = (double)top_load / (double)top_speed;
    if (p->config.objective != LPLB_OBJECTIVE_COST) return;
    for (int32_t r = 0; r < hosts->ranks; r++) {
        double time = p->config.cost[r * p->config.cost_entries + loads[r]];
        if (r == 0 || time > plan->objective) plan->objective = time;
    }
}

/* max load / speed <= tolerance * total / total speed, in integers. */
static bool is_tolerable(const lplb_planner *p, const int64_t *loads, int64_t total) {
    for (int32_t r = 0; r < p->config.hosts.ranks; r++) {
        int64_t speed = p->config.speed ? p->config.speed[r] : 1;
        __int128 have = ((__int128)loads[r] * p->total_speed) << TOLERANCE_BITS;
        /* total * speed * tolerance would take more than 127 bits: divide by the tolerance */
        __int128 allowed = (__int128)total * speed;
        if (have / p->tolerance_fixed > allowed ||
            (have / p->tolerance_fixed == allowed && have % p->tolerance_fixed > 0))
            return false;
    }
    return true;
}

static lplb_status solve_with(lplb_planner *p, const lplb__batch *batch, lplb_plan *plan) {
    switch (p->config.solver) {
    case LPLB_SOLVER_EXACT: {
        if (p->active) return lplb__active_solve(p->active, batch, plan);
        if (p->tiles) return lplb__tiles_solve(p->tiles, batch, plan);
        LPLB_TRY(lplb__exact_solve(p->exact, batch, plan, batch->sources ? p->capacity : NULL));
        if (batch->sources)
            LPLB_TRY(lplb__locality_solve(p->locality, batch, p->capacity, plan->split));
        return LPLB_OK;
    }
    case LPLB_SOLVER_IPM: return lplb__ipm_solve(p->ipm, batch, plan);
    default:
        lplb__baselines_solve(&p->baselines, p->config.solver, batch, plan->split, &plan->sweeps);
        plan->outcome = LPLB_OUTCOME_FEASIBLE;
        return LPLB_OK;
    }
}

lplb_status lplb_plan_solve(lplb_planner *p, const lplb_plan_input *input, lplb_plan *plan) {
    if (!p || p->magic != PLANNER_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a planner, or one that was destroyed");
    int64_t total;
    LPLB_TRY(lplb__check_input(&p->config.hosts, input, &total));
    if (input->sources && p->config.solver != LPLB_SOLVER_EXACT)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "only the exact solver takes sources into account, not "
                         "%s",
                         lplb_solver_name(p->config.solver));
    if (input->sources && (p->active || p->tiles))
        return LPLB_FAIL(LPLB_UNSUPPORTED, "sources do not go with the active objective, tile or "
                                           "activation");
    lplb__batch batch = {.hosts = &p->config.hosts,
                         .speed = p->config.speed,
                         .node = p->config.node,
                         .tokens = input->tokens,
                         .fixed = input->fixed ? input->fixed : p->zero,
                         .sources = input->sources};
    int64_t *loads = plan->loads ? plan->loads : p->loads;
    plan->bound = -INFINITY;
    plan->sweeps = plan->augmentations = plan->restarts = plan->rejected = 0;
    plan->ipm_gap = 0;
    if (p->config.tolerance > 0) {
        lplb__baselines_solve(&p->baselines, LPLB_SOLVER_EVEN, &batch, plan->split, NULL);
        sum_up(p, &batch, plan, loads);
        if (is_tolerable(p, loads, total)) {
            plan->outcome = LPLB_OUTCOME_WITHIN_TOLERANCE;
            return LPLB_OK;
        }
    }
    LPLB_TRY(solve_with(p, &batch, plan));
    sum_up(p, &batch, plan, loads);
    return LPLB_OK;
}
