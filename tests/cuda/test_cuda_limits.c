/* The largest placements that docs/gpu.md promises: they run and agree with the CPU, one expert or
 * slot more is refused. On a GPU only what its own shared memory promises. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "world.h"

enum { HOPPER = 227 << 10, AMPERE = 163 << 10, SMALL = 99 << 10 };

typedef struct shape {
    int32_t shared_bytes, experts, slots, ranks, locality;
} shape;

/* Slots of unequal ranks, and copies of random experts, half of them of a few. */
static lplb_placement *draw_placement(int32_t experts, int32_t slots, int32_t ranks,
                                      uint64_t seed) {
    lplb_placement *placement = NULL;
    lplb__rng rng;
    int32_t *of_rank = calloc((size_t)ranks, sizeof *of_rank);
    for (int32_t r = 0; r < ranks; r++) of_rank[r] = slots / ranks + (r < slots % ranks);
    OK(lplb_placement_create(1, experts, slots, ranks, of_rank, &placement));
    free(of_rank);
    lplb__rng_seed(&rng, seed, 31);
    int32_t *slot = placement->physical_to_logical, few = experts < 5 ? experts : 5;
    for (int32_t p = 0; p < slots; p++) {
        uint64_t among = lplb__rng_below(&rng, 2) ? (uint64_t)few : (uint64_t)experts;
        slot[p] = p < experts ? p : (int32_t)lplb__rng_below(&rng, among);
    }
    for (int32_t p = slots - 1; p > 0; p--) {
        int32_t q = (int32_t)lplb__rng_below(&rng, (uint64_t)p + 1), was = slot[p];
        slot[p] = slot[q];
        slot[q] = was;
    }
    return placement;
}

static lplb_status make(const world *w, int32_t locality, lplb_cuda_planner **planner) {
    int32_t *rank = calloc((size_t)w->sources, sizeof *rank);
    for (int32_t s = 0; s < w->sources; s++) rank[s] = s % w->placement->ranks;
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = w->placement,
                               .sources = w->sources,
                               .source_rank = locality ? rank : NULL,
                               .locality = locality,
                               .max_ids = w->n};
    lplb_status status = lplb_cuda_planner_create(&config, planner);
    free(rank);
    return status;
}

/* Every source's slots are those of the CPU. */
static void compare(world *w, lplb_cuda_planner *planner, int32_t locality, const char *what,
                    uint64_t seed) {
    id_arrays arrays;
    id_arrays_create(w->n, LPLB_INT64, LPLB_INT32, false, &arrays);
    world_draw(w, seed);
    lplb_cuda_problem problem = problem_of(w);
    for (int32_t s = 0; s < w->sources; s++) {
        int64_t *slots = w->slots + s * w->n;
        OK(lplb_dispatch_prepare(w->dispatcher, w->counts, w->split, s, locality));
        OK(lplb_dispatch_map(w->dispatcher, w->ids + s * w->n, LPLB_INT64, w->n, slots,
                             LPLB_INT64));
        put_ids(&arrays, w->ids + s * w->n);
        arrays.arguments.source = s;
        OK(lplb_cuda_run(planner, &arrays.arguments, &problem, gpu_stream()));
        check_report(planner, what);
        check_slots(&arrays, slots, w->n, what);
    }
    id_arrays_destroy(&arrays);
}

