/* Online replay: every policy serves the steps in order, its manager fed after each, as it would be
 * in an engine. Policies do not touch each other and run beside each other. */
#define _POSIX_C_SOURCE 200809L
#include "replay/online.h"

#include <string.h>
#include <time.h>

#include "base/clock.h"

static const char *const default_policies[] = {
    "eplb:every=500+even", "eplb:every=500+exact", "eplb:every=1000+even", "eplb:every=1000+exact",
    "eplb:adaptive+even",  "eplb:adaptive+exact",  "manager+even",         "manager+exact",
};
enum { N_DEFAULT_POLICIES = sizeof default_policies / sizeof *default_policies, POINTS = 100 };

typedef struct online_run {
    lplb__replay base; /* order, batches; its policies are not used */
    const lplb_online_config *config;
    lplb__online_policy *policy;
    lplb_online_result *result;
    double step_ns;
} online_run;

/* One layer as it is served. */
typedef struct served_layer {
    int64_t *offset;
    int32_t *rank, *slots_of_host;
    lplb_hosts hosts;
    lplb_planner *planner;
} served_layer;

/* One policy at work. */
typedef struct server {
    online_run *run;
    const lplb__online_policy *policy;
    lplb_online_policy *out;
    lplb_placement *still; /* of policies without a manager */
    lplb_manager *manager;
    served_layer *layer; /* [L] */
    bool *changed;       /* [L] the mapping was switched: make the planner anew */
    int64_t *counts;     /* [L][E] */
    int64_t *split, *loads;
    double *imbalance;     /* [measured][L] */
    lplb_monitor *monitor; /* of this policy, or NULL */
    int64_t *rank_load;    /* [G] of a step, summed over layers */
    int64_t event_capacity;
    lplb_status event_status;
} server;

/* ---- hooks ---- */

static void on_commit(void *user, int32_t layer, const int32_t *row) {
    (void)row;
    ((server *)user)->changed[layer] = true;
}

static void on_event(void *user, const lplb_event *event) {
    server *s = user;
    if (!s->run->config->keep_events || s->event_status != LPLB_OK) return;
    if (s->out->events == s->event_capacity) {
        int64_t capacity = s->event_capacity ? 2 * s->event_capacity : 64;
        lplb_event *larger = lplb__realloc(s->out->event, (size_t)capacity * sizeof *larger);
        if (!larger) {
            s->event_status =
                LPLB_FAIL(LPLB_NO_MEMORY, "cannot keep %lld events", (long long)capacity);
            return;
        }
        s->out->event = larger;
        s->event_capacity = capacity;
    }
    s->out->event[s->out->events++] = *event;
}

/* ---- serving ---- */

static lplb_status rebuild_layer(server *s, const lplb_placement *placement, int32_t layer) {
    served_layer *at = &s->layer[layer];
    s->changed[layer] = false;
    lplb_planner_destroy(at->planner);
    at->planner = NULL;
    LPLB_TRY(lplb_placement_hosts(placement, layer, at->offset, at->rank, &at->hosts));
    if (!s->policy->solves) {
        lplb__count_slots(placement, layer, &at->hosts, at->slots_of_host);
        return LPLB_OK;
    }
    lplb_plan_config config = s->policy->plan;
    config.hosts = at->hosts;
    return lplb_planner_create(&config, &at->planner);
}

