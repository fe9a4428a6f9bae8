/* The monitor: taking reports, and summing them up. */
#define _POSIX_C_SOURCE 200809L
#include "runtime/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

static const uint64_t MONITOR_MAGIC = 0x6c706c626d6f6eu; /* "lplbmon" */
static const double SHARE_ALPHA = 0.05;
enum { POLL_MS = 100 };

int64_t lplb__unix_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- the thread ---- */

static void *run(void *argument) {
    lplb_monitor *m = argument;
    while (lplb__server_poll(m, POLL_MS)) lplb__monitor_write_files(m);
    lplb__monitor_write_files(m);
    return NULL;
}

static lplb_status start(lplb_monitor *m) {
    if (!m->server && !m->event_log && !m->trace) return LPLB_OK;
    if (pipe(m->wake)) return LPLB_FAIL(LPLB_IO, "no pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++) (void)fcntl(m->wake[i], F_SETFD, FD_CLOEXEC);
    int error = pthread_create(&m->thread, NULL, run, m);
    if (error) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot start a thread: %s", strerror(error));
    m->has_thread = true;
    return LPLB_OK;
}

static void stop(lplb_monitor *m) {
    if (m->has_thread) {
        ssize_t written = write(m->wake[1], "x", 1);
        (void)written; /* a full pipe wakes as well */
        pthread_join(m->thread, NULL);
    }
    for (int i = 0; i < 2; i++)
        if (m->wake[i] >= 0) close(m->wake[i]);
}

/* ---- creation ---- */

static void *block(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (arena->base) return lplb__arena_take(arena, count, item_bytes);
    lplb__arena_reserve(arena, count, item_bytes);
    return NULL;
}

static void lay_out(lplb_monitor *m, bool ranges) {
    m->rank_share = block(&m->arena, m->ranks, sizeof *m->rank_share);
    m->rank_total = block(&m->arena, m->ranks, sizeof *m->rank_total);
    m->seen_share = block(&m->arena, m->ranks, sizeof *m->seen_share);
    m->seen_total = block(&m->arena, m->ranks, sizeof *m->seen_total);
    m->event = block(&m->arena, LPLB__MONITOR_EVENTS, sizeof *m->event);
    if (ranges) m->range = block(&m->arena, LPLB__MONITOR_RANGES, sizeof *m->range);
}

static lplb_status check(const lplb_monitor_config *c) {
    if (c->struct_size != sizeof *c)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be sizeof(lplb_monitor_config) = %zu",
                         c->struct_size, sizeof *c);
    if (c->ranks < 1 || c->ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_RANGE, "%d ranks; from 1 to %d are possible", c->ranks,
                         LPLB_MAX_RANKS);
    if (!c->serve && (c->port || c->address))
        return LPLB_FAIL(LPLB_INVALID, "a port or an address without serve");
    if (c->port < 0 || c->port > 65535)
        return LPLB_FAIL(LPLB_RANGE, "port %d is outside [0, 65535]", c->port);
    if (c->event_log_bytes < 0 || c->trace_bytes < 0)
        return LPLB_FAIL(LPLB_RANGE, "sizes of files must not be negative");
    return LPLB_OK;
}

lplb_status lplb_monitor_create(const lplb_monitor_config *config, lplb_monitor **out) {
    *out = NULL;
    LPLB_TRY(check(config));
    lplb_monitor *m;
    lplb_status status;
    LPLB_TRY(LPLB_CALLOC(m, 1));
    m->magic = MONITOR_MAGIC;
    m->owner = getpid();
    m->ranks = config->ranks;
    m->wake[0] = m->wake[1] = -1;
    m->start_ns = lplb__now_ns();
    m->start_unix_ns = lplb__unix_ns();
    snprintf(m->job, sizeof m->job, "%s", config->job ? config->job : "lplb");
    pthread_mutex_init(&m->mutex, NULL);
    lay_out(m, config->trace != NULL);
    LPLB_TRY_GOTO(status, lplb__arena_create(&m->arena), failed);
    lay_out(m, config->trace != NULL);
    LPLB_TRY_GOTO(status, lplb__monitor_open_files(m, config), failed);
    if (config->serve) LPLB_TRY_GOTO(status, lplb__server_create(m, config), failed);
    LPLB_TRY_GOTO(status, start(m), failed);
    *out = m;
    return LPLB_OK;
failed:
    lplb_monitor_destroy(m);
    return status;
}