static void check_fits(const shape *s, int32_t sources, int64_t n, uint64_t seed) {
    world w;
    lplb_cuda_planner *planner = NULL;
    char what[120];
    snprintf(what, sizeof what, "%d KB: %d experts, %d slots, %d ranks, locality %d, %lld ids",
             s->shared_bytes >> 10, s->experts, s->slots, s->ranks, s->locality, (long long)n);
    world_create_on(draw_placement(s->experts, s->slots, s->ranks, seed), sources, n, &w);
    if (make(&w, s->locality, &planner) != LPLB_OK)
        CHECK(false, "%s: %s", what, lplb_error_message());
    else compare(&w, planner, s->locality, what, seed);
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* The message says what is taken and what is there. */
static void check_refused(const shape *s) {
    world w;
    lplb_cuda_planner *planner = NULL;
    char available[40];
    snprintf(available, sizeof available, "this device has %d", s->shared_bytes);
    world_create_on(draw_placement(s->experts, s->slots, s->ranks, 1), 1, 16, &w);
    CHECK(make(&w, s->locality, &planner) == LPLB_UNSUPPORTED, "%d experts in %d slots were taken",
          s->experts, s->slots);
    CHECK(strstr(lplb_error_message(), "take at least") &&
              strstr(lplb_error_message(), available) &&
              !s->locality == !strstr(lplb_error_message(), "no locality"),
          "%s", lplb_error_message());
    lplb_cuda_planner_destroy(planner);
    world_destroy(&w);
}

/* False: this is a GPU, and another one. */
static bool take_device(int32_t shared_bytes) {
#ifdef LPLB_CUDA_EMULATED
    emulated_shared_bytes(shared_bytes);
    return true;
#else
    int own = 0;
    CUDA(cudaDeviceGetAttribute(&own, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    return own == shared_bytes;
#endif
}

/* Any number of experts in 2,240 slots on 320 ranks, on what Hopper has. */
static void test_promise(void) {
    static const int32_t experts[] = {1, 64, 1024, 1120, 1700, 2240};
    if (!take_device(HOPPER)) return;
    for (int i = 0; i < 6; i++)
        for (int32_t locality = 0; locality < 2; locality++) {
            shape s = {HOPPER, experts[i], 2240, 320, locality};
            check_fits(&s, 1 + locality, 500, (uint64_t)i);
        }
}

/* And whatever is smaller. */
static void test_smaller(void) {
    lplb__rng rng;
    if (!take_device(HOPPER)) return;
    lplb__rng_seed(&rng, 5, 32);
    for (int i = 0; i < gpu_effort(300); i++) {
        int32_t slots = 1 + (int32_t)lplb__rng_below(&rng, 2240);
        int32_t most_ranks = slots < 320 ? slots : 320;
        shape s = {HOPPER, 1 + (int32_t)lplb__rng_below(&rng, (uint64_t)slots), slots,
                   1 + (int32_t)lplb__rng_below(&rng, (uint64_t)most_ranks), i % 2};
        world w;
        lplb_cuda_planner *planner = NULL;
        world_create_on(draw_placement(s.experts, s.slots, s.ranks, (uint64_t)i), 1, 16, &w);
        OK(make(&w, s.locality, &planner));
        lplb_cuda_planner_destroy(planner);
        world_destroy(&w);
    }
}

/* The table of docs/gpu.md, and what is refused: one more expert, slot or rank. */
static const struct {
    shape fits, refused;
} limits[] = {
    {{AMPERE, 1271, 2240, 320, 0}, {AMPERE, 1272, 2240, 320, 0}},
    {{AMPERE, 790, 2240, 320, 1}, {AMPERE, 791, 2240, 320, 1}},
    {{HOPPER, 2231, 2788, 320, 0}, {HOPPER, 2232, 2790, 320, 0}},
    {{HOPPER, 2117, 2646, 320, 1}, {HOPPER, 2118, 2647, 320, 1}},
    {{AMPERE, 1503, 1878, 320, 0}, {AMPERE, 1504, 1880, 320, 0}},
    {{AMPERE, 1496, 1870, 320, 1}, {AMPERE, 1497, 1871, 320, 1}},
    {{SMALL, 410, 512, 320, 0}, {SMALL, 411, 513, 320, 0}},
    {{SMALL, 410, 512, 320, 1}, {SMALL, 411, 513, 320, 1}},
    {{HOPPER, 2447, 3058, 64, 0}, {HOPPER, 2448, 3060, 64, 0}},
    {{HOPPER, 2165, 2706, 64, 1}, {HOPPER, 2166, 2707, 64, 1}},
    {{AMPERE, 1719, 2148, 64, 0}, {AMPERE, 1720, 2150, 64, 0}},
    {{AMPERE, 1544, 1930, 64, 1}, {AMPERE, 1545, 1931, 64, 1}},
    {{SMALL, 626, 782, 64, 0}, {SMALL, 627, 783, 64, 0}},
    {{SMALL, 626, 782, 64, 1}, {SMALL, 627, 783, 64, 1}},
    {{HOPPER, 256, 6482, 64, 0}, {HOPPER, 256, 6483, 64, 0}},
    {{HOPPER, 256, 4272, 64, 1}, {HOPPER, 256, 4273, 64, 1}},
    {{AMPERE, 256, 4434, 64, 0}, {AMPERE, 256, 4435, 64, 0}},
    {{AMPERE, 256, 2962, 64, 1}, {AMPERE, 256, 2963, 64, 1}},
    {{SMALL, 256, 2386, 64, 0}, {SMALL, 256, 2387, 64, 0}},
    {{SMALL, 256, 1650, 64, 1}, {SMALL, 256, 1651, 64, 1}},
    {{HOPPER, 256, 3032, 1516, 1}, {HOPPER, 256, 3034, 1517, 1}},
    {{AMPERE, 256, 2096, 1048, 1}, {AMPERE, 256, 2098, 1049, 1}},
    {{SMALL, 256, 692, 346, 1}, {SMALL, 256, 694, 347, 1}},
};

static void test_limits(void) {
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (!take_device(limits[i].fits.shared_bytes)) continue;
        check_fits(&limits[i].fits, 1 + limits[i].fits.locality, 400, i);
        check_refused(&limits[i].refused);
    }
}

/* Several blocks, tiles behind the first, and few warps. */
static void test_many_ids(void) {
    static const shape shapes[] = {{HOPPER, 2240, 2240, 320, 1}, {SMALL, 256, 512, 64, 1}};
    for (int i = 0; i < 2; i++)
        if (take_device(shapes[i].shared_bytes)) check_fits(&shapes[i], 1, 20000, (uint64_t)i);
}

#ifdef LPLB_CUDA_EMULATED
static void test_no_gpu(void) {
    world w;
    lplb_cuda_planner *planner = NULL;
    world_create_on(draw_placement(8, 12, 4, 1), 1, 16, &w);
    emulated_driver(0);
    CHECK(make(&w, 0, &planner) == LPLB_DEVICE && strstr(lplb_error_message(), "lplb doctor"),
          "without a driver: %s", lplb_error_message());
    emulated_driver(1);
    world_destroy(&w);
}
#endif

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"promise", test_promise},
                              {"smaller", test_smaller},
                              {"limits", test_limits},
#ifdef LPLB_CUDA_EMULATED
                              {"no_gpu", test_no_gpu},
#endif
                              {"many_ids", test_many_ids}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
