/* A fork-join loop over POSIX threads. */
#ifndef LPLB_BASE_THREADS_H
#define LPLB_BASE_THREADS_H

#include <stdint.h>

#include "base/error.h"

/* A pool keeps its workers asleep between loops; one loop at a time, from one thread. In a forked
 * child its first loop starts workers anew. */
typedef struct lplb__pool lplb__pool;

/* threads <= 0: as many as the process may use. The caller is one of them. */
lplb_status lplb__pool_create(int threads, lplb__pool **out);
void lplb__pool_destroy(lplb__pool *pool);
int lplb__pool_threads(const lplb__pool *pool); /* 1 for NULL */

/* Calls body(item, worker, context) for every item in [0, items), worker in [0, threads). Items
 * are handed out in order; returns when all are done, with the failure of the lowest failing item
 * if any (later items may then have been skipped). A NULL pool runs the loop in the caller. */
typedef lplb_status (*lplb__loop_body)(int64_t item, int worker, void *context);
lplb_status lplb__pool_run(lplb__pool *pool, int64_t items, lplb__loop_body body, void *context);

/* Processors this process may run on, at least 1. */
int lplb__cpu_count(void);

#endif
