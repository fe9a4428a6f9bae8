/* Plans by quantised counts: a hash table with chains, and a list from the latest to the least
 * recently used. All memory is taken at creation. */
#include <lplb/tuning.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/pack.h"

static const uint64_t CACHE_MAGIC = 0x6c706c62636163u; /* "lplbcac" */

typedef struct entry {
    int64_t newer, older, next; /* entries; -1 = none. next: in its chain */
    uint64_t hash;
} entry;

struct lplb_plan_cache {
    uint64_t magic;
    lplb__arena arena;
    int32_t experts, ranks;
    int64_t hosts, capacity, quantum, buckets;
    int64_t *offset; /* [E+1] */
    int32_t *rank;   /* [hosts] */
    int64_t *bucket; /* [buckets] first entry, -1 = none */
    entry *entry;    /* [capacity] */
    int64_t *tokens; /* [capacity][E] as they were planned */
    int64_t *split;  /* [capacity][hosts] */
    int64_t *key;    /* [E] quantised counts of the lookup */
    int64_t *loads;  /* [G] when the caller does not want them */
    int64_t newest, oldest;
    lplb_plan_cache_stats stats;
};

static void *block(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (arena->base) return lplb__arena_take(arena, count, item_bytes);
    lplb__arena_reserve(arena, count, item_bytes);
    return NULL;
}

static void lay_out(lplb_plan_cache *c) {
    c->offset = block(&c->arena, c->experts + 1, sizeof *c->offset);
    c->rank = block(&c->arena, c->hosts, sizeof *c->rank);
    c->bucket = block(&c->arena, c->buckets, sizeof *c->bucket);
    c->entry = block(&c->arena, c->capacity, sizeof *c->entry);
    c->tokens = block(&c->arena, c->capacity * c->experts, sizeof *c->tokens);
    c->split = block(&c->arena, c->capacity * c->hosts, sizeof *c->split);
    c->key = block(&c->arena, c->experts, sizeof *c->key);
    c->loads = block(&c->arena, c->ranks, sizeof *c->loads);
}

lplb_status lplb_plan_cache_create(const lplb_plan_cache_config *config, lplb_plan_cache **out) {
    *out = NULL;
    if (config->struct_size != sizeof *config)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be sizeof(lplb_plan_cache_config) = %zu",
                         config->struct_size, sizeof *config);
    if (config->capacity < 1 || config->capacity > 1 << 20 || config->quantum < 1)
        return LPLB_FAIL(LPLB_RANGE,
                         "capacity %lld must be from 1 to 1048576, quantum %lld at "
                         "least 1",
                         (long long)config->capacity, (long long)config->quantum);
    if (config->hosts.experts < 1 || config->hosts.ranks < 1)
        return LPLB_FAIL(LPLB_INVALID, "a cache needs hosts with experts and ranks");
    lplb_plan_cache *c;
    LPLB_TRY(LPLB_CALLOC(c, 1));
    c->magic = CACHE_MAGIC;
    c->experts = config->hosts.experts;
    c->ranks = config->hosts.ranks;
    c->hosts = config->hosts.offset[c->experts];
    c->capacity = config->capacity;
    c->quantum = config->quantum;
    for (c->buckets = 16; c->buckets < 2 * c->capacity;) c->buckets *= 2;
    lay_out(c);
    lplb_status status = lplb__arena_create(&c->arena);
    if (status != LPLB_OK) {
        lplb__free(c);
        return status;
    }
    lay_out(c);
    memcpy(c->offset, config->hosts.offset, (size_t)(c->experts + 1) * sizeof *c->offset);
    memcpy(c->rank, config->hosts.rank, (size_t)c->hosts * sizeof *c->rank);
    for (int64_t i = 0; i < c->buckets; i++) c->bucket[i] = -1;
    c->newest = c->oldest = -1;
    *out = c;
    return LPLB_OK;
}

void lplb_plan_cache_destroy(lplb_plan_cache *cache) {
    if (!cache) return;
    lplb__arena_destroy(&cache->arena);
    cache->magic = 0;
    lplb__free(cache);
}

/* ---- the table ---- */

static int64_t quantised(const lplb_plan_cache *c, int64_t tokens) {
    return tokens / c->quantum + (tokens % c->quantum >= (c->quantum + 1) / 2);
}

static bool same_key(const lplb_plan_cache *c, int64_t at) {
    const int64_t *tokens = c->tokens + at * c->experts;
    for (int32_t e = 0; e < c->experts; e++)
        if (quantised(c, tokens[e]) != c->key[e]) return false;
    return true;
}

static int64_t find(const lplb_plan_cache *c, uint64_t hash) {
    int64_t at = c->bucket[hash & (uint64_t)(c->buckets - 1)];
    while (at >= 0 && (c->entry[at].hash != hash || !same_key(c, at))) at = c->entry[at].next;
    return at;
}

static void unlink_use(lplb_plan_cache *c, int64_t at) {
    entry *e = &c->entry[at];
    if (e->newer >= 0) c->entry[e->newer].older = e->older;
    else c->newest = e->older;
    if (e->older >= 0) c->entry[e->older].newer = e->newer;
    else c->oldest = e->newer;
}

static void link_newest(lplb_plan_cache *c, int64_t at) {
    c->entry[at].newer = -1;
    c->entry[at].older = c->newest;
    if (c->newest >= 0) c->entry[c->newest].newer = at;
    else c->oldest = at;
    c->newest = at;
}

