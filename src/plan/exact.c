/* The exact planner: the integral min-max split for any placement.
 *
 * The ranks fall into components that share no expert; each is solved on its own. Canonical rule
 * (docs/math.md, "One answer"), which the GPU follows step by step:
 *   1. Start. The tokens of an expert with two or more hosts ("movable") lie evenly on its hosts,
 * the odd ones on the lower ranks.
 *   2. Sweep. Movable experts, by (colour, expert id), level their hosts; experts of one colour
 *      share no rank. One of two hosts, with equal speeds, moves 5/8 of the difference of their
 *      loads, a quarter more than would make them equal (over-relaxation, Young 1954). All others
 *      take their tokens back and pour them so that the lowest loads rise first, odd tokens to the
 *      lower ranks (block coordinate descent on the sum of squares). Until a sweep changes nothing,
 *      or no rank exceeds the first lower bound (mean and heaviest fixed load), or
 *      LPLB__MAX_SWEEPS.
 *   3. Bound. The least capacity t* is found by Newton's method (Dinkelbach, 1967) on the sets at
 *      which step 4 gets stuck. t* is unique, so how it is found cannot change the answer.
 *   4. Augment. From the state after step 2, in phases: breadth-first levels from all ranks above
 *      their capacity at t*, along experts that have tokens on a reached rank. The parent of a rank
 *      is the lowest rank of the level before that reaches it, by the first such expert in the
 * order of step 2. In the first level where ranks have room, each of them, lowest first, receives
 * as much as its path from its root still allows. A phase without room means that the reached set S
 * keeps all its tokens: load(S) = W(S), which is the certificate (max-flow/min-cut). Capacities are
 * integers, so are all the moves. */
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "plan/exact_layout.h"
#include "plan/limits.h"

typedef lplb__movable movable;
typedef lplb__component component;

struct lplb__exact {
    const lplb_hosts *hosts;
    lplb__limits limits;
    int32_t n_components, n_movables, n_singles, words;
    component *component; /* [n_components] */
    movable *movable;     /* [n_movables] by component, colour, expert */
    /* slots of movable experts */
    int32_t *slot_rank;    /* [slots] position */
    int64_t *slot_split;   /* [slots] index into the caller's split */
    int32_t *slot_movable; /* [slots] */
    int32_t *rank_id;      /* [G] rank at each position */
    int32_t *rank_slots;   /* [G+1] row starts of rank_slot */
    int32_t *rank_slot;    /* [slots] slots of each rank in movable order */
    /* experts with one host */
    int32_t *single_expert, *single_rank; /* [n_singles] rank = position */
    int64_t *single_split;                /* [n_singles] */
    /* per batch */
    int64_t *weight;                    /* [n_movables] */
    int64_t *x, *x_saved;               /* [slots] */
    int64_t *load, *load_saved;         /* [G] */
    int64_t *capacity;                  /* [G] */
    int64_t *level;                     /* [G] hosts' loads without the expert being poured */
    int32_t *parent_slot, *parent_rank; /* [G] */
    int32_t *expanded;                  /* [n_movables] stamp of the search that opened it */
    int32_t stamp;
    uint64_t *visited, *frontier, *next; /* bit sets over positions */
    uint64_t *candidate, *proof;         /* the set behind this component's, the whole's bound */
    lplb__limit limit;                   /* the last batch's t* */
    /* set-up only */
    int32_t *root, *position; /* [G] */
};

/* ---- set up ---- */

void lplb__exact_reserve(const lplb_hosts *hosts, lplb__arena *arena) {
    int64_t G = hosts->ranks, E = hosts->experts, n = hosts->offset[E];
    lplb__arena_reserve(arena, 1, sizeof(lplb__exact));
    lplb__arena_reserve(arena, G, sizeof(component));
    lplb__arena_reserve(arena, E, sizeof(movable));
    for (int i = 0; i < 3; i++) lplb__arena_reserve(arena, n, sizeof(int32_t));
    for (int i = 0; i < 3; i++) lplb__arena_reserve(arena, n, sizeof(int64_t));
    for (int i = 0; i < 6; i++) lplb__arena_reserve(arena, G + 1, sizeof(int32_t));
    for (int i = 0; i < 3; i++) lplb__arena_reserve(arena, E, sizeof(int32_t));
    for (int i = 0; i < 2; i++) lplb__arena_reserve(arena, E, sizeof(int64_t));
    for (int i = 0; i < 4; i++) lplb__arena_reserve(arena, G, sizeof(int64_t));
    for (int i = 0; i < 5; i++) lplb__arena_reserve(arena, lplb__bit_words(G), sizeof(uint64_t));
    lplb__limits_reserve(hosts, arena);
}

