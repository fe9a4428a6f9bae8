/* The summary for people and as JSON. */
#include <math.h>

#include "runtime/monitor.h"

static const char *const window_names[] = {"10", "100", "1000", "all"};

/* ---- text ---- */

static void put_time(lplb__text *out, double s) {
    if (s >= 1) lplb__put(out, "%8.2f s ", s);
    else if (s >= 1e-3) lplb__put(out, "%8.2f ms", s * 1e3);
    else lplb__put(out, "%8.2f us", s * 1e6);
}

static void put_spread_line(lplb__text *out, const char *name, const lplb_spread *s) {
    if (!s->count) return;
    lplb__put(out, "%-10s", name);
    put_time(out, s->mean);
    lplb__put(out, " +-");
    put_time(out, s->std);
    const double p[] = {s->p50, s->p90, s->p99, s->max};
    for (int i = 0; i < 4; i++) put_time(out, p[i]);
    lplb__put(out, "\n");
}

static void put_bytes(lplb__text *out, const char *name, int64_t bytes) {
    if (bytes > 0) lplb__put(out, "  %s %.2f GiB", name, (double)bytes / 1073741824.0);
}

static void put_manager(lplb__text *out, const lplb_monitor_summary *s) {
    const lplb_manager_stats *m = &s->manager;
    if (!m->steps) return;
    lplb__put(out,
              "rebalance  %lld requests, %lld adopted (%.2f in 1000 steps), %lld skipped, %lld "
              "refused; interval %lld%s\n"
              "moves      %lld experts in %lld layers, %lld from a checkpoint, %lld failures\n",
              (long long)m->requests, (long long)m->adopted, s->rearrangements_per_1000_steps,
              (long long)m->skipped, (long long)m->refused, (long long)m->interval,
              m->pending ? ", one under way" : "", (long long)m->moves,
              (long long)m->layers_switched, (long long)m->loaded, (long long)m->move_failures);
    lplb__put(out,
              "ranks      %d dead, %s; placing took %.3f s, %lld steps waited %.3f s for "
              "it, %.3f s at most\n",
              m->dead_ranks,
              m->usable ? "every expert is served" : "NO MAPPING SERVES EVERY EXPERT",
              (double)m->place_ns / 1e9, (long long)m->waits, (double)m->wait_ns / 1e9,
              (double)m->longest_wait_ns / 1e9);
}

void lplb__monitor_put_text(const lplb_monitor_summary *s, lplb__text *out) {
    bool timed = s->step_s.count > 0;
    lplb__put(out, "%s: step %lld, %lld steps in %.0f s, %lld tokens", s->job, (long long)s->step,
              (long long)s->steps, s->uptime_s, (long long)s->tokens);
    if (timed)
        lplb__put(out, ", %.0f tokens/s (last 100: %.0f)", s->tokens_per_s, s->tokens_per_s_recent);
    lplb__put(out, "\n");
    if (s->step_s.count + s->plan_s.count + s->dispatch_s.count + s->comm_s.count)
        lplb__put(out, "%-10s%10s%14s%10s%10s%10s%11s\n", "time", "mean", "std", "p50", "p90",
                  "p99", "max");
    put_spread_line(out, "  step", &s->step_s);
    put_spread_line(out, "  plan", &s->plan_s);
    put_spread_line(out, "  dispatch", &s->dispatch_s);
    put_spread_line(out, "  comm", &s->comm_s);
    bool known = s->imbalance[LPLB_MONITOR_WINDOWS - 1].mean > 0;
    lplb__put(out, "imbalance  %s\n",
              known ? "(max / mean)  balancedness" : "-  (no step has told its ranks' loads)");
    for (int w = 0; known && w < LPLB_MONITOR_WINDOWS; w++)
        lplb__put(out, "  last %-5s %.3f  (%.3f to %.3f)  %.1f%%\n", window_names[w],
                  s->imbalance[w].mean, s->imbalance[w].min, s->imbalance[w].max,
                  100 * s->balancedness[w].mean);
    if (known)
        lplb__put(out,
                  "  worst layer ever %.3f\n"
                  "ranks      %d, utilisation %.1f%% (%.1f%% to %.1f%%)\n",
                  s->worst_imbalance, s->ranks, 100 * s->utilisation.mean, 100 * s->utilisation.min,
                  100 * s->utilisation.max);
    lplb__put(out, "overhead   ");
    if (timed)
        lplb__put(out, "communication %.2f%%, planning %.2f%% of the steps' time; ",
                  100 * s->comm_share, 100 * s->plan_share);
    else lplb__put(out, "-  (no step has told its time); ");
    lplb__put(out, "%lld tokens off their rank\n", (long long)s->moved_tokens);
    put_manager(out, s);
    lplb__put(out, "memory   ");
    put_bytes(out, "resident", s->resident_bytes);
    put_bytes(out, "redundant experts", s->redundant_bytes);
    lplb__put(out, "\n");
}

