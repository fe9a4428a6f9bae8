/* What the parts of a dispatcher share. */
#ifndef LPLB_DISPATCH_DISPATCH_H
#define LPLB_DISPATCH_DISPATCH_H

#include <lplb/dispatch.h>
#include <stdbool.h>

#include "base/mem.h"
#include "base/threads.h"

/* Consecutive tokens of one expert of the prepared source that go to one slot. */
typedef struct lplb__segment {
    int64_t tokens;
    int32_t slot;
} lplb__segment;

/* Where the mapping stands with one expert: the next `remaining` tokens go to `slot`. */
typedef struct lplb__cursor {
    int64_t remaining;
    int32_t slot;
    int32_t next; /* segment that follows */
} lplb__cursor;

/* Ends each expert's segments: more tokens than any batch has, slot -1. An expert whose tokens are
 * all mapped stands exactly at the beginning of it; id -1 lives in one for ever. */
#define LPLB__ENDLESS INT64_MAX

struct lplb_dispatcher {
    int32_t ranks, experts, sources;
    lplb_hosts hosts;    /* points to offset and rank */
    int64_t *offset;     /* [E+1] */
    int32_t *rank;       /* [offset[E]] */
    int32_t *slot;       /* [slots in use] by expert, host, slot */
    int64_t *slot_begin; /* [offset[E]+1] slots of the (expert, host) pairs */

    bool has_locality;       /* the sources' ranks are known; else the rest is not used */
    int32_t nodes;           /* distinct ones */
    int32_t *source_rank;    /* [S] */
    int32_t *node;           /* [G] in [0, nodes) */
    int32_t *rank_begin;     /* [G+1] sources of a rank, ascending: */
    int32_t *source_by_rank; /* [S] */
    int32_t *node_begin;     /* [nodes+1] sources of a node, ascending: */
    int32_t *source_by_node; /* [S] */

    bool prepared;
    int64_t *local;         /* [E] tokens of the prepared source */
    lplb__segment *segment; /* [slots in use + E] */
    int32_t *segment_begin; /* [E] */
    int32_t segment_end;    /* while one expert is prepared: where its next segment goes */

    int64_t *total, *before; /* [E] over all sources; over the sources before the prepared one */
    int64_t *source_left;    /* [S] tokens of one expert that have no host yet */
    int64_t *host_left;      /* [most hosts] tokens that a host still wants */
    int64_t *taken, *taken_before; /* [most hosts] by the prepared source; by those before it */
    int32_t *node_cursor;          /* [nodes] first source of a node that may have tokens left */

    lplb__pool *pool;
    int64_t *chunk_count; /* [threads][E] */
    int64_t *chunk_bad;   /* [threads] position of the first bad id, or -1 */
    lplb__cursor *cursor; /* [threads][E+1]: id -1, then the experts */
    lplb__arena arena;
};

/* A flat array of ids cut into equal chunks, one a worker; the last one may be shorter. */
typedef struct lplb__ids {
    const void *ids;
    lplb_dtype dtype;
    int32_t experts;
    int64_t n;
    int64_t chunk; /* ids per chunk, > 0 */
    int32_t chunks;
    int64_t *count; /* [chunks][E], written by lplb__count_chunks */
    int64_t *bad;   /* [chunks] position of the first bad id, or -1 */
} lplb__ids;

/* Checks dtype, n and pointer; `what` names the array. */
lplb_status lplb__check_ids(const void *ids, lplb_dtype dtype, int64_t n, const char *what);
/* Sets chunk and chunks for at most `threads` chunks of at least min_chunk ids. */
void lplb__cut_ids(lplb__ids *ids, int64_t threads, int64_t min_chunk);
/* Counts every chunk; LPLB_RANGE names the first bad id. */
lplb_status lplb__count_chunks(lplb__ids *ids, lplb__pool *pool);
/* The error for the id at position i. */
lplb_status lplb__bad_id(const void *ids, lplb_dtype dtype, int64_t i, int32_t experts);

/* Ids worth waking another thread for. */
enum { LPLB__CHUNK_IDS = 8192 };

/* Segments of expert e are written host by host: begin, add, end. */
void lplb__segments_begin(lplb_dispatcher *d, int32_t e);
/* Tokens first..first+n of the `share` tokens that host h (index into rank) gets from all sources
 * go to its slots: each slot takes an even share, the extra ones the lower slots. */
void lplb__segments_add(lplb_dispatcher *d, int64_t h, int64_t share, int64_t first, int64_t n);
void lplb__segments_end(lplb_dispatcher *d);

#endif