static void take_memory(lplb__exact *x, const lplb_hosts *hosts, lplb__arena *arena) {
    int64_t G = hosts->ranks, E = hosts->experts, n = hosts->offset[E];
    x->component = lplb__arena_take(arena, G, sizeof(component));
    x->movable = lplb__arena_take(arena, E, sizeof(movable));
    int32_t **slot32[] = {&x->slot_rank, &x->slot_movable, &x->rank_slot};
    for (int i = 0; i < 3; i++) *slot32[i] = lplb__arena_take(arena, n, sizeof(int32_t));
    int64_t **slot64[] = {&x->slot_split, &x->x, &x->x_saved};
    for (int i = 0; i < 3; i++) *slot64[i] = lplb__arena_take(arena, n, sizeof(int64_t));
    int32_t **rank32[] = {&x->rank_id,     &x->rank_slots, &x->parent_slot,
                          &x->parent_rank, &x->root,       &x->position};
    for (int i = 0; i < 6; i++) *rank32[i] = lplb__arena_take(arena, G + 1, sizeof(int32_t));
    int32_t **expert32[] = {&x->single_expert, &x->single_rank, &x->expanded};
    for (int i = 0; i < 3; i++) *expert32[i] = lplb__arena_take(arena, E, sizeof(int32_t));
    int64_t **expert64[] = {&x->single_split, &x->weight};
    for (int i = 0; i < 2; i++) *expert64[i] = lplb__arena_take(arena, E, sizeof(int64_t));
    int64_t **rank64[] = {&x->load, &x->load_saved, &x->capacity, &x->level};
    for (int i = 0; i < 4; i++) *rank64[i] = lplb__arena_take(arena, G, sizeof(int64_t));
    uint64_t **sets[] = {&x->visited, &x->frontier, &x->next, &x->candidate, &x->proof};
    x->words = (int32_t)lplb__bit_words(G);
    for (int i = 0; i < 5; i++) *sets[i] = lplb__arena_take(arena, x->words, sizeof(uint64_t));
}

static int32_t find_root(int32_t *parent, int32_t r) {
    while (parent[r] != r) {
        parent[r] = parent[parent[r]];
        r = parent[r];
    }
    return r;
}

/* Components by union-find, numbered by their lowest rank; positions by (component, rank). */
static void find_components(lplb__exact *x) {
    const lplb_hosts *hosts = x->hosts;
    int32_t G = hosts->ranks;
    for (int32_t r = 0; r < G; r++) x->root[r] = r;
    for (int32_t e = 0; e < hosts->experts; e++)
        for (int64_t i = hosts->offset[e] + 1; i < hosts->offset[e + 1]; i++) {
            int32_t a = find_root(x->root, hosts->rank[hosts->offset[e]]);
            int32_t b = find_root(x->root, hosts->rank[i]);
            if (a < b) x->root[b] = a;
            else x->root[a] = b;
        }
    int32_t *size = x->parent_rank, *number = x->parent_slot; /* free until the first batch */
    memset(size, 0, sizeof(int32_t) * (size_t)G);
    for (int32_t r = 0; r < G; r++) {
        int32_t root = find_root(x->root, r);
        if (root == r) number[r] = x->n_components++;
        size[number[root]]++;
    }
    for (int32_t c = 0, first = 0; c < x->n_components; c++) {
        x->component[c] = (component){.first_rank = first, .ranks = 0};
        first += size[c];
    }
    int32_t *component_of = size;
    for (int32_t r = 0; r < G; r++) component_of[r] = number[find_root(x->root, r)];
    for (int32_t r = 0; r < G; r++) {
        component *c = &x->component[component_of[r]];
        x->position[r] = c->first_rank + c->ranks++;
        x->rank_id[x->position[r]] = r;
        x->root[r] = component_of[r]; /* from here on: rank -> component */
    }
}

