/* lplb_place: EPLB and topology through the one entry, refusals, and the imbalance it reports. */
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

enum { LAYERS = 3, EXPERTS = 32, RANKS = 8, SLOTS = 48, SAMPLES = 2 };

static int64_t load[SAMPLES][LAYERS][EXPERTS]; /* layer 1 has none */

static int fill_loads(void **state) {
    (void)state;
    lplb__rng rng;
    lplb__rng_seed(&rng, 5, 0);
    for (int s = 0; s < SAMPLES; s++)
        for (int layer = 0; layer < LAYERS; layer++)
            for (int e = 0; e < EXPERTS; e++)
                load[s][layer][e] = layer == 1 ? 0 : (int64_t)(1000 * exp(lplb__rng_normal(&rng)));
    return 0;
}

static lplb_place_config make_config(lplb_place_algorithm algorithm) {
    return (lplb_place_config){.struct_size = sizeof(lplb_place_config),
                               .algorithm = algorithm,
                               .ranks = RANKS,
                               .slots = SLOTS};
}

static lplb_placement *place(const lplb_place_config *config) {
    lplb_placement *p;
    lplb_status status = lplb_place(config, &load[0][0][0], SAMPLES, LAYERS, EXPERTS, NULL, &p);
    if (status != LPLB_OK) fail_msg("%s", lplb_error_message());
    return p;
}

static void expect_refusal(const lplb_place_config *config, lplb_status expected,
                           const char *word) {
    lplb_placement *p;
    lplb_status status = lplb_place(config, &load[0][0][0], SAMPLES, LAYERS, EXPERTS, NULL, &p);
    assert_null(p);
    if (!strstr(lplb_error_message(), word)) fail_msg("%s", lplb_error_message());
    assert_int_equal(status, expected);
}

static void sum_layer(int layer, float *sum) {
    for (int e = 0; e < EXPERTS; e++) sum[e] = (float)(load[0][layer][e] + load[1][layer][e]);
}

static void test_eplb_is_published_per_layer(void **state) {
    (void)state;
    for (int hierarchical = 0; hierarchical < 2; hierarchical++) {
        lplb_place_config c = make_config(LPLB_PLACE_EPLB);
        c.nodes = hierarchical ? 2 : 0;
        c.groups = hierarchical ? 4 : 0;
        lplb_placement *p = place(&c);
        for (int layer = 0; layer < LAYERS; layer++) {
            float sum[EXPERTS];
            int32_t map[SLOTS];
            sum_layer(layer, sum);
            if (layer == 1)
                for (int i = 0; i < SLOTS; i++) map[i] = i % EXPERTS;
            else
                lplb_eplb_rebalance_experts(sum, 1, EXPERTS, SLOTS, hierarchical ? 4 : 1,
                                            hierarchical ? 2 : 1, RANKS, map, NULL, NULL);
            assert_memory_equal(map, p->physical_to_logical + layer * SLOTS, sizeof map);
        }
        lplb_placement_destroy(p);
    }
}

static void test_weights_choose_the_workload(void **state) {
    (void)state;
    lplb_place_config c = make_config(LPLB_PLACE_EPLB);
    lplb_placement *both, *second;
    double weight[SAMPLES] = {0, 2};
    assert_int_equal(lplb_place(&c, &load[0][0][0], 2, LAYERS, EXPERTS, weight, &both), LPLB_OK);
    assert_int_equal(lplb_place(&c, &load[1][0][0], 1, LAYERS, EXPERTS, NULL, &second), LPLB_OK);
    assert_memory_equal(both->physical_to_logical, second->physical_to_logical,
                        LAYERS * SLOTS * sizeof(int32_t));
    lplb_placement_destroy(both);
    lplb_placement_destroy(second);
}