void lplb_monitor_destroy(lplb_monitor *m) {
    if (!m) return;
    if (m->owner != getpid()) return; /* what it holds goes with the child */
    stop(m);
    lplb__monitor_close_files(m);
    lplb__server_destroy(m->server);
    pthread_mutex_destroy(&m->mutex);
    lplb__arena_destroy(&m->arena);
    m->magic = 0;
    lplb__free(m);
}

int32_t lplb_monitor_port(const lplb_monitor *m) {
    return m->server ? lplb__server_port(m->server) : -1;
}

/* ---- reports ---- */

static void note_imbalance(lplb__figures *f, const lplb_monitor_step_data *s) {
    if (!(s->imbalance > 0 && isfinite(s->imbalance))) return;
    double balancedness = 1 / s->imbalance;
    bool first = !f->known_imbalances++;
    f->all_imbalance.mean += s->imbalance;
    f->sum_balancedness += balancedness;
    if (first || s->imbalance < f->all_imbalance.min) f->all_imbalance.min = s->imbalance;
    if (first || s->imbalance > f->all_imbalance.max) f->all_imbalance.max = s->imbalance;
    if (first || balancedness < f->least_balancedness) f->least_balancedness = balancedness;
    if (first || balancedness > f->most_balancedness) f->most_balancedness = balancedness;
}

static void note_ranks(lplb_monitor *m, const int64_t *load) {
    int64_t most = 0;
    bool first = true;
    for (int32_t r = 0; r < m->ranks; r++) {
        if (load[r] > most) most = load[r];
        first = first && m->rank_total[r] == 0;
    }
    for (int32_t r = 0; r < m->ranks && most > 0; r++) {
        double share = (double)load[r] / (double)most;
        m->rank_share[r] += (first ? 1 : SHARE_ALPHA) * (share - m->rank_share[r]);
        m->rank_total[r] += load[r];
    }
}

void lplb_monitor_step(lplb_monitor *m, const lplb_monitor_step_data *s) {
    pthread_mutex_lock(&m->mutex);
    lplb__figures *f = &m->now;
    int64_t at = f->steps++ % LPLB__RING;
    f->last_step = s->step;
    f->imbalance[at] = s->imbalance > 0 && isfinite(s->imbalance) ? s->imbalance : 0;
    f->step_ns[at] = s->step_ns > 0 ? s->step_ns : 0;
    f->tokens[at] = s->tokens > 0 ? s->tokens : 0;
    f->total_tokens += f->tokens[at];
    lplb__histogram_add(&f->step, s->step_ns);
    lplb__histogram_add(&f->plan, s->plan_ns);
    lplb__histogram_add(&f->dispatch, s->dispatch_ns);
    lplb__histogram_add(&f->comm, s->comm_ns);
    if (s->comm_bytes > 0) f->comm_bytes += s->comm_bytes;
    if (s->moved_tokens > 0) f->moved_tokens += s->moved_tokens;
    if (s->worst_imbalance > f->worst_imbalance) f->worst_imbalance = s->worst_imbalance;
    note_imbalance(f, s);
    if (s->rank_load) note_ranks(m, s->rank_load);
    pthread_mutex_unlock(&m->mutex);
}

void lplb_monitor_measure(const int64_t *loads, int32_t layers, int32_t ranks, int64_t *rank_load,
                          lplb_monitor_step_data *step) {
    memset(rank_load, 0, (size_t)ranks * sizeof *rank_load);
    double sum = 0, worst = 0;
    int32_t n = 0;
    for (int32_t layer = 0; layer < layers; layer++) {
        int64_t most = 0, total = 0;
        for (int32_t r = 0; r < ranks; r++) {
            int64_t load = loads[(int64_t)layer * ranks + r];
            rank_load[r] += load;
            total += load;
            if (load > most) most = load;
        }
        if (total <= 0) continue;
        double imbalance = (double)most * ranks / (double)total;
        sum += imbalance;
        if (imbalance > worst) worst = imbalance;
        n++;
    }
    step->rank_load = rank_load;
    step->imbalance = n ? sum / n : 0;
    step->worst_imbalance = worst;
}

