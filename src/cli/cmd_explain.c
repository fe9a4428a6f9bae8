/* lplb explain: one layer of one batch, what limits it and what would help. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/explain.h"
#include "cli/problem.h"
#include "cli/replay_options.h"

static const char help[] =
    "Usage: lplb explain [options] TRACE\n"
    "       lplb explain [--json] PROBLEM.json\n"
    "\n"
    "Shows one layer of one batch: the ranks' loads before and after, the ranks that cannot\n"
    "get below their load and the experts that live only there, and which one more copy of an\n"
    "expert would help most; with a trace also which ranks are in the way most often. A\n"
    "problem is what `lplb plan` takes.\n"
    "\n" REPLAY_OPTIONS_HELP "  --policy NAME      as in `lplb replay` (default lplb)\n"
    "  --layer L          counted from 0 (default: the layer of the most uneven batch)\n"
    "  --batch N          a measured batch, counted from 0 in the trace (default: the most\n"
    "                     uneven one)\n"
    "  --sets N           how many bottlenecks of the trace to list (default 10)\n"
    "  --json             one JSON document on stdout (docs/formats.md)\n"
    "  --help             this text\n"
    "\n"
    "Example: where gpt-oss-20b on 8 ranks is least even under LPLB, and why\n"
    "  lplb explain --ranks 8 --redundant 2 --batch-tokens 512 \\\n"
    "      data/gpt-oss-20b/token_topk.npz\n";

typedef struct request {
    replay_options options;
    const char *policy;
    int64_t layer, batch, sets; /* -1 = the most uneven one */
    bool json;
} request;

/* ---- a problem ---- */

static int64_t total_of(const int64_t *values, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += values[i];
    return sum;
}

static lplb_status solve_with(const problem *p, lplb_solver solver, int64_t *loads) {
    lplb_plan_config config = {.struct_size = sizeof config,
                               .hosts = {p->ranks, p->experts, p->offset, p->rank},
                               .speed = p->speed,
                               .solver = solver};
    lplb_planner *planner;
    lplb_status status = lplb_planner_create(&config, &planner);
    if (status != LPLB_OK) return status;
    lplb_plan plan = {.split = p->split, .loads = loads};
    status = lplb_plan_solve(planner, &(lplb_plan_input){p->tokens, p->fixed, NULL}, &plan);
    lplb_planner_destroy(planner);
    return status;
}

static double bound_value(const lplb_bound *bound) {
    return (double)bound->fractional.numerator / (double)bound->fractional.denominator;
}

enum { TRIED_EXPERTS = 8, TRIED_RANKS = 16 };

/* The emptiest ranks outside the bottleneck (a copy inside it changes nothing). */
static int32_t pick_ranks(const explanation *x, int32_t *out) {
    int32_t n = 0;
    for (int32_t r = 0; r < x->ranks; r++) {
        if (x->in_bottleneck[r]) continue;
        int32_t at = n < TRIED_RANKS ? n++ : TRIED_RANKS;
        for (; at > 0 && x->after[out[at - 1]] > x->after[r]; at--)
            if (at < TRIED_RANKS) out[at] = out[at - 1];
        if (at < TRIED_RANKS) out[at] = r;
    }
    return n;
}

/* The bound with one more copy of expert e on rank r. */
static lplb_status bound_with_copy(const problem *p, int32_t e, int32_t r, lplb_bound *bound) {
    int64_t n = p->offset[p->experts], at = p->offset[e + 1];
    int64_t *offset = cli_need((size_t)p->experts + 1, sizeof *offset);
    int32_t *rank = cli_need((size_t)n + 1, sizeof *rank);
    memcpy(rank, p->rank, (size_t)at * sizeof *rank);
    rank[at] = r;
    memcpy(rank + at + 1, p->rank + at, (size_t)(n - at) * sizeof *rank);
    for (int32_t i = 0; i <= p->experts; i++) offset[i] = p->offset[i] + (i > e);
    lplb_status status =
        lplb_plan_bound(&(lplb_hosts){p->ranks, p->experts, offset, rank}, p->speed,
                        &(lplb_plan_input){p->tokens, p->fixed, NULL}, bound, NULL);
    free(rank);
    free(offset);
    return status;
}

/* The copy that lowers the bound most, among the bottleneck's heaviest experts and the emptiest
 * other ranks; ties to the heavier expert and the emptier rank. */
static lplb_status find_copy(const problem *p, explanation *x) {
    int32_t ranks[TRIED_RANKS], n_ranks = pick_ranks(x, ranks);
    int32_t n_experts = x->n_experts < TRIED_EXPERTS ? x->n_experts : TRIED_EXPERTS;
    double best = x->lower_bound;
    for (int32_t k = 0; k < n_experts * n_ranks; k++) {
        int32_t e = x->expert[k / n_ranks], r = ranks[k % n_ranks];
        lplb_bound bound;
        lplb_status status = bound_with_copy(p, e, r, &bound);
        if (status != LPLB_OK) return status;
        if (bound_value(&bound) >= best) continue;
        best = bound_value(&bound);
        x->has_copy = true;
        x->copy_expert = e;
        x->copy_rank = r;
    }
    x->copy_before = x->lower_bound / x->mean;
    x->copy_after = best / x->mean;
    return LPLB_OK;
}

