/* The rebalance manager: what it decides, that it repeats itself, that nothing half done is used.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "cases/count_alloc.h"

enum { L = 3, E = 16, G = 4, P = 24, CELLS = L * E };

/* Log-normal expert weights that change at `phase`; multinomial batches. */
typedef struct traffic {
    lplb__rng rng;
    double weight[2][CELLS];
    int64_t tokens;
} traffic;

static void traffic_init(traffic *t, uint64_t seed, double sigma, int64_t tokens) {
    lplb__rng_seed(&t->rng, 31, seed);
    for (int i = 0; i < CELLS; i++) {
        t->weight[0][i] = exp(sigma * lplb__rng_normal(&t->rng));
        t->weight[1][i] = exp(sigma * lplb__rng_normal(&t->rng));
    }
    t->tokens = tokens;
}

static void traffic_batch(traffic *t, int phase, int64_t *counts) {
    for (int l = 0; l < L; l++)
        lplb__rng_multinomial(&t->rng, t->tokens, t->weight[phase] + l * E, E, counts + l * E);
}

static lplb_manager_config base_config(void) {
    return (lplb_manager_config){.struct_size = sizeof(lplb_manager_config),
                                 .layers = L,
                                 .experts = E,
                                 .ranks = G,
                                 .slots = P,
                                 .interval = 100,
                                 .min_interval = 20,
                                 .max_interval = 800,
                                 .adopt_lag = 7,
                                 .seed = 1};
}

static lplb_manager *make(const lplb_manager_config *config) {
    lplb_manager *m;
    lplb_status status = lplb_manager_create(config, &m);
    if (status != LPLB_OK) fail_msg("%s", lplb_error_message());
    return m;
}

static uint64_t digest_of(const lplb_manager *m) {
    const lplb_placement *p;
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    return lplb_mapping_digest(p);
}

/* ---- repeating ---- */

static lplb_status slow_place(void *user, const lplb_place_config *config, const int64_t *load,
                              int64_t samples, int32_t layers, int32_t experts,
                              const double *weight, lplb_placement **out) {
    lplb__rng *rng = user;
    struct timespec nap = {0, lplb__rng_below(rng, 3000000)};
    nanosleep(&nap, NULL);
    return lplb_place(config, load, samples, layers, experts, weight, out);
}

enum { STEPS = 1200 };

static void run_steps(lplb_manager *m, uint64_t *digests) {
    traffic t;
    traffic_init(&t, 5, 0.8, 4000);
    int64_t counts[CELLS];
    for (int step = 0; step < STEPS; step++) {
        traffic_batch(&t, step > STEPS / 2, counts);
        assert_int_equal(lplb_manager_step(m, step, LPLB_STAGE_DECODE, counts), LPLB_OK);
        digests[step] = digest_of(m);
    }
}

/* With a worker of any speed, without one, again: the same mapping at the same step. */
static void test_repeats(void **state) {
    (void)state;
    static uint64_t first[STEPS], again[STEPS];
    lplb__rng naps;
    lplb__rng_seed(&naps, 32, 0);
    for (int run = 0; run < 4; run++) {
        lplb_manager_config config = base_config();
        config.synchronous = run == 0;
        if (run >= 2) config.hooks = (lplb_manager_hooks){.user = &naps, .place = slow_place};
        lplb_manager *m = make(&config);
        run_steps(m, run ? again : first);
        if (run) assert_memory_equal(first, again, sizeof first);
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        assert_true(stats.adopted >= 2 && stats.moves > 0);
        assert_int_equal(stats.refused + stats.worker_failures, 0);
        lplb_manager_destroy(m);
    }
    assert_true(first[0] != first[STEPS - 1]);
}

