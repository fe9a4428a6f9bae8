/* EPLB against the published example and against a second, plain implementation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/placement.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* ---- the published algorithm as plainly as possible, one layer, quadratic scans ---- */

static void plain_packing(const float *weight, int items, int packs, int *pack_index,
                          int *rank_in_pack) {
    int size = items / packs;
    float *sum = calloc((size_t)packs, sizeof *sum);
    int *fill = calloc((size_t)packs, sizeof *fill);
    char *done = calloc((size_t)items, 1);
    for (int k = 0; k < items; k++) {
        int item = -1, pack = -1;
        for (int i = 0; i < items; i++)
            if (!done[i] && (item < 0 || (size > 1 && weight[i] > weight[item]))) item = i;
        for (int p = 0; p < packs; p++)
            if (fill[p] < size && (pack < 0 || (size > 1 && sum[p] < sum[pack]))) pack = p;
        done[item] = 1;
        pack_index[item] = pack;
        rank_in_pack[item] = fill[pack]++;
        sum[pack] += weight[item];
    }
    free(sum);
    free(fill);
    free(done);
}

static void plain_replicate(const float *weight, int logical, int physical, int *map, int *replica,
                            int *count) {
    for (int p = 0; p < physical; p++) {
        int best = 0;
        if (p < logical) {
            map[p] = p;
            replica[p] = 0;
            count[p] = 1;
            continue;
        }
        for (int e = 1; e < logical; e++)
            if (weight[e] / (float)count[e] > weight[best] / (float)count[best]) best = e;
        map[p] = best;
        replica[p] = count[best]++;
    }
}

static void plain_rebalance(const float *weight, int experts, int slots, int groups, int nodes,
                            int ranks, int *p2l, int *l2p, int *count) {
    if (groups % nodes) groups = nodes = 1;
    int X = slots - experts + 1, group_size = experts / groups, per_node = groups / nodes;
    int logical = experts / nodes, physical = slots / nodes, size = slots / ranks;
    float *group_load = calloc((size_t)groups, sizeof *group_load);
    int *node_of = calloc((size_t)groups, sizeof(int)),
        *place = calloc((size_t)groups, sizeof(int));
    int *member = calloc((size_t)experts, sizeof(int));
    for (int e = 0; e < experts; e++) group_load[e / group_size] += weight[e];
    plain_packing(group_load, groups, nodes, node_of, place);
    for (int e = 0; e < experts; e++) {
        int g = e / group_size;
        member[(node_of[g] * per_node + place[g]) * group_size + e % group_size] = e;
    }
    for (int i = 0; i < experts * X; i++) l2p[i] = -1;
    float *load = calloc((size_t)logical, sizeof *load),
          *each = calloc((size_t)physical, sizeof *each);
    int *scratch = calloc((size_t)(5 * physical), sizeof(int));
    int *map = scratch, *replica = scratch + physical, *copies = scratch + 2 * physical;
    int *pack = scratch + 3 * physical, *rank = scratch + 4 * physical;
    for (int n = 0; n < nodes; n++) {
        for (int i = 0; i < logical; i++) load[i] = weight[member[n * logical + i]];
        plain_replicate(load, logical, physical, map, replica, copies);
        for (int p = 0; p < physical; p++) each[p] = load[map[p]] / (float)copies[map[p]];
        plain_packing(each, physical, ranks / nodes, pack, rank);
        for (int p = 0; p < physical; p++) {
            int slot = n * physical + pack[p] * size + rank[p], e = member[n * logical + map[p]];
            p2l[slot] = e;
            l2p[e * X + replica[p]] = slot;
            count[e] = copies[map[p]];
        }
    }
    free(group_load);
    free(node_of);
    free(place);
    free(member);
    free(load);
    free(each);
    free(scratch);
}

/* ---- tests ---- */

