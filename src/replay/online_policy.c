/* Names of online policies: "PLACEMENT[:option=value,...][+SOLVER[:option=value,...]]". */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "replay/online.h"

static lplb_status copy_text(const char *text, size_t length, char **out) {
    LPLB_TRY(LPLB_CALLOC(*out, length + 1));
    memcpy(*out, text, length);
    return LPLB_OK;
}

static lplb_status read_real(const char *option, const char *text, double low, double high,
                             double *out) {
    char *end;
    *out = strtod(text, &end);
    if (end == text || *end || !(*out >= low && *out <= high))
        return LPLB_FAIL(LPLB_INVALID, "%s wants a number from %g to %g, not '%s'", option, low,
                         high, text);
    return LPLB_OK;
}

static lplb_status read_whole(const char *option, const char *text, int64_t *out) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < 1 || value > INT32_MAX)
        return LPLB_FAIL(LPLB_INVALID, "%s wants a whole number from 1, not '%s'", option, text);
    *out = value;
    return LPLB_OK;
}

/* -1 = without limit. */
static lplb_status read_work(const char *text, int64_t *out) {
    *out = -1;
    return !strcmp(text, "-1") ? LPLB_OK : read_whole("work", text, out);
}

static lplb_status read_algorithm(const char *text, lplb_manager_config *m) {
    if (!strcmp(text, "search")) m->algorithm = LPLB_PLACE_SEARCH;
    else if (!strcmp(text, "eplb")) m->algorithm = LPLB_PLACE_EPLB;
    else if (!strcmp(text, "topology")) m->algorithm = LPLB_PLACE_TOPOLOGY;
    else return LPLB_FAIL(LPLB_INVALID, "algorithm is search, eplb or topology, not '%s'", text);
    return LPLB_OK;
}

static lplb_status manager_option(const char *key, const char *value, lplb_manager_config *m) {
    int64_t effort = 0, samples = 0;
    if (!strcmp(key, "alpha")) return read_real(key, value, 1e-6, 1, &m->tracker.alpha);
    if (!strcmp(key, "moves")) return read_whole(key, value, &m->max_moves_per_layer);
    if (!strcmp(key, "budget")) return read_whole(key, value, &m->max_moves);
    if (!strcmp(key, "rate")) return read_real(key, value, -1, 1000, &m->move_rate);
    if (!strcmp(key, "cost")) return read_real(key, value, 1e-6, 1e6, &m->move_cost);
    if (!strcmp(key, "gain")) return read_real(key, value, -1, 100, &m->min_gain);
    if (!strcmp(key, "work")) return read_work(value, &m->work);
    if (!strcmp(key, "keep")) return read_real(key, value, 1, 1000, &m->keep_below);
    if (!strcmp(key, "lag")) return read_whole(key, value, &m->adopt_lag);
    if (!strcmp(key, "interval")) return read_whole(key, value, &m->interval);
    if (!strcmp(key, "min")) return read_whole(key, value, &m->min_interval);
    if (!strcmp(key, "max")) return read_whole(key, value, &m->max_interval);
    if (!strcmp(key, "algorithm")) return read_algorithm(value, m);
    if (!strcmp(key, "effort")) {
        LPLB_TRY(read_whole(key, value, &effort));
        m->effort = (int32_t)effort;
        return LPLB_OK;
    }
    if (!strcmp(key, "samples")) {
        LPLB_TRY(read_whole(key, value, &samples));
        m->tracker.samples = (int32_t)samples;
        return LPLB_OK;
    }
    return LPLB_FAIL(
        LPLB_INVALID,
        "manager has no option '%s'; there are every, adaptive, alpha, window, samples, "
        "moves, budget, rate, cost, gain, keep, lag, interval, min, max, algorithm, effort, work, "
        "forecast, season",
        key);
}

