/* Faults met by the manager as a host runs it: two ranks, each a host thread with a manager and its
 * worker, in lockstep over worlds of weights, while a monitor is read. Ranks die and return,
 * workers fail, sleep, come too late or answer nonsense, transfers break, ranks disagree, loads are
 * NaN, zero or huge, and both managers are saved and restored into new ones in mid-run. Always:
 *   - a mapping that a manager gives out covers every expert on live ranks,
 *   - every slot of it holds that expert's weights (nothing half moved is used),
 *   - both managers have the same mapping, or both have none,
 *   - every event says why.
 * LPLB_FAULT_STEPS sets the number of steps (default 20,000), LPLB_FAULT_SEED the seed. How the
 * threads interleave is not seeded; the faults are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/monitor.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "cases/count_alloc.h"

enum { L = 2, E = 12, G = 6, PER_RANK = 4, P = G * PER_RANK, CELLS = L * E, GONE = -9, HOSTS = 2 };

typedef enum what_loads { COUNTS, REAL, NOTHING } what_loads;

/* What the leader decides for a step that both hosts take. */
typedef struct plan_of_step {
    int64_t counts[CELLS];
    float loads[CELLS];
    what_loads kind;
    int change_ranks, restore, disagree;
    uint8_t dead[G];
} plan_of_step;

struct run;

typedef struct host {
    struct run *run;
    int rank;
    lplb_manager *manager;
    lplb__rng rng, worker_rng; /* of this thread; of the worker */
    uint8_t dead[G];
    int32_t weights[L][P], staging[L][P];
    int staged[L], half[L];
    lplb_status status; /* after the step */
    uint64_t digest;
    int64_t events[LPLB_EVENT_KINDS];
} host;

typedef struct run {
    pthread_barrier_t barrier;
    host host[HOSTS];
    plan_of_step step;
    lplb_manager_config config;
    lplb_monitor *monitor;
    uint64_t digest[HOSTS];
    int32_t ok[HOSTS];
    lplb__rng rng;
    double weight[CELLS];
    int64_t at, steps, restores, without, usable_steps;
    int64_t live_early;
    int checkpoint_works;
    atomic_int failed;
    char failure[200];
} run;

/* A thread must not leave cmocka's way: the first failure is kept, the main thread asserts. */
static void broken(run *r, const char *what) {
    int none = 0;
    if (atomic_compare_exchange_strong(&r->failed, &none, 1))
        snprintf(r->failure, sizeof r->failure, "step %lld: %s", (long long)r->at, what);
}

static int chance(lplb__rng *rng, int one_in) { return lplb__rng_below(rng, one_in) == 0; }

static void nap(int64_t us) {
    struct timespec time = {0, us * 1000};
    nanosleep(&time, NULL);
}

/* ---- hooks ---- */

static lplb_status on_agree(void *user, uint64_t digest, int32_t ok, int32_t *all_ok) {
    host *h = user;
    run *r = h->run;
    r->digest[h->rank] = digest;
    r->ok[h->rank] = ok;
    pthread_barrier_wait(&r->barrier);
    *all_ok = r->ok[0] && r->ok[1] && r->digest[0] == r->digest[1] && !r->step.disagree;
    pthread_barrier_wait(&r->barrier);
    return LPLB_OK;
}

static lplb_status on_stage(void *user, int32_t layer, const lplb_move *moves, int64_t n) {
    host *h = user;
    h->staged[layer] = 1;
    h->half[layer] = chance(&h->rng, 30);
    for (int64_t i = 0; i < n; i++) {
        const lplb_move *m = &moves[i];
        int32_t got = GONE;
        if (h->dead[m->rank] || (m->source_rank >= 0 && h->dead[m->source_rank]))
            broken(h->run, "a move from or to a dead rank");
        if (m->source_rank < 0) got = h->run->checkpoint_works ? m->expert : GONE;
        for (int32_t p = m->source_rank * PER_RANK;
             m->source_rank >= 0 && p < (m->source_rank + 1) * PER_RANK; p++)
            if (h->weights[layer][p] == m->expert || h->staging[layer][p] == m->expert)
                got = m->expert;
        if (got == GONE) h->half[layer] = 1;
        h->staging[layer][m->slot] = h->half[layer] && chance(&h->rng, 2) ? GONE : got;
    }
    return h->half[layer] && chance(&h->rng, 2) ? LPLB_IO : LPLB_OK;
}

static lplb_status on_staged(void *user, int32_t layer) {
    host *h = user;
    return h->half[layer] ? LPLB_IO : LPLB_OK;
}

