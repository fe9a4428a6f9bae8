/* lplb replay: a recorded trace through policies. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/replay_online.h"
#include "cli/replay_options.h"
#include "cli/replay_table.h"

static const char help[] =
    "Usage: lplb replay [options] TRACE\n"
    "\n"
    "Drives a recorded routing trace, batch by batch, through policies: how unequal the\n"
    "ranks would have been, what each policy would have brought, what still limits it.\n"
    "\n" REPLAY_OPTIONS_HELP "  --layers A-B       only these layers, counted from 0\n"
    "  --policy NAME      may be given several times; PLACEMENT[+SOLVER[:option=value,...]]\n"
    "                     with placements none, eplb, topology, search, file:PATH, ideal,\n"
    "                     and solvers even (default), exact, ipm, greedy, waterfill,\n"
    "                     balance, as in `lplb plan`; exact:locality=1 keeps tokens on their\n"
    "                     rank. lplb = topology+exact. Default: none, eplb, eplb+exact,\n"
    "                     lplb, search+exact, ideal\n"
    "  --expert-bytes N   weights of one expert, to show the memory of redundant slots\n"
    "  --gpu-model FILE   measured cost table (docs/formats.md), to predict step times\n"
    "  --report DIR       write DIR/report.html, a self-contained page\n"
    "  --json             one JSON document on stdout (docs/formats.md)\n"
    "  --help             this text\n"
    "\n" REPLAY_ONLINE_HELP "\n"
    "Example: gpt-oss-20b on 8 ranks with 2 redundant expert slots each, batches of 512\n"
    "  lplb replay --ranks 8 --redundant 2 --batch-tokens 512 data/gpt-oss-20b/token_topk.npz\n";

/* ---- JSON ---- */

static json_t *distribution_json(const lplb_distribution *d) {
    return json_pack("{s:f, s:f, s:f, s:f}", "mean", d->mean, "p50", d->p50, "p99", d->p99, "max",
                     d->max);
}

static json_t *optional_real(double value) { return value > 0 ? json_real(value) : json_null(); }

static json_t *predicted_json(const lplb_policy_result *p) {
    if (!p->has_prediction) return json_null();
    return json_pack("{s:o, s:o, s:I, s:I}", "ms_per_layer", optional_real(p->ms_per_layer),
                     "tokens_per_s", optional_real(p->tokens_per_s), "redundant_bytes",
                     (json_int_t)p->redundant_bytes, "internode_tokens",
                     (json_int_t)p->internode_tokens);
}

static json_t *policy_json(const lplb_replay_result *r, const lplb_policy_result *p) {
    json_t *layers = json_array(), *plan = json_null();
    for (int32_t l = 0; l < r->layers; l++)
        json_array_append_new(layers, json_pack("{s:i, s:o, s:o}", "layer", r->first_layer + l,
                                                "mean", optional_real(p->layer_mean[l]), "max",
                                                optional_real(p->layer_max[l])));
    if (p->has_plan_time)
        plan = json_pack("{s:f, s:f}", "p50", p->plan_us_p50, "p99", p->plan_us_p99);
    return json_pack("{s:s, s:s, s:s, s:o, s:f, s:o, s:f, s:I, s:I, s:I, s:o, s:o}", "policy",
                     p->policy, "placement", p->placement_name, "solver", p->solver_name,
                     "imbalance", distribution_json(&p->imbalance), "balancedness", p->balancedness,
                     "plan_us", plan, "place_seconds", p->place_seconds, "moved_tokens",
                     (json_int_t)p->moved_tokens, "moved_slots", (json_int_t)p->moved_slots,
                     "not_converged", (json_int_t)p->not_converged, "predicted", predicted_json(p),
                     "per_layer", layers);
}

static json_t *result_json(const lplb_replay_result *r) {
    json_t *policies = json_array();
    for (int32_t i = 0; i < r->policies; i++)
        json_array_append_new(policies, policy_json(r, &r->policy[i]));
    json_t *trace =
        json_pack("{s:I, s:i, s:i, s:i, s:I, s:I}", "tokens", (json_int_t)r->tokens, "layers",
                  r->layers, "experts", r->experts, "topk", r->topk, "batches",
                  (json_int_t)r->batches, "measured", (json_int_t)r->measured);
    return json_pack("{s:s, s:o, s:i, s:i, s:i, s:I, s:f, s:f, s:o}", "schema", "lplb.replay/1",
                     "trace", trace, "ranks", r->ranks, "nodes", r->nodes, "slots", r->slots,
                     "batch_tokens", (json_int_t)r->batch_tokens, "seconds", r->seconds,
                     "place_seconds", r->place_seconds, "policies", policies);
}

/* ---- the command ---- */

enum { MAX_POLICIES = 64 };

typedef struct request {
    replay_options options;
    const char *policy[MAX_POLICIES];
    const char *gpu_model, *report;
    double link_gb_per_s, token_ns, step_ms;
    int64_t metrics_port; /* -1 = none */
    bool online, json;
} request;

