/* The C pieces of docs/gpu.md and docs/multi-gpu.md, as they stand there. */
#include <lplb/cuda_comm.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

#include "gpu_pieces.h"

/* Every expert has its copies where the cube says: all 2 * 32 redundant slots are taken. */
static void test_placement_of_a_topology(void) {
    enum { EXPERTS = 256, RANKS = 32, SLOTS = EXPERTS + 2 * RANKS };
    int64_t load[EXPERTS];
    int32_t count[EXPERTS], twice = 0;
    lplb_placement *placement = NULL;
    for (int e = 0; e < EXPERTS; e++) load[e] = 1000 + e * 7 % 100;
    OK(place_cube(load, &placement));
    OK(lplb_placement_validate(placement));
    CHECK(placement->slots == SLOTS && placement->ranks == RANKS, "%d slots on %d ranks",
          placement->slots, placement->ranks);
    CHECK(lplb_placement_replica_count(placement, count) == 2, "not pairs");
    for (int e = 0; e < EXPERTS; e++) twice += count[e] == 2;
    CHECK(twice == 2 * RANKS, "%d experts have a copy", twice);
    lplb_placement_destroy(placement);
}

static void test_two_sources(void) {
    world w;
    id_arrays arrays[2];
    lplb_cuda_ids ids[2];
    world_create("cube8x2", 0, 2, 700, &w);
    world_draw(&w, 5);
    lplb_cuda_planner *planner = make_planner(&w, 0, 0);
    for (int s = 0; s < 2; s++) {
        id_arrays_create(w.n, LPLB_INT64, LPLB_INT32, false, &arrays[s]);
        put_ids(&arrays[s], w.ids + s * w.n);
        ids[s] = arrays[s].arguments;
    }
    int64_t *counts = gpu_copy(NULL, 2 * w.placement->experts, sizeof *counts);
    OK(two_sources(planner, ids, counts, w.placement->experts, gpu_stream()));
    check_report(planner, "two sources");
    for (int s = 0; s < 2; s++) {
        check_slots(&arrays[s], w.slots + s * w.n, w.n, "two sources");
        id_arrays_destroy(&arrays[s]);
    }
    gpu_free(counts);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

static lplb_status all_gather_of_hosts(void *state, const void *send, void *receive,
                                       int64_t bytes) {
    (void)state;
    memcpy(receive, send, (size_t)bytes);
    return LPLB_OK;
}

/* With one rank, whose counts are all. */
static void test_communicator(void) {
    world w;
    id_arrays arrays;
    lplb_cuda_comm *comm = NULL;
    lplb_cuda_planner *planner = NULL;
    lplb_cuda_stream stream = gpu_stream();
    int32_t device = 0, rank = 0, ranks = 1;
    void *my_state = NULL;
    world_create("cube4groups", 0, 1, 900, &w);
    world_draw(&w, 6);
    id_arrays_create(w.n, LPLB_INT64, LPLB_INT64, false, &arrays);
    put_ids(&arrays, w.ids);
    lplb_cuda_ids ids = arrays.arguments;
    lplb_cuda_problem problem = {.struct_size = sizeof problem};
    lplb_cuda_config options = {
        .struct_size = sizeof options, .placement = w.placement, .max_ids = w.n};
#include "multi_gpu_piece.h"
    check_report(planner, "a communicator");
    check_slots(&arrays, w.slots, w.n, "a communicator");
    lplb_cuda_planner_destroy(planner);
    lplb_cuda_comm_destroy(comm);
    id_arrays_destroy(&arrays);
    world_destroy(&w);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"placement_of_a_topology", test_placement_of_a_topology},
                              {"two_sources", test_two_sources},
                              {"communicator", test_communicator}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
