/* lplb_plan_bound: the fractional optimum and its smallest bottleneck, in exact integers.
 *
 * Newton's method (Dinkelbach, 1967) on t = W(S) / s(S). At t = p / q every token counts q units
 * and rank r holds p * s_r units, so flows stay integral (128 bits). Each step augments from the
 * integral optimum, which is at most a token a rank away; a stuck set is the next S. At t* the
 * maximising sets are the closed sets of full ranks in the residual graph, and the smallest ones
 * are its strongly connected components that nothing leaves (Picard and Queyranne, 1980). */
#include <string.h>

#include "base/bits.h"
#include "plan/plan.h"

typedef __int128 units;

typedef struct flow {
    const lplb_hosts *hosts;
    const int64_t *speed; /* [G] or NULL */
    const lplb_plan_input *input;
    lplb__arena arena;
    lplb__exact *exact;
    int64_t *zero, *split;       /* [G], [copies]: the integral optimum */
    units *x;                    /* [copies] */
    units *load, *capacity;      /* [G] */
    int64_t *row;                /* [G+1] copies of each rank: */
    int64_t *copy;               /* [copies] index into x */
    int32_t *copy_expert;        /* [copies] */
    int64_t *given, *received;   /* [G] copies on the path to a rank, given = -1 at roots */
    int32_t *queue;              /* [G] */
    uint8_t *reached, *expanded; /* [G], [E] */
    uint8_t *settled;            /* [G] */
    int64_t *best;               /* [G] members of the smallest set so far */
} flow;

static int64_t speed_of(const flow *f, int64_t r) { return f->speed ? f->speed[r] : 1; }

static lplb_status open_flow(flow *f) {
    int64_t G = f->hosts->ranks, E = f->hosts->experts, n = f->hosts->offset[E];
    const struct {
        void *field;
        int64_t count;
        size_t bytes;
    } parts[] = {{&f->zero, G, 8},     {&f->split, n, 8},       {&f->x, n, 16},
                 {&f->load, G, 16},    {&f->capacity, G, 16},   {&f->row, G + 1, 8},
                 {&f->copy, n, 8},     {&f->copy_expert, n, 4}, {&f->given, G, 8},
                 {&f->received, G, 8}, {&f->queue, G, 4},       {&f->reached, G, 1},
                 {&f->expanded, E, 1}, {&f->settled, G, 1},     {&f->best, G, 8}};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    for (int i = 0; i < PARTS; i++) lplb__arena_reserve(&f->arena, parts[i].count, parts[i].bytes);
    lplb__exact_reserve(f->hosts, &f->arena);
    LPLB_TRY(lplb__arena_create(&f->arena));
    for (int i = 0; i < PARTS; i++) {
        void *block = lplb__arena_take(&f->arena, parts[i].count, parts[i].bytes);
        memcpy(parts[i].field, &block, sizeof block);
    }
    for (int64_t i = 0; i < n; i++) f->row[f->hosts->rank[i] + 1]++;
    for (int64_t r = 0; r < G; r++) f->row[r + 1] += f->row[r];
    for (int32_t e = 0; e < E; e++)
        for (int64_t i = f->hosts->offset[e]; i < f->hosts->offset[e + 1]; i++) {
            f->copy_expert[i] = e;
            f->copy[f->row[f->hosts->rank[i]] + f->given[f->hosts->rank[i]]++] = i;
        }
    return lplb__exact_init(&f->exact, f->hosts, f->speed, NULL, 0, &f->arena);
}

/* State at t = p / q: the integral optimum in units. */
static void load_units(flow *f, int64_t p, int64_t q) {
    int64_t n = f->hosts->offset[f->hosts->experts];
    for (int64_t r = 0; r < f->hosts->ranks; r++) {
        f->load[r] = (units)(f->input->fixed ? f->input->fixed[r] : 0) * q;
        f->capacity[r] = (units)p * speed_of(f, r);
    }
    for (int64_t i = 0; i < n; i++) {
        f->x[i] = (units)f->split[i] * q;
        f->load[f->hosts->rank[i]] += f->x[i];
    }
}