/* Saved at any step and restored into another manager, the run goes on as it would have. */
static void test_save(void **state) {
    (void)state;
    static uint64_t whole[STEPS];
    lplb_forecaster_config forecaster = {.struct_size = sizeof forecaster, .block = 10};
    lplb_manager_config config = base_config();
    config.synchronous = 1;
    config.layers_per_chunk = 1;
    config.move_lag = 3;
    config.forecaster = &forecaster;
    lplb_manager *m = make(&config);
    run_steps(m, whole);
    lplb_manager_destroy(m);

    traffic t;
    traffic_init(&t, 5, 0.8, 4000);
    int64_t counts[CELLS];
    m = make(&config);
    lplb_manager *other = make(&config);
    size_t bytes = lplb_manager_save_bytes(m);
    unsigned char *saved = malloc(bytes), *again = malloc(bytes);
    int pending = 0;
    for (int step = 0; step < STEPS; step++) {
        traffic_batch(&t, step > STEPS / 2, counts);
        assert_int_equal(lplb_manager_step(m, step, LPLB_STAGE_DECODE, counts), LPLB_OK);
        assert_true(digest_of(m) == whole[step]);
        if (step % 2 == 0) continue; /* changes managers: every phase is met */
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        pending += stats.pending;
        assert_int_equal(lplb_manager_save(m, saved, bytes), LPLB_OK);
        assert_int_equal(lplb_manager_restore(other, saved, bytes), LPLB_OK);
        assert_int_equal(lplb_manager_save(other, again, bytes), LPLB_OK);
        assert_memory_equal(saved, again, bytes);
        lplb_manager *swap = m;
        m = other;
        other = swap;
    }
    assert_true(pending > 10);

    assert_int_equal(lplb_manager_save(m, saved, bytes - 1), LPLB_RANGE);
    assert_int_equal(lplb_manager_save(m, saved, bytes), LPLB_OK);
    saved[bytes / 2] ^= 4;
    uint64_t before = digest_of(other);
    assert_int_equal(lplb_manager_restore(other, saved, bytes), LPLB_FORMAT);
    assert_true(digest_of(other) == before);
    saved[bytes / 2] ^= 4;
    lplb_manager_destroy(other);
    config.min_gain = 0.02;
    other = make(&config);
    assert_int_equal(lplb_manager_restore(other, saved, bytes), LPLB_FORMAT);
    assert_non_null(strstr(lplb_error_message(), "another configuration"));
    free(saved);
    free(again);
    lplb_manager_destroy(m);
    lplb_manager_destroy(other);
}

/* ---- deciding ---- */

static void drive(lplb_manager *m, traffic *t, int phase, int64_t from, int64_t steps) {
    int64_t counts[CELLS];
    for (int64_t step = from; step < from + steps; step++) {
        traffic_batch(t, phase, counts);
        assert_int_equal(lplb_manager_step(m, step, LPLB_STAGE_DECODE, counts), LPLB_OK);
    }
}

/* Of the mapping in force, over fresh batches, tokens split evenly. */
static double mean_imbalance(const lplb_manager *m, traffic *t, int phase) {
    enum { SAMPLES = 20 };
    int64_t counts[SAMPLES * CELLS];
    double imbalance[SAMPLES * L], sum = 0;
    for (int k = 0; k < SAMPLES; k++) traffic_batch(t, phase, counts + k * CELLS);
    const lplb_placement *p;
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    assert_int_equal(lplb_placement_imbalance(p, counts, SAMPLES, LPLB_SOLVER_EVEN, 1, imbalance),
                     LPLB_OK);
    for (int i = 0; i < SAMPLES * L; i++) sum += imbalance[i] / (SAMPLES * L);
    return sum;
}

/* The same traffic for long: after the first rebalances noise moves next to nothing, the interval
 * grows; when traffic changes, the manager answers. */
static void test_no_churn(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    config.even_split = 1;
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t, 7, 0.8, 4000);
    lplb_manager_stats early, late, changed;
    drive(m, &t, 0, 0, 1500);
    lplb_manager_get_stats(m, &early);
    drive(m, &t, 0, 1500, 6000);
    lplb_manager_get_stats(m, &late);
    assert_true(early.moves > 0);
    print_message("moves: %lld in 1,500 steps, %lld in the next 6,000\n", (long long)early.moves,
                  (long long)(late.moves - early.moves));
    assert_true(late.moves - early.moves <= L * P / 10); /* loads get better known */
    assert_int_equal(late.interval, 800);
    double before = mean_imbalance(m, &t, 1);
    drive(m, &t, 1, 7500, 1500);
    lplb_manager_get_stats(m, &changed);
    assert_true(changed.moves > late.moves);
    double after = mean_imbalance(m, &t, 1);
    print_message("imbalance when traffic changed %.3f, after the answer %.3f\n", before, after);
    assert_true(after < before - 0.05);
    lplb_manager_destroy(m);
}

