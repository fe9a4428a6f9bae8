/* Between a request and its adoption: how many steps, and a worker that is not done by then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/runtime.h>
#include <math.h>
#include <stdatomic.h>
#include <time.h>

#include "base/rng.h"

enum { L = 3, E = 16, G = 4, P = 24, CELLS = L * E };

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
    if (lplb_manager_create(config, &m) != LPLB_OK) fail_msg("%s", lplb_error_message());
    return m;
}

static uint64_t digest_of(const lplb_manager *m) {
    const lplb_placement *p;
    assert_int_equal(lplb_manager_placement(m, &p), LPLB_OK);
    return lplb_mapping_digest(p);
}

/* Log-normal expert weights, multinomial batches. */
typedef struct traffic {
    lplb__rng rng;
    double weight[CELLS];
} traffic;

static void traffic_init(traffic *t) {
    lplb__rng_seed(&t->rng, 31, 5);
    for (int i = 0; i < CELLS; i++) t->weight[i] = exp(0.8 * lplb__rng_normal(&t->rng));
}

static void step_with(lplb_manager *m, traffic *t, int step) {
    int64_t counts[CELLS];
    for (int l = 0; l < L; l++)
        lplb__rng_multinomial(&t->rng, 4000, t->weight + l * E, E, counts + l * E);
    assert_int_equal(lplb_manager_step(m, step, LPLB_STAGE_DECODE, counts), LPLB_OK);
}

static int64_t lag_of(const lplb_manager_config *config) {
    lplb_manager_stats stats;
    lplb_manager *m = make(config);
    lplb_manager_get_stats(m, &stats);
    lplb_manager_destroy(m);
    return stats.adopt_lag;
}

/* The default follows from the configuration alone: more layers, more work and shorter steps need
 * more steps, threads fewer; what is given is kept. */
static void test_default_lag(void **state) {
    (void)state;
    lplb_manager_config config = {.struct_size = sizeof config,
                                  .layers = 10,
                                  .experts = 256,
                                  .ranks = 32,
                                  .slots = 288,
                                  .algorithm = LPLB_PLACE_SEARCH};
    int64_t few = lag_of(&config);
    assert_int_equal(few, 50);
    config.layers = 58;
    int64_t many = lag_of(&config);
    assert_true(many > few && many < 200);
    config.step_ns = 1e6;
    int64_t fast = lag_of(&config);
    assert_true(fast > 8 * many && fast < 12 * many);
    config.threads = 4;
    assert_true(lag_of(&config) < fast / 3);
    config.threads = 0;
    config.work = -1; /* the full schedule: seconds a layer */
    assert_int_equal(lag_of(&config), 10000);
    config.work = 0;
    config.algorithm = LPLB_PLACE_EPLB;
    assert_true(lag_of(&config) < fast);
    config.adopt_lag = 3;
    assert_int_equal(lag_of(&config), 3);
    config.step_ns = -1;
    lplb_manager *m;
    assert_int_equal(lplb_manager_create(&config, &m), LPLB_RANGE);
}

/* A place hook that is done when the test says so. */
typedef struct gate {
    atomic_int open, at_adoption;
} gate;

static void rest(void) {
    struct timespec nap = {0, 1000000};
    nanosleep(&nap, NULL);
}

static lplb_status gated_place(void *user, const lplb_place_config *config, const int64_t *load,
                               int64_t samples, int32_t layers, int32_t experts,
                               const double *weight, lplb_placement **out) {
    gate *g = user;
    while (!atomic_load(&g->open) && !atomic_load(&g->at_adoption)) rest();
    for (int i = 0; atomic_load(&g->at_adoption) && i < 50; i++) rest(); /* the step is waiting */
    return lplb_place(config, load, samples, layers, experts, weight, out);
}

static int64_t count_events(const lplb_manager *m, lplb_event_kind kind) {
    static lplb_event events[256];
    int64_t n = lplb_manager_events(m, events, 256), found = 0;
    for (int64_t i = 0; i < n; i++) found += events[i].kind == kind;
    return found;
}

/* A worker that is not done: with LPLB_LATE_POSTPONE no step waits, the adoption comes later. */
static void test_postpone(void **state) {
    (void)state;
    gate g = {0};
    lplb_manager_config config = base_config();
    config.late = LPLB_LATE_POSTPONE;
    config.always = 1;
    config.hooks = (lplb_manager_hooks){.user = &g, .place = gated_place};
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t);
    lplb_manager_stats stats;
    uint64_t first = digest_of(m);
    int step = 0;
    for (; step < 170; step++) { /* asked at 20 or 100, several lags ago */
        step_with(m, &t, step);
    }
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.postponed >= 5 && stats.pending && stats.waits == 0);
    assert_int_equal(count_events(m, LPLB_EVENT_POSTPONED), stats.postponed);
    assert_true(digest_of(m) == first);
    atomic_store(&g.open, 1);
    for (; step < 400 && digest_of(m) == first; step++) {
        rest();
        step_with(m, &t, step);
    }
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.adopted >= 1 && stats.waits == 0 && stats.wait_ns == 0);
    assert_int_equal(stats.refused, 0);
    lplb_manager_destroy(m);
}

/* With LPLB_LATE_WAIT the step waits, and that is counted and told. */
static void test_wait_is_told(void **state) {
    (void)state;
    gate g = {0};
    lplb_manager_config config = base_config();
    config.hooks = (lplb_manager_hooks){.user = &g, .place = gated_place};
    lplb_manager *m = make(&config);
    traffic t;
    traffic_init(&t);
    int64_t asked = 0;
    lplb_manager_stats stats = {0};
    for (int step = 0; step < 400 && !stats.waits; step++) {
        lplb_manager_get_stats(m, &stats);
        if (stats.requests && !asked) asked = step - 1;
        if (asked && step == asked + config.adopt_lag) atomic_store(&g.at_adoption, 1);
        step_with(m, &t, step);
    }
    lplb_manager_get_stats(m, &stats);
    assert_true(stats.waits == 1 && stats.wait_ns > 0 && stats.longest_wait_ns == stats.wait_ns);
    assert_int_equal(count_events(m, LPLB_EVENT_WAITED), 1);
    atomic_store(&g.at_adoption, 0);
    atomic_store(&g.open, 1);
    lplb_manager_destroy(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_default_lag),
                                       cmocka_unit_test(test_postpone),
                                       cmocka_unit_test(test_wait_is_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
