/* What overlapping the sums of gradients with the backward brings: steps of one training with and
 * without, in turns, so that whatever else the machine does meets both.
 *   mpirun -np RANKS build/bench/train/bench_overlap [STEPS]
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/rng.h"
#include "comm/mpi/group_mpi.h"
#include "train/trainer.h"

enum { WARM_UP = 4 };

static lplb_status make_text(corpus *c) {
    lplb__rng rng;
    static char document[4000];
    lplb__rng_seed(&rng, 3, 0);
    for (int d = 0; d < 200; d++) {
        for (size_t i = 0; i < sizeof document; i++)
            document[i] = (char)('a' + (int)lplb__rng_below(&rng, 26));
        LPLB_TRY(corpus_add(c, document, sizeof document));
    }
    return LPLB_OK;
}

/* The model of examples/moe-small.yaml. */
static trainer_config config_of(const lplb__group *world, int64_t steps) {
    trainer_config c;
    trainer_config_default(&c);
    c.model.layers = 4;
    c.model.width = 128;
    c.model.heads = c.model.kv_heads = 4;
    c.model.context = 256;
    c.model.experts = 8;
    c.model.topk = 2;
    c.model.expert_width = 256;
    c.optimizer.steps = steps;
    c.optimizer.warmup_steps = 1;
    c.redundant = world->size > 1;
    c.global_batch = 2 * world->size; /* one micro-batch a rank: the sums weigh most */
    return c;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int64_t n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n ? (x[n / 2] + x[(n - 1) / 2]) / 2 : 0;
}

static lplb_status measure(lplb__group *world, int64_t steps) {
    corpus text = {0};
    trainer *t;
    double *seconds[2];
    int64_t n[2] = {0, 0};
    trainer_config c = config_of(world, steps);
    LPLB_TRY(make_text(&text));
    LPLB_TRY(LPLB_CALLOC(seconds[0], steps));
    LPLB_TRY(LPLB_CALLOC(seconds[1], steps));
    LPLB_TRY(trainer_create(&c, world, &text, &t));
    for (int64_t i = 0; i < steps; i++) {
        step_report r;
        int overlap = i / 2 % 2 == i % 2; /* 1 0 0 1: a trend meets both */
        t->reducer->overlap = overlap;
        LPLB_TRY(trainer_step(t, &r));
        if (i >= WARM_UP) seconds[overlap][n[overlap]++] = r.seconds;
    }
    double without = median(seconds[0], n[0]), with = median(seconds[1], n[1]);
    if (world->rank == 0)
        printf("%d ranks, medians of %lld and %lld steps: %.1f ms overlapped, %.1f ms not, ratio "
               "%.3f\n",
               world->size, (long long)n[1], (long long)n[0], 1e3 * with, 1e3 * without,
               with / without);
    trainer_destroy(t);
    corpus_destroy(&text);
    lplb__free(seconds[0]);
    lplb__free(seconds[1]);
    return LPLB_OK;
}

int main(int argc, char **argv) {
    lplb__group *world;
    int64_t steps = argc > 1 ? atoll(argv[1]) : 100;
    if (steps < 2 * WARM_UP) {
        fprintf(stderr, "bench_overlap: at least %d steps\n", 2 * WARM_UP);
        return 2;
    }
    lplb_status status = lplb__group_mpi_world(&argc, &argv, &world);
    if (status == LPLB_OK) status = measure(world, steps);
    if (status != LPLB_OK) {
        fprintf(stderr, "bench_overlap: %s\n", lplb_error_message());
        lplb__group_mpi_abort(1);
    }
    world->table->destroy(world);
    lplb__group_mpi_finish();
    return 0;
}
