#include "cases/cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* The bare name has the heaviest tail (log-normal, sigma 1); gaussian ones are LPLB's test loads.
 */
#define R2O_CASES(name, topology, ranks, experts, slots)                                           \
    {name, SHAPE_R2O, topology, ranks, experts, slots, 2, 1.0, 0, 512, 0, 0},                      \
        {name "-l0.7", SHAPE_R2O, topology, ranks, experts, slots, 2, 0.7, 0, 512, 0, 0},          \
        {name "-g0.3", SHAPE_R2O, topology, ranks, experts, slots, 2, 0.3, 1, 512, 0, 0}, {        \
        name "-g1.0", SHAPE_R2O, topology, ranks, experts, slots, 2, 1.0, 1, 512, 0, 0             \
    }

const plan_case plan_cases[] = {
    R2O_CASES("cube8x2", "cube", 8, 64, 80),
    R2O_CASES("cube8x2-256", "cube", 8, 256, 272),
    R2O_CASES("hypercube16x2", "hypercube", 16, 128, 160),
    R2O_CASES("ring8x1", "ring", 8, 64, 72),
    R2O_CASES("torus4x8", "torus:4x8", 32, 256, 320),
    R2O_CASES("cube4groups", "cube", 32, 256, 320),
    {"eplb32", SHAPE_EPLB, NULL, 32, 256, 288, 32, 1.0, 0, 512, 0, 0},
    {"eplb64", SHAPE_EPLB, NULL, 64, 256, 320, 64, 1.0, 0, 512, 0, 0},
    {"eplb64-gauss", SHAPE_EPLB, NULL, 64, 256, 320, 64, 0.3, 1, 512, 0, 0},
    {"eplb320", SHAPE_EPLB, NULL, 320, 256, 2240, 320, 1.0, 0, 4096, 0, 0},
    {"eplb32-decode", SHAPE_EPLB, NULL, 32, 256, 288, 32, 1.0, 0, 2, 0, 0},
    {"eplb32-speeds", SHAPE_EPLB, NULL, 32, 256, 288, 32, 1.0, 0, 512, 0, 1},
    {"eplb32-fixed", SHAPE_EPLB, NULL, 32, 256, 288, 32, 1.0, 0, 512, 1, 0},
    {"cube8x2-speeds", SHAPE_R2O, "cube", 8, 64, 80, 2, 1.0, 0, 512, 1, 1},
    {"random4", SHAPE_RANDOM, NULL, 4, 12, 0, 3, 1.0, 0, 32, 0, 0},
    {"random8", SHAPE_RANDOM, NULL, 8, 40, 0, 4, 1.0, 0, 256, 0, 0},
    {"random8-speeds", SHAPE_RANDOM, NULL, 8, 40, 0, 4, 1.0, 0, 256, 1, 1},
    {"random16", SHAPE_RANDOM, NULL, 16, 64, 0, 8, 1.5, 0, 256, 0, 0},
    {"random16-speeds", SHAPE_RANDOM, NULL, 16, 64, 0, 8, 1.5, 0, 256, 0, 1},
    {"random60", SHAPE_RANDOM, NULL, 60, 300, 0, 5, 1.0, 0, 128, 1, 1},
    {"random64", SHAPE_RANDOM, NULL, 64, 90, 0, 3, 1.0, 0, 256, 0, 0},
    {"random64-copies", SHAPE_RANDOM, NULL, 64, 40, 0, 24, 1.5, 0, 1024, 0, 0},
    {"random130", SHAPE_RANDOM, NULL, 130, 500, 0, 3, 1.0, 0, 1024, 0, 0},
    {"single-copies", SHAPE_RANDOM, NULL, 8, 32, 0, 1, 1.0, 0, 64, 0, 0},
    {"everywhere", SHAPE_RANDOM, NULL, 6, 10, 0, 6, 2.0, 0, 1000, 0, 0},
    {"one-rank", SHAPE_RANDOM, NULL, 1, 5, 0, 1, 1.0, 0, 100, 0, 0},
    {"no-tokens", SHAPE_RANDOM, NULL, 8, 32, 0, 3, 1.0, 0, 0, 0, 0},
    {"huge", SHAPE_RANDOM, NULL, 8, 32, 0, 3, 0.5, 0, INT64_C(1) << 53, 1, 0},
    {"huge-speeds", SHAPE_RANDOM, NULL, 8, 32, 0, 3, 0.5, 0, INT64_C(1) << 53, 0, 1},
};
const int n_plan_cases = (int)(sizeof plan_cases / sizeof plan_cases[0]);

const plan_case *find_plan_case(const char *name) {
    for (int i = 0; i < n_plan_cases; i++)
        if (strcmp(plan_cases[i].name, name) == 0) return &plan_cases[i];
    return NULL;
}