static int by_falling_hosts(const void *a, const void *b) {
    const movable *p = a, *q = b;
    if (p->hosts != q->hosts) return p->hosts > q->hosts ? -1 : 1;
    return p->expert < q->expert ? -1 : p->expert > q->expert;
}

static int by_component_colour(const void *a, const void *b) {
    const movable *p = a, *q = b;
    if (p->component != q->component) return p->component < q->component ? -1 : 1;
    if (p->colour != q->colour) return p->colour < q->colour ? -1 : 1;
    return p->expert < q->expert ? -1 : p->expert > q->expert;
}

/* Greedy colouring, experts with most hosts first: the lowest colour that no expert sharing a rank
 * has. An expert's host ranks are threaded through rank_slot rows in the order of colouring. */
static void colour_movables(lplb__exact *x) {
    const lplb_hosts *hosts = x->hosts;
    qsort(x->movable, (size_t)x->n_movables, sizeof(movable), by_falling_hosts);
    int32_t *used = x->expanded; /* colour -> last movable that must avoid it, plus one */
    int32_t *filled = x->parent_rank;
    memset(used, 0, sizeof(int32_t) * (size_t)hosts->experts);
    memset(filled, 0, sizeof(int32_t) * (size_t)hosts->ranks);
    for (int32_t m = 0; m < x->n_movables; m++) {
        movable *expert = &x->movable[m];
        const int32_t *rank = hosts->rank + hosts->offset[expert->expert];
        for (int32_t i = 0; i < expert->hosts; i++) {
            int32_t q = x->position[rank[i]];
            for (int32_t s = 0; s < filled[q]; s++)
                used[x->rank_slot[x->rank_slots[q] + s]] = m + 1;
        }
        int32_t colour = 0;
        while (used[colour] == m + 1) colour++;
        expert->colour = colour;
        for (int32_t i = 0; i < expert->hosts; i++) {
            int32_t q = x->position[rank[i]];
            x->rank_slot[x->rank_slots[q] + filled[q]++] = colour;
        }
    }
    memset(used, 0, sizeof(int32_t) * (size_t)hosts->experts);
    qsort(x->movable, (size_t)x->n_movables, sizeof(movable), by_component_colour);
}

/* Slots in movable order, hosts ascending; then the slots of each rank. */
static void lay_out_slots(lplb__exact *x) {
    const lplb_hosts *hosts = x->hosts;
    int32_t slots = 0;
    for (int32_t m = 0; m < x->n_movables; m++) {
        movable *expert = &x->movable[m];
        int64_t row = hosts->offset[expert->expert];
        expert->begin = slots;
        for (int32_t i = 0; i < expert->hosts; i++, slots++) {
            int32_t q = x->position[hosts->rank[row + i]];
            int32_t s = slots; /* insertion keeps the hosts ascending */
            for (; s > expert->begin && x->slot_rank[s - 1] > q; s--) {
                x->slot_rank[s] = x->slot_rank[s - 1];
                x->slot_split[s] = x->slot_split[s - 1];
            }
            x->slot_rank[s] = q;
            x->slot_split[s] = row + i;
            x->slot_movable[slots] = m;
        }
        component *c = &x->component[expert->component];
        if (!c->movables++) c->first_movable = m;
    }
    int32_t *filled = x->parent_rank;
    memset(filled, 0, sizeof(int32_t) * (size_t)hosts->ranks);
    for (int32_t s = 0; s < slots; s++) {
        int32_t q = x->slot_rank[s];
        x->rank_slot[x->rank_slots[q] + filled[q]++] = s;
    }
}