static void unchain(lplb_plan_cache *c, int64_t at) {
    int64_t *link = &c->bucket[c->entry[at].hash & (uint64_t)(c->buckets - 1)];
    while (*link != at) link = &c->entry[*link].next;
    *link = c->entry[at].next;
}

static void insert(lplb_plan_cache *c, uint64_t hash, const int64_t *tokens, const int64_t *split) {
    int64_t at = c->stats.plans;
    if (at == c->capacity) {
        at = c->oldest;
        unlink_use(c, at);
        unchain(c, at);
        c->stats.evictions++;
    } else {
        c->stats.plans++;
    }
    int64_t *first = &c->bucket[hash & (uint64_t)(c->buckets - 1)];
    c->entry[at] = (entry){.next = *first, .hash = hash};
    *first = at;
    link_newest(c, at);
    memcpy(c->tokens + at * c->experts, tokens, (size_t)c->experts * sizeof *tokens);
    memcpy(c->split + at * c->hosts, split, (size_t)c->hosts * sizeof *split);
}

/* ---- answers ---- */

/* Shares of `total` in proportion to part / sum, floors first, then one each to the largest
 * remainders, ties to the earlier host; with nothing to go by, evenly. */
static void scale_row(const int64_t *part, int64_t n, int64_t sum, int64_t total, int64_t *out) {
    int64_t given = 0;
    for (int64_t h = 0; h < n; h++) {
        out[h] = sum > 0 ? (int64_t)((__int128)part[h] * total / sum) : total / n;
        given += out[h];
    }
    for (; given < total; given++) {
        int64_t best = -1;
        __int128 best_left = -1;
        for (int64_t h = 0; h < n; h++) {
            __int128 left = sum > 0 ? (__int128)part[h] * total - (__int128)out[h] * sum
                                    : (__int128)total - (__int128)out[h] * n;
            if (left > best_left) best = h, best_left = left;
        }
        out[best]++;
    }
}

static void answer(lplb_plan_cache *c, int64_t at, const int64_t *tokens, lplb_plan *plan) {
    const int64_t *planned = c->tokens + at * c->experts, *split = c->split + at * c->hosts;
    int64_t *loads = plan->loads ? plan->loads : c->loads;
    bool exact = !memcmp(planned, tokens, (size_t)c->experts * sizeof *tokens);
    c->stats.hits++;
    c->stats.exact_hits += exact;
    memset(loads, 0, (size_t)c->ranks * sizeof *loads);
    for (int32_t e = 0; e < c->experts; e++) {
        int64_t row = c->offset[e], n = c->offset[e + 1] - row;
        if (planned[e] == tokens[e])
            memcpy(plan->split + row, split + row, (size_t)n * sizeof *split);
        else scale_row(split + row, n, planned[e], tokens[e], plan->split + row);
        for (int64_t h = row; h < row + n; h++) loads[c->rank[h]] += plan->split[h];
    }
    plan->max_load = 0;
    for (int32_t r = 0; r < c->ranks; r++)
        if (loads[r] > plan->max_load) plan->max_load = loads[r];
    plan->objective = (double)plan->max_load;
    plan->bound = -INFINITY;
    plan->outcome = LPLB_OUTCOME_FEASIBLE;
    plan->sweeps = plan->augmentations = plan->restarts = plan->rejected = 0;
    plan->ipm_gap = 0;
}

static lplb_status make_key(lplb_plan_cache *c, const lplb_plan_input *input, uint64_t *hash) {
    if (c->magic != CACHE_MAGIC) return LPLB_FAIL(LPLB_INVALID, "not a plan cache, or destroyed");
    if (input->fixed || input->sources)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "a plan cache knows no fixed tokens and no sources");
    int64_t total = 0;
    for (int32_t e = 0; e < c->experts; e++) {
        if (input->tokens[e] < 0)
            return LPLB_FAIL(LPLB_RANGE, "expert %d: %lld tokens", e, (long long)input->tokens[e]);
        if (input->tokens[e] > LPLB_MAX_TOKENS - total)
            return LPLB_FAIL(LPLB_OVERFLOW, "more than 2^62 tokens in all");
        total += input->tokens[e];
        c->key[e] = quantised(c, input->tokens[e]);
    }
    *hash = lplb__hash(c->key, (size_t)c->experts * sizeof *c->key, 0);
    return LPLB_OK;
}

lplb_status lplb_plan_cache_solve(lplb_plan_cache *c, lplb_planner *planner,
                                  const lplb_plan_input *input, lplb_plan *plan, int32_t *hit) {
    uint64_t hash = 0;
    if (hit) *hit = 0;
    LPLB_TRY(make_key(c, input, &hash));
    c->stats.lookups++;
    int64_t at = find(c, hash);
    if (at >= 0) {
        unlink_use(c, at);
        link_newest(c, at);
        answer(c, at, input->tokens, plan);
        if (hit) *hit = 1;
        return LPLB_OK;
    }
    LPLB_TRY(lplb_plan_solve(planner, input, plan));
    insert(c, hash, input->tokens, plan->split);
    return LPLB_OK;
}

void lplb_plan_cache_get_stats(const lplb_plan_cache *cache, lplb_plan_cache_stats *stats) {
    *stats = cache->stats;
}
