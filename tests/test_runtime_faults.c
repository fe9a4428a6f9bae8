/* A seeded simulator of a job whose ranks die and return, whose worker fails, is late or answers
 * nonsense, whose transfers fail and whose loads are broken: two managers (two ranks) in lockstep
 * over one world of weights. In it, always:
 *   - a mapping that a manager gives out covers every expert on live ranks,
 *   - every slot of it holds that expert's weights in the world (nothing half moved is used),
 *   - both managers have the same mapping,
 *   - every event says why.
 * LPLB_FAULT_STEPS sets the number of steps (default 100,000), LPLB_FAULT_SEED the seed. */
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

#include "base/rng.h"
#include "cases/count_alloc.h"
#include "runtime/core.h"

enum { L = 2, E = 12, G = 6, PER_RANK = 4, P = G * PER_RANK, CELLS = L * E, GONE = -9 };

typedef struct sim {
    lplb__rng rng;
    lplb__core *core[2];
    int64_t step, busy_until[2];
    uint8_t dead[G];
    int32_t weights[L][P]; /* the truth: whose weights lie in each slot */
    int32_t staging[L][P]; /* GONE where nothing is staged */
    int staged[L], broken[L];
    int checkpoint_works;
    int64_t told[2], events[LPLB_EVENT_KINDS], without_mapping, longest_without, now_without;
    double weight[CELLS];
} sim;

static int chance(sim *s, int one_in) { return lplb__rng_below(&s->rng, one_in) == 0; }

/* ---- what goes wrong ---- */

/* Rewrites a finished proposal as a broken worker or memory would. */
static void corrupt(sim *s, lplb__core *core) {
    int32_t *map = core->proposal.to->physical_to_logical;
    int32_t at = (int32_t)lplb__rng_below(&s->rng, L * P);
    switch (lplb__rng_below(&s->rng, 6)) {
    case 0: map[at] = (int32_t)lplb__rng_below(&s->rng, 1 << 30) - (1 << 29); break;
    case 1: map[at] = -1; break;
    case 2: map[at] = (int32_t)lplb__rng_below(&s->rng, E); break; /* maybe valid: must disagree */
    case 3: core->proposal.take[at / P] ^= 1; break;
    case 4: memset(map, 0, sizeof(int32_t) * L * P); break;
    default:
        for (int32_t i = 0; i < L * P; i++) map[i] = (int32_t)lplb__rng_below(&s->rng, E);
    }
}

static lplb_status answer_job(sim *s, int rank) {
    lplb__core *core = s->core[rank];
    if (core->start_status != LPLB_OK) return LPLB_OK;
    if (chance(s, 15)) { /* late: its buffers stay in use for a while */
        core->job_busy = 1;
        s->busy_until[rank] = s->step + 1 + lplb__rng_below(&s->rng, 80);
        return LPLB_FAIL(LPLB_TIMEOUT, "simulated: the worker is late");
    }
    if (chance(s, 15)) return LPLB_FAIL(LPLB_NO_MEMORY, "simulated: the worker failed");
    lplb__propose(&core->config, &core->job, &core->proposal);
    if (chance(s, 10)) corrupt(s, core);
    return LPLB_OK;
}

/* Ranks perform the same moves of the one world, so doing it twice changes nothing. */
static lplb_status stage(sim *s, const lplb__action *a) {
    int fails = chance(s, 30);
    s->broken[a->layer] |= fails;
    for (int64_t i = 0; i < a->n_moves; i++) {
        const lplb_move *m = &a->moves[i];
        assert_false(s->dead[m->rank]);
        int32_t got = GONE;
        if (m->source_rank < 0) {
            if (s->checkpoint_works) got = m->expert;
            else s->broken[a->layer] = 1;
        } else {
            assert_false(s->dead[m->source_rank]);
            for (int32_t p = m->source_rank * PER_RANK; p < (m->source_rank + 1) * PER_RANK; p++)
                if (s->weights[a->layer][p] == m->expert || s->staging[a->layer][p] == m->expert)
                    got = m->expert;
            if (!s->broken[a->layer]) assert_int_equal(got, m->expert); /* the source has it */
        }
        if (fails && chance(s, 2)) got = GONE; /* half of it arrives */
        s->staging[a->layer][m->slot] = got;
    }
    s->staged[a->layer] = 1;
    if (fails && chance(s, 2)) return LPLB_FAIL(LPLB_IO, "simulated: a link failed");
    return LPLB_OK; /* what is missing is seen when it is finished */
}

static lplb_status finish(sim *s, const lplb__core *core, const lplb__action *a) {
    for (int32_t p = 0; p < P; p++) {
        int32_t want = lplb__row(core->target, a->layer)[p];
        int32_t has =
            s->staging[a->layer][p] != GONE ? s->staging[a->layer][p] : s->weights[a->layer][p];
        if (want >= 0 && want != has) return LPLB_FAIL(LPLB_IO, "simulated: bytes are missing");
    }
    return LPLB_OK;
}

