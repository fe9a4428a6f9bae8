/* Communicators: the shared-memory transport among real processes, and what every transport gets
 * from lplb_comm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <lplb/lplb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"

enum { BYTES = 4096, MOST_RANKS = 5 };
#define SECOND INT64_C(1000000000)

/* In a child: no cmocka, its exit code says where it failed. */
#define NEED(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "rank %d: %s:%d: %s (%s)\n", rank, __FILE__, __LINE__, #condition,     \
                    lplb_error_message());                                                         \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static void nap(int64_t us) {
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

static char job[64]; /* a name that nobody else uses */

static void new_job(void) {
    static int number;
    snprintf(job, sizeof job, "test-%ld-%lld-%d", (long)getpid(), (long long)lplb__now_ns(),
             number++);
}

static bool job_is_left(void) {
    char path[80];
    snprintf(path, sizeof path, "/lplb-%s", job);
    int file = shm_open(path, O_RDWR, 0);
    if (file >= 0) close(file);
    return file >= 0 || errno != ENOENT;
}

/* Runs body(rank, ranks) in `ranks` processes; the children's exit codes. */
static void run_ranks(int (*body)(int rank, int ranks), int ranks, const int *expected) {
    new_job();
    pid_t child[MOST_RANKS];
    for (int r = 0; r < ranks; r++) {
        child[r] = fork();
        assert_true(child[r] >= 0);
        if (child[r] == 0) {
            alarm(60);
            _exit(body(r, ranks));
        }
    }
    for (int r = 0; r < ranks; r++) {
        int status;
        assert_int_equal(waitpid(child[r], &status, 0), child[r]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), expected ? expected[r] : 0);
    }
    assert_false(job_is_left());
}

/* ---- the shared-memory transport ---- */

static int gather_many(int rank, int ranks) {
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, 0, &comm) == LPLB_OK);
    NEED(lplb_comm_rank(comm) == rank && lplb_comm_ranks(comm) == ranks);
    NEED(strcmp(lplb_comm_transport_name(comm), "shm") == 0);
    static unsigned char send[BYTES], receive[MOST_RANKS][BYTES];
    lplb__rng common, lag;
    lplb__rng_seed(&common, 7, 0);
    lplb__rng_seed(&lag, 7, (uint64_t)rank + 1);
    for (int step = 0; step < 2000; step++) {
        int64_t bytes = 1 + (int64_t)lplb__rng_below(&common, BYTES);
        for (int64_t i = 0; i < bytes; i++) send[i] = (unsigned char)(step * 7 + rank * 31 + i);
        if (lplb__rng_below(&lag, 200) == 0) nap(300); /* one rank is late now and then */
        unsigned char *out = &receive[0][0];
        NEED(lplb_comm_all_gather(comm, send, out, bytes) == LPLB_OK);
        for (int r = 0; r < ranks; r++)
            for (int64_t i = 0; i < bytes; i++)
                NEED(out[r * bytes + i] == (unsigned char)(step * 7 + r * 31 + i));
    }
    lplb_comm_destroy(comm);
    return 0;
}

static void test_shm_gathers(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= MOST_RANKS; ranks += 2) run_ranks(gather_many, ranks, NULL);
}

/* The last rank leaves without a word after some steps (as if killed): the others time out, are
 * dead from then on, and say who was missing. */
static int lose_one(int rank, int ranks) {
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, SECOND / 2, &comm) == LPLB_OK);
    int64_t mine = rank, all[MOST_RANKS];
    for (int step = 0; step < 10; step++)
        NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_OK);
    if (rank == ranks - 1) _exit(3);
    int64_t begin = lplb__now_ns();
    lplb_status status = lplb_comm_all_gather(comm, &mine, all, sizeof mine);
    int64_t took = lplb__now_ns() - begin;
    /* whoever gave up first has said that it leaves */
    NEED(status == LPLB_TIMEOUT || status == LPLB_REMOTE);
    NEED(took > SECOND / 4 && took < 10 * SECOND);
    if (status == LPLB_TIMEOUT) NEED(strstr(lplb_error_message(), "rank(s) 2 did not call"));
    NEED(lplb_comm_state(comm) == status);
    begin = lplb__now_ns();
    NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_REMOTE);
    NEED(strstr(lplb_error_message(), "dead"));
    NEED(lplb__now_ns() - begin < SECOND / 4);
    lplb_comm_destroy(comm);
    return 0;
}

