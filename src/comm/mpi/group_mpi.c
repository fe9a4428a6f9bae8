/* Process groups over MPI. All-reduce is a reduce-scatter by all-to-all, a sum in rank order, and
 * an all-gather: 2 (n-1)/n of the bytes, like a ring, but every element is summed in the same order
 * whatever the chunks, so results do not depend on timing or algorithm choice of the MPI library.
 */
#include "comm/mpi/group_mpi.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"

typedef struct mpi_group {
    lplb__group base; /* first: a lplb__group points to it */
    MPI_Comm comm;
    MPI_Comm gathers;    /* the same members: second halves of all-reduces, see begin_gathers */
    lplb__request *rows; /* scratch of the row exchange */
    lplb__request *oldest, **newest; /* all-reduces in their first half, in order of their start */
} mpi_group;

typedef enum request_phase { PHASE_SCATTER, PHASE_LAST, PHASE_DONE } request_phase;

struct lplb__request {
    request_phase phase;
    MPI_Request request;
    int *counts, *starts, *counts2, *starts2; /* [size] */
    /* of an all-reduce */
    char *data, *pieces; /* pieces [size][mine] */
    int64_t mine;        /* elements of my chunk */
    lplb__element element;
    size_t item_bytes;
    lplb__request *next;
};

static bool started_here;
static MPI_Comm failures = MPI_COMM_NULL;

static lplb_status check(int error, const char *what) {
    if (error == MPI_SUCCESS) return LPLB_OK;
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(error, text, &length);
    return LPLB_FAIL(LPLB_REMOTE, "%s: %s", what, text);
}

static size_t bytes_of(lplb__element element) {
    switch (element) {
    case ELEMENT_BYTE: return 1;
    case ELEMENT_FLOAT: return 4;
    default: return 8;
    }
}

static MPI_Comm comm_of(lplb__group *group) { return ((mpi_group *)group)->comm; }

static lplb_status mpi_barrier(lplb__group *group) {
    return check(MPI_Barrier(comm_of(group)), "MPI_Barrier");
}

enum { PIECE_BYTES = 1 << 30 }; /* MPI counts are ints */

static lplb_status mpi_broadcast(lplb__group *group, void *data, int64_t bytes, int root) {
    for (int64_t at = 0; at < bytes; at += PIECE_BYTES) {
        int64_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        LPLB_TRY(check(MPI_Bcast((char *)data + at, (int)n, MPI_BYTE, root, comm_of(group)),
                       "MPI_Bcast"));
    }
    return LPLB_OK;
}

static lplb_status mpi_all_gather(lplb__group *group, const void *mine, void *all, int64_t bytes) {
    if (bytes > INT_MAX)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "an all-gather of %lld bytes a rank; at most %d",
                         (long long)bytes, INT_MAX);
    return check(
        MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, comm_of(group)),
        "MPI_Allgather");
}

/* ---- requests ---- */

static lplb_status make_request(int size, lplb__request **out) {
    lplb__request *r;
    LPLB_TRY(LPLB_CALLOC(r, 1));
    lplb_status status = LPLB_CALLOC(r->counts, 4 * (int64_t)size);
    if (status != LPLB_OK) {
        lplb__free(r);
        return status;
    }
    r->starts = r->counts + size;
    r->counts2 = r->starts + size;
    r->starts2 = r->counts2 + size;
    *out = r;
    return LPLB_OK;
}

static void free_request(lplb__request *r) {
    if (!r) return;
    lplb__free(r->pieces);
    lplb__free(r->counts);
    lplb__free(r);
}

static lplb_status set_rows(lplb__request *r, int size, const int64_t *send_rows,
                            const int64_t *recv_rows) {
    int64_t sent = 0, received = 0;
    for (int p = 0; p < size; p++) {
        if (sent + send_rows[p] > INT_MAX || received + recv_rows[p] > INT_MAX)
            return LPLB_FAIL(LPLB_UNSUPPORTED, "an exchange of more than 2^31 rows");
        r->counts[p] = (int)send_rows[p];
        r->starts[p] = (int)sent;
        r->counts2[p] = (int)recv_rows[p];
        r->starts2[p] = (int)received;
        sent += send_rows[p];
        received += recv_rows[p];
    }
    return LPLB_OK;
}