static void unstage(sim *s, int32_t layer) {
    for (int32_t p = 0; p < P; p++) s->staging[layer][p] = GONE;
    s->staged[layer] = s->broken[layer] = 0;
}

static void commit(sim *s, const lplb__action *a) {
    for (int32_t p = 0; s->staged[a->layer] && p < P; p++)
        if (s->staging[a->layer][p] != GONE) s->weights[a->layer][p] = s->staging[a->layer][p];
    unstage(s, a->layer);
    for (int32_t p = 0; p < P; p++)
        if (a->row[p] >= 0) assert_int_equal(s->weights[a->layer][p], a->row[p]);
}

static lplb_status perform(sim *s, int rank, const lplb__action *a) {
    switch (a->kind) {
    case LPLB__START_JOB:
        return chance(s, 40) ? LPLB_FAIL(LPLB_NO_MEMORY, "simulated: no thread") : LPLB_OK;
    case LPLB__ASK_JOB:
        return chance(s, 3) ? LPLB_FAIL(LPLB_TIMEOUT, "simulated: not done") : LPLB_OK;
    case LPLB__TAKE_JOB: return answer_job(s, rank);
    case LPLB__STAGE: return stage(s, a);
    case LPLB__FINISH: return finish(s, s->core[rank], a);
    case LPLB__COMMIT: commit(s, a); break;
    case LPLB__DISCARD: unstage(s, a->layer); break;
    case LPLB__AGREE: break;
    }
    return LPLB_OK;
}

/* Each rank on its own up to the next collective; both come to the same ones or it would hang. */
static void run_actions(sim *s) {
    for (;;) {
        lplb__action a[2];
        bool waits[2] = {false, false};
        for (int r = 0; r < 2; r++)
            while (lplb__core_next(s->core[r], &a[r])) {
                waits[r] = a[r].kind == LPLB__AGREE;
                if (waits[r]) break;
                lplb__core_answer(s->core[r], perform(s, r, &a[r]));
            }
        assert_int_equal(waits[0], waits[1]);
        if (!waits[0]) return;
        bool all = a[0].ok && a[1].ok && a[0].digest == a[1].digest && !chance(s, 60);
        for (int r = 0; r < 2; r++)
            lplb__core_answer(s->core[r],
                              all ? LPLB_OK : LPLB_FAIL(LPLB_DISAGREE, "simulated: disagree"));
    }
}

/* ---- what must hold ---- */

static void check(sim *s) {
    for (int r = 0; r < 2; r++) {
        lplb__core *core = s->core[r];
        if (core->n_events - s->told[r] > LPLB__EVENTS) fail_msg("events were lost");
        for (; s->told[r] < core->n_events; s->told[r]++) {
            const lplb_event *event = &core->event[s->told[r] % LPLB__EVENTS];
            assert_true(event->text[0] != '\0');
            if (event->kind == LPLB_EVENT_REFUSE || event->kind == LPLB_EVENT_MOVE_FAILED ||
                event->kind == LPLB_EVENT_WORKER_FAILED || event->kind == LPLB_EVENT_LOST)
                assert_int_not_equal(event->status, LPLB_OK);
            if (!r) s->events[event->kind]++;
        }
    }
    assert_int_equal(s->core[0]->usable, s->core[1]->usable);
    if (!s->core[0]->usable) {
        s->without_mapping++;
        if (++s->now_without > s->longest_without) s->longest_without = s->now_without;
        return;
    }
    s->now_without = 0;
    const int32_t *map = s->core[0]->active->physical_to_logical;
    assert_memory_equal(map, s->core[1]->active->physical_to_logical, L * P * sizeof *map);
    assert_int_equal(lplb_mapping_validate(s->core[0]->active, s->dead, 0), LPLB_OK);
    for (int32_t i = 0; i < L * P; i++)
        if (map[i] >= 0) assert_int_equal(s->weights[i / P][i % P], map[i]);
}

/* ---- the run ---- */

static void change_ranks(sim *s) {
    int32_t r = (int32_t)lplb__rng_below(&s->rng, G), alive = 0;
    for (int32_t i = 0; i < G; i++) alive += !s->dead[i];
    if (!s->dead[r] && (alive == 1 || !chance(s, 4))) return; /* more return than die */
    s->dead[r] = !s->dead[r];
    for (int32_t l = 0; l < L; l++)
        for (int32_t p = r * PER_RANK; p < (r + 1) * PER_RANK; p++)
            s->weights[l][p] = s->staging[l][p] = GONE;
    lplb_status status = lplb__core_set_dead(s->core[0], s->dead);
    assert_int_equal(status, lplb__core_set_dead(s->core[1], s->dead));
    run_actions(s);
    check(s);
}

static void draw_loads(sim *s, int64_t *counts) {
    for (int32_t i = 0; i < CELLS; i++)
        counts[i] = (int64_t)(s->weight[i] * (double)(90 + lplb__rng_below(&s->rng, 20)));
    if (chance(s, 300)) /* traffic changes */
        for (int32_t i = 0; i < CELLS; i++) s->weight[i] = exp(lplb__rng_normal(&s->rng));
}

