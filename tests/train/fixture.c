#include "fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>

/* MPI unloads plugins that have leaked; kept, they have names for mpi_leaks.txt. */
__attribute__((visibility("default"))) int dlclose(void *handle);
int dlclose(void *handle) {
    (void)handle;
    return 0;
}
#endif

lplb__group *world;
corpus text;

void must(lplb_status status) {
    if (status != LPLB_OK) fail_msg("rank %d: %s", world->rank, lplb_error_message());
}

static void make_text(corpus *c) {
    lplb__rng rng;
    lplb__rng_seed(&rng, 11, 0);
    char document[600];
    for (int d = 0; d < 60; d++) {
        int64_t n = 100 + lplb__rng_below(&rng, 500), common = lplb__rng_below(&rng, 20);
        for (int64_t i = 0; i < n; i++) {
            double u = lplb__rng_uniform(&rng);
            document[i] = (char)('a' + (int64_t)(u * u * u * 25 + (double)common) % 26);
        }
        if (corpus_add(c, document, n) != LPLB_OK) lplb__group_mpi_abort(1);
    }
}

trainer_config small_config(int64_t steps, int64_t sequences) {
    trainer_config c;
    trainer_config_default(&c);
    c.model.layers = 2;
    c.model.width = 32;
    c.model.heads = 2;
    c.model.kv_heads = 2;
    c.model.context = 24;
    c.model.experts = 8;
    c.model.expert_width = 24;
    c.model.init_std = 0.1;
    c.optimizer.steps = steps;
    c.optimizer.warmup_steps = 3;
    c.optimizer.rate = 3e-3;
    c.global_batch = sequences;
    c.micro_batch = sequences;
    c.seed = 5;
    return c;
}

int run_on_ranks(int argc, char **argv, int (*run_all)(void)) {
    if (lplb__group_mpi_world(&argc, &argv, &world) != LPLB_OK) return 1;
    make_text(&text);
    int failed = run_all();
    corpus_destroy(&text);
    world->table->destroy(world);
    if (failed) lplb__group_mpi_abort(1); /* the others may be waiting */
#ifdef __SANITIZE_ADDRESS__
    __lsan_do_leak_check(); /* what is ours is freed; MPI's end is its own business */
#endif
    lplb__group_mpi_finish();
    return 0;
}