static void *need(int64_t count, size_t item_bytes) {
    void *block = calloc(count > 0 ? (size_t)count : 1, item_bytes);
    if (!block) {
        fprintf(stderr, "out of memory in a test case\n");
        abort();
    }
    return block;
}
#define NEED(pointer, count) ((pointer) = need((count), sizeof *(pointer)))

/* ---- hosts ---- */

/* Hosts gathered in any order of experts, then compressed by finish_hosts. */
typedef struct host_list {
    int64_t n, capacity;
    int32_t *expert, *rank;
} host_list;

static void add_host(host_list *list, int32_t expert, int32_t rank) {
    if (list->n == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->expert = realloc(list->expert, (size_t)list->capacity * sizeof *list->expert);
        list->rank = realloc(list->rank, (size_t)list->capacity * sizeof *list->rank);
        if (!list->expert || !list->rank) abort();
    }
    list->expert[list->n] = expert;
    list->rank[list->n++] = rank;
}

/* Stable counting sort by expert, so that an expert's hosts keep the order they were added in. */
static void finish_hosts(host_list *list, int32_t ranks, int32_t experts, plan_instance *out) {
    NEED(out->offset, experts + 1);
    NEED(out->rank, list->n);
    for (int64_t i = 0; i < list->n; i++) out->offset[list->expert[i] + 1]++;
    for (int32_t e = 0; e < experts; e++) out->offset[e + 1] += out->offset[e];
    int64_t *next = NEED(next, experts);
    memcpy(next, out->offset, (size_t)experts * sizeof *next);
    for (int64_t i = 0; i < list->n; i++) out->rank[next[list->expert[i]]++] = list->rank[i];
    free(next);
    free(list->expert);
    free(list->rank);
    out->hosts = (lplb_hosts){ranks, experts, out->offset, out->rank};
}

/* LPLB's published tables; the ring and the torus follow from their formulas. */
static int32_t r2o_source(const char *topology, int32_t ranks, int32_t rank, int32_t column) {
    static const int32_t cube[2][8] = {{3, 0, 1, 2, 7, 4, 5, 6}, {6, 7, 4, 5, 0, 1, 2, 3}};
    static const int32_t hypercube[2][16] = {
        {3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14},
        {12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}};
    int m, n;
    if (strcmp(topology, "cube") == 0) return rank / 8 * 8 + cube[column][rank % 8];
    if (strcmp(topology, "hypercube") == 0) return rank / 16 * 16 + hypercube[column][rank % 16];
    if (strcmp(topology, "ring") == 0) return (rank + 1) % ranks;
    if (sscanf(topology, "torus:%dx%d", &m, &n) == 2 && m * n == ranks) {
        int i = rank / n, j = rank % n;
        return column == 0 ? (i + 1) % m * n + j : i * n + (j + 1) % n;
    }
    fprintf(stderr, "unknown topology %s\n", topology);
    abort();
}

static const double *sort_weight;
static int by_falling_weight(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sort_weight[x] != sort_weight[y]) return sort_weight[x] < sort_weight[y] ? 1 : -1;
    return x < y ? -1 : 1;
}
static void sort_falling(const double *weight, int32_t n, int32_t *order) {
    for (int32_t i = 0; i < n; i++) order[i] = i;
    sort_weight = weight;
    qsort(order, (size_t)n, sizeof *order, by_falling_weight);
}

/* The rank with the least load among those with a free slot and without the expert; -1 if none. */
static int32_t least_loaded(const double *load, const int32_t *used, int32_t capacity,
                            const uint8_t *holds, int32_t ranks) {
    int32_t best = -1;
    for (int32_t r = 0; r < ranks; r++)
        if (used[r] < capacity && !(holds && holds[r]) && (best < 0 || load[r] < load[best]))
            best = r;
    return best;
}

/* E/G experts a rank, packed heaviest first; then slot k of rank r copies expert k of its source.
 */
static void make_r2o_hosts(const plan_case *shape, const double *weight, plan_instance *out) {
    int32_t G = shape->ranks, E = shape->experts, per_rank = E / G,
            redundant = (shape->slots - E) / G;
    int32_t columns = strcmp(shape->topology, "ring") == 0 ? 1 : 2;
    int32_t *order = NEED(order, E), *used = NEED(used, G), *resident = NEED(resident, E);
    double *load = NEED(load, G);
    host_list list = {0};
    sort_falling(weight, E, order);
    for (int32_t i = 0; i < E; i++) {
        int32_t r = least_loaded(load, used, per_rank, NULL, G);
        resident[r * per_rank + used[r]++] = order[i];
        load[r] += weight[order[i]];
        add_host(&list, order[i], r);
    }
    for (int32_t r = 0; r < G; r++)
        for (int32_t k = 0; k < redundant; k++) {
            int32_t source = r2o_source(shape->topology, G, r, k % columns);
            add_host(&list, resident[source * per_rank + k], r);
        }
    finish_hosts(&list, G, E, out);
    free(order);
    free(used);
    free(resident);
    free(load);
}

