/* The manager's shell: performs what the state machine asks for, with a worker thread and the
 * host's hooks. */
#include <errno.h>
#include <lplb/monitor.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "runtime/core.h"

static const uint64_t MANAGER_MAGIC = 0x6c706c626d6e67u; /* "lplbmng" */

typedef struct worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake, done; /* done waits by the monotonic clock */
    bool has_thread, stopping, busy;
    pid_t owner; /* a forked child has no such thread, and locks in any state */
} worker;

struct lplb_manager {
    uint64_t magic;
    lplb__core *core;
    worker worker;
    bool abandoned; /* the worker was still busy when the wait for it ended */
};

/* ---- the worker ---- */

enum { STEP_LANE = 0, WORKER_LANE = 1 };

static void propose(lplb_manager *m) {
    int64_t begin = lplb_range_begin("lplb place");
    lplb__propose(&m->core->config, &m->core->job, &m->core->proposal);
    lplb_range_end(m->core->config.monitor, "lplb place", WORKER_LANE, begin);
}

static void *work(void *argument) {
    lplb_manager *m = argument;
    worker *w = &m->worker;
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        while (!w->stopping && !w->busy) pthread_cond_wait(&w->wake, &w->mutex);
        if (w->stopping) break;
        pthread_mutex_unlock(&w->mutex);
        propose(m);
        pthread_mutex_lock(&w->mutex);
        w->busy = false;
        pthread_cond_signal(&w->done);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

static lplb_status start_worker(lplb_manager *m) {
    worker *w = &m->worker;
    w->owner = getpid();
    pthread_condattr_t attributes;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&w->done, &attributes);
    pthread_condattr_destroy(&attributes);
    if (m->core->config.synchronous) return LPLB_OK;
    int error = pthread_create(&w->thread, NULL, work, m);
    if (error) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot start a thread: %s", strerror(error));
    w->has_thread = true;
    return LPLB_OK;
}

static void stop_worker(worker *w) {
    if (w->owner != getpid()) return;
    if (w->has_thread) {
        pthread_mutex_lock(&w->mutex);
        w->stopping = true;
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->mutex);
        pthread_join(w->thread, NULL);
    }
    pthread_cond_destroy(&w->wake);
    pthread_cond_destroy(&w->done);
    pthread_mutex_destroy(&w->mutex);
}

static lplb_status start_job(lplb_manager *m) {
    worker *w = &m->worker;
    if (m->core->job_busy || !w->has_thread) return LPLB_OK;
    pthread_mutex_lock(&w->mutex);
    w->busy = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->mutex);
    return LPLB_OK;
}

/* False when time ran out. */
static bool wait_for_worker(lplb_manager *m, double seconds) {
    worker *w = &m->worker;
    int64_t until = lplb__now_ns();
    bool forever = seconds < 0 || seconds > 1e9;
    if (!forever) until += (int64_t)(seconds * 1e9);
    struct timespec deadline = {until / 1000000000, until % 1000000000};
    int error = 0;
    pthread_mutex_lock(&w->mutex);
    while (w->busy && error != ETIMEDOUT)
        error = forever ? pthread_cond_wait(&w->done, &w->mutex)
                        : pthread_cond_timedwait(&w->done, &w->mutex, &deadline);
    bool done = !w->busy;
    pthread_mutex_unlock(&w->mutex);
    return done;
}

/* Nothing to wait for counts as done. */
static lplb_status ask_job(lplb_manager *m) {
    if (m->core->start_status != LPLB_OK || !m->worker.has_thread || wait_for_worker(m, 0))
        return LPLB_OK;
    return LPLB_FAIL(LPLB_TIMEOUT, "the worker is not done");
}

static void count_wait(lplb__core *core, int64_t ns) {
    static const int64_t WORTH_TELLING = 1000000;
    lplb_manager_stats *s = &core->stats;
    s->wait_ns += ns;
    s->waits++;
    if (ns > s->longest_wait_ns) s->longest_wait_ns = ns;
    if (ns < WORTH_TELLING) return;
    lplb__core_event(
        core, LPLB_EVENT_WAITED, LPLB_OK,
        "%.1f ms for the placement asked for at step %lld, which took longer than %lld "
        "steps: a longer adopt_lag (or a true step_ns), less work, more threads, or "
        "late = postpone",
        (double)ns / 1e6, (long long)core->job.step, (long long)core->config.adopt_lag);
}

