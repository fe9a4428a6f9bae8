/* How often the exact planner is wrong: on random problems of 2-16 ranks, 1-8 copies and up to 2^40
 * tokens, on large ones of 32-320 ranks and up to 2,240 slots, both against CLP's optimum and by
 * certificate; beyond 2^40 tokens by certificate alone, as doubles end there.
 * --count N (100000), --large N (2000), --huge N (20000), --seed S (1), --json. Exits 1 if anything
 * was wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cases/exactness.h"
#include "cases/lp.h"

/* seed is what reproduces the first wrong problem of each set. */
typedef struct problem_set {
    const char *name;
    int64_t count;
    exactness sum;
    uint64_t first_wrong;
    double seconds;
} problem_set;

static const char *const large[] = {"eplb320",  "eplb64",        "torus4x8",     "random130",
                                    "random60", "eplb32-speeds", "eplb32-fixed", "cube4groups-g1.0",
                                    "eplb32",   "eplb64-gauss"};
enum { LARGE = sizeof large / sizeof large[0] };

/* The large shapes take turns; every third instance of a shape has few tokens, where rounding to
 * integers matters most. */
static void make_large(uint64_t seed, plan_instance *out) {
    plan_case shape = *find_plan_case(large[seed % LARGE]);
    if (seed / LARGE % 3 == 2) shape.mean_tokens = 1 + shape.mean_tokens / 200;
    instance_create(&shape, seed, out);
}

static void make(int kind, uint64_t seed, plan_instance *out) {
    if (kind == 1) make_large(seed, out);
    else instance_random(seed, kind == 0 ? INT64_C(1) << 40 : LPLB_MAX_TOKENS, out);
}

static void run(problem_set *set, int kind, uint64_t seed) {
    int64_t start = lplb__now_ns();
    for (int64_t i = 0; i < set->count; i++) {
        plan_instance in;
        make(kind, seed + (uint64_t)i, &in);
        if (exactness_judge(&set->sum, &in, kind < 2 && lp_available()) && !set->first_wrong)
            set->first_wrong = seed + (uint64_t)i;
        instance_destroy(&in);
    }
    set->seconds = (double)(lplb__now_ns() - start) / 1e9;
}

static void print_row(const problem_set *set, int json, int first) {
    const exactness *s = &set->sum;
    if (json) {
        printf("%s{\"problems\":\"%s\",\"count\":%lld,\"failed\":%lld,\"infeasible\":%lld,"
               "\"uncertified\":%lld,\"compared\":%lld,\"unsolved\":%lld,\"disagreeing\":%lld,"
               "\"worst_excess\":%.9f,\"seconds\":%.3f}",
               first ? "" : ",", set->name, (long long)s->problems, (long long)s->failed,
               (long long)s->infeasible, (long long)s->uncertified, (long long)s->compared,
               (long long)s->unsolved, (long long)s->disagreeing, s->worst_excess, set->seconds);
        return;
    }
    printf("%-30s %8lld %7lld %10lld %11lld | %8lld %9lld %11lld %8.4f | %7.1f\n", set->name,
           (long long)s->problems, (long long)s->failed, (long long)s->infeasible,
           (long long)s->uncertified, (long long)s->compared, (long long)s->unsolved,
           (long long)s->disagreeing, s->worst_excess, set->seconds);
    if (set->first_wrong)
        printf("  the first wrong one has seed %llu\n", (unsigned long long)set->first_wrong);
    fflush(stdout);
}

int main(int argc, char **argv) {
    problem_set sets[] = {{.name = "2-16 ranks, to 2^40 tokens", .count = 100000},
                          {.name = "32-320 ranks, to 2240 slots", .count = 2000},
                          {.name = "2-16 ranks, to 2^62 tokens", .count = 20000}};
    uint64_t seed = 1;
    int json = 0, wrong = 0;
    for (int i = 1; i < argc; i++) {
        int64_t *count = !strcmp(argv[i], "--count")   ? &sets[0].count
                         : !strcmp(argv[i], "--large") ? &sets[1].count
                         : !strcmp(argv[i], "--huge")  ? &sets[2].count
                                                       : NULL;
        if (!strcmp(argv[i], "--json")) json = 1;
        else if (count && i + 1 < argc) *count = strtoll(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else {
            fprintf(stderr,
                    "bench_exactness: unknown option %s; try --count N --large N --huge N "
                    "--seed S --json\n",
                    argv[i]);
            return 2;
        }
    }
    if (json)
        printf("{\"schema\":\"lplb.bench_exactness/1\",\"clp\":%s,\"sets\":[",
               lp_available() ? "true" : "false");
    else
        printf("exact planner: verifier with certificate%s\n%-30s %8s %7s %10s %11s | %8s %9s %11s "
               "%8s | %7s\n",
               lp_available() ? ", and CLP's optimum within integrality" : " (no CLP here)",
               "problems", "count", "failed", "infeasible", "uncertified", "compared", "unsolved",
               "disagreeing", "excess", "seconds");
    for (int kind = 0; kind < 3; kind++) {
        run(&sets[kind], kind, seed);
        print_row(&sets[kind], json, kind == 0);
        wrong |= sets[kind].first_wrong != 0;
    }
    if (json) printf("]}\n");
    return wrong;
}
