/* Placements: invariants, what is derived from them, moves and topologies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/placement.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"

static lplb_placement *make(int32_t layers, int32_t experts, int32_t ranks, const int32_t *per_rank,
                            int32_t slots, const int32_t *map) {
    lplb_placement *p;
    assert_int_equal(lplb_placement_create(layers, experts, slots, ranks, per_rank, &p), LPLB_OK);
    if (map) memcpy(p->physical_to_logical, map, (size_t)layers * (size_t)slots * sizeof *map);
    return p;
}

static void test_create(void **state) {
    (void)state;
    lplb_placement *p = make(2, 4, 3, (int32_t[]){3, 0, 2}, 5, NULL);
    assert_memory_equal(p->rank_offset, ((int32_t[]){0, 3, 3, 5}), 4 * sizeof(int32_t));
    for (int i = 0; i < 10; i++) assert_int_equal(p->physical_to_logical[i], -1);
    lplb_placement *copy;
    assert_int_equal(lplb_placement_copy(p, &copy), LPLB_OK);
    assert_memory_equal(p->rank_offset, copy->rank_offset, 4 * sizeof(int32_t));
    lplb_placement_destroy(copy);
    lplb_placement_destroy(p);
    assert_int_equal(lplb_placement_create(1, 4, 10, 4, NULL, &p), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "remainder 2"));
    assert_int_equal(lplb_placement_create(1, 4, 6, 2, (int32_t[]){3, 2}, &p), LPLB_INVALID);
    assert_int_equal(lplb_placement_create(1, 4, 6, 2, (int32_t[]){7, -1}, &p), LPLB_INVALID);
    assert_int_equal(lplb_placement_create(0, 4, 6, 2, NULL, &p), LPLB_INVALID);
    assert_int_equal(lplb_placement_create(1, 0, 6, 2, NULL, &p), LPLB_INVALID);
    assert_int_equal(lplb_placement_create(1, 4, 6, 0, NULL, &p), LPLB_INVALID);
    assert_null(p);
    lplb_placement_destroy(NULL);
}

static void test_validate(void **state) {
    (void)state;
    lplb_placement *p = make(2, 3, 2, NULL, 4, (int32_t[]){0, 1, 2, -1, 0, 1, 2, 2});
    assert_int_equal(lplb_placement_validate(p), LPLB_OK);
    p->physical_to_logical[6] = p->physical_to_logical[7] = 1;
    assert_int_equal(lplb_placement_validate(p), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "layer 1: expert 2"));
    p->physical_to_logical[7] = 3;
    assert_int_equal(lplb_placement_validate(p), LPLB_RANGE);
    assert_non_null(strstr(lplb_error_message(), "slot 3"));
    p->physical_to_logical[7] = -2;
    assert_int_equal(lplb_placement_validate(p), LPLB_RANGE);
    lplb_placement_fill_trivial(p);
    assert_memory_equal(p->physical_to_logical + 4, ((int32_t[]){0, 1, 2, 0}), 16);
    lplb_placement_destroy(p);
}

static void test_derived_maps(void **state) {
    (void)state;
    /* rank 0: 2 0 2, rank 1: 1 2 -1 */
    lplb_placement *p = make(1, 3, 2, NULL, 6, (int32_t[]){2, 0, 2, 1, 2, -1});
    int32_t count[3], map[9];
    assert_int_equal(lplb_placement_replica_count(p, count), 3);
    assert_memory_equal(count, ((int32_t[]){1, 1, 3}), sizeof count);
    assert_int_equal(lplb_placement_logical_to_physical(p, 3, map), LPLB_OK);
    assert_memory_equal(map, ((int32_t[]){1, -1, -1, 3, -1, -1, 0, 2, 4}), sizeof map);
    assert_int_equal(lplb_placement_logical_to_physical(p, 2, map), LPLB_INVALID);
    int64_t offset[4];
    int32_t rank[6];
    lplb_hosts hosts;
    assert_int_equal(lplb_placement_hosts(p, 0, offset, rank, &hosts), LPLB_OK);
    assert_memory_equal(offset, ((int64_t[]){0, 1, 2, 4}), sizeof offset);
    assert_memory_equal(rank, ((int32_t[]){0, 1, 0, 1}), 4 * sizeof *rank);
    assert_int_equal(lplb_placement_hosts(p, 1, offset, rank, &hosts), LPLB_RANGE);
    p->physical_to_logical[1] = 2;
    assert_int_equal(lplb_placement_hosts(p, 0, offset, rank, &hosts), LPLB_INVALID);
    lplb_placement_destroy(p);
}