lplb_status lplb__exact_init(lplb__exact **out, const lplb_hosts *hosts, const int64_t *speed,
                             const double *cost, int64_t cost_entries, lplb__arena *arena) {
    if (hosts->offset[hosts->experts] > INT32_MAX)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%lld expert copies; at most %d are supported",
                         (long long)hosts->offset[hosts->experts], INT32_MAX);
    lplb__exact *x = lplb__arena_take(arena, 1, sizeof(lplb__exact));
    x->hosts = hosts;
    take_memory(x, hosts, arena);
    find_components(x);
    for (int32_t e = 0; e < hosts->experts; e++) {
        int64_t row = hosts->offset[e], n = hosts->offset[e + 1] - row;
        if (n == 1) {
            x->single_expert[x->n_singles] = e;
            x->single_rank[x->n_singles] = x->position[hosts->rank[row]];
            x->single_split[x->n_singles++] = row;
            continue;
        }
        x->movable[x->n_movables++] =
            (movable){.component = x->root[hosts->rank[row]], .expert = e, .hosts = (int32_t)n};
        for (int64_t i = row; i < row + n; i++) x->rank_slots[x->position[hosts->rank[i]] + 1]++;
    }
    for (int32_t q = 0; q < hosts->ranks; q++) x->rank_slots[q + 1] += x->rank_slots[q];
    colour_movables(x);
    lay_out_slots(x);
    lplb__limits_init(&x->limits, hosts, speed, cost, cost_entries, x->rank_id, arena);
    *out = x;
    return LPLB_OK;
}

/* ---- steps 1 and 2: start and sweep ---- */

/* Every movable expert's tokens evenly on its hosts. */
static void start_evenly(lplb__exact *x, const component *c) {
    for (int32_t m = c->first_movable; m < c->first_movable + c->movables; m++) {
        const movable *expert = &x->movable[m];
        int64_t weight = x->weight[m], each = weight >> 1, odd = weight & 1;
        if (expert->hosts > 2) { /* mostly there are two, and divisions are slow */
            each = weight / expert->hosts;
            odd = weight % expert->hosts;
        }
        for (int32_t i = 0; i < expert->hosts; i++) {
            int64_t share = each + (i < odd);
            x->x[expert->begin + i] = share;
            x->load[x->slot_rank[expert->begin + i]] += share;
        }
    }
}

static inline int64_t clamp(int64_t share, int64_t weight) {
    share = share < 0 ? 0 : share;
    return share > weight ? weight : share;
}

/* Two hosts, equal speeds: floor((5 difference + 6) / 8) tokens go to the lower rank, within [0,
 * w]. The higher rank would find the same by floor((5 difference + 1) / 8). A single odd token then
 * stays on the lower rank, wherever it was: differences of 0 and -1 move nothing. */
static inline bool pour_pair(int64_t *restrict load, int64_t *restrict x, const int32_t *rank,
                             int64_t weight) {
    int32_t u = rank[0], v = rank[1];
    int64_t before = x[0], more = load[v] - load[u]; /* five times as much may need 65 bits: */
    int64_t share = clamp(before + ((more + ((more + 6) >> 2)) >> 1), weight);
    int64_t moved = share - before;
    x[0] = share;
    x[1] = weight - share;
    load[u] += moved;
    load[v] -= moved;
    return moved != 0;
}

/* Any number of hosts: the common level is the mean over the hosts that stay below it; hosts above
 * the level drop out, which lowers it, until none does. */
static bool pour_unit(lplb__exact *x, const movable *expert, int64_t weight) {
    const int32_t *rank = x->slot_rank + expert->begin;
    int64_t *share = x->x + expert->begin, *level = x->level;
    int32_t n = expert->hosts;
    for (int32_t i = 0; i < n; i++) level[i] = x->load[rank[i]] - share[i];
    int64_t height = INT64_MAX, extra = 0;
    for (int32_t below = 0, before = n + 1; below != before;) {
        int64_t sum = weight, members = 0;
        for (int32_t i = 0; i < n; i++)
            if (level[i] <= height) {
                sum += level[i];
                members++;
            }
        before = below ? below : n + 1;
        below = (int32_t)members;
        if (below == before) break;
        height = sum / members;
        extra = sum % members;
    }
    bool changed = false;
    for (int32_t i = 0; i < n; i++) {
        int64_t poured = 0;
        if (level[i] <= height) poured = height - level[i] + (extra-- > 0);
        changed |= poured != share[i];
        share[i] = poured;
        x->load[rank[i]] = level[i] + poured;
    }
    return changed;
}

