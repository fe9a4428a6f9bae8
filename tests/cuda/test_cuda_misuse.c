/* Calls at the wrong time or with the wrong arguments: refused, and nothing suffers from it. */
#include <lplb/cuda_comm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

static void refused(lplb_status got, lplb_status wanted, const char *message, const char *what) {
    CHECK(got == wanted && strstr(lplb_error_message(), message), "%s: %s: %s", what,
          lplb_status_name(got), lplb_error_message());
}

/* A world of one source, its planner, ids and results. */
typedef struct stage {
    world w;
    lplb_cuda_planner *planner;
    id_arrays arrays;
    int64_t *counts, *split; /* device */
    lplb_cuda_problem problem;
    cudaStream_t side;
} stage;

static void stage_create(const char *shape, int64_t n, stage *s) {
    world_create(shape, 0, 1, n, &s->w);
    world_draw(&s->w, 5);
    s->planner = make_planner(&s->w, 0, 0);
    id_arrays_create(n, LPLB_INT64, LPLB_INT64, false, &s->arrays);
    put_ids(&s->arrays, s->w.ids);
    s->counts = gpu_copy(NULL, s->w.placement->experts, sizeof(int64_t));
    s->split = gpu_copy(NULL, s->w.placement->slots, sizeof(int64_t));
    s->problem = (lplb_cuda_problem){
        .struct_size = sizeof s->problem, .counts = s->counts, .split = s->split};
    CUDA(cudaStreamCreateWithFlags(&s->side, cudaStreamNonBlocking));
}

static void stage_destroy(stage *s) {
    CUDA(cudaStreamDestroy(s->side));
    gpu_free(s->counts);
    gpu_free(s->split);
    id_arrays_destroy(&s->arrays);
    lplb_cuda_planner_destroy(s->planner);
    world_destroy(&s->w);
}

/* A whole step goes well. */
static void check_step(stage *s, const char *what) {
    lplb_cuda_problem whole = {.struct_size = sizeof whole};
    OK(lplb_cuda_run(s->planner, &s->arrays.arguments, &whole, gpu_stream()));
    check_report(s->planner, what);
    check_slots(&s->arrays, s->w.slots, s->w.n, what);
}

static lplb_status start(stage *s) {
    return lplb_cuda_start(s->planner, &s->arrays.arguments, &s->problem, gpu_stream(), s->side);
}

static void test_null(void) {
    stage s;
    lplb_cuda_planner *made = NULL;
    lplb_cuda_config config = {.struct_size = sizeof config};
    stage_create("cube8x2", 500, &s);
    refused(lplb_cuda_planner_create(NULL, &made), LPLB_INVALID, "config", "create");
    refused(lplb_cuda_planner_create(&config, NULL), LPLB_INVALID, "out", "create");
    refused(lplb_cuda_planner_create(&config, &made), LPLB_INVALID, "placement", "create");
    refused(lplb_cuda_planner_update(s.planner, NULL, 0, gpu_stream()), LPLB_INVALID, "placement",
            "update");
    refused(lplb_cuda_planner_update(NULL, s.w.placement, 0, gpu_stream()), LPLB_INVALID, "planner",
            "update");
    refused(lplb_cuda_report_read(s.planner, gpu_stream(), NULL), LPLB_INVALID, "out", "read");
    refused(lplb_cuda_report_status(NULL), LPLB_INVALID, "report", "status");
    refused(lplb_cuda_run(NULL, &s.arrays.arguments, &s.problem, gpu_stream()), LPLB_INVALID,
            "planner", "run");
    CHECK(lplb_cuda_planner_bytes(NULL) == 0, "bytes");
    CHECK(!lplb_cuda_report_address(NULL), "address");
    stage_destroy(&s);
}

/* The size is looked at before anything behind it. */
static void test_sizes(void) {
    stage s;
    stage_create("cube8x2", 500, &s);
    size_t *size = malloc(sizeof *size); /* all that there is of a struct */
    const void *problem = size, *ids = size;
    *size = sizeof *size;
    cudaStream_t stream = gpu_stream();
    refused(lplb_cuda_solve(s.planner, problem, stream), LPLB_INVALID, "problem.struct_size",
            "solve");
    refused(lplb_cuda_start(s.planner, NULL, problem, stream, s.side), LPLB_INVALID,
            "problem.struct_size", "start");
    refused(lplb_cuda_run(s.planner, &s.arrays.arguments, problem, stream), LPLB_INVALID,
            "problem.struct_size", "run");
    refused(lplb_cuda_run(s.planner, ids, &s.problem, stream), LPLB_INVALID, "ids.struct_size",
            "run");
    refused(lplb_cuda_count(s.planner, ids, s.counts, stream), LPLB_INVALID, "ids.struct_size",
            "count");
    free(size);
    check_step(&s, "after wrong sizes");
    stage_destroy(&s);
}