static void one_step(sim *s) {
    int64_t counts[CELLS];
    float loads[CELLS];
    draw_loads(s, counts);
    int what = (int)lplb__rng_below(&s->rng, 60);
    if (what == 0) memset(counts, 0, sizeof counts);
    if (what == 1) counts[5] = INT64_MAX;
    if (what == 2) counts[5] = LPLB_TRACKER_MAX_COUNT; /* huge, but counts */
    if (what == 3) counts[7] = -1;
    for (int32_t i = 0; i < CELLS; i++) loads[i] = (float)counts[i] + 0.25f;
    if (what == 4) loads[3] = NAN;
    if (what == 5) loads[3] = INFINITY;
    for (int r = 0; r < 2; r++) {
        if (s->busy_until[r] <= s->step) s->core[r]->job_busy = 0;
        lplb_status status =
            what == 4 || what == 5 || what == 6
                ? lplb__core_feed(s->core[r], s->step, LPLB_STAGE_DECODE, NULL, loads)
            : what == 7 ? lplb__core_feed(s->core[r], s->step, LPLB_STAGE_PREFILL, NULL, NULL)
                        : lplb__core_feed(s->core[r], s->step, LPLB_STAGE_DECODE, counts, NULL);
        assert_int_equal(status, LPLB_OK);
        lplb__core_step(s->core[r]);
    }
    run_actions(s);
    check(s);
    if (chance(s, 80)) change_ranks(s);
    if (chance(s, s->checkpoint_works ? 1000 : 100)) s->checkpoint_works = !s->checkpoint_works;
    s->step++;
}

static lplb_status never_called(void *user, int32_t layer, const lplb_move *moves, int64_t n) {
    (void)user, (void)layer, (void)moves, (void)n;
    return LPLB_INTERNAL;
}

static void create(sim *s, uint64_t seed, int32_t late) {
    memset(s, 0, sizeof *s);
    lplb__rng_seed(&s->rng, seed, 0);
    lplb_manager_config config = {.struct_size = sizeof config,
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
                                  /* the simulator performs the actions itself */
                                  .hooks = {.stage = never_called}};
    for (int r = 0; r < 2; r++) assert_int_equal(lplb__core_create(&config, &s->core[r]), LPLB_OK);
    memcpy(s->weights, s->core[0]->active->physical_to_logical, sizeof s->weights);
    for (int32_t l = 0; l < L; l++) unstage(s, l);
    for (int32_t i = 0; i < CELLS; i++) s->weight[i] = exp(lplb__rng_normal(&s->rng));
    s->checkpoint_works = 1;
}

static int64_t setting(const char *name, int64_t fallback) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 10) : fallback;
}

static void run_faults(int32_t late) {
    static sim s;
    int64_t steps = setting("LPLB_FAULT_STEPS", 100000);
    uint64_t seed = (uint64_t)setting("LPLB_FAULT_SEED", 1);
    print_message("seed %llu, %lld steps\n", (unsigned long long)seed, (long long)steps);
    create(&s, seed, late);
    int64_t live = 0;
    for (int64_t i = 0; i < steps; i++) {
        one_step(&s);
        if (i == steps / 10) live = count_alloc_live_bytes();
    }
    assert_int_equal(count_alloc_live_bytes(), live); /* nothing piles up */
    const lplb_manager_stats *stats = &s.core[0]->stats;
    for (int k = 0; k < LPLB_EVENT_KINDS; k++)
        if (s.events[k])
            print_message("  %-14s %lld\n", lplb_event_name((lplb_event_kind)k),
                          (long long)s.events[k]);
    print_message("  requests %lld, adopted %lld, refused %lld, moves %lld, loaded %lld, steps "
                  "without a mapping %lld (longest %lld)\n",
                  (long long)stats->requests, (long long)stats->adopted, (long long)stats->refused,
                  (long long)stats->moves, (long long)stats->loaded, (long long)s.without_mapping,
                  (long long)s.longest_without);
    /* The faults were met, and what can be done in spite of them was. */
    assert_true(s.events[LPLB_EVENT_REFUSE] > 20 && s.events[LPLB_EVENT_MOVE_FAILED] > 5);
    assert_true(s.events[LPLB_EVENT_LOST] > 5 && s.events[LPLB_EVENT_RECOVERED] > 20);
    assert_true(stats->adopted > 100 && stats->loaded > 10);
    assert_true(late ? s.events[LPLB_EVENT_POSTPONED] > 100 : !s.events[LPLB_EVENT_POSTPONED]);
    for (int r = 0; r < 2; r++) lplb__core_destroy(s.core[r]);
}

static void test_faults(void **state) {
    (void)state;
    run_faults(LPLB_LATE_WAIT);
}
static void test_faults_postponing(void **state) {
    (void)state;
    run_faults(LPLB_LATE_POSTPONE);
}

int main(void) {
    count_alloc_install();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_faults),
                                       cmocka_unit_test(test_faults_postponing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