/* The same with speeds: host i is below the level when level[i] * S <= sum * s_i. */
static bool pour_speed(lplb__exact *x, const movable *expert, int64_t weight) {
    const int32_t *rank = x->slot_rank + expert->begin;
    const int64_t *speed = x->limits.speed;
    int64_t *share = x->x + expert->begin, *level = x->level;
    int32_t n = expert->hosts, below = 0, before = -1;
    for (int32_t i = 0; i < n; i++) level[i] = x->load[rank[i]] - share[i];
    int64_t sum = INT64_MAX, speeds = 1;
    bool all = true;
    while (below != before) {
        int64_t new_sum = weight, new_speeds = 0;
        before = below;
        below = 0;
        for (int32_t i = 0; i < n; i++)
            if (all || (__int128)level[i] * speeds <= (__int128)sum * speed[rank[i]]) {
                new_sum += level[i];
                new_speeds += speed[rank[i]];
                below++;
            }
        all = false;
        sum = new_sum;
        speeds = new_speeds;
    }
    int64_t extra = weight;
    for (int32_t i = 0; i < n; i++) {
        int64_t height = (int64_t)((__int128)sum * speed[rank[i]] / speeds);
        if (level[i] <= height) extra -= height - level[i];
    }
    bool changed = false;
    for (int32_t i = 0; i < n; i++) {
        int64_t height = (int64_t)((__int128)sum * speed[rank[i]] / speeds), poured = 0;
        if (level[i] <= height) poured = height - level[i] + (extra-- > 0);
        changed |= poured != share[i];
        share[i] = poured;
        x->load[rank[i]] = level[i] + poured;
    }
    return changed;
}

static bool sweep(lplb__exact *x, const component *c) {
    const movable *expert = x->movable + c->first_movable;
    const int64_t *weight = x->weight + c->first_movable;
    int64_t *load = x->load, *share = x->x;
    const int32_t *rank = x->slot_rank;
    bool changed = false, speeds = x->limits.kind == LIMIT_SPEED;
    for (int32_t m = 0; m < c->movables; m++) {
        int32_t s = expert[m].begin;
        if (speeds) changed |= pour_speed(x, &expert[m], weight[m]);
        else if (expert[m].hosts == 2) changed |= pour_pair(load, share + s, rank + s, weight[m]);
        else changed |= pour_unit(x, &expert[m], weight[m]);
    }
    return changed;
}

static bool within_capacity(const lplb__exact *x, const component *c) {
    bool within = true;
    for (int32_t q = c->first_rank; q < c->first_rank + c->ranks; q++)
        within &= x->load[q] <= x->capacity[q];
    return within;
}

/* ---- steps 3 and 4: bound and augment ---- */

/* One level of ranks that the frontier's tokens can reach; notes parents. True if it grew. */
static bool expand_level(lplb__exact *x) {
    bool grew = false;
    for (int32_t w = 0; w < x->words; w++) {
        for (uint64_t bits = x->frontier[w]; bits; bits &= bits - 1) {
            int32_t u = w * 64 + lplb__bit_lowest(bits);
            for (int32_t i = x->rank_slots[u]; i < x->rank_slots[u + 1]; i++) {
                int32_t s = x->rank_slot[i], m = x->slot_movable[s];
                if (x->x[s] == 0 || x->expanded[m] == x->stamp) continue;
                x->expanded[m] = x->stamp;
                const movable *expert = &x->movable[m];
                for (int32_t t = expert->begin; t < expert->begin + expert->hosts; t++) {
                    int32_t v = x->slot_rank[t];
                    if (lplb__bit_test(x->visited, v)) continue;
                    lplb__bit_set(x->visited, v);
                    lplb__bit_set(x->next, v);
                    x->parent_rank[v] = s; /* slot given up */
                    x->parent_slot[v] = t; /* slot received */
                    grew = true;
                }
            }
        }
    }
    return grew;
}

