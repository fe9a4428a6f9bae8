/* lplb plan: one batch from a JSON problem, split and certified. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/problem.h"

static const char help[] =
    "Usage: lplb plan [options] PROBLEM.json      (- reads standard input)\n"
    "\n"
    "Splits the tokens of one batch over the ranks that host copies of each expert, so that\n"
    "the fullest rank (load / speed) is as empty as it can be, and proves it.\n"
    "\n"
    "  --solver NAME     exact (default), ipm, ipm:published, even, greedy, waterfill,\n"
    "                    balance; options follow a colon: ipm:iterations=20,tolerance=1e-6\n"
    "  --tolerance X     keep the even split when its max load / speed is within X (>= 1)\n"
    "                    times the mean; 0 = always solve (default)\n"
    "  --objective NAME  tokens (default), active (fewest activated experts on a rank), or\n"
    "                    cost (from \"cost\" in the problem; implied by it)\n"
    "  --tile N          a rank's load counts whole tiles of N tokens of each expert\n"
    "  --activation N    tokens that an expert with any tokens costs its rank on top\n"
    "  --json            one JSON document on stdout (docs/formats.md)\n"
    "  --help            this text\n"
    "\n"
    "A problem: {\"ranks\": 2, \"experts\": [{\"tokens\": 90, \"hosts\": [0]},\n"
    "                                    {\"tokens\": 30, \"hosts\": [0, 1]}]}\n"
    "optional: \"speed\", \"fixed\", \"node\" [ranks], \"cost\" [ranks][n], \"sources\" per "
    "expert.\n"
    "\n"
    "Example:\n"
    "  echo "
    "'{\"ranks\":2,\"experts\":[{\"tokens\":90,\"hosts\":[0,1]},{\"tokens\":30,\"hosts\":[0]}]}'"
    " \\\n    | lplb plan -\n";

static const char *name; /* "lplb plan", for messages */

/* ---- solving and printing ---- */

typedef struct answer {
    lplb_plan plan;
    lplb_bound bound; /* tokens objective without tiles */
    bool has_bound;
    int64_t solve_ns;
} answer;

static json_t *ranks_of(const uint64_t *set, int32_t ranks) {
    json_t *array = json_array();
    for (int32_t r = 0; r < ranks; r++)
        if (set[r / 64] >> (r % 64) & 1) json_array_append_new(array, json_integer(r));
    return array;
}

static json_t *to_json(const problem *p, const lplb_plan_config *config, const answer *a) {
    json_t *split = json_array(), *loads = json_array();
    for (int32_t e = 0; e < p->experts; e++) {
        json_t *row = json_array();
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++)
            json_array_append_new(row, json_integer(p->split[i]));
        json_array_append_new(split, row);
    }
    for (int32_t r = 0; r < p->ranks; r++) json_array_append_new(loads, json_integer(p->loads[r]));
    json_t *lower = isfinite(a->plan.bound) ? json_real(a->plan.bound) : json_null();
    json_t *integer = json_null();
    if (a->has_bound) {
        json_decref(lower);
        lower = json_real((double)a->bound.fractional.numerator /
                          (double)a->bound.fractional.denominator);
        integer = json_integer(a->bound.integer_bound);
    }
    if (config->objective == LPLB_OBJECTIVE_ACTIVE && isfinite(a->plan.bound))
        integer = json_integer((json_int_t)a->plan.bound);
    return json_pack("{s:s, s:s, s:I, s:f, s:o, s:o, s:o, s:o, s:o, s:s, s:I}", "schema",
                     "lplb.plan/1", "status", lplb_outcome_name(a->plan.outcome), "max_load",
                     (json_int_t)a->plan.max_load, "objective", a->plan.objective, "lower_bound",
                     lower, "integer_bound", integer, "bottleneck",
                     ranks_of(a->has_bound ? p->bottleneck : p->certificate, p->ranks), "loads",
                     loads, "split", split, "solver",
                     config->ipm.published ? "ipm:published" : lplb_solver_name(config->solver),
                     "solve_ns", (json_int_t)a->solve_ns);
}

