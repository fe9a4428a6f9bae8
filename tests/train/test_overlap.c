/* Sums of gradients start during the backward: seen by the order of the transfers, which a group
 * that keeps a log writes down. Whether they do, and in what buckets, changes no bit of the
 * training. Run under mpirun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/mem.h"
#include "fixture.h"

enum { LAYERS = 3, SEQUENCES = 8, STEPS = 5, LOG = 4096 };

/* ---- a group that keeps a log ---- */

/* X: rows exchanged, as the experts do, two a layer in the forward and two in the backward; S: a
 * sum started; R: rows started; W: something waited for. */
static char entry[LOG + 1];
static int entries;

static void note(char what) {
    if (entries < LOG) entry[entries++] = what;
}

typedef struct spy {
    lplb__group base;
    lplb__group *behind;
} spy;

static lplb__group *real_of(lplb__group *g) { return ((spy *)g)->behind; }

static lplb_status spy_barrier(lplb__group *g) { return real_of(g)->table->barrier(real_of(g)); }
static lplb_status spy_broadcast(lplb__group *g, void *data, int64_t bytes, int root) {
    return real_of(g)->table->broadcast(real_of(g), data, bytes, root);
}
static lplb_status spy_gather(lplb__group *g, const void *mine, void *all, int64_t bytes) {
    return real_of(g)->table->all_gather(real_of(g), mine, all, bytes);
}
static lplb_status spy_sum(lplb__group *g, void *data, int64_t count, lplb__element element) {
    return real_of(g)->table->all_reduce_sum(real_of(g), data, count, element);
}
static lplb_status spy_rows(lplb__group *g, const void *send, const int64_t *send_rows, void *recv,
                            const int64_t *recv_rows, int64_t row_bytes) {
    note('X');
    return real_of(g)->table->all_to_all_rows(real_of(g), send, send_rows, recv, recv_rows,
                                              row_bytes);
}
static lplb_status spy_start_sum(lplb__group *g, void *data, int64_t count, lplb__element element,
                                 lplb__request **request) {
    note('S');
    return real_of(g)->table->start_all_reduce_sum(real_of(g), data, count, element, request);
}
static lplb_status spy_start_rows(lplb__group *g, const void *send, const int64_t *send_rows,
                                  void *recv, const int64_t *recv_rows, int64_t row_bytes,
                                  lplb__request **request) {
    note('R');
    return real_of(g)->table->start_all_to_all_rows(real_of(g), send, send_rows, recv, recv_rows,
                                                    row_bytes, request);
}
static lplb_status spy_progress(lplb__group *g, lplb__request *request, int *done) {
    return real_of(g)->table->progress(real_of(g), request, done);
}
static lplb_status spy_wait(lplb__group *g, lplb__request *request) {
    note('W');
    return real_of(g)->table->wait(real_of(g), request);
}
static lplb__group *spy_on(lplb__group *behind);
static lplb_status spy_split(lplb__group *g, int colour, lplb__group **out) {
    lplb__group *part;
    LPLB_TRY(real_of(g)->table->split(real_of(g), colour, &part));
    *out = spy_on(part);
    return LPLB_OK;
}
static void spy_destroy(lplb__group *g) {
    real_of(g)->table->destroy(real_of(g));
    lplb__free(g);
}

static lplb__group *spy_on(lplb__group *behind) {
    static const lplb__group_table table = {
        "spy",         spy_barrier,    spy_broadcast, spy_gather, spy_sum,   spy_rows,
        spy_start_sum, spy_start_rows, spy_progress,  spy_wait,   spy_split, spy_destroy};
    spy *s;
    must(LPLB_CALLOC(s, 1));
    s->base = (lplb__group){&table, behind->rank, behind->size};
    s->behind = behind;
    return &s->base;
}

/* ---- tests ---- */

static trainer_config config_of(void) {
    trainer_config c = small_config(STEPS, SEQUENCES);
    c.model.layers = LAYERS;
    c.micro_batch = SEQUENCES / world->size;
    c.redundant = 1;
    c.bucket_items = 1000;
    return c;
}

/* Place in the log of the n-th X from the end. */
static int exchange(int from_end) {
    int at = entries;
    while (at > 0 && from_end >= 0)
        if (entry[--at] == 'X') from_end--;
    assert_true(from_end < 0);
    return at;
}

static int count(char what, int from, int to) {
    int n = 0;
    for (int i = from; i < to; i++) n += entry[i] == what;
    return n;
}

static void take_step(const trainer_config *c) {
    trainer *t;
    step_report r;
    lplb__group *part, *watched;
    must(world->table->split(world, 0, &part));
    watched = spy_on(part);
    must(trainer_create(c, watched, &text, &t));
    entries = 0;
    must(trainer_step(t, &r));
    trainer_destroy(t);
    watched->table->destroy(watched);
}

static void test_order(void **state) {
    (void)state;
    trainer_config c = config_of();
    take_step(&c);
    assert_int_equal(count('X', 0, entries), 4 * LAYERS);
    /* the backward of layer l begins its first exchange at the (2 l + 1)-th from the end */
    int last = exchange(2 * LAYERS - 1), first = exchange(1), end = exchange(0);
    assert_int_equal(count('S', 0, last), 0); /* the head is smaller than a bucket here */
    for (int l = LAYERS - 1; l > 0; l--) {
        int begun = exchange(2 * l + 1), next = exchange(2 * l - 1);
        assert_true(count('S', begun, next) >= 1);                      /* this layer's buckets */
        if (world->size > 1) assert_true(count('R', begun, next) >= 1); /* its experts' copies */
    }
    assert_true(count('S', last, first) >= LAYERS - 1);
    assert_true(count('S', end, entries) >= 1); /* the embedding comes last */

    c.overlap = 0;
    take_step(&c);
    assert_int_equal(count('S', 0, exchange(0)), 0);
    assert_int_equal(count('R', 0, exchange(0)), 0);
    assert_int_equal(count('W', 0, exchange(0)), 0);
    assert_true(count('S', exchange(0), entries) > LAYERS);
}

static void train(const trainer_config *c, double *loss, double *norm) {
    trainer *t;
    must(trainer_create(c, world, &text, &t));
    for (int i = 0; i < STEPS; i++) {
        step_report r;
        must(trainer_step(t, &r));
        loss[i] = r.loss;
        norm[i] = r.grad_norm;
    }
    trainer_destroy(t);
}

static void test_same_bits(void **state) {
    (void)state;
    static const int64_t bucket[] = {1, 777, 1000, 1 << 18};
    double loss[STEPS], norm[STEPS], other[STEPS], other_norm[STEPS];
    trainer_config c = config_of();
    c.overlap = 0;
    if (world->size > 1) c.expert_ranks = world->size / 2; /* replicas too */
    if (world->size < SEQUENCES) c.micro_batch /= 2;       /* only the last backward sums */
    train(&c, loss, norm);
    c.overlap = 1;
    for (int i = world->size > 1; i < 4; i++) { /* one number at a time is slow between ranks */
        c.bucket_items = bucket[i];
        train(&c, other, other_norm);
        assert_memory_equal(loss, other, sizeof loss);
        assert_memory_equal(norm, other_norm, sizeof norm);
    }
    c.bucket_items = 0;
    trainer *t;
    assert_int_equal(trainer_create(&c, world, &text, &t), LPLB_INVALID);
}

static int run_all(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv) { return run_on_ranks(argc, argv, run_all); }