static void clear_search(lplb__exact *x) {
    size_t bytes = sizeof(uint64_t) * (size_t)x->words;
    memset(x->visited, 0, bytes);
    memset(x->frontier, 0, bytes);
    memset(x->next, 0, bytes);
    if (x->stamp == INT32_MAX) { /* once in 2^31 searches */
        memset(x->expanded, 0, sizeof(int32_t) * (size_t)x->n_movables);
        x->stamp = 0;
    }
    x->stamp++;
}

static void add_root(lplb__exact *x, int32_t q) {
    lplb__bit_set(x->visited, q);
    lplb__bit_set(x->frontier, q);
    x->parent_rank[q] = -1;
}

static void next_level(lplb__exact *x) {
    uint64_t *spent = x->frontier;
    x->frontier = x->next;
    x->next = spent;
    memset(spent, 0, sizeof(uint64_t) * (size_t)x->words);
}

/* Hands tokens to target along its path from a root, as many as fit. */
static bool push_path(lplb__exact *x, int32_t target) {
    int64_t amount = x->capacity[target] - x->load[target];
    int32_t root = target;
    for (int32_t given; (given = x->parent_rank[root]) >= 0; root = x->slot_rank[given])
        if (x->x[given] < amount) amount = x->x[given];
    if (x->load[root] - x->capacity[root] < amount) amount = x->load[root] - x->capacity[root];
    if (amount <= 0) return false; /* an earlier path of this phase took it */
    for (int32_t v = target, given; (given = x->parent_rank[v]) >= 0; v = x->slot_rank[given]) {
        x->x[given] -= amount;
        x->x[x->parent_slot[v]] += amount;
    }
    x->load[root] -= amount;
    x->load[target] += amount;
    return true;
}

/* Pushes to every rank of the next level that has room, lowest first; false if none has. */
static bool push_level(lplb__exact *x, int32_t *augmentations) {
    bool pushed = false;
    for (int32_t w = 0; w < x->words; w++)
        for (uint64_t bits = x->next[w]; bits; bits &= bits - 1) {
            int32_t v = w * 64 + lplb__bit_lowest(bits);
            if (x->load[v] >= x->capacity[v] || !push_path(x, v)) continue;
            pushed = true;
            ++*augmentations;
        }
    return pushed;
}

/* Phases until every rank of c is within its capacity: true; or until the ranks above it reach no
 * room: false, and visited is the set that holds them. */
static bool augment(lplb__exact *x, const component *c, int32_t *augmentations) {
    for (;;) {
        bool within = true;
        clear_search(x);
        for (int32_t q = c->first_rank; q < c->first_rank + c->ranks; q++) {
            if (x->load[q] <= x->capacity[q]) continue;
            add_root(x, q);
            within = false;
        }
        if (within) return true;
        for (;;) {
            if (!expand_level(x)) return false;
            if (push_level(x, augmentations)) break;
            next_level(x);
        }
    }
}

/* W(visited) when no token can leave it: its load. */
static lplb_status limit_of_visited(lplb__exact *x, const component *c, lplb__limit *t) {
    int64_t tokens = 0;
    for (int32_t q = c->first_rank; q < c->first_rank + c->ranks; q++)
        if (lplb__bit_test(x->visited, q)) tokens += x->load[q];
    return lplb__limit_of_set(&x->limits, x->visited, c->first_rank, c->ranks, tokens, t);
}

static void adopt(lplb__exact *x, const uint64_t *set) {
    memcpy(x->candidate, set, sizeof(uint64_t) * (size_t)x->words);
}

/* The bounds known before pouring: the mean over the component, and each rank's fixed load. */
static lplb_status first_limit(lplb__exact *x, const component *c, lplb__limit *t) {
    memset(x->candidate, 0, sizeof(uint64_t) * (size_t)x->words);
    int64_t tokens = 0;
    for (int32_t q = c->first_rank; q < c->first_rank + c->ranks; q++) {
        lplb__bit_set(x->candidate, q);
        tokens += x->load[q];
    }
    for (int32_t m = c->first_movable; m < c->first_movable + c->movables; m++)
        tokens += x->weight[m];
    LPLB_TRY(lplb__limit_of_set(&x->limits, x->candidate, c->first_rank, c->ranks, tokens, t));
    int32_t fullest = -1;
    for (int32_t q = c->first_rank; q < c->first_rank + c->ranks; q++) {
        lplb__limit own;
        LPLB_TRY(lplb__limit_of_load(&x->limits, q, x->load[q], &own));
        if (!lplb__limit_less(&x->limits, *t, own)) continue;
        *t = own;
        fullest = q;
    }
    if (fullest >= 0) {
        memset(x->candidate, 0, sizeof(uint64_t) * (size_t)x->words);
        lplb__bit_set(x->candidate, fullest);
    }
    return LPLB_OK;
}

