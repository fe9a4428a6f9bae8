/* The monitor: figures of a running balancer, as text, JSON and OpenMetrics, served over HTTP with
 * a page for people; an event log of JSON lines; a Chrome trace; NVTX ranges.
 *
 * Any thread may report; reporting takes a lock for well under a microsecond and allocates nothing.
 * One thread of the monitor's own writes files and answers HTTP. */
#ifndef LPLB_MONITOR_H
#define LPLB_MONITOR_H

#include <lplb/runtime.h>
#include <lplb/status.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* Zero-initialise, set struct_size. */
typedef struct lplb_monitor_config {
    size_t struct_size;
    int32_t ranks;           /* G, 1..LPLB_MAX_RANKS */
    const char *job;         /* a name for people; NULL = "lplb" */
    int32_t serve;           /* nonzero: answer HTTP */
    int32_t port;            /* 0 = any free one, see lplb_monitor_port */
    const char *address;     /* numeric; NULL = 127.0.0.1: whoever can reach it can read it */
    const char *event_log;   /* JSON lines are appended here; NULL = none */
    int64_t event_log_bytes; /* at this size it is renamed to NAME.1 and begun anew; 0 = 64 MiB */
    const char *trace;       /* Chrome trace (chrome://tracing, Perfetto); NULL = none */
    int64_t trace_bytes;     /* ends at this size; 0 = 256 MiB */
} lplb_monitor_config;

typedef struct lplb_monitor lplb_monitor;
/* LPLB_IO when the port or a file cannot be had. */
LPLB_API lplb_status lplb_monitor_create(const lplb_monitor_config *config, lplb_monitor **out);
/* Ends the files properly. NULL is fine. */
LPLB_API void lplb_monitor_destroy(lplb_monitor *monitor);
LPLB_API int32_t lplb_monitor_port(const lplb_monitor *monitor); /* -1 without HTTP */

/* ---- reporting ---- */

/* One step. Zero-initialise; 0 = not known. Times of one rank, this process's. */
typedef struct lplb_monitor_step_data {
    int64_t step;
    int64_t tokens;                        /* selections, or tokens, but always the same */
    int64_t step_ns;                       /* the whole step */
    int64_t plan_ns, dispatch_ns, comm_ns; /* parts of it */
    int64_t comm_bytes;
    int64_t moved_tokens;     /* served off their source rank */
    double imbalance;         /* mean over layers of max over ranks / mean over ranks */
    double worst_imbalance;   /* of any layer */
    const int64_t *rank_load; /* [G] summed over layers, or NULL */
} lplb_monitor_step_data;
LPLB_API void lplb_monitor_step(lplb_monitor *monitor, const lplb_monitor_step_data *step);
/* imbalance, worst_imbalance and rank_load [G] (given by the caller) from the loads [L][G]. */
LPLB_API void lplb_monitor_measure(const int64_t *loads, int32_t layers, int32_t ranks,
                                   int64_t *rank_load, lplb_monitor_step_data *step);

LPLB_API void lplb_monitor_event(lplb_monitor *monitor, const lplb_event *event);
LPLB_API void lplb_monitor_manager(lplb_monitor *monitor, const lplb_manager_stats *stats);
/* Memory of redundant expert copies on this rank. */
LPLB_API void lplb_monitor_redundant_bytes(lplb_monitor *monitor, int64_t bytes);

/* A named range of the calling thread: seen by NVTX tools where the library was built with NVTX,
 * and, with a monitor that writes one, in the Chrome trace under `lane` (a rank or thread number).
 * begin returns the time to hand to end. monitor may be NULL. Names shorter than 32 bytes. */
LPLB_API int64_t lplb_range_begin(const char *name);
LPLB_API void lplb_range_end(lplb_monitor *monitor, const char *name, int32_t lane,
                             int64_t begin_ns);
/* 1 if the library was built with NVTX. */
LPLB_API int32_t lplb_has_nvtx(void);

/* ---- reading ---- */

typedef struct lplb_spread {
    int64_t count;
    double mean, std, min, max;
    double p50, p90, p99; /* to 3 % (logarithmic buckets) */
} lplb_spread;

typedef struct lplb_range_of {
    double min, mean, max; /* 0 when nothing is known */
} lplb_range_of;

/* Windows of the figures below: the last 10, 100, 1000 steps, all. */
enum { LPLB_MONITOR_WINDOWS = 4 };

typedef struct lplb_monitor_summary {
    char job[64];
    double uptime_s;
    int64_t step, steps, tokens;
    double tokens_per_s, tokens_per_s_recent; /* over all steps' time; over the last 100 */
    lplb_spread step_s, plan_s, dispatch_s, comm_s;
    lplb_range_of imbalance[LPLB_MONITOR_WINDOWS], balancedness[LPLB_MONITOR_WINDOWS];
    double worst_imbalance; /* of any layer in any step */
    int32_t ranks;
    lplb_range_of utilisation;     /* of ranks: load / fullest rank's load, decayed over 20 steps */
    double comm_share, plan_share; /* of the steps' time */
    int64_t comm_bytes, moved_tokens;
    int64_t resident_bytes, redundant_bytes;
    lplb_manager_stats manager;
    double rearrangements_per_1000_steps;
    int64_t events[LPLB_EVENT_KINDS];
    int64_t dropped_events, dropped_ranges; /* the files' writer was too slow for them */
} lplb_monitor_summary;

/* rank_utilisation [G] or NULL. */
LPLB_API void lplb_monitor_get(lplb_monitor *monitor, lplb_monitor_summary *summary,
                               double *rank_utilisation);

typedef enum lplb_monitor_format {
    LPLB_MONITOR_TEXT = 0,
    LPLB_MONITOR_JSON = 1,       /* lplb.monitor/1 */
    LPLB_MONITOR_OPENMETRICS = 2 /* application/openmetrics-text; version=1.0.0 */
} lplb_monitor_format;
/* NUL-terminated into buffer; LPLB_RANGE, with *bytes the need, when capacity is too small. */
LPLB_API lplb_status lplb_monitor_render(lplb_monitor *monitor, lplb_monitor_format format,
                                         char *buffer, size_t capacity, size_t *bytes);

LPLB_END_DECLS

#endif
