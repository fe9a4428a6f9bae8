/* Locality against every split of tiny problems and against an LP on larger ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cases/cases.h"
#include "cases/lp.h"
#include "plan/plan.h"

typedef struct kept {
    int64_t local, on_node;
} kept;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* What a split keeps on its rank and on its node, from the definition. */
static kept count_kept(const plan_instance *p, const int32_t *node, const int64_t *split) {
    int32_t G = p->hosts.ranks, E = p->hosts.experts;
    kept sum = {0, 0};
    for (int32_t e = 0; e < E; e++) {
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++)
            sum.local += smaller(split[i], p->sources[(int64_t)p->rank[i] * E + e]);
        for (int32_t n = 0; n < G; n++) {
            int64_t here = 0, from = 0;
            for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++)
                if (node[p->rank[i]] == n) here += split[i];
            for (int32_t r = 0; r < G; r++)
                if (node[r] == n) from += p->sources[(int64_t)r * E + e];
            sum.on_node += smaller(here, from);
        }
    }
    return sum;
}

static lplb_status solve(const plan_instance *p, const int32_t *node, const int64_t *capacity,
                         int64_t *split) {
    lplb__arena arena = {0};
    lplb__locality *locality;
    lplb_plan_config config = {.hosts = p->hosts, .node = node};
    int64_t *zero = calloc((size_t)p->hosts.ranks, sizeof *zero);
    lplb__locality_reserve(&config, &arena);
    assert_int_equal(lplb__arena_create(&arena), LPLB_OK);
    assert_int_equal(lplb__locality_init(&locality, &config, &arena), LPLB_OK);
    lplb__batch batch = {.hosts = &p->hosts,
                         .node = node,
                         .tokens = p->tokens,
                         .fixed = p->fixed ? p->fixed : zero,
                         .sources = p->sources};
    lplb_status status = lplb__locality_solve(locality, &batch, capacity, split);
    lplb__arena_destroy(&arena);
    free(zero);
    return status;
}

/* Capacities that some random split meets, with a little room here and there. */
static void random_capacities(const plan_instance *p, lplb__rng *rng, int64_t slack,
                              int64_t *capacity) {
    for (int32_t r = 0; r < p->hosts.ranks; r++) {
        capacity[r] = p->fixed ? p->fixed[r] : 0;
        if (lplb__rng_below(rng, 2)) capacity[r] += lplb__rng_below(rng, slack + 1);
    }
    for (int32_t e = 0; e < p->hosts.experts; e++) {
        int64_t left = p->tokens[e], n = p->offset[e + 1] - p->offset[e];
        for (int64_t i = 0; i < n; i++) {
            int64_t part = i + 1 == n ? left : lplb__rng_below(rng, left + 1);
            capacity[p->rank[p->offset[e] + i]] += part;
            left -= part;
        }
    }
}

static void check_feasible(const plan_instance *p, const int64_t *capacity, const int64_t *split,
                           uint64_t seed) {
    for (int32_t r = 0; r < p->hosts.ranks; r++) p->loads[r] = p->fixed ? p->fixed[r] : 0;
    for (int32_t e = 0; e < p->hosts.experts; e++) {
        int64_t sum = 0;
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++) {
            if (split[i] < 0) fail_msg("seed %llu: negative", (unsigned long long)seed);
            sum += split[i];
            p->loads[p->rank[i]] += split[i];
        }
        if (sum != p->tokens[e]) fail_msg("seed %llu: sum", (unsigned long long)seed);
    }
    for (int32_t r = 0; r < p->hosts.ranks; r++)
        if (p->loads[r] > capacity[r])
            fail_msg("seed %llu: rank %d over capacity", (unsigned long long)seed, r);
}

/* ---- tiny problems: every split ---- */

typedef struct search {
    const plan_instance *p;
    const int32_t *node;
    int64_t room[4], split[16];
    kept best;
} search;

static void try_splits(search *s, int32_t e, int64_t i, int64_t left) {
    if (e == s->p->hosts.experts) {
        kept k = count_kept(s->p, s->node, s->split);
        if (k.local > s->best.local || (k.local == s->best.local && k.on_node > s->best.on_node))
            s->best = k;
        return;
    }
    int last = i + 1 == s->p->offset[e + 1];
    for (int64_t n = last ? left : 0; n <= left; n++) {
        int32_t r = s->p->rank[i];
        if (n > s->room[r]) break;
        s->room[r] -= n;
        s->split[i] = n;
        try_splits(s, e + last, i + 1, last ? s->p->tokens[e + 1] : left - n);
        s->room[r] += n;
    }
}