/* A better first guess for Newton's method: what the fullest rank's tokens can reach. After the
 * sweeps that set is nearly level, so its mean is close to t*. */
static lplb_status guess_limit(lplb__exact *x, const component *c, lplb__limit *t) {
    int32_t fullest = c->first_rank;
    for (int32_t q = c->first_rank; q < c->first_rank + c->ranks; q++)
        if ((__int128)x->load[q] * x->limits.speed[fullest] >
            (__int128)x->load[fullest] * x->limits.speed[q])
            fullest = q;
    clear_search(x);
    add_root(x, fullest);
    while (expand_level(x)) next_level(x);
    lplb__limit reached;
    LPLB_TRY(limit_of_visited(x, c, &reached));
    if (lplb__limit_less(&x->limits, *t, reached)) {
        *t = reached;
        adopt(x, x->visited);
    }
    return LPLB_OK;
}

/* Steps 3 and 4, from the state after the sweeps. */
static lplb_status meet_limit(lplb__exact *x, const component *c, lplb__limit *t, lplb_plan *plan) {
    LPLB_TRY(guess_limit(x, c, t));
    const movable *last = &x->movable[c->first_movable + c->movables - 1];
    int32_t slot = x->movable[c->first_movable].begin;
    size_t slot_bytes = sizeof(int64_t) * (size_t)(last->begin + last->hosts - slot);
    size_t rank_bytes = sizeof(int64_t) * (size_t)c->ranks;
    memcpy(x->x_saved + slot, x->x + slot, slot_bytes);
    memcpy(x->load_saved + c->first_rank, x->load + c->first_rank, rank_bytes);
    for (;;) {
        lplb__limit_capacities(&x->limits, *t, c->first_rank, c->ranks, x->capacity);
        if (augment(x, c, &plan->augmentations)) return LPLB_OK;
        lplb__limit stuck;
        LPLB_TRY(limit_of_visited(x, c, &stuck));
        if (!lplb__limit_less(&x->limits, *t, stuck))
            return LPLB_FAIL(LPLB_INTERNAL, "the bound did not rise at a stuck set");
        *t = stuck;
        adopt(x, x->visited);
        plan->restarts++;
        memcpy(x->x + slot, x->x_saved + slot, slot_bytes);
        memcpy(x->load + c->first_rank, x->load_saved + c->first_rank, rank_bytes);
    }
}

static lplb_status solve_component(lplb__exact *x, const component *c, lplb__limit *t,
                                   lplb_plan *plan) {
    LPLB_TRY(first_limit(x, c, t));
    if (!c->movables) return LPLB_OK;
    lplb__limit_capacities(&x->limits, *t, c->first_rank, c->ranks, x->capacity);
    int32_t sweeps = 0;
    start_evenly(x, c);
    while (sweep(x, c) && ++sweeps < LPLB__MAX_SWEEPS && !within_capacity(x, c)) {}
    plan->sweeps += sweeps;
    if (within_capacity(x, c)) return LPLB_OK;
    return meet_limit(x, c, t, plan);
}

/* ---- the batch ---- */

static void load_batch(lplb__exact *x, const lplb__batch *batch, int64_t *split) {
    for (int32_t q = 0; q < x->hosts->ranks; q++) x->load[q] = batch->fixed[x->rank_id[q]];
    for (int32_t i = 0; i < x->n_singles; i++) {
        int64_t tokens = batch->tokens[x->single_expert[i]];
        x->load[x->single_rank[i]] += tokens;
        split[x->single_split[i]] = tokens;
    }
    for (int32_t m = 0; m < x->n_movables; m++) x->weight[m] = batch->tokens[x->movable[m].expert];
}

