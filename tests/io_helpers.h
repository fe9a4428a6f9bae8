/* What the tests of readers and writers share. */
#ifndef LPLB_TESTS_IO_HELPERS_H
#define LPLB_TESTS_IO_HELPERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/trace.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "io/trace_build.h"

#define UNUSED __attribute__((unused))

static UNUSED char folder[] = "/tmp/lplb-test-XXXXXX";

static UNUSED int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static UNUSED int remove_folder(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static UNUSED const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static UNUSED void expect_ok(lplb_status status) {
    if (status != LPLB_OK) fail_msg("%s: %s", lplb_status_name(status), lplb_error_message());
}

static UNUSED void expect_failure(lplb_status status, lplb_status wanted, const char *part) {
    if (status != wanted || !strstr(lplb_error_message(), part))
        fail_msg("%s: '%s', wanted %s with '%s'", lplb_status_name(status), lplb_error_message(),
                 lplb_status_name(wanted), part);
}

/* A file of the folder with this text. */
static UNUSED const char *put_file(const char *name, const void *data, size_t bytes) {
    const char *path = in_folder(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
    return path;
}

/* ---- random traces ---- */

static UNUSED lplb_trace *random_trace(uint64_t seed, lplb_trace_kind kind) {
    lplb__rng rng;
    lplb__rng_seed(&rng, seed, 0);
    int64_t layers = 1 + lplb__rng_below(&rng, 5);
    int64_t experts =
        lplb__rng_below(&rng, 4) ? 1 + lplb__rng_below(&rng, 100) : 1 + lplb__rng_below(&rng, 1500);
    int64_t n = 1 + lplb__rng_below(&rng, 20), topk = 1 + lplb__rng_below(&rng, 6);
    lplb_trace *trace;
    if (kind == LPLB_TRACE_TOPK)
        expect_ok(lplb__trace_create_topk("random", n, layers, topk, NULL, &trace));
    else expect_ok(lplb__trace_create_counts("random", n, layers, experts, NULL, &trace));
    trace->experts = (int32_t)experts;
    bool gaps = lplb__rng_below(&rng, 2) == 0;
    for (int64_t i = 0; i < trace->tokens * layers * topk; i++)
        trace->topk_ids[i] =
            gaps && lplb__rng_below(&rng, 5) == 0 ? -1 : (int16_t)lplb__rng_below(&rng, experts);
    for (int64_t i = 0; i < trace->steps * layers * experts; i++)
        trace->counts[i] = lplb__rng_below(&rng, (int64_t)1 << (1 + lplb__rng_below(&rng, 45)));
    for (int32_t l = 0; l < layers; l++) trace->layer_id[l] = 3 + 2 * l;
    if (kind == LPLB_TRACE_TOPK && lplb__rng_below(&rng, 2)) {
        trace->sequences = 1 + lplb__rng_below(&rng, 4);
        trace->sequence_start = calloc((size_t)trace->sequences + 1, sizeof(int64_t));
        for (int64_t i = 1; i < trace->sequences; i++)
            trace->sequence_start[i] = trace->sequence_start[i - 1] +
                                       lplb__rng_below(&rng, n - trace->sequence_start[i - 1] + 1);
        trace->sequence_start[trace->sequences] = n;
    }
    return trace;
}

static UNUSED void assert_same(const lplb_trace *a, const lplb_trace *b) {
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->experts, b->experts);
    assert_int_equal(a->topk, b->topk);
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->steps, b->steps);
    assert_int_equal(a->sequences, b->sequences);
    size_t ids = (size_t)(a->tokens * a->layers * a->topk);
    size_t counts = (size_t)(a->steps * a->layers * a->experts);
    if (ids) assert_memory_equal(a->topk_ids, b->topk_ids, ids * sizeof *a->topk_ids);
    if (counts) assert_memory_equal(a->counts, b->counts, counts * sizeof *a->counts);
    assert_memory_equal(a->layer_id, b->layer_id, (size_t)a->layers * sizeof *a->layer_id);
    if (a->sequences)
        assert_memory_equal(a->sequence_start, b->sequence_start,
                            ((size_t)a->sequences + 1) * sizeof *a->sequence_start);
}

#endif
