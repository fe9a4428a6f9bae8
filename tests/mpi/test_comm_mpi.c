/* Communicators over MPI: counts of all ranks, one without tokens, and a rank that comes late. Run
 * under mpirun; exits 1 where a check fails. */
#include <lplb/comm_mpi.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int rank, ranks;

#define NEED(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "rank %d: line %d: %s (%s)\n", rank, __LINE__, #condition,             \
                    lplb_error_message());                                                         \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { E = 50, BYTES = LPLB_COMM_COUNTS_BYTES(E) };

static lplb_comm *make(int64_t timeout_ns) {
    lplb_comm *comm;
    NEED(lplb_comm_create_mpi(MPI_Comm_c2f(MPI_COMM_WORLD), BYTES, timeout_ns, &comm) == LPLB_OK);
    return comm;
}

static void check_counts(void) {
    lplb_comm *comm = make(0);
    NEED(lplb_comm_rank(comm) == rank && lplb_comm_ranks(comm) == ranks);
    NEED(strcmp(lplb_comm_transport_name(comm), "mpi") == 0);
    int64_t counts[E], *all = malloc(sizeof(int64_t) * E * (size_t)ranks);
    for (int step = 0; step < 200; step++) {
        for (int e = 0; e < E; e++) counts[e] = rank == 1 ? 0 : step * 1000 + rank * E + e;
        NEED(lplb_comm_gather_counts(comm, 9, counts, E, all) == LPLB_OK);
        for (int r = 0; r < ranks; r++)
            for (int e = 0; e < E; e++)
                NEED(all[r * E + e] == (r == 1 ? 0 : step * 1000 + r * E + e));
    }
    NEED(lplb_comm_gather_counts(comm, rank == 0, counts, E, all) == LPLB_DISAGREE);
    NEED(lplb_comm_gather_counts(comm, 9, rank == 1 ? NULL : counts, E, all) == LPLB_REMOTE);
    NEED(strstr(lplb_error_message(), "rank(s) 1 refused"));
    NEED(lplb_comm_gather_counts(comm, 9, counts, E, all) == LPLB_OK);
    const char *item = "solver", *value = rank == 2 ? "even" : "exact";
    NEED(lplb_comm_agree(comm, &item, &value, 1) == LPLB_DISAGREE);
    NEED(strstr(lplb_error_message(), "rank(s) 2 do not agree with rank 0 about solver"));
    free(all);
    lplb_comm_destroy(comm);
}

static void check_lateness(void) {
    const int64_t ms = 1000000;
    lplb_comm *comm = make(200 * ms);
    int64_t mine = rank, all[16];
    NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_OK);
    if (rank == 0) {
        struct timespec nap = {.tv_sec = 1};
        nanosleep(&nap, NULL);
        lplb_comm_all_gather(comm, &mine, all, sizeof mine); /* the others have given up or not */
    } else {
        NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_TIMEOUT);
        NEED(strstr(lplb_error_message(), "mpi: not all of the 3 ranks called"));
        NEED(lplb_comm_all_gather(comm, &mine, all, sizeof mine) == LPLB_REMOTE);
    }
    lplb_comm_destroy(comm);
}

int main(int argc, char **argv) {
    lplb_comm *comm;
    NEED(lplb_comm_create_mpi(0, BYTES, 0, &comm) == LPLB_STATE && comm == NULL);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int world = MPI_Comm_c2f(MPI_COMM_WORLD);
    NEED(lplb_comm_create_mpi(world, 8, 0, &comm) == LPLB_RANGE && comm == NULL);
    NEED(lplb_comm_create_mpi(world, (int64_t)1 << 40, 0, &comm) == LPLB_RANGE);
    check_counts();
    check_lateness();
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    return 0;
}