/* W(proof) afresh from the batch: the claim of optimality rests on this, not on the search. */
static lplb_status check_proof(lplb__exact *x, const lplb__batch *batch, lplb__limit t) {
    int64_t tokens = 0;
    for (int32_t q = 0; q < x->hosts->ranks; q++)
        if (lplb__bit_test(x->proof, q)) tokens += batch->fixed[x->rank_id[q]];
    for (int32_t i = 0; i < x->n_singles; i++)
        if (lplb__bit_test(x->proof, x->single_rank[i]))
            tokens += batch->tokens[x->single_expert[i]];
    for (int32_t m = 0; m < x->n_movables; m++) {
        const movable *expert = &x->movable[m];
        bool inside = true;
        for (int32_t s = expert->begin; s < expert->begin + expert->hosts && inside; s++)
            inside = lplb__bit_test(x->proof, x->slot_rank[s]);
        if (inside) tokens += x->weight[m];
    }
    lplb__limit proven;
    LPLB_TRY(lplb__limit_of_set(&x->limits, x->proof, 0, x->hosts->ranks, tokens, &proven));
    lplb__limit_capacities(&x->limits, t, 0, x->hosts->ranks, x->capacity);
    bool met = !lplb__limit_less(&x->limits, proven, t);
    for (int32_t q = 0; q < x->hosts->ranks; q++) met &= x->load[q] <= x->capacity[q];
    return met ? LPLB_OK : LPLB_FAIL(LPLB_INTERNAL, "the optimality certificate does not hold");
}

lplb_status lplb__exact_solve(lplb__exact *x, const lplb__batch *batch, lplb_plan *plan,
                              int64_t *capacity) {
    plan->sweeps = plan->augmentations = plan->restarts = 0;
    load_batch(x, batch, plan->split);
    lplb__limit worst = {0, 1};
    for (int32_t i = 0; i < x->n_components; i++) {
        lplb__limit t;
        LPLB_TRY(solve_component(x, &x->component[i], &t, plan));
        if (i > 0 && !lplb__limit_less(&x->limits, worst, t)) continue;
        worst = t;
        memcpy(x->proof, x->candidate, sizeof(uint64_t) * (size_t)x->words);
    }
    LPLB_TRY(check_proof(x, batch, worst));
    if (x->n_movables) {
        const movable *last = &x->movable[x->n_movables - 1];
        for (int32_t s = 0; s < last->begin + last->hosts; s++)
            plan->split[x->slot_split[s]] = x->x[s];
    }
    x->limit = worst;
    plan->bound = lplb__limit_value(&x->limits, worst);
    plan->outcome = LPLB_OUTCOME_OPTIMAL;
    if (plan->certificate) {
        memset(plan->certificate, 0, sizeof(uint64_t) * (size_t)x->words);
        for (int32_t q = 0; q < x->hosts->ranks; q++)
            if (lplb__bit_test(x->proof, q)) lplb__bit_set(plan->certificate, x->rank_id[q]);
    }
    if (capacity)
        for (int32_t q = 0; q < x->hosts->ranks; q++) capacity[x->rank_id[q]] = x->capacity[q];
    return LPLB_OK;
}

void lplb__exact_limit(const lplb__exact *x, lplb_fraction *t, int64_t *most_tokens) {
    int64_t speed = x->limits.kind == LIMIT_UNIT ? x->limits.speed[0] : 1;
    *t = (lplb_fraction){x->limit.numerator, x->limit.denominator * speed};
    *most_tokens = 0;
    for (int32_t q = 0; q < x->hosts->ranks; q++)
        if (x->capacity[q] > *most_tokens) *most_tokens = x->capacity[q];
}

lplb__exact_layout lplb__exact_get_layout(const lplb__exact *x) {
    return (lplb__exact_layout){.components = x->n_components,
                                .movables = x->n_movables,
                                .component = x->component,
                                .movable = x->movable,
                                .slot_rank = x->slot_rank,
                                .slot_split = x->slot_split,
                                .rank_id = x->rank_id,
                                .position = x->position};
}