/* Hosts against the definition, on random maps with uneven ranks and empty slots. */
static void test_hosts_random(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        lplb__rng rng;
        lplb__rng_seed(&rng, seed, 1);
        int32_t ranks = 1 + (int32_t)lplb__rng_below(&rng, 6), per_rank[6], slots = 0;
        for (int r = 0; r < ranks; r++)
            slots += per_rank[r] = 1 + (int32_t)lplb__rng_below(&rng, 6);
        int32_t experts = 1 + (int32_t)lplb__rng_below(&rng, slots);
        lplb_placement *p = make(1, experts, ranks, per_rank, slots, NULL);
        for (int i = 0; i < slots; i++)
            p->physical_to_logical[i] =
                i < experts ? i : (int32_t)lplb__rng_below(&rng, experts + 1) - 1;
        for (int i = slots - 1; i > 0; i--) {
            int64_t j = lplb__rng_below(&rng, i + 1);
            int32_t t = p->physical_to_logical[i];
            p->physical_to_logical[i] = p->physical_to_logical[j];
            p->physical_to_logical[j] = t;
        }
        int64_t offset[37];
        int32_t rank[36];
        lplb_hosts hosts;
        assert_int_equal(lplb_placement_hosts(p, 0, offset, rank, &hosts), LPLB_OK);
        for (int e = 0; e < experts; e++) {
            int64_t at = offset[e];
            for (int r = 0; r < ranks; r++) {
                int here = 0;
                for (int i = p->rank_offset[r]; i < p->rank_offset[r + 1]; i++)
                    here |= p->physical_to_logical[i] == e;
                if (!here) continue;
                if (at >= offset[e + 1] || rank[at] != r) fail_msg("seed %d", (int)seed);
                at++;
            }
            if (at != offset[e + 1]) fail_msg("seed %d", (int)seed);
        }
        lplb_placement_destroy(p);
    }
}

static void test_moves(void **state) {
    (void)state;
    lplb_placement *from = make(1, 4, 3, NULL, 6, (int32_t[]){0, 1, 2, 3, 0, 2});
    /* A changed order on a rank moves nothing; two new slots of one expert on a rank are one move.
     */
    lplb_placement *to = make(1, 4, 3, NULL, 6, (int32_t[]){1, 0, 0, 0, 2, 3});
    lplb_move moves[4];
    int64_t n;
    assert_int_equal(lplb_placement_moves(from, to, moves, 4, &n), LPLB_OK);
    assert_int_equal(n, 2);
    assert_memory_equal(&moves[0], (&(lplb_move){0, 2, 0, 1, 0}), sizeof *moves);
    assert_memory_equal(&moves[1], (&(lplb_move){0, 5, 3, 2, 1}), sizeof *moves);
    assert_int_equal(lplb_placement_moves(from, to, NULL, 0, &n), LPLB_OK);
    assert_int_equal(n, 2);
    assert_int_equal(lplb_placement_moves(from, from, NULL, 0, &n), LPLB_OK);
    assert_int_equal(n, 0);
    lplb_placement_destroy(to);
    /* Rank 1 died: expert 3 lived nowhere else, and rank 1 is no source for expert 2. */
    to = make(1, 4, 3, NULL, 6, (int32_t[]){3, 2, -1, -1, 0, 1});
    assert_int_equal(lplb_placement_moves(from, to, moves, 4, &n), LPLB_OK);
    assert_int_equal(n, 3);
    assert_memory_equal(&moves[0], (&(lplb_move){0, 0, 3, 0, -1}), sizeof *moves);
    assert_memory_equal(&moves[1], (&(lplb_move){0, 1, 2, 0, 2}), sizeof *moves);
    assert_memory_equal(&moves[2], (&(lplb_move){0, 5, 1, 2, 0}), sizeof *moves);
    lplb_placement_destroy(to);
    to = make(1, 4, 4, NULL, 8, (int32_t[]){0, 1, 2, 3, 0, 2, 0, 0}); /* a rank joined */
    assert_int_equal(lplb_placement_moves(from, to, moves, 4, &n), LPLB_OK);
    assert_int_equal(n, 1);
    assert_memory_equal(&moves[0], (&(lplb_move){0, 6, 0, 3, 0}), sizeof *moves);
    lplb_placement_destroy(to);
    to = make(1, 5, 3, NULL, 6, (int32_t[]){0, 1, 2, 3, 4, 4});
    assert_int_equal(lplb_placement_moves(from, to, moves, 4, &n), LPLB_INVALID);
    lplb_placement_destroy(to);
    lplb_placement_destroy(from);
}

/* ---- topologies ---- */