static void test_published_example(void **state) {
    (void)state;
    static const float weight[] = {90, 132, 40,  61, 104, 165, 39,  4,   73,  56, 183, 86,
                                   20, 107, 104, 64, 19,  197, 187, 157, 172, 86, 16,  27};
    static const int32_t expected[] = {5, 6,  5, 7, 8, 4,  3, 4, 10, 9, 10, 2, 0, 1, 11, 1,
                                       7, 10, 6, 8, 6, 11, 8, 9, 2,  4, 5,  1, 5, 0, 3,  1};
    int32_t p2l[32], l2p[24 * 5], count[24];
    assert_int_equal(lplb_eplb_rebalance_experts(weight, 2, 12, 16, 4, 2, 8, p2l, l2p, count),
                     LPLB_OK);
    assert_memory_equal(p2l, expected, sizeof p2l);
    for (int layer = 0; layer < 2; layer++)
        for (int e = 0; e < 12; e++)
            for (int c = 0; c < 5; c++) {
                int slot = l2p[(layer * 12 + e) * 5 + c];
                assert_int_equal(slot >= 0, c < count[layer * 12 + e]);
                if (slot >= 0) assert_int_equal(p2l[layer * 16 + slot], e);
            }
}

typedef enum load_kind { LOG_NORMAL, TIES, ZEROS, HUGE_LOADS, EQUAL, LOAD_KINDS } load_kind;

static float draw_load(lplb__rng *rng, load_kind kind) {
    switch (kind) {
    case TIES: return (float)lplb__rng_below(rng, 4);
    case ZEROS: return lplb__rng_below(rng, 5) ? -0.0f : 3.0f;
    case HUGE_LOADS: return (float)exp(40 * lplb__rng_uniform(rng));
    case EQUAL: return 7.0f;
    default: return (float)floor(1000 * exp(lplb__rng_normal(rng)));
    }
}

static const struct {
    int experts, slots, groups, nodes, ranks;
} shapes[] = {{256, 288, 1, 1, 32}, {256, 288, 8, 4, 32},  {256, 320, 8, 8, 64}, {64, 80, 1, 1, 8},
              {64, 64, 4, 2, 8},    {32, 48, 8, 1, 8},     {12, 16, 4, 2, 8},    {12, 16, 3, 2, 8},
              {8, 128, 1, 1, 4},    {144, 144, 1, 1, 144}, {16, 32, 4, 4, 32},   {5, 15, 1, 1, 5},
              {1, 6, 1, 1, 3},      {6, 6, 6, 3, 6},       {128, 160, 8, 1, 8},  {48, 60, 6, 2, 4}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, LAYERS = 2 };

static void test_same_as_plain(void **state) {
    (void)state;
    for (int shape = 0; shape < N_SHAPES; shape++) {
        int E = shapes[shape].experts, P = shapes[shape].slots, X = P - E + 1;
        float *weight = calloc((size_t)(LAYERS * E), sizeof *weight);
        int32_t *buffer = calloc((size_t)(2 * LAYERS * (P + E * X + E)), sizeof *buffer);
        int32_t *p2l = buffer, *l2p = p2l + LAYERS * P, *count = l2p + LAYERS * E * X;
        int32_t *p2l_plain = count + LAYERS * E, *l2p_plain = p2l_plain + LAYERS * P;
        int32_t *count_plain = l2p_plain + LAYERS * E * X;
        for (uint64_t seed = 0; seed < 40; seed++) {
            lplb__rng rng;
            lplb__rng_seed(&rng, seed, (uint64_t)shape);
            load_kind kind = (load_kind)(seed % LOAD_KINDS);
            for (int i = 0; i < LAYERS * E; i++) weight[i] = draw_load(&rng, kind);
            assert_int_equal(lplb_eplb_rebalance_experts(weight, LAYERS, E, P, shapes[shape].groups,
                                                         shapes[shape].nodes, shapes[shape].ranks,
                                                         p2l, l2p, count),
                             LPLB_OK);
            for (int layer = 0; layer < LAYERS; layer++)
                plain_rebalance(weight + layer * E, E, P, shapes[shape].groups, shapes[shape].nodes,
                                shapes[shape].ranks, p2l_plain + layer * P,
                                l2p_plain + layer * E * X, count_plain + layer * E);
            if (memcmp(p2l, p2l_plain, (size_t)(LAYERS * (P + E * X + E)) * sizeof *p2l))
                fail_msg("shape %d, seed %d", shape, (int)seed);
            memset(p2l, 0, (size_t)(LAYERS * P) * sizeof *p2l); /* the optional outputs */
            lplb_eplb_rebalance_experts(weight, LAYERS, E, P, shapes[shape].groups,
                                        shapes[shape].nodes, shapes[shape].ranks, p2l, NULL, NULL);
            assert_memory_equal(p2l, p2l_plain, (size_t)(LAYERS * P) * sizeof *p2l);
        }
        free(weight);
        free(buffer);
    }
}

