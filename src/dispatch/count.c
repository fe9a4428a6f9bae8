/* Counting ids. */
#include <string.h>

#include "dispatch/dispatch.h"

/* Four tables in turn, so that equal neighbours do not wait for each other's stores. They live on
 * the stack: 16 KiB. Rounds keep 32 bits sufficient whatever n is. */
enum { TABLE_EXPERTS = 1024, TABLE_ROUND = 1 << 28 };

/* Adds the ids to count [E]; -1 is passed over. Returns the position of the first id outside
 * [-1, E), or -1. The shift by one makes one comparison do. */
#define DEFINE_COUNT(NAME, TYPE)                                                                   \
    static int64_t NAME##_tables(const TYPE *ids, int64_t n, int32_t experts, int64_t *count) {    \
        uint32_t table[4][TABLE_EXPERTS + 1];                                                      \
        for (int k = 0; k < 4; k++) memset(table[k], 0, (size_t)(experts + 1) * sizeof(uint32_t)); \
        uint64_t limit = (uint64_t)experts;                                                        \
        int64_t i = 0;                                                                             \
        for (; i + 4 <= n; i += 4) {                                                               \
            uint64_t a = (uint64_t)ids[i] + 1, b = (uint64_t)ids[i + 1] + 1;                       \
            uint64_t c = (uint64_t)ids[i + 2] + 1, d = (uint64_t)ids[i + 3] + 1;                   \
            if ((a > limit) | (b > limit) | (c > limit) | (d > limit)) break;                      \
            table[0][a]++, table[1][b]++, table[2][c]++, table[3][d]++;                            \
        }                                                                                          \
        for (; i < n && (uint64_t)ids[i] + 1 <= limit; i++) table[0][(uint64_t)ids[i] + 1]++;      \
        for (int32_t e = 0; e < experts; e++)                                                      \
            for (int k = 0; k < 4; k++) count[e] += table[k][e + 1];                               \
        return i < n ? i : -1;                                                                     \
    }                                                                                              \
    static int64_t NAME(const TYPE *ids, int64_t n, int32_t experts, int64_t *count) {             \
        int64_t i = 0;                                                                             \
        for (; i < n && experts <= TABLE_EXPERTS; i += TABLE_ROUND) {                              \
            int64_t round = n - i < TABLE_ROUND ? n - i : TABLE_ROUND;                             \
            int64_t bad = NAME##_tables(ids + i, round, experts, count);                           \
            if (bad >= 0) return i + bad;                                                          \
        }                                                                                          \
        for (; i < n; i++) {                                                                       \
            uint64_t e = (uint64_t)ids[i];                                                         \
            if (e < (uint64_t)experts) count[e]++;                                                 \
            else if (ids[i] != -1) return i;                                                       \
        }                                                                                          \
        return -1;                                                                                 \
    }

DEFINE_COUNT(count_int32, int32_t)
DEFINE_COUNT(count_int64, int64_t)

lplb_status lplb__check_ids(const void *ids, lplb_dtype dtype, int64_t n, const char *what) {
    if (dtype != LPLB_INT32 && dtype != LPLB_INT64)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s must be int32 or int64, not %s", what,
                         lplb_dtype_name(dtype));
    if (n < 0) return LPLB_FAIL(LPLB_RANGE, "the number of ids is %lld", (long long)n);
    if (n > 0 && !ids)
        return LPLB_FAIL(LPLB_INVALID, "%s is NULL with %lld ids", what, (long long)n);
    return LPLB_OK;
}

lplb_status lplb__bad_id(const void *ids, lplb_dtype dtype, int64_t i, int32_t experts) {
    int64_t id = dtype == LPLB_INT32 ? ((const int32_t *)ids)[i] : ((const int64_t *)ids)[i];
    return LPLB_FAIL(LPLB_RANGE, "id %lld at position %lld is outside [-1, %d)", (long long)id,
                     (long long)i, experts);
}

