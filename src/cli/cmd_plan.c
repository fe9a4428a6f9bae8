/* lplb plan: one batch from a JSON problem, split and certified. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

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

typedef struct problem {
    int32_t ranks, experts;
    int64_t *offset, *tokens, *speed, *fixed, *sources, *split, *loads;
    int32_t *rank, *node;
    double *cost;
    int64_t cost_entries;
    uint64_t *certificate, *bottleneck;
} problem;

static void free_problem(problem *p) {
    void *blocks[] = {p->offset, p->tokens, p->speed, p->fixed, p->sources,     p->split,
                      p->loads,  p->rank,   p->node,  p->cost,  p->certificate, p->bottleneck};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

/* ---- reading ---- */

static const char *name; /* "lplb plan", for messages */

static bool read_int(const json_t *value, const char *what, int64_t index, int64_t low,
                     int64_t high, int64_t *out) {
    double real = json_is_real(value) ? json_real_value(value) : 0;
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
    } else if (json_is_real(value) && real == floor(real) && fabs(real) < 9007199254740992.0) {
        *out = (int64_t)real;
    } else {
        cli_fail(name, EXIT_USAGE, "%s[%lld] must be a whole number", what, (long long)index);
        return false;
    }
    if (*out >= low && *out <= high) return true;
    cli_fail(name, EXIT_USAGE, "%s[%lld] is %lld, must be from %lld to %lld", what,
             (long long)index, (long long)*out, (long long)low, (long long)high);
    return false;
}

/* An optional array of `count` whole numbers; *out stays NULL when it is absent. */
static bool read_ints(const json_t *object, const char *key, int64_t count, int64_t low,
                      int64_t high, int64_t **out) {
    const json_t *array = json_object_get(object, key);
    if (!array || json_is_null(array)) return true;
    if (!json_is_array(array) || (int64_t)json_array_size(array) != count) {
        cli_fail(name, EXIT_USAGE, "\"%s\" must be an array of %lld numbers", key,
                 (long long)count);
        return false;
    }
    *out = cli_need((size_t)count + 1, sizeof **out);
    for (int64_t i = 0; i < count; i++)
        if (!read_int(json_array_get(array, (size_t)i), key, i, low, high, &(*out)[i]))
            return false;
    return true;
}

static bool read_cost(const json_t *document, problem *p) {
    const json_t *cost = json_object_get(document, "cost");
    if (!cost) return true;
    if (!json_is_array(cost) || json_array_size(cost) != (size_t)p->ranks)
        return cli_fail(name, EXIT_USAGE, "\"cost\" must have one row per rank"), false;
    p->cost_entries = (int64_t)json_array_size(json_array_get(cost, 0));
    if (p->cost_entries < 1)
        return cli_fail(name, EXIT_USAGE, "\"cost\"[0] must be a row of numbers"), false;
    p->cost = cli_need((size_t)(p->ranks * p->cost_entries), sizeof *p->cost);
    for (int32_t r = 0; r < p->ranks; r++) {
        const json_t *row = json_array_get(cost, (size_t)r);
        if ((int64_t)json_array_size(row) != p->cost_entries)
            return cli_fail(name, EXIT_USAGE, "\"cost\"[%d] must have %lld entries like the first",
                            r, (long long)p->cost_entries),
                   false;
        for (int64_t i = 0; i < p->cost_entries; i++) {
            const json_t *value = json_array_get(row, (size_t)i);
            if (!json_is_number(value))
                return cli_fail(name, EXIT_USAGE, "\"cost\"[%d][%lld] must be a number", r,
                                (long long)i),
                       false;
            p->cost[r * p->cost_entries + i] = json_number_value(value);
        }
    }
    return true;
}

/* Hosts of all experts; counts them first. */
static bool read_hosts(const json_t *experts, problem *p) {
    int64_t copies = 0;
    for (int32_t e = 0; e < p->experts; e++) {
        const json_t *hosts = json_object_get(json_array_get(experts, (size_t)e), "hosts");
        if (!json_is_array(hosts) || json_array_size(hosts) == 0)
            return cli_fail(name, EXIT_USAGE,
                            "expert %d needs \"hosts\", an array of at least one "
                            "rank",
                            e),
                   false;
        p->offset[e] = copies;
        copies += (int64_t)json_array_size(hosts);
    }
    p->offset[p->experts] = copies;
    p->rank = cli_need((size_t)copies + 1, sizeof *p->rank);
    p->split = cli_need((size_t)copies + 1, sizeof *p->split);
    for (int32_t e = 0; e < p->experts; e++) {
        const json_t *hosts = json_object_get(json_array_get(experts, (size_t)e), "hosts");
        for (int64_t i = p->offset[e]; i < p->offset[e + 1]; i++) {
            int64_t r;
            char what[48];
            snprintf(what, sizeof what, "experts[%d].hosts", e);
            if (!read_int(json_array_get(hosts, (size_t)(i - p->offset[e])), what, i - p->offset[e],
                          0, p->ranks - 1, &r))
                return false;
            p->rank[i] = (int32_t)r;
        }
    }
    return true;
}