/* Periodic: a request every n steps, whatever the loads; `always` adopts all that differ. */
static void test_periodic(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    config.mode = LPLB_INTERVAL_PERIODIC;
    config.always = 1;
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t, 8, 0.8, 4000);
    drive(m, &t, 0, 1000, 1001);
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    assert_int_equal(stats.requests, 10);
    assert_int_equal(stats.interval, 100);
    assert_true(stats.adopted >= 8);
    lplb_event events[256];
    int64_t n = lplb_manager_events(m, events, 256), at = 1100;
    for (int64_t i = 0; i < n; i++) {
        if (events[i].kind != LPLB_EVENT_REQUEST) continue;
        assert_int_equal(events[i].step, at);
        at += 100;
    }
    lplb_manager_destroy(m);
}

/* A slow link makes moving not worth it, a fast one does. */
static void test_cost(void **state) {
    (void)state;
    static const double links[] = {1e6, 1e12};
    for (int i = 0; i < 2; i++) {
        lplb_manager_config config = base_config();
        config.expert_bytes = 50000000;
        config.token_ns = 100;
        config.link_bytes_per_s = links[i];
        lplb_manager *m = make(&config);
        traffic t;
        traffic_init(&t, 9, 0.8, 4000);
        drive(m, &t, 0, 0, 1000);
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        assert_true(i ? stats.moves > 0 : stats.moves == 0);
        assert_int_equal(stats.moved_bytes, stats.moves * config.expert_bytes);
        assert_true(stats.skipped > 0 || i);
        lplb_manager_destroy(m);
    }
}

static void test_max_moves(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    config.max_moves = 9;
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t, 10, 0.8, 4000);
    int64_t moves = 0, adopted = 0;
    for (int64_t step = 0; step < 2000; step += 10) {
        drive(m, &t, step > 1000, step, 10);
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        if (stats.adopted == adopted) continue;
        assert_true(stats.moves - moves <= 9 * (stats.adopted - adopted));
        moves = stats.moves;
        adopted = stats.adopted;
    }
    lplb_manager_destroy(m);
}

/* Loads that change for ever: at no time have there been more moves than were saved up. */
static void test_move_rate(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    config.algorithm = LPLB_PLACE_SEARCH;
    config.even_split = 1;
    config.move_rate = 0.1;
    config.move_cost = 0.02;
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t, 12, 0.8, 4000);
    lplb_manager_stats stats = {0};
    for (int64_t step = 0; step < 6000; step += 50) {
        drive(m, &t, step / 600 % 2, step, 50);
        lplb_manager_get_stats(m, &stats);
        double saved = L * P / 8 + 0.1 * L * P * (double)(step + 50) / 1000;
        if ((double)stats.moves > saved)
            fail_msg("%lld moves at step %lld, %g saved up", (long long)stats.moves,
                     (long long)step, saved);
    }
    assert_true(stats.moves > L * P / 8); /* and what is saved up is used */
    lplb_manager_destroy(m);
}

/* The more a move has to bring, the fewer are made. */
static void test_move_cost(void **state) {
    (void)state;
    static const double costs[] = {0.01, 1, 1000};
    int64_t moves[3];
    for (int i = 0; i < 3; i++) {
        lplb_manager_config config = base_config();
        config.algorithm = LPLB_PLACE_SEARCH;
        config.move_rate = -1;
        config.move_cost = costs[i];
        lplb_manager *m = make(&config);
        traffic t;
        traffic_init(&t, 13, 0.8, 4000);
        drive(m, &t, 0, 0, 1000);
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        moves[i] = stats.moves;
        lplb_manager_destroy(m);
    }
    assert_true(moves[0] >= moves[1] && moves[1] > 0);
    assert_int_equal(moves[2], 0);
}