static void test_shm_loses_a_rank(void **state) {
    (void)state;
    run_ranks(lose_one, 3, (int[]){0, 0, 3});
}

/* A rank that destroys its communicator is missed at once, not after the timeout; what it gave
 * before still arrives. */
static int leave_early(int rank, int ranks) {
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, 30 * SECOND, &comm) == LPLB_OK);
    int64_t mine = rank, all[MOST_RANKS];
    if (rank != 0) nap(100000);
    NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_OK);
    if (rank != 0) {
        int64_t begin = lplb__now_ns();
        NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_REMOTE);
        NEED(lplb__now_ns() - begin < 10 * SECOND);
        NEED(strstr(lplb_error_message(), "has left"));
    }
    lplb_comm_destroy(comm);
    return 0;
}

/* What a forked child destroys is not its parent's. */
static int fork_and_go_on(int rank, int ranks) {
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, 5 * SECOND, &comm) == LPLB_OK);
    int64_t mine = rank, all[MOST_RANKS];
    pid_t child = fork();
    if (child == 0) {
        lplb_comm_destroy(comm);
        _exit(0);
    }
    NEED(child > 0 && waitpid(child, NULL, 0) == child);
    NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_OK);
    NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_OK);
    lplb_comm_destroy(comm);
    return 0;
}

static void test_shm_forked(void **state) {
    (void)state;
    run_ranks(fork_and_go_on, 3, NULL);
}

static void test_shm_leaving(void **state) {
    (void)state;
    run_ranks(leave_early, 3, NULL);
}

static int join_short_handed(int rank, int ranks) {
    lplb_comm *comm;
    if (rank == 1) return 0; /* never comes */
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, SECOND / 2, &comm) == LPLB_TIMEOUT);
    NEED(comm == NULL && strstr(lplb_error_message(), "joined"));
    return 0;
}

static void test_shm_joining_times_out(void **state) {
    (void)state;
    run_ranks(join_short_handed, 3, NULL);
}

static int join_differently(int rank, int ranks) {
    lplb_comm *comm;
    int64_t bytes = rank == 0 ? BYTES : 2 * BYTES;
    if (rank == 1) nap(100000);
    lplb_status status = lplb_comm_create_shm(job, rank, ranks, bytes, SECOND / 2, &comm);
    NEED(status == (rank == 0 ? LPLB_TIMEOUT : LPLB_DISAGREE));
    return 0;
}

static int join_twice(int rank, int ranks) {
    lplb_comm *comm;
    if (rank == 1) nap(100000);
    lplb_status status = lplb_comm_create_shm(job, 0, ranks, BYTES, SECOND / 2, &comm);
    NEED(status == (rank == 0 ? LPLB_TIMEOUT : LPLB_INVALID));
    return 0;
}

static void test_shm_joining_wrongly(void **state) {
    (void)state;
    run_ranks(join_differently, 2, NULL);
    run_ranks(join_twice, 2, NULL);
    lplb_comm *comm;
    char longest[256];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(lplb_comm_create_shm(longest, 0, 1, BYTES, 0, &comm), LPLB_INVALID);
    assert_int_equal(lplb_comm_create_shm("a/b", 0, 1, BYTES, 0, &comm), LPLB_INVALID);
    assert_int_equal(lplb_comm_create_shm("", 0, 1, BYTES, 0, &comm), LPLB_INVALID);
    assert_int_equal(lplb_comm_create_shm(NULL, 0, 1, BYTES, 0, &comm), LPLB_INVALID);
    assert_int_equal(lplb_comm_create_shm("a", 1, 1, BYTES, 0, &comm), LPLB_RANGE);
    assert_int_equal(lplb_comm_create_shm("a", -1, 1, BYTES, 0, &comm), LPLB_RANGE);
    assert_int_equal(lplb_comm_create_shm("a", 0, 1, 8, 0, &comm), LPLB_RANGE);
    assert_null(comm);
}