static lplb_status take_job(lplb_manager *m) {
    lplb__core *core = m->core;
    if (core->start_status != LPLB_OK) return LPLB_OK; /* it was never begun; the core knows */
    if (!m->worker.has_thread) {
        propose(m);
        return LPLB_OK;
    }
    if (wait_for_worker(m, 0)) return LPLB_OK;
    int64_t start = lplb_range_begin("lplb wait");
    bool done = wait_for_worker(m, core->config.worker_timeout_s);
    count_wait(core, lplb__now_ns() - start);
    lplb_range_end(core->config.monitor, "lplb wait", STEP_LANE, start);
    if (done) return LPLB_OK;
    core->job_busy = 1;
    m->abandoned = true;
    return LPLB_FAIL(LPLB_TIMEOUT, "no placement within %g s of waiting at its adoption",
                     core->config.worker_timeout_s);
}

/* An abandoned worker that has finished meanwhile is free again. */
static void see_worker(lplb_manager *m) {
    if (!m->abandoned || !wait_for_worker(m, 0)) return;
    m->abandoned = false;
    m->core->job_busy = 0;
}

/* ---- actions ---- */

static lplb_status agree(const lplb_manager_hooks *hooks, const lplb__action *action) {
    if (!hooks->agree) return action->ok ? LPLB_OK : LPLB_FAIL(LPLB_STATE, "this rank could not");
    int32_t all = 0;
    lplb_status status = hooks->agree(hooks->user, action->digest, action->ok, &all);
    if (status != LPLB_OK) return status;
    return all ? LPLB_OK : LPLB_FAIL(LPLB_DISAGREE, "not all ranks agree");
}

static lplb_status perform(lplb_manager *m, const lplb__action *action) {
    const lplb_manager_hooks *hooks = &m->core->config.hooks;
    switch (action->kind) {
    case LPLB__START_JOB: return start_job(m);
    case LPLB__ASK_JOB: return ask_job(m);
    case LPLB__TAKE_JOB: return take_job(m);
    case LPLB__AGREE: return agree(hooks, action);
    case LPLB__STAGE:
        return hooks->stage
                   ? hooks->stage(hooks->user, action->layer, action->moves, action->n_moves)
                   : LPLB_OK;
    case LPLB__FINISH: return hooks->staged ? hooks->staged(hooks->user, action->layer) : LPLB_OK;
    case LPLB__COMMIT:
        if (hooks->commit) hooks->commit(hooks->user, action->layer, action->row);
        return LPLB_OK;
    case LPLB__DISCARD:
        if (hooks->discard) hooks->discard(hooks->user, action->layer);
        return LPLB_OK;
    }
    return LPLB_FAIL(LPLB_INTERNAL, "action %d does not exist", (int)action->kind);
}

static void tell_events(lplb__core *core) {
    if (core->n_events - core->told > LPLB__EVENTS) core->told = core->n_events - LPLB__EVENTS;
    for (; core->told < core->n_events; core->told++) {
        const lplb_event *event = &core->event[core->told % LPLB__EVENTS];
        if (core->config.hooks.event) core->config.hooks.event(core->config.hooks.user, event);
        if (core->config.monitor) lplb_monitor_event(core->config.monitor, event);
    }
}

/* Reasons of hooks that fail without one must not be those of an earlier failure. */
static void run_actions(lplb_manager *m) {
    lplb__action action;
    while (lplb__core_next(m->core, &action)) {
        lplb_error_clear();
        lplb__core_answer(m->core, perform(m, &action));
        tell_events(m->core);
    }
    tell_events(m->core);
}

/* ---- public ---- */

static lplb_status check_manager(const lplb_manager *m) {
    return m && m->magic == MANAGER_MAGIC ? LPLB_OK
                                          : LPLB_FAIL(LPLB_INVALID, "not a manager, or destroyed");
}

/* Before anything that may wait for the worker. */
static lplb_status check_owner(const lplb_manager *m) {
    LPLB_TRY(check_manager(m));
    if (!m->worker.has_thread || m->worker.owner == getpid()) return LPLB_OK;
    return LPLB_FAIL(LPLB_STATE,
                     "this manager's worker is in process %ld, which forked this one: make a "
                     "manager in the child, and restore there what the parent saved",
                     (long)m->worker.owner);
}

static void tell_figures(lplb_manager *m) {
    if (!m->core->config.monitor) return;
    lplb_manager_stats stats;
    lplb_manager_get_stats(m, &stats);
    lplb_monitor_manager(m->core->config.monitor, &stats);
}

lplb_status lplb_manager_create(const lplb_manager_config *config, lplb_manager **out) {
    *out = NULL;
    lplb_manager *m;
    LPLB_TRY(LPLB_CALLOC(m, 1));
    lplb_status status = lplb__core_create(config, &m->core);
    if (status != LPLB_OK) {
        lplb__free(m);
        return status;
    }
    m->magic = MANAGER_MAGIC;
    status = start_worker(m);
    if (status != LPLB_OK) {
        lplb_manager_destroy(m);
        return status;
    }
    tell_events(m->core);
    *out = m;
    return LPLB_OK;
}