/* ---- moving ---- */

typedef struct host {
    int32_t staged[L]; /* 1 staging, 2 arrived */
    int64_t layers_staged_now, most_staged;
    int32_t fail_stage, fail_staged, disagree; /* layer, layer, flag; -1 / 0 = never */
    int32_t map[L][P];
    lplb_event last[LPLB_EVENT_KINDS];
    int64_t events;
} host;

static lplb_status host_stage(void *user, int32_t layer, const lplb_move *moves, int64_t n) {
    host *h = user;
    assert_true(n > 0);
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(moves[i].layer, layer);
        assert_int_not_equal(h->map[layer][moves[i].slot], moves[i].expert);
    }
    h->staged[layer] = 1;
    if (++h->layers_staged_now > h->most_staged) h->most_staged = h->layers_staged_now;
    return layer == h->fail_stage ? LPLB_IO : LPLB_OK;
}

static lplb_status host_staged(void *user, int32_t layer) {
    host *h = user;
    assert_int_equal(h->staged[layer], 1);
    h->staged[layer] = 2;
    return layer == h->fail_staged ? LPLB_TIMEOUT : LPLB_OK;
}

static void host_commit(void *user, int32_t layer, const int32_t *row) {
    host *h = user;
    assert_int_equal(h->staged[layer], 2);
    h->staged[layer] = 0;
    h->layers_staged_now--;
    memcpy(h->map[layer], row, sizeof h->map[layer]);
}

static void host_discard(void *user, int32_t layer) {
    host *h = user;
    assert_true(h->staged[layer] != 0);
    h->staged[layer] = 0;
    h->layers_staged_now--;
}

static lplb_status host_agree(void *user, uint64_t digest, int32_t ok, int32_t *all_ok) {
    host *h = user;
    (void)digest;
    *all_ok = ok && !h->disagree;
    return LPLB_OK;
}

static void host_event(void *user, const lplb_event *event) {
    host *h = user;
    assert_true(event->text[0] != '\0');
    h->last[event->kind] = *event;
    h->events++;
}

static lplb_manager *make_hosted(host *h, lplb_manager_config *config) {
    *h = (host){.fail_stage = -1, .fail_staged = -1};
    for (int l = 0; l < L; l++)
        for (int p = 0; p < P; p++) h->map[l][p] = p % E;
    config->hooks = (lplb_manager_hooks){.user = h,
                                         .agree = host_agree,
                                         .stage = host_stage,
                                         .staged = host_staged,
                                         .commit = host_commit,
                                         .discard = host_discard,
                                         .event = host_event};
    return make(config);
}

static void same_map(const lplb_manager *m, const host *h) {
    const lplb_placement *p;
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    assert_memory_equal(p->physical_to_logical, h->map, sizeof h->map);
}

/* One layer at a time; a layer that fails keeps its mapping, the others go on. */
static void test_chunks(void **state) {
    (void)state;
    for (int failure = 0; failure < 3; failure++) {
        lplb_manager_config config = base_config();
        config.layers_per_chunk = 1;
        config.move_lag = 2;
        host h;
        lplb_manager *m = make_hosted(&h, &config);
        if (failure == 1) h.fail_stage = 1;
        if (failure == 2) h.fail_staged = 1;
        traffic t;
        traffic_init(&t, 11, 0.8, 4000);
        for (int64_t step = 0; step < 600; step++) {
            drive(m, &t, 0, step, 1);
            same_map(m, &h);
        }
        assert_int_equal(h.most_staged, 1);
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        assert_true(stats.layers_switched > 0);
        assert_true(failure ? stats.move_failures > 0 : stats.move_failures == 0);
        for (int p = 0; failure && p < P; p++) assert_int_equal(h.map[1][p], p % E);
        if (failure) {
            assert_int_equal(h.last[LPLB_EVENT_MOVE_FAILED].layer, 1);
            assert_non_null(strstr(h.last[LPLB_EVENT_MOVE_FAILED].text, "layer 1"));
        }
        assert_int_equal(h.layers_staged_now, 0);
        lplb_manager_destroy(m);
    }
}