static lplb_status make_row(int64_t row_bytes, MPI_Datatype *row) {
    if (row_bytes > INT_MAX)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "rows of %lld bytes", (long long)row_bytes);
    LPLB_TRY(check(MPI_Type_contiguous((int)row_bytes, MPI_BYTE, row), "MPI_Type_contiguous"));
    MPI_Type_commit(row);
    return LPLB_OK;
}

static lplb_status mpi_start_rows(lplb__group *group, const void *send, const int64_t *send_rows,
                                  void *recv, const int64_t *recv_rows, int64_t row_bytes,
                                  lplb__request **out) {
    MPI_Datatype row;
    lplb__request *r;
    *out = NULL;
    LPLB_TRY(make_request(group->size, &r));
    r->phase = PHASE_LAST;
    lplb_status status = set_rows(r, group->size, send_rows, recv_rows);
    if (status == LPLB_OK) status = make_row(row_bytes, &row);
    if (status == LPLB_OK) {
        status = check(MPI_Ialltoallv(send, r->counts, r->starts, row, recv, r->counts2, r->starts2,
                                      row, comm_of(group), &r->request),
                       "MPI_Ialltoallv");
        MPI_Type_free(&row); /* when the exchange is done with it */
    }
    if (status != LPLB_OK) {
        free_request(r);
        return status;
    }
    *out = r;
    return LPLB_OK;
}

static lplb_status mpi_all_to_all(lplb__group *group, const void *send, const int64_t *send_rows,
                                  void *recv, const int64_t *recv_rows, int64_t row_bytes) {
    lplb__request *r = ((mpi_group *)group)->rows;
    MPI_Datatype row;
    LPLB_TRY(set_rows(r, group->size, send_rows, recv_rows));
    LPLB_TRY(make_row(row_bytes, &row));
    lplb_status status = check(MPI_Alltoallv(send, r->counts, r->starts, row, recv, r->counts2,
                                             r->starts2, row, comm_of(group)),
                               "MPI_Alltoallv");
    MPI_Type_free(&row);
    return status;
}

/* ---- all-reduce ---- */

#define SUM_CASE(CODE, TYPE)                                                                       \
    case CODE:                                                                                     \
        for (int64_t i = 0; i < count; i++) ((TYPE *)sum)[i] += ((const TYPE *)x)[i];              \
        break

static void add_into(void *restrict sum, const void *restrict x, int64_t count,
                     lplb__element element) {
    switch (element) {
        SUM_CASE(ELEMENT_BYTE, unsigned char);
        SUM_CASE(ELEMENT_INT64, int64_t);
        SUM_CASE(ELEMENT_FLOAT, float);
        SUM_CASE(ELEMENT_DOUBLE, double);
    }
}

/* What each rank sends and sums: rank p the elements [count p / size, count (p + 1) / size). */
static void set_pieces(lplb__request *r, int rank, int size, int64_t count) {
    int64_t bytes = (int64_t)r->item_bytes;
    r->mine = count * (rank + 1) / size - count * rank / size;
    for (int p = 0; p < size; p++) {
        int64_t at = count * p / size;
        r->starts[p] = (int)(at * bytes);
        r->counts[p] = (int)((count * (p + 1) / size - at) * bytes);
        r->counts2[p] = (int)(r->mine * bytes);
        r->starts2[p] = (int)(p * r->mine * bytes);
    }
}