/* Imbalance of one layer of the step, 0 without tokens. */
static lplb_status serve_layer(server *s, const lplb_placement *placement, int32_t layer,
                               double *imbalance) {
    const int64_t *tokens = s->counts + (int64_t)layer * placement->experts;
    int64_t total = 0;
    *imbalance = 0;
    if (s->changed[layer]) LPLB_TRY(rebuild_layer(s, placement, layer));
    for (int32_t e = 0; e < placement->experts; e++) total += tokens[e];
    if (total == 0) return LPLB_OK;
    served_layer *at = &s->layer[layer];
    int64_t most = 0;
    if (s->policy->solves) {
        lplb_plan_input input = {.tokens = tokens};
        lplb_plan plan = {.split = s->split, .loads = s->loads};
        LPLB_TRY(lplb_plan_solve(at->planner, &input, &plan));
        most = plan.max_load;
    } else {
        lplb__even_over_slots(&at->hosts, at->slots_of_host, tokens, s->split);
        memset(s->loads, 0, (size_t)placement->ranks * sizeof *s->loads);
        for (int64_t h = 0; h < at->hosts.offset[placement->experts]; h++)
            s->loads[at->rank[h]] += s->split[h];
        for (int32_t r = 0; r < placement->ranks; r++)
            if (s->loads[r] > most) most = s->loads[r];
    }
    for (int32_t r = 0; r < placement->ranks; r++) s->rank_load[r] += s->loads[r];
    *imbalance = (double)most * placement->ranks / (double)total;
    return LPLB_OK;
}

/* Time that this thread computed: what placing takes on a core of its own, however busy the machine
 * is with other policies. */
static int64_t own_time_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The manager places within the step here (synchronous). A worker would have had adopt_lag steps
 * for it; what it takes longer, steps would wait. */
static lplb_status step_manager(server *s, int64_t step) {
    lplb_manager_stats before, after;
    lplb_manager_get_stats(s->manager, &before);
    int64_t start = own_time_ns();
    LPLB_TRY(lplb_manager_step(s->manager, step, LPLB_STAGE_DECODE, s->counts));
    int64_t took = own_time_ns() - start;
    lplb_manager_get_stats(s->manager, &after);
    if (after.place_ns == before.place_ns) return LPLB_OK;
    double beyond = (double)took - (double)after.adopt_lag * s->run->step_ns;
    s->out->place_seconds += (double)took / 1e9;
    if (beyond > 0) s->out->wait_seconds += beyond / 1e9;
    return LPLB_OK;
}

static void report_step(server *s, int64_t step, const lplb_placement *placement, double sum,
                        double worst, int32_t served) {
    if (!s->monitor) return;
    lplb_monitor_step_data data = {.step = step,
                                   .imbalance = served ? sum / served : 0,
                                   .worst_imbalance = worst,
                                   .rank_load = s->rank_load};
    for (int32_t r = 0; r < placement->ranks; r++) data.tokens += s->rank_load[r];
    lplb_monitor_step(s->monitor, &data);
}

static lplb_status serve_step(server *s, int64_t step) {
    lplb__replay *base = &s->run->base;
    int64_t warm = s->run->result->steps - s->run->result->measured;
    int64_t B = base->batch_tokens ? base->batch_tokens : 1;
    const lplb_placement *placement = s->still;
    double sum = 0, worst = 0;
    int32_t served = 0;
    if (s->manager) LPLB_TRY(lplb_manager_placement(s->manager, &placement));
    memset(s->rank_load, 0, (size_t)placement->ranks * sizeof *s->rank_load);
    for (int32_t l = 0; l < base->layers; l++) {
        double imbalance;
        lplb_trace_count(base->trace, base->first_layer + l, step * B, B, base->order,
                         s->counts + (int64_t)l * base->experts);
        LPLB_TRY(serve_layer(s, placement, l, &imbalance));
        if (step >= warm) s->imbalance[(step - warm) * base->layers + l] = imbalance;
        sum += imbalance;
        served += imbalance > 0;
        if (imbalance > worst) worst = imbalance;
    }
    report_step(s, step, placement, sum, worst, served);
    if (!s->manager) return LPLB_OK;
    LPLB_TRY(step_manager(s, step));
    return s->event_status;
}

static int64_t moves_so_far(const server *s) {
    lplb_manager_stats stats = {0};
    if (s->manager) lplb_manager_get_stats(s->manager, &stats);
    return stats.moves;
}

static void mark_point(server *s, int64_t step, int32_t *point) {
    const lplb_online_result *r = s->run->result;
    while (*point < r->points &&
           step + 1 >= (*point + 1 < r->points ? r->point_step[*point + 1] : r->steps))
        s->out->curve_moves[(*point)++] = moves_so_far(s);
}