static void make_tiny(uint64_t seed, plan_instance *p, int32_t *node) {
    static int64_t offset[5], tokens[5], fixed[4], loads[4];
    static int32_t rank[16];
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 0);
    int32_t G = 2 + (int32_t)lplb__rng_below(&rng, 3), E = 1 + (int32_t)lplb__rng_below(&rng, 4);
    for (int32_t e = 0; e < E; e++) {
        int64_t mask = 1 + lplb__rng_below(&rng, (1 << G) - 1), n = offset[e];
        for (int32_t r = G - 1; r >= 0; r--)
            if (mask >> r & 1) rank[n++] = r;
        offset[e + 1] = n;
        tokens[e] = lplb__rng_below(&rng, 6);
    }
    tokens[E] = 0;
    for (int32_t r = 0; r < G; r++) {
        fixed[r] = lplb__rng_below(&rng, 3);
        node[r] = (int32_t)lplb__rng_below(&rng, 2);
    }
    *p = (plan_instance){.hosts = {G, E, offset, rank},
                         .offset = offset,
                         .rank = rank,
                         .tokens = tokens,
                         .fixed = fixed,
                         .loads = loads};
    instance_add_sources(p, seed);
}

static void test_against_every_split(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        plan_instance p;
        int32_t node[4];
        int64_t capacity[4], split[16];
        lplb__rng rng;
        make_tiny(seed, &p, node);
        lplb__rng_seed(&rng, seed, 1);
        random_capacities(&p, &rng, 2, capacity);
        search s = {.p = &p, .node = node, .best = {-1, -1}};
        for (int32_t r = 0; r < p.hosts.ranks; r++) s.room[r] = capacity[r] - p.fixed[r];
        try_splits(&s, 0, 0, p.tokens[0]);
        assert_int_equal(solve(&p, node, capacity, split), LPLB_OK);
        check_feasible(&p, capacity, split, seed);
        kept k = count_kept(&p, node, split);
        if (k.local != s.best.local || k.on_node != s.best.on_node)
            fail_msg("seed %llu: kept %lld, %lld; possible %lld, %lld", (unsigned long long)seed,
                     (long long)k.local, (long long)k.on_node, (long long)s.best.local,
                     (long long)s.best.on_node);
        free(p.sources);
    }
}

/* ---- larger ones: an LP ---- */

static void compare_with_lp(plan_instance *p, const int32_t *node, const int64_t *capacity,
                            const char *what, uint64_t seed) {
    lplb_plan_input input = {p->tokens, p->fixed, p->sources};
    int64_t local = -1, on_node = -1;
    assert_true(lp_locality(&p->hosts, node, &input, capacity, &local, &on_node));
    assert_int_equal(solve(p, node, capacity, p->split), LPLB_OK);
    check_feasible(p, capacity, p->split, seed);
    kept k = count_kept(p, node, p->split);
    if (k.local != local || k.on_node != on_node)
        fail_msg("%s, seed %llu: kept %lld, %lld; the LP keeps %lld, %lld", what,
                 (unsigned long long)seed, (long long)k.local, (long long)k.on_node,
                 (long long)local, (long long)on_node);
}

static void test_random_against_lp(void **state) {
    (void)state;
    if (!lp_available()) skip();
    for (uint64_t seed = 0; seed < 400; seed++) {
        plan_instance p;
        lplb__rng rng;
        int32_t node[16];
        int64_t capacity[16];
        instance_random(seed, 2000, &p);
        instance_add_sources(&p, seed);
        lplb__rng_seed(&rng, seed, 2);
        int64_t nodes = 1 + lplb__rng_below(&rng, p.hosts.ranks < 4 ? p.hosts.ranks : 4);
        for (int32_t r = 0; r < p.hosts.ranks; r++) node[r] = (int32_t)lplb__rng_below(&rng, nodes);
        random_capacities(&p, &rng, seed % 3 * 5, capacity);
        compare_with_lp(&p, node, capacity, "random", seed);
        instance_destroy(&p);
    }
}

/* The planner's own capacities: the tightest there are. */
static void plan_with_sources(plan_instance *p, const int32_t *node, lplb_plan *plan) {
    lplb_plan_config config = {
        .struct_size = sizeof config, .hosts = p->hosts, .speed = p->speed, .node = node};
    lplb_planner *planner;
    lplb_plan_input input = {p->tokens, p->fixed, p->sources};
    *plan = (lplb_plan){.split = p->split, .loads = p->loads, .certificate = p->certificate};
    assert_int_equal(lplb_planner_create(&config, &planner), LPLB_OK);
    if (lplb_plan_solve(planner, &input, plan) != LPLB_OK ||
        lplb_plan_check(&p->hosts, p->speed, &input, plan) != LPLB_OK)
        fail_msg("%s", lplb_error_message());
    assert_int_equal(plan->outcome, LPLB_OUTCOME_OPTIMAL);
    lplb_planner_destroy(planner);
}

