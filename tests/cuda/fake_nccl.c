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
    pthread_cond_t arrival;
    int made, ranks, arrived;
    unsigned turns;
    const void *send[MOST_RANKS];
} group;

typedef struct communicator {
    struct communicator *earlier; /* all of them stay: one that is aborted is still looked at */
    group *all;
    int rank, aborted;
} communicator;

static group groups[MOST_GROUPS];
static int next_group;
static communicator *latest;
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

/* Waits for all ranks, under the lock; 0 if this rank was aborted meanwhile. */
static int meet(communicator *comm) {
    group *g = comm->all;
    unsigned turn = g->turns;
    if (++g->arrived == g->ranks) {
        g->arrived = 0;
        g->turns++;
        pthread_cond_broadcast(&g->arrival);
    }
    while (g->turns == turn && !comm->aborted) pthread_cond_wait(&g->arrival, &lock);
    return g->turns != turn;
}

int ncclCommInitRank(communicator **out, int ranks, unique_id id, int rank) {
    int number;
    memcpy(&number, id.bytes, sizeof number);
    group *g = &groups[number];
    pthread_mutex_lock(&lock);
    if (!g->made) pthread_cond_init(&g->arrival, NULL);
    g->made = 1;
    g->ranks = ranks;
    *out = calloc(1, sizeof **out);
    **out = (communicator){latest, g, rank, 0};
    latest = *out;
    meet(*out);
    pthread_mutex_unlock(&lock);
    return 0;
}

/* type: int64 only. What an aborted one should have received is left as it was. */
int ncclAllGather(const void *send, void *receive, size_t count, int type, communicator *comm,
                  void *stream) {
    (void)stream;
    if (type != 4) return 4;
    pthread_mutex_lock(&lock);
    comm->all->send[comm->rank] = send;
    if (meet(comm)) {
        for (int r = 0; r < comm->all->ranks; r++)
            memcpy((char *)receive + (size_t)r * count * 8, comm->all->send[r], count * 8);
        meet(comm);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

int ncclCommDestroy(communicator *comm) {
    (void)comm;
    return 0;
}
int ncclCommAbort(communicator *comm) {
    pthread_mutex_lock(&lock);
    comm->aborted = 1;
    pthread_cond_broadcast(&comm->all->arrival);
    pthread_mutex_unlock(&lock);
    return 0;
}
const char *ncclGetErrorString(int result) { return result ? "an invalid argument" : "no error"; }
