/* lplb bench: how long planning takes on this machine. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/cli.h"

static const char help[] =
    "Usage: lplb bench [options]\n"
    "\n"
    "Times the plan solvers, EPLB and the dispatch on synthetic batches on this machine:\n"
    "medians and 99th percentiles over many runs, each of another batch, with the quality of\n"
    "the solvers and the time of a plain copy of the same data (the floor) beside them.\n"
    "\n"
    "  --ranks G --experts E --slots P   one shape of your own instead of the usual ones\n"
    "  --topology T      its copies along cube, hypercube, ring or torus:MxN; without it the\n"
    "                    slots are placed by EPLB\n"
    "  --batch-tokens N  tokens of one rank in a batch (default 512)\n"
    "  --topk K          experts a token goes to (default 8)\n"
    "  --sigma X         spread of ln(load) over the experts (default 1; DeepSeek-V3 layers\n"
    "                    have 0.44 to 1.07)\n"
    "  --layers L        layers of one EPLB call (default 58)\n"
    "  --solver NAME     time this solver; may be repeated (default: all)\n"
    "  --threads N       of the dispatch (default 1, 0 = all)\n"
    "  --seconds X       time spent on each measurement (default 0.1)\n"
    "  --seed S          of the synthetic loads (default 1)\n"
    "  --json            one JSON document on stdout (docs/formats.md)\n"
    "  --help            this text\n"
    "\n"
    "Example:\n"
    "  lplb bench --ranks 64 --experts 256 --slots 320 --batch-tokens 128\n";

static const bench_shape usual_shapes[] = {
    {"8 ranks x 2, cube", 8, 64, 80, "cube"},
    {"16 ranks x 2, hypercube", 16, 128, 160, "hypercube"},
    {"32 ranks, 288 slots", 32, 256, 288, NULL},
    {"64 ranks, 320 slots", 64, 256, 320, NULL},
    {"320 ranks, 2240 slots", 320, 256, 2240, NULL},
};
static const char *const usual_solvers[] = {"exact",   "even", "greedy",        "waterfill",
                                            "balance", "ipm",  "ipm:published", NULL};

enum { MOST_SOLVERS = 16 };
typedef struct bench_run {
    bench_options options;
    bench_shape own; /* ranks 0 = the usual ones */
    const char *solver[MOST_SOLVERS + 1];
    int solvers;
    bool json;
} bench_run;

static json_t *timing_json(bench_timing t) {
    return json_pack("{s:f, s:f, s:I}", "p50", t.p50_us, "p99", t.p99_us, "runs",
                     (json_int_t)t.runs);
}

static json_t *shape_json(const bench_shape *s) {
    json_t *topology = s->topology ? json_string(s->topology) : json_null();
    return json_pack("{s:s, s:i, s:i, s:i, s:o}", "name", s->name, "ranks", s->ranks, "experts",
                     s->experts, "slots", s->slots, "topology", topology);
}

/* A solver that does not take the shape is named with the reason, not left out. */
static lplb_status run_solver(const bench_shape *shape, const bench_run *run, const char *solver,
                              double *exact_us, json_t *list) {
    bench_plan plan;
    lplb_status status = bench_solver(shape, &run->options, solver, &plan);
    if (status == LPLB_UNSUPPORTED) {
        if (!run->json) printf("  %-15s %s\n", solver, lplb_error_message());
        json_array_append_new(
            list, json_pack("{s:s, s:s}", "solver", solver, "unsupported", lplb_error_message()));
        return LPLB_OK;
    }
    if (status != LPLB_OK) return status;
    if (!strcmp(solver, "exact")) *exact_us = plan.time.p50_us;
    double times = *exact_us > 0 ? plan.time.p50_us / *exact_us : 0;
    const char *worst = lplb_outcome_name((lplb_outcome)plan.worst);
    if (!run->json) {
        printf("  %-15s %10.2f %10.2f ", solver, plan.time.p50_us, plan.time.p99_us);
        if (times > 0) printf("%9.2f", times);
        else printf("%9s", "-");
        printf(" %10.4f  %s\n", plan.imbalance, worst);
    }
    json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:f, s:s}", "solver", solver, "us",
                                          timing_json(plan.time), "times_exact",
                                          times > 0 ? json_real(times) : json_null(), "imbalance",
                                          plan.imbalance, "worst_status", worst));
    return LPLB_OK;
}

