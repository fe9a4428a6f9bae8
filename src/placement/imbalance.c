/* How unequal a placement leaves the ranks under recorded loads. */
#include "base/mem.h"
#include "base/threads.h"
#include "placement/placement.h"

typedef struct imbalance_job {
    const lplb_placement *placement;
    const int64_t *load;
    int64_t samples;
    lplb_solver solver;
    double *out;
} imbalance_job;

typedef struct layer_scratch {
    int64_t *offset; /* [E+1] */
    int32_t *rank;   /* [P] */
    int64_t *split;  /* [offset[E]] */
    int64_t *loads;  /* [G] */
    lplb_planner *planner;
} layer_scratch;

static void scratch_destroy(layer_scratch *s) {
    lplb_planner_destroy(s->planner);
    lplb__free(s->offset);
    lplb__free(s->rank);
    lplb__free(s->split);
    lplb__free(s->loads);
}

static lplb_status scratch_create(layer_scratch *s, const imbalance_job *job, int32_t layer) {
    const lplb_placement *p = job->placement;
    *s = (layer_scratch){0};
    LPLB_TRY(LPLB_CALLOC(s->offset, (int64_t)p->experts + 1));
    LPLB_TRY(LPLB_CALLOC(s->rank, p->slots));
    LPLB_TRY(LPLB_CALLOC(s->split, p->slots));
    LPLB_TRY(LPLB_CALLOC(s->loads, p->ranks));
    lplb_plan_config config = {.struct_size = sizeof config, .solver = job->solver};
    LPLB_TRY(lplb_placement_hosts(p, layer, s->offset, s->rank, &config.hosts));
    return lplb_planner_create(&config, &s->planner);
}

/* Ranks that hold nothing in the layer (dead ones) cannot take part, so the mean leaves them out.
 */
static int32_t ranks_in_use(const lplb_placement *p, int32_t layer) {
    const int32_t *map = lplb__placement_layer(p, layer);
    int32_t used = 0;
    for (int32_t r = 0; r < p->ranks; r++) {
        int32_t s = p->rank_offset[r];
        while (s < p->rank_offset[r + 1] && map[s] < 0) s++;
        used += s < p->rank_offset[r + 1];
    }
    return used;
}

static lplb_status imbalance_of_layer(int64_t layer, int worker, void *context) {
    (void)worker;
    const imbalance_job *job = context;
    const lplb_placement *p = job->placement;
    layer_scratch s;
    lplb_status status = scratch_create(&s, job, (int32_t)layer);
    int32_t used = ranks_in_use(p, (int32_t)layer);
    for (int64_t k = 0; status == LPLB_OK && k < job->samples; k++) {
        lplb_plan_input input = {.tokens = job->load + (k * p->layers + layer) * p->experts};
        lplb_plan plan = {.split = s.split, .loads = s.loads};
        status = lplb_plan_solve(s.planner, &input, &plan);
        double total = 0;
        for (int32_t r = 0; r < p->ranks; r++) total += (double)s.loads[r];
        job->out[k * p->layers + layer] = total > 0 ? (double)plan.max_load * used / total : 0;
    }
    scratch_destroy(&s);
    return status;
}

lplb_status lplb_placement_imbalance(const lplb_placement *placement, const int64_t *load,
                                     int64_t samples, lplb_solver solver, int32_t threads,
                                     double *out) {
    LPLB_TRY(lplb_placement_validate(placement));
    imbalance_job job = {placement, load, samples, solver, out};
    lplb__pool *pool;
    LPLB_TRY(lplb__pool_create(threads, &pool));
    lplb_status status = lplb__pool_run(pool, placement->layers, imbalance_of_layer, &job);
    lplb__pool_destroy(pool);
    return status;
}
