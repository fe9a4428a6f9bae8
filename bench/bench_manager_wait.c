#define _POSIX_C_SOURCE 200809L /* nanosleep */
/* How long a host's steps wait for the manager's worker, default settings: 10 layers of 256 experts
 * in 288 slots on 32 ranks, batches of 4,096 tokens of top 8 whose experts change twice, steps of
 * several lengths in real time. `--json` prints one document. */
#include <lplb/runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/rng.h"

enum { L = 10, E = 256, G = 32, P = 288, CELLS = L * E, BATCHES = 64, PHASES = 3, STEPS = 900 };

static int64_t batches[PHASES][BATCHES][CELLS];

static void check(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_manager_wait: %s\n", lplb_error_message());
    exit(1);
}

static void draw_batches(void) {
    lplb__rng rng;
    double weight[E];
    lplb__rng_seed(&rng, 1, 0);
    for (int phase = 0; phase < PHASES; phase++)
        for (int l = 0; l < L; l++) {
            for (int e = 0; e < E; e++) weight[e] = exp(0.8 * lplb__rng_normal(&rng));
            for (int b = 0; b < BATCHES; b++)
                lplb__rng_multinomial(&rng, 4096 * 8, weight, E, batches[phase][b] + l * E);
        }
}

static void nap(int64_t ns) {
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&left, &left)) continue;
}

static const char *const lates[] = {"wait", "postpone"};

/* Steps of step_us with the manager between them. */
static void run(int even_split, int64_t step_us, lplb_late late, int json, int first) {
    lplb_manager_config config = {.struct_size = sizeof config,
                                  .layers = L,
                                  .experts = E,
                                  .ranks = G,
                                  .slots = P,
                                  .algorithm = LPLB_PLACE_SEARCH,
                                  .late = late,
                                  .even_split = even_split};
    lplb_manager *manager;
    check(lplb_manager_create(&config, &manager));
    int64_t longest = 0;
    for (int64_t step = 0; step < STEPS; step++) {
        const int64_t *counts = batches[step * PHASES / STEPS][step % BATCHES];
        int64_t start = lplb__now_ns();
        check(lplb_manager_step(manager, step, LPLB_STAGE_DECODE, counts));
        int64_t ns = lplb__now_ns() - start;
        if (ns > longest) longest = ns;
        if (step_us) nap(step_us * 1000);
    }
    lplb_manager_stats s;
    lplb_manager_get_stats(manager, &s);
    lplb_manager_destroy(manager);
    if (json)
        printf("%s{\"split\":\"%s\",\"late\":\"%s\",\"step_us\":%lld,\"waited_ms\":%.1f,\"longest_"
               "ms\":%.1f,"
               "\"place_ms\":%.1f,\"requests\":%lld,\"moves\":%lld}",
               first ? "" : ",", even_split ? "even" : "exact", lates[late], (long long)step_us,
               (double)s.wait_ns / 1e6, (double)longest / 1e6, (double)s.place_ns / 1e6,
               (long long)s.requests, (long long)s.moves);
    else
        printf("%-6s %-8s %8.1f %10.1f %12.1f %10.1f %9lld %8lld\n", even_split ? "even" : "exact",
               lates[late], (double)step_us / 1e3, (double)s.wait_ns / 1e6, (double)longest / 1e6,
               (double)s.place_ns / 1e6, (long long)s.requests, (long long)s.moves);
}

int main(int argc, char **argv) {
    static const int64_t step_us[] = {10000, 5000, 2000, 0};
    int json = argc == 2 && !strcmp(argv[1], "--json");
    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_manager_wait [--json]\n");
        return 2;
    }
    draw_batches();
    if (json) printf("{\"schema\":\"lplb.bench_manager_wait/1\",\"steps\":%d,\"cases\":[", STEPS);
    else
        printf("%d layers of %d slots, %d steps\n%-6s %-8s %8s %10s %12s %10s %9s %8s\n", L, P,
               STEPS, "split", "late", "step ms", "waited ms", "longest ms", "place ms", "requests",
               "moves");
    for (int even = 1; even >= 0; even--) {
        for (int i = 0; i < 4; i++) run(even, step_us[i], LPLB_LATE_WAIT, json, even && !i);
        run(even, 500, LPLB_LATE_POSTPONE, json, 0);
        run(even, 0, LPLB_LATE_POSTPONE, json, 0);
    }
    if (json) printf("]}\n");
    return 0;
}
