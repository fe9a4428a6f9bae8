/* What the batch sizer brings on recorded routing: gpt-oss-20b on 8 ranks with 2 redundant slots
 * each (EPLB's placement, even split), batches taken from the trace one after another in the size
 * asked for. A step is modelled as a fixed price and the fullest rank's selections at so much each;
 * in "dearer" a selection costs four times as much in the middle third, as long contexts do, in
 * "bursts" every fifth step does. Against every fixed size. `--json` prints one document. */
#include <lplb/placement.h>
#include <lplb/trace.h>
#include <lplb/tuning.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { G = 8, LAYER = 12, FIXED_NS = 1000000, SELECTION_NS = 10000, SIZES = 5 };

typedef enum scenario { STEADY, DEARER, BURSTS, SCENARIOS } scenario;
static const char *const names[SCENARIOS] = {"steady", "dearer", "bursts"};

static void check(lplb_status status) {
    if (status == LPLB_OK) return;
    fprintf(stderr, "bench_batch_sizer: %s\n", lplb_error_message());
    exit(1);
}

static int compare_int64(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static lplb_trace *trace;
static lplb_placement *placement;
static int64_t *ns; /* of every step */

static void place(void) {
    int64_t *load = calloc((size_t)trace->experts, sizeof *load);
    lplb_trace_count(trace, LAYER, 0, trace->tokens, NULL, load);
    lplb_place_config config = {.struct_size = sizeof config,
                                .algorithm = LPLB_PLACE_EPLB,
                                .ranks = G,
                                .slots = trace->experts + 2 * G,
                                .max_moves = -1};
    check(lplb_place(&config, load, 1, 1, trace->experts, NULL, &placement));
    free(load);
}

static int64_t step_ns(scenario what, int64_t step, int64_t first, int64_t size) {
    static int64_t counts[32767];
    double imbalance;
    lplb_trace_count(trace, LAYER, first, size, NULL, counts);
    check(lplb_placement_imbalance(placement, counts, 1, LPLB_SOLVER_EVEN, 1, &imbalance));
    double fullest = imbalance * (double)size * trace->topk / G;
    bool dear = (what == DEARER && first > trace->tokens / 3 && first < 2 * trace->tokens / 3) ||
                (what == BURSTS && step % 5 == 4);
    return FIXED_NS + (int64_t)(fullest * SELECTION_NS * (dear ? 4 : 1));
}

/* size 0: by the sizer, from 128. */
static void run(scenario what, int64_t size, int json, int first) {
    lplb_batch_sizer sizer = {.size = 128, .least = 16, .most = 4096};
    check(lplb_batch_sizer_init(&sizer));
    int64_t steps = 0, at = 0, over = 0;
    double total = 0;
    for (;;) {
        int64_t n = size ? size : sizer.size;
        if (at + n > trace->tokens) break;
        ns[steps] = step_ns(what, steps, at, n);
        if (!size) lplb_batch_sizer_update(&sizer, ns[steps]);
        total += (double)ns[steps];
        over += ns[steps] > 10000000;
        at += n;
        steps++;
    }
    qsort(ns, (size_t)steps, sizeof *ns, compare_int64);
    double rate = (double)at / total * 1e9, p99 = (double)ns[steps * 99 / 100] / 1e6;
    char label[32];
    snprintf(label, sizeof label, "%lld", (long long)size);
    if (json)
        printf("%s{\"case\":\"%s\",\"size\":%lld,\"tokens_per_s\":%.0f,\"p99_ms\":%.2f,"
               "\"over_10_ms\":%.3f,\"changes\":%lld}",
               first ? "" : ",", names[what], (long long)size, rate, p99,
               (double)over / (double)steps, (long long)(sizer.grown + sizer.shrunk));
    else
        printf("%-8s %8s %12.0f %10.2f %11.1f%% %8lld\n", names[what], size ? label : "sizer", rate,
               p99, 100 * (double)over / (double)steps, (long long)(sizer.grown + sizer.shrunk));
}

int main(int argc, char **argv) {
    static const int64_t sizes[SIZES] = {32, 128, 512, 1024, 2048};
    int json = argc == 2 && !strcmp(argv[1], "--json");
    if (argc > 1 && !json) {
        fprintf(stderr, "usage: bench_batch_sizer [--json]\n");
        return 2;
    }
    check(lplb_trace_read(LPLB_SOURCE_DIR "/data/gpt-oss-20b/token_topk.npz", NULL, &trace));
    ns = calloc((size_t)trace->tokens, sizeof *ns);
    place();
    if (json) printf("{\"schema\":\"lplb.bench_batch_sizer/1\",\"cases\":[");
    else
        printf("%-8s %8s %12s %10s %12s %8s\n", "steps", "batch", "tokens/s", "p99 ms",
               "over 10 ms", "changes");
    for (int what = 0; what < SCENARIOS; what++)
        for (int i = 0; i <= SIZES; i++)
            run((scenario)what, i < SIZES ? sizes[i] : 0, json, !what && !i);
    if (json) printf("]}\n");
    free(ns);
    lplb_placement_destroy(placement);
    lplb_trace_destroy(trace);
    return 0;
}