/* Every array that a step takes, moved by a byte; and ids that lie partly under out. */
static void test_addresses(void) {
    stage s;
    stage_create("cube8x2", 500, &s);
    cudaStream_t stream = gpu_stream();
    char *odd = (char *)s.counts + 1;
    void *at = odd;
    lplb_cuda_ids ids = s.arrays.arguments;
    const struct {
        size_t offset;
        const char *name;
    } field[] = {{offsetof(lplb_cuda_problem, source_counts), "source_counts"},
                 {offsetof(lplb_cuda_problem, fixed), "fixed"},
                 {offsetof(lplb_cuda_problem, counts), "counts"},
                 {offsetof(lplb_cuda_problem, split), "split"},
                 {offsetof(lplb_cuda_problem, loads), "loads"},
                 {offsetof(lplb_cuda_problem, share), "share"},
                 {offsetof(lplb_cuda_problem, counter), "counter"}};
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++) {
        lplb_cuda_problem p = s.problem;
        p.counter_dtype = LPLB_INT32;
        memcpy((char *)&p + field[i].offset, &at, sizeof at);
        refused(lplb_cuda_run(s.planner, &ids, &p, stream), LPLB_INVALID, field[i].name, "odd");
    }
    refused(lplb_cuda_map(s.planner, &ids, s.counts, at, stream), LPLB_INVALID, "split", "map");
    refused(lplb_cuda_map_shares(s.planner, &ids, at, stream), LPLB_INVALID, "share", "shares");
    ids.ids = odd;
    refused(lplb_cuda_run(s.planner, &ids, &s.problem, stream), LPLB_INVALID, "ids lies at", "ids");
    ids.ids = s.arrays.ids;
    ids.out = odd;
    refused(lplb_cuda_run(s.planner, &ids, &s.problem, stream), LPLB_INVALID, "out lies at", "out");
    ids.out = s.arrays.out;
    ids.n_device = at;
    refused(lplb_cuda_run(s.planner, &ids, &s.problem, stream), LPLB_INVALID, "n_device", "n");
    ids.n_device = NULL;
    for (int64_t shift = -250; shift <= 250; shift += 250) { /* the array has 500 */
        ids.n = 250;
        ids.ids = (char *)s.arrays.ids + 8 * (shift < 0 ? -shift : 0);
        ids.out = (char *)s.arrays.ids + 8 * (shift > 0 ? shift : 0);
        put_ids(&s.arrays, s.w.ids);
        OK(lplb_cuda_run(s.planner, &ids, &s.problem, stream));
        if (shift == 0) continue;
        ids.n = 251;
        refused(lplb_cuda_run(s.planner, &ids, &s.problem, stream), LPLB_INVALID, "overlap",
                "overlap");
    }
    check_report(s.planner, "apart and in place");
    put_ids(&s.arrays, s.w.ids);
    check_step(&s, "after wrong addresses");
    stage_destroy(&s);
}

/* Between start and join the planner's memory belongs to the plan. */
static void test_started(void) {
    stage s;
    stage_create("cube8x2", 3000, &s);
    cudaStream_t stream = gpu_stream();
    lplb_cuda_problem counts_given = {.struct_size = sizeof counts_given,
                                      .source_counts = s.w.device_counts};
    OK(start(&s));
    const lplb_status got[] = {
        lplb_cuda_run(s.planner, &s.arrays.arguments, &s.problem, stream),
        lplb_cuda_count(s.planner, &s.arrays.arguments, s.counts, stream),
        lplb_cuda_solve(s.planner, &counts_given, stream),
        lplb_cuda_map(s.planner, &s.arrays.arguments, s.counts, s.split, stream),
        lplb_cuda_planner_update(s.planner, s.w.placement, 0, stream),
        start(&s)};
    for (size_t i = 0; i < sizeof got / sizeof got[0]; i++)
        refused(got[i], LPLB_STATE, "lplb_cuda_join", "between start and join");
    OK(lplb_cuda_join(s.planner, stream));
    OK(lplb_cuda_map(s.planner, &s.arrays.arguments, s.counts, s.split, stream));
    check_report(s.planner, "joined");
    check_slots(&s.arrays, s.w.slots, s.w.n, "joined");
    stage_destroy(&s);
}

/* start and join must be of one capture, or of none. */
static void test_captures(void) {
    stage s;
    cudaGraph_t graph = NULL;
    cudaStream_t stream = gpu_stream();
    stage_create("cube8x2", 3000, &s);
    for (int later = 0; later < 2; later++) { /* in no capture, or in another one */
        CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        OK(start(&s));
        cudaStreamEndCapture(stream, &graph); /* CUDA may or may not have an opinion on this */
        if (graph) CUDA(cudaGraphDestroy(graph));
        cudaGetLastError();
        graph = NULL;
        if (later) CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        refused(lplb_cuda_join(s.planner, stream), LPLB_STATE, "start it again", "abandoned");
        OK(start(&s));
        OK(lplb_cuda_join(s.planner, stream));
        if (later) CUDA(cudaGraphExecDestroy(end_capture(stream)));
        check_step(&s, "after an abandoned capture");
    }
    OK(start(&s));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    refused(lplb_cuda_join(s.planner, stream), LPLB_STATE, "before this capture", "from outside");
    CUDA(cudaGraphExecDestroy(end_capture(stream)));
    OK(lplb_cuda_join(s.planner, stream));
    CUDA(cudaStreamBeginCapture(s.side, cudaStreamCaptureModeGlobal));
    refused(start(&s), LPLB_STATE, "side is being captured", "side");
    CUDA(cudaGraphExecDestroy(end_capture(s.side)));
    check_step(&s, "after all that");
    stage_destroy(&s);
}