static lplb_status mpi_start(lplb__group *group, void *data, int64_t count, lplb__element element,
                             lplb__request **out) {
    mpi_group *g = (mpi_group *)group;
    lplb__request *r;
    *out = NULL;
    if (group->size == 1) return LPLB_OK;
    if (count * (int64_t)bytes_of(element) > INT_MAX)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "a sum over %lld elements; use smaller buckets",
                         (long long)count);
    LPLB_TRY(make_request(group->size, &r));
    r->data = data;
    r->element = element;
    r->item_bytes = bytes_of(element);
    set_pieces(r, group->rank, group->size, count);
    r->pieces = lplb__malloc((size_t)(group->size * r->mine) * r->item_bytes + 1);
    lplb_status status = LPLB_OK;
    if (!r->pieces)
        status = LPLB_FAIL(LPLB_NO_MEMORY, "no memory to sum %lld elements", (long long)count);
    if (status == LPLB_OK)
        status = check(MPI_Ialltoallv(data, r->counts, r->starts, MPI_BYTE, r->pieces, r->counts2,
                                      r->starts2, MPI_BYTE, g->comm, &r->request),
                       "MPI_Ialltoallv");
    if (status != LPLB_OK) {
        free_request(r);
        return status;
    }
    *g->newest = r;
    g->newest = &r->next;
    *out = r;
    return LPLB_OK;
}

/* All pieces of my chunk are here: sum them in rank order and send the sum to everybody. */
static lplb_status begin_gather(mpi_group *g) {
    lplb__request *r = g->oldest;
    int64_t bytes = r->mine * (int64_t)r->item_bytes;
    g->oldest = r->next;
    if (!g->oldest) g->newest = &g->oldest;
    for (int p = 1; p < g->base.size; p++)
        add_into(r->pieces, r->pieces + p * bytes, r->mine, r->element);
    memcpy(r->data + r->starts[g->base.rank], r->pieces, (size_t)bytes);
    r->phase = PHASE_LAST;
    return check(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, r->data, r->counts, r->starts, MPI_BYTE,
                                 g->gathers, &r->request),
                 "MPI_Iallgatherv");
}

/* Members start collectives on one communicator in one order, so gathers begin in the order in
 * which their all-reduces were started, however the pieces arrive, and on a communicator of their
 * own, because when they begin among other collectives does depend on arrival. */
static lplb_status begin_gathers(mpi_group *g) {
    while (g->oldest) {
        int arrived;
        LPLB_TRY(check(MPI_Test(&g->oldest->request, &arrived, MPI_STATUS_IGNORE), "MPI_Test"));
        if (!arrived) return LPLB_OK;
        LPLB_TRY(begin_gather(g));
    }
    return LPLB_OK;
}

static lplb_status mpi_progress(lplb__group *group, lplb__request *r, int *done) {
    *done = 1;
    LPLB_TRY(begin_gathers((mpi_group *)group));
    if (!r || r->phase == PHASE_DONE) return LPLB_OK;
    *done = 0;
    if (r->phase == PHASE_SCATTER) return LPLB_OK;
    LPLB_TRY(check(MPI_Test(&r->request, done, MPI_STATUS_IGNORE), "MPI_Test"));
    if (*done) r->phase = PHASE_DONE;
    return LPLB_OK;
}

static lplb_status mpi_wait(lplb__group *group, lplb__request *r) {
    mpi_group *g = (mpi_group *)group;
    lplb_status status = LPLB_OK;
    while (r && status == LPLB_OK && r->phase == PHASE_SCATTER) {
        status = check(MPI_Wait(&g->oldest->request, MPI_STATUS_IGNORE), "MPI_Wait");
        if (status == LPLB_OK) status = begin_gather(g);
    }
    if (r && status == LPLB_OK && r->phase == PHASE_LAST)
        status = check(MPI_Wait(&r->request, MPI_STATUS_IGNORE), "MPI_Wait");
    if (status == LPLB_OK) free_request(r); /* else it may still be written to */
    return status;
}