static void unstage(host *h, int32_t layer) {
    for (int32_t p = 0; p < P; p++) h->staging[layer][p] = GONE;
    h->staged[layer] = h->half[layer] = 0;
}

static void on_commit(void *user, int32_t layer, const int32_t *row) {
    host *h = user;
    for (int32_t p = 0; h->staged[layer] && p < P; p++)
        if (h->staging[layer][p] != GONE) h->weights[layer][p] = h->staging[layer][p];
    unstage(h, layer);
    for (int32_t p = 0; p < P; p++)
        if (row[p] >= 0 && h->weights[layer][p] != row[p])
            broken(h->run, "a committed slot does not hold its expert");
}

static void on_discard(void *user, int32_t layer) { unstage(user, layer); }

static void on_event(void *user, const lplb_event *event) {
    host *h = user;
    bool bad = event->kind == LPLB_EVENT_REFUSE || event->kind == LPLB_EVENT_MOVE_FAILED ||
               event->kind == LPLB_EVENT_WORKER_FAILED || event->kind == LPLB_EVENT_LOST;
    if (!event->text[0] || (bad && event->status == LPLB_OK))
        broken(h->run, "an event without its reason");
    h->events[event->kind]++;
}

/* On the worker: EPLB, or a failure, a nap, a delay beyond the timeout, a broken answer. */
static lplb_status on_place(void *user, const lplb_place_config *config, const int64_t *load,
                            int64_t samples, int32_t layers, int32_t experts, const double *weight,
                            lplb_placement **out) {
    host *h = user;
    int what = (int)lplb__rng_below(&h->worker_rng, 40);
    if (what == 0) return LPLB_NO_MEMORY;
    if (what == 1) nap(4000); /* the timeout is 2 ms */
    if (what < 8) nap(lplb__rng_below(&h->worker_rng, 300));
    lplb_status status = lplb_place(config, load, samples, layers, experts, weight, out);
    if (status != LPLB_OK || what < 8 || what > 12) return status;
    int32_t *map = (*out)->physical_to_logical;
    int32_t at = (int32_t)lplb__rng_below(&h->worker_rng, (int64_t)layers * P);
    if (what == 8) map[at] = INT32_MAX;
    if (what == 9) map[at] = -7;
    if (what == 10) map[at] = (int32_t)lplb__rng_below(&h->worker_rng, E); /* maybe valid */
    if (what == 11) memset(map, 0, sizeof *map * (size_t)layers * P);
    if (what == 12)
        for (int32_t i = 0; i < layers * P; i++)
            map[i] = (int32_t)lplb__rng_below(&h->worker_rng, E);
    return LPLB_OK;
}

/* ---- one step of a host ---- */

static lplb_manager *create(run *r, host *h) {
    lplb_manager_config config = r->config;
    config.monitor = h->rank ? NULL : r->monitor;
    config.hooks = (lplb_manager_hooks){.user = h,
                                        .agree = on_agree,
                                        .stage = on_stage,
                                        .staged = on_staged,
                                        .commit = on_commit,
                                        .discard = on_discard,
                                        .event = on_event,
                                        .place = on_place};
    lplb_manager *m;
    if (lplb_manager_create(&config, &m) != LPLB_OK) broken(r, lplb_error_message());
    return m;
}

/* As after a crash of the process: the weights are there, what was being staged is not. */
static void restore(run *r, host *h) {
    size_t bytes = lplb_manager_save_bytes(h->manager);
    void *state = malloc(bytes);
    if (lplb_manager_save(h->manager, state, bytes) != LPLB_OK) broken(r, lplb_error_message());
    lplb_manager_destroy(h->manager);
    for (int32_t l = 0; l < L; l++) unstage(h, l);
    h->manager = create(r, h);
    if (!atomic_load(&r->failed) && lplb_manager_restore(h->manager, state, bytes) != LPLB_OK)
        broken(r, lplb_error_message());
    free(state);
}

static void change_ranks(host *h) {
    const plan_of_step *step = &h->run->step;
    for (int32_t g = 0; g < G; g++)
        for (int32_t l = 0; step->dead[g] != h->dead[g] && l < L; l++)
            for (int32_t p = g * PER_RANK; p < (g + 1) * PER_RANK; p++)
                h->weights[l][p] = h->staging[l][p] = GONE;
    memcpy(h->dead, step->dead, sizeof h->dead);
    lplb_status status = lplb_manager_set_dead(h->manager, h->dead);
    if (status != LPLB_OK && status != LPLB_INFEASIBLE) broken(h->run, lplb_error_message());
}