static int disagree_on_bytes(int rank, int ranks) {
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, SECOND, &comm) == LPLB_OK);
    int64_t mine[2] = {0}, all[2 * MOST_RANKS];
    lplb_status status =
        lplb_comm_all_gather(comm, mine, all, rank == 0 ? sizeof mine : sizeof mine[0]);
    NEED(status == LPLB_DISAGREE || status == LPLB_REMOTE);
    NEED(lplb_comm_state(comm) == status);
    lplb_comm_destroy(comm);
    return 0;
}

static void test_shm_unequal_bytes(void **state) {
    (void)state;
    run_ranks(disagree_on_bytes, 2, NULL);
}

/* ---- counts and agreement ---- */

static int share_counts(int rank, int ranks) {
    enum { E = 100 };
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, LPLB_COMM_COUNTS_BYTES(E), 0, &comm) == LPLB_OK);
    int64_t counts[E], all[MOST_RANKS][E];
    for (int step = 0; step < 100; step++) {
        for (int e = 0; e < E; e++) /* rank 1 has no tokens */
            counts[e] = rank == 1 ? 0 : (int64_t)rank << 40 | (step * E + e);
        NEED(lplb_comm_gather_counts(comm, 5, counts, E, &all[0][0]) == LPLB_OK);
        for (int r = 0; r < ranks; r++)
            for (int e = 0; e < E; e++)
                NEED(all[r][e] == (r == 1 ? 0 : (int64_t)r << 40 | (step * E + e)));
    }
    /* another placement on one rank: everybody hears of it, and it can be mended */
    uint64_t tag = rank == 2 ? 6 : 5;
    NEED(lplb_comm_gather_counts(comm, tag, counts, E, &all[0][0]) == LPLB_DISAGREE);
    NEED(strstr(lplb_error_message(), rank == 2 ? "rank(s) 0, 1" : "rank(s) 2"));
    NEED(lplb_comm_state(comm) == LPLB_OK);
    NEED(lplb_comm_gather_counts(comm, 5, counts, E, &all[0][0]) == LPLB_OK);
    NEED(lplb_comm_gather_counts(comm, 5, counts, E + 1, &all[0][0]) == LPLB_RANGE);
    /* a rank that refuses its batch takes part all the same: nobody plans, the next call is good */
    for (int r = 0; r < ranks; r++) {
        const int64_t *mine = rank == r ? NULL : counts;
        NEED(lplb_comm_gather_counts(comm, 5, mine, E, &all[0][0]) == LPLB_REMOTE);
        char who[32];
        snprintf(who, sizeof who, "rank(s) %d refused", r);
        NEED(strstr(lplb_error_message(), who) && lplb_comm_state(comm) == LPLB_OK);
        counts[0] = 10 * r + rank;
        NEED(lplb_comm_gather_counts(comm, 5, counts, E, &all[0][0]) == LPLB_OK);
        for (int q = 0; q < ranks; q++) NEED(all[q][0] == 10 * r + q);
    }
    lplb_comm_destroy(comm);
    return 0;
}

static int agree(int rank, int ranks) {
    lplb_comm *comm;
    NEED(lplb_comm_create_shm(job, rank, ranks, BYTES, 0, &comm) == LPLB_OK);
    const char *item[] = {"experts", "solver"}, *value[] = {"256", "exact"};
    NEED(lplb_comm_agree(comm, item, value, 2) == LPLB_OK);
    if (rank == 1) value[1] = "even";
    NEED(lplb_comm_agree(comm, item, value, 2) == LPLB_DISAGREE);
    NEED(strstr(lplb_error_message(), "rank(s) 1 do not agree with rank 0 about solver"));
    NEED(lplb_comm_agree(comm, item, value, rank == 0 ? 2 : 1) == LPLB_DISAGREE);
    NEED(lplb_comm_agree(comm, item, value, 1) == LPLB_OK);
    lplb_comm_destroy(comm);
    return 0;
}

static void test_counts_and_agreement(void **state) {
    (void)state;
    run_ranks(share_counts, 3, NULL);
    run_ranks(agree, 3, NULL);
}

