/* Dispatch: properties over random placements, sources and splits, against a token-by-token
 * oracle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/lplb.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"

enum { MAX_G = 8, MAX_E = 40, MAX_P = 96, MAX_S = 9, MAX_N = 600 };

typedef struct instance {
    lplb_placement *placement;
    int32_t G, E, P, S;
    int32_t source_rank[MAX_S], node[MAX_G];
    int64_t n[MAX_S];
    int64_t ids[MAX_S][MAX_N];
    int64_t counts[MAX_S * MAX_E];
    int64_t split[MAX_P];
    lplb_dispatcher *dispatcher;
    const lplb_hosts *hosts;
} instance;

static uint64_t seed; /* of the running case; printed when a test ends */

static int32_t below(lplb__rng *rng, int32_t bound) { return (int32_t)lplb__rng_below(rng, bound); }

static void make_placement(lplb__rng *rng, instance *in) {
    in->G = 1 + below(rng, MAX_G);
    in->E = 1 + below(rng, MAX_E);
    int32_t per_rank[MAX_G], left = in->E + below(rng, MAX_P - in->E + 1);
    in->P = left;
    for (int32_t r = 0; r < in->G; r++) { /* unequal, some ranks without a slot */
        per_rank[r] = r == in->G - 1 ? left : below(rng, left + 1);
        left -= per_rank[r];
    }
    assert_int_equal(lplb_placement_create(2, in->E, in->P, in->G, per_rank, &in->placement),
                     LPLB_OK);
    int32_t order[MAX_P];
    for (int32_t p = 0; p < in->P; p++) {
        int32_t k = below(rng, p + 1);
        order[p] = order[k];
        order[k] = p;
    }
    for (int32_t p = 0; p < in->P; p++) {
        int32_t extra = below(rng, 5) ? below(rng, in->E) : -1;
        in->placement->physical_to_logical[order[p]] = p % in->E;
        in->placement->physical_to_logical[in->P + order[p]] = p < in->E ? p : extra;
    }
}

static void make_tokens(lplb__rng *rng, instance *in) {
    in->S = 1 + below(rng, MAX_S);
    for (int32_t r = 0; r < in->G; r++) in->node[r] = below(rng, 3);
    for (int32_t s = 0; s < in->S; s++) {
        in->source_rank[s] = below(rng, in->G);
        in->n[s] = below(rng, 4) ? below(rng, MAX_N + 1) : 0;
        int32_t hot = below(rng, in->E);
        for (int64_t i = 0; i < in->n[s]; i++) {
            int32_t kind = below(rng, 8);
            in->ids[s][i] = kind == 0 ? -1 : kind < 4 ? hot : below(rng, in->E);
        }
        assert_int_equal(
            lplb_count_experts(in->ids[s], LPLB_INT64, in->n[s], in->E, 1, in->counts + s * in->E),
            LPLB_OK);
    }
}

static void make_split(lplb__rng *rng, instance *in) {
    for (int32_t e = 0; e < in->E; e++) {
        int64_t left = 0;
        for (int32_t s = 0; s < in->S; s++) left += in->counts[s * in->E + e];
        for (int64_t h = in->hosts->offset[e]; h < in->hosts->offset[e + 1]; h++) {
            bool last = h == in->hosts->offset[e + 1] - 1;
            in->split[h] = last ? left : lplb__rng_below(rng, left + 1);
            left -= in->split[h];
        }
    }
}

static void make(uint64_t which, int32_t threads, instance *in) {
    lplb__rng rng;
    lplb__rng_seed(&rng, which, 77);
    memset(in, 0, sizeof *in);
    make_placement(&rng, in);
    make_tokens(&rng, in);
    int32_t layer = below(&rng, 2);
    assert_int_equal(lplb_dispatcher_create(in->placement, layer, in->S, in->source_rank, in->node,
                                            threads, &in->dispatcher),
                     LPLB_OK);
    in->hosts = lplb_dispatcher_hosts(in->dispatcher);
    int64_t offset[MAX_E + 1];
    int32_t rank[MAX_P];
    lplb_hosts expected;
    assert_int_equal(lplb_placement_hosts(in->placement, layer, offset, rank, &expected), LPLB_OK);
    assert_int_equal(in->hosts->ranks, expected.ranks);
    assert_int_equal(in->hosts->experts, expected.experts);
    assert_memory_equal(in->hosts->offset, offset, (size_t)(in->E + 1) * sizeof *offset);
    assert_memory_equal(in->hosts->rank, rank, (size_t)offset[in->E] * sizeof *rank);
    make_split(&rng, in);
    if (layer) /* the dispatcher has its own copy; checks below look at row 0 */
        memcpy(in->placement->physical_to_logical, in->placement->physical_to_logical + in->P,
               (size_t)in->P * sizeof(int32_t));
}