/* Replicas to the largest load a copy, then packed longest first; a copy that finds only ranks that
 * hold its expert already is left out. */
static void make_eplb_hosts(const plan_case *shape, const double *weight, plan_instance *out) {
    int32_t G = shape->ranks, E = shape->experts, P = shape->slots, n = 0;
    int32_t *copies = NEED(copies, E), *order = NEED(order, P), *used = NEED(used, G);
    int32_t *expert = NEED(expert, P);
    double *load = NEED(load, G), *share = NEED(share, P);
    uint8_t *holds = NEED(holds, (int64_t)E * G);
    host_list list = {0};
    for (int32_t e = 0; e < E; e++) copies[e] = 1;
    for (int32_t p = E; p < P; p++) {
        int32_t best = -1;
        for (int32_t e = 0; e < E; e++)
            if (copies[e] < shape->max_copies &&
                (best < 0 || weight[e] * copies[best] > weight[best] * copies[e]))
                best = e;
        copies[best]++;
    }
    for (int32_t e = 0; e < E; e++)
        for (int32_t k = 0; k < copies[e]; k++, n++) {
            expert[n] = e;
            share[n] = weight[e] / copies[e];
        }
    sort_falling(share, P, order);
    for (int32_t i = 0; i < P; i++) {
        int32_t e = expert[order[i]];
        int32_t r = least_loaded(load, used, P / G, holds + (int64_t)e * G, G);
        if (r < 0) continue;
        used[r]++;
        load[r] += share[order[i]];
        holds[(int64_t)e * G + r] = 1;
        add_host(&list, e, r);
    }
    finish_hosts(&list, G, E, out);
    free(copies);
    free(order);
    free(used);
    free(expert);
    free(load);
    free(share);
    free(holds);
}

/* Distinct ranks from the window [first, first + width) of the ring of ranks, in random order. */
static void add_random_hosts(lplb__rng *rng, host_list *list, int32_t expert, int32_t copies,
                             int32_t first, int32_t width, int32_t ranks) {
    int32_t *pool = NEED(pool, width);
    for (int32_t i = 0; i < width; i++) pool[i] = (first + i) % ranks;
    for (int32_t i = 0; i < copies && i < width; i++) {
        int32_t j = i + (int32_t)lplb__rng_below(rng, width - i), chosen = pool[j];
        pool[j] = pool[i];
        pool[i] = chosen;
        add_host(list, expert, chosen);
    }
    free(pool);
}

static void make_random_hosts(lplb__rng *rng, const plan_case *shape, plan_instance *out) {
    host_list list = {0};
    for (int32_t e = 0; e < shape->experts; e++) {
        int32_t copies = 1 + (int32_t)lplb__rng_below(rng, shape->max_copies);
        add_random_hosts(rng, &list, e, copies, 0, shape->ranks, shape->ranks);
    }
    finish_hosts(&list, shape->ranks, shape->experts, out);
}

/* ---- loads ---- */

enum { STREAM_SHAPE = 1, STREAM_TOKENS = 2, STREAM_SOURCES = 3, STREAM_RANDOM = 4 };
static const double DRIFT_SIGMA = 0.5; /* of ln(load) between the placement's loads and a batch */

static void draw_tokens(const plan_case *shape, uint64_t seed, plan_instance *instance) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, STREAM_TOKENS);
    for (int32_t e = 0; e < shape->experts; e++) {
        double noise = lplb__rng_normal(&rng), weight = instance->weight[e];
        double load =
            shape->gaussian ? weight + shape->sigma * noise : weight * exp(DRIFT_SIGMA * noise);
        instance->tokens[e] = load > 0 ? (int64_t)(load * (double)shape->mean_tokens) : 0;
    }
}

static int64_t magnitude(lplb__rng *rng, int64_t limit) {
    int bits = 0;
    while (bits < 62 && (limit >> bits) > 0) bits++;
    int64_t most = (INT64_C(1) << lplb__rng_below(rng, bits + 1)) - 1;
    return lplb__rng_below(rng, (most < limit ? most : limit) + 1);
}

static void draw_speeds(lplb__rng *rng, int64_t limit, plan_instance *out) {
    NEED(out->speed, out->hosts.ranks);
    for (int32_t r = 0; r < out->hosts.ranks; r++) out->speed[r] = 1 + lplb__rng_below(rng, limit);
}

static void make_outputs(plan_instance *out) {
    NEED(out->split, out->offset[out->hosts.experts]);
    NEED(out->loads, out->hosts.ranks);
    NEED(out->certificate, (out->hosts.ranks + 63) / 64);
}