/* Adds what the tokens of rank u can reach to the queue's end; returns the new end. */
static int64_t expand(flow *f, int64_t u, int64_t end) {
    for (int64_t i = f->row[u]; i < f->row[u + 1]; i++) {
        int64_t copy = f->copy[i];
        int32_t e = f->copy_expert[copy];
        if (f->x[copy] == 0 || f->expanded[e]) continue;
        f->expanded[e] = 1;
        for (int64_t j = f->hosts->offset[e]; j < f->hosts->offset[e + 1]; j++) {
            int32_t v = f->hosts->rank[j];
            if (f->reached[v]) continue;
            f->reached[v] = 1;
            f->given[v] = copy;
            f->received[v] = j;
            f->queue[end++] = v;
        }
    }
    return end;
}

static void push(flow *f, int64_t target) {
    units amount = f->capacity[target] - f->load[target];
    int64_t v = target;
    for (; f->given[v] >= 0; v = f->hosts->rank[f->given[v]])
        if (f->x[f->given[v]] < amount) amount = f->x[f->given[v]];
    if (f->load[v] - f->capacity[v] < amount) amount = f->load[v] - f->capacity[v];
    f->load[v] -= amount;
    f->load[target] += amount;
    for (v = target; f->given[v] >= 0; v = f->hosts->rank[f->given[v]]) {
        f->x[f->given[v]] -= amount;
        f->x[f->received[v]] += amount;
    }
}

static void clear_reached(flow *f) {
    memset(f->reached, 0, (size_t)f->hosts->ranks);
    memset(f->expanded, 0, (size_t)f->hosts->experts);
}

/* True when all ranks fit; false when stuck, reached being the set that cannot. */
static bool augment(flow *f) {
    for (;;) {
        int64_t end = 0, target = -1;
        clear_reached(f);
        for (int32_t r = 0; r < f->hosts->ranks; r++)
            if (f->load[r] > f->capacity[r]) {
                f->reached[r] = 1;
                f->given[r] = -1;
                f->queue[end++] = r;
            }
        if (end == 0) return true;
        for (int64_t i = 0; i < end && target < 0; i++) {
            int64_t before = end;
            end = expand(f, f->queue[i], end);
            for (int64_t j = before; j < end && target < 0; j++)
                if (f->load[f->queue[j]] < f->capacity[f->queue[j]]) target = f->queue[j];
        }
        if (target < 0) return false;
        push(f, target);
    }
}

/* W and s of the reached set, from the input alone. */
static void measure_reached(const flow *f, int64_t *tokens, int64_t *speeds) {
    *tokens = *speeds = 0;
    for (int32_t r = 0; r < f->hosts->ranks; r++)
        if (f->reached[r]) {
            *tokens += f->input->fixed ? f->input->fixed[r] : 0;
            *speeds += speed_of(f, r);
        }
    for (int32_t e = 0; e < f->hosts->experts; e++) {
        bool inside = true;
        for (int64_t i = f->hosts->offset[e]; i < f->hosts->offset[e + 1] && inside; i++)
            inside = f->reached[f->hosts->rank[i]];
        if (inside) *tokens += f->input->tokens[e];
    }
}

/* Ranks whose tokens reach v go to settled (within reached); v included. */
static void settle_ancestors(flow *f, int32_t v) {
    int64_t end = 0;
    memset(f->expanded, 0, (size_t)f->hosts->experts);
    f->settled[v] = 1;
    f->queue[end++] = v;
    for (int64_t i = 0; i < end; i++)
        for (int64_t k = f->row[f->queue[i]]; k < f->row[f->queue[i] + 1]; k++) {
            int32_t e = f->copy_expert[f->copy[k]];
            if (f->expanded[e]) continue;
            f->expanded[e] = 1;
            for (int64_t j = f->hosts->offset[e]; j < f->hosts->offset[e + 1]; j++) {
                int32_t u = f->hosts->rank[j];
                if (f->x[j] == 0 || f->settled[u]) continue;
                f->settled[u] = 1;
                f->queue[end++] = u;
            }
        }
}