static lplb_status run_plan(const bench_shape *shape, const bench_run *run, json_t *document) {
    json_t *list = json_array();
    double exact_us = 0;
    if (!run->json)
        printf("%s, %d experts\n  %-15s %10s %10s %9s %10s  %s\n", shape->name, shape->experts,
               "solver", "median us", "p99 us", "x exact", "imbalance", "worst status");
    lplb_status status = LPLB_OK;
    for (int i = 0; i < run->solvers && status == LPLB_OK; i++)
        status = run_solver(shape, run, run->solver[i], &exact_us, list);
    json_array_append_new(json_object_get(document, "plan"),
                          json_pack("{s:o, s:o}", "shape", shape_json(shape), "solvers", list));
    return status;
}

static lplb_status run_dispatch(const bench_shape *shape, const bench_run *run, json_t *document) {
    bench_dispatch d;
    lplb_status status = bench_dispatcher(shape, &run->options, &d);
    if (status != LPLB_OK) return status;
    if (!run->json)
        printf("  dispatch of %lld ids of a rank: count %.2f, prepare %.2f, map %.2f us; copying "
               "them %.2f us\n",
               (long long)d.ids, d.count.p50_us, d.prepare.p50_us, d.map.p50_us, d.floor.p50_us);
    json_array_append_new(json_object_get(document, "dispatch"),
                          json_pack("{s:o, s:I, s:i, s:o, s:o, s:o, s:o}", "shape",
                                    shape_json(shape), "ids", (json_int_t)d.ids, "threads",
                                    run->options.threads, "count_us", timing_json(d.count),
                                    "prepare_us", timing_json(d.prepare), "map_us",
                                    timing_json(d.map), "floor_us", timing_json(d.floor)));
    return LPLB_OK;
}

static lplb_status run_eplb(const bench_shape *shape, const bench_run *run, json_t *document) {
    bench_timing eplb, floor;
    lplb_status status = bench_eplb(shape, &run->options, &eplb, &floor);
    if (status != LPLB_OK) return status;
    if (!run->json)
        printf("  eplb of %d layers: %.3f ms; copying what it reads and writes %.3f ms\n",
               run->options.layers, eplb.p50_us / 1e3, floor.p50_us / 1e3);
    json_array_append_new(json_object_get(document, "eplb"),
                          json_pack("{s:o, s:i, s:o, s:o}", "shape", shape_json(shape), "layers",
                                    run->options.layers, "us", timing_json(eplb), "floor_us",
                                    timing_json(floor)));
    return LPLB_OK;
}

static int run_shapes(const char *name, const bench_run *run) {
    const bench_shape *shape = run->own.ranks ? &run->own : usual_shapes;
    int n = run->own.ranks ? 1 : (int)(sizeof usual_shapes / sizeof usual_shapes[0]);
    json_t *document =
        json_pack("{s:s, s:s, s:I, s:i, s:f, s:I, s:[], s:[], s:[]}", "schema", "lplb.bench/1",
                  "version", lplb_version(), "batch_tokens", (json_int_t)run->options.batch_tokens,
                  "topk", run->options.topk, "sigma", run->options.sigma, "seed",
                  (json_int_t)run->options.seed, "plan", "dispatch", "eplb");
    lplb_status status = document ? LPLB_OK : LPLB_NO_MEMORY;
    for (int i = 0; i < n && status == LPLB_OK; i++) {
        status = run_plan(&shape[i], run, document);
        if (status == LPLB_OK) status = run_dispatch(&shape[i], run, document);
        if (status == LPLB_OK) status = run_eplb(&shape[i], run, document);
        if (!run->json && status == LPLB_OK) printf("\n");
        fflush(stdout);
    }
    if (status != LPLB_OK) {
        json_decref(document);
        return cli_fail_status(name, status);
    }
    if (run->json) return cli_print_json(document);
    json_decref(document);
    return EXIT_OK;
}

