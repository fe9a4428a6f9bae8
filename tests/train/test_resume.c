/* Checkpoints: resuming gives the bits that never stopping gives, another number of ranks goes on
 * within rounding, and what is damaged or of another model is refused with its files left alone.
 * Run under mpirun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixture.h"
#include "train/checkpoint.h"
#include "train/generate.h"

enum { STEPS = 14, STOP = 7, SEQUENCES = 8, PATH_SIZE = 300 };

static char folder[200];

static trainer_config config_of(int ranks) {
    trainer_config c = small_config(STEPS, SEQUENCES);
    c.micro_batch = SEQUENCES / ranks;
    c.redundant = ranks > 1;
    c.mode = ranks > 1 ? MODE_EPLB : MODE_NONE;
    c.rebalance_every = 5;
    c.model.router = ROUTER_SIGMOID;
    c.model.bias_rate = 1e-2;
    return c;
}

static trainer *open_trainer(const trainer_config *c, lplb__group *group) {
    trainer *t;
    must(trainer_create(c, group, &text, &t));
    return t;
}

static void go_on(trainer *t, int64_t until, double *loss) {
    while (t->step < until) {
        step_report r;
        must(trainer_step(t, &r));
        loss[r.step] = r.loss;
    }
}

static void compare_weights(const trainer *a, const trainer *b) {
    assert_memory_equal(a->model->param, b->model->param,
                        sizeof(real) * (size_t)a->model->layout.items);
    const experts *x = a->model->experts, *y = b->model->experts;
    int64_t cells = (int64_t)x->placement->layers * x->placement->slots;
    assert_memory_equal(x->placement->physical_to_logical, y->placement->physical_to_logical,
                        sizeof(int32_t) * (size_t)cells);
    assert_memory_equal(
        x->weight, y->weight,
        sizeof(real) * (size_t)(x->placement->layers * (int64_t)x->local_slots * x->expert_items));
}

static char *read_file(const char *in, const char *name, size_t *bytes) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", in, name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

/* Both save; the files are the same bytes, checksum of the manifest included. */
static void compare_checkpoints(trainer *a, trainer *b) {
    static const char *const names[] = {"step-00000014.safetensors", "latest.json"};
    char at[2][sizeof folder + 8];
    for (int i = 0; i < 2; i++) {
        snprintf(at[i], sizeof at[i], "%s/%d", folder, i);
        must(checkpoint_save(i ? b : a, at[i]));
    }
    for (int i = 0; i < 2 && world->rank == 0; i++) {
        size_t n[2];
        char *data[2];
        for (int k = 0; k < 2; k++) {
            char path[2 * PATH_SIZE];
            data[k] = read_file(at[k], names[i], &n[k]);
            snprintf(path, sizeof path, "%s/%s", at[k], names[i]);
            remove(path);
            if (i) rmdir(at[k]);
        }
        assert_int_equal(n[0], n[1]);
        assert_memory_equal(data[0], data[1], n[0]);
        free(data[0]);
        free(data[1]);
    }
    world->table->barrier(world);
}

/* Stopped after any step: with a placement being computed, with experts on their way, between. */
static void test_resume(void **state) {
    (void)state;
    trainer_config c = config_of(world->size);
    double straight[STEPS];
    int staged = 0, pending = 0;
    trainer *a = open_trainer(&c, world), *b = open_trainer(&c, world);
    go_on(a, STEPS, straight);
    for (int stop = 1; stop <= STOP; stop++) {
        double resumed[STEPS];
        lplb_manager_stats stats = {0};
        go_on(b, stop, resumed);
        if (b->balancer) lplb_manager_get_stats(b->balancer->manager, &stats);
        staged += b->balancer && b->balancer->mover->layer >= 0;
        pending += stats.pending;
        must(checkpoint_save(b, folder));
        trainer *d = open_trainer(&c, world);
        if (stop % 2) go_on(d, 4, resumed); /* into a trainer with moves of its own under way */
        must(checkpoint_load(d, folder, 0, true, NULL));
        assert_int_equal(d->step, stop);
        go_on(d, STEPS, resumed);
        for (int i = stop; i < STEPS; i++) assert_true(straight[i] == resumed[i]);
        compare_weights(a, d);
        compare_checkpoints(a, d);
        trainer_destroy(d);
    }
    if (world->size > 1) assert_true(staged > 0 && pending > staged);
    trainer_destroy(a);
    trainer_destroy(b);
}