static lplb_status serve(server *s, bool tells) {
    online_run *run = s->run;
    int32_t point = 0;
    for (int64_t step = 0; step < run->result->steps; step++) {
        lplb_status status = serve_step(s, step);
        if (status != LPLB_OK)
            return LPLB_FAIL(status, "policy '%s', step %lld: %s", s->out->policy, (long long)step,
                             lplb_error_message());
        mark_point(s, step, &point);
        if (tells && step % 16 == 0)
            lplb__replay_progress(&run->base, (double)step / (double)run->result->steps,
                                  s->out->policy);
    }
    return LPLB_OK;
}

/* ---- one policy, from beginning to end ---- */

static lplb_status make_manager(server *s) {
    const lplb__replay *base = &s->run->base;
    lplb_manager_config m = s->policy->manager;
    m.layers = base->layers;
    m.experts = base->experts;
    m.ranks = base->ranks;
    m.slots = s->run->result->slots;
    m.nodes = base->nodes;
    m.groups = base->config.groups;
    m.seed = base->config.seed;
    m.synchronous = 1; /* the same answer as with a worker, without a thread for each policy */
    if (s->run->config->token_ns > 0 && s->policy->kind == LPLB__ONLINE_MANAGER) {
        m.expert_bytes = base->config.expert_bytes;
        m.link_bytes_per_s = s->run->config->link_bytes_per_s;
        m.token_ns = s->run->config->token_ns;
    }
    lplb_forecaster_config forecaster = {.struct_size = sizeof forecaster,
                                         .block = (int32_t)s->policy->forecast,
                                         .period = (int32_t)s->policy->season};
    if (s->policy->forecast) m.forecaster = &forecaster;
    m.step_ns = s->run->step_ns;
    m.monitor = s->monitor;
    m.hooks = (lplb_manager_hooks){.user = s, .commit = on_commit, .event = on_event};
    return lplb_manager_create(&m, &s->manager);
}

static lplb_status make_still(server *s) {
    const lplb__replay *base = &s->run->base;
    if (s->policy->kind == LPLB__ONLINE_NONE) return lplb__replay_contiguous(base, &s->still);
    LPLB_TRY(lplb_placement_create(base->layers, base->experts, base->slots, base->ranks, NULL,
                                   &s->still));
    lplb_placement_fill_trivial(s->still);
    return LPLB_OK;
}

static lplb_status make_server(server *s) {
    const lplb_online_result *r = s->run->result;
    int64_t cells = (int64_t)r->layers * r->experts;
    LPLB_TRY(LPLB_CALLOC(s->layer, r->layers));
    LPLB_TRY(LPLB_CALLOC(s->changed, r->layers));
    LPLB_TRY(LPLB_CALLOC(s->counts, cells));
    LPLB_TRY(LPLB_CALLOC(s->split, r->slots));
    LPLB_TRY(LPLB_CALLOC(s->loads, r->ranks));
    LPLB_TRY(LPLB_CALLOC(s->rank_load, r->ranks));
    LPLB_TRY(LPLB_CALLOC(s->imbalance, r->measured * r->layers));
    LPLB_TRY(LPLB_CALLOC(s->out->curve, r->points));
    LPLB_TRY(LPLB_CALLOC(s->out->curve_moves, r->points));
    for (int32_t l = 0; l < r->layers; l++) {
        LPLB_TRY(LPLB_CALLOC(s->layer[l].offset, r->experts + 1));
        LPLB_TRY(LPLB_CALLOC(s->layer[l].rank, r->slots));
        LPLB_TRY(LPLB_CALLOC(s->layer[l].slots_of_host, r->slots));
        s->changed[l] = true;
    }
    return s->policy->kind <= LPLB__ONLINE_FIXED ? make_still(s) : make_manager(s);
}

static void drop_server(server *s) {
    for (int32_t l = 0; s->layer && l < s->run->result->layers; l++) {
        lplb__free(s->layer[l].offset);
        lplb__free(s->layer[l].rank);
        lplb__free(s->layer[l].slots_of_host);
        lplb_planner_destroy(s->layer[l].planner);
    }
    void *blocks[] = {s->layer, s->changed,   s->counts,   s->split,
                      s->loads, s->imbalance, s->rank_load};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) lplb__free(blocks[i]);
    lplb_manager_destroy(s->manager);
    lplb_placement_destroy(s->still);
}