static void test_parts_same_as_plain(void **state) {
    (void)state;
    enum { ITEMS = 72, MORE = 100 };
    float weight[ITEMS];
    int32_t pack[ITEMS], rank[ITEMS], pack_plain[ITEMS], rank_plain[ITEMS];
    int32_t map[MORE], replica[MORE], count[ITEMS], map_plain[MORE], replica_plain[MORE];
    int32_t count_plain[ITEMS];
    for (uint64_t seed = 0; seed < 50; seed++) {
        lplb__rng rng;
        lplb__rng_seed(&rng, seed, 99);
        for (int i = 0; i < ITEMS; i++) weight[i] = draw_load(&rng, (load_kind)(seed % LOAD_KINDS));
        static const int packs[] = {1, 2, 9, 36, 72};
        for (int k = 0; k < 5; k++) {
            assert_int_equal(lplb_eplb_balanced_packing(weight, 1, ITEMS, packs[k], pack, rank),
                             LPLB_OK);
            plain_packing(weight, ITEMS, packs[k], pack_plain, rank_plain);
            assert_memory_equal(pack, pack_plain, sizeof pack);
            assert_memory_equal(rank, rank_plain, sizeof rank);
        }
        assert_int_equal(lplb_eplb_replicate_experts(weight, 1, ITEMS, MORE, map, replica, count),
                         LPLB_OK);
        plain_replicate(weight, ITEMS, MORE, map_plain, replica_plain, count_plain);
        assert_memory_equal(map, map_plain, sizeof map);
        assert_memory_equal(replica, replica_plain, sizeof replica);
        assert_memory_equal(count, count_plain, sizeof count);
    }
}

static void test_bad_input(void **state) {
    (void)state;
    float w[4] = {1, 2, 3, 4};
    int32_t out[64];
#define REBALANCE(E, P, groups, nodes, ranks)                                                      \
    lplb_eplb_rebalance_experts(w, 1, E, P, groups, nodes, ranks, out, NULL, NULL)
    assert_int_equal(REBALANCE(4, 6, 1, 1, 4), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "remainder 2"));
    assert_int_equal(REBALANCE(4, 3, 1, 1, 1), LPLB_INFEASIBLE);
    assert_int_equal(REBALANCE(4, 6, 3, 1, 2), LPLB_INVALID);
    assert_int_equal(REBALANCE(4, 6, 2, 2, 3), LPLB_INVALID);
    assert_int_equal(REBALANCE(4, 6, 0, 1, 2), LPLB_INVALID);
    assert_int_equal(REBALANCE(4, 6, 1, 0, 2), LPLB_INVALID);
    assert_int_equal(lplb_eplb_balanced_packing(w, 1, 4, 3, out, out + 4), LPLB_INVALID);
    assert_int_equal(lplb_eplb_replicate_experts(w, 1, 4, 3, out, out, out), LPLB_INVALID);
    w[2] = -1;
    assert_int_equal(REBALANCE(4, 6, 1, 1, 2), LPLB_RANGE);
    w[2] = NAN;
    assert_int_equal(REBALANCE(4, 6, 1, 1, 2), LPLB_RANGE);
    assert_non_null(strstr(lplb_error_message(), "item 2"));
    w[2] = INFINITY;
    assert_int_equal(lplb_eplb_balanced_packing(w, 1, 4, 2, out, out + 4), LPLB_RANGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_example),
        cmocka_unit_test(test_same_as_plain),
        cmocka_unit_test(test_parts_same_as_plain),
        cmocka_unit_test(test_bad_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