/* What waits leaves the captures of other streams alone. */
static void test_beside_a_capture(void) {
    stage s;
    lplb_cuda_report report;
    cudaStream_t captured;
    stage_create("cube8x2", 3000, &s);
    CUDA(cudaStreamCreateWithFlags(&captured, cudaStreamNonBlocking));
    CUDA(cudaStreamBeginCapture(captured, cudaStreamCaptureModeGlobal));
    OK(lplb_cuda_run(s.planner, &s.arrays.arguments, &s.problem, captured));
    OK(lplb_cuda_planner_update(s.planner, s.w.placement, 0, gpu_stream()));
    OK(lplb_cuda_report_read(s.planner, gpu_stream(), &report));
    OK(lplb_cuda_report_clear(s.planner, gpu_stream()));
    lplb_cuda_planner *other = make_planner(&s.w, 0, 0);
    lplb_cuda_planner_destroy(other);
    cudaGraphExec_t exec = end_capture(captured);
    CUDA(cudaGraphLaunch(exec, captured));
    CUDA(cudaStreamSynchronize(captured));
    check_slots(&s.arrays, s.w.slots, s.w.n, "beside a capture");
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaStreamDestroy(captured));
    stage_destroy(&s);
}

/* What would be ignored is refused. */
static void test_unused(void) {
    world w;
    lplb_cuda_planner *planner = NULL;
    int32_t rank = 99, node[64] = {0};
    world_create("cube8x2", 0, 1, 10, &w);
    const lplb_cuda_config good = {.struct_size = sizeof good, .placement = w.placement};
    lplb_cuda_config c = good;
    c.source_rank = &rank;
    refused(lplb_cuda_planner_create(&c, &planner), LPLB_INVALID, "source_rank", "no locality");
    c = good;
    c.node = node;
    refused(lplb_cuda_planner_create(&c, &planner), LPLB_INVALID, "node", "no locality");
    c = good;
    c.ipm.iterations = 3;
    refused(lplb_cuda_planner_create(&c, &planner), LPLB_INVALID, "ipm", "exact");
    c = good;
    c.solver = LPLB_SOLVER_EVEN;
    c.reuse = 0.1;
    refused(lplb_cuda_planner_create(&c, &planner), LPLB_INVALID, "reuse", "even");
    world_destroy(&w);
}

/* ---- refused updates ---- */

/* The only rank's exchange: keeps what was sent. */
static lplb_status keep_tag(void *state, const void *send, void *receive, int64_t bytes) {
    memcpy(receive, send, (size_t)bytes);
    if (bytes == sizeof(int32_t)) memcpy(state, send, (size_t)bytes);
    return LPLB_OK;
}

/* Neither the steps nor what ranks compare (lplb_cuda_comm_agree) change. */
static void test_refused_update(void) {
    stage s;
    lplb_placement *smaller = NULL;
    lplb_cuda_comm *comm = NULL;
    int32_t tag = 0, before;
    stage_create("cube8x2", 500, &s);
    lplb_cuda_comm_config config = {.struct_size = sizeof config,
                                    .ranks = 1,
                                    .experts = s.w.placement->experts,
                                    .exchange = keep_tag,
                                    .state = &tag};
    OK(lplb_cuda_comm_create(&config, &comm));
    OK(lplb_cuda_comm_agree(comm, s.planner));
    before = tag;
    int32_t *slot = s.w.placement->physical_to_logical, saved = slot[3];
    slot[3] = s.w.placement->experts; /* no such expert */
    lplb_status status = lplb_cuda_planner_update(s.planner, s.w.placement, 0, gpu_stream());
    CHECK(status != LPLB_OK, "an expert that is none");
    slot[3] = saved;
    refused(lplb_cuda_planner_update(s.planner, s.w.placement, 7, gpu_stream()), LPLB_RANGE,
            "layer 7", "layer");
    OK(lplb_placement_create(1, 8, 8, 8, NULL, &smaller));
    refused(lplb_cuda_planner_update(s.planner, smaller, 0, gpu_stream()), LPLB_INVALID,
            "not for 8, 8, 8", "another shape");
    OK(lplb_cuda_comm_agree(comm, s.planner));
    CHECK(tag == before && tag != 0, "tag %d, before %d", tag, before);
    check_step(&s, "after refused updates");
    lplb_placement_destroy(smaller);
    lplb_cuda_comm_destroy(comm);
    stage_destroy(&s);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {
        {"null", test_null},           {"sizes", test_sizes},
        {"addresses", test_addresses}, {"started", test_started},
        {"captures", test_captures},   {"beside_a_capture", test_beside_a_capture},
        {"unused", test_unused},       {"refused_update", test_refused_update}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