static void print_table(const problem *p, const answer *a) {
    double bound = a->plan.bound;
    if (a->has_bound)
        bound = (double)a->bound.fractional.numerator / (double)a->bound.fractional.denominator;
    printf("%s: objective %.6g, lower bound %.6g, fullest rank %lld tokens (%.2f us)\n",
           lplb_outcome_name(a->plan.outcome), a->plan.objective, bound,
           (long long)a->plan.max_load, (double)a->solve_ns / 1e3);
    const uint64_t *set = a->has_bound ? p->bottleneck : p->certificate;
    for (int32_t r = 0; r < p->ranks; r++) {
        int bar = a->plan.max_load > 0
                      ? (int)(40.0 * (double)p->loads[r] / (double)a->plan.max_load + 0.5)
                      : 0;
        printf("  rank %4d %12lld %-40.*s %s\n", r, (long long)p->loads[r], bar,
               "########################################",
               set[r / 64] >> (r % 64) & 1 ? "bottleneck" : "");
    }
    for (int32_t e = 0; e < p->experts; e++) {
        if (p->offset[e + 1] - p->offset[e] < 2) continue;
        printf("  expert %d:", e);
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++)
            printf(" %lld on rank %d%s", (long long)p->split[i], p->rank[i],
                   i + 1 < p->offset[e + 1] ? "," : "\n");
    }
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int solve(problem *p, lplb_plan_config *config, bool json) {
    config->struct_size = sizeof *config;
    config->hosts = (lplb_hosts){p->ranks, p->experts, p->offset, p->rank};
    config->speed = p->speed;
    config->node = p->node;
    config->cost = p->cost;
    config->cost_entries = p->cost_entries;
    if (p->cost) config->objective = LPLB_OBJECTIVE_COST;
    lplb_plan_input input = {p->tokens, p->fixed, p->sources};
    answer a = {.plan = {.split = p->split, .loads = p->loads, .certificate = p->certificate}};
    lplb_planner *planner;
    lplb_status status = lplb_planner_create(config, &planner);
    if (status != LPLB_OK) return cli_fail_status(name, status);
    int64_t start = now_ns();
    status = lplb_plan_solve(planner, &input, &a.plan);
    a.solve_ns = now_ns() - start;
    lplb_planner_destroy(planner);
    if (status != LPLB_OK) return cli_fail_status(name, status);
    bool plain =
        config->objective == LPLB_OBJECTIVE_TOKENS && config->tile <= 1 && config->activation == 0;
    if (plain) {
        status = lplb_plan_bound(&config->hosts, p->speed, &input, &a.bound, p->bottleneck);
        if (status == LPLB_OK && a.plan.outcome == LPLB_OUTCOME_OPTIMAL)
            status = lplb_plan_check(&config->hosts, p->speed, &input, &a.plan);
        if (status != LPLB_OK) return cli_fail_status(name, status);
        a.has_bound = true;
    }
    int code = EXIT_OK;
    if (json) code = cli_print_json(to_json(p, config, &a));
    else print_table(p, &a);
    if (a.plan.outcome == LPLB_OUTCOME_NOT_CONVERGED)
        return cli_fail(name, EXIT_FAILED, "the interior-point method did not converge%s",
                        a.plan.rejected ? ": its result was rejected, the split is even" : "");
    return code;
}

static bool parse_objective(const char *text, lplb_objective *out) {
    static const char *const names[] = {"tokens", "cost", "active"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) {
            *out = (lplb_objective)i;
            return true;
        }
    return cli_fail(name, EXIT_USAGE, "--objective wants tokens, cost or active, not '%s'", text),
           false;
}

int cmd_plan(int argc, char **argv) {
    static const struct option options[] = {{"solver", required_argument, 0, 's'},
                                            {"tolerance", required_argument, 0, 't'},
                                            {"objective", required_argument, 0, 'o'},
                                            {"tile", required_argument, 0, 'T'},
                                            {"activation", required_argument, 0, 'a'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0, 0, 0, 0}};
    name = argv[0];
    lplb_plan_config config = {0};
    double tolerance = 0;
    bool json = false;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 's':
            if (lplb_plan_parse_solver(optarg, &config, NULL) != LPLB_OK)
                return cli_fail_status(name, LPLB_INVALID);
            break;
        case 't':
            if (!cli_parse_double(name, "--tolerance", optarg, 0, 1e4, &tolerance))
                return EXIT_USAGE;
            break;
        case 'o':
            if (!parse_objective(optarg, &config.objective)) return EXIT_USAGE;
            break;
        case 'T':
            if (!cli_parse_int(name, "--tile", optarg, 1, 1 << 20, &config.tile)) return EXIT_USAGE;
            break;
        case 'a':
            if (!cli_parse_int(name, "--activation", optarg, 0, 1 << 30, &config.activation))
                return EXIT_USAGE;
            break;
        case 'j': json = true; break;
        case 'h': fputs(help, stdout); return EXIT_OK;
        default: return EXIT_USAGE;
        }
    }
    if (tolerance != 0) config.tolerance = tolerance;
    if (argc - optind != 1)
        return cli_fail(name, EXIT_USAGE,
                        "give one problem file, or - for standard input; see "
                        "--help");
    json_t *document = cli_read_json(name, argv[optind]);
    if (!document) return EXIT_USAGE;
    problem p = {0};
    int code = EXIT_USAGE;
    if (problem_read(name, document, &p)) code = solve(&p, &config, json);
    json_decref(document);
    problem_free(&p);
    return code;
}
