/* The event log and the Chrome trace, written by the monitor's thread. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/clock.h"
#include "runtime/monitor.h"

static lplb_status open_file(const char *path, const char *mode, FILE **out) {
    *out = fopen(path, mode);
    return *out ? LPLB_OK : LPLB_FAIL(LPLB_IO, "cannot write %s: %s", path, strerror(errno));
}

static const char TRACE_END[] = "\n]\n";

/* Puts items where the last ones ended, and the end behind them, in one write: whenever the process
 * dies the file is whole. text has room for the end behind its bytes. */
static lplb_status write_items(lplb_monitor *m, char *text, size_t bytes) {
    memcpy(text + bytes, TRACE_END, sizeof TRACE_END);
    size_t all = bytes + sizeof TRACE_END - 1;
    ssize_t n = pwrite(fileno(m->trace), text, all, (off_t)m->trace_bytes);
    m->trace_bytes += (int64_t)bytes;
    if (n == (ssize_t)all) return LPLB_OK;
    m->trace_bytes = m->trace_most + 1; /* a full disk: nothing more is written */
    return LPLB_FAIL(LPLB_IO, "cannot write the trace: %s", strerror(errno));
}

lplb_status lplb__monitor_open_files(lplb_monitor *m, const lplb_monitor_config *config) {
    m->event_log_most = config->event_log_bytes ? config->event_log_bytes : (int64_t)64 << 20;
    m->trace_most = config->trace_bytes ? config->trace_bytes : (int64_t)256 << 20;
    if (config->event_log) {
        LPLB_TRY(LPLB_CALLOC(m->event_log_path, strlen(config->event_log) + 1));
        memcpy(m->event_log_path, config->event_log, strlen(config->event_log));
        LPLB_TRY(open_file(config->event_log, "ae", &m->event_log));
        m->event_log_bytes = ftell(m->event_log);
    }
    if (config->trace) {
        LPLB_TRY(open_file(config->trace, "we", &m->trace));
        char begin[1 + sizeof TRACE_END] = "[";
        LPLB_TRY(write_items(m, begin, 1));
    }
    return LPLB_OK;
}

/* ---- events ---- */

/* NAME becomes NAME.1; a log that cannot be renamed goes on growing. */
static void rotate_log(lplb_monitor *m) {
    char old[4096];
    if (m->event_log_bytes < m->event_log_most ||
        snprintf(old, sizeof old, "%s.1", m->event_log_path) >= (int)sizeof old ||
        rename(m->event_log_path, old))
        return;
    FILE *fresh = fopen(m->event_log_path, "ae");
    if (!fresh) return; /* goes on in the renamed one */
    fclose(m->event_log);
    m->event_log = fresh;
    m->event_log_bytes = 0;
}

/* Copies the next event out of the ring; false when there is none. */
static bool next_event(lplb_monitor *m, lplb__monitor_event *out) {
    pthread_mutex_lock(&m->mutex);
    int64_t oldest = m->now.n_events - LPLB__MONITOR_EVENTS;
    if (m->logged_events < oldest) {
        m->now.dropped_events += oldest - m->logged_events;
        m->logged_events = oldest;
    }
    bool any = m->logged_events < m->now.n_events;
    if (any) *out = m->event[m->logged_events++ % LPLB__MONITOR_EVENTS];
    pthread_mutex_unlock(&m->mutex);
    return any;
}

static void write_events(lplb_monitor *m) {
    lplb__monitor_event event;
    bool any = false;
    while (next_event(m, &event)) {
        char line[2048]; /* six bytes for one at worst */
        lplb__text text = {line, sizeof line, 0};
        lplb__monitor_put_event(&event, &text);
        int n = fprintf(m->event_log, "%s\n", line);
        if (n > 0) m->event_log_bytes += n;
        any = true;
    }
    if (!any) return;
    fflush(m->event_log);
    rotate_log(m);
}

/* ---- ranges ---- */

static bool next_range(lplb_monitor *m, lplb__range *out) {
    pthread_mutex_lock(&m->mutex);
    int64_t oldest = m->now.n_ranges - LPLB__MONITOR_RANGES;
    if (m->traced_ranges < oldest) {
        m->now.dropped_ranges += oldest - m->traced_ranges;
        m->traced_ranges = oldest;
    }
    bool any = m->traced_ranges < m->now.n_ranges;
    if (any) *out = m->range[m->traced_ranges++ % LPLB__MONITOR_RANGES];
    pthread_mutex_unlock(&m->mutex);
    return any;
}

/* Trace Event Format: complete events, microseconds since the monitor began. */
static void write_ranges(lplb_monitor *m) {
    enum { LINE = 512 };
    char items[16 * LINE + sizeof TRACE_END];
    size_t used = 0;
    lplb__range range;
    while (next_range(m, &range)) {
        if (m->trace_bytes > m->trace_most) continue;
        char name[256];
        lplb__text text = {name, sizeof name, 0};
        lplb__put_json_string(&text, range.name);
        int n =
            snprintf(items + used, LINE,
                     "%s\n{\"name\":%s,\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%ld,"
                     "\"tid\":%d}",
                     m->trace_any ? "," : "", name, (double)(range.begin_ns - m->start_ns) / 1e3,
                     (double)range.duration_ns / 1e3, (long)getpid(), range.lane);
        m->trace_any = true;
        used += n > 0 ? (size_t)n : 0;
        if (used <= 15 * LINE) continue;
        write_items(m, items, used);
        used = 0;
    }
    if (used) write_items(m, items, used);
}

void lplb__monitor_write_files(lplb_monitor *m) {
    if (m->event_log) write_events(m);
    if (m->trace) write_ranges(m);
}

void lplb__monitor_close_files(lplb_monitor *m) {
    if (m->event_log) fclose(m->event_log);
    if (m->trace) fclose(m->trace);
    lplb__free(m->event_log_path);
    m->event_log = m->trace = NULL;
    m->event_log_path = NULL;
}
