/* Steps on both sides: a placement, ids, and what the CPU makes of them. */
#ifndef LPLB_TESTS_CUDA_WORLD_H
#define LPLB_TESTS_CUDA_WORLD_H

#include <stdbool.h>

#include "gpu.h"

/* A placement, a batch of ids for every source, and what must become of them. */
typedef struct world {
    lplb_placement *placement;
    gpu_hosts hosts;
    int32_t sources;
    int64_t n;                /* ids a source */
    int64_t *ids, *slots;     /* [S][n] */
    int64_t *counts, *tokens; /* [S][E], [E] */
    int64_t *split, *loads;   /* [hosts], [G] */
    lplb_planner *planner;
    lplb_dispatcher *dispatcher;
    int64_t *device_counts; /* [S][E] */
} world;

/* Takes the placement over. */
void world_create_on(lplb_placement *placement, int32_t sources, int64_t n, world *w);
/* On the placement of a plan case; every `twice`-th host has two slots. */
void world_create(const char *shape, int32_t twice, int32_t sources, int64_t n, world *w);
void world_destroy(world *w);
/* Skewed ids, now and then none; then counts, plan and slots by the CPU. */
void world_draw(world *w, uint64_t seed);
lplb_cuda_planner *make_planner(const world *w, int32_t n_sms, double reuse);
lplb_cuda_problem problem_of(const world *w);

/* Ids and slots in device memory, of the given widths. */
typedef struct id_arrays {
    void *ids, *out;
    int64_t n;
    lplb_cuda_ids arguments;
} id_arrays;

void id_arrays_create(int64_t n, lplb_dtype in, lplb_dtype out, bool in_place, id_arrays *a);
void id_arrays_destroy(id_arrays *a);
void put_ids(id_arrays *a, const int64_t *ids);
void check_slots(const id_arrays *a, const int64_t *expected, int64_t n, const char *what);
/* Every id got a slot of its own expert. */
void check_valid(const world *w, const id_arrays *arrays, const char *what);
void check_report(lplb_cuda_planner *planner, const char *what);
/* Steps of up to `most` ids, each of tokens[i] tokens of 8, a number that lies on the device. */
void check_numbers_on_the_device(int64_t most, const int64_t *tokens, int n_tokens);
cudaGraphExec_t end_capture(cudaStream_t stream);
/* Some experts give a copy to others, which then have three: no longer pairs. */
lplb_placement *with_triples(const lplb_placement *from);

#endif