static void drop(instance *in) {
    lplb_dispatcher_destroy(in->dispatcher);
    lplb_placement_destroy(in->placement);
}

static int32_t rank_of(const instance *in, int64_t slot) {
    int32_t r = 0;
    while (slot >= in->placement->rank_offset[r + 1]) r++;
    return r;
}

static int64_t host_of(const instance *in, int32_t e, int32_t rank) {
    for (int64_t h = in->hosts->offset[e]; h < in->hosts->offset[e + 1]; h++)
        if (in->hosts->rank[h] == rank) return h;
    fail_msg("expert %d has no host on rank %d", e, rank);
    return -1;
}

/* Every source maps alone; what all of them did is checked against the split. */
static void map_all(instance *in, int32_t locality, int64_t slots[MAX_S][MAX_N]) {
    for (int32_t s = in->S - 1; s >= 0; s--) {
        assert_int_equal(lplb_dispatch_prepare(in->dispatcher, in->counts, in->split, s, locality),
                         LPLB_OK);
        assert_int_equal(lplb_dispatch_map(in->dispatcher, in->ids[s], LPLB_INT64, in->n[s],
                                           slots[s], LPLB_INT64),
                         LPLB_OK);
    }
}

static void check_totals(const instance *in, int64_t slots[MAX_S][MAX_N]) {
    int64_t at_host[MAX_P] = {0}, at_slot[MAX_P] = {0};
    for (int32_t s = 0; s < in->S; s++)
        for (int64_t i = 0; i < in->n[s]; i++) {
            int64_t e = in->ids[s][i], p = slots[s][i];
            if (e < 0) {
                assert_int_equal(p, -1);
                continue;
            }
            assert_in_range(p, 0, in->P - 1);
            assert_int_equal(in->placement->physical_to_logical[p], e);
            at_host[host_of(in, (int32_t)e, rank_of(in, p))]++;
            at_slot[p]++;
        }
    assert_memory_equal(at_host, in->split, (size_t)in->hosts->offset[in->E] * sizeof(int64_t));
    for (int32_t p = 0; p < in->P; p++) /* even over the slots of a host, extras to the lower */
        for (int32_t q = p + 1; q < in->P && rank_of(in, p) == rank_of(in, q); q++) {
            int32_t e = in->placement->physical_to_logical[p];
            if (e < 0 || e != in->placement->physical_to_logical[q]) continue;
            assert_in_range(at_slot[p] - at_slot[q], 0, 1);
        }
}

/* The rule without locality, token by token: slots take consecutive intervals. */
static void check_intervals(const instance *in, int64_t slots[MAX_S][MAX_N]) {
    for (int32_t e = 0; e < in->E; e++) {
        int64_t expected_slot = 0, left = 0;
        int64_t queue_slot[MAX_P], queue_left[MAX_P], queued = 0;
        for (int64_t h = in->hosts->offset[e]; h < in->hosts->offset[e + 1]; h++) {
            int64_t mine[MAX_P], n = 0;
            for (int32_t p = 0; p < in->P; p++)
                if (in->placement->physical_to_logical[p] == e &&
                    rank_of(in, p) == in->hosts->rank[h])
                    mine[n++] = p;
            for (int64_t k = 0; k < n; k++) {
                queue_slot[queued] = mine[k];
                queue_left[queued++] = in->split[h] / n + (k < in->split[h] % n);
            }
        }
        int64_t next = 0;
        for (int32_t s = 0; s < in->S; s++)
            for (int64_t i = 0; i < in->n[s]; i++) {
                if (in->ids[s][i] != e) continue;
                while (left == 0) {
                    expected_slot = queue_slot[next];
                    left = queue_left[next++];
                }
                left--;
                assert_int_equal(slots[s][i], expected_slot);
            }
    }
}

