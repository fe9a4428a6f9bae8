/* lplb_replay: checks the request, then history, placements, measured batches. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "replay/replay.h"

static const char *const default_policies[] = {"none", "eplb",         "eplb+exact",
                                               "lplb", "search+exact", "ideal"};
/* Where no topology exists. */
static const char *const default_uneven[] = {"none", "eplb", "eplb+exact", "search+exact", "ideal"};
enum { N_DEFAULT_POLICIES = sizeof default_policies / sizeof default_policies[0] };
enum { DEFAULT_BATCH_TOKENS = 4096, MAX_POLICIES = 1024 };
static const int64_t max_expert_bytes = (int64_t)1 << 40;

void lplb__replay_progress(const lplb__replay *run, double fraction, const char *what) {
    if (run->config.progress) run->config.progress(fraction, what, run->config.progress_user);
}

/* The number of ranks nearest to G that divides E. */
static int32_t nearest_divisor(int32_t E, int32_t G) {
    for (int32_t d = 0; d < G; d++) {
        if (E % (G - d) == 0) return G - d;
        if (G + d <= E && E % (G + d) == 0) return G + d;
    }
    return 1;
}

static lplb_status check_slots(lplb__replay *run) {
    const lplb_replay_config *c = &run->config;
    int64_t slots = c->slots ? c->slots : run->experts + (int64_t)c->ranks * c->redundant;
    int64_t least = (run->experts + c->ranks - 1) / c->ranks;
    if (c->slots && c->redundant)
        return LPLB_FAIL(LPLB_INVALID, "%d slots or %d redundant slots a rank: give one of them",
                         c->slots, c->redundant);
    if (c->slots && (slots < run->experts || slots % c->ranks))
        return LPLB_FAIL(LPLB_INVALID,
                         "%lld slots: %d ranks of the same number of slots, which hold %d experts, "
                         "have %lld, %lld, ... slots",
                         (long long)slots, c->ranks, run->experts, (long long)(least * c->ranks),
                         (long long)((least + 1) * c->ranks));
    if (slots > INT32_MAX)
        return LPLB_FAIL(LPLB_RANGE, "%lld slots are too many", (long long)slots);
    if (slots % c->ranks)
        return LPLB_FAIL(LPLB_INVALID,
                         "%d experts + %d ranks x %d redundant slots = %lld slots, not a multiple "
                         "of %d ranks, whatever the number of redundant slots a rank: give slots = "
                         "%lld (%lld a rank) instead, or other ranks; %d ranks would divide the "
                         "experts",
                         run->experts, c->ranks, c->redundant, (long long)slots, c->ranks,
                         (long long)((least + c->redundant) * c->ranks),
                         (long long)(least + c->redundant),
                         nearest_divisor(run->experts, c->ranks));
    run->slots = (int32_t)slots;
    return LPLB_OK;
}

static lplb_status check_ranks(lplb__replay *run) {
    const lplb_replay_config *c = &run->config;
    if (c->ranks < 1 || c->ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_RANGE, "%d ranks; from 1 to %d are possible", c->ranks,
                         LPLB_MAX_RANKS);
    if (c->redundant < 0 || c->redundant > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_RANGE, "%d redundant slots a rank; from 0 to %d are possible",
                         c->redundant, LPLB_MAX_RANKS);
    LPLB_TRY(check_slots(run));
    if (run->nodes < 1 || c->ranks % run->nodes)
        return LPLB_FAIL(LPLB_INVALID, "%d ranks are not a multiple of %d nodes", c->ranks,
                         run->nodes);
    return LPLB_OK;
}

static lplb_status check_layers(lplb__replay *run) {
    const lplb_replay_config *c = &run->config;
    int32_t last = c->all_layers ? run->trace->layers - 1 : c->last_layer;
    run->first_layer = c->all_layers ? 0 : c->first_layer;
    if (run->first_layer < 0 || last < run->first_layer || last >= run->trace->layers)
        return LPLB_FAIL(LPLB_RANGE, "layers %d-%d are not inside 0-%d", run->first_layer, last,
                         run->trace->layers - 1);
    run->layers = last - run->first_layer + 1;
    return LPLB_OK;
}

static lplb_status check_batches(lplb__replay *run) {
    lplb_replay_config *c = &run->config;
    const lplb_trace *trace = run->trace;
    if (trace->kind == LPLB_TRACE_COUNTS) {
        if (c->batch_tokens)
            return LPLB_FAIL(LPLB_INVALID,
                             "a trace of counts has one batch a step; leave out the "
                             "batch size (%lld)",
                             (long long)c->batch_tokens);
        run->batches = trace->steps;
    } else {
        if (c->batch_tokens < 0)
            return LPLB_FAIL(LPLB_RANGE, "batches of %lld tokens", (long long)c->batch_tokens);
        run->batch_tokens = c->batch_tokens ? c->batch_tokens : DEFAULT_BATCH_TOKENS;
        run->batches = trace->tokens / run->batch_tokens;
        if (run->batches == 0)
            return LPLB_FAIL(LPLB_INVALID,
                             "the trace has %lld tokens, fewer than one batch of "
                             "%lld: make the batches smaller (batch_tokens, --batch-tokens)",
                             (long long)trace->tokens, (long long)run->batch_tokens);
    }
    if (c->history < 0) c->history = 0.5;
    if (!(c->history < 1)) return LPLB_FAIL(LPLB_RANGE, "history %g is outside [0, 1)", c->history);
    run->history = (int64_t)floor(c->history * (double)run->batches);
    return LPLB_OK;
}