static void draw_curve(const server *s) {
    const lplb_online_result *r = s->run->result;
    int64_t warm = r->steps - r->measured;
    for (int32_t p = 0; p < r->points; p++) {
        int64_t end = p + 1 < r->points ? r->point_step[p + 1] : r->steps, n = 0;
        double sum = 0;
        for (int64_t i = (r->point_step[p] - warm) * r->layers; i < (end - warm) * r->layers; i++)
            if (i >= 0 && s->imbalance[i] > 0) sum += s->imbalance[i], n++;
        s->out->curve[p] = n ? sum / (double)n : 0;
    }
}

/* The distribution needs its values together and sorts them, so it comes last. */
static void sum_up(server *s) {
    const lplb_online_result *r = s->run->result;
    draw_curve(s);
    int64_t n = 0;
    double balancedness = 0;
    for (int64_t i = 0; i < r->measured * r->layers; i++)
        if (s->imbalance[i] > 0) s->imbalance[n++] = s->imbalance[i];
    for (int64_t i = 0; i < n; i++) balancedness += 1 / s->imbalance[i];
    s->out->balancedness = n ? balancedness / (double)n : 0;
    s->out->imbalance = lplb__distribution(s->imbalance, n);
    if (!s->manager) return;
    lplb_manager_get_stats(s->manager, &s->out->stats);
    s->out->moved_slots = s->out->stats.moves;
    s->out->rearrangements = s->out->stats.adopted;
}

/* Whose figures the monitor shows. */
static int32_t shown_policy(const online_run *run) {
    int32_t shown = -1;
    for (int32_t i = 0; i < run->result->policies; i++) {
        lplb__online_kind kind = run->policy[i].kind;
        if (kind == LPLB__ONLINE_MANAGER) return i;
        if (kind == LPLB__ONLINE_EPLB && shown < 0) shown = i;
    }
    return shown;
}

static lplb_status run_policy(int64_t item, int worker, void *context) {
    online_run *run = context;
    server s = {.run = run, .policy = &run->policy[item], .out = &run->result->policy[item]};
    if (item == shown_policy(run)) s.monitor = run->config->monitor;
    lplb_status status = make_server(&s);
    if (status != LPLB_OK)
        status = LPLB_FAIL(status, "policy '%s': %s", s.out->policy, lplb_error_message());
    if (status == LPLB_OK) status = serve(&s, worker == 0);
    if (status == LPLB_OK) sum_up(&s);
    drop_server(&s);
    return status;
}

/* ---- the run ---- */

static lplb_status copy_string(const char *text, char **out) {
    LPLB_TRY(LPLB_CALLOC(*out, strlen(text) + 1));
    memcpy(*out, text, strlen(text));
    return LPLB_OK;
}

static lplb_status read_policies(online_run *run) {
    const lplb_replay_config *c = &run->base.config;
    const char *const *names = c->policies ? c->policy : default_policies;
    int32_t n = c->policies ? c->policies : N_DEFAULT_POLICIES;
    if (n < 0) return LPLB_FAIL(LPLB_RANGE, "%d policies", n);
    LPLB_TRY(LPLB_CALLOC(run->policy, n));
    LPLB_TRY(LPLB_CALLOC(run->result->policy, n));
    run->result->policies = n;
    for (int32_t i = 0; i < n; i++) {
        lplb_online_policy *p = &run->result->policy[i];
        LPLB_TRY(lplb__online_parse(names[i], &run->policy[i]));
        LPLB_TRY(copy_string(names[i], &p->policy));
        LPLB_TRY(copy_string(run->policy[i].placement_name, &p->placement_name));
        LPLB_TRY(copy_string(run->policy[i].solver_name, &p->solver_name));
    }
    return LPLB_OK;
}