/* Locality keeps as many tokens on their rank, and then on their node, as the split allows. */
static void check_locality(const instance *in, int64_t slots[MAX_S][MAX_N]) {
    int64_t on_rank = 0, on_node = 0, most_rank = 0, most_node = 0;
    for (int32_t s = 0; s < in->S; s++)
        for (int64_t i = 0; i < in->n[s]; i++) {
            if (in->ids[s][i] < 0) continue;
            int32_t rank = rank_of(in, slots[s][i]), own = in->source_rank[s];
            on_rank += rank == own;
            on_node += in->node[rank] == in->node[own];
        }
    for (int32_t e = 0; e < in->E; e++) {
        int64_t node_wants[3] = {0}, node_has[3] = {0};
        for (int32_t s = 0; s < in->S; s++)
            node_has[in->node[in->source_rank[s]]] += in->counts[s * in->E + e];
        for (int64_t h = in->hosts->offset[e]; h < in->hosts->offset[e + 1]; h++) {
            int64_t has = 0;
            for (int32_t s = 0; s < in->S; s++)
                if (in->source_rank[s] == in->hosts->rank[h]) has += in->counts[s * in->E + e];
            most_rank += has < in->split[h] ? has : in->split[h];
            node_wants[in->node[in->hosts->rank[h]]] += in->split[h];
        }
        for (int k = 0; k < 3; k++)
            most_node += node_has[k] < node_wants[k] ? node_has[k] : node_wants[k];
    }
    assert_int_equal(on_rank, most_rank);
    assert_int_equal(on_node, most_node);
}

static void test_random(void **state) {
    (void)state;
    static int64_t slots[MAX_S][MAX_N];
    for (seed = 0; seed < 400; seed++) {
        instance in;
        make(seed, 1, &in);
        map_all(&in, 0, slots);
        check_totals(&in, slots);
        check_intervals(&in, slots);
        map_all(&in, 1, slots);
        check_totals(&in, slots);
        check_locality(&in, slots);
        drop(&in);
    }
}

/* Threads, in place, every pair of widths: the same slots. */
static void test_same_for_all(void **state) {
    (void)state;
    enum { N = 70000, E = 24, G = 4 };
    int64_t *ids = malloc(N * sizeof *ids), *first = malloc(N * sizeof *first);
    void *in = malloc(N * 8), *out = malloc(N * 8);
    lplb__rng rng;
    lplb__rng_seed(&rng, 5, 0);
    lplb_placement *placement;
    assert_int_equal(lplb_placement_create(1, E, 48, G, NULL, &placement), LPLB_OK);
    lplb_placement_fill_trivial(placement);
    for (int64_t i = 0; i < N; i++) ids[i] = (i / 1000) % 3 ? below(&rng, E) : below(&rng, 3) - 1;
    int64_t counts[G * E] = {0}, split[48];
    assert_int_equal(lplb_count_experts(ids, LPLB_INT64, N, E, 1, counts + E), LPLB_OK);
    for (int32_t e = 0; e < E; e++) counts[e] = counts[3 * E + e] = 5 * e;
    static const int32_t threads[] = {1, 2, 5};
    static const lplb_dtype types[] = {LPLB_INT32, LPLB_INT64};
    for (int t = 0; t < 3; t++) {
        lplb_dispatcher *d;
        assert_int_equal(lplb_dispatcher_create(placement, 0, G, NULL, NULL, threads[t], &d),
                         LPLB_OK);
        const lplb_hosts *hosts = lplb_dispatcher_hosts(d);
        for (int32_t e = 0; e < E; e++) {
            int64_t total = counts[e] + counts[E + e] + counts[3 * E + e];
            int64_t h = hosts->offset[e];
            assert_int_equal(hosts->offset[e + 1] - h, 2);
            split[h] = total / 3;
            split[h + 1] = total - total / 3;
        }
        assert_int_equal(lplb_dispatch_prepare(d, counts, split, 1, 1), LPLB_OK);
        for (int a = 0; a < 2; a++)
            for (int b = 0; b < 2; b++)
                for (int in_place = 0; in_place <= (a == b); in_place++) {
                    for (int64_t i = 0; i < N; i++)
                        if (a) ((int64_t *)in)[i] = ids[i];
                        else ((int32_t *)in)[i] = (int32_t)ids[i];
                    void *to = in_place ? in : out;
                    assert_int_equal(lplb_dispatch_map(d, in, types[a], N, to, types[b]), LPLB_OK);
                    for (int64_t i = 0; i < N; i++) {
                        int64_t slot = b ? ((int64_t *)to)[i] : ((int32_t *)to)[i];
                        if (t + a + b + in_place == 0) first[i] = slot;
                        assert_int_equal(slot, first[i]);
                    }
                }
        int64_t again[E];
        assert_int_equal(lplb_dispatch_count(d, ids, LPLB_INT64, N, again), LPLB_OK);
        assert_memory_equal(again, counts + E, sizeof again);
        lplb_dispatcher_destroy(d);
    }
    lplb_placement_destroy(placement);
    free(ids), free(first), free(in), free(out);
}

