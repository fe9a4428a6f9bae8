/* As much of NCCL as src/cuda/nccl.c uses, among threads of one process and over host memory. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 16, MOST_GROUPS = 256 };

typedef struct unique_id {
    char bytes[128];
} unique_id;

typedef struct group {
    pthread_barrier_t barrier;
    int made, ranks;
    const void *send[MOST_RANKS];
} group;

typedef struct communicator {
    group *all;
    int rank;
} communicator;

static group groups[MOST_GROUPS];
static int next_group;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int ncclGetVersion(int *version);
int ncclGetUniqueId(unique_id *id);
int ncclCommInitRank(communicator **out, int ranks, unique_id id, int rank);
int ncclAllGather(const void *send, void *receive, size_t count, int type, communicator *comm,
                  void *stream);
int ncclCommDestroy(communicator *comm);
int ncclCommAbort(communicator *comm);
const char *ncclGetErrorString(int result);

int ncclGetVersion(int *version) {
    *version = 22000;
    return 0;
}

int ncclGetUniqueId(unique_id *id) {
    pthread_mutex_lock(&lock);
    int number = next_group++ % MOST_GROUPS;
    pthread_mutex_unlock(&lock);
    memset(id, 0, sizeof *id);
    memcpy(id->bytes, &number, sizeof number);
    return 0;
}

int ncclCommInitRank(communicator **out, int ranks, unique_id id, int rank) {
    int number;
    memcpy(&number, id.bytes, sizeof number);
    group *g = &groups[number];
    pthread_mutex_lock(&lock);
    if (!g->made) pthread_barrier_init(&g->barrier, NULL, (unsigned)ranks);
    g->made = 1;
    g->ranks = ranks;
    pthread_mutex_unlock(&lock);
    *out = calloc(1, sizeof **out);
    **out = (communicator){g, rank};
    pthread_barrier_wait(&g->barrier);
    return 0;
}

/* type: int64 only */
int ncclAllGather(const void *send, void *receive, size_t count, int type, communicator *comm,
                  void *stream) {
    (void)stream;
    if (type != 4) return 4;
    comm->all->send[comm->rank] = send;
    pthread_barrier_wait(&comm->all->barrier);
    for (int r = 0; r < comm->all->ranks; r++)
        memcpy((char *)receive + (size_t)r * count * 8, comm->all->send[r], count * 8);
    pthread_barrier_wait(&comm->all->barrier);
    return 0;
}

int ncclCommDestroy(communicator *comm) {
    free(comm);
    return 0;
}
int ncclCommAbort(communicator *comm) { return ncclCommDestroy(comm); }
const char *ncclGetErrorString(int result) { return result ? "an invalid argument" : "no error"; }