void instance_create(const plan_case *shape, uint64_t seed, plan_instance *out) {
    lplb__rng rng;
    memset(out, 0, sizeof *out);
    lplb__rng_seed(&rng, seed, STREAM_SHAPE);
    NEED(out->weight, shape->experts);
    NEED(out->tokens, shape->experts);
    for (int32_t e = 0; e < shape->experts; e++) {
        double noise = lplb__rng_normal(&rng);
        out->weight[e] =
            shape->gaussian ? fmax(0, 1 + 0.5 * shape->sigma * noise) : exp(shape->sigma * noise);
    }
    if (shape->shape == SHAPE_R2O) make_r2o_hosts(shape, out->weight, out);
    if (shape->shape == SHAPE_EPLB) make_eplb_hosts(shape, out->weight, out);
    if (shape->shape == SHAPE_RANDOM) make_random_hosts(&rng, shape, out);
    if (shape->speeds) draw_speeds(&rng, 100, out);
    if (shape->fixed) {
        NEED(out->fixed, shape->ranks);
        for (int32_t r = 0; r < shape->ranks; r++)
            out->fixed[r] = lplb__rng_below(&rng, 2 * shape->mean_tokens + 1);
    }
    make_outputs(out);
    draw_tokens(shape, seed, out);
}

void instance_redraw(const plan_case *shape, uint64_t seed, plan_instance *instance) {
    draw_tokens(shape, seed, instance);
    free(instance->sources);
    instance->sources = NULL;
}

void instance_add_sources(plan_instance *instance, uint64_t seed) {
    int32_t G = instance->hosts.ranks, E = instance->hosts.experts;
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, STREAM_SOURCES);
    double *weight = NEED(weight, G);
    int64_t *counts = NEED(counts, G);
    free(instance->sources);
    NEED(instance->sources, (int64_t)G * E);
    for (int32_t r = 0; r < G; r++) weight[r] = 0.5 + lplb__rng_uniform(&rng);
    for (int32_t e = 0; e < E; e++) {
        lplb__rng_multinomial(&rng, instance->tokens[e], weight, G, counts);
        for (int32_t r = 0; r < G; r++) instance->sources[(int64_t)r * E + e] = counts[r];
    }
    free(weight);
    free(counts);
}

void instance_destroy(plan_instance *instance) {
    free(instance->offset);
    free(instance->rank);
    free(instance->weight);
    free(instance->tokens);
    free(instance->fixed);
    free(instance->speed);
    free(instance->sources);
    free(instance->split);
    free(instance->loads);
    free(instance->certificate);
    memset(instance, 0, sizeof *instance);
}

/* n counts that sum to at most total: each of every magnitude, or, when there are fewer tokens than
 * counts, thrown one by one. */
static void random_counts(lplb__rng *rng, int64_t total, int64_t n, int64_t *counts) {
    if (n == 0) return;
    int alike = lplb__rng_below(rng, 2) == 0;
    if (total / n < 2) {
        for (int64_t i = 0; i < total; i++) counts[lplb__rng_below(rng, n)]++;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        if (lplb__rng_below(rng, 10) == 0) continue;
        counts[i] = alike ? lplb__rng_below(rng, total / n + 1) : magnitude(rng, total / n);
    }
}

void instance_random(uint64_t seed, int64_t max_tokens, plan_instance *out) {
    lplb__rng rng;
    host_list list = {0};
    memset(out, 0, sizeof *out);
    lplb__rng_seed(&rng, seed, STREAM_RANDOM);
    int32_t G = 2 + (int32_t)lplb__rng_below(&rng, 15);
    int32_t E = 1 + (int32_t)lplb__rng_below(&rng, 4 * G);
    int32_t most = 1 + (int32_t)lplb__rng_below(&rng, 8);
    /* narrow windows make rank sets that only hold each other's experts: real bottlenecks */
    int32_t width = lplb__rng_below(&rng, 2) ? G : most < G ? most + 1 : G;
    if (width > G) width = G;
    for (int32_t e = 0; e < E; e++)
        add_random_hosts(&rng, &list, e, 1 + (int32_t)lplb__rng_below(&rng, most),
                         (int32_t)lplb__rng_below(&rng, G), width, G);
    finish_hosts(&list, G, E, out);
    make_outputs(out);
    int64_t total = magnitude(&rng, max_tokens);
    if (lplb__rng_below(&rng, 4) == 0) {
        NEED(out->fixed, G);
        random_counts(&rng, total / 4, G, out->fixed);
        total -= total / 4;
    }
    NEED(out->tokens, E);
    random_counts(&rng, total, E, out->tokens);
    if (lplb__rng_below(&rng, 4) == 0)
        draw_speeds(&rng, lplb__rng_below(&rng, 2) ? 8 : LPLB_MAX_SPEED, out);
}
