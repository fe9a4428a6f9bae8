/* The library lplb_mpi: an MPI communicator as a transport. It uses the public interface only. */
#include <limits.h>
#include <lplb/comm_mpi.h>
#include <mpi.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct mpi_state {
    MPI_Comm comm;
    bool stuck;             /* a gather was given up: MPI still has the buffers */
    unsigned char *send;    /* [max_bytes] */
    unsigned char *receive; /* [ranks][max_bytes] */
} mpi_state;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static lplb_status say(int error, const char *what, char *message, size_t message_bytes) {
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(error, text, &length);
    snprintf(message, message_bytes, "%s: %.200s", what, text);
    return LPLB_REMOTE;
}

static lplb_status mpi_all_gather(void *state, const void *send, void *receive, int64_t bytes,
                                  int64_t timeout_ns, char *message, size_t message_bytes) {
    mpi_state *s = state;
    int ranks, done = 0;
    MPI_Comm_size(s->comm, &ranks);
    memcpy(s->send, send, (size_t)bytes);
    MPI_Request request;
    int error = MPI_Iallgather(s->send, (int)bytes, MPI_BYTE, s->receive, (int)bytes, MPI_BYTE,
                               s->comm, &request);
    if (error != MPI_SUCCESS) return say(error, "MPI_Iallgather", message, message_bytes);
    int64_t begin = now_ns();
    while (!done) {
        error = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (error != MPI_SUCCESS) return say(error, "MPI_Test", message, message_bytes);
        if (!done && now_ns() - begin > timeout_ns) {
            s->stuck = true;
            snprintf(message, message_bytes, "not all of the %d ranks called within %.3g s", ranks,
                     (double)timeout_ns * 1e-9);
            return LPLB_TIMEOUT;
        }
        if (!done) sched_yield();
    }
    memcpy(receive, s->receive, (size_t)(bytes * ranks));
    return LPLB_OK;
}

static void mpi_destroy(void *state) {
    mpi_state *s = state;
    int finished;
    MPI_Finalized(&finished);
    if (!s->stuck) {
        if (!finished) MPI_Comm_free(&s->comm);
        free(s->send);
        free(s->receive);
    }
    free(s);
}

static lplb_status fill(mpi_state *s, MPI_Comm comm, int64_t max_bytes, lplb_transport *t) {
    char message[256];
    int error = MPI_Comm_dup(comm, &s->comm);
    if (error != MPI_SUCCESS)
        return lplb_error_raise(say(error, "MPI_Comm_dup", message, sizeof message), message);
    MPI_Comm_set_errhandler(s->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(s->comm, &t->rank);
    MPI_Comm_size(s->comm, &t->ranks);
    s->send = malloc((size_t)max_bytes);
    s->receive = malloc((size_t)max_bytes * (size_t)t->ranks);
    if (s->send && s->receive) return LPLB_OK;
    return lplb_error_raise(LPLB_NO_MEMORY, "no memory for the buffers of an MPI communicator");
}

lplb_status lplb_comm_create_mpi(int comm, int64_t max_bytes, int64_t timeout_ns, lplb_comm **out) {
    *out = NULL;
    int started, finished;
    MPI_Initialized(&started);
    MPI_Finalized(&finished);
    if (!started || finished)
        return lplb_error_raise(LPLB_STATE, "MPI is not running: call MPI_Init first");
    if (max_bytes < 1 || max_bytes > INT_MAX)
        return lplb_error_raise(LPLB_RANGE, "max_bytes must be from 256 to 2^31 - 1");
    mpi_state *s = calloc(1, sizeof *s);
    if (!s) return lplb_error_raise(LPLB_NO_MEMORY, "no memory for an MPI communicator");
    s->comm = MPI_COMM_NULL;
    lplb_transport t = {.struct_size = sizeof t,
                        .name = "mpi",
                        .max_bytes = max_bytes,
                        .state = s,
                        .all_gather = mpi_all_gather,
                        .destroy = mpi_destroy};
    lplb_status status = fill(s, MPI_Comm_f2c((MPI_Fint)comm), max_bytes, &t);
    if (status == LPLB_OK) status = lplb_comm_create(&t, timeout_ns, out);
    if (status != LPLB_OK) {
        s->stuck = s->comm == MPI_COMM_NULL; /* then there is nothing to free in MPI */
        mpi_destroy(s);
    }
    return status;
}