static void check_mapping(host *h) {
    const lplb_placement *p;
    h->status = lplb_manager_placement(h->manager, &p);
    h->digest = 0;
    if (h->status != LPLB_OK) {
        if (h->status != LPLB_STATE) broken(h->run, lplb_error_message());
        return;
    }
    h->digest = lplb_mapping_digest(p);
    if (lplb_mapping_validate(p, h->dead, 0) != LPLB_OK) broken(h->run, lplb_error_message());
    for (int32_t i = 0; i < L * P; i++)
        if (p->physical_to_logical[i] >= 0 && h->weights[i / P][i % P] != p->physical_to_logical[i])
            broken(h->run, "a slot in use does not hold its expert");
}

static void take_step(host *h) {
    run *r = h->run;
    const plan_of_step *s = &r->step;
    lplb_status status =
        s->kind == REAL ? lplb_manager_step_real(h->manager, r->at, LPLB_STAGE_DECODE, s->loads)
                        : lplb_manager_step(h->manager, r->at, LPLB_STAGE_DECODE,
                                            s->kind == COUNTS ? s->counts : NULL);
    if (status != LPLB_OK) broken(r, lplb_error_message());
    if (s->change_ranks) change_ranks(h);
    if (s->restore) restore(r, h);
    if (!atomic_load(&r->failed)) check_mapping(h);
}

/* ---- the leader ---- */

static void draw_loads(run *r) {
    plan_of_step *s = &r->step;
    for (int32_t i = 0; i < CELLS; i++)
        s->counts[i] = (int64_t)(r->weight[i] * (double)(90 + lplb__rng_below(&r->rng, 20)));
    if (chance(&r->rng, 300))
        for (int32_t i = 0; i < CELLS; i++) r->weight[i] = exp(lplb__rng_normal(&r->rng));
    int what = (int)lplb__rng_below(&r->rng, 60);
    s->kind = what >= 4 && what <= 6 ? REAL : what == 7 ? NOTHING : COUNTS;
    if (what == 0) memset(s->counts, 0, sizeof s->counts);
    if (what == 1) s->counts[5] = INT64_MAX;
    if (what == 2) s->counts[5] = LPLB_TRACKER_MAX_COUNT;
    if (what == 3) s->counts[7] = -1;
    for (int32_t i = 0; i < CELLS; i++) s->loads[i] = (float)s->counts[i] + 0.25f;
    if (what == 4) s->loads[3] = NAN;
    if (what == 5) s->loads[3] = INFINITY;
}

static void plan_step(run *r) {
    plan_of_step *s = &r->step;
    draw_loads(r);
    s->disagree = chance(&r->rng, 60);
    s->restore = chance(&r->rng, 2000);
    s->change_ranks = 0;
    if (chance(&r->rng, r->checkpoint_works ? 1000 : 100)) r->checkpoint_works ^= 1;
    if (!chance(&r->rng, 80)) return;
    int32_t g = (int32_t)lplb__rng_below(&r->rng, G), alive = 0;
    for (int32_t i = 0; i < G; i++) alive += !s->dead[i];
    if (!s->dead[g] && (alive == 1 || !chance(&r->rng, 4))) return;
    s->dead[g] = !s->dead[g];
    s->change_ranks = 1;
}

static void compare(run *r) {
    static char text[1 << 16];
    size_t bytes;
    if (r->host[0].status != r->host[1].status) broken(r, "only one rank has a mapping");
    if (r->host[0].digest != r->host[1].digest) broken(r, "ranks have different mappings");
    r->without += r->host[0].status != LPLB_OK;
    r->restores += r->step.restore;
    if (r->at % 1000 == 0 && lplb_monitor_render(r->monitor, LPLB_MONITOR_OPENMETRICS, text,
                                                 sizeof text, &bytes) != LPLB_OK)
        broken(r, lplb_error_message());
    if (r->at == r->steps / 10) r->live_early = count_alloc_live_bytes();
}

static void *live(void *argument) {
    host *h = argument;
    run *r = h->run;
    while (r->at < r->steps && !atomic_load(&r->failed)) {
        if (!h->rank) plan_step(r);
        pthread_barrier_wait(&r->barrier);
        take_step(h);
        pthread_barrier_wait(&r->barrier);
        if (!h->rank) compare(r), r->at++;
        pthread_barrier_wait(&r->barrier);
    }
    return NULL;
}

/* ---- the runs ---- */

static int64_t setting(const char *name, int64_t fallback) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 10) : fallback;
}

