/* A group of processes and its collectives, behind one table so that a single process, MPI and NCCL
 * look alike. Every member calls the same collectives in the same order. Sums are taken in rank
 * order, so every member gets the same bits. */
#ifndef LPLB_COMM_GROUP_H
#define LPLB_COMM_GROUP_H

#include <stdint.h>

#include "base/error.h"

typedef enum lplb__element {
    ELEMENT_BYTE,
    ELEMENT_INT64,
    ELEMENT_FLOAT,
    ELEMENT_DOUBLE
} lplb__element;

typedef struct lplb__group lplb__group;
typedef struct lplb__request lplb__request; /* a collective under way */

typedef struct lplb__group_table {
    const char *name;
    lplb_status (*barrier)(lplb__group *group);
    lplb_status (*broadcast)(lplb__group *group, void *data, int64_t bytes, int root);
    /* all[size][count] = every member's mine[count] */
    lplb_status (*all_gather)(lplb__group *group, const void *mine, void *all, int64_t bytes);
    /* data[count] = sum over members, in place, rank order */
    lplb_status (*all_reduce_sum)(lplb__group *group, void *data, int64_t count,
                                  lplb__element element);
    /* Rows of row_bytes: send holds send_rows[0] rows for member 0, then send_rows[1] for member 1,
     * ...; recv likewise by source. */
    lplb_status (*all_to_all_rows)(lplb__group *group, const void *send, const int64_t *send_rows,
                                   void *recv, const int64_t *recv_rows, int64_t row_bytes);
    /* Starts all_reduce_sum; data must stay until wait. */
    lplb_status (*start_all_reduce_sum)(lplb__group *group, void *data, int64_t count,
                                        lplb__element element, lplb__request **request);
    /* Starts all_to_all_rows; send and recv must stay until wait, the numbers of rows need not. */
    lplb_status (*start_all_to_all_rows)(lplb__group *group, const void *send,
                                         const int64_t *send_rows, void *recv,
                                         const int64_t *recv_rows, int64_t row_bytes,
                                         lplb__request **request);
    /* Moves the transfers on; *done tells whether wait would return at once. Members need not call
     * it equally often, but start and wait in one order. */
    lplb_status (*progress)(lplb__group *group, lplb__request *request, int *done);
    lplb_status (*wait)(lplb__group *group, lplb__request *request);
    /* Members of one colour form a new group, ordered by their rank here. */
    lplb_status (*split)(lplb__group *group, int colour, lplb__group **out);
    void (*destroy)(lplb__group *group);
} lplb__group_table;

struct lplb__group {
    const lplb__group_table *table;
    int rank, size;
};

/* Whether all members are fine; every member learns the same: its own failure, or LPLB_REMOTE with
 * `where` for another's. To be called before a collective that some could not reach otherwise. */
lplb_status lplb__group_agree(lplb__group *group, lplb_status own, const char *where);

/* One process alone. */
lplb_status lplb__group_self(lplb__group **out);

#endif
