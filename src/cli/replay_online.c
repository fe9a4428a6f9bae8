#include "cli/replay_online.h"

#include <stdio.h>
#include <string.h>

/* ---- JSON ---- */

static json_t *distribution_json(const lplb_distribution *d) {
    return json_pack("{s:f, s:f, s:f, s:f}", "mean", d->mean, "p50", d->p50, "p99", d->p99, "max",
                     d->max);
}

static json_t *curve_json(const lplb_online_result *r, const lplb_online_policy *p) {
    json_t *steps = json_array(), *imbalance = json_array(), *moves = json_array();
    for (int32_t i = 0; i < r->points; i++) {
        json_array_append_new(steps, json_integer(r->point_step[i]));
        json_array_append_new(imbalance, p->curve[i] > 0 ? json_real(p->curve[i]) : json_null());
        json_array_append_new(moves, json_integer(p->curve_moves[i]));
    }
    return json_pack("{s:o, s:o, s:o}", "step", steps, "imbalance", imbalance, "moved_slots",
                     moves);
}

static json_t *events_json(const lplb_online_policy *p) {
    json_t *list = json_array();
    for (int64_t i = 0; i < p->events; i++) {
        const lplb_event *e = &p->event[i];
        json_array_append_new(
            list,
            json_pack("{s:I, s:s, s:s, s:I, s:I, s:s}", "step", (json_int_t)e->step, "event",
                      lplb_event_name(e->kind), "status", lplb_status_name(e->status), "layers",
                      (json_int_t)e->layers, "moves", (json_int_t)e->moves, "text", e->text));
    }
    return list;
}

static json_t *policy_json(const lplb_online_result *r, const lplb_online_policy *p) {
    const lplb_manager_stats *s = &p->stats;
    return json_pack(
        "{s:s, s:s, s:s, s:o, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o}",
        "policy", p->policy, "placement", p->placement_name, "solver", p->solver_name, "imbalance",
        distribution_json(&p->imbalance), "balancedness", p->balancedness, "moved_slots",
        (json_int_t)p->moved_slots, "rearrangements", (json_int_t)p->rearrangements, "requests",
        (json_int_t)s->requests, "skipped", (json_int_t)s->skipped, "refused",
        (json_int_t)s->refused, "interval", (json_int_t)s->interval, "adopt_lag",
        (json_int_t)s->adopt_lag, "place_seconds", p->place_seconds, "wait_seconds",
        p->wait_seconds, "curve", curve_json(r, p), "events", events_json(p));
}

static json_t *result_json(const lplb_online_result *r) {
    json_t *policies = json_array();
    for (int32_t i = 0; i < r->policies; i++)
        json_array_append_new(policies, policy_json(r, &r->policy[i]));
    return json_pack("{s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:f, s:o}", "schema",
                     "lplb.replay_online/1", "steps", (json_int_t)r->steps, "measured",
                     (json_int_t)r->measured, "layers", r->layers, "experts", r->experts, "topk",
                     r->topk, "ranks", r->ranks, "nodes", r->nodes, "slots", r->slots,
                     "batch_tokens", (json_int_t)r->batch_tokens, "seconds", r->seconds, "policies",
                     policies);
}

/* ---- text ---- */

enum { COLUMNS = 10 };

/* Mean of the curve's points in one of ten columns. */
static double column_of(const lplb_online_result *r, const lplb_online_policy *p, int32_t column) {
    double sum = 0;
    int32_t n = 0;
    for (int32_t i = column * r->points / COLUMNS; i < (column + 1) * r->points / COLUMNS; i++)
        if (p->curve[i] > 0) sum += p->curve[i], n++;
    return n ? sum / n : 0;
}

static int name_width(const lplb_online_result *r) {
    int width = (int)strlen("policy");
    for (int32_t i = 0; i < r->policies; i++)
        if ((int)strlen(r->policy[i].policy) > width) width = (int)strlen(r->policy[i].policy);
    return width;
}

static void print_curves(const lplb_online_result *r, int width) {
    printf("\nImbalance over time, from step\n%-*s", width, "");
    for (int32_t c = 0; c < COLUMNS; c++) {
        int32_t point = c * r->points / COLUMNS;
        printf(" %7s", cli_thousands(r->point_step[point]));
    }
    printf("\n");
    for (int32_t i = 0; i < r->policies; i++) {
        printf("%-*s", width, r->policy[i].policy);
        for (int32_t c = 0; c < COLUMNS; c++) {
            double value = column_of(r, &r->policy[i], c);
            if (value > 0) printf(" %7.3f", value);
            else printf(" %7s", "-");
        }
        printf("\n");
    }
}