static void test_count(void **state) {
    (void)state;
    enum { N = 600000, E = 1500 }; /* more experts than fit the stack tables; several threads */
    int32_t *ids = malloc(N * sizeof *ids);
    lplb__rng rng;
    lplb__rng_seed(&rng, 6, 0);
    for (int experts = 7; experts <= E; experts += E - 7) {
        int64_t expected[E] = {0}, counts[E];
        for (int64_t i = 0; i < N; i++) {
            ids[i] = below(&rng, experts + 1) - 1;
            if (ids[i] >= 0) expected[ids[i]]++;
        }
        for (int32_t threads = 0; threads <= 3; threads++) {
            assert_int_equal(lplb_count_experts(ids, LPLB_INT32, N, experts, threads, counts),
                             LPLB_OK);
            assert_memory_equal(counts, expected, (size_t)experts * sizeof *counts);
        }
        ids[N - 1] = experts;
        ids[N - 2] = -2;
        for (int32_t threads = 1; threads <= 2; threads++) {
            assert_int_equal(lplb_count_experts(ids, LPLB_INT32, N, experts, threads, counts),
                             LPLB_RANGE);
            assert_non_null(strstr(lplb_error_message(), "id -2 at position 599998"));
        }
    }
    int64_t none[3];
    assert_int_equal(lplb_count_experts(NULL, LPLB_INT64, 0, 3, 0, none), LPLB_OK);
    assert_int_equal(none[0] | none[1] | none[2], 0);
    assert_int_equal(lplb_count_experts(ids, LPLB_INT16, 4, 3, 0, none), LPLB_UNSUPPORTED);
    free(ids);
}

/* A child has its parent's dispatcher, but none of its threads. */
static void test_fork(void **state) {
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* it knows no threads in children */
#endif
    enum { N = 400000, E = 8 };
    lplb_placement *placement;
    lplb_dispatcher *d;
    assert_int_equal(lplb_placement_create(1, E, E, 2, NULL, &placement), LPLB_OK);
    lplb_placement_fill_trivial(placement);
    assert_int_equal(lplb_dispatcher_create(placement, 0, 1, NULL, NULL, 3, &d), LPLB_OK);
    int32_t *ids = malloc(N * sizeof *ids);
    for (int i = 0; i < N; i++) ids[i] = i % E;
    int64_t counts[E], again[E] = {0};
    assert_int_equal(lplb_dispatch_count(d, ids, LPLB_INT32, N, counts), LPLB_OK);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60); /* a child that waits for threads that are not there ends, too */
        bool good = lplb_dispatch_count(d, ids, LPLB_INT32, N, again) == LPLB_OK;
        good = good && memcmp(counts, again, sizeof counts) == 0;
        lplb_dispatcher_destroy(d);
        _exit(good ? 0 : 1);
    }
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    assert_int_equal(lplb_dispatch_count(d, ids, LPLB_INT32, N, again), LPLB_OK);
    assert_memory_equal(counts, again, sizeof counts);
    lplb_dispatcher_destroy(d);
    lplb_placement_destroy(placement);
    free(ids);
}

