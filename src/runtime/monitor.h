/* What the files of the monitor share. */
#ifndef LPLB_RUNTIME_MONITOR_H
#define LPLB_RUNTIME_MONITOR_H

#include <lplb/monitor.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/mem.h"
#include "runtime/histogram.h"
#include "runtime/text.h"

enum {
    LPLB__RING = 1000, /* steps remembered one by one */
    LPLB__MONITOR_EVENTS = 256,
    LPLB__MONITOR_RANGES = 8192,
    LPLB__RANGE_NAME = 32
};

typedef struct lplb__range {
    char name[LPLB__RANGE_NAME];
    int64_t begin_ns, duration_ns;
    int32_t lane;
} lplb__range;

typedef struct lplb__monitor_event {
    lplb_event event;
    int64_t unix_ns;
} lplb__monitor_event;

/* Reported figures; guarded by the monitor's mutex. */
typedef struct lplb__figures {
    lplb__histogram step, plan, dispatch, comm; /* ns */
    double imbalance[LPLB__RING];               /* ring; 0 = not known */
    int64_t step_ns[LPLB__RING], tokens[LPLB__RING];
    int64_t steps, last_step, total_tokens;
    lplb_range_of all_imbalance; /* mean holds the sum */
    double sum_balancedness, least_balancedness, most_balancedness;
    int64_t known_imbalances;
    double worst_imbalance;
    int64_t comm_bytes, moved_tokens, redundant_bytes;
    lplb_manager_stats manager;
    int64_t events[LPLB_EVENT_KINDS], n_events, dropped_events;
    int64_t n_ranges, dropped_ranges;
} lplb__figures;

struct lplb_monitor {
    uint64_t magic;
    lplb__arena arena;
    int32_t ranks;
    char job[64];
    int64_t start_ns, start_unix_ns;

    pthread_mutex_t mutex;
    lplb__figures now;
    double *rank_share;         /* [G] decayed load / fullest load */
    int64_t *rank_total;        /* [G] tokens */
    lplb__monitor_event *event; /* [LPLB__MONITOR_EVENTS] ring of n_events */
    lplb__range *range;         /* [LPLB__MONITOR_RANGES] ring of n_ranges, or NULL without trace */

    /* The monitor's thread and what only it uses. */
    pid_t owner; /* a forked child must not end its parent's thread and files */
    pthread_t thread;
    bool has_thread;
    int wake[2]; /* pipe: written to stop */
    FILE *event_log, *trace;
    char *event_log_path;
    int64_t event_log_bytes, event_log_most, trace_bytes, trace_most;
    int64_t logged_events, traced_ranges;
    bool trace_any;
    struct lplb__server *server; /* NULL without HTTP */
    lplb__figures seen;          /* copy to render from */
    double *seen_share;          /* [G] */
    int64_t *seen_total;         /* [G] */
};

/* monitor.c */
void lplb__monitor_copy(lplb_monitor *m, lplb__figures *figures, double *share, int64_t *total);
void lplb__monitor_sum_up(const lplb_monitor *m, const lplb__figures *figures, const double *share,
                          lplb_monitor_summary *out);
int64_t lplb__unix_ns(void);

/* monitor_text.c, monitor_metrics.c: from what lplb__monitor_copy gave */
void lplb__monitor_put_text(const lplb_monitor_summary *s, lplb__text *out);
void lplb__monitor_put_json(const lplb_monitor_summary *s, const double *share,
                            const int64_t *total, lplb__text *out);
void lplb__monitor_put_metrics(const lplb_monitor *m, const lplb__figures *f,
                               const lplb_monitor_summary *s, const double *share,
                               const int64_t *total, lplb__text *out);
void lplb__monitor_put_event(const lplb__monitor_event *event, lplb__text *out);

/* monitor_files.c */
lplb_status lplb__monitor_open_files(lplb_monitor *m, const lplb_monitor_config *config);
void lplb__monitor_write_files(lplb_monitor *m); /* what has come since */
void lplb__monitor_close_files(lplb_monitor *m);

/* monitor_server.c */
lplb_status lplb__server_create(lplb_monitor *m, const lplb_monitor_config *config);
void lplb__server_destroy(struct lplb__server *server);
int32_t lplb__server_port(const struct lplb__server *server);
/* Waits up to timeout_ms for requests or for a byte on wake_fd; answers. False when woken. */
bool lplb__server_poll(lplb_monitor *m, int timeout_ms);

/* The page, made from page.html by the build. */
extern const char lplb__monitor_page_html[];

#endif