/* The checkpoint that test_resume left, on one rank. */
static void test_other_ranks(void **state) {
    (void)state;
    trainer_config many = config_of(world->size), one = config_of(1);
    double together[STEPS], alone[STEPS];
    lplb__group *self;
    must(lplb__group_self(&self));
    trainer *t = open_trainer(&many, world), *u = open_trainer(&one, self);
    must(checkpoint_load(t, folder, 0, true, NULL));
    must(checkpoint_load(u, folder, 0, true, NULL));
    go_on(t, STEPS, together);
    go_on(u, STEPS, alone);
    for (int i = STOP; i < STEPS; i++)
        if (fabs(together[i] - alone[i]) > 1e-9 * alone[i])
            fail_msg("step %d: %.15g on %d ranks, %.15g on one", i, together[i], world->size,
                     alone[i]);
    trainer_destroy(t);
    trainer_destroy(u);
    self->table->destroy(self);
}

/* ---- damage ---- */

static char *read_whole(const char *name, size_t *bytes) { return read_file(folder, name, bytes); }

static void write_whole(const char *name, const char *data, size_t bytes) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

static void expect_refusal(trainer *t, lplb_status wanted, const char *word) {
    lplb_status status = checkpoint_load(t, folder, 0, true, NULL);
    assert_int_equal(status, wanted);
    if (!strstr(lplb_error_message(), word)) fail_msg("'%s'", lplb_error_message());
}

/* The one before is named, and taken if one asks for it; a folder whose manifest is lost is no
 * empty folder. */
static void check_older(trainer *t, const char *name, const char *data, size_t bytes) {
    char older[64];
    size_t older_bytes;
    int64_t latest;
    snprintf(older, sizeof older, "step-%08d.safetensors", STOP - 1);
    char *whole = read_whole(older, &older_bytes);
    write_whole(name, data, bytes - 1);
    expect_refusal(t, LPLB_FORMAT, "whole checkpoint is of step 6: --checkpoint-step 6");
    must(checkpoint_load(t, folder, STOP - 1, true, NULL));
    assert_int_equal(t->step, STOP - 1);
    whole[older_bytes / 2] ^= 1;
    write_whole(older, whole, older_bytes);
    expect_refusal(t, LPLB_FORMAT, "no other checkpoint");
    assert_int_equal(checkpoint_load(t, folder, STOP - 1, true, NULL), LPLB_FORMAT);
    whole[older_bytes / 2] ^= 1;
    write_whole(older, whole, older_bytes);
    write_whole(name, data, bytes);
    size_t manifest_bytes;
    char *manifest = read_whole("latest.json", &manifest_bytes), path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/latest.json", folder);
    remove(path);
    expect_refusal(t, LPLB_FORMAT, "no latest.json; the newest whole checkpoint is of step 7");
    assert_int_equal(checkpoint_latest(folder, &latest), LPLB_FORMAT);
    write_whole("latest.json", manifest, manifest_bytes);
    free(manifest);
    free(whole);
}