static void begin(run *r, int32_t late, uint64_t seed) {
    memset(r, 0, sizeof *r);
    lplb__rng_seed(&r->rng, seed, 0);
    pthread_barrier_init(&r->barrier, NULL, HOSTS);
    lplb_monitor_config monitor = {.struct_size = sizeof monitor, .ranks = G};
    assert_int_equal(lplb_monitor_create(&monitor, &r->monitor), LPLB_OK);
    r->config = (lplb_manager_config){.struct_size = sizeof r->config,
                                      .layers = L,
                                      .experts = E,
                                      .ranks = G,
                                      .slots = P,
                                      .interval = 40,
                                      .min_interval = 10,
                                      .max_interval = 160,
                                      .adopt_lag = 3,
                                      .late = late,
                                      .tracker = {.alpha = 0.05, .samples = 3},
                                      .layers_per_chunk = 1,
                                      .move_lag = 2,
                                      .load_lost = 1,
                                      .worker_timeout_s = 0.002};
    r->checkpoint_works = 1;
    for (int32_t i = 0; i < CELLS; i++) r->weight[i] = exp(lplb__rng_normal(&r->rng));
    for (int i = 0; i < HOSTS; i++) {
        host *h = &r->host[i];
        h->run = r;
        h->rank = i;
        lplb__rng_seed(&h->rng, seed, 1 + (uint64_t)i);
        lplb__rng_seed(&h->worker_rng, seed, 11 + (uint64_t)i);
        for (int32_t l = 0; l < L; l++) unstage(h, l);
        h->manager = create(r, h);
        const lplb_placement *p;
        assert_int_equal(lplb_manager_placement(h->manager, &p), LPLB_OK);
        memcpy(h->weights, p->physical_to_logical, sizeof h->weights);
    }
}

static void report(const run *r) {
    const host *h = &r->host[0];
    lplb_manager_stats s;
    lplb_manager_get_stats(h->manager, &s);
    for (int k = 0; k < LPLB_EVENT_KINDS; k++)
        if (h->events[k])
            print_message("  %-14s %lld\n", lplb_event_name((lplb_event_kind)k),
                          (long long)h->events[k]);
    print_message("  requests %lld, adopted %lld, refused %lld, moves %lld, loaded %lld, restores "
                  "%lld, steps without a mapping %lld\n",
                  (long long)s.requests, (long long)s.adopted, (long long)s.refused,
                  (long long)s.moves, (long long)s.loaded, (long long)r->restores,
                  (long long)r->without);
}

static void run_shell(int32_t late) {
    static run r;
    uint64_t seed = (uint64_t)setting("LPLB_FAULT_SEED", 1);
    int64_t steps = setting("LPLB_FAULT_STEPS", 20000), idle = count_alloc_live_bytes();
    print_message("seed %llu, %lld steps\n", (unsigned long long)seed, (long long)steps);
    begin(&r, late, seed);
    r.steps = steps;
    pthread_t thread[HOSTS];
    for (int i = 0; i < HOSTS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, live, &r.host[i]), 0);
    for (int i = 0; i < HOSTS; i++) pthread_join(thread[i], NULL);
    if (r.failed) fail_msg("%s", r.failure);
    report(&r);
    const int64_t *events = r.host[0].events;
    assert_true(events[LPLB_EVENT_REFUSE] > 20 && events[LPLB_EVENT_MOVE_FAILED] > 5);
    assert_true(events[LPLB_EVENT_LOST] > 5 && events[LPLB_EVENT_RECOVERED] > 20);
    assert_true(events[LPLB_EVENT_DONE] > 50 && events[LPLB_EVENT_WORKER_FAILED] > 5);
    assert_true(r.restores > 2 && r.without < steps / 2);
    /* Nothing piles up; a worker may be in the middle of a placement of a few KiB. */
    assert_true(llabs(count_alloc_live_bytes() - r.live_early) < 65536);
    for (int i = 0; i < HOSTS; i++) lplb_manager_destroy(r.host[i].manager);
    lplb_monitor_destroy(r.monitor);
    pthread_barrier_destroy(&r.barrier);
    assert_int_equal(count_alloc_live_bytes(), idle);
}

static void test_shell(void **state) {
    (void)state;
    run_shell(LPLB_LATE_WAIT);
}
static void test_shell_postponing(void **state) {
    (void)state;
    run_shell(LPLB_LATE_POSTPONE);
}

int main(void) {
    count_alloc_install();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shell),
                                       cmocka_unit_test(test_shell_postponing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