static void test_eplb_skips_dead_ranks(void **state) {
    (void)state;
    lplb_place_config c = make_config(LPLB_PLACE_EPLB);
    uint8_t dead[RANKS] = {0, 0, 7, 0, 0, 0, 0, 0};
    c.dead_ranks = dead;
    lplb_placement *p = place(&c);
    assert_int_equal(lplb_placement_validate(p), LPLB_OK);
    for (int layer = 0; layer < LAYERS; layer++) {
        float sum[EXPERTS];
        int32_t map[SLOTS];
        sum_layer(layer, sum);
        lplb_eplb_rebalance_experts(sum, 1, EXPERTS, 42, 1, 1, 7, map, NULL, NULL);
        for (int i = 0; i < SLOTS; i++) {
            int32_t got = p->physical_to_logical[layer * SLOTS + i];
            if (i / 6 == 2) assert_int_equal(got, -1);
            else if (layer != 1) assert_int_equal(got, map[i < 12 ? i : i - 6]);
        }
    }
    lplb_placement_destroy(p);
}

static void test_topology_copies_along_r2o(void **state) {
    (void)state;
    static const char *const names[] = {"cube", "ring", "torus:2x4", "torus:2x2", NULL};
    for (int i = 0; i < 5; i++)
        for (int redundant = 1; redundant <= 4; redundant++) {
            lplb_topology *t = NULL;
            lplb_place_config c = make_config(LPLB_PLACE_TOPOLOGY);
            assert_int_equal(lplb_topology_create(names[i], RANKS, redundant, &t), LPLB_OK);
            c.topology = names[i] ? t : NULL;
            c.slots = EXPERTS + redundant * RANKS;
            lplb_placement *p = place(&c);
            int per_rank = c.slots / RANKS;
            const int32_t *map = p->physical_to_logical;
            float sum[EXPERTS];
            sum_layer(0, sum);
            for (int r = 0; r < RANKS; r++) {
                int group = r / t->group_size * t->group_size;
                for (int k = 1; k < 4; k++)
                    assert_true(sum[map[r * per_rank + k - 1]] >= sum[map[r * per_rank + k]]);
                for (int k = 0; k < redundant; k++) {
                    int from = group + t->r2o[(r - group) * t->redundant + k % t->redundant];
                    assert_int_equal(map[r * per_rank + 4 + k], map[from * per_rank + k]);
                }
            }
            lplb_topology_destroy(t);
            lplb_placement_destroy(p);
        }
    lplb_place_config c = make_config(LPLB_PLACE_TOPOLOGY);
    c.slots = EXPERTS; /* no redundancy: just the packing */
    lplb_placement *p = place(&c);
    assert_int_equal(lplb_placement_validate(p), LPLB_OK);
    lplb_placement_destroy(p);
}

static void test_refusals(void **state) {
    (void)state;
    lplb_place_config c = make_config(LPLB_PLACE_EPLB);
    c.struct_size = 8;
    expect_refusal(&c, LPLB_INVALID, "struct_size");
    c = make_config(LPLB_PLACE_EPLB);
    c.slots = 50;
    expect_refusal(&c, LPLB_INVALID, "remainder 2");
    c.slots = 24;
    expect_refusal(&c, LPLB_INFEASIBLE, "8 slots are missing");
    int32_t uneven[RANKS] = {7, 5, 6, 6, 6, 6, 6, 6};
    c = make_config(LPLB_PLACE_EPLB);
    c.slots_per_rank = uneven;
    expect_refusal(&c, LPLB_UNSUPPORTED, "unequal slots");
    int64_t speed[RANKS] = {1, 1, 1, 1, 1, 1, 1, 2};
    c = make_config(LPLB_PLACE_TOPOLOGY);
    c.speed = speed;
    expect_refusal(&c, LPLB_UNSUPPORTED, "speed");
    speed[7] = 0;
    expect_refusal(&c, LPLB_RANGE, "speed 0 of rank 7");
    uint8_t dead[RANKS] = {1, 1, 1, 1, 1, 1, 1, 1};
    c = make_config(LPLB_PLACE_TOPOLOGY);
    c.dead_ranks = dead;
    expect_refusal(&c, LPLB_INFEASIBLE, "dead");
    dead[0] = 0;
    expect_refusal(&c, LPLB_INFEASIBLE, "1 ranks alive have 6 slots");
    memset(dead, 0, sizeof dead);
    dead[3] = 1;
    expect_refusal(&c, LPLB_UNSUPPORTED, "alive");
    c.algorithm = LPLB_PLACE_EPLB;
    c.nodes = 2;
    c.groups = 2;
    expect_refusal(&c, LPLB_UNSUPPORTED, "unevenly");
    c = make_config(LPLB_PLACE_TOPOLOGY);
    c.slots = EXPERTS + 5 * RANKS;
    expect_refusal(&c, LPLB_UNSUPPORTED, "at most once");
    c = make_config((lplb_place_algorithm)9);
    expect_refusal(&c, LPLB_INVALID, "algorithm 9");
    lplb_topology *t;
    assert_int_equal(lplb_topology_create("torus:3x3", 9, 2, &t), LPLB_OK);
    c = make_config(LPLB_PLACE_TOPOLOGY);
    c.topology = t;
    expect_refusal(&c, LPLB_INVALID, "groups of 9");
    c.algorithm = LPLB_PLACE_EPLB;
    expect_refusal(&c, LPLB_UNSUPPORTED, "topology");
    lplb_topology_destroy(t);
    c = make_config(LPLB_PLACE_EPLB);
    load[1][2][3] = -4;
    expect_refusal(&c, LPLB_RANGE, "sample 1, layer 2, expert 3: load -4");
    load[1][2][3] = LPLB_MAX_TOKENS;
    expect_refusal(&c, LPLB_OVERFLOW, "layer 2");
    fill_loads(NULL);
}

