#define _GNU_SOURCE
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

enum { MAX_THREADS = 256 };

typedef struct worker {
    lplb__pool *pool;
    int index;
    pthread_t thread;
} worker;

struct lplb__pool {
    int threads, started;
    pid_t owner; /* a forked child has none of the threads */
    pthread_mutex_t mutex;
    pthread_cond_t work_ready, work_done;
    uint64_t generation;
    int busy;
    bool stopping;
    int64_t items;
    _Atomic int64_t next;
    lplb__loop_body body;
    void *context;
    int64_t failed_item; /* lowest, or items */
    lplb_status failed_status;
    char failed_message[1024]; /* the failing worker's thread-local record, carried to the caller */
    worker workers[MAX_THREADS];
};

int lplb__cpu_count(void) {
    cpu_set_t set;
    int n = 0;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

static void note_failure(lplb__pool *pool, int64_t item, lplb_status status) {
    pthread_mutex_lock(&pool->mutex);
    if (item < pool->failed_item) {
        pool->failed_item = item;
        pool->failed_status = status;
        snprintf(pool->failed_message, sizeof pool->failed_message, "%s", lplb_error_message());
    }
    pthread_mutex_unlock(&pool->mutex);
    atomic_store(&pool->next, pool->items); /* hand out no more */
}

static void take_items(lplb__pool *pool, int index) {
    for (;;) {
        int64_t item = atomic_fetch_add(&pool->next, 1);
        if (item >= pool->items) return;
        lplb_status status = pool->body(item, index, pool->context);
        if (status != LPLB_OK) note_failure(pool, item, status);
    }
}

static void *worker_main(void *argument) {
    worker *self = argument;
    lplb__pool *pool = self->pool;
    uint64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&pool->mutex);
        while (!pool->stopping && pool->generation == seen)
            pthread_cond_wait(&pool->work_ready, &pool->mutex);
        seen = pool->generation;
        bool stopping = pool->stopping;
        pthread_mutex_unlock(&pool->mutex);
        if (stopping) return NULL;
        take_items(pool, self->index);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->busy == 0) pthread_cond_signal(&pool->work_done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static lplb_status start_workers(lplb__pool *pool) {
    pool->owner = getpid();
    pool->started = pool->busy = 0;
    pool->generation = 0;
    pool->stopping = false;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work_ready, NULL);
    pthread_cond_init(&pool->work_done, NULL);
    for (int i = 1; i < pool->threads; i++) {
        pool->workers[i] = (worker){.pool = pool, .index = i};
        int error = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
        if (error)
            return LPLB_FAIL(LPLB_NO_MEMORY, "cannot start thread %d of %d: %s", i, pool->threads,
                             strerror(error));
        pool->started = i;
    }
    return LPLB_OK;
}

static void stop_workers(lplb__pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work_ready);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->work_done);
    pthread_cond_destroy(&pool->work_ready);
    pthread_mutex_destroy(&pool->mutex);
}

lplb_status lplb__pool_create(int threads, lplb__pool **out) {
    *out = NULL;
    if (threads <= 0) threads = lplb__cpu_count();
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    lplb__pool *pool;
    LPLB_TRY(LPLB_CALLOC(pool, 1));
    pool->threads = threads;
    lplb_status status = start_workers(pool);
    if (status != LPLB_OK) {
        lplb__pool_destroy(pool);
        return status;
    }
    *out = pool;
    return LPLB_OK;
}

void lplb__pool_destroy(lplb__pool *pool) {
    if (!pool) return;
    if (pool->owner == getpid()) stop_workers(pool); /* others' threads cannot be joined */
    lplb__free(pool);
}

int lplb__pool_threads(const lplb__pool *pool) { return pool ? pool->threads : 1; }

lplb_status lplb__pool_run(lplb__pool *pool, int64_t items, lplb__loop_body body, void *context) {
    if (!pool || pool->threads == 1 || items <= 1) {
        for (int64_t i = 0; i < items; i++) LPLB_TRY(body(i, 0, context));
        return LPLB_OK;
    }
    if (pool->owner != getpid()) { /* forked: locks and threads are the parent's */
        lplb_status status = start_workers(pool);
        if (status != LPLB_OK) {
            stop_workers(pool);
            pool->owner = 0;
            return status;
        }
    }
    pthread_mutex_lock(&pool->mutex);
    pool->items = items;
    pool->body = body;
    pool->context = context;
    pool->failed_item = items;
    pool->busy = pool->threads - 1;
    atomic_store(&pool->next, 0);
    pool->generation++;
    pthread_cond_broadcast(&pool->work_ready);
    pthread_mutex_unlock(&pool->mutex);
    take_items(pool, 0);
    pthread_mutex_lock(&pool->mutex);
    while (pool->busy > 0) pthread_cond_wait(&pool->work_done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    if (pool->failed_item < items)
        return LPLB_FAIL(pool->failed_status, "%s", pool->failed_message);
    return LPLB_OK;
}