void lplb_manager_destroy(lplb_manager *m) {
    if (!m) return;
    stop_worker(&m->worker);
    lplb__core_destroy(m->core);
    m->magic = 0;
    lplb__free(m);
}

static lplb_status step(lplb_manager *m, int64_t at, lplb_stage stage, const int64_t *counts,
                        const float *loads) {
    LPLB_TRY(check_owner(m));
    see_worker(m);
    int64_t begin = lplb_range_begin("lplb step");
    lplb_status status = lplb__core_feed(m->core, at, stage, counts, loads);
    if (status == LPLB_OK) {
        lplb__core_step(m->core);
        run_actions(m);
        tell_figures(m);
    }
    lplb_range_end(m->core->config.monitor, "lplb step", STEP_LANE, begin);
    return status;
}

lplb_status lplb_manager_step(lplb_manager *m, int64_t at, lplb_stage stage,
                              const int64_t *counts) {
    return step(m, at, stage, counts, NULL);
}

lplb_status lplb_manager_step_real(lplb_manager *m, int64_t at, lplb_stage stage,
                                   const float *loads) {
    return step(m, at, stage, NULL, loads);
}

static lplb_status usable(const lplb__core *core) {
    if (core->usable) return LPLB_OK;
    lplb__describe_lost(core->lost, core->n_lost, core->slots_missing);
    char reason[200];
    snprintf(reason, sizeof reason, "%s", lplb_error_message());
    return LPLB_FAIL(LPLB_STATE, "no mapping serves every expert: %s", reason);
}

lplb_status lplb_manager_set_dead(lplb_manager *m, const uint8_t *dead) {
    LPLB_TRY(check_owner(m));
    lplb_status status = lplb__core_set_dead(m->core, dead);
    run_actions(m);
    tell_figures(m);
    if (status == LPLB_OK || m->core->usable) return LPLB_OK; /* or repaired meanwhile */
    return lplb__describe_lost(m->core->lost, m->core->n_lost, m->core->slots_missing);
}

int64_t lplb_manager_lost(const lplb_manager *m, const lplb_move **lost, int32_t *missing_slots) {
    bool none = check_manager(m) != LPLB_OK || m->core->usable;
    *lost = none ? NULL : m->core->lost;
    *missing_slots = none ? 0 : m->core->slots_missing;
    return none ? 0 : m->core->n_lost;
}

lplb_status lplb_manager_reset(lplb_manager *m, const lplb_placement *placement) {
    LPLB_TRY(check_owner(m));
    LPLB_TRY(lplb__core_reset(m->core, placement));
    run_actions(m);
    tell_figures(m);
    return LPLB_OK;
}

lplb_status lplb_manager_placement(const lplb_manager *m, const lplb_placement **placement) {
    *placement = NULL;
    LPLB_TRY(check_manager(m));
    LPLB_TRY(usable(m->core));
    *placement = m->core->active;
    return LPLB_OK;
}

void lplb_manager_get_stats(const lplb_manager *m, lplb_manager_stats *stats) {
    *stats = m->core->stats;
    stats->interval = m->core->interval;
    stats->adopt_lag = m->core->config.adopt_lag;
    stats->usable = m->core->usable;
    stats->pending = m->core->job_running || m->core->moving;
}

int64_t lplb_manager_events(const lplb_manager *m, lplb_event *events, int64_t capacity) {
    const lplb__core *core = m->core;
    int64_t kept = core->n_events < LPLB__EVENTS ? core->n_events : LPLB__EVENTS;
    int64_t n = kept < capacity ? kept : capacity;
    for (int64_t i = 0; i < n; i++)
        events[i] = core->event[(core->n_events - n + i) % LPLB__EVENTS];
    return n;
}

const lplb_tracker *lplb_manager_tracker(const lplb_manager *m) { return m->core->tracker; }
const lplb_forecaster *lplb_manager_forecaster(const lplb_manager *m) {
    return m->core->forecaster;
}

size_t lplb_manager_save_bytes(const lplb_manager *m) {
    size_t bytes = 0;
    return lplb__core_pack(m->core, NULL, 0, &bytes) == LPLB_OK ? bytes : 0;
}

lplb_status lplb_manager_save(const lplb_manager *m, void *buffer, size_t capacity) {
    LPLB_TRY(check_manager(m));
    size_t bytes;
    return lplb__core_pack(m->core, buffer, capacity, &bytes);
}

lplb_status lplb_manager_restore(lplb_manager *m, const void *buffer, size_t bytes) {
    LPLB_TRY(check_owner(m));
    if (m->worker.has_thread) wait_for_worker(m, -1); /* it reads what is about to change */
    m->abandoned = false;
    m->core->job_busy = 0;
    LPLB_TRY(lplb__core_unpack(m->core, buffer, bytes));
    tell_events(m->core);
    tell_figures(m);
    return LPLB_OK;
}
