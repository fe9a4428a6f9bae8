/* Mapping ids to slots with the segments that were prepared. */
#include "dispatch/dispatch.h"

static void next_segment(const lplb_dispatcher *d, lplb__cursor *cursor) {
    const lplb__segment *segment = &d->segment[cursor->next++];
    cursor->remaining = segment->tokens;
    cursor->slot = segment->slot;
}

/* At token `start` of the prepared source's tokens of expert e. */
static lplb__cursor cursor_at(const lplb_dispatcher *d, int32_t e, int64_t start) {
    lplb__cursor cursor = {.next = d->segment_begin[e]};
    next_segment(d, &cursor);
    while (start >= cursor.remaining) {
        start -= cursor.remaining;
        next_segment(d, &cursor);
    }
    cursor.remaining -= start;
    return cursor;
}

/* Maps ids[0..n) from where the cursors stand ([E+1], id -1 first). Returns the position of the
 * first id outside [-1, E), or -1. */
typedef int64_t (*map_function)(const lplb_dispatcher *d, lplb__cursor *cursors, const void *ids,
                                int64_t n, void *out);

#define DEFINE_MAP(NAME, IN, OUT)                                                                  \
    static int64_t NAME(const lplb_dispatcher *d, lplb__cursor *cursors, const void *ids_,         \
                        int64_t n, void *out_) {                                                   \
        const IN *ids = ids_;                                                                      \
        OUT *out = out_; /* may be ids */                                                          \
        uint64_t limit = (uint64_t)d->experts;                                                     \
        for (int64_t i = 0; i < n; i++) {                                                          \
            uint64_t e = (uint64_t)ids[i] + 1;                                                     \
            if (__builtin_expect(e > limit, 0)) return i;                                          \
            lplb__cursor *cursor = &cursors[e];                                                    \
            out[i] = cursor->slot;                                                                 \
            if (__builtin_expect(--cursor->remaining == 0, 0)) next_segment(d, cursor);            \
        }                                                                                          \
        return -1;                                                                                 \
    }

DEFINE_MAP(map_32_32, int32_t, int32_t)
DEFINE_MAP(map_32_64, int32_t, int64_t)
DEFINE_MAP(map_64_32, int64_t, int32_t)
DEFINE_MAP(map_64_64, int64_t, int64_t)

static map_function choose(lplb_dtype in, lplb_dtype out) {
    if (in == LPLB_INT32) return out == LPLB_INT32 ? map_32_32 : map_32_64;
    return out == LPLB_INT32 ? map_64_32 : map_64_64;
}

static lplb_status wrong_count(const lplb_dispatcher *d, int32_t e, int64_t found) {
    return LPLB_FAIL(LPLB_INVALID,
                     "expert %d: %lld ids, but %lld were counted; prepare with these ids' counts",
                     e, (long long)found, (long long)d->local[e]);
}

/* One thread: no counting beforehand, the cursors' ends tell whether the counts were right. */
static lplb_status map_serial(lplb_dispatcher *d, const void *ids, lplb_dtype ids_dtype, int64_t n,
                              void *out, lplb_dtype out_dtype) {
    lplb__cursor *cursors = d->cursor;
    cursors[0] = (lplb__cursor){.remaining = LPLB__ENDLESS, .slot = -1};
    for (int32_t e = 0; e < d->experts; e++) cursors[e + 1] = cursor_at(d, e, 0);
    int64_t bad = choose(ids_dtype, out_dtype)(d, cursors, ids, n, out);
    if (bad >= 0) return lplb__bad_id(ids, ids_dtype, bad, d->experts);
    for (int32_t e = 0; e < d->experts; e++) {
        const lplb__cursor *c = &cursors[e + 1];
        if (c->slot == -1 && c->remaining == LPLB__ENDLESS) continue;
        int64_t found = d->local[e];
        if (c->slot == -1) {
            found += LPLB__ENDLESS - c->remaining;
        } else {
            found -= c->remaining;
            for (int32_t k = c->next; d->segment[k].slot != -1; k++) found -= d->segment[k].tokens;
        }
        return wrong_count(d, e, found);
    }
    return LPLB_OK;
}

typedef struct map_job {
    lplb_dispatcher *d;
    lplb__ids ids;
    char *out;
    lplb_dtype out_dtype;
} map_job;

static lplb_status map_chunk(int64_t item, int worker, void *context) {
    (void)worker;
    map_job *job = context;
    lplb_dispatcher *d = job->d;
    const lplb__ids *ids = &job->ids;
    lplb__cursor *cursors = d->cursor + item * (d->experts + 1);
    cursors[0] = (lplb__cursor){.remaining = LPLB__ENDLESS, .slot = -1};
    for (int32_t e = 0; e < d->experts; e++) {
        int64_t start = 0;
        for (int64_t c = 0; c < item; c++) start += ids->count[c * d->experts + e];
        cursors[e + 1] = cursor_at(d, e, start);
    }
    int64_t first = item * ids->chunk;
    int64_t n = ids->n - first < ids->chunk ? ids->n - first : ids->chunk;
    const char *in = (const char *)ids->ids + first * lplb_dtype_bytes(ids->dtype);
    choose(ids->dtype, job->out_dtype)(d, cursors, in, n,
                                       job->out + first * lplb_dtype_bytes(job->out_dtype));
    return LPLB_OK;
}

lplb_status lplb_dispatch_map(lplb_dispatcher *d, const void *ids, lplb_dtype ids_dtype, int64_t n,
                              void *out, lplb_dtype out_dtype) {
    if (!d->prepared)
        return LPLB_FAIL(LPLB_STATE, "call lplb_dispatch_prepare before lplb_dispatch_map");
    LPLB_TRY(lplb__check_ids(ids, ids_dtype, n, "ids"));
    LPLB_TRY(lplb__check_ids(out, out_dtype, n, "out"));
    map_job job = {.d = d, .out = out, .out_dtype = out_dtype};
    job.ids = (lplb__ids){.ids = ids,
                          .dtype = ids_dtype,
                          .experts = d->experts,
                          .n = n,
                          .count = d->chunk_count,
                          .bad = d->chunk_bad};
    lplb__cut_ids(&job.ids, lplb__pool_threads(d->pool), LPLB__CHUNK_IDS);
    if (job.ids.chunks <= 1) return map_serial(d, ids, ids_dtype, n, out, out_dtype);
    LPLB_TRY(lplb__count_chunks(&job.ids, d->pool));
    for (int32_t e = 0; e < d->experts; e++) {
        int64_t found = 0;
        for (int32_t c = 0; c < job.ids.chunks; c++)
            found += d->chunk_count[c * (int64_t)d->experts + e];
        if (found != d->local[e]) return wrong_count(d, e, found);
    }
    return lplb__pool_run(d->pool, job.ids.chunks, map_chunk, &job);
}