static lplb_status copy_string(const char *text, char **out) {
    LPLB_TRY(LPLB_CALLOC(*out, strlen(text) + 1));
    memcpy(*out, text, strlen(text));
    return LPLB_OK;
}

static lplb_status read_policies(lplb__replay *run) {
    lplb_replay_config *c = &run->config;
    bool divides = run->experts % c->ranks == 0;
    const char *const *defaults = divides ? default_policies : default_uneven;
    const char *const *names = c->policies ? c->policy : defaults;
    int32_t n = c->policies ? c->policies : divides ? N_DEFAULT_POLICIES : N_DEFAULT_POLICIES - 1;
    if (n < 0 || n > MAX_POLICIES)
        return LPLB_FAIL(LPLB_RANGE, "%d policies; at most %d", n, MAX_POLICIES);
    LPLB_TRY(LPLB_CALLOC(run->policy, n));
    LPLB_TRY(LPLB_CALLOC(run->result->policy, n));
    run->result->policies = n;
    for (int32_t i = 0; i < n; i++) {
        lplb_policy_result *p = &run->result->policy[i];
        LPLB_TRY(lplb__policy_parse(names[i], &run->policy[i]));
        if (run->policy[i].kind == LPLB__KIND_TOPOLOGY && run->experts % c->ranks)
            return LPLB_FAIL(LPLB_INVALID,
                             "policy '%s' needs as many experts on every rank: %d ranks do not "
                             "divide %d experts",
                             names[i], c->ranks, run->experts);
        if (run->policy[i].kind == LPLB__KIND_TOPOLOGY && run->slots == run->experts)
            return LPLB_FAIL(LPLB_INVALID, "policy '%s' needs at least one redundant slot a rank",
                             names[i]);
        LPLB_TRY(copy_string(names[i], &p->policy));
        LPLB_TRY(copy_string(run->policy[i].placement_name, &p->placement_name));
        LPLB_TRY(copy_string(run->policy[i].solver_name, &p->solver_name));
    }
    return LPLB_OK;
}

lplb_status lplb__replay_check(lplb__replay *run) {
    if (run->config.struct_size != sizeof(lplb_replay_config))
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_replay_config))",
                         run->config.struct_size, sizeof(lplb_replay_config));
    run->experts = run->trace->experts;
    run->ranks = run->config.ranks;
    run->nodes = run->config.nodes ? run->config.nodes : 1;
    LPLB_TRY(check_ranks(run));
    LPLB_TRY(check_layers(run));
    LPLB_TRY(check_batches(run));
    if (run->config.expert_bytes < 0 || run->config.expert_bytes > max_expert_bytes)
        return LPLB_FAIL(LPLB_RANGE, "an expert of %lld bytes; from 0 to 2^40 are possible",
                         (long long)run->config.expert_bytes);
    LPLB_TRY(LPLB_CALLOC(run->node, run->ranks));
    for (int32_t r = 0; r < run->ranks; r++) run->node[r] = r / (run->ranks / run->nodes);
    return LPLB_OK;
}

static void fill_header(lplb__replay *run) {
    lplb_replay_result *result = run->result;
    result->tokens = run->trace->tokens;
    result->batches = run->batches;
    result->measured = run->batches - run->history;
    result->layers = run->layers;
    result->first_layer = run->first_layer;
    result->experts = run->experts;
    result->topk = run->trace->topk;
    result->ranks = run->ranks;
    result->slots = run->slots;
    result->nodes = run->nodes;
    result->batch_tokens = run->batch_tokens;
}

static lplb_status run_all(lplb__replay *run) {
    LPLB_TRY(lplb__replay_check(run));
    LPLB_TRY(read_policies(run));
    fill_header(run);
    LPLB_TRY(lplb__pool_create(run->config.threads, &run->pool));
    LPLB_TRY(lplb__replay_order(run));
    LPLB_TRY(lplb__replay_history(run));
    LPLB_TRY(lplb__replay_place(run));
    LPLB_TRY(lplb__replay_measure(run));
    lplb__replay_progress(run, 1, "");
    return LPLB_OK;
}

lplb_status lplb_replay(const lplb_trace *trace, const lplb_replay_config *config,
                        lplb_replay_result **out) {
    *out = NULL;
    lplb__replay run = {.trace = trace, .config = *config};
    int64_t start = lplb__now_ns();
    LPLB_TRY(LPLB_CALLOC(run.result, 1));
    lplb_status status = run_all(&run);
    for (int32_t i = 0; run.policy && i < run.result->policies; i++)
        lplb__policy_destroy(&run.policy[i]);
    lplb__pool_destroy(run.pool);
    void *blocks[] = {run.policy, run.order, run.node, run.history_counts};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) lplb__free(blocks[i]);
    run.result->seconds = (double)(lplb__now_ns() - start) / 1e9;
    if (status == LPLB_OK) *out = run.result;
    else lplb_replay_result_destroy(run.result);
    return status;
}

void lplb_replay_result_destroy(lplb_replay_result *result) {
    if (!result) return;
    for (int32_t i = 0; result->policy && i < result->policies; i++) {
        lplb_policy_result *p = &result->policy[i];
        lplb_placement_destroy(p->placement);
        void *blocks[] = {p->policy,     p->placement_name, p->solver_name, p->pair_imbalance,
                          p->layer_mean, p->layer_max,      p->loads};
        for (size_t k = 0; k < sizeof blocks / sizeof blocks[0]; k++) lplb__free(blocks[k]);
    }
    lplb__free(result->policy);
    lplb__free(result->counts);
    lplb__free(result);
}