static void test_ratio(void **state) {
    (void)state;
    static int64_t slots[MAX_S][MAX_N];
    for (seed = 0; seed < 300; seed++) {
        instance in;
        make(seed, 1, &in);
        lplb__rng rng;
        lplb__rng_seed(&rng, seed, 78);
        float share[MAX_P];
        for (int64_t h = 0; h < in.hosts->offset[in.E]; h++) {
            float r = (float)lplb__rng_uniform(&rng);
            share[h] = r < 0.1f ? -r : r < 0.2f ? 1 + r : r < 0.3f ? 0 : r;
        }
        for (int64_t h = in.hosts->offset[0]; h < in.hosts->offset[1]; h++) share[h] = 0;
        for (int32_t s = 0; s < in.S; s++) {
            const int64_t *local = in.counts + s * in.E;
            assert_int_equal(lplb_dispatch_prepare_ratio(in.dispatcher, share, local, s), LPLB_OK);
            assert_int_equal(lplb_dispatch_map(in.dispatcher, in.ids[s], LPLB_INT64, in.n[s],
                                               slots[s], LPLB_INT64),
                             LPLB_OK);
            int64_t got[MAX_P] = {0};
            for (int64_t i = 0; i < in.n[s]; i++)
                if (in.ids[s][i] >= 0)
                    got[host_of(&in, (int32_t)in.ids[s][i], rank_of(&in, slots[s][i]))]++;
            for (int32_t e = 0; e < in.E; e++) {
                int64_t a = in.hosts->offset[e], b = in.hosts->offset[e + 1];
                double sum = 0;
                for (int64_t h = a; h < b; h++) sum += fmin(fmax(share[h], 0), 1);
                for (int64_t h = a; h < b; h++) {
                    double fair =
                        sum > 0 ? fmin(fmax(share[h], 0), 1) / sum : 1.0 / (double)(b - a);
                    assert_true((double)got[h] >= floor(fair * (double)local[e]) &&
                                (double)got[h] <= ceil(fair * (double)local[e]));
                }
            }
        }
        share[in.hosts->offset[in.E] - 1] = NAN;
        assert_int_equal(lplb_dispatch_prepare_ratio(in.dispatcher, share, in.counts, 0),
                         LPLB_INVALID);
        drop(&in);
    }
}

/* Many sources with few tokens each: the roundings must not all fall on one side. */
static void test_ratio_sources(void **state) {
    (void)state;
    enum { S = 64, E = 8 };
    lplb_placement *placement;
    assert_int_equal(lplb_placement_create(1, E, 2 * E, 2, NULL, &placement), LPLB_OK);
    lplb_placement_fill_trivial(placement);
    lplb_dispatcher *d;
    assert_int_equal(lplb_dispatcher_create(placement, 0, S, NULL, NULL, 1, &d), LPLB_OK);
    float share[2 * E];
    int64_t local[E], on_first[E] = {0};
    int32_t ids[3 * E], slots[3 * E];
    for (int32_t e = 0; e < E; e++) {
        share[2 * e] = (float)e / 7;
        share[2 * e + 1] = 1 - share[2 * e];
        local[e] = 3;
        for (int i = 0; i < 3; i++) ids[3 * e + i] = e;
    }
    for (int32_t s = 0; s < S; s++) {
        assert_int_equal(lplb_dispatch_prepare_ratio(d, share, local, s), LPLB_OK);
        assert_int_equal(lplb_dispatch_map(d, ids, LPLB_INT32, 3 * E, slots, LPLB_INT32), LPLB_OK);
        for (int i = 0; i < 3 * E; i++) on_first[ids[i]] += slots[i] < E;
    }
    for (int32_t e = 0; e < E; e++) assert_true(fabs((double)on_first[e] - 3.0 * S * e / 7) < 3);
    lplb_dispatcher_destroy(d);
    lplb_placement_destroy(placement);
}