static lplb_status explain_problem(problem *p, explanation *x) {
    lplb_hosts hosts = {p->ranks, p->experts, p->offset, p->rank};
    int64_t speed = p->speed ? total_of(p->speed, p->ranks) : p->ranks;
    lplb_status status = solve_with(p, LPLB_SOLVER_EVEN, x->before);
    if (status == LPLB_OK) status = solve_with(p, LPLB_SOLVER_EXACT, x->after);
    lplb_bound bound;
    if (status == LPLB_OK)
        status = lplb_plan_bound(&hosts, p->speed, &(lplb_plan_input){p->tokens, p->fixed, NULL},
                                 &bound, p->bottleneck);
    if (status != LPLB_OK) return status;
    x->tokens = total_of(x->after, p->ranks);
    x->mean = (double)x->tokens / (double)speed;
    x->lower_bound = bound_value(&bound);
    for (int32_t r = 0; r < p->ranks; r++)
        x->in_bottleneck[r] = p->bottleneck[r / 64] >> r % 64 & 1;
    x->limited = bound.bottleneck_ranks > 0 && bound.bottleneck_ranks < p->ranks &&
                 x->lower_bound > x->mean * (1 + 1e-12);
    for (int32_t e = 0; e < p->experts; e++) {
        bool inside = x->limited;
        for (int64_t h = p->offset[e]; h < p->offset[e + 1]; h++)
            inside &= x->in_bottleneck[p->rank[h]];
        if (inside && p->tokens[e] > 0) explanation_add_expert(x, e, p->tokens[e]);
    }
    return x->limited ? find_copy(p, x) : LPLB_OK;
}

static int run_problem(const char *name, const request *q, const json_t *document) {
    problem p = {0};
    if (!problem_read(name, document, &p)) return EXIT_USAGE;
    int code;
    if (p.cost) {
        code = cli_fail(name, EXIT_USAGE,
                        "problems with \"cost\" cannot be explained: the bound is "
                        "one of tokens");
    } else {
        explanation x;
        explanation_init(&x, p.ranks, p.experts);
        x.before_name = "even";
        x.after_name = "exact";
        x.speed = p.speed;
        lplb_status status = explain_problem(&p, &x);
        code = status == LPLB_OK ? explanation_show(name, &x, NULL, NULL, q->json)
                                 : cli_fail_status(name, status);
        explanation_free(&x);
    }
    problem_free(&p);
    return code;
}

/* ---- a trace ---- */

/* The measured (layer, batch) pair with the largest imbalance among those asked for; false if none
 * of them has load. */
static bool choose_pair(const lplb_replay_result *r, const request *q, int32_t *layer,
                        int64_t *batch) {
    const lplb_policy_result *p = &r->policy[1];
    double most = 0;
    for (int32_t l = 0; l < r->layers; l++)
        for (int64_t b = 0; b < r->measured; b++) {
            bool asked = q->batch < 0 || q->batch == r->batches - r->measured + b;
            if (!asked || p->pair_imbalance[l * r->measured + b] <= most) continue;
            most = p->pair_imbalance[l * r->measured + b];
            *layer = l;
            *batch = b;
        }
    return most > 0;
}

static void fill_pair(const lplb_replay_result *r, int32_t layer, int64_t batch,
                      const lplb_analysis *pair, explanation *x) {
    int64_t at = (layer * r->measured + batch) * r->ranks;
    x->layer = r->first_layer + layer;
    x->first_batch = r->batches - r->measured;
    x->last_batch = r->batches - 1;
    x->batch = x->first_batch + batch;
    x->before_name = r->policy[0].policy;
    x->after_name = r->policy[1].policy;
    memcpy(x->before, r->policy[0].loads + at, (size_t)r->ranks * sizeof *x->before);
    memcpy(x->after, r->policy[1].loads + at, (size_t)r->ranks * sizeof *x->after);
    x->tokens = total_of(x->after, r->ranks);
    x->mean = (double)x->tokens / r->ranks;
    x->lower_bound = pair->bound * x->mean;
    x->limited = pair->sets > 0;
    for (int32_t i = 0; x->limited && i < pair->set[0].n_ranks; i++)
        x->in_bottleneck[pair->set[0].rank[i]] = true;
    for (int32_t i = 0; x->limited && i < pair->set[0].n_experts; i++)
        if (pair->set[0].expert_tokens[i] > 0)
            explanation_add_expert(x, pair->set[0].expert[i], pair->set[0].expert_tokens[i]);
    if (pair->replicas == 0) return;
    x->has_copy = true;
    x->copy_expert = pair->replica[0].expert;
    x->copy_rank = pair->replica[0].rank;
    x->copy_before = pair->replica[0].before;
    x->copy_after = pair->replica[0].after;
}