static void test_disagreement(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    host h;
    lplb_manager *m = make_hosted(&h, &config);
    h.disagree = 1;
    traffic t;
    traffic_init(&t, 12, 0.8, 4000);
    drive(m, &t, 0, 0, 500);
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.refused > 0);
    assert_int_equal(stats.moves, 0);
    assert_int_equal(h.last[LPLB_EVENT_REFUSE].status, LPLB_DISAGREE);
    same_map(m, &h);
    h.disagree = 0;
    drive(m, &t, 0, 500, 500);
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.moves > 0);
    lplb_manager_destroy(m);
}

/* ---- refusals ---- */

typedef struct saboteur {
    int kind;
} saboteur;

static lplb_status bad_place(void *user, const lplb_place_config *config, const int64_t *load,
                             int64_t samples, int32_t layers, int32_t experts, const double *weight,
                             lplb_placement **out) {
    saboteur *s = user;
    if (s->kind == 0) return LPLB_NO_MEMORY;
    lplb_status status = lplb_place(config, load, samples, layers, experts, weight, out);
    if (status != LPLB_OK) return status;
    int32_t *map = (*out)->physical_to_logical;
    if (s->kind == 1) map[5] = experts;
    if (s->kind == 2) map[5] = -7;
    if (s->kind == 3) map[5] = -1;
    for (int32_t p = 0; s->kind == 4 && p < (*out)->slots; p++)
        if (map[p] == 3) map[p] = 4;
    return LPLB_OK;
}

static void test_bad_placements(void **state) {
    (void)state;
    for (int kind = 0; kind < 6; kind++) {
        saboteur s = {kind};
        lplb_manager_config config = base_config();
        config.hooks = (lplb_manager_hooks){.user = &s, .place = bad_place};
        lplb_manager *m = make(&config);
        traffic t;
        traffic_init(&t, 13, 0.8, 4000);
        uint64_t before = digest_of(m);
        drive(m, &t, 0, 0, 800);
        lplb_manager_stats stats;
        lplb_manager_get_stats(m, &stats);
        if (kind == 5) { /* an honest hook */
            assert_true(stats.moves > 0);
        } else {
            assert_true(stats.refused > 0);
            assert_int_equal(stats.worker_failures, stats.refused);
            assert_true(digest_of(m) == before);
            lplb_event events[256];
            int64_t n = lplb_manager_events(m, events, 256), refusals = 0;
            for (int64_t i = 0; i < n; i++) {
                if (events[i].kind != LPLB_EVENT_REFUSE) continue;
                assert_int_not_equal(events[i].status, LPLB_OK);
                assert_true(events[i].text[0] != '\0');
                refusals++;
            }
            assert_true(refusals > 0);
        }
        lplb_manager_destroy(m);
    }
}

static lplb_status stuck_place(void *user, const lplb_place_config *config, const int64_t *load,
                               int64_t samples, int32_t layers, int32_t experts,
                               const double *weight, lplb_placement **out) {
    (void)user;
    struct timespec nap = {0, 60000000};
    nanosleep(&nap, NULL);
    return lplb_place(config, load, samples, layers, experts, weight, out);
}

/* A worker that does not come back in time is left alone; its late answer is not used. */
static void test_slow_worker(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    config.worker_timeout_s = 0.002;
    config.hooks = (lplb_manager_hooks){.place = stuck_place};
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t, 14, 0.8, 4000);
    uint64_t before = digest_of(m);
    drive(m, &t, 0, 0, 600);
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.worker_failures > 0);
    assert_true(digest_of(m) == before);
    lplb_manager_destroy(m);
}