/* One rank alone: damage is found before any collective. */
static void test_damage(void **state) {
    (void)state;
    lplb__group *self;
    trainer_config c = config_of(1);
    world->table->barrier(world);
    if (world->rank == 0) {
        char name[64], other[PATH_SIZE];
        size_t bytes, manifest_bytes;
        snprintf(name, sizeof name, "step-%08d.safetensors", STOP);
        must(lplb__group_self(&self));
        trainer *t = open_trainer(&c, self);
        char *data = read_whole(name, &bytes),
             *manifest = read_whole("latest.json", &manifest_bytes);
        write_whole(name, data, bytes - 100);
        expect_refusal(t, LPLB_FORMAT, "checksum");
        write_whole(name, data, 5);
        expect_refusal(t, LPLB_FORMAT, "cut short");
        for (size_t at = 0; at < bytes; at += bytes / 9 + 1) { /* single bits anywhere */
            data[at] ^= 4;
            write_whole(name, data, bytes);
            assert_int_not_equal(checkpoint_load(t, folder, 0, true, NULL), LPLB_OK);
            data[at] ^= 4;
        }
        write_whole(name, data, bytes);
        check_older(t, name, data, bytes);
        write_whole("latest.json", "{", 1);
        assert_int_not_equal(checkpoint_load(t, folder, 0, true, NULL), LPLB_OK);
        static const char outside[] = "{\"file\":\"../x\",\"step\":1,\"crc32\":1}";
        write_whole("latest.json", outside, sizeof outside - 1);
        assert_int_not_equal(checkpoint_load(t, folder, 0, true, NULL), LPLB_OK);
        write_whole("latest.json", manifest, manifest_bytes);
        must(checkpoint_load(t, folder, 0, true, NULL));
        /* a failed save changes nothing: here the folder is a file */
        snprintf(other, sizeof other, "%s/latest.json", folder);
        assert_int_equal(checkpoint_save(t, other), LPLB_IO);
        must(checkpoint_load(t, folder, 0, true, NULL));
        trainer_destroy(t);
        c.model.heads = c.model.kv_heads = 4; /* same tensors, another function */
        t = open_trainer(&c, self);
        expect_refusal(t, LPLB_FORMAT, "another model");
        trainer_destroy(t);
        c.model.experts = 4;
        t = open_trainer(&c, self);
        expect_refusal(t, LPLB_FORMAT, "another model");
        trainer_destroy(t);
        self->table->destroy(self);
        free(data);
        free(manifest);
    }
    world->table->barrier(world);
}

/* A loss that is not a number stops the step before any weight changes. */
static void test_not_a_number(void **state) {
    (void)state;
    trainer_config c = config_of(world->size);
    trainer *t = open_trainer(&c, world);
    step_report r;
    t->model->param[t->model->layout.final_norm] = (real)NAN;
    real before = t->model->param[t->model->layout.head];
    assert_int_equal(trainer_step(t, &r), LPLB_CHECK_FAILED);
    assert_non_null(strstr(lplb_error_message(), "step 0"));
    assert_true(t->model->param[t->model->layout.head] == before);
    assert_int_equal(t->step, 0);
    t->failed = false; /* all ranks have stopped there: nothing is under way */
    trainer_destroy(t);
}

/* Text continues its prompt, is a function of the seed, and longer than the context. */
static void test_generate(void **state) {
    (void)state;
    lplb__group *self;
    trainer_config c = config_of(1);
    char *first = NULL, *again = NULL;
    size_t bytes;
    must(lplb__group_self(&self));
    trainer *t = open_trainer(&c, self);
    must(checkpoint_load(t, folder, 0, true, NULL));
    FILE *out = open_memstream(&first, &bytes);
    must(generate_text(t, "abc", 60, 0.8, 3, out));
    fclose(out);
    out = open_memstream(&again, &bytes);
    must(generate_text(t, "abc", 60, 0.8, 3, out));
    fclose(out);
    assert_string_equal(first, again);
    assert_memory_equal(first, "abc", 3);
    assert_true(bytes <= 3 + 60 + 1);
    free(again);
    out = open_memstream(&again, &bytes);
    assert_int_equal(generate_text(t, "", 5, 0.8, 3, out), LPLB_INVALID);
    fclose(out);
    free(again);
    free(first);
    trainer_destroy(t);
    self->table->destroy(self);
}

static void make_folder(void) {
    const char *base = getenv("TMPDIR");
    if (world->rank == 0) {
        snprintf(folder, sizeof folder, "%.150s/lplb-resume-XXXXXX", base ? base : "/tmp");
        if (!mkdtemp(folder)) lplb__group_mpi_abort(1);
    }
    if (world->table->broadcast(world, folder, sizeof folder, 0) != LPLB_OK)
        lplb__group_mpi_abort(1);
}

static void remove_folder(void) {
    char path[PATH_SIZE];
    if (world->rank != 0) return;
    for (int step = STOP - 1; step <= STOP; step++) {
        snprintf(path, sizeof path, "%s/step-%08d.safetensors", folder, step);
        remove(path);
    }
    snprintf(path, sizeof path, "%s/latest.json", folder);
    remove(path);
    rmdir(folder);
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume),   cmocka_unit_test(test_other_ranks),
        cmocka_unit_test(test_damage),   cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_generate),
    };
    make_folder();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (!failed) world->table->barrier(world);
    remove_folder();
    return failed;
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