/* A shape of the user's own is whole or not given; the library checks the rest. */
static bool check_shape(const char *name, bench_run *run) {
    bench_shape *own = &run->own;
    static char text[96];
    if (!own->ranks && !own->experts && !own->slots && !own->topology) return true;
    if (!own->ranks || !own->experts || !own->slots)
        return cli_fail(name, EXIT_USAGE, "--ranks, --experts and --slots belong together"), false;
    if (own->slots < own->experts || own->slots % own->ranks)
        return cli_fail(name, EXIT_USAGE,
                        "--slots wants a multiple of %d ranks, at least the %d experts, not %d",
                        own->ranks, own->experts, own->slots),
               false;
    if (own->topology && own->experts % own->ranks)
        return cli_fail(name, EXIT_USAGE,
                        "--topology wants as many experts on every rank: %d is no multiple of %d",
                        own->experts, own->ranks),
               false;
    if (own->topology && own->slots == own->experts)
        return cli_fail(name, EXIT_USAGE, "--topology wants more slots than experts"), false;
    lplb_topology *topology = NULL;
    if (own->topology &&
        lplb_topology_create(own->topology, own->ranks, (own->slots - own->experts) / own->ranks,
                             &topology) != LPLB_OK)
        return cli_fail_status(name, LPLB_INVALID), false;
    lplb_topology_destroy(topology);
    snprintf(text, sizeof text, "%d ranks, %d slots%s%s", own->ranks, own->slots,
             own->topology ? ", " : "", own->topology ? own->topology : "");
    own->name = text;
    return true;
}

static bool parse_option(const char *name, int c, bench_run *run) {
    int64_t value = 0;
    lplb_plan_config config = {0};
#define PARSE(option, low, high, field)                                                            \
    if (!cli_parse_int(name, option, optarg, low, high, &value)) return false;                     \
    run->field = (int32_t)value;                                                                   \
    return true
    switch (c) {
    case 'r': PARSE("--ranks", 1, 4096, own.ranks);
    case 'e': PARSE("--experts", 1, 32767, own.experts);
    case 'p': PARSE("--slots", 1, 1 << 20, own.slots);
    case 'k': PARSE("--topk", 1, 64, options.topk);
    case 'L': PARSE("--layers", 1, 1024, options.layers);
    case 'n': PARSE("--threads", 0, 1024, options.threads);
#undef PARSE
    case 't': run->own.topology = optarg; return true;
    case 'b':
        return cli_parse_int(name, "--batch-tokens", optarg, 1, 1 << 20,
                             &run->options.batch_tokens);
    case 's': return cli_parse_double(name, "--sigma", optarg, 0, 5, &run->options.sigma);
    case 'T': return cli_parse_double(name, "--seconds", optarg, 0, 60, &run->options.seconds);
    case 'S':
        if (!cli_parse_int(name, "--seed", optarg, 0, INT64_MAX, &value)) return false;
        run->options.seed = (uint64_t)value;
        return true;
    default: /* --solver */
        if (lplb_plan_parse_solver(optarg, &config, NULL) != LPLB_OK)
            return cli_fail_status(name, LPLB_INVALID), false;
        if (run->solvers == MOST_SOLVERS)
            return cli_fail(name, EXIT_USAGE, "at most %d solvers", MOST_SOLVERS), false;
        run->solver[run->solvers++] = optarg;
        return true;
    }
}

int cmd_bench(int argc, char **argv) {
    static const struct option options[] = {{"ranks", required_argument, 0, 'r'},
                                            {"experts", required_argument, 0, 'e'},
                                            {"slots", required_argument, 0, 'p'},
                                            {"topology", required_argument, 0, 't'},
                                            {"topk", required_argument, 0, 'k'},
                                            {"batch-tokens", required_argument, 0, 'b'},
                                            {"sigma", required_argument, 0, 's'},
                                            {"layers", required_argument, 0, 'L'},
                                            {"solver", required_argument, 0, 'v'},
                                            {"threads", required_argument, 0, 'n'},
                                            {"seconds", required_argument, 0, 'T'},
                                            {"seed", required_argument, 0, 'S'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0, 0, 0, 0}};
    bench_run run = {.options = {.seconds = 0.1,
                                 .sigma = 1,
                                 .batch_tokens = 512,
                                 .topk = 8,
                                 .layers = 58,
                                 .threads = 1,
                                 .seed = 1}};
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'h') return fputs(help, stdout), EXIT_OK;
        if (c == '?') return EXIT_USAGE;
        if (c == 'j') run.json = true;
        else if (!parse_option(argv[0], c, &run)) return EXIT_USAGE;
    }
    if (optind < argc)
        return cli_fail(argv[0], EXIT_USAGE, "takes no arguments, not '%s'", argv[optind]);
    if (!check_shape(argv[0], &run)) return EXIT_USAGE;
    if (run.solvers == 0)
        while (usual_solvers[run.solvers]) {
            run.solver[run.solvers] = usual_solvers[run.solvers];
            run.solvers++;
        }
    return run_shapes(argv[0], &run);
}