static void test_first_mapping(void **state) {
    (void)state;
    lplb_placement *p;
    assert_int_equal(lplb_placement_create(L, E, P, G, NULL, &p), LPLB_OK);
    for (int i = 0; i < L * P; i++) p->physical_to_logical[i] = (P - 1 - i % P) % E;
    lplb_manager_config config = base_config();
    config.initial = p;
    lplb_manager *m = make(&config);
    assert_true(digest_of(m) == lplb_mapping_digest(p));
    lplb_manager_destroy(m);
    for (int i = 0; i < P; i++) p->physical_to_logical[i] = 3; /* layer 0 lacks experts */
    m = make(&config);
    lplb_event event;
    assert_int_equal(lplb_manager_events(m, &event, 1), 1);
    assert_int_equal(event.kind, LPLB_EVENT_FALLBACK);
    assert_non_null(strstr(event.text, "expert 0 has no slot"));
    lplb_placement_fill_trivial(p);
    assert_true(digest_of(m) == lplb_mapping_digest(p));

    p->physical_to_logical[4] = 99;
    assert_int_equal(lplb_manager_reset(m, p), LPLB_RANGE);
    for (int i = 0; i < L * P; i++) p->physical_to_logical[i] = (P - 1 - i % P) % E;
    assert_int_equal(lplb_manager_reset(m, p), LPLB_OK);
    assert_true(digest_of(m) == lplb_mapping_digest(p));
    lplb_manager_destroy(m);
    lplb_placement_destroy(p);
}

static void test_bad_input(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    host h;
    lplb_manager *m = make_hosted(&h, &config);
    int64_t counts[CELLS] = {0};
    float loads[CELLS] = {0};
    assert_int_equal(lplb_manager_step(m, 5, LPLB_STAGE_DECODE, counts), LPLB_OK);
    assert_int_equal(lplb_manager_step(m, 5, LPLB_STAGE_DECODE, counts), LPLB_INVALID);
    assert_int_equal(lplb_manager_step(m, 6, LPLB_STAGE_ALL, counts), LPLB_INVALID);
    assert_int_equal(lplb_manager_step(m, 6, LPLB_STAGE_DECODE, NULL), LPLB_OK);
    counts[17] = -4;
    for (int64_t step = 7; step < 300; step++)
        assert_int_equal(lplb_manager_step(m, step, LPLB_STAGE_DECODE, counts), LPLB_OK);
    assert_int_equal(h.last[LPLB_EVENT_LOADS_REFUSED].step, 7);
    assert_non_null(strstr(h.last[LPLB_EVENT_LOADS_REFUSED].text, "layer 1, expert 1"));
    loads[3] = NAN;
    assert_int_equal(lplb_manager_step_real(m, 300, LPLB_STAGE_PREFILL, loads), LPLB_OK);
    loads[3] = 2.5f;
    assert_int_equal(lplb_manager_step_real(m, 301, LPLB_STAGE_PREFILL, loads), LPLB_OK);
    loads[3] = NAN;
    assert_int_equal(lplb_manager_step_real(m, 302, LPLB_STAGE_PREFILL, loads), LPLB_OK);
    assert_int_equal(h.last[LPLB_EVENT_LOADS_REFUSED].step, 302);
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    assert_int_equal(stats.loads_refused, 295);
    lplb_manager_destroy(m);

    static const struct {
        int64_t interval, min, max, lag, chunk_moves;
        double keep, gain;
        int32_t slots;
    } wrong[] = {{10, 20, 30, 5, 0, 0, 0, P},      {100, 20, 50, 5, 0, 0, 0, P},
                 {100, 20, 200, 201, 0, 0, 0, P},  {100, 20, 200, -1, 0, 0, 0, P},
                 {100, 20, 200, 5, -1, 0, 0, P},   {100, 20, 200, 5, 0, 0.5, 0, P},
                 {100, 20, 200, 5, 0, 0, NAN, P},  {100, 20, 200, 5, 0, 0, 0, E - 4},
                 {100, 20, 200, 5, 0, 0, 0, P + 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        config = base_config();
        config.interval = wrong[i].interval;
        config.min_interval = wrong[i].min;
        config.max_interval = wrong[i].max;
        config.adopt_lag = wrong[i].lag;
        config.moves_per_chunk = wrong[i].chunk_moves;
        config.keep_below = wrong[i].keep;
        config.min_gain = wrong[i].gain;
        config.slots = wrong[i].slots;
        assert_int_not_equal(lplb_manager_create(&config, &m), LPLB_OK);
        assert_null(m);
    }
    config = base_config();
    config.expert_bytes = 10;
    assert_int_equal(lplb_manager_create(&config, &m), LPLB_INVALID);
}

/* ---- ranks ---- */

static void test_dead_ranks(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    config.slots = 32; /* every expert twice */
    lplb_manager *m = make(&config);
    uint8_t dead[G] = {0, 0, 1, 0};
    assert_int_equal(lplb_manager_set_dead(m, dead), LPLB_OK);
    const lplb_placement *p;
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    assert_int_equal(lplb_mapping_validate(p, dead, 1), LPLB_OK);
    traffic t;
    traffic_init(&t, 15, 0.8, 4000);
    drive(m, &t, 0, 0, 60);
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    assert_int_equal(stats.dead_ranks, 1);
    assert_int_equal(stats.recoveries, 1);
    assert_true(stats.adopted >= 1); /* at once, not after the interval */
    dead[2] = 0;
    assert_int_equal(lplb_manager_set_dead(m, dead), LPLB_OK);
    drive(m, &t, 0, 60, 40);
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    assert_int_equal(lplb_mapping_validate(p, NULL, 1), LPLB_OK); /* full again */

    /* Ranks 0 and 2, then all but rank 0: 8 slots for 16 experts. */
    dead[1] = dead[2] = dead[3] = 1;
    assert_int_equal(lplb_manager_set_dead(m, dead), LPLB_INFEASIBLE);
    assert_non_null(strstr(lplb_error_message(), "8 slots are missing"));
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_STATE);
    drive(m, &t, 0, 100, 200); /* goes on, without a mapping */
    dead[1] = 0;
    assert_int_equal(lplb_manager_set_dead(m, dead), LPLB_INFEASIBLE);
    assert_non_null(strstr(lplb_error_message(), "checkpoint"));
    dead[1] = dead[2] = dead[3] = 0;
    lplb_placement *own;
    assert_int_equal(lplb_manager_set_dead(m, dead), LPLB_INFEASIBLE); /* they came back empty */
    assert_int_equal(lplb_placement_create(L, E, 32, G, NULL, &own), LPLB_OK);
    lplb_placement_fill_trivial(own);
    assert_int_equal(lplb_manager_reset(m, own), LPLB_OK);
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    lplb_placement_destroy(own);
    lplb_manager_destroy(m);
}

