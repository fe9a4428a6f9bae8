/* The interior-point method on the host side: its shared memory, its limits, its launches. */
#include "cuda/planner.h"
#include "plan/plan.h"

static uint32_t take(uint32_t *bytes, int64_t count, size_t item_bytes) {
    uint32_t at = *bytes;
    *bytes += (uint32_t)(((size_t)count * item_bytes + 15) / 16 * 16);
    return at;
}

/* Numbers of all teams' matrices when the largest component has up to n rows: smaller
 * components have more teams. */
static int64_t matrix_numbers(int32_t n) {
    int64_t most = 0;
    for (int32_t size = 1; size <= n; size++) {
        int64_t teams = LPLB__CUDA_IPM_WARPS / lplb__cuda_team_warps(size);
        if (teams * size * (size | 1) > most) most = teams * size * (size | 1);
    }
    return most;
}

static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

static void share_memory(lplb_cuda_planner *p) {
    const lplb__cuda_step *s = &p->step;
    lplb__cuda_ipm *ipm = &p->step.ipm;
    lplb__cuda_shared *shared = &p->ipm.shared;
    int64_t E = s->experts, P = s->slots, G = s->ranks;
    uint32_t bytes = 0;
    shared->state = take(&bytes, 1, LPLB__CUDA_STATE_BYTES);
    shared->tables = take(&bytes, s->tables.hot_bytes, 1);
    shared->tokens = take(&bytes, E, sizeof(int64_t));
    shared->before = take(&bytes, E, sizeof(int64_t));
    shared->load = take(&bytes, G, sizeof(int64_t));
    shared->x = take(&bytes, P, sizeof(int64_t));
    ipm->result = take(&bytes, 5, sizeof(uint64_t));
    ipm->partial = take(&bytes, 2 * LPLB__CUDA_IPM_WARPS, sizeof(double));
    uint32_t *of_ranks[] = {&ipm->fixed, &ipm->speed,      &ipm->load,  &ipm->slack,
                            &ipm->price, &ipm->correction, &ipm->right, &ipm->inverse};
    for (int i = 0; i < 8; i++) *of_ranks[i] = take(&bytes, G, sizeof(double));
    ipm->weight = take(&bytes, E, sizeof(double));
    ipm->share = take(&bytes, P, sizeof(double));
    ipm->next = take(&bytes, P, sizeof(double));
    ipm->best = take(&bytes, P, sizeof(double));
    ipm->change = take(&bytes, P, sizeof(double));
    ipm->contribution = take(&bytes, P, sizeof(double));
    ipm->column = take(&bytes, P, 4 * sizeof(uint16_t));
    ipm->first = take(&bytes, G + 1, sizeof(uint16_t));
    int32_t ranks = smaller(s->ranks, LPLB__CUDA_IPM_RANKS);
    int32_t rows = smaller(s->ranks + smaller(s->experts, s->slots / 2), LPLB__CUDA_IPM_ROWS);
    ipm->rows = take(&bytes, ipm->published ? 4 * (G + E) : 0, sizeof(float));
    if (ipm->published) ipm->matrix = take(&bytes, matrix_numbers(rows), sizeof(float));
    else ipm->matrix = take(&bytes, matrix_numbers(ranks), sizeof(double));
    p->ipm.shared_bytes = bytes;
}

lplb_status lplb__cuda_ipm_check(const lplb_cuda_planner *p, const lplb__cuda_header *header) {
    if (p->step.ipm.published && header->largest_rows > LPLB__CUDA_IPM_ROWS)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "ipm: %d ranks and experts with several hosts depend on each other; the "
                         "GPU's published form takes up to %d",
                         header->largest_rows, LPLB__CUDA_IPM_ROWS);
    if (!p->step.ipm.published && header->largest_ranks > LPLB__CUDA_IPM_RANKS)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "ipm: %d ranks depend on each other through the experts that they share; "
                         "the GPU takes up to %d, exact any number",
                         header->largest_ranks, LPLB__CUDA_IPM_RANKS);
    return LPLB_OK;
}

lplb_status lplb__cuda_ipm_init(lplb_cuda_planner *p, int shared_bytes) {
    lplb_ipm_options options;
    LPLB_TRY(lplb__ipm_check(&p->ipm.options, p->speed, &options));
    p->step.ipm = (lplb__cuda_ipm){.tolerance = options.tolerance,
                                   .step = options.step,
                                   .published = options.published != 0,
                                   .iterations = options.iterations};
    share_memory(p);
    if (p->ipm.shared_bytes > (uint32_t)shared_bytes)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "ipm: %d experts in %d slots on %d ranks take %u bytes of shared memory; "
                         "a block of this device has %d",
                         p->step.experts, p->step.slots, p->step.ranks, p->ipm.shared_bytes,
                         shared_bytes);
    LPLB_CUDA_TRY(cudaFuncSetAttribute((const void *)lplb__cuda_ipm_kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    return lplb__cuda_ipm_check(p, (const lplb__cuda_header *)p->staging);
}

static lplb_status launch_kernel(const lplb_cuda_planner *p, const lplb__cuda_step *from,
                                 cudaStream_t stream) {
    lplb__cuda_step step = *from;
    step.stages = LPLB__CUDA_STAGE_SOLVE;
    step.shared = p->ipm.shared;
    step.blocks = 1;
    step.sources = from->source_counts == p->ipm.counts ? 1 : p->sources;
    step.source = -1; /* rows of others and of our own are all read from where they are */
    cudaLaunchConfig_t launch = {.gridDim = {1, 1, 1},
                                 .blockDim = {LPLB__CUDA_IPM_THREADS, 1, 1},
                                 .dynamicSmemBytes = p->ipm.shared_bytes,
                                 .stream = stream};
    void *arguments[] = {&step};
    LPLB_CUDA_TRY(cudaLaunchKernelExC(&launch, (const void *)lplb__cuda_ipm_kernel, arguments));
    return LPLB_OK;
}

lplb_status lplb__cuda_ipm_launch(const lplb_cuda_planner *p, const lplb__cuda_step *from,
                                  cudaStream_t stream) {
    lplb__cuda_step plan = *from;
    if (from->stages & LPLB__CUDA_STAGE_MAP) plan.peers.ends = 0;
    if (!plan.source_counts && !plan.peers.words) {
        lplb__cuda_step count = *from;
        count.stages = LPLB__CUDA_STAGE_COUNT;
        count.counts = p->ipm.counts;
        LPLB_TRY(lplb__cuda_launch(p, &count, stream));
        plan.source_counts = p->ipm.counts;
    }
    if (!plan.split) plan.split = p->ipm.split;
    LPLB_TRY(launch_kernel(p, &plan, stream));
    if (!(from->stages & LPLB__CUDA_STAGE_MAP)) return LPLB_OK;
    lplb__cuda_step map = plan;
    map.stages = LPLB__CUDA_STAGE_COUNT | LPLB__CUDA_STAGE_MAP;
    map.split_in = plan.split;
    map.counts = NULL;
    map.gathered = NULL;
    map.peers.ends = 1;
    return lplb__cuda_launch(p, &map, stream);
}