static bool read_expert(const json_t *expert, problem *p, int32_t e, bool *any_sources) {
    const json_t *tokens = json_object_get(expert, "tokens");
    if (!read_int(tokens, "tokens of expert ", e, 0, LPLB_MAX_TOKENS, &p->tokens[e])) return false;
    int64_t *sources = NULL;
    bool fine = read_ints(expert, "sources", p->ranks, 0, LPLB_MAX_TOKENS, &sources);
    if (fine && sources && !*any_sources && e > 0)
        fine = cli_fail(name, EXIT_USAGE, "expert %d has \"sources\" but expert 0 has not", e) < 0;
    if (fine && !sources && *any_sources)
        fine = cli_fail(name, EXIT_USAGE, "expert %d has no \"sources\" but expert 0 has", e) < 0;
    if (fine && sources) {
        *any_sources = true;
        if (!p->sources) p->sources = cli_need((size_t)p->ranks * (size_t)p->experts, 8);
        for (int32_t r = 0; r < p->ranks; r++) p->sources[(int64_t)r * p->experts + e] = sources[r];
    }
    free(sources);
    return fine;
}

static bool check_keys(const json_t *object, const char *where, const char *const *known) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        bool found = false;
        for (int i = 0; known[i]; i++) found |= !strcmp(key, known[i]);
        if (!found)
            return cli_fail(name, EXIT_USAGE, "unknown key \"%s\" in %s", key, where), false;
    }
    return true;
}

static bool read_problem(const json_t *document, problem *p) {
    static const char *const keys[] = {"ranks", "speed",   "fixed",  "node",
                                       "cost",  "experts", "schema", NULL};
    static const char *const expert_keys[] = {"tokens", "hosts", "sources", NULL};
    int64_t ranks, *node = NULL;
    if (!json_is_object(document))
        return cli_fail(name, EXIT_USAGE, "the problem must be a JSON object"), false;
    if (!check_keys(document, "the problem", keys)) return false;
    if (!json_object_get(document, "ranks"))
        return cli_fail(name, EXIT_USAGE, "the problem needs \"ranks\""), false;
    if (!read_int(json_object_get(document, "ranks"), "ranks", 0, 1, LPLB_MAX_RANKS, &ranks))
        return false;
    const json_t *experts = json_object_get(document, "experts");
    if (!json_is_array(experts))
        return cli_fail(name, EXIT_USAGE, "the problem needs \"experts\", an array"), false;
    p->ranks = (int32_t)ranks;
    p->experts = (int32_t)json_array_size(experts);
    p->offset = cli_need((size_t)p->experts + 1, sizeof *p->offset);
    p->tokens = cli_need((size_t)p->experts + 1, sizeof *p->tokens);
    p->loads = cli_need((size_t)ranks, sizeof *p->loads);
    p->certificate = cli_need((size_t)(ranks + 63) / 64, 8);
    p->bottleneck = cli_need((size_t)(ranks + 63) / 64, 8);
    for (int32_t e = 0; e < p->experts; e++)
        if (!json_is_object(json_array_get(experts, (size_t)e)))
            return cli_fail(name, EXIT_USAGE, "experts[%d] must be an object", e), false;
    bool any_sources = false;
    for (int32_t e = 0; e < p->experts; e++) {
        const json_t *expert = json_array_get(experts, (size_t)e);
        if (!check_keys(expert, "an expert", expert_keys) ||
            !read_expert(expert, p, e, &any_sources))
            return false;
    }
    if (!read_hosts(experts, p) || !read_cost(document, p) ||
        !read_ints(document, "speed", ranks, 1, LPLB_MAX_SPEED, &p->speed) ||
        !read_ints(document, "fixed", ranks, 0, LPLB_MAX_TOKENS, &p->fixed) ||
        !read_ints(document, "node", ranks, INT32_MIN, INT32_MAX, &node))
        return false;
    if (node) {
        p->node = cli_need((size_t)ranks, sizeof *p->node);
        for (int64_t r = 0; r < ranks; r++) p->node[r] = (int32_t)node[r];
        free(node);
    }
    return true;
}

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
    if (read_problem(document, &p)) code = solve(&p, &config, json);
    json_decref(document);
    free_problem(&p);
    return code;
}