void lplb_monitor_event(lplb_monitor *m, const lplb_event *event) {
    pthread_mutex_lock(&m->mutex);
    if ((unsigned)event->kind < LPLB_EVENT_KINDS) m->now.events[event->kind]++;
    m->event[m->now.n_events++ % LPLB__MONITOR_EVENTS] =
        (lplb__monitor_event){*event, lplb__unix_ns()};
    pthread_mutex_unlock(&m->mutex);
}

void lplb_monitor_manager(lplb_monitor *m, const lplb_manager_stats *stats) {
    pthread_mutex_lock(&m->mutex);
    m->now.manager = *stats;
    pthread_mutex_unlock(&m->mutex);
}

void lplb_monitor_redundant_bytes(lplb_monitor *m, int64_t bytes) {
    pthread_mutex_lock(&m->mutex);
    m->now.redundant_bytes = bytes;
    pthread_mutex_unlock(&m->mutex);
}

/* ---- summing up ---- */

void lplb__monitor_copy(lplb_monitor *m, lplb__figures *figures, double *share, int64_t *total) {
    pthread_mutex_lock(&m->mutex);
    *figures = m->now;
    memcpy(share, m->rank_share, (size_t)m->ranks * sizeof *share);
    memcpy(total, m->rank_total, (size_t)m->ranks * sizeof *total);
    pthread_mutex_unlock(&m->mutex);
}

static lplb_spread spread_of(const lplb__histogram *h) {
    if (!h->count) return (lplb_spread){0};
    double n = (double)h->count, mean = h->sum / n, variance = h->squares / n - mean * mean;
    return (lplb_spread){.count = h->count,
                         .mean = mean / 1e9,
                         .std = variance > 0 ? sqrt(variance) / 1e9 : 0,
                         .min = (double)h->min / 1e9,
                         .max = (double)h->max / 1e9,
                         .p50 = lplb__histogram_percentile(h, 0.5) / 1e9,
                         .p90 = lplb__histogram_percentile(h, 0.9) / 1e9,
                         .p99 = lplb__histogram_percentile(h, 0.99) / 1e9};
}

static void last_steps(const lplb__figures *f, int64_t n, lplb_range_of *imbalance,
                       lplb_range_of *balancedness) {
    int64_t kept = f->steps < LPLB__RING ? f->steps : LPLB__RING, known = 0;
    for (int64_t i = f->steps - (n < kept ? n : kept); i < f->steps; i++) {
        double value = f->imbalance[i % LPLB__RING];
        if (!(value > 0)) continue;
        if (!known || value < imbalance->min) imbalance->min = value;
        if (value > imbalance->max) imbalance->max = value;
        imbalance->mean += value;
        balancedness->mean += 1 / value;
        known++;
    }
    if (!known) return;
    imbalance->mean /= (double)known;
    balancedness->mean /= (double)known;
    balancedness->min = 1 / imbalance->max;
    balancedness->max = 1 / imbalance->min;
}

static void all_steps(const lplb__figures *f, lplb_range_of *imbalance,
                      lplb_range_of *balancedness) {
    if (!f->known_imbalances) return;
    double n = (double)f->known_imbalances;
    *imbalance = f->all_imbalance;
    imbalance->mean /= n;
    *balancedness =
        (lplb_range_of){f->least_balancedness, f->sum_balancedness / n, f->most_balancedness};
}

static double recent_rate(const lplb__figures *f, int64_t n) {
    int64_t kept = f->steps < n ? f->steps : n, tokens = 0, ns = 0;
    for (int64_t i = f->steps - kept; i < f->steps; i++) {
        tokens += f->tokens[i % LPLB__RING];
        ns += f->step_ns[i % LPLB__RING];
    }
    return ns > 0 ? (double)tokens * 1e9 / (double)ns : 0;
}

