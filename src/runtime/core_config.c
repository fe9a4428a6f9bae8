/* The manager's configuration: defaults, and what cannot be. */
#include <math.h>

#include "runtime/core.h"

static lplb_status check_shape(const lplb_manager_config *c) {
    if (c->layers < 1 || c->experts < 1 || c->ranks < 1 || c->slots < 1)
        return LPLB_FAIL(LPLB_INVALID,
                         "layers %d, experts %d, ranks %d, slots %d: each must be at least 1",
                         c->layers, c->experts, c->ranks, c->slots);
    if ((int64_t)c->layers * c->slots > INT32_MAX)
        return LPLB_FAIL(LPLB_RANGE, "%d layers of %d slots are too many", c->layers, c->slots);
    if (c->slots < c->experts)
        return LPLB_FAIL(LPLB_INFEASIBLE, "%d slots for %d experts: %d slots are missing", c->slots,
                         c->experts, c->experts - c->slots);
    if (c->nodes < 0 || c->groups < 0 || (c->nodes > 1 && c->ranks % c->nodes))
        return LPLB_FAIL(LPLB_INVALID, "%d ranks do not divide over %d nodes (groups %d)", c->ranks,
                         c->nodes, c->groups);
    return LPLB_OK;
}

static void fill(int64_t *value, int64_t fallback) {
    if (!*value) *value = fallback;
}
static void fill_real(double *value, double fallback) {
    if (*value == 0) *value = fallback;
}

static lplb_status fill_when(lplb_manager_config *c) {
    if ((unsigned)c->mode > LPLB_INTERVAL_PERIODIC)
        return LPLB_FAIL(LPLB_INVALID, "interval mode %d does not exist", (int)c->mode);
    fill(&c->interval, 1000);
    fill(&c->min_interval, c->interval < 100 ? c->interval : 100);
    fill(&c->max_interval, c->interval > 10000 ? c->interval : 10000);
    if (c->min_interval < 1 || c->interval < c->min_interval || c->max_interval < c->interval)
        return LPLB_FAIL(LPLB_RANGE, "intervals %lld, at least %lld, at most %lld, do not rise",
                         (long long)c->interval, (long long)c->min_interval,
                         (long long)c->max_interval);
    if (c->adopt_lag < 0 || c->adopt_lag > c->max_interval)
        return LPLB_FAIL(LPLB_RANGE, "adopt_lag %lld must be from 1 to max_interval = %lld",
                         (long long)c->adopt_lag, (long long)c->max_interval);
    fill_real(&c->step_ns, 1e7);
    if (!(c->step_ns > 0 && isfinite(c->step_ns)))
        return LPLB_FAIL(LPLB_RANGE, "step_ns %g must be a time in nanoseconds", c->step_ns);
    if ((unsigned)c->late > LPLB_LATE_POSTPONE)
        return LPLB_FAIL(LPLB_INVALID, "late %d is neither LPLB_LATE_WAIT nor _POSTPONE",
                         (int)c->late);
    fill_real(&c->shorter_above, 1.2);
    fill_real(&c->longer_below, 0.8);
    if (!(c->shorter_above >= 1 && c->longer_below > 0 && c->longer_below <= 1))
        return LPLB_FAIL(LPLB_RANGE,
                         "shorter_above %g must be at least 1, longer_below %g in (0, 1]",
                         c->shorter_above, c->longer_below);
    return LPLB_OK;
}

/* What EPLB and the topology cannot do, which place anew. */
static lplb_status check_anew(const lplb_manager_config *c) {
    if (c->algorithm == LPLB_PLACE_SEARCH) return LPLB_OK;
    const char *name = c->algorithm == LPLB_PLACE_EPLB ? "EPLB" : "TOPOLOGY";
    if (c->max_moves_per_layer > 0)
        return LPLB_FAIL(
            LPLB_UNSUPPORTED,
            "%s places anew and cannot limit its moves; leave max_moves_per_layer 0 or "
            "use SEARCH",
            name);
    for (int32_t r = 1; c->slots_per_rank && r < c->ranks; r++)
        if (c->slots_per_rank[r] != c->slots_per_rank[0])
            return LPLB_FAIL(LPLB_UNSUPPORTED,
                             "%s wants the same slots on every rank; SEARCH does not", name);
    if (c->move_cost != 0)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%s places anew and weighs no moves; leave move_cost 0 or use SEARCH",
                         name);
    if (c->work)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s has no work to limit; leave work 0 or use SEARCH",
                         name);
    if (c->algorithm == LPLB_PLACE_TOPOLOGY && (c->slots - c->experts) % c->ranks)
        return LPLB_FAIL(LPLB_INVALID,
                         "TOPOLOGY: %d slots beyond %d experts do not divide over %d ranks",
                         c->slots - c->experts, c->experts, c->ranks);
    return LPLB_OK;
}