/* The thread that steps allocates nothing, even when it adopts; and nothing piles up. */
static void test_no_allocation(void **state) {
    (void)state;
    lplb_manager_config config = base_config();
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t, 16, 0.8, 4000);
    int64_t calls = count_alloc_calls(), live = count_alloc_live_bytes();
    for (int part = 0; part < 10; part++) drive(m, &t, part % 2, part * 300, 300);
    uint8_t dead[G] = {1, 0, 0, 0};
    assert_int_equal(count_alloc_calls(), calls);
    lplb_manager_set_dead(m, dead);
    drive(m, &t, 0, 3000, 300);
    assert_int_equal(count_alloc_calls(), calls);
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.adopted > 3);
    if (!stats.pending) assert_int_equal(count_alloc_live_bytes(), live);
    lplb_manager_destroy(m);
}

int main(void) {
    count_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeats),        cmocka_unit_test(test_save),
        cmocka_unit_test(test_no_churn),       cmocka_unit_test(test_periodic),
        cmocka_unit_test(test_cost),           cmocka_unit_test(test_max_moves),
        cmocka_unit_test(test_move_rate),      cmocka_unit_test(test_move_cost),
        cmocka_unit_test(test_chunks),         cmocka_unit_test(test_disagreement),
        cmocka_unit_test(test_bad_placements), cmocka_unit_test(test_slow_worker),
        cmocka_unit_test(test_first_mapping),  cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_dead_ranks),     cmocka_unit_test(test_no_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