static bool parse_layers(const char *name, const char *text, lplb_replay_config *config) {
    int first, last, end = 0;
    if (sscanf(text, "%9d-%9d%n", &first, &last, &end) != 2 || text[end]) {
        end = 0;
        if (sscanf(text, "%9d%n", &first, &end) != 1 || text[end] || first < 0) {
            cli_fail(name, EXIT_USAGE, "--layers wants A-B, for example 0-11, not '%s'", text);
            return false;
        }
        last = first;
    }
    config->all_layers = 0;
    config->first_layer = first;
    config->last_layer = last;
    return true;
}

static bool take(const char *name, int option, request *q) {
    lplb_replay_config *config = &q->options.config;
    switch (option) {
    case 'p':
        if (config->policies == MAX_POLICIES) {
            cli_fail(name, EXIT_USAGE, "at most %d policies", MAX_POLICIES);
            return false;
        }
        q->policy[config->policies++] = optarg;
        return true;
    case 'l': return parse_layers(name, optarg, config);
    case 'b':
        return cli_parse_int(name, "--expert-bytes", optarg, 1, (int64_t)1 << 40,
                             &config->expert_bytes);
    case 'g': q->gpu_model = optarg; return true;
    case 'r': q->report = optarg; return true;
    case 'j': q->json = true; return true;
    case 'o': q->online = true; return true;
    case 'k':
        return cli_parse_double(name, "--link-gb-per-s", optarg, 1e-6, 1e6, &q->link_gb_per_s);
    case 'm': return cli_parse_double(name, "--step-ms", optarg, 1e-3, 1e6, &q->step_ms);
    case 'P': return cli_parse_int(name, "--metrics-port", optarg, 0, 65535, &q->metrics_port);
    case 't': return cli_parse_double(name, "--token-ns", optarg, 1e-6, 1e9, &q->token_ns);
    default: return replay_options_take(name, option, &q->options);
    }
}

static int show(const char *name, const request *q, const lplb_trace *trace,
                const lplb_replay_result *result) {
    if (q->report) {
        lplb_status status = lplb_report_write(result, trace->source, q->report);
        if (status != LPLB_OK) return cli_fail_status(name, status);
    }
    if (q->json) return cli_print_json(result_json(result));
    print_replay(trace, result);
    if (q->report) printf("Report: %s/report.html\n", q->report);
    if (fflush(stdout) || ferror(stdout))
        return cli_fail(name, EXIT_FAILED, "cannot write to stdout");
    return EXIT_OK;
}

static int run_online(const char *name, const request *q, const char *path) {
    if (q->gpu_model) return cli_fail(name, EXIT_USAGE, "--online has no use for --gpu-model");
    lplb_online_config config = {.struct_size = sizeof config,
                                 .replay = q->options.config,
                                 .link_bytes_per_s = q->link_gb_per_s * 1e9,
                                 .token_ns = q->token_ns,
                                 .step_ns = (q->step_ms > 0 ? q->step_ms : 10) * 1e6};
    return replay_online(name, &config, &q->options.trace, path, q->report,
                         (int32_t)q->metrics_port, q->json);
}

int cmd_replay(int argc, char **argv) {
    static const struct option options[] = {REPLAY_OPTIONS,
                                            {"layers", required_argument, 0, 'l'},
                                            {"policy", required_argument, 0, 'p'},
                                            {"expert-bytes", required_argument, 0, 'b'},
                                            {"gpu-model", required_argument, 0, 'g'},
                                            {"report", required_argument, 0, 'r'},
                                            {"online", no_argument, 0, 'o'},
                                            {"link-gb-per-s", required_argument, 0, 'k'},
                                            {"token-ns", required_argument, 0, 't'},
                                            {"step-ms", required_argument, 0, 'm'},
                                            {"metrics-port", required_argument, 0, 'P'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0, 0, 0, 0}};
    request q = {.metrics_port = -1};
    replay_options_init(&q.options);
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'h') return fputs(help, stdout), EXIT_OK;
        if (!take(argv[0], c, &q)) return EXIT_USAGE;
    }
    if (argc - optind != 1)
        return cli_fail(argv[0], EXIT_USAGE, "give one trace, a file or a folder; see --help");
    q.options.config.policy = q.policy;
    if (q.online) return run_online(argv[0], &q, argv[optind]);
    if (q.link_gb_per_s > 0 || q.token_ns > 0 || q.step_ms > 0 || q.metrics_port >= 0)
        return cli_fail(argv[0], EXIT_USAGE,
                        "--link-gb-per-s, --token-ns, --step-ms and --metrics-port need --online");
    q.options.config.keep_loads = q.report != NULL;
    lplb_gpu_model *model = NULL;
    if (q.gpu_model) {
        lplb_status status = lplb_gpu_model_read(q.gpu_model, &model);
        if (status != LPLB_OK) return cli_fail_status(argv[0], status);
        q.options.config.gpu_model = model;
    }
    lplb_trace *trace;
    lplb_replay_result *result;
    int code = replay_options_run(argv[0], &q.options, argv[optind], &trace, &result);
    if (code == EXIT_OK) code = show(argv[0], &q, trace, result);
    lplb_replay_result_destroy(result);
    lplb_trace_destroy(trace);
    lplb_gpu_model_destroy(model);
    return code;
}