static void expect_topology(const char *name, int32_t ranks, int32_t redundant, int32_t group_size,
                            int32_t columns, const int32_t *column0, const int32_t *column1) {
    lplb_topology *t, *again;
    assert_int_equal(lplb_topology_create(name, ranks, redundant, &t), LPLB_OK);
    assert_int_equal(t->group_size, group_size);
    assert_int_equal(t->redundant, columns);
    for (int r = 0; r < group_size; r++) {
        if (column0) assert_int_equal(t->r2o[r * columns], column0[r]);
        if (column1) assert_int_equal(t->r2o[r * columns + 1], column1[r]);
    }
    /* every built-in one is a valid r2o */
    assert_int_equal(lplb_topology_from_r2o(t->r2o, group_size, columns, &again), LPLB_OK);
    assert_memory_equal(t->r2o, again->r2o, (size_t)(group_size * columns) * sizeof(int32_t));
    lplb_topology_destroy(again);
    lplb_topology_destroy(t);
}

static const int32_t cube0[] = {3, 0, 1, 2, 7, 4, 5, 6};
static const int32_t cube1[] = {6, 7, 4, 5, 0, 1, 2, 3};

static void test_published_topologies(void **state) {
    (void)state;
    static const int32_t hyper0[] = {3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14};
    static const int32_t hyper1[] = {12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    static const int32_t ring[] = {1, 2, 3, 4, 5, 6, 7, 0};
    static const int32_t torus0[] = {3, 4, 5, 0, 1, 2}, torus1[] = {1, 2, 0, 4, 5, 3};
    expect_topology("cube", 8, 2, 8, 2, cube0, cube1);
    expect_topology("cube", 32, 4, 8, 2, cube0, cube1);
    expect_topology("hypercube", 48, 2, 16, 2, hyper0, hyper1);
    expect_topology("ring", 8, 1, 8, 1, ring, NULL);
    expect_topology("ring", 13, 1, 13, 1, NULL, NULL);
    expect_topology("torus:2x3", 6, 2, 6, 2, torus0, torus1);
    expect_topology("torus:2x3", 18, 2, 6, 2, torus0, torus1);
    expect_topology("torus:8x4", 32, 2, 32, 2, NULL, NULL);
}

static void test_default_topologies(void **state) {
    (void)state;
    expect_topology("", 7, 1, 7, 1, NULL, NULL);
    expect_topology(NULL, 16, 2, 8, 2, cube0, cube1);
    expect_topology("", 6, 2, 6, 2, NULL, NULL);
    expect_topology("", 12, 3, 12, 2, (int32_t[]){4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3}, NULL);
    lplb_topology *t;
    assert_int_equal(lplb_topology_create("", 7, 2, &t), LPLB_UNSUPPORTED);
    assert_non_null(strstr(lplb_error_message(), "ring"));
    assert_null(t);
}

static void test_bad_topologies(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int32_t ranks;
        lplb_status status;
    } bad[] = {{"cube", 12, LPLB_UNSUPPORTED},     {"hypercube", 8, LPLB_UNSUPPORTED},
               {"ring", 1, LPLB_INVALID},          {"torus:1x8", 8, LPLB_UNSUPPORTED},
               {"torus:3x3", 8, LPLB_UNSUPPORTED}, {"torus:2x4x", 8, LPLB_INVALID},
               {"torus:", 8, LPLB_INVALID},        {"star", 8, LPLB_INVALID}};
    lplb_topology *t;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(lplb_topology_create(bad[i].name, bad[i].ranks, 2, &t), bad[i].status);
        assert_null(t);
    }
    assert_int_equal(lplb_topology_create("ring", 8, 0, &t), LPLB_INVALID);
    /* no permutation, a fixed point, out of range, too many columns */
    assert_int_equal(lplb_topology_from_r2o((int32_t[]){1, 0, 1}, 3, 1, &t), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "column 0"));
    assert_int_equal(lplb_topology_from_r2o((int32_t[]){1, 0, 2}, 3, 1, &t), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "r2o[2][0]"));
    assert_int_equal(lplb_topology_from_r2o((int32_t[]){1, 3, 0}, 3, 1, &t), LPLB_RANGE);
    assert_int_equal(lplb_topology_from_r2o((int32_t[]){1, 1, 0, 0}, 2, 2, &t), LPLB_INVALID);
    assert_int_equal(lplb_topology_from_r2o((int32_t[]){0}, 1, 1, &t), LPLB_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),
        cmocka_unit_test(test_validate),
        cmocka_unit_test(test_derived_maps),
        cmocka_unit_test(test_hosts_random),
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_published_topologies),
        cmocka_unit_test(test_default_topologies),
        cmocka_unit_test(test_bad_topologies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
