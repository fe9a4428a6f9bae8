/* Replaying a recording under the policies that need no search, 8 ranks with 2 redundant slots:
 * seconds and peak memory for several batch sizes and thread counts.
 *   bench_replay [--json]
 * LPLB_DATA names the folder with gpt_oss_20b/token_topk.npz, all 162,219 tokens; without it the
 * bundled 66,854 tokens are taken. */
#define _POSIX_C_SOURCE 200809L
#include <lplb/lplb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"

static const char *const policies[] = {"none", "eplb", "eplb+exact", "lplb", "ideal"};

static void check(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_replay: %s\n", lplb_error_message());
    exit(1);
}

static double seconds_since(int64_t start) { return (double)(lplb__now_ns() - start) / 1e9; }

static double peak_mb(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1024;
}

int main(int argc, char **argv) {
    static const int64_t batch_tokens[] = {64, 512, 4096};
    bool json = argc > 1 && !strcmp(argv[1], "--json");
    char path[4096];
    const char *data = getenv("LPLB_DATA");
    snprintf(path, sizeof path, "%s/%s/token_topk.npz", data ? data : LPLB_SOURCE_DIR "/data",
             data ? "gpt_oss_20b" : "gpt-oss-20b");
    lplb_trace *trace;
    int64_t start = lplb__now_ns();
    check(lplb_trace_read(path, NULL, &trace));
    double read = seconds_since(start);
    if (json)
        printf("{\"schema\":\"lplb.bench_replay/1\",\"tokens\":%lld,\"layers\":%d,"
               "\"read_seconds\":%.4f,\"rows\":[",
               (long long)trace->tokens, trace->layers, read);
    else
        printf("%lld tokens x %d layers, read in %.2f s; none, eplb, eplb+exact, lplb, ideal\n"
               "%6s  %7s  %8s  %14s\n",
               (long long)trace->tokens, trace->layers, read, "batch", "threads", "seconds",
               "plan p50 [us]");
    for (int i = 0; i < 6; i++) {
        lplb_replay_config config = {.struct_size = sizeof config,
                                     .ranks = 8,
                                     .redundant = 2,
                                     .all_layers = 1,
                                     .history = -1,
                                     .batch_tokens = batch_tokens[i / 2],
                                     .threads = 1 + i % 2,
                                     .policy = policies,
                                     .policies = sizeof policies / sizeof policies[0]};
        lplb_replay_result *result;
        check(lplb_replay(trace, &config, &result));
        const char *row = json ? "%s{\"batch_tokens\":%lld,\"threads\":%d,\"seconds\":%.4f,"
                                 "\"plan_us\":%.2f}"
                               : "%s%6lld  %7d  %8.3f  %14.2f\n";
        printf(row, json && i ? "," : "", (long long)config.batch_tokens, config.threads,
               result->seconds, result->policy[3].plan_us_p50);
        lplb_replay_result_destroy(result);
    }
    printf(json ? "],\"peak_mb\":%.1f}\n" : "peak memory %.0f MB\n", peak_mb());
    lplb_trace_destroy(trace);
    return 0;
}
