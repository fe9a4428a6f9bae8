/* Steps on the device against dispatch on the CPU, id by id. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "world.h"

/* ---- whole steps ---- */

static void run_world(const char *shape, int32_t twice, int32_t sources, int64_t n, lplb_dtype in,
                      lplb_dtype out, bool in_place, int32_t n_sms) {
    world w;
    id_arrays arrays;
    char what[200];
    snprintf(what, sizeof what, "%s twice %d, %d sources, %lld ids, types %d %d, %d sms", shape,
             twice, sources, (long long)n, (int)in, (int)out, n_sms);
    world_create(shape, twice, sources, n, &w);
    lplb_cuda_planner *planner = make_planner(&w, n_sms, 0);
    id_arrays_create(n, in, out, in_place, &arrays);
    world_draw(&w, (uint64_t)n + 1);
    lplb_cuda_problem problem = problem_of(&w);
    for (int32_t s = 0; s < sources; s++) {
        put_ids(&arrays, w.ids + s * n);
        arrays.arguments.source = s;
        OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
        check_report(planner, what);
        check_slots(&arrays, w.slots + s * n, n, what);
    }
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static void test_run_sizes(void) {
    static const int64_t sizes[] = {0, 1, 31, 33, 1000, 2049, 5000, 17000, 40000, 300000, 1300001};
    int n = gpu_effort(100) < 100 ? 9 : 11;
    for (int i = 0; i < n; i++)
        run_world("cube4groups", 0, 1, sizes[i], LPLB_INT64, LPLB_INT64, false, 0);
}

static void test_run_types(void) {
    lplb_dtype types[] = {LPLB_INT32, LPLB_INT64};
    for (int i = 0; i < 4; i++)
        run_world("cube8x2", 0, 1, 3000, types[i / 2], types[i % 2], false, 0);
    for (int i = 0; i < 2; i++) run_world("cube8x2", 0, 1, 3000, types[i], types[i], true, 0);
}

static void test_run_placements(void) {
    static const char *const shapes[] = {"eplb32",   "eplb64",   "random16",      "everywhere",
                                         "one-rank", "torus4x8", "single-copies", "random8"};
    for (int i = 0; i < 8; i++)
        for (int32_t twice = 0; twice < 3; twice++)
            run_world(shapes[i], twice, 1, 4000, LPLB_INT64, LPLB_INT32, false, 0);
    run_world("eplb320", 0, 1, 6000, LPLB_INT64, LPLB_INT64, false, 0);
}

static void test_run_sources(void) {
    run_world("cube8x2", 0, 8, 700, LPLB_INT64, LPLB_INT64, false, 0);
    run_world("eplb32", 2, 5, 3000, LPLB_INT32, LPLB_INT64, false, 0);
    run_world("random16", 1, 3, 2500, LPLB_INT64, LPLB_INT64, true, 0);
}

static void test_run_sms(void) {
    for (int32_t sms = 1; sms <= 9; sms += 4)
        run_world("cube4groups", 0, 1, 30000, LPLB_INT64, LPLB_INT64, false, sms);
}

/* ---- pieces ---- */

static void test_pieces(void) {
    world w;
    id_arrays arrays;
    world_create("eplb32", 3, 2, 5000, &w);
    world_draw(&w, 3);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    int64_t E = w.placement->experts, hosts = w.hosts.offset[E];
    int64_t *counts = gpu_copy(NULL, 2 * E, sizeof(int64_t)), *got = calloc((size_t)(2 * E), 8);
    int64_t *split = gpu_copy(NULL, hosts, sizeof(int64_t)), *got_split = calloc((size_t)hosts, 8);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    for (int32_t s = 0; s < 2; s++) {
        put_ids(&arrays, w.ids + s * w.n);
        arrays.arguments.source = s;
        OK(lplb_cuda_count(planner, &arrays.arguments, counts + s * E, gpu_stream()));
    }
    gpu_fetch(got, counts, 2 * E, sizeof(int64_t));
    CHECK(memcmp(got, w.counts, (size_t)(2 * E) * 8) == 0, "counts differ");
    lplb_cuda_problem problem = {
        .struct_size = sizeof problem, .source_counts = counts, .split = split};
    OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
    gpu_fetch(got_split, split, hosts, sizeof(int64_t));
    CHECK(memcmp(got_split, w.split, (size_t)hosts * 8) == 0, "split differs");
    for (int32_t s = 0; s < 2; s++) {
        put_ids(&arrays, w.ids + s * w.n);
        arrays.arguments.source = s;
        OK(lplb_cuda_map(planner, &arrays.arguments, counts, split, gpu_stream()));
        check_report(planner, "pieces");
        check_slots(&arrays, w.slots + s * w.n, w.n, "pieces");
    }
    id_arrays_destroy(&arrays);
    gpu_free(counts);
    gpu_free(split);
    free(got);
    free(got_split);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static void test_number_of_ids_on_the_device(void) {
    static const int64_t tokens[] = {0, 1, 250, 436, 437, 438, 1000, -5};
    check_numbers_on_the_device(3500, tokens, 8);
}

static void test_shares(void) {
    world w;
    id_arrays arrays;
    lplb__rng rng;
    lplb__rng_seed(&rng, 5, 5);
    world_create("eplb32", 2, 3, 4000, &w);
    world_draw(&w, 11);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    int64_t hosts = w.hosts.offset[w.placement->experts];
    float *share = malloc((size_t)hosts * sizeof *share);
    for (int64_t h = 0; h < hosts; h++)
        share[h] = lplb__rng_below(&rng, 5) == 0 ? 0 : (float)(lplb__rng_uniform(&rng) * 1.2 - 0.1);
    float *device = gpu_copy(share, hosts, sizeof *share);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    for (int32_t s = 0; s < 3; s++) {
        OK(lplb_dispatch_prepare_ratio(w.dispatcher, share, w.counts + s * w.placement->experts,
                                       s));
        OK(lplb_dispatch_map(w.dispatcher, w.ids + s * w.n, LPLB_INT64, w.n, w.slots + s * w.n,
                             LPLB_INT64));
        put_ids(&arrays, w.ids + s * w.n);
        arrays.arguments.source = s;
        OK(lplb_cuda_map_shares(planner, &arrays.arguments, device, gpu_stream()));
        check_report(planner, "shares");
        check_slots(&arrays, w.slots + s * w.n, w.n, "shares");
    }
    id_arrays_destroy(&arrays);
    gpu_free(device);
    free(share);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* ---- what goes wrong ---- */

static void expect_error(lplb_cuda_planner *planner, lplb_status code, int64_t detail,
                         const char *what) {
    lplb_cuda_report report;
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    int64_t found = (int64_t)(LPLB_CUDA_DETAIL_MASK - (report.error & LPLB_CUDA_DETAIL_MASK));
    lplb_status status = lplb_cuda_report_status(&report);
    CHECK(status == code, "%s: %s (%s), expected %s", what, lplb_status_name(status),
          lplb_error_message(), lplb_status_name(code));
    CHECK(found == detail, "%s: detail %lld, expected %lld", what, (long long)found,
          (long long)detail);
    OK(lplb_cuda_report_clear(planner, gpu_stream()));
}

static void test_bad_ids(void) {
    world w;
    id_arrays arrays;
    world_create("cube8x2", 0, 1, 5000, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    int64_t saved[2] = {w.ids[4321], w.ids[77]};
    w.ids[4321] = w.placement->experts;
    w.ids[77] = -2;
    put_ids(&arrays, w.ids);
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    expect_error(planner, LPLB_RANGE, 77, "bad id");
    w.ids[4321] = saved[0];
    w.ids[77] = saved[1];
    put_ids(&arrays, w.ids);
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    check_report(planner, "after bad ids");
    check_slots(&arrays, w.slots, w.n, "after bad ids");
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static void test_bad_counts(void) {
    static const struct {
        int64_t value;
        int32_t source, expert;
        lplb_status code;
        int64_t detail;
    } cases[] = {{1 << 20, 0, 5, LPLB_INVALID, 5},
                 {-1, 1, 9, LPLB_RANGE, (int64_t)LPLB_CUDA_DETAIL_COUNT + 9},
                 {LPLB_MAX_TOKENS, 1, 3, LPLB_OVERFLOW, 0},
                 {INT64_MAX, 1, 3, LPLB_OVERFLOW, 0}};
    world w;
    id_arrays arrays;
    world_create("eplb32", 0, 2, 3000, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    put_ids(&arrays, w.ids);
    int64_t E = w.placement->experts;
    for (int i = 0; i < 4; i++) {
        int64_t at = cases[i].source * E + cases[i].expert, saved = w.counts[at];
        w.counts[at] = cases[i].value;
        gpu_put(w.device_counts, w.counts, 2 * E, sizeof(int64_t));
        w.counts[at] = saved;
        OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
        expect_error(planner, cases[i].code, cases[i].detail, "bad counts");
        check_valid(&w, &arrays, "bad counts");
    }
    gpu_put(w.device_counts, w.counts, 2 * E, sizeof(int64_t));
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    check_report(planner, "good counts again");
    check_slots(&arrays, w.slots, w.n, "good counts again");
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* Solved plans are counted, others are not. */
static void test_counter(void) {
    world w;
    id_arrays arrays;
    int32_t narrow = 40, narrow_after;
    int64_t wide = INT64_C(1) << 40, wide_after;
    world_create("cube8x2", 0, 2, 500, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    put_ids(&arrays, w.ids);
    lplb_cuda_problem problem = problem_of(&w);
    problem.counter = gpu_copy(&narrow, 1, sizeof narrow);
    problem.counter_dtype = LPLB_INT32;
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
    gpu_fetch(&narrow_after, problem.counter, 1, sizeof narrow);
    CHECK(narrow_after == narrow + 2, "int32 counter: %d", narrow_after);
    gpu_free(problem.counter);
    problem.counter = gpu_copy(&wide, 1, sizeof wide);
    problem.counter_dtype = LPLB_INT64;
    problem.counter_add = 4;
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    w.counts[3] = -1;
    gpu_put(w.device_counts, w.counts, 2 * w.placement->experts, sizeof(int64_t));
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
    gpu_fetch(&wide_after, problem.counter, 1, sizeof wide);
    CHECK(wide_after == wide + 4, "int64 counter: %lld", (long long)wide_after);
    problem.counter_dtype = LPLB_UINT8;
    CHECK(lplb_cuda_solve(planner, &problem, gpu_stream()) == LPLB_UNSUPPORTED, "uint8 counter");
    gpu_free(problem.counter);
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* Negative fixed tokens are those of a rank. */
static void test_bad_fixed(void) {
    world w;
    lplb_cuda_report report;
    world_create("eplb32", 0, 1, 10, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    int64_t *fixed = calloc((size_t)w.placement->ranks, sizeof *fixed);
    fixed[11] = -3;
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .source_counts = w.device_counts};
    int64_t *device = gpu_copy(fixed, w.placement->ranks, sizeof *fixed);
    problem.fixed = device;
    OK(lplb_cuda_solve(planner, &problem, gpu_stream()));
    OK(lplb_cuda_report_read(planner, gpu_stream(), &report));
    CHECK(lplb_cuda_report_status(&report) == LPLB_RANGE && strstr(lplb_error_message(), "rank 11"),
          "bad fixed: %s", lplb_error_message());
    expect_error(planner, LPLB_RANGE, (int64_t)LPLB_CUDA_DETAIL_FIXED + 11, "bad fixed");
    gpu_free(device);
    free(fixed);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static void test_bad_split(void) {
    world w;
    id_arrays arrays;
    world_create("eplb32", 0, 1, 3000, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    put_ids(&arrays, w.ids);
    int64_t hosts = w.hosts.offset[w.placement->experts], h = w.hosts.offset[12];
    int64_t *split = gpu_copy(NULL, hosts, sizeof(int64_t));
    for (int k = 0; k < 2; k++) {
        int64_t saved = w.split[h];
        w.split[h] = k ? -1 : saved + 1;
        gpu_put(split, w.split, hosts, sizeof(int64_t));
        w.split[h] = saved;
        OK(lplb_cuda_map(planner, &arrays.arguments, w.device_counts, split, gpu_stream()));
        expect_error(planner, LPLB_INVALID, 12, "bad split");
        check_valid(&w, &arrays, "bad split");
    }
    gpu_free(split);
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static void test_refusals(void) {
    world w;
    id_arrays arrays;
    lplb_cuda_planner *planner = NULL;
    world_create("cube8x2", 0, 2, 100, &w);
    lplb_cuda_config good = {
        .struct_size = sizeof good, .placement = w.placement, .sources = 2, .max_ids = 100};
    lplb_cuda_config c = good;
    c.struct_size = 1;
    CHECK(lplb_cuda_planner_create(&c, &planner) == LPLB_INVALID, "struct_size");
    c = good;
    c.solver = LPLB_SOLVER_GREEDY;
    CHECK(lplb_cuda_planner_create(&c, &planner) == LPLB_UNSUPPORTED, "greedy");
    c = good;
    c.tolerance = 0.5;
    CHECK(lplb_cuda_planner_create(&c, &planner) == LPLB_RANGE, "tolerance");
    c = good;
    c.device = 999;
    CHECK(lplb_cuda_planner_create(&c, &planner) == LPLB_RANGE, "device");
    c = good;
    c.layer = 1;
    CHECK(lplb_cuda_planner_create(&c, &planner) == LPLB_RANGE, "layer");
    OK(lplb_cuda_planner_create(&good, &planner));
    id_arrays_create(100, LPLB_INT64, LPLB_INT32, true, &arrays);
    lplb_cuda_problem problem = {.struct_size = sizeof problem};
    cudaStream_t s = gpu_stream();
    CHECK(lplb_cuda_run(planner, &arrays.arguments, &problem, s) == LPLB_INVALID, "in place");
    arrays.arguments.out_dtype = LPLB_INT64;
    CHECK(lplb_cuda_run(planner, &arrays.arguments, &problem, s) == LPLB_INVALID, "two sources");
    arrays.arguments.n = 101;
    problem.source_counts = w.device_counts;
    CHECK(lplb_cuda_run(planner, &arrays.arguments, &problem, s) == LPLB_RANGE, "n");
    arrays.arguments.n = 100;
    arrays.arguments.source = 2;
    CHECK(lplb_cuda_run(planner, &arrays.arguments, &problem, s) == LPLB_RANGE, "source");
    CHECK(lplb_cuda_join(planner, s) == LPLB_STATE, "join without start");
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    lplb_cuda_planner_destroy(NULL);
    world_destroy(&w);
}

/* ---- graphs ---- */

/* One graph; new ids, then a new placement, then many replays. */
static void test_capture(void) {
    world w;
    id_arrays arrays;
    cudaStream_t stream = gpu_stream();
    world_create("cube4groups", 0, 1, 20000, &w);
    world_draw(&w, 1);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    lplb_cuda_problem problem = problem_of(&w);
    lplb_cuda_report report;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CHECK(lplb_cuda_planner_update(planner, w.placement, 0, stream) == LPLB_STATE, "update");
    CHECK(lplb_cuda_report_read(planner, stream, &report) == LPLB_STATE, "report");
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, stream));
    arrays.arguments.n++;
    CHECK(lplb_cuda_run(planner, &arrays.arguments, &problem, stream) == LPLB_RANGE, "n");
    arrays.arguments.n--;
    cudaGraphExec_t exec = end_capture(stream);
    for (uint64_t seed = 1; seed < 4; seed++) {
        world_draw(&w, seed);
        put_ids(&arrays, w.ids);
        CUDA(cudaGraphLaunch(exec, stream));
        check_report(planner, "replay");
        check_slots(&arrays, w.slots, w.n, "replay");
    }
    int replays = gpu_effort(100) < 100 ? 10 : 10000;
    for (int i = 0; i < replays; i++) CUDA(cudaGraphLaunch(exec, stream));
    check_report(planner, "many replays");
    check_slots(&arrays, w.slots, w.n, "many replays");
    OK(lplb_cuda_report_read(planner, stream, &report));
    CHECK(report.steps == 3 + (uint64_t)replays, "%llu steps", (unsigned long long)report.steps);
    CUDA(cudaGraphExecDestroy(exec));
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* The same graph before and after the placement changes its kind. */
static void test_update(void) {
    world w[2];
    id_arrays arrays;
    cudaStream_t stream = gpu_stream();
    world_create("cube4groups", 0, 1, 9000, &w[0]);
    world_create_on(with_triples(w[0].placement), 1, 9000, &w[1]);
    for (int k = 0; k < 2; k++) world_draw(&w[k], 1);
    lplb_cuda_planner *planner = make_planner(&w[0], 0, 0);
    id_arrays_create(w[0].n, LPLB_INT64, LPLB_INT64, false, &arrays);
    put_ids(&arrays, w[0].ids);
    lplb_cuda_problem problem = problem_of(&w[0]);
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    OK(lplb_cuda_run(planner, &arrays.arguments, &problem, stream));
    cudaGraphExec_t exec = end_capture(stream);
    for (int k = 0; k < 4; k++) {
        OK(lplb_cuda_planner_update(planner, w[k % 2].placement, 0, stream));
        CUDA(cudaGraphLaunch(exec, stream));
        check_report(planner, "update");
        check_slots(&arrays, w[k % 2].slots, w[0].n, "update");
    }
    CHECK(lplb_cuda_planner_update(planner, w[0].placement, 3, stream) == LPLB_RANGE, "layer");
    CUDA(cudaGraphExecDestroy(exec));
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    for (int k = 0; k < 2; k++) world_destroy(&w[k]);
}

/* The plan on a side stream, alone and in a graph; a misuse in between does no harm. */
static void test_async(void) {
    world w;
    id_arrays arrays;
    cudaStream_t stream = gpu_stream(), side;
    CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    world_create("cube8x2", 0, 1, 6000, &w);
    world_draw(&w, 4);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    put_ids(&arrays, w.ids);
    int64_t E = w.placement->experts, hosts = w.hosts.offset[E];
    int64_t *counts = gpu_copy(NULL, E, 8), *split = gpu_copy(NULL, hosts, 8);
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .counts = counts, .split = split};
    for (int captured = 0; captured < 2; captured++) {
        if (captured) CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        lplb_cuda_problem bad = problem;
        bad.struct_size = 0;
        CHECK(lplb_cuda_start(planner, &arrays.arguments, &bad, stream, side) == LPLB_INVALID,
              "bad problem");
        OK(lplb_cuda_start(planner, &arrays.arguments, &problem, stream, side));
        CHECK(lplb_cuda_start(planner, &arrays.arguments, &problem, stream, side) == LPLB_STATE,
              "started twice");
        OK(lplb_cuda_join(planner, stream));
        OK(lplb_cuda_map(planner, &arrays.arguments, counts, split, stream));
        if (captured) {
            cudaGraphExec_t exec = end_capture(stream);
            gpu_put(arrays.out, w.ids, w.n, 8);
            CUDA(cudaGraphLaunch(exec, stream));
            CUDA(cudaStreamSynchronize(stream));
            CUDA(cudaGraphExecDestroy(exec));
        }
        check_report(planner, "async");
        check_slots(&arrays, w.slots, w.n, "async");
    }
    gpu_free(counts);
    gpu_free(split);
    id_arrays_destroy(&arrays);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
    CUDA(cudaStreamDestroy(side));
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"run_sizes", test_run_sizes},
                              {"run_types", test_run_types},
                              {"run_placements", test_run_placements},
                              {"run_sources", test_run_sources},
                              {"run_sms", test_run_sms},
                              {"pieces", test_pieces},
                              {"number_of_ids_on_the_device", test_number_of_ids_on_the_device},
                              {"shares", test_shares},
                              {"counter", test_counter},
                              {"bad_ids", test_bad_ids},
                              {"bad_counts", test_bad_counts},
                              {"bad_fixed", test_bad_fixed},
                              {"bad_split", test_bad_split},
                              {"refusals", test_refusals},
                              {"capture", test_capture},
                              {"update", test_update},
                              {"async", test_async}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
