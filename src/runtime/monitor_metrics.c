/* OpenMetrics 1.0 text (github.com/OpenObservability/OpenMetrics), which Prometheus scrapes. Names
 * follow the engines': a prefix with a colon, eplb_ for what concerns placements. */
#include "runtime/monitor.h"

static void family(lplb__text *out, const char *name, const char *type, const char *help) {
    lplb__put(out, "# TYPE lplb:%s %s\n# HELP lplb:%s %s\n", name, type, name, help);
}

static void counter(lplb__text *out, const char *name, const char *help, double value) {
    family(out, name, "counter", help);
    lplb__put(out, "lplb:%s_total %.17g\n", name, value);
}

static void gauge(lplb__text *out, const char *name, const char *help, double value) {
    family(out, name, "gauge", help);
    lplb__put(out, "lplb:%s %.9g\n", name, value);
}

/* Buckets in a 1-2-5 row of seconds, from the monitor's finer ones. */
static void histogram(lplb__text *out, const char *name, const char *help,
                      const lplb__histogram *h) {
    static const double limits[] = {1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4,
                                    5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1,
                                    0.2,  0.5,  1,    2,    5,    10};
    lplb__put(out, "# TYPE lplb:%s histogram\n# UNIT lplb:%s seconds\n# HELP lplb:%s %s\n", name,
              name, name, help);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        lplb__put(out, "lplb:%s_bucket{le=\"%g\"} %lld\n", name, limits[i],
                  (long long)lplb__histogram_below(h, limits[i] * 1e9));
    lplb__put(out, "lplb:%s_bucket{le=\"+Inf\"} %lld\nlplb:%s_sum %.9g\nlplb:%s_count %lld\n", name,
              (long long)h->count, name, h->sum / 1e9, name, (long long)h->count);
}

static void windows(lplb__text *out, const char *name, const char *help, const lplb_range_of *of) {
    static const char *const names[] = {"10", "100", "1000", "all"};
    family(out, name, "gauge", help);
    for (int w = 0; w < LPLB_MONITOR_WINDOWS; w++) {
        const double values[] = {of[w].min, of[w].mean, of[w].max};
        static const char *const stats[] = {"min", "avg", "max"};
        for (int i = 0; i < 3; i++)
            lplb__put(out, "lplb:%s{window=\"%s\",stat=\"%s\"} %.9g\n", name, names[w], stats[i],
                      values[i]);
    }
}

static void put_job(const lplb_monitor *m, const lplb_monitor_summary *s, lplb__text *out) {
    family(out, "job", "info", "The job and the library that serves it.");
    lplb__put(out, "lplb:job_info{job="); /* labels escape quote, backslash and newline alike */
    lplb__put_json_string(out, m->job);
    lplb__put(out, ",version=\"%s\"} 1\n", lplb_version());
    gauge(out, "ranks", "Ranks of the expert-parallel group.", s->ranks);
    gauge(out, "step", "The last step.", (double)s->step);
    counter(out, "steps", "Steps.", (double)s->steps);
    counter(out, "tokens", "Tokens or selections.", (double)s->tokens);
    gauge(out, "tokens_per_second", "Throughput over the last 100 steps.", s->tokens_per_s_recent);
}

static void put_rebalance(const lplb_monitor_summary *s, lplb__text *out) {
    const lplb_manager_stats *m = &s->manager;
    counter(out, "eplb_requests", "Placements asked for.", (double)m->requests);
    counter(out, "eplb_rearrangements", "Placements adopted.", (double)m->adopted);
    counter(out, "eplb_skipped", "Decisions to stay.", (double)m->skipped);
    counter(out, "eplb_refused", "Mappings refused.", (double)m->refused);
    counter(out, "eplb_moved_experts", "Experts that went to another rank.", (double)m->moves);
    counter(out, "eplb_moved_bytes", "Weights moved.", (double)m->moved_bytes);
    counter(out, "eplb_loaded_experts", "Experts loaded from a checkpoint.", (double)m->loaded);
    counter(out, "eplb_move_failures", "Chunks of layers that could not be moved.",
            (double)m->move_failures);
    counter(out, "eplb_recoveries", "Losses of ranks that were recovered from.",
            (double)m->recoveries);
    counter(out, "eplb_placement_seconds", "Time spent computing placements.",
            (double)m->place_ns / 1e9);
    counter(out, "eplb_wait_seconds", "Time that steps waited for placements.",
            (double)m->wait_ns / 1e9);
    counter(out, "eplb_waits", "Steps that waited for a placement.", (double)m->waits);
    counter(out, "eplb_postponed", "Adoptions put off because a worker was not done.",
            (double)m->postponed);
    gauge(out, "eplb_longest_wait_seconds", "The longest wait of a step for a placement.",
          (double)m->longest_wait_ns / 1e9);
    gauge(out, "eplb_adopt_lag_steps", "Steps from a request to its adoption.",
          (double)m->adopt_lag);
    gauge(out, "eplb_interval_steps", "Steps between decisions.", (double)m->interval);
    gauge(out, "eplb_pending", "A request or moves are under way.", m->pending);
    gauge(out, "dead_ranks", "Ranks that are dead.", m->dead_ranks);
    gauge(out, "mapping_usable", "Every expert is served.", m->steps ? m->usable : 1);
}

static void put_ranks(const lplb_monitor_summary *s, const double *share, const int64_t *total,
                      lplb__text *out) {
    family(out, "rank_utilisation", "gauge", "Load over the fullest rank's, decayed.");
    for (int32_t r = 0; r < s->ranks; r++)
        lplb__put(out, "lplb:rank_utilisation{rank=\"%d\"} %.5g\n", r, share[r]);
    family(out, "rank_tokens", "counter", "Tokens served by the rank.");
    for (int32_t r = 0; r < s->ranks; r++)
        lplb__put(out, "lplb:rank_tokens_total{rank=\"%d\"} %lld\n", r, (long long)total[r]);
}

void lplb__monitor_put_metrics(const lplb_monitor *m, const lplb__figures *f,
                               const lplb_monitor_summary *s, const double *share,
                               const int64_t *total, lplb__text *out) {
    put_job(m, s, out);
    histogram(out, "step_seconds", "Time of a step.", &f->step);
    histogram(out, "plan_seconds", "Time of planning in a step.", &f->plan);
    histogram(out, "dispatch_seconds", "Time of dispatch in a step.", &f->dispatch);
    histogram(out, "comm_seconds", "Time of communication in a step.", &f->comm);
    windows(out, "eplb_imbalance", "Fullest rank over mean, mean of layers, by last steps.",
            s->imbalance);
    windows(out, "eplb_balancedness", "Mean rank over fullest, by last steps.", s->balancedness);
    put_rebalance(s, out);
    put_ranks(s, share, total, out);
    counter(out, "comm_bytes", "Bytes communicated.", (double)s->comm_bytes);
    counter(out, "moved_tokens", "Tokens served off their source rank.", (double)s->moved_tokens);
    gauge(out, "resident_memory_bytes", "Memory of the process.", (double)s->resident_bytes);
    gauge(out, "redundant_expert_bytes", "Memory of redundant experts on this rank.",
          (double)s->redundant_bytes);
    family(out, "events", "counter", "Events by kind.");
    for (int k = 0; k < LPLB_EVENT_KINDS; k++)
        lplb__put(out, "lplb:events_total{event=\"%s\"} %lld\n",
                  lplb_event_name((lplb_event_kind)k), (long long)s->events[k]);
    lplb__put(out, "# EOF\n");
}