/* ---- a transport of one's own, and one rank alone ---- */

typedef struct own_transport {
    lplb_status answer;
    int calls, destroyed;
    int64_t timeout_ns;
} own_transport;

static lplb_status own_gather(void *state, const void *send, void *receive, int64_t bytes,
                              int64_t timeout_ns, char *message, size_t message_bytes) {
    own_transport *own = state;
    own->calls++;
    own->timeout_ns = timeout_ns;
    for (int r = 0; r < 2; r++) memcpy((char *)receive + r * bytes, send, (size_t)bytes);
    if (own->answer != LPLB_OK) snprintf(message, message_bytes, "the cable is cut");
    return own->answer;
}

static void own_destroy(void *state) { ((own_transport *)state)->destroyed++; }

static void test_own_transport(void **state) {
    (void)state;
    own_transport own = {.answer = LPLB_OK};
    lplb_transport t = {.struct_size = sizeof t,
                        .name = "own",
                        .rank = 1,
                        .ranks = 2,
                        .max_bytes = 1024,
                        .state = &own,
                        .all_gather = own_gather,
                        .destroy = own_destroy};
    lplb_comm *comm;
    assert_int_equal(lplb_comm_create(&t, 5, &comm), LPLB_OK);
    int64_t counts[3] = {1, 2, 3}, all[6];
    assert_int_equal(lplb_comm_gather_counts(comm, 1, counts, 3, all), LPLB_OK);
    assert_memory_equal(all, counts, sizeof counts);
    assert_memory_equal(all + 3, counts, sizeof counts);
    assert_int_equal(own.timeout_ns, 5);
    own.answer = LPLB_TIMEOUT;
    assert_int_equal(lplb_comm_gather_counts(comm, 1, counts, 3, all), LPLB_TIMEOUT);
    assert_string_equal(lplb_error_message(), "own: the cable is cut");
    own.answer = LPLB_OK;
    assert_int_equal(lplb_comm_gather_counts(comm, 1, counts, 3, all), LPLB_REMOTE);
    assert_non_null(strstr(lplb_error_message(), "the cable is cut")); /* who it was stays known */
    assert_int_equal(own.calls, 2);
    assert_int_equal(lplb_comm_all_gather(comm, counts, all, 0), LPLB_RANGE);
    assert_int_equal(lplb_comm_all_gather(comm, counts, all, 1025), LPLB_RANGE);
    lplb_comm_destroy(comm);
    assert_int_equal(own.destroyed, 1);
    t.max_bytes = 8;
    assert_int_equal(lplb_comm_create(&t, 0, &comm), LPLB_RANGE);
    t.struct_size = 1;
    assert_int_equal(lplb_comm_create(&t, 0, &comm), LPLB_INVALID);
    assert_int_equal(own.destroyed, 1);
}

static void test_alone(void **state) {
    (void)state;
    lplb_comm *comm;
    assert_int_equal(lplb_comm_create_local(&comm), LPLB_OK);
    assert_int_equal(lplb_comm_ranks(comm), 1);
    int64_t counts[2] = {4, 5}, all[2];
    assert_int_equal(lplb_comm_gather_counts(comm, 0, counts, 2, all), LPLB_OK);
    assert_memory_equal(all, counts, sizeof counts);
    const char *item = "x", *value = "y";
    assert_int_equal(lplb_comm_agree(comm, &item, &value, 1), LPLB_OK);
    lplb_comm_destroy(comm);
    lplb_comm_destroy(NULL);
    assert_int_equal(lplb_comm_all_gather(NULL, counts, all, 8), LPLB_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shm_gathers),           cmocka_unit_test(test_shm_loses_a_rank),
        cmocka_unit_test(test_shm_leaving),           cmocka_unit_test(test_shm_forked),
        cmocka_unit_test(test_shm_joining_times_out), cmocka_unit_test(test_shm_joining_wrongly),
        cmocka_unit_test(test_shm_unequal_bytes),     cmocka_unit_test(test_counts_and_agreement),
        cmocka_unit_test(test_own_transport),         cmocka_unit_test(test_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
