/* The group of one process: every collective is a copy or nothing. */
#include "comm/group.h"

#include <string.h>

#include "base/mem.h"

static lplb_status self_barrier(lplb__group *group) {
    (void)group;
    return LPLB_OK;
}

static lplb_status self_broadcast(lplb__group *group, void *data, int64_t bytes, int root) {
    (void)group, (void)data, (void)bytes;
    return root == 0 ? LPLB_OK : LPLB_FAIL(LPLB_RANGE, "root %d in a group of one", root);
}

static lplb_status self_all_gather(lplb__group *group, const void *mine, void *all, int64_t bytes) {
    (void)group;
    if (mine != all && bytes > 0) memcpy(all, mine, (size_t)bytes);
    return LPLB_OK;
}

static lplb_status self_all_reduce(lplb__group *group, void *data, int64_t count,
                                   lplb__element element) {
    (void)group, (void)data, (void)count, (void)element;
    return LPLB_OK;
}

static lplb_status self_all_to_all(lplb__group *group, const void *send, const int64_t *send_rows,
                                   void *recv, const int64_t *recv_rows, int64_t row_bytes) {
    (void)group;
    if (send_rows[0] != recv_rows[0])
        return LPLB_FAIL(LPLB_DISAGREE, "%lld rows sent but %lld expected", (long long)send_rows[0],
                         (long long)recv_rows[0]);
    if (send_rows[0] > 0) memcpy(recv, send, (size_t)(send_rows[0] * row_bytes));
    return LPLB_OK;
}

static lplb_status self_start(lplb__group *group, void *data, int64_t count, lplb__element element,
                              lplb__request **request) {
    (void)group, (void)data, (void)count, (void)element;
    *request = NULL;
    return LPLB_OK;
}

static lplb_status self_start_rows(lplb__group *group, const void *send, const int64_t *send_rows,
                                   void *recv, const int64_t *recv_rows, int64_t row_bytes,
                                   lplb__request **request) {
    *request = NULL;
    return self_all_to_all(group, send, send_rows, recv, recv_rows, row_bytes);
}

static lplb_status self_progress(lplb__group *group, lplb__request *request, int *done) {
    (void)group, (void)request;
    *done = 1;
    return LPLB_OK;
}

static lplb_status self_wait(lplb__group *group, lplb__request *request) {
    (void)group, (void)request;
    return LPLB_OK;
}

static lplb_status self_split(lplb__group *group, int colour, lplb__group **out) {
    (void)group, (void)colour;
    return lplb__group_self(out);
}

static void self_destroy(lplb__group *group) { lplb__free(group); }

lplb_status lplb__group_self(lplb__group **out) {
    static const lplb__group_table table = {"self",          self_barrier,    self_broadcast,
                                            self_all_gather, self_all_reduce, self_all_to_all,
                                            self_start,      self_start_rows, self_progress,
                                            self_wait,       self_split,      self_destroy};
    LPLB_TRY(LPLB_CALLOC(*out, 1));
    (*out)->table = &table;
    (*out)->size = 1;
    return LPLB_OK;
}

lplb_status lplb__group_agree(lplb__group *group, lplb_status own, const char *where) {
    int64_t failed = own != LPLB_OK;
    if (own != LPLB_OK) { /* its message must survive the collective */
        (void)group->table->all_reduce_sum(group, &failed, 1, ELEMENT_INT64);
        return own;
    }
    LPLB_TRY(group->table->all_reduce_sum(group, &failed, 1, ELEMENT_INT64));
    if (failed == 0) return LPLB_OK;
    return LPLB_FAIL(LPLB_REMOTE, "%lld of %d ranks failed %s", (long long)failed, group->size,
                     where);
}