static lplb_status one_option(char *text, lplb__online_policy *out) {
    lplb_manager_config *m = &out->manager;
    char *equals = strchr(text, '=');
    if (!strcmp(text, "adaptive")) {
        m->mode = LPLB_INTERVAL_ADAPTIVE;
        return LPLB_OK;
    }
    if (!equals) return LPLB_FAIL(LPLB_INVALID, "option '%s' needs a value", text);
    *equals = '\0';
    if (!strcmp(text, "every")) {
        m->mode = LPLB_INTERVAL_PERIODIC;
        return read_whole(text, equals + 1, &m->interval);
    }
    if (!strcmp(text, "window")) {
        int64_t window = 0;
        LPLB_TRY(read_whole(text, equals + 1, &window));
        m->tracker.kind = LPLB_TRACKER_WINDOW;
        m->tracker.window = (int32_t)window;
        return LPLB_OK;
    }
    if (out->kind == LPLB__ONLINE_MANAGER && !strcmp(text, "forecast"))
        return read_whole(text, equals + 1, &out->forecast);
    if (out->kind == LPLB__ONLINE_MANAGER && !strcmp(text, "season"))
        return read_whole(text, equals + 1, &out->season);
    if (out->kind == LPLB__ONLINE_MANAGER) return manager_option(text, equals + 1, m);
    return LPLB_FAIL(LPLB_INVALID, "eplb has no option '%s'; there are every, window, adaptive",
                     text);
}

/* options: "every=500,window=100", changed while it is read. */
static lplb_status read_options(char *options, lplb__online_policy *out) {
    for (char *text = options; text;) {
        char *comma = strchr(text, ',');
        if (comma) *comma = '\0';
        LPLB_TRY(one_option(text, out));
        text = comma ? comma + 1 : NULL;
    }
    return LPLB_OK;
}

static void set_defaults(lplb__online_policy *out) {
    lplb_manager_config *m = &out->manager;
    m->struct_size = sizeof *m;
    m->algorithm = LPLB_PLACE_SEARCH;
    if (out->kind != LPLB__ONLINE_EPLB) return;
    m->mode = LPLB_INTERVAL_PERIODIC;
    m->interval = 1000;
    m->algorithm = LPLB_PLACE_EPLB;
    m->always = 1;
}

/* Engines sum up what came since the last placement. */
static void fill_window(lplb__online_policy *out) {
    lplb_manager_config *m = &out->manager;
    if (out->kind != LPLB__ONLINE_EPLB || m->mode != LPLB_INTERVAL_PERIODIC) return;
    m->tracker.kind = LPLB_TRACKER_WINDOW;
    if (!m->tracker.window) m->tracker.window = (int32_t)m->interval;
}

static lplb_status parse_placement(char *text, lplb__online_policy *out) {
    static const char *const names[] = {"none", "fixed", "eplb", "manager"};
    char *options = strchr(text, ':');
    if (options) *options++ = '\0';
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i])) continue;
        out->kind = (lplb__online_kind)i;
        if (options && out->kind <= LPLB__ONLINE_FIXED)
            return LPLB_FAIL(LPLB_INVALID, "%s takes no options", text);
        set_defaults(out);
        LPLB_TRY(read_options(options, out));
        if (out->season && !out->forecast)
            return LPLB_FAIL(LPLB_INVALID, "season=%lld needs forecast=N, the steps of a block",
                             (long long)out->season);
        fill_window(out);
        return LPLB_OK;
    }
    return LPLB_FAIL(LPLB_INVALID, "no placement '%s'; there are none, fixed, eplb, manager", text);
}

static lplb_status parse(const char *text, lplb__online_policy *out) {
    const char *plus = strchr(text, '+');
    size_t length = plus ? (size_t)(plus - text) : strlen(text);
    const char *solver = plus ? plus + 1 : "even";
    char *scratch;
    LPLB_TRY(copy_text(text, length, &out->placement_name));
    LPLB_TRY(copy_text(solver, strlen(solver), &out->solver_name));
    LPLB_TRY(copy_text(text, length, &scratch));
    lplb_status status = parse_placement(scratch, out);
    lplb__free(scratch);
    LPLB_TRY(status);
    /* Sources are not followed online, so locality is refused. */
    LPLB_TRY(lplb_plan_parse_solver(solver, &out->plan, NULL));
    out->solves = out->plan.solver != LPLB_SOLVER_EVEN;
    out->manager.even_split = !out->solves;
    return LPLB_OK;
}

lplb_status lplb__online_parse(const char *text, lplb__online_policy *out) {
    *out = (lplb__online_policy){.plan = {.struct_size = sizeof(lplb_plan_config)}};
    if (parse(text, out) == LPLB_OK) return LPLB_OK;
    lplb__online_policy_destroy(out);
    return LPLB_FAIL(LPLB_INVALID, "policy '%s': %s", text, lplb_error_message());
}

void lplb__online_policy_destroy(lplb__online_policy *policy) {
    lplb__free(policy->placement_name);
    lplb__free(policy->solver_name);
    *policy = (lplb__online_policy){0};
}
