#include "cases/lp.h"

#include <stdlib.h>
#include <string.h>

#ifdef LPLB_HAVE_CLP
#include <coin/Clp_C_Interface.h>

struct lp {
    lplb_hosts hosts;
    double
        speed_unit; /* speeds are divided by their mean: M is then in tokens, as CLP's tolerances */
    int columns, rows, movable;
    int *movable_row;    /* [E] row of the expert, -1 with one host */
    CoinBigIndex *start; /* [columns + 1] */
    int *index;
    double *value, *lower, *upper, *cost, *row_lower, *row_upper;
};

int lp_available(void) { return 1; }

static void *need(size_t count, size_t bytes) {
    void *block = calloc(count ? count : 1, bytes);
    if (!block) abort();
    return block;
}

lp *lp_create(const lplb_hosts *hosts, const int64_t *speed) {
    lp *p = need(1, sizeof *p);
    size_t copies = (size_t)hosts->offset[hosts->experts], G = (size_t)hosts->ranks;
    p->hosts = *hosts;
    for (size_t r = 0; r < G; r++) p->speed_unit += (double)(speed ? speed[r] : 1) / (double)G;
    p->movable_row = need((size_t)hosts->experts, sizeof(int));
    p->start = need(copies + 2, sizeof *p->start);
    p->index = need(2 * copies + G, sizeof(int));
    p->value = need(2 * copies + G, sizeof(double));
    p->lower = need(copies + 1, sizeof(double));
    p->upper = need(copies + 1, sizeof(double));
    p->cost = need(copies + 1, sizeof(double));
    CoinBigIndex at = 0;
    for (int32_t e = 0; e < hosts->experts; e++) {
        p->movable_row[e] = -1;
        if (hosts->offset[e + 1] - hosts->offset[e] < 2) continue;
        p->movable_row[e] = (int)G + p->movable++;
        for (int64_t i = hosts->offset[e]; i < hosts->offset[e + 1]; i++) {
            p->upper[p->columns] = 1e30;
            p->start[p->columns++] = at;
            p->index[at] = hosts->rank[i], p->value[at++] = 1;
            p->index[at] = p->movable_row[e], p->value[at++] = 1;
        }
    }
    p->cost[p->columns] = 1;
    p->upper[p->columns] = 1e30;
    p->start[p->columns++] = at;
    for (size_t r = 0; r < G; r++)
        p->index[at] = (int)r, p->value[at++] = -(double)(speed ? speed[r] : 1) / p->speed_unit;
    p->start[p->columns] = at;
    p->rows = (int)G + p->movable;
    p->row_lower = need((size_t)p->rows, sizeof(double));
    p->row_upper = need((size_t)p->rows, sizeof(double));
    return p;
}

void lp_destroy(lp *p) {
    void *blocks[] = {p->movable_row, p->start, p->index,     p->value,     p->lower,
                      p->upper,       p->cost,  p->row_lower, p->row_upper, p};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
}

double lp_solve(lp *p, const lplb_plan_input *input) {
    for (int32_t r = 0; r < p->hosts.ranks; r++) {
        p->row_lower[r] = -1e30;
        p->row_upper[r] = input->fixed ? -(double)input->fixed[r] : 0;
    }
    for (int32_t e = 0; e < p->hosts.experts; e++) {
        double tokens = (double)input->tokens[e];
        if (p->movable_row[e] < 0) p->row_upper[p->hosts.rank[p->hosts.offset[e]]] -= tokens;
        else p->row_lower[p->movable_row[e]] = p->row_upper[p->movable_row[e]] = tokens;
    }
    Clp_Simplex *model = Clp_newModel();
    Clp_setLogLevel(model, 0);
    Clp_loadProblem(model, p->columns, p->rows, p->start, p->index, p->value, p->lower, p->upper,
                    p->cost, p->row_lower, p->row_upper);
    Clp_dual(model, 0);
    double result = Clp_status(model) == 0 ? Clp_objectiveValue(model) / p->speed_unit : -1;
    Clp_deleteModel(model);
    return result;
}

#else

int lp_available(void) { return 0; }
lp *lp_create(const lplb_hosts *hosts, const int64_t *speed) {
    (void)hosts, (void)speed;
    abort();
}
void lp_destroy(lp *problem) { (void)problem; }
double lp_solve(lp *problem, const lplb_plan_input *input) {
    (void)problem, (void)input;
    abort();
}
#endif