static void test_shapes_against_lp(void **state) {
    (void)state;
    static const char *const names[] = {"cube8x2", "hypercube16x2-g1.0", "torus4x8", "eplb32",
                                        "eplb32-fixed"};
    if (!lp_available()) skip();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        plan_instance p;
        plan_case shape = *find_plan_case(names[i]);
        int32_t node[64];
        int64_t capacity[64];
        lplb_plan plan;
        shape.mean_tokens = 50;
        instance_create(&shape, i, &p);
        instance_add_sources(&p, i);
        for (int32_t r = 0; r < p.hosts.ranks; r++) node[r] = r / 8;
        plan_with_sources(&p, node, &plan);
        kept k = count_kept(&p, node, p.split);
        for (int32_t r = 0; r < p.hosts.ranks; r++) capacity[r] = plan.max_load;
        compare_with_lp(&p, node, capacity, names[i], i);
        kept again = count_kept(&p, node, p.split);
        assert_int_equal(k.local, again.local);
        assert_int_equal(k.on_node, again.on_node);
        instance_destroy(&p);
    }
}

/* Every shape of the table stays optimal with sources, and keeps no less than without. */
static void test_every_shape(void **state) {
    (void)state;
    for (int i = 0; i < n_plan_cases; i++) {
        plan_instance p;
        lplb_plan plan;
        instance_create(&plan_cases[i], 3, &p);
        int32_t *node = calloc((size_t)p.hosts.ranks, sizeof *node);
        for (int32_t r = 0; r < p.hosts.ranks; r++) node[r] = (r * 7 + 3) % 5 - 2;
        instance_add_sources(&p, 4);
        int64_t *sources = p.sources;
        p.sources = NULL;
        plan_with_sources(&p, node, &plan);
        double objective = plan.objective;
        p.sources = sources;
        for (int32_t r = 0; r < p.hosts.ranks; r++) node[r] += 2;
        kept before = count_kept(&p, node, p.split);
        plan_with_sources(&p, node, &plan);
        kept after = count_kept(&p, node, p.split);
        assert_true(plan.objective == objective);
        assert_true(after.local >= before.local);
        if (after.local == before.local) assert_true(after.on_node >= before.on_node);
        free(node);
        instance_destroy(&p);
    }
}

/* Neither the order in which hosts are listed nor the ids of the nodes change the split. */
static void test_listing_is_irrelevant(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        plan_instance p, q;
        lplb__rng rng;
        int32_t node[16], other[16];
        int64_t capacity[16];
        instance_random(seed, 1 << 20, &p);
        instance_random(seed, 1 << 20, &q);
        instance_add_sources(&p, seed);
        instance_add_sources(&q, seed);
        for (int32_t r = 0; r < 16; r++) {
            node[r] = r % 3;
            other[r] = 100 * (r % 3) - 5;
        }
        const int64_t *offset = p.offset;
        for (int32_t e = 0; e < p.hosts.experts; e++)
            for (int64_t i = offset[e], j = offset[e + 1] - 1; i < j; i++, j--) {
                int32_t swapped = q.rank[i];
                q.rank[i] = q.rank[j];
                q.rank[j] = swapped;
            }
        lplb__rng_seed(&rng, seed, 3);
        random_capacities(&p, &rng, 10, capacity);
        assert_int_equal(solve(&p, node, capacity, p.split), LPLB_OK);
        assert_int_equal(solve(&q, other, capacity, q.split), LPLB_OK);
        for (int32_t e = 0; e < p.hosts.experts; e++)
            for (int64_t i = offset[e]; i < offset[e + 1]; i++)
                assert_int_equal(p.split[i], q.split[offset[e] + offset[e + 1] - 1 - i]);
        instance_destroy(&p);
        instance_destroy(&q);
    }
}

static void test_impossible_capacities(void **state) {
    (void)state;
    int64_t offset[] = {0, 2, 4}, tokens[] = {5, 5}, sources[] = {5, 0, 0, 5, 0, 0}, split[4];
    int32_t rank[] = {0, 1, 0, 1};
    plan_instance p = {.hosts = {3, 2, offset, rank}, .tokens = tokens, .sources = sources};
    assert_int_equal(solve(&p, NULL, (int64_t[]){5, 5, 0}, split), LPLB_OK);
    assert_int_equal(solve(&p, NULL, (int64_t[]){4, 5, 9}, split), LPLB_INFEASIBLE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_every_split),   cmocka_unit_test(test_random_against_lp),
        cmocka_unit_test(test_shapes_against_lp),     cmocka_unit_test(test_every_shape),
        cmocka_unit_test(test_listing_is_irrelevant), cmocka_unit_test(test_impossible_capacities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