static lplb_status check(online_run *run) {
    const lplb_online_config *c = run->config;
    if (c->struct_size != sizeof *c)
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_online_config))",
                         c->struct_size, sizeof *c);
    run->base.config = c->replay;
    if (run->base.config.history < 0) run->base.config.history = 0;
    LPLB_TRY(lplb__replay_check(&run->base));
    if (c->replay.gpu_model || c->replay.topology || c->replay.keep_loads)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "an online replay has no use for a GPU model, a "
                                           "topology or kept loads");
    run->step_ns = c->step_ns == 0 ? 1e7 : c->step_ns; /* the manager's default */
    if (!(run->step_ns > 0 && run->step_ns <= 1e15))
        return LPLB_FAIL(LPLB_RANGE, "steps of %g ns", c->step_ns);
    if (c->points < 0) return LPLB_FAIL(LPLB_RANGE, "curves of %d points", c->points);
    int given = (c->token_ns != 0) + (c->link_bytes_per_s != 0) + (c->replay.expert_bytes != 0);
    if (given && (given < 3 || !(c->token_ns > 0) || !(c->link_bytes_per_s > 0)))
        return LPLB_FAIL(LPLB_INVALID,
                         "to weigh gain against the cost of moving give expert "
                         "bytes (%lld), link speed (%g) and time of a token (%g), "
                         "each positive",
                         (long long)c->replay.expert_bytes, c->link_bytes_per_s, c->token_ns);
    return read_policies(run);
}

static lplb_status fill_header(online_run *run) {
    lplb_online_result *r = run->result;
    const lplb__replay *base = &run->base;
    r->steps = base->batches;
    r->measured = base->batches - base->history;
    r->layers = base->layers;
    r->first_layer = base->first_layer;
    r->experts = base->experts;
    r->topk = base->trace->topk;
    r->ranks = base->ranks;
    r->slots = base->slots;
    r->nodes = base->nodes;
    r->batch_tokens = base->batch_tokens;
    r->points = run->config->points ? run->config->points : POINTS;
    if (r->points > r->steps) r->points = (int32_t)r->steps;
    LPLB_TRY(LPLB_CALLOC(r->point_step, r->points));
    for (int32_t p = 0; p < r->points; p++) r->point_step[p] = p * r->steps / r->points;
    return LPLB_OK;
}

static lplb_status run_all(online_run *run) {
    LPLB_TRY(check(run));
    LPLB_TRY(fill_header(run));
    LPLB_TRY(lplb__replay_order(&run->base));
    LPLB_TRY(lplb__pool_create(run->base.config.threads, &run->base.pool));
    LPLB_TRY(lplb__pool_run(run->base.pool, run->result->policies, run_policy, run));
    lplb__replay_progress(&run->base, 1, "");
    return LPLB_OK;
}

lplb_status lplb_online(const lplb_trace *trace, const lplb_online_config *config,
                        lplb_online_result **out) {
    *out = NULL;
    online_run run = {.base = {.trace = trace}, .config = config};
    int64_t start = lplb__now_ns();
    LPLB_TRY(LPLB_CALLOC(run.result, 1));
    lplb_status status = run_all(&run);
    for (int32_t i = 0; run.policy && i < run.result->policies; i++)
        lplb__online_policy_destroy(&run.policy[i]);
    lplb__pool_destroy(run.base.pool);
    lplb__free(run.policy);
    lplb__free(run.base.order);
    lplb__free(run.base.node);
    run.result->seconds = (double)(lplb__now_ns() - start) / 1e9;
    if (status == LPLB_OK) *out = run.result;
    else lplb_online_result_destroy(run.result);
    return status;
}

void lplb_online_result_destroy(lplb_online_result *result) {
    if (!result) return;
    for (int32_t i = 0; result->policy && i < result->policies; i++) {
        lplb_online_policy *p = &result->policy[i];
        void *blocks[] = {p->policy, p->placement_name, p->solver_name,
                          p->curve,  p->curve_moves,    p->event};
        for (size_t k = 0; k < sizeof blocks / sizeof *blocks; k++) lplb__free(blocks[k]);
    }
    lplb__free(result->policy);
    lplb__free(result->point_step);
    lplb__free(result);
}