static int64_t resident_bytes(void) {
    long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file) return 0;
    if (fscanf(file, "%*s %lld", &pages) != 1) pages = 0;
    fclose(file);
    return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

void lplb__monitor_sum_up(const lplb_monitor *m, const lplb__figures *f, const double *share,
                          lplb_monitor_summary *out) {
    static const int64_t windows[] = {10, 100, 1000};
    *out = (lplb_monitor_summary){.step = f->last_step,
                                  .steps = f->steps,
                                  .tokens = f->total_tokens,
                                  .worst_imbalance = f->worst_imbalance,
                                  .ranks = m->ranks,
                                  .comm_bytes = f->comm_bytes,
                                  .moved_tokens = f->moved_tokens,
                                  .redundant_bytes = f->redundant_bytes,
                                  .manager = f->manager,
                                  .dropped_events = f->dropped_events,
                                  .dropped_ranges = f->dropped_ranges};
    memcpy(out->job, m->job, sizeof out->job);
    memcpy(out->events, f->events, sizeof out->events);
    out->uptime_s = (double)(lplb__now_ns() - m->start_ns) / 1e9;
    out->step_s = spread_of(&f->step);
    out->plan_s = spread_of(&f->plan);
    out->dispatch_s = spread_of(&f->dispatch);
    out->comm_s = spread_of(&f->comm);
    for (int i = 0; i < 3; i++)
        last_steps(f, windows[i], &out->imbalance[i], &out->balancedness[i]);
    all_steps(f, &out->imbalance[3], &out->balancedness[3]);
    if (f->step.sum > 0) {
        out->tokens_per_s = (double)f->total_tokens * 1e9 / f->step.sum;
        out->comm_share = f->comm.sum / f->step.sum;
        out->plan_share = f->plan.sum / f->step.sum;
    }
    out->tokens_per_s_recent = recent_rate(f, 100);
    for (int32_t r = 0; r < m->ranks; r++) {
        if (r == 0 || share[r] < out->utilisation.min) out->utilisation.min = share[r];
        if (share[r] > out->utilisation.max) out->utilisation.max = share[r];
        out->utilisation.mean += share[r] / m->ranks;
    }
    if (f->manager.steps > 0)
        out->rearrangements_per_1000_steps =
            1000 * (double)f->manager.adopted / (double)f->manager.steps;
    out->resident_bytes = resident_bytes();
}

void lplb_monitor_get(lplb_monitor *m, lplb_monitor_summary *summary, double *rank_utilisation) {
    /* Summed up under the lock: readers are rare, and need no memory this way. */
    pthread_mutex_lock(&m->mutex);
    lplb__monitor_sum_up(m, &m->now, m->rank_share, summary);
    if (rank_utilisation)
        memcpy(rank_utilisation, m->rank_share, (size_t)m->ranks * sizeof *rank_utilisation);
    pthread_mutex_unlock(&m->mutex);
}

lplb_status lplb_monitor_render(lplb_monitor *m, lplb_monitor_format format, char *buffer,
                                size_t capacity, size_t *bytes) {
    lplb__text text = {buffer, capacity, 0};
    lplb_monitor_summary summary;
    if ((unsigned)format > LPLB_MONITOR_OPENMETRICS)
        return LPLB_FAIL(LPLB_INVALID, "format %d does not exist", (int)format);
    pthread_mutex_lock(&m->mutex);
    lplb__monitor_sum_up(m, &m->now, m->rank_share, &summary);
    if (format == LPLB_MONITOR_TEXT) lplb__monitor_put_text(&summary, &text);
    else if (format == LPLB_MONITOR_JSON)
        lplb__monitor_put_json(&summary, m->rank_share, m->rank_total, &text);
    else lplb__monitor_put_metrics(m, &m->now, &summary, m->rank_share, m->rank_total, &text);
    pthread_mutex_unlock(&m->mutex);
    *bytes = text.used + 1;
    if (text.used >= capacity)
        return LPLB_FAIL(LPLB_RANGE, "the summary takes %zu bytes, the buffer has %zu", *bytes,
                         capacity);
    return LPLB_OK;
}
