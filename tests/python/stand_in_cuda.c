/* A stand-in for liblplb_cuda on the CPU: the functions that the Python package calls, over host
 * memory, so that its GPU paths can be tested where there is no GPU. */
#include <lplb/cuda_comm.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct lplb_cuda_comm {
    lplb_cuda_comm_config config;
    int64_t *row; /* and behind it those of all ranks */
};

struct lplb_cuda_planner {
    lplb_cuda_config config;
    lplb_dispatcher *dispatcher;
    lplb_planner *planner;
    int64_t *tokens, *split, *loads, *own, *all;
    lplb_cuda_report report;
};

static int32_t sources_of(const lplb_cuda_planner *p) {
    if (p->config.comm) return p->config.comm->config.ranks;
    return p->config.sources ? p->config.sources : 1;
}

static lplb_status build(lplb_cuda_planner *p, const lplb_placement *placement, int32_t layer) {
    lplb_dispatcher_destroy(p->dispatcher);
    lplb_planner_destroy(p->planner);
    p->dispatcher = NULL;
    p->planner = NULL;
    int32_t S = sources_of(p);
    lplb_status status = lplb_dispatcher_create(placement, layer, S, p->config.source_rank,
                                                p->config.node, 1, &p->dispatcher);
    if (status != LPLB_OK) return status;
    lplb_plan_config config = {.struct_size = sizeof config,
                               .hosts = *lplb_dispatcher_hosts(p->dispatcher),
                               .node = p->config.node,
                               .solver = p->config.solver,
                               .ipm = p->config.ipm,
                               .tolerance = p->config.tolerance};
    return lplb_planner_create(&config, &p->planner);
}

lplb_status lplb_cuda_planner_create(const lplb_cuda_config *config, lplb_cuda_planner **out) {
    *out = NULL;
    if (config->struct_size != sizeof *config) return LPLB_INVALID;
    lplb_cuda_planner *p = calloc(1, sizeof *p);
    p->config = *config;
    lplb_status status = build(p, config->placement, config->layer);
    if (status != LPLB_OK) {
        free(p);
        return status;
    }
    int64_t E = config->placement->experts, S = sources_of(p);
    p->tokens = calloc((size_t)E, sizeof(int64_t));
    p->split = calloc((size_t)config->placement->slots, sizeof(int64_t));
    p->loads = calloc((size_t)config->placement->ranks, sizeof(int64_t));
    p->own = calloc((size_t)E, sizeof(int64_t));
    p->all = calloc((size_t)(S * E), sizeof(int64_t));
    *out = p;
    return LPLB_OK;
}

void lplb_cuda_planner_destroy(lplb_cuda_planner *p) {
    if (!p) return;
    lplb_dispatcher_destroy(p->dispatcher);
    lplb_planner_destroy(p->planner);
    free(p->tokens);
    free(p->split);
    free(p->loads);
    free(p->own);
    free(p->all);
    free(p);
}

int64_t lplb_cuda_planner_bytes(const lplb_cuda_planner *p) { return p->config.max_ids; }

lplb_status lplb_cuda_planner_update(lplb_cuda_planner *p, const lplb_placement *placement,
                                     int32_t layer, lplb_cuda_stream stream) {
    (void)stream;
    return build(p, placement, layer);
}

static lplb_status solve(lplb_cuda_planner *p, const lplb_cuda_problem *problem,
                         const int64_t *sources) {
    const lplb_hosts *hosts = lplb_dispatcher_hosts(p->dispatcher);
    int32_t S = sources_of(p);
    memset(p->tokens, 0, (size_t)hosts->experts * sizeof(int64_t));
    for (int32_t s = 0; s < S; s++)
        for (int32_t e = 0; e < hosts->experts; e++)
            p->tokens[e] += sources[(int64_t)s * hosts->experts + e];
    lplb_plan_input input = {.tokens = p->tokens, .fixed = problem->fixed};
    lplb_plan plan = {.split = p->split, .loads = p->loads};
    lplb_status status = lplb_plan_solve(p->planner, &input, &plan);
    if (status != LPLB_OK) return status;
    p->report.outcome = plan.outcome;
    p->report.max_load = plan.max_load;
    p->report.steps++;
    bool solved = problem->counter && plan.outcome != LPLB_OUTCOME_NOT_CONVERGED;
    int32_t add = problem->counter_add ? problem->counter_add : 1;
    if (solved && problem->counter_dtype == LPLB_INT64) *(int64_t *)problem->counter += add;
    else if (solved) *(int32_t *)problem->counter += add;
    size_t n = (size_t)hosts->offset[hosts->experts];
    if (problem->counts)
        memcpy(problem->counts, p->tokens, (size_t)hosts->experts * sizeof(int64_t));
    if (problem->split) memcpy(problem->split, p->split, n * sizeof(int64_t));
    if (problem->loads) memcpy(problem->loads, p->loads, (size_t)hosts->ranks * sizeof(int64_t));
    for (int32_t e = 0; problem->share && e < hosts->experts; e++)
        for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++)
            problem->share[h] =
                p->tokens[e] ? (float)((double)p->split[h] / (double)p->tokens[e]) : 0;
    return LPLB_OK;
}

/* What is found on the device never stops the stream. */
static lplb_status remember(lplb_cuda_planner *p, lplb_status status) {
    if (status == LPLB_OK) return LPLB_OK;
    p->report.error = (uint64_t)-status << 56;
    p->report.outcome = -1;
    return LPLB_OK;
}

lplb_status lplb_cuda_count(lplb_cuda_planner *p, const lplb_cuda_ids *ids, int64_t *counts,
                            lplb_cuda_stream stream) {
    (void)stream;
    if (ids->struct_size != sizeof *ids || ids->n > p->config.max_ids) return LPLB_INVALID;
    return remember(p,
                    lplb_dispatch_count(p->dispatcher, ids->ids, ids->ids_dtype, ids->n, counts));
}

