/* How long a plan takes on one core: the exact planner beside CLP (in process, cold) on the same
 * batches, and beside the other solvers. Medians over fresh batches; each batch is solved
 * `REPEATS` times in a row and its fastest time counts, which removes other processes' noise but
 * keeps the batch's own difficulty. `--json` prints one document. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cases/cases.h"
#include "cases/lp.h"

enum { BATCHES = 201, REPEATS = 5 };

/* target: microseconds and factor over CLP that the project holds itself to (0 = none). */
static const struct {
    const char *name;
    double target_us, target_factor;
} rows[] = {
    {"cube8x2", 2, 60},  {"cube8x2-g1.0", 0, 0},  {"ring8x1", 0, 0}, {"hypercube16x2", 8, 20},
    {"torus4x8", 0, 0},  {"cube4groups", 0, 0},   {"eplb32", 0, 0},  {"eplb64", 40, 7},
    {"eplb320", 700, 4}, {"eplb32-speeds", 0, 0},
};
enum { ROWS = sizeof rows / sizeof *rows };

typedef struct figures {
    double exact_p50, exact_p99, clp_p50, even_p50, worst_gap;
} figures;

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double percentile(double *values, int n, double p) {
    qsort(values, (size_t)n, sizeof *values, compare_double);
    int i = (int)ceil(p * n) - 1;
    return values[i < 0 ? 0 : i];
}

static lplb_planner *planner_for(const plan_instance *in, lplb_solver solver) {
    lplb_plan_config config = {
        .struct_size = sizeof config, .hosts = in->hosts, .speed = in->speed, .solver = solver};
    lplb_planner *planner;
    if (lplb_planner_create(&config, &planner) == LPLB_OK) return planner;
    fprintf(stderr, "bench_plan: %s\n", lplb_error_message());
    exit(1);
}

static double solve_us(lplb_planner *planner, const lplb_plan_input *input, lplb_plan *plan) {
    int64_t best = INT64_MAX;
    for (int i = 0; i < REPEATS; i++) {
        int64_t start = lplb__now_ns();
        if (lplb_plan_solve(planner, input, plan) != LPLB_OK) {
            fprintf(stderr, "bench_plan: %s\n", lplb_error_message());
            exit(1);
        }
        int64_t ns = lplb__now_ns() - start;
        if (ns < best) best = ns;
    }
    return (double)best / 1e3;
}

static figures measure(const plan_case *shape) {
    plan_instance in;
    instance_create(shape, 1, &in);
    lplb_planner *exact = planner_for(&in, LPLB_SOLVER_EXACT);
    lplb_planner *even = planner_for(&in, LPLB_SOLVER_EVEN);
    lp *clp = lp_available() ? lp_create(&in.hosts, in.speed) : NULL;
    lplb_plan plan = {.split = in.split, .loads = in.loads};
    double exact_us[BATCHES], even_us[BATCHES], clp_us[BATCHES];
    figures f = {0};
    for (int b = 0; b < BATCHES; b++) {
        instance_redraw(shape, (uint64_t)b + 2, &in);
        lplb_plan_input input = {in.tokens, in.fixed, NULL};
        even_us[b] = solve_us(even, &input, &plan);
        exact_us[b] = solve_us(exact, &input, &plan);
        if (!clp) continue;
        int64_t start = lplb__now_ns();
        double optimum = lp_solve(clp, &input);
        clp_us[b] = (double)(lplb__now_ns() - start) / 1e3;
        /* the integer optimum lies less than one token per unit of speed above */
        double gap = plan.objective - optimum;
        if (optimum < 0 || gap < -1e-6 * (1 + optimum)) gap = INFINITY;
        if (gap > f.worst_gap) f.worst_gap = gap;
    }
    f.exact_p50 = percentile(exact_us, BATCHES, 0.5);
    f.exact_p99 = percentile(exact_us, BATCHES, 0.99);
    f.even_p50 = percentile(even_us, BATCHES, 0.5);
    f.clp_p50 = clp ? percentile(clp_us, BATCHES, 0.5) : NAN;
    lplb_planner_destroy(exact);
    lplb_planner_destroy(even);
    if (clp) lp_destroy(clp);
    instance_destroy(&in);
    return f;
}

int main(int argc, char **argv) {
    int json = argc > 1 && !strcmp(argv[1], "--json");
    if (json) printf("{\"schema\":\"lplb.bench_plan/1\",\"batches\":%d,\"rows\":[", BATCHES);
    else
        printf("exact planner, one core, %d batches each; CLP cold, in process, same batches\n"
               "%-16s %6s %7s %8s | %9s %9s %8s | %10s %9s | %s\n",
               BATCHES, "case", "ranks", "experts", "copies", "p50 us", "p99 us", "goal",
               "CLP p50 us", "CLP/exact", "worst excess over LP (tokens)");
    for (int i = 0; i < ROWS; i++) {
        const plan_case *shape = find_plan_case(rows[i].name);
        figures f = measure(shape);
        int64_t copies = shape->slots;
        if (json) {
            printf("%s{\"case\":\"%s\",\"ranks\":%d,\"experts\":%d,\"slots\":%lld,"
                   "\"exact_us\":{\"p50\":%.3f,\"p99\":%.3f},\"even_us\":%.3f,\"clp_us\":",
                   i ? "," : "", shape->name, shape->ranks, shape->experts, (long long)copies,
                   f.exact_p50, f.exact_p99, f.even_p50);
            if (isnan(f.clp_p50)) printf("null}");
            else printf("%.3f,\"worst_excess\":%.6f}", f.clp_p50, f.worst_gap);
            continue;
        }
        char goal[32] = "";
        if (rows[i].target_us > 0) snprintf(goal, sizeof goal, "<= %g", rows[i].target_us);
        printf("%-16s %6d %7d %8lld | %9.2f %9.2f %8s | ", shape->name, shape->ranks,
               shape->experts, (long long)copies, f.exact_p50, f.exact_p99, goal);
        if (isnan(f.clp_p50)) printf("no CLP\n");
        else printf("%10.1f %8.0fx | %.3f\n", f.clp_p50, f.clp_p50 / f.exact_p50, f.worst_gap);
        fflush(stdout);
    }
    if (json) printf("]}\n");
    return 0;
}