void lplb__cut_ids(lplb__ids *ids, int64_t threads, int64_t min_chunk) {
    int64_t chunks = ids->n / min_chunk;
    if (chunks > threads) chunks = threads;
    if (chunks < 1) chunks = 1;
    ids->chunk = (ids->n + chunks - 1) / chunks;
    if (ids->chunk < 1) ids->chunk = 1;
    ids->chunks = (int32_t)((ids->n + ids->chunk - 1) / ids->chunk);
    if (ids->chunks < 1) ids->chunks = 1;
}

static lplb_status count_chunk(int64_t item, int worker, void *context) {
    (void)worker;
    const lplb__ids *ids = context;
    int64_t first = item * ids->chunk;
    int64_t n = ids->n - first < ids->chunk ? ids->n - first : ids->chunk;
    int64_t *count = ids->count + item * ids->experts;
    memset(count, 0, (size_t)ids->experts * sizeof *count);
    ids->bad[item] = -1;
    if (n == 0) return LPLB_OK; /* ids may be NULL */
    int64_t bad = ids->dtype == LPLB_INT32
                      ? count_int32((const int32_t *)ids->ids + first, n, ids->experts, count)
                      : count_int64((const int64_t *)ids->ids + first, n, ids->experts, count);
    if (bad >= 0) ids->bad[item] = first + bad;
    return LPLB_OK;
}

lplb_status lplb__count_chunks(lplb__ids *ids, lplb__pool *pool) {
    LPLB_TRY(lplb__pool_run(pool, ids->chunks, count_chunk, ids));
    for (int32_t c = 0; c < ids->chunks; c++)
        if (ids->bad[c] >= 0) return lplb__bad_id(ids->ids, ids->dtype, ids->bad[c], ids->experts);
    return LPLB_OK;
}

static void add_chunks(const lplb__ids *ids, int64_t *counts) {
    memset(counts, 0, (size_t)ids->experts * sizeof *counts);
    for (int32_t c = 0; c < ids->chunks; c++)
        for (int32_t e = 0; e < ids->experts; e++)
            counts[e] += ids->count[c * (int64_t)ids->experts + e];
}

/* Below this, starting threads costs more than it saves. */
enum { MIN_COLD_CHUNK = 1 << 18 };

lplb_status lplb_count_experts(const void *ids, lplb_dtype dtype, int64_t n, int32_t experts,
                               int32_t threads, int64_t *counts) {
    LPLB_TRY(lplb__check_ids(ids, dtype, n, "ids"));
    if (experts < 0) return LPLB_FAIL(LPLB_RANGE, "the number of experts is %d", experts);
    int64_t bad = -1;
    lplb__ids job = {.ids = ids, .dtype = dtype, .experts = experts, .n = n};
    lplb__cut_ids(&job, threads > 0 ? threads : lplb__cpu_count(), MIN_COLD_CHUNK);
    if (job.chunks == 1) {
        job.count = counts;
        job.bad = &bad;
        return lplb__count_chunks(&job, NULL);
    }
    lplb__pool *pool = NULL;
    lplb_status status = LPLB_CALLOC(job.count, (int64_t)job.chunks * experts);
    if (status == LPLB_OK) status = LPLB_CALLOC(job.bad, job.chunks);
    if (status == LPLB_OK) status = lplb__pool_create(job.chunks, &pool);
    if (status == LPLB_OK) status = lplb__count_chunks(&job, pool);
    if (status == LPLB_OK) add_chunks(&job, counts);
    lplb__pool_destroy(pool);
    lplb__free(job.bad);
    lplb__free(job.count);
    return status;
}

lplb_status lplb_dispatch_count(lplb_dispatcher *d, const void *ids, lplb_dtype dtype, int64_t n,
                                int64_t *counts) {
    LPLB_TRY(lplb__check_ids(ids, dtype, n, "ids"));
    lplb__ids job = {.ids = ids,
                     .dtype = dtype,
                     .experts = d->experts,
                     .n = n,
                     .count = d->chunk_count,
                     .bad = d->chunk_bad};
    lplb__cut_ids(&job, lplb__pool_threads(d->pool), LPLB__CHUNK_IDS);
    LPLB_TRY(lplb__count_chunks(&job, d->pool));
    add_chunks(&job, counts);
    return LPLB_OK;
}