static void test_errors(void **state) {
    (void)state;
    lplb_placement *placement;
    assert_int_equal(lplb_placement_create(1, 3, 6, 2, NULL, &placement), LPLB_OK);
    lplb_dispatcher *d;
    assert_int_equal(lplb_dispatcher_create(placement, 0, 2, NULL, NULL, 1, &d), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "no slot for expert 0"));
    lplb_placement_fill_trivial(placement);
    assert_int_equal(lplb_dispatcher_create(placement, 1, 2, NULL, NULL, 1, &d), LPLB_RANGE);
    assert_int_equal(lplb_dispatcher_create(placement, 0, 0, NULL, NULL, 1, &d), LPLB_RANGE);
    int32_t wrong_rank[] = {0, 2};
    assert_int_equal(lplb_dispatcher_create(placement, 0, 2, wrong_rank, NULL, 1, &d), LPLB_RANGE);
    assert_int_equal(lplb_dispatcher_create(placement, 0, 3, NULL, NULL, 1, &d), LPLB_OK);
    int64_t counts[9] = {2, 1, 0, 0, 0, 0, 0, 0, 5}, split[6] = {1, 1, 1, 0, 3, 2};
    int64_t ids[3] = {0, 1, 0}, out[3];
    assert_int_equal(lplb_dispatch_map(d, ids, LPLB_INT64, 3, out, LPLB_INT64), LPLB_STATE);
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 1),
                     LPLB_STATE); /* no ranks known */
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 3, 0), LPLB_RANGE);
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_OK);
    assert_int_equal(lplb_dispatch_map(d, ids, LPLB_INT64, 3, out, LPLB_INT64), LPLB_OK);
    int64_t more[4] = {0, 1, 0, 0}, fewer[2] = {0, 1}, bad[3] = {0, 1, 3};
    assert_int_equal(lplb_dispatch_map(d, more, LPLB_INT64, 4, more, LPLB_INT64), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "expert 0: 3 ids, but 2"));
    assert_int_equal(lplb_dispatch_map(d, fewer, LPLB_INT64, 2, out, LPLB_INT64), LPLB_INVALID);
    assert_non_null(strstr(lplb_error_message(), "expert 0: 1 ids, but 2"));
    assert_int_equal(lplb_dispatch_map(d, NULL, LPLB_INT64, 0, NULL, LPLB_INT64), LPLB_INVALID);
    assert_int_equal(lplb_dispatch_map(d, bad, LPLB_INT64, 3, out, LPLB_INT64), LPLB_RANGE);
    assert_non_null(strstr(lplb_error_message(), "id 3 at position 2"));
    assert_int_equal(lplb_dispatch_map(d, ids, LPLB_FLOAT32, 3, out, LPLB_INT64), LPLB_UNSUPPORTED);
    assert_int_equal(lplb_dispatch_map(d, ids, LPLB_INT64, -1, out, LPLB_INT64), LPLB_RANGE);
    split[0] = 2;
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_INVALID);
    split[1] = 1, split[0] = 0;
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_INVALID);
    split[0] = -1, split[1] = 3;
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_RANGE);
    counts[8] = -5;
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_RANGE);
    counts[8] = LPLB_MAX_TOKENS, counts[5] = 1;
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_OVERFLOW);
    counts[5] = 0, split[0] = 1, split[1] = 1, split[4] = LPLB_MAX_TOKENS, split[5] = 0;
    assert_int_equal(lplb_dispatch_prepare(d, counts, split, 0, 0), LPLB_OK);
    lplb_dispatcher_destroy(d);
    lplb_placement_destroy(placement);
}

static int64_t allocations;
static void *counted_alloc(size_t bytes, void *user) {
    (void)user;
    allocations++;
    return malloc(bytes);
}
static void *counted_realloc(void *block, size_t bytes, void *user) {
    (void)user;
    allocations++;
    return realloc(block, bytes);
}
static void plain_free(void *block, void *user) {
    (void)user;
    free(block);
}

static void test_allocates_nothing(void **state) {
    (void)state;
    static int64_t slots[MAX_S][MAX_N];
    const lplb_allocator counting = {counted_alloc, counted_realloc, plain_free, NULL};
    lplb_set_allocator(&counting);
    instance in;
    make(3, 2, &in);
    allocations = 0;
    map_all(&in, 1, slots);
    assert_int_equal(allocations, 0);
    drop(&in);
    lplb_set_allocator(NULL);
}

static int print_seed(void **state) {
    (void)state;
    print_message("last seed: %llu\n", (unsigned long long)seed);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_random, print_seed),
        cmocka_unit_test(test_same_for_all),
        cmocka_unit_test(test_count),
        cmocka_unit_test(test_fork),
        cmocka_unit_test_teardown(test_ratio, print_seed),
        cmocka_unit_test(test_ratio_sources),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
