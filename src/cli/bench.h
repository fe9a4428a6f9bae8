/* Timings behind `lplb bench`, through the public interface only. */
#ifndef LPLB_CLI_BENCH_H
#define LPLB_CLI_BENCH_H

#include <lplb/lplb.h>

typedef struct bench_shape {
    const char *name;
    int32_t ranks, experts, slots;
    const char *topology; /* "cube", ...; NULL = slots placed by EPLB */
} bench_shape;

typedef struct bench_options {
    double seconds;       /* spent on each measurement */
    double sigma;         /* of ln(load) over experts */
    int64_t batch_tokens; /* of each rank */
    int32_t topk, layers, threads;
    uint64_t seed;
} bench_options;

typedef struct bench_timing {
    int64_t runs;
    double p50_us, p99_us; /* nearest rank */
} bench_timing;

typedef struct bench_plan {
    bench_timing time;
    double imbalance; /* mean over the batches of max / mean load */
    int32_t worst;    /* largest lplb_outcome over the batches */
} bench_plan;

/* One solver ("exact", "ipm:published", ...) on batches of a shape; every run is another batch. */
lplb_status bench_solver(const bench_shape *shape, const bench_options *options, const char *solver,
                         bench_plan *out);

/* EPLB for options->layers layers; floor: copying what it reads and writes. */
lplb_status bench_eplb(const bench_shape *shape, const bench_options *options, bench_timing *eplb,
                       bench_timing *floor);

typedef struct bench_dispatch {
    int64_t ids;
    bench_timing count, prepare, map, floor; /* floor: copying the ids */
} bench_dispatch;
/* One rank's ids of one batch, int64, from counts to slots. */
lplb_status bench_dispatcher(const bench_shape *shape, const bench_options *options,
                             bench_dispatch *out);

#endif
