/* LPLB's replication topologies (github.com/deepseek-ai/LPLB, README and tests): which rank's
 * heavy experts each redundant slot copies. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "placement/placement.h"

static lplb_status topology_new(int32_t group_size, int32_t redundant, lplb_topology **out) {
    *out = NULL;
    lplb_topology *t;
    LPLB_TRY(LPLB_CALLOC(t, 1));
    t->group_size = group_size;
    t->redundant = redundant;
    lplb_status status = LPLB_CALLOC(t->r2o, (int64_t)group_size * redundant);
    if (status != LPLB_OK) {
        lplb__free(t);
        return status;
    }
    *out = t;
    return LPLB_OK;
}

void lplb_topology_destroy(lplb_topology *topology) {
    if (!topology) return;
    lplb__free(topology->r2o);
    lplb__free(topology);
}

lplb_status lplb_topology_from_r2o(const int32_t *r2o, int32_t group_size, int32_t redundant,
                                   lplb_topology **out) {
    *out = NULL;
    if (group_size < 2 || group_size > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_INVALID, "r2o needs 2 to %d rows (one a rank), not %d",
                         LPLB_MAX_RANKS, group_size);
    if (redundant < 1 || redundant >= group_size)
        return LPLB_FAIL(LPLB_INVALID,
                         "r2o of %d ranks needs 1 to %d columns (one a redundant slot), not %d",
                         group_size, group_size - 1, redundant);
    lplb_status status;
    int32_t *copier; /* [G'] the rank of this column that copies from each, plus 1 */
    lplb_topology *t = NULL;
    LPLB_TRY(LPLB_CALLOC(copier, group_size));
    for (int32_t d = 0; d < redundant; d++) {
        memset(copier, 0, (size_t)group_size * sizeof *copier);
        for (int32_t r = 0; r < group_size; r++) {
            int32_t o = r2o[(int64_t)r * redundant + d];
            if (o < 0 || o >= group_size)
                LPLB_FAIL_GOTO(status, done, LPLB_RANGE, "r2o[%d][%d] = %d is outside [0, %d)", r,
                               d, o, group_size);
            if (o == r)
                LPLB_FAIL_GOTO(status, done, LPLB_INVALID,
                               "r2o[%d][%d] = %d would copy beside the original; name another rank",
                               r, d, o);
            if (copier[o])
                LPLB_FAIL_GOTO(status, done, LPLB_INVALID,
                               "column %d of r2o is no permutation: ranks %d and %d both copy "
                               "from rank %d",
                               d, copier[o] - 1, r, o);
            copier[o] = r + 1;
        }
    }
    LPLB_TRY_GOTO(status, topology_new(group_size, redundant, &t), done);
    memcpy(t->r2o, r2o, (size_t)group_size * (size_t)redundant * sizeof *r2o);
    *out = t;
done:
    lplb__free(copier);
    return status;
}

/* Both published graphs rotate inside each group of four ranks in column 0: 0 -> 3 -> 2 -> 1. */
static int32_t rotate_in_four(int32_t rank) { return rank / 4 * 4 + (rank + 3) % 4; }

/* 8x2: two squares; column 1, as published, joins them with another offset in each direction. */
static lplb_status make_cube(int32_t ranks, lplb_topology **out) {
    static const int32_t across[8] = {6, 7, 4, 5, 0, 1, 2, 3};
    if (ranks % 8)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "cube needs a multiple of 8 ranks, not %d; ring fits any number", ranks);
    LPLB_TRY(topology_new(8, 2, out));
    for (int32_t r = 0; r < 8; r++) {
        (*out)->r2o[2 * r] = rotate_in_four(r);
        (*out)->r2o[2 * r + 1] = across[r];
    }
    return LPLB_OK;
}

/* 16x2: four squares in a ring; column 1 goes to the same corner of the square before. */
static lplb_status make_hypercube(int32_t ranks, lplb_topology **out) {
    if (ranks % 16)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "hypercube needs a multiple of 16 ranks, not %d; %s",
                         ranks, ranks % 8 ? "ring fits any number" : "cube fits");
    LPLB_TRY(topology_new(16, 2, out));
    for (int32_t r = 0; r < 16; r++) {
        (*out)->r2o[2 * r] = rotate_in_four(r);
        (*out)->r2o[2 * r + 1] = (r + 12) % 16;
    }
    return LPLB_OK;
}

static lplb_status make_ring(int32_t ranks, lplb_topology **out) {
    if (ranks < 2)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "a ring needs at least 2 ranks, not %d", ranks);
    LPLB_TRY(topology_new(ranks, 1, out));
    for (int32_t r = 0; r < ranks; r++) (*out)->r2o[r] = (r + 1) % ranks;
    return LPLB_OK;
}

/* m nodes of n ranks: column 0 from the neighbour node, column 1 from the same node. */
static lplb_status make_torus(int32_t m, int32_t n, int32_t ranks, lplb_topology **out) {
    if (m < 2 || n < 2)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "torus:%dx%d: both sides must be at least 2", m, n);
    if ((int64_t)m * n > ranks || ranks % (m * n))
        return LPLB_FAIL(LPLB_UNSUPPORTED, "torus:%dx%d needs a multiple of %lld ranks, not %d", m,
                         n, (long long)m * n, ranks);
    LPLB_TRY(topology_new(m * n, 2, out));
    for (int32_t i = 0; i < m; i++)
        for (int32_t j = 0; j < n; j++) {
            int32_t *row = (*out)->r2o + 2 * (i * n + j);
            row[0] = (i + 1) % m * n + j;
            row[1] = i * n + (j + 1) % n;
        }
    return LPLB_OK;
}

static lplb_status make_default(int32_t ranks, int32_t redundant, lplb_topology **out) {
    if (redundant == 1) return make_ring(ranks, out);
    if (redundant == 2 && ranks % 8 == 0) return make_cube(ranks, out);
    for (int32_t m = ranks; m >= 2; m--) /* the squarest: largest divisor up to the square root */
        if ((int64_t)m * m <= ranks && ranks % m == 0) return make_torus(m, ranks / m, ranks, out);
    return LPLB_FAIL(LPLB_UNSUPPORTED,
                     "no default topology for %d ranks with %d redundant slots each: cube needs a "
                     "multiple of 8 ranks, a torus a product of two numbers above 1; `ring` fits "
                     "any number, or give an r2o file",
                     ranks, redundant);
}

lplb_status lplb_topology_create(const char *name, int32_t ranks, int32_t redundant,
                                 lplb_topology **out) {
    *out = NULL;
    if (ranks < 2 || ranks > LPLB_MAX_RANKS)
        return LPLB_FAIL(LPLB_INVALID, "a topology needs 2 to %d ranks, not %d", LPLB_MAX_RANKS,
                         ranks);
    if (redundant < 1)
        return LPLB_FAIL(LPLB_INVALID, "a topology needs at least 1 redundant slot a rank, not %d",
                         redundant);
    if (!name || !*name) return make_default(ranks, redundant, out);
    if (!strcmp(name, "cube")) return make_cube(ranks, out);
    if (!strcmp(name, "hypercube")) return make_hypercube(ranks, out);
    if (!strcmp(name, "ring")) return make_ring(ranks, out);
    int m, n, end = 0;
    if (sscanf(name, "torus:%6dx%6d%n", &m, &n, &end) == 2 && !name[end])
        return make_torus(m, n, ranks, out);
    return LPLB_FAIL(LPLB_INVALID,
                     "no topology '%s'; there are cube, hypercube, ring and torus:MxN (for example "
                     "torus:4x8)",
                     name);
}