static lplb_status fill_what(lplb_manager_config *c) {
    if ((unsigned)c->algorithm > LPLB_PLACE_SEARCH)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "placement algorithm %d does not exist",
                         (int)c->algorithm);
    if (c->topology && c->algorithm != LPLB_PLACE_TOPOLOGY)
        return LPLB_FAIL(LPLB_INVALID, "a topology goes with the algorithm TOPOLOGY only");
    LPLB_TRY(check_anew(c));
    if (c->always && c->max_moves > 0)
        return LPLB_FAIL(LPLB_INVALID, "always adopts every placement whole; it goes with no "
                                       "max_moves");
    fill(&c->max_moves_per_layer, c->slots < 16 ? 1 : c->slots / 8);
    if (c->always && c->move_rate > 0)
        return LPLB_FAIL(LPLB_INVALID, "always adopts every placement; it goes with no move_rate");
    bool search = c->algorithm == LPLB_PLACE_SEARCH;
    bool unlimited = !search || c->always || c->expert_bytes;
    fill_real(&c->move_rate, unlimited ? -1 : 0.05);
    if (!(c->move_rate <= 1e6))
        return LPLB_FAIL(LPLB_RANGE, "move_rate %g must be a fraction of the slots", c->move_rate);
    fill_real(&c->move_cost, 0.8);
    if (!(c->move_cost > 0 && c->move_cost <= 1e6))
        return LPLB_FAIL(LPLB_RANGE, "move_cost %g is outside (0, 1e6]", c->move_cost);
    int64_t brief = 30000 * (int64_t)c->slots;
    fill(&c->work, (brief < 8000000 ? 8000000 : brief) * (c->effort > 0 ? c->effort : 1));
    if (!search || c->work < 0) c->work = 0;
    fill_real(&c->keep_below, 1.02);
    fill_real(&c->min_gain, 0.01);
    if (!(c->keep_below >= 1 && isfinite(c->keep_below)) || !isfinite(c->min_gain))
        return LPLB_FAIL(LPLB_RANGE,
                         "keep_below %g must be an imbalance (>= 1), min_gain %g finite",
                         c->keep_below, c->min_gain);
    int given = (c->expert_bytes != 0) + (c->link_bytes_per_s != 0) + (c->token_ns != 0);
    if (given &&
        (given < 3 || c->expert_bytes < 0 || !(c->link_bytes_per_s > 0) || !(c->token_ns > 0)))
        return LPLB_FAIL(LPLB_INVALID,
                         "expert_bytes %lld, link_bytes_per_s %g and token_ns %g: "
                         "give all three, positive, or none",
                         (long long)c->expert_bytes, c->link_bytes_per_s, c->token_ns);
    fill_real(&c->exposed, 1);
    fill_real(&c->hysteresis, 1.5);
    if (!(c->exposed > 0 && c->exposed <= 1) || !(c->hysteresis >= 1))
        return LPLB_FAIL(LPLB_RANGE, "exposed %g must be in (0, 1], hysteresis %g at least 1",
                         c->exposed, c->hysteresis);
    return LPLB_OK;
}

/* About how long the worker takes for all layers, by the work that they may cost: a trial of the
 * search's full schedule takes 1 us under the even split, 8 us under the exact plan; judging takes
 * an exact plan of 64 batches before and after. */
static double worker_ns(const lplb_manager_config *c) {
    double trials = 400.0 * (c->effort > 0 ? c->effort : 1) * c->slots;
    double place = c->work > 0 ? (double)c->work : trials * (c->even_split ? 1e3 : 8e3);
    double judge = (c->even_split ? 10.0 : 170.0) * c->slots * c->tracker.samples;
    if (c->algorithm != LPLB_PLACE_SEARCH) place = 0;
    return c->layers * (place + judge) / (c->threads > 1 ? c->threads : 1);
}

static void fill_lag(lplb_manager_config *c) {
    static const double MARGIN = 1.5;
    if (c->adopt_lag) return;
    double least = c->min_interval < 2     ? 1
                   : c->min_interval < 100 ? (double)(c->min_interval / 2)
                                           : 50;
    double lag = ceil(MARGIN * worker_ns(c) / c->step_ns);
    if (lag < least) lag = least;
    c->adopt_lag = lag < (double)c->max_interval ? (int64_t)lag : c->max_interval;
}

static lplb_status fill_how(lplb_manager_config *c) {
    if (!c->layers_per_chunk) c->layers_per_chunk = c->layers;
    fill(&c->moves_per_chunk, INT64_MAX);
    fill(&c->move_lag, 1);
    if (c->layers_per_chunk < 1 || c->moves_per_chunk < 1 || c->move_lag < 1)
        return LPLB_FAIL(LPLB_RANGE,
                         "layers_per_chunk %d, moves_per_chunk %lld and move_lag %lld "
                         "must be at least 1",
                         c->layers_per_chunk, (long long)c->moves_per_chunk,
                         (long long)c->move_lag);
    if (c->load_lost && !c->hooks.stage)
        return LPLB_FAIL(LPLB_INVALID, "load_lost needs the hook that loads them, stage");
    if (!c->threads) c->threads = 1;
    if (c->threads < 0) c->threads = 0; /* what lplb_place calls all */
    fill_real(&c->worker_timeout_s, 60);
    if (isnan(c->worker_timeout_s))
        return LPLB_FAIL(LPLB_RANGE, "worker_timeout_s is not a number");
    return LPLB_OK;
}

lplb_status lplb__fill_manager_config(const lplb_manager_config *given,
                                      lplb_manager_config *config) {
    if (given->struct_size != sizeof *given)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be sizeof(lplb_manager_config) = %zu",
                         given->struct_size, sizeof *given);
    *config = *given;
    LPLB_TRY(check_shape(config));
    if (!config->nodes) config->nodes = 1;
    if (!config->groups) config->groups = 1;
    LPLB_TRY(fill_when(config));
    LPLB_TRY(fill_what(config));
    LPLB_TRY(fill_how(config));
    lplb_tracker_config *t = &config->tracker;
    bool untouched = !t->kind && t->alpha == 0;
    t->struct_size = sizeof *t;
    if ((t->layers && t->layers != config->layers) || (t->experts && t->experts != config->experts))
        return LPLB_FAIL(LPLB_INVALID,
                         "the tracker has %d layers of %d experts, the manager %d of "
                         "%d",
                         t->layers, t->experts, config->layers, config->experts);
    t->layers = config->layers;
    t->experts = config->experts;
    if (untouched) t->alpha = 0.01;
    if (!t->samples) t->samples = 64;
    fill_lag(config);
    return LPLB_OK;
}
