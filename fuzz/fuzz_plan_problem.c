/* The problems of `lplb plan`: what the command accepts is solved, and the answer is checked. */
#include <stdarg.h>
#include <string.h>

#include "fuzz.h"

/* The command's own reader, with silent messages. */
#include "../src/cli/problem.c"

int cli_fail(const char *command_name, int code, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    FUZZ_ASSERT(vsnprintf(text, sizeof text, format, args) > 0 && command_name);
    va_end(args);
    return code;
}

void *cli_need(size_t count, size_t item_bytes) {
    void *block = calloc(count ? count : 1, item_bytes);
    FUZZ_ASSERT(block);
    return block;
}

/* Big enough for every shape of problem, small enough for thousands of runs a second. */
enum { MAX_RANKS = 64, MAX_COPIES = 2048 };

static void solve(problem *p, lplb_solver solver) {
    lplb_plan_config config = {.struct_size = sizeof config,
                               .hosts = {p->ranks, p->experts, p->offset, p->rank},
                               .speed = p->speed,
                               .node = p->node,
                               .solver = solver};
    bool cost = p->cost && solver == LPLB_SOLVER_EXACT;
    if (cost) {
        config.objective = LPLB_OBJECTIVE_COST;
        config.cost = p->cost;
        config.cost_entries = p->cost_entries;
    }
    lplb_plan_input in = {p->tokens, p->fixed, solver == LPLB_SOLVER_EXACT ? p->sources : NULL};
    lplb_plan plan = {.split = p->split, .loads = p->loads, .certificate = p->certificate};
    lplb_planner *planner;
    if (lplb_planner_create(&config, &planner) != LPLB_OK) return;
    if (lplb_plan_solve(planner, &in, &plan) == LPLB_OK && !cost) {
        if (lplb_plan_check(&config.hosts, p->speed, &in, &plan) != LPLB_OK) {
            fprintf(stderr, "%s: %s\n", lplb_solver_name(solver), lplb_error_message());
            abort();
        }
        if (solver == LPLB_SOLVER_EXACT) FUZZ_ASSERT(plan.outcome == LPLB_OUTCOME_OPTIMAL);
    }
    lplb_planner_destroy(planner);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    json_error_t error;
    json_t *document =
        json_loadb((const char *)data, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!document) return 0;
    problem p = {0};
    int64_t ranks = json_integer_value(json_object_get(document, "ranks"));
    if (ranks <= MAX_RANKS && problem_read("fuzz", document, &p) &&
        p.offset[p.experts] <= MAX_COPIES && p.cost_entries <= 64)
        for (int s = LPLB_SOLVER_EXACT; s <= LPLB_SOLVER_BALANCE; s++) solve(&p, (lplb_solver)s);
    problem_free(&p);
    json_decref(document);
    return 0;
}