/* ---- JSON ---- */

static void put_spread(lplb__text *out, const char *name, const lplb_spread *s) {
    const double values[] = {s->mean, s->std, s->min, s->max, s->p50, s->p90, s->p99};
    static const char *const keys[] = {"mean", "std", "min", "max", "p50", "p90", "p99"};
    lplb__put(out, ",\"%s\":{\"count\":%lld", name, (long long)s->count);
    for (int i = 0; i < 7; i++) {
        lplb__put(out, ",\"%s\":", keys[i]);
        lplb__put_json_real(out, values[i]);
    }
    lplb__put(out, "}");
}

static void put_windows(lplb__text *out, const char *name, const lplb_range_of *of) {
    lplb__put(out, ",\"%s\":{", name);
    for (int w = 0; w < LPLB_MONITOR_WINDOWS; w++)
        lplb__put(out, "%s\"%s\":{\"min\":%.9g,\"mean\":%.9g,\"max\":%.9g}", w ? "," : "",
                  window_names[w], of[w].min, of[w].mean, of[w].max);
    lplb__put(out, "}");
}

static void put_manager_json(lplb__text *out, const lplb_monitor_summary *s) {
    const lplb_manager_stats *m = &s->manager;
    const struct {
        const char *name;
        int64_t value;
    } whole[] = {{"steps", m->steps},
                 {"requests", m->requests},
                 {"adopted", m->adopted},
                 {"skipped", m->skipped},
                 {"refused", m->refused},
                 {"layers_switched", m->layers_switched},
                 {"moves", m->moves},
                 {"moved_bytes", m->moved_bytes},
                 {"loaded", m->loaded},
                 {"move_failures", m->move_failures},
                 {"worker_failures", m->worker_failures},
                 {"fallbacks", m->fallbacks},
                 {"recoveries", m->recoveries},
                 {"loads_refused", m->loads_refused},
                 {"interval", m->interval},
                 {"dead_ranks", m->dead_ranks},
                 {"usable", m->usable},
                 {"pending", m->pending}};
    lplb__put(out, ",\"rebalance\":{\"per_1000_steps\":");
    lplb__put_json_real(out, s->rearrangements_per_1000_steps);
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        lplb__put(out, ",\"%s\":%lld", whole[i].name, (long long)whole[i].value);
    lplb__put(out,
              ",\"place_s\":%.9g,\"wait_s\":%.9g,\"waits\":%lld,\"longest_wait_s\":%.9g,"
              "\"postponed\":%lld,\"adopt_lag\":%lld",
              (double)m->place_ns / 1e9, (double)m->wait_ns / 1e9, (long long)m->waits,
              (double)m->longest_wait_ns / 1e9, (long long)m->postponed, (long long)m->adopt_lag);
    lplb__put(out, ",\"predicted_before\":%.9g,\"predicted_after\":%.9g}", m->predicted_before,
              m->predicted_after);
}