static lplb_status map(lplb_cuda_planner *p, const lplb_cuda_ids *ids) {
    return lplb_dispatch_map(p->dispatcher, ids->ids, ids->ids_dtype, ids->n, ids->out,
                             ids->out_dtype);
}

static int32_t tag_of(const lplb_cuda_planner *p) {
    return (int32_t)p->config.solver | p->config.locality << 8;
}

/* By the caller's all-gather, with a tag as the library has one, or by way of the host. */
static lplb_status gather(lplb_cuda_planner *p, const int64_t *own, lplb_cuda_stream stream) {
    lplb_cuda_comm *comm = p->config.comm;
    const lplb_cuda_comm_config *c = &comm->config;
    int64_t experts = lplb_dispatcher_hosts(p->dispatcher)->experts;
    if (!c->all_gather)
        return c->exchange(c->state, own, p->all, experts * (int64_t)sizeof(int64_t));
    int64_t row = c->experts + 1;
    memcpy(comm->row, own, (size_t)experts * sizeof(int64_t));
    comm->row[experts] = tag_of(p);
    lplb_status status = c->all_gather(c->gather_state, comm->row, comm->row + row,
                                       row * (int64_t)sizeof(int64_t), stream);
    for (int32_t r = 0; r < c->ranks && status == LPLB_OK; r++) {
        const int64_t *theirs = comm->row + (r + 1) * row;
        memcpy(p->all + r * experts, theirs, (size_t)experts * sizeof(int64_t));
        if (theirs[experts] != tag_of(p)) status = LPLB_DISAGREE;
    }
    return status;
}

lplb_status lplb_cuda_run(lplb_cuda_planner *p, const lplb_cuda_ids *ids,
                          const lplb_cuda_problem *problem, lplb_cuda_stream stream) {
    if (problem->struct_size != sizeof *problem) return LPLB_INVALID;
    lplb_status status = lplb_cuda_count(p, ids, p->own, stream);
    if (status != LPLB_OK || p->report.error) return status;
    const int64_t *sources = problem->source_counts ? problem->source_counts : p->own;
    if (p->config.comm) {
        sources = p->all;
        status = gather(p, p->own, stream);
    }
    if (status == LPLB_OK) status = solve(p, problem, sources);
    if (status == LPLB_OK)
        status = lplb_dispatch_prepare(p->dispatcher, sources, p->split, ids->source,
                                       p->config.locality);
    if (status == LPLB_OK) status = map(p, ids);
    return remember(p, status);
}

lplb_status lplb_cuda_solve(lplb_cuda_planner *p, const lplb_cuda_problem *problem,
                            lplb_cuda_stream stream) {
    if (problem->struct_size != sizeof *problem) return LPLB_INVALID;
    if (!problem->own_counts) return remember(p, solve(p, problem, problem->source_counts));
    lplb_status status = gather(p, problem->own_counts, stream);
    return remember(p, status == LPLB_OK ? solve(p, problem, p->all) : status);
}

lplb_status lplb_cuda_map_shares(lplb_cuda_planner *p, const lplb_cuda_ids *ids, const float *share,
                                 lplb_cuda_stream stream) {
    lplb_status status = lplb_cuda_count(p, ids, p->own, stream);
    if (status != LPLB_OK || p->report.error) return status;
    status = lplb_dispatch_prepare_ratio(p->dispatcher, share, p->own, ids->source);
    if (status == LPLB_OK) status = map(p, ids);
    return remember(p, status);
}

lplb_status lplb_cuda_report_read(lplb_cuda_planner *p, lplb_cuda_stream stream,
                                  lplb_cuda_report *out) {
    (void)stream;
    *out = p->report;
    return LPLB_OK;
}

lplb_status lplb_cuda_report_status(const lplb_cuda_report *report) {
    return (lplb_status) - (int64_t)(report->error >> 56);
}

lplb_status lplb_cuda_report_clear(lplb_cuda_planner *p, lplb_cuda_stream stream) {
    (void)stream;
    p->report.error = 0;
    return LPLB_OK;
}

/* ---- ranks: by way of the host ---- */

lplb_status lplb_cuda_comm_create(const lplb_cuda_comm_config *config, lplb_cuda_comm **out) {
    *out = NULL;
    if (config->struct_size != sizeof *config) return LPLB_INVALID;
    if (config->transport == LPLB_CUDA_TRANSPORT_NCCL) return LPLB_UNSUPPORTED;
    *out = calloc(1, sizeof **out);
    (*out)->config = *config;
    (*out)->row =
        calloc((size_t)(config->ranks + 1) * ((size_t)config->experts + 1), sizeof(int64_t));
    return LPLB_OK;
}
void lplb_cuda_comm_destroy(lplb_cuda_comm *comm) {
    free(comm->row);
    free(comm);
}
lplb_cuda_transport lplb_cuda_comm_transport(const lplb_cuda_comm *comm) {
    return comm->config.transport ? comm->config.transport : LPLB_CUDA_TRANSPORT_P2P;
}
lplb_status lplb_cuda_comm_agree(lplb_cuda_comm *comm, const lplb_cuda_planner *planner) {
    int32_t own = tag_of(planner), all[64];
    lplb_status status = comm->config.exchange(comm->config.state, &own, all, sizeof own);
    for (int32_t r = 0; r < comm->config.ranks && status == LPLB_OK; r++)
        if (all[r] != own) status = LPLB_DISAGREE;
    return status;
}
lplb_status lplb_cuda_comm_state(const lplb_cuda_comm *comm) {
    return comm ? LPLB_OK : LPLB_INVALID;
}