/* reached = what v reaches; false if that includes a rank with room. Stops at `limit` members. */
static bool closed_set_of(flow *f, int32_t v, int64_t limit, int64_t *members) {
    int64_t end = 0;
    clear_reached(f);
    f->reached[v] = 1;
    f->queue[end++] = v;
    for (int64_t i = 0; i < end; i++) {
        if (f->load[f->queue[i]] < f->capacity[f->queue[i]]) return false;
        end = expand(f, f->queue[i], end);
        if (end > limit) return false;
    }
    *members = end;
    return true;
}

static bool lower_than_best(const flow *f) {
    for (int32_t r = 0; r < f->hosts->ranks; r++)
        if ((int64_t)f->reached[r] != f->best[r]) return f->reached[r];
    return false;
}

static void find_bottleneck(flow *f, lplb_bound *bound, uint64_t *bottleneck) {
    int32_t G = f->hosts->ranks;
    int64_t smallest = G, members;
    bool found = false;
    /* Whoever reaches a rank with room is in no maximising set. */
    for (int32_t r = 0; r < G; r++)
        if (f->load[r] < f->capacity[r] && !f->settled[r]) settle_ancestors(f, r);
    for (int32_t r = 0; r < G; r++) {
        if (f->settled[r] || !closed_set_of(f, r, smallest, &members)) continue;
        if (!found || members < smallest || lower_than_best(f)) {
            found = true;
            smallest = members;
            for (int32_t i = 0; i < G; i++) f->best[i] = f->reached[i];
        }
        settle_ancestors(f, r); /* the rest of its component, and what only leads to it */
    }
    bound->bottleneck_ranks = (int32_t)smallest;
    for (int32_t r = 0; r < G; r++) {
        f->reached[r] = (uint8_t)f->best[r];
        if (bottleneck && f->best[r]) lplb__bit_set(bottleneck, r);
    }
    int64_t speeds;
    measure_reached(f, &bound->bottleneck_tokens, &speeds);
}

static lplb_status find_bound(flow *f, lplb_bound *bound, uint64_t *bottleneck) {
    lplb_plan plan = {.split = f->split};
    lplb__batch batch = {.hosts = f->hosts,
                         .speed = f->speed,
                         .tokens = f->input->tokens,
                         .fixed = f->input->fixed ? f->input->fixed : f->zero};
    LPLB_TRY(lplb__exact_solve(f->exact, &batch, &plan, NULL));
    lplb__exact_limit(f->exact, &bound->integer, &bound->integer_bound);
    int64_t p, q;
    memset(f->reached, 1, (size_t)f->hosts->ranks);
    do {
        measure_reached(f, &p, &q);
        load_units(f, p, q);
    } while (!augment(f));
    bound->fractional = (lplb_fraction){p, q};
    if (p == 0) return LPLB_OK;
    find_bottleneck(f, bound, bottleneck);
    return LPLB_OK;
}

lplb_status lplb_plan_bound(const lplb_hosts *hosts, const int64_t *speed,
                            const lplb_plan_input *input, lplb_bound *bound, uint64_t *bottleneck) {
    int64_t total;
    memset(bound, 0, sizeof *bound);
    LPLB_TRY(lplb__check_hosts(hosts));
    LPLB_TRY(lplb__check_speed(speed, hosts->ranks));
    LPLB_TRY(lplb__check_input(hosts, input, &total));
    if (bottleneck) memset(bottleneck, 0, sizeof(uint64_t) * (size_t)lplb__bit_words(hosts->ranks));
    flow f = {.hosts = hosts, .speed = speed, .input = input};
    lplb_status status = open_flow(&f);
    if (status == LPLB_OK) status = find_bound(&f, bound, bottleneck);
    lplb__arena_destroy(&f.arena);
    return status;
}