static void put_ranks(lplb__text *out, const lplb_monitor_summary *s, const double *share,
                      const int64_t *total) {
    lplb__put(out, ",\"utilisation\":{\"min\":%.9g,\"mean\":%.9g,\"max\":%.9g,\"rank\":[",
              s->utilisation.min, s->utilisation.mean, s->utilisation.max);
    for (int32_t r = 0; r < s->ranks; r++) lplb__put(out, "%s%.5g", r ? "," : "", share[r]);
    lplb__put(out, "],\"rank_tokens\":[");
    for (int32_t r = 0; r < s->ranks; r++)
        lplb__put(out, "%s%lld", r ? "," : "", (long long)total[r]);
    lplb__put(out, "]}");
}

void lplb__monitor_put_json(const lplb_monitor_summary *s, const double *share,
                            const int64_t *total, lplb__text *out) {
    lplb__put(out, "{\"schema\":\"lplb.monitor/1\",\"job\":");
    lplb__put_json_string(out, s->job);
    lplb__put(out, ",\"uptime_s\":%.3f,\"step\":%lld,\"steps\":%lld,\"tokens\":%lld", s->uptime_s,
              (long long)s->step, (long long)s->steps, (long long)s->tokens);
    lplb__put(out, ",\"tokens_per_s\":%.9g,\"tokens_per_s_recent\":%.9g", s->tokens_per_s,
              s->tokens_per_s_recent);
    put_spread(out, "step_s", &s->step_s);
    put_spread(out, "plan_s", &s->plan_s);
    put_spread(out, "dispatch_s", &s->dispatch_s);
    put_spread(out, "comm_s", &s->comm_s);
    put_windows(out, "imbalance", s->imbalance);
    put_windows(out, "balancedness", s->balancedness);
    lplb__put(out, ",\"worst_imbalance\":%.9g,\"ranks\":%d", s->worst_imbalance, s->ranks);
    put_ranks(out, s, share, total);
    lplb__put(out, ",\"comm_share\":%.9g,\"plan_share\":%.9g,\"comm_bytes\":%lld", s->comm_share,
              s->plan_share, (long long)s->comm_bytes);
    lplb__put(out,
              ",\"moved_tokens\":%lld,\"memory\":{\"resident_bytes\":%lld,"
              "\"redundant_bytes\":%lld}",
              (long long)s->moved_tokens, (long long)s->resident_bytes,
              (long long)s->redundant_bytes);
    put_manager_json(out, s);
    lplb__put(out, ",\"events\":{");
    for (int k = 0; k < LPLB_EVENT_KINDS; k++)
        lplb__put(out, "%s\"%s\":%lld", k ? "," : "", lplb_event_name((lplb_event_kind)k),
                  (long long)s->events[k]);
    lplb__put(out, "},\"dropped\":{\"events\":%lld,\"ranges\":%lld}}", (long long)s->dropped_events,
              (long long)s->dropped_ranges);
}

void lplb__monitor_put_event(const lplb__monitor_event *at, lplb__text *out) {
    const lplb_event *e = &at->event;
    lplb__put(out, "{\"time\":%lld.%06lld,\"step\":%lld,\"event\":\"%s\",\"status\":\"%s\"",
              (long long)(at->unix_ns / 1000000000), (long long)(at->unix_ns % 1000000000 / 1000),
              (long long)e->step, lplb_event_name(e->kind), lplb_status_name(e->status));
    if (e->layer >= 0) lplb__put(out, ",\"layer\":%d", e->layer);
    if (e->rank >= 0) lplb__put(out, ",\"rank\":%d", e->rank);
    if (e->layers) lplb__put(out, ",\"layers\":%lld", (long long)e->layers);
    if (e->moves) lplb__put(out, ",\"moves\":%lld", (long long)e->moves);
    if (e->before > 0) lplb__put(out, ",\"before\":%.6g,\"after\":%.6g", e->before, e->after);
    lplb__put(out, ",\"text\":");
    lplb__put_json_string(out, e->text);
    lplb__put(out, "}");
}