static int explain_result(const char *name, const request *q, const lplb_replay_result *r) {
    int32_t layer = 0;
    int64_t batch = 0, first = r->batches - r->measured;
    if (q->batch >= 0 && (q->batch < first || q->batch >= r->batches))
        return cli_fail(name, EXIT_USAGE,
                        "batch %lld is not measured; those are %lld to %lld, as the batches "
                        "before place the experts (--history F, of all)",
                        (long long)q->batch, (long long)first, (long long)r->batches - 1);
    if (!choose_pair(r, q, &layer, &batch))
        return cli_fail(name, EXIT_FAILED, "no measured batch asked for has any load");
    lplb_analysis_config config = {
        .struct_size = sizeof config, .layer = layer, .batch = batch, .max_sets = 1};
    lplb_analysis *pair = NULL, *all = NULL;
    lplb_status status = lplb_replay_analyze(r, 1, &config, &pair);
    config = (lplb_analysis_config){
        .struct_size = sizeof config, .layer = -1, .batch = -1, .max_sets = (int32_t)q->sets};
    if (status == LPLB_OK) status = lplb_replay_analyze(r, 1, &config, &all);
    int code;
    if (status == LPLB_OK) {
        explanation x;
        explanation_init(&x, r->ranks, r->experts);
        fill_pair(r, layer, batch, pair, &x);
        code = explanation_show(name, &x, all, r, q->json);
        explanation_free(&x);
    } else {
        code = cli_fail_status(name, status);
    }
    lplb_analysis_destroy(pair);
    lplb_analysis_destroy(all);
    return code;
}

static int run_trace(const char *name, request *q, const char *path) {
    const char *policies[] = {"none", q->policy};
    lplb_replay_config *config = &q->options.config;
    config->policy = policies;
    config->policies = 2;
    config->keep_loads = 1;
    if (q->layer >= 0) {
        config->all_layers = 0;
        config->first_layer = config->last_layer = (int32_t)q->layer;
    }
    if (!strcmp(q->policy, "ideal"))
        return cli_fail(name, EXIT_USAGE, "nothing limits ideal; explain a policy that places");
    lplb_trace *trace;
    lplb_replay_result *result;
    int code = replay_options_run(name, &q->options, path, &trace, &result);
    if (code == EXIT_OK) code = explain_result(name, q, result);
    lplb_replay_result_destroy(result);
    lplb_trace_destroy(trace);
    return code;
}

/* ---- the command ---- */

static bool take(const char *name, int option, request *q) {
    switch (option) {
    case 'p': q->policy = optarg; return true;
    case 'l': return cli_parse_int(name, "--layer", optarg, 0, INT32_MAX, &q->layer);
    case 'b': return cli_parse_int(name, "--batch", optarg, 0, INT64_MAX, &q->batch);
    case 's': return cli_parse_int(name, "--sets", optarg, 1, 1000000, &q->sets);
    case 'j': q->json = true; return true;
    default: return replay_options_take(name, option, &q->options);
    }
}

/* A problem has its own number of ranks, a trace needs to be told. */
static bool is_problem(const char *path) {
    size_t n = strlen(path);
    return !strcmp(path, "-") || (n > 5 && !strcmp(path + n - 5, ".json"));
}

int cmd_explain(int argc, char **argv) {
    static const struct option options[] = {REPLAY_OPTIONS,
                                            {"policy", required_argument, 0, 'p'},
                                            {"layer", required_argument, 0, 'l'},
                                            {"batch", required_argument, 0, 'b'},
                                            {"sets", required_argument, 0, 's'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0, 0, 0, 0}};
    request q = {.policy = "lplb", .layer = -1, .batch = -1, .sets = 10};
    replay_options_init(&q.options);
    int taken = 0;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'h') return fputs(help, stdout), EXIT_OK;
        if (!take(argv[0], c, &q)) return EXIT_USAGE;
        taken += c != 'j';
    }
    if (argc - optind != 1)
        return cli_fail(argv[0], EXIT_USAGE, "give one trace or one problem; see --help");
    if (q.options.config.ranks) return run_trace(argv[0], &q, argv[optind]);
    if (taken || !is_problem(argv[optind]))
        return cli_fail(argv[0], EXIT_USAGE,
                        "a trace needs --ranks; a problem is a .json file or "
                        "-, and takes only --json");
    json_t *document = cli_read_json(argv[0], argv[optind]);
    if (!document) return EXIT_USAGE;
    int code = EXIT_USAGE;
    if (json_object_get(document, "ranks")) code = run_problem(argv[0], &q, document);
    else
        cli_fail(argv[0], code, "%s is no problem as it has no \"ranks\"; a trace needs --ranks",
                 argv[optind]);
    json_decref(document);
    return code;
}