/* Policies that place anew, none of which came to do so. */
static bool too_short(const lplb_online_result *r) {
    bool waits = false;
    for (int32_t i = 0; i < r->policies; i++) {
        if (r->policy[i].rearrangements) return false;
        waits |= strcmp(r->policy[i].placement_name, "none") &&
                 strcmp(r->policy[i].placement_name, "fixed");
    }
    return waits;
}

static void print_text(const lplb_trace *trace, const lplb_online_result *r, double step_ms) {
    int width = name_width(r);
    printf("%s\n%s steps", trace->source, cli_thousands(r->steps));
    if (r->batch_tokens) printf(" of %s tokens", cli_thousands(r->batch_tokens));
    printf(", the last %s measured; %d ranks, %d expert slots in each of %d layers\n\n",
           cli_thousands(r->measured), r->ranks, r->slots, r->layers);
    printf("%-*s  imbalance    p99    max  balanced  rearr.  moved slots  %% of slots  place s  "
           "waited s\n",
           width, "policy");
    double slots = (double)r->slots * r->layers;
    for (int32_t i = 0; i < r->policies; i++) {
        const lplb_online_policy *p = &r->policy[i];
        printf("%-*s  %9.4f %6.3f %6.3f %8.1f%% %7s %12s %11.1f %8.2f %9.3f\n", width, p->policy,
               p->imbalance.mean, p->imbalance.p99, p->imbalance.max, 100 * p->balancedness,
               cli_thousands(p->rearrangements), cli_thousands(p->moved_slots),
               100 * (double)p->moved_slots / slots, p->place_seconds, p->wait_seconds);
    }
    printf("\nwaited: what placing took beyond the steps between request and adoption, at %g ms a "
           "step\n",
           step_ms);
    if (too_short(r))
        printf(
            "nothing was placed anew in %s steps: fewer --batch-tokens make more steps, a policy's "
            "every=N or interval=N,min=N shorter intervals\n",
            cli_thousands(r->steps));
    if (r->points >= COLUMNS) print_curves(r, width);
}

/* On the loopback, as long as the replay runs. */
static lplb_status open_monitor(int32_t ranks, int32_t port, lplb_monitor **out) {
    *out = NULL;
    if (port < 0) return LPLB_OK;
    lplb_monitor_config config = {.struct_size = sizeof config,
                                  .ranks = ranks,
                                  .job = "lplb replay --online",
                                  .serve = 1,
                                  .port = port};
    lplb_status status = lplb_monitor_create(&config, out);
    if (status == LPLB_OK)
        fprintf(stderr, "metrics at http://127.0.0.1:%d\n", lplb_monitor_port(*out));
    return status;
}

int replay_online(const char *name, const lplb_online_config *config,
                  const lplb_trace_options *trace_options, const char *path, const char *report,
                  int32_t metrics_port, bool json) {
    lplb_trace *trace = NULL;
    lplb_online_result *result = NULL;
    if (config->replay.ranks == 0)
        return cli_fail(name, EXIT_USAGE, "--ranks is required; see --help");
    lplb_online_config filled = *config;
    filled.replay.progress = cli_progress;
    filled.keep_events = json;
    lplb_status status = lplb_trace_read(path, trace_options, &trace);
    if (status == LPLB_OK)
        status = open_monitor(config->replay.ranks, metrics_port, &filled.monitor);
    if (status == LPLB_OK) status = lplb_online(trace, &filled, &result);
    if (status == LPLB_OK && report)
        status = lplb_online_report_write(result, trace->source, report);
    int code = EXIT_OK;
    if (status != LPLB_OK) {
        cli_progress(1, "", NULL); /* clears the line */
        code = cli_fail_status(name, status);
    } else if (json) {
        code = cli_print_json(result_json(result));
    } else {
        print_text(trace, result, filled.step_ns / 1e6);
        if (report) printf("\nReport: %s/report.html\n", report);
        if (fflush(stdout) || ferror(stdout))
            code = cli_fail(name, EXIT_FAILED, "cannot write to stdout");
    }
    lplb_online_result_destroy(result);
    lplb_trace_destroy(trace);
    lplb_monitor_destroy(filled.monitor);
    return code;
}
