/* As much of NVSHMEM as src/cuda/nvshmem.c uses, among threads of one process and over host memory.
 * Every thread is a processing element once it is initialised. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 16, MOST_BLOCKS = 256, UNIQUE_ID = 8, INITIALIZED = 2 };

typedef struct unique_id {
    int version;
    char internal[124];
} unique_id;
typedef struct attributes {
    int version;
    void *mpi_comm;
    int arguments_version;
    struct {
        int version;
        const unique_id *id;
        int rank, ranks;
    } unique;
    char content[96];
} attributes;

/* A job: what threads that were initialised with one id have in common. */
typedef struct job {
    pthread_cond_t arrival;
    int made, ranks, arrived, blocks;
    unsigned turns;
    char *block[MOST_BLOCKS][MOST_RANKS];
    size_t bytes[MOST_BLOCKS];
} job;

static job jobs[MOST_BLOCKS];
static int next_job;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread job *own_job;
static __thread int own_pe;

int nvshmemx_get_uniqueid(unique_id *id);
int nvshmemx_set_attr_uniqueid_args(int rank, int ranks, const unique_id *id, attributes *a);
int nvshmemx_hostlib_init_attr(unsigned flags, attributes *a);
int nvshmemx_init_status(void);
int nvshmem_my_pe(void);
int nvshmem_n_pes(void);
void *nvshmem_malloc(size_t bytes);
void *nvshmem_ptr(const void *address, int pe);
void nvshmemx_putmem_on_stream(void *to, const void *from, size_t bytes, int pe, void *stream);

/* Under the lock. */
static void meet(job *j) {
    unsigned turn = j->turns;
    if (++j->arrived == j->ranks) {
        j->arrived = 0;
        j->turns++;
        pthread_cond_broadcast(&j->arrival);
    }
    while (j->turns == turn) pthread_cond_wait(&j->arrival, &lock);
}

int nvshmemx_get_uniqueid(unique_id *id) {
    if (id->version != (1 << 16) + (int)sizeof *id) return 1;
    pthread_mutex_lock(&lock);
    int number = next_job++ % MOST_BLOCKS;
    pthread_mutex_unlock(&lock);
    memcpy(id->internal, &number, sizeof number);
    return 0;
}

int nvshmemx_set_attr_uniqueid_args(int rank, int ranks, const unique_id *id, attributes *a) {
    if (sizeof *a != 144 || a->version != (1 << 16) + (int)sizeof *a) return 1;
    a->unique.id = id;
    a->unique.rank = rank;
    a->unique.ranks = ranks;
    return 0;
}

int nvshmemx_hostlib_init_attr(unsigned flags, attributes *a) {
    int number;
    if (flags != UNIQUE_ID || own_job) return 1;
    memcpy(&number, a->unique.id->internal, sizeof number);
    job *j = &jobs[number];
    pthread_mutex_lock(&lock);
    if (!j->made) pthread_cond_init(&j->arrival, NULL);
    j->made = 1;
    j->ranks = a->unique.ranks;
    own_job = j;
    own_pe = a->unique.rank;
    meet(j);
    pthread_mutex_unlock(&lock);
    return 0;
}

int nvshmemx_init_status(void) { return own_job ? INITIALIZED : 0; }
int nvshmem_my_pe(void) { return own_pe; }
int nvshmem_n_pes(void) { return own_job->ranks; }

void *nvshmem_malloc(size_t bytes) {
    char *block = malloc(bytes);
    pthread_mutex_lock(&lock);
    int number = own_job->blocks;
    own_job->block[number][own_pe] = block;
    own_job->bytes[number] = bytes;
    meet(own_job);
    own_job->blocks = number + 1;
    pthread_mutex_unlock(&lock);
    return block;
}

void *nvshmem_ptr(const void *address, int pe) {
    for (int i = 0; i < own_job->blocks; i++) {
        ptrdiff_t at = (const char *)address - own_job->block[i][own_pe];
        if (at >= 0 && (size_t)at < own_job->bytes[i]) return own_job->block[i][pe] + at;
    }
    return NULL;
}

/* Word by word, each of them whole. */
void nvshmemx_putmem_on_stream(void *to, const void *from, size_t bytes, int pe, void *stream) {
    uint64_t *target = nvshmem_ptr(to, pe);
    (void)stream;
    for (size_t i = 0; i < bytes / 8; i++)
        __atomic_store_n(&target[i], ((const uint64_t *)from)[i], __ATOMIC_RELAXED);
}