static lplb_status mpi_all_reduce(lplb__group *group, void *data, int64_t count,
                                  lplb__element element) {
    int64_t most = INT_MAX / 2 / (int64_t)bytes_of(element);
    for (int64_t at = 0; at < count; at += most) {
        lplb__request *request;
        int64_t n = count - at < most ? count - at : most;
        char *from = (char *)data + at * (int64_t)bytes_of(element);
        LPLB_TRY(mpi_start(group, from, n, element, &request));
        LPLB_TRY(mpi_wait(group, request));
    }
    return LPLB_OK;
}

/* ---- groups ---- */

static lplb_status make_group(MPI_Comm comm, lplb__group **out);

static lplb_status mpi_split(lplb__group *group, int colour, lplb__group **out) {
    MPI_Comm part;
    LPLB_TRY(check(MPI_Comm_split(comm_of(group), colour, group->rank, &part), "MPI_Comm_split"));
    return make_group(part, out);
}

static void mpi_destroy(lplb__group *group) {
    mpi_group *g = (mpi_group *)group;
    int finished;
    MPI_Finalized(&finished);
    if (!finished) {
        MPI_Comm_free(&g->comm);
        MPI_Comm_free(&g->gathers);
    }
    free_request(g->rows);
    lplb__free(g);
}

static lplb_status make_group(MPI_Comm comm, lplb__group **out) {
    static const lplb__group_table table = {
        "mpi",     mpi_barrier,    mpi_broadcast, mpi_all_gather, mpi_all_reduce, mpi_all_to_all,
        mpi_start, mpi_start_rows, mpi_progress,  mpi_wait,       mpi_split,      mpi_destroy};
    mpi_group *g;
    LPLB_TRY(LPLB_CALLOC(g, 1));
    g->base.table = &table;
    g->comm = comm;
    g->newest = &g->oldest;
    MPI_Comm_rank(comm, &g->base.rank);
    MPI_Comm_size(comm, &g->base.size);
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    lplb_status status = make_request(g->base.size, &g->rows);
    if (status == LPLB_OK) status = check(MPI_Comm_dup(comm, &g->gathers), "MPI_Comm_dup");
    if (status != LPLB_OK) {
        free_request(g->rows);
        lplb__free(g);
        return status;
    }
    *out = &g->base;
    return LPLB_OK;
}

lplb_status lplb__group_mpi_world(int *argc, char ***argv, lplb__group **out) {
    int running;
    MPI_Comm world;
    MPI_Initialized(&running);
    if (!running) {
        /* other threads (the manager's worker, the monitor) never call MPI */
        int level;
        LPLB_TRY(check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level), "MPI_Init"));
        started_here = true;
    }
    LPLB_TRY(check(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup"));
    if (failures == MPI_COMM_NULL)
        LPLB_TRY(check(MPI_Comm_dup(MPI_COMM_WORLD, &failures), "MPI_Comm_dup"));
    return make_group(world, out);
}

void lplb__group_mpi_finish(void) {
    int finished;
    MPI_Finalized(&finished);
    if (started_here && !finished) MPI_Finalize();
}

/* A collective of its own communicator, made at the start, so that a rank in the middle of another
 * collective cannot be confused with it. */
void lplb__group_mpi_failed(lplb__group *world, bool own, double seconds, bool *alone, int *speaker,
                            int *code) {
    MPI_Request request;
    enum { CODES = 256 };
    int done = 0, mine = (world->rank + (own ? 0 : world->size)) * CODES + *code, lowest;
    double limit = MPI_Wtime() + seconds;
    *speaker = world->rank;
    *alone = true;
    if (MPI_Iallreduce(&mine, &lowest, 1, MPI_INT, MPI_MIN, failures, &request)) return;
    while (!done && MPI_Wtime() < limit) {
        struct timespec pause = {0, 5000000};
        if (MPI_Test(&request, &done, MPI_STATUS_IGNORE)) return;
        if (!done) nanosleep(&pause, NULL);
    }
    *alone = !done;
    if (!done) return;
    *speaker = lowest / CODES % world->size;
    *code = lowest % CODES;
}

void lplb__group_mpi_abort(int code) {
    MPI_Abort(MPI_COMM_WORLD, code);
    abort();
}
