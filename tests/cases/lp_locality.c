#include "cases/lp.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#ifdef LPLB_HAVE_CLP
#include <coin/Clp_C_Interface.h>

typedef struct columns {
    int n;
    CoinBigIndex *start, entries;
    int *row;
    double *value, *lower, *upper, *cost;
} columns;

static void *need(int64_t count, size_t bytes) {
    void *block = calloc((size_t)count + 1, bytes);
    if (!block) abort();
    return block;
}

static void add_column(columns *c, double upper, double gain, int n, const int *row, double value) {
    c->upper[c->n] = upper;
    c->cost[c->n] = -gain;
    for (int i = 0; i < n; i++, c->entries++) {
        c->row[c->entries] = row[i];
        c->value[c->entries] = value;
    }
    c->start[++c->n] = c->entries;
}

/* For every host tokens that are at home and tokens that are not; for every (expert, node) tokens
 * that gain and tokens that do not, which together are those on the node's hosts. */
static void add_expert(columns *c, const lplb_hosts *hosts, const int32_t *node,
                       const int64_t *sources, int32_t e, double weight) {
    int32_t G = hosts->ranks, E = hosts->experts;
    for (int64_t i = hosts->offset[e]; i < hosts->offset[e + 1]; i++) {
        int32_t r = hosts->rank[i];
        int rows[] = {r, G + e, G + E + e * G + node[r]};
        add_column(c, (double)sources[(int64_t)r * E + e], weight, 3, rows, 1);
        add_column(c, 1e30, 0, 3, rows, 1);
    }
    for (int32_t n = 0; n < G; n++) {
        int row = G + E + e * G + n;
        double own = 0;
        for (int32_t r = 0; r < G; r++)
            if (node[r] == n) own += (double)sources[(int64_t)r * E + e];
        add_column(c, own, 1, 1, &row, -1);
        add_column(c, 1e30, 0, 1, &row, -1);
    }
}

int lp_locality(const lplb_hosts *hosts, const int32_t *node, const lplb_plan_input *input,
                const int64_t *capacity, int64_t *local, int64_t *on_node) {
    int32_t G = hosts->ranks, E = hosts->experts, n_rows = G + E + E * G;
    int64_t total = 0, most = 2 * hosts->offset[E] + 2 * (int64_t)E * G;
    columns c = {.start = need(most + 1, sizeof(CoinBigIndex)),
                 .row = need(3 * most, sizeof(int)),
                 .value = need(3 * most, sizeof(double)),
                 .lower = need(most, sizeof(double)),
                 .upper = need(most, sizeof(double)),
                 .cost = need(most, sizeof(double))};
    double *row_lower = need(n_rows, sizeof(double)), *row_upper = need(n_rows, sizeof(double));
    for (int32_t r = 0; r < G; r++) {
        row_lower[r] = -1e30;
        row_upper[r] = (double)(capacity[r] - (input->fixed ? input->fixed[r] : 0));
    }
    for (int32_t e = 0; e < E; e++) {
        row_lower[G + e] = row_upper[G + e] = (double)input->tokens[e];
        total += input->tokens[e];
    }
    assert(total <= 1 << 24);
    /* a token kept on its rank weighs more than all that nodes can gain */
    for (int32_t e = 0; e < E; e++)
        add_expert(&c, hosts, node, input->sources, e, (double)total + 1);
    Clp_Simplex *model = Clp_newModel();
    Clp_setLogLevel(model, 0);
    Clp_loadProblem(model, c.n, n_rows, c.start, c.row, c.value, c.lower, c.upper, c.cost,
                    row_lower, row_upper);
    Clp_dual(model, 0);
    int solved = Clp_status(model) == 0;
    if (solved) {
        int64_t value = llround(-Clp_objectiveValue(model));
        *local = value / (total + 1);
        *on_node = value % (total + 1);
    }
    Clp_deleteModel(model);
    void *blocks[] = {c.start, c.row, c.value, c.lower, c.upper, c.cost, row_lower, row_upper};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
    return solved;
}

#else

int lp_locality(const lplb_hosts *hosts, const int32_t *node, const lplb_plan_input *input,
                const int64_t *capacity, int64_t *local, int64_t *on_node) {
    (void)hosts, (void)node, (void)input, (void)capacity, (void)local, (void)on_node;
    abort();
}
#endif