/* Against the definition, with the exact optimum by all rank sets. */
static void test_imbalance(void **state) {
    (void)state;
    lplb_place_config c = make_config(LPLB_PLACE_TOPOLOGY);
    lplb_placement *p = place(&c);
    double even[SAMPLES][LAYERS], exact[SAMPLES][LAYERS];
    assert_int_equal(
        lplb_placement_imbalance(p, &load[0][0][0], SAMPLES, LPLB_SOLVER_EVEN, 1, &even[0][0]),
        LPLB_OK);
    assert_int_equal(
        lplb_placement_imbalance(p, &load[0][0][0], SAMPLES, LPLB_SOLVER_EXACT, 2, &exact[0][0]),
        LPLB_OK);
    for (int s = 0; s < SAMPLES; s++)
        for (int layer = 0; layer < LAYERS; layer++) {
            unsigned mask[EXPERTS] = {0};
            double rank_load[RANKS] = {0}, total = 0, most = 0, bound = 0;
            for (int i = 0; i < SLOTS; i++)
                mask[p->physical_to_logical[layer * SLOTS + i]] |= 1u << i / 6;
            for (int e = 0; e < EXPERTS; e++) {
                double w = (double)load[s][layer][e];
                total += w;
                for (int r = 0; r < RANKS; r++)
                    if (mask[e] >> r & 1) rank_load[r] += w / __builtin_popcount(mask[e]);
            }
            for (int r = 0; r < RANKS; r++) most = fmax(most, rank_load[r]);
            for (unsigned set = 1; set < 1u << RANKS; set++) {
                double inside = 0;
                for (int e = 0; e < EXPERTS; e++)
                    if (!(mask[e] & ~set)) inside += (double)load[s][layer][e];
                bound = fmax(bound, ceil(inside / __builtin_popcount(set)));
            }
            if (total == 0) {
                assert_true(even[s][layer] == 0 && exact[s][layer] == 0);
                continue;
            }
            assert_true(fabs(even[s][layer] - most * RANKS / total) < 40 / total);
            assert_true(fabs(exact[s][layer] - bound * RANKS / total) < 1e-12);
        }
    p->physical_to_logical[0] = 99;
    assert_int_equal(
        lplb_placement_imbalance(p, &load[0][0][0], SAMPLES, LPLB_SOLVER_EVEN, 1, &even[0][0]),
        LPLB_RANGE);
    lplb_placement_destroy(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eplb_is_published_per_layer),
        cmocka_unit_test(test_weights_choose_the_workload),
        cmocka_unit_test(test_eplb_skips_dead_ranks),
        cmocka_unit_test(test_topology_copies_along_r2o),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_imbalance),
    };
    return cmocka_run_group_tests(tests, fill_loads, NULL);
}
