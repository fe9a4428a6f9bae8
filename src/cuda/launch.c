/* Steps: from the caller's structs to launches. */
#include "cuda/planner.h"

enum {
    COUNT = LPLB__CUDA_STAGE_COUNT,
    SOLVE = LPLB__CUDA_STAGE_SOLVE,
    MAP = LPLB__CUDA_STAGE_MAP,
    SHARES = LPLB__CUDA_STAGE_SHARES
};

/* ---- arguments ---- */

/* On a GPU a misaligned access ends the process's context, so it must not get that far. */
static lplb_status check_aligned(const void *array, size_t bytes, const char *name) {
    if (((uintptr_t)array & (bytes - 1)) == 0) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID, "%s lies at %p, must be aligned to its elements of %zu bytes",
                     name, array, bytes);
}

static size_t bytes_of(lplb_dtype dtype) { return dtype == LPLB_INT64 ? 8 : 4; }

/* Some blocks write slots while others still read ids; in place, an id is read by who writes it. */
static lplb_status check_overlap(const lplb_cuda_ids *ids) {
    size_t in_bytes = bytes_of(ids->ids_dtype), out_bytes = bytes_of(ids->out_dtype);
    uintptr_t in = (uintptr_t)ids->ids, out = (uintptr_t)ids->out;
    if (in >= out + (size_t)ids->n * out_bytes || out >= in + (size_t)ids->n * in_bytes)
        return LPLB_OK;
    if (in == out && in_bytes == out_bytes) return LPLB_OK;
    return LPLB_FAIL(LPLB_INVALID,
                     "%lld ids of %zu bytes at %p and out of %zu bytes at %p overlap: out must be "
                     "apart, or exactly ids with one width",
                     (long long)ids->n, in_bytes, ids->ids, out_bytes, ids->out);
}

static lplb_status check_ids(const lplb_cuda_planner *p, const lplb_cuda_ids *ids, bool maps) {
    if (ids->struct_size != sizeof(lplb_cuda_ids))
        return LPLB_FAIL(LPLB_INVALID, "ids.struct_size is %zu, must be %zu", ids->struct_size,
                         sizeof(lplb_cuda_ids));
    if (ids->ids_dtype != LPLB_INT32 && ids->ids_dtype != LPLB_INT64)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "ids must be int32 or int64");
    if (ids->n < 0 || ids->n > p->max_ids)
        return LPLB_FAIL(LPLB_RANGE, "%lld ids; the planner was made for 0 to %lld",
                         (long long)ids->n, (long long)p->max_ids);
    if (ids->topk < 0) return LPLB_FAIL(LPLB_RANGE, "topk is %d", ids->topk);
    if (ids->source < 0 || ids->source >= p->sources)
        return LPLB_FAIL(LPLB_RANGE, "source %d is outside [0, %d)", ids->source, p->sources);
    if (ids->n > 0 && !ids->ids) return LPLB_FAIL(LPLB_INVALID, "ids is NULL");
    LPLB_TRY(check_aligned(ids->ids, bytes_of(ids->ids_dtype), "ids"));
    LPLB_TRY(check_aligned(ids->n_device, sizeof(int64_t), "n_device"));
    if (!maps) return LPLB_OK;
    if (ids->out_dtype != LPLB_INT32 && ids->out_dtype != LPLB_INT64)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "out must be int32 or int64");
    if (ids->n > 0 && !ids->out) return LPLB_FAIL(LPLB_INVALID, "out is NULL");
    LPLB_TRY(check_aligned(ids->out, bytes_of(ids->out_dtype), "out"));
    return ids->n > 0 ? check_overlap(ids) : LPLB_OK;
}

static lplb_status check_arrays(const lplb_cuda_problem *p) {
    const struct {
        const void *at;
        size_t bytes;
        const char *name;
    } array[] = {{p->source_counts, 8, "source_counts"},
                 {p->own_counts, 8, "own_counts"},
                 {p->fixed, 8, "fixed"},
                 {p->counts, 8, "counts"},
                 {p->split, 8, "split"},
                 {p->loads, 8, "loads"},
                 {p->share, 4, "share"},
                 {p->gathered, 8, "gathered"},
                 {p->counter, bytes_of(p->counter_dtype), "counter"}};
    for (size_t i = 0; i < sizeof array / sizeof array[0]; i++)
        LPLB_TRY(check_aligned(array[i].at, array[i].bytes, array[i].name));
    return LPLB_OK;
}

static lplb_status check_problem(const lplb_cuda_problem *problem) {
    if (problem->struct_size != sizeof(lplb_cuda_problem))
        return LPLB_FAIL(LPLB_INVALID, "problem.struct_size is %zu, must be %zu",
                         problem->struct_size, sizeof(lplb_cuda_problem));
    if (problem->counter && problem->counter_dtype != LPLB_INT32 &&
        problem->counter_dtype != LPLB_INT64)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "the counter must be int32 or int64");
    return check_arrays(problem);
}

static void put_ids(lplb__cuda_step *step, const lplb_cuda_ids *ids) {
    step->ids = ids->ids;
    step->ids_bytes = ids->ids_dtype == LPLB_INT64 ? 8 : 4;
    step->out = ids->out;
    step->out_bytes = ids->out_dtype == LPLB_INT64 ? 8 : 4;
    step->n = ids->n;
    step->n_device = ids->n_device;
    step->topk = ids->topk > 0 ? ids->topk : 1;
    step->source = ids->source;
}

static void put_problem(lplb__cuda_step *step, const lplb_cuda_problem *problem) {
    step->source_counts = problem->source_counts;
    step->own_counts = problem->own_counts;
    step->gathered = problem->gathered;
    step->fixed = problem->fixed;
    step->counts = problem->counts;
    step->split = problem->split;
    step->loads = problem->loads;
    step->share = problem->share;
    step->counter = problem->counter;
    step->counter_bytes = problem->counter_dtype == LPLB_INT64 ? 8 : 4;
    step->counter_add = problem->counter_add ? problem->counter_add : 1;
}

/* ---- launches ---- */

static lplb__cuda_kernel *kernel_of(const lplb__cuda_step *step) {
    switch (step->lean.kind) {
    case LPLB__CUDA_LEAN_SOLVE: return lplb__cuda_lean_solve_kernel;
    case LPLB__CUDA_LEAN_STEP: return lplb__cuda_lean_step_kernel;
    case LPLB__CUDA_LEAN_BLOCKS: return lplb__cuda_lean_blocks_kernel;
    default: return lplb__cuda_step_kernel;
    }
}

lplb_status lplb__cuda_launch(const lplb_cuda_planner *p, lplb__cuda_step *step,
                              cudaStream_t stream) {
    bool counts = step->stages & COUNT;
    int32_t n = counts ? (int32_t)step->n : 0;
    lplb__cuda_shape shape =
        lplb__cuda_choose_shape(n, p->most_blocks, p->threads / 32 - step->solver_warps);
    lplb__cuda_choose_lean(p, step, &shape);
    int32_t stripe = shape.id_warps * 32;
    step->block_share = ((n + shape.blocks - 1) / shape.blocks + 31) / 32 * 32;
    step->rounds = stripe ? (step->block_share + stripe - 1) / stripe : 0;
    if (step->rounds > LPLB__CUDA_KEPT_IDS) step->rounds = LPLB__CUDA_KEPT_IDS;
    step->blocks = shape.blocks;
    step->sources = p->sources;
    /* All blocks at once, or none: they wait for each other. */
    cudaLaunchAttribute together = {.id = cudaLaunchAttributeCooperative, .val.cooperative = 1};
    cudaLaunchConfig_t launch = {.gridDim = {(unsigned)shape.blocks, 1, 1},
                                 .blockDim = {(unsigned)(step->solver_warps * 32 + stripe), 1, 1},
                                 .dynamicSmemBytes = step->shared.bytes,
                                 .stream = stream,
                                 .attrs = &together,
                                 .numAttrs = shape.blocks > 1};
    void *arguments[] = {step};
    lplb__cuda_kernel *kernel = kernel_of(step);
    LPLB_CUDA_TRY(cudaLaunchKernelExC(&launch, (const void *)kernel, arguments));
    return LPLB_OK;
}

/* In one launch, or by the interior-point method in several. */
static lplb_status launch(const lplb_cuda_planner *p, lplb__cuda_step *step, cudaStream_t stream) {
    bool several = step->solver == LPLB_SOLVER_IPM && (step->stages & SOLVE);
    return several ? lplb__cuda_ipm_launch(p, step, stream) : lplb__cuda_launch(p, step, stream);
}

/* The counts of a step that the ranks of a communicator share. */
static lplb_status check_shared(const lplb_cuda_planner *p, const lplb__cuda_step *step) {
    if (step->source_counts)
        return LPLB_FAIL(LPLB_INVALID, "source_counts and a communicator: the planner shares "
                                       "counts itself");
    if (step->source != p->comm->config.rank)
        return LPLB_FAIL(LPLB_INVALID, "source %d, but this is rank %d of the communicator",
                         step->source, p->comm->config.rank);
    return LPLB_OK;
}

/* Our row, brought to all. Once that was given up, the step finds that nothing has come. */
static lplb_status bring_row(const lplb_cuda_planner *p, const lplb__cuda_step *step,
                             cudaStream_t stream) {
    if (lplb__cuda_gather_ended(p->comm)) return LPLB_OK;
    lplb__cuda_step count = p->step;
    count.stages = COUNT;
    count.ids = step->ids;
    count.ids_bytes = step->ids_bytes;
    count.n = step->n;
    count.n_device = step->n_device;
    count.topk = step->topk;
    count.source = step->source;
    count.own_counts = step->own_counts;
    lplb__cuda_row_of(p->comm, &count.peers);
    LPLB_TRY(lplb__cuda_launch(p, &count, stream));
    return lplb__cuda_gather(p->comm, stream);
}

/* Between peers the counts travel inside the launch; else between two. */
static lplb_status launch_shared(const lplb_cuda_planner *p, lplb__cuda_step *step,
                                 cudaStream_t stream) {
    if (p->comm->row) LPLB_TRY(bring_row(p, step, stream));
    step->peers = p->comm->peers;
    return launch(p, step, stream);
}

/* Checks everything, so that nothing is launched in part. ids or problem may be NULL. */
static lplb_status prepare(const lplb_cuda_planner *p, lplb__cuda_step *step,
                           const lplb_cuda_ids *ids, const lplb_cuda_problem *problem) {
    if (p->started)
        return LPLB_FAIL(LPLB_STATE, "a plan was started and not joined: call lplb_cuda_join");
    if (problem) LPLB_TRY(check_problem(problem));
    if (problem && problem->own_counts && ids)
        return LPLB_FAIL(LPLB_INVALID, "own_counts and ids: give one of them");
    if (problem && !p->comm && (problem->own_counts || problem->gathered))
        return LPLB_FAIL(LPLB_INVALID, "own_counts and gathered are for planners with a "
                                       "communicator");
    if (ids) LPLB_TRY(check_ids(p, ids, step->stages & MAP));
    LPLB_TRY(check_aligned(step->split_in, sizeof(int64_t), "split"));
    LPLB_TRY(check_aligned(step->share_in, sizeof(float), "share"));
    if (ids) put_ids(step, ids);
    if (problem) put_problem(step, problem);
    if (step->own_counts) {
        step->source = p->comm->config.rank;
        step->stages |= COUNT;
    }
    bool counts = step->stages & COUNT, plans = step->stages & SOLVE;
    if (plans && !counts && !step->source_counts)
        return LPLB_FAIL(LPLB_INVALID, "source_counts is NULL: without ids there is nothing to "
                                       "plan for");
    if (plans && counts && p->comm) return check_shared(p, step);
    if (plans && counts && !step->source_counts && p->sources > 1)
        return LPLB_FAIL(LPLB_INVALID,
                         "there are %d sources: gather their counts and give them as "
                         "source_counts",
                         p->sources);
    return LPLB_OK;
}

static lplb_status launch_step(const lplb_cuda_planner *p, lplb__cuda_step *step,
                               cudaStream_t stream) {
    bool shared = p->comm && (step->stages & SOLVE) && (step->stages & COUNT);
    return shared ? launch_shared(p, step, stream) : launch(p, step, stream);
}

/* One step; share and split: to map by without planning. */
static lplb_status run_stages(lplb_cuda_planner *planner, int32_t stages, const lplb_cuda_ids *ids,
                              const lplb_cuda_problem *problem, const int64_t *split,
                              const float *share, cudaStream_t stream) {
    lplb__cuda_scope scope;
    LPLB_TRY(lplb__cuda_enter(planner, &scope));
    lplb__cuda_step step = planner->step;
    step.stages = stages;
    step.split_in = split;
    step.share_in = share;
    lplb_status status = prepare(planner, &step, ids, problem);
    if (status == LPLB_OK) status = launch_step(planner, &step, stream);
    lplb__cuda_leave(&scope);
    return status;
}

lplb_status lplb_cuda_run(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                          const lplb_cuda_problem *problem, lplb_cuda_stream stream) {
    if (!ids || !problem) return LPLB_FAIL(LPLB_INVALID, "ids and problem must be given");
    return run_stages(planner, COUNT | SOLVE | MAP, ids, problem, NULL, NULL, stream);
}

lplb_status lplb_cuda_count(lplb_cuda_planner *planner, const lplb_cuda_ids *ids, int64_t *counts,
                            lplb_cuda_stream stream) {
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .counts = counts};
    if (!ids || !counts) return LPLB_FAIL(LPLB_INVALID, "ids and counts must be given");
    return run_stages(planner, COUNT, ids, &problem, NULL, NULL, stream);
}

lplb_status lplb_cuda_solve(lplb_cuda_planner *planner, const lplb_cuda_problem *problem,
                            lplb_cuda_stream stream) {
    if (!problem) return LPLB_FAIL(LPLB_INVALID, "problem is NULL");
    return run_stages(planner, SOLVE, NULL, problem, NULL, NULL, stream);
}

lplb_status lplb_cuda_map(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                          const int64_t *source_counts, const int64_t *split,
                          lplb_cuda_stream stream) {
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .source_counts = source_counts};
    if (!ids || !source_counts || !split)
        return LPLB_FAIL(LPLB_INVALID, "ids, source_counts and split must be given");
    return run_stages(planner, COUNT | MAP, ids, &problem, split, NULL, stream);
}

lplb_status lplb_cuda_map_shares(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                                 const float *share, lplb_cuda_stream stream) {
    if (!ids || !share) return LPLB_FAIL(LPLB_INVALID, "ids and share must be given");
    return run_stages(planner, COUNT | MAP | SHARES, ids, NULL, NULL, share, stream);
}

/* ---- beside the caller's stream ---- */

static lplb_status start(lplb_cuda_planner *p, const lplb_cuda_ids *ids,
                         const lplb_cuda_problem *problem, cudaStream_t stream, cudaStream_t side) {
    unsigned long long capture, beside;
    lplb__cuda_step step = p->step;
    step.stages = SOLVE | (ids ? COUNT : 0);
    LPLB_TRY(prepare(p, &step, ids, problem));
    LPLB_TRY(lplb__cuda_capture_of(stream, &capture));
    LPLB_TRY(lplb__cuda_capture_of(side, &beside));
    if (beside && beside != capture)
        return LPLB_FAIL(LPLB_STATE, "side is being captured, but not with stream");
    LPLB_CUDA_TRY(cudaEventRecord(p->begun, stream));
    LPLB_CUDA_TRY(cudaStreamWaitEvent(side, p->begun, 0));
    lplb_status status = launch_step(p, &step, side);
    LPLB_CUDA_TRY(cudaEventRecord(p->planned, side));
    p->started = status == LPLB_OK;
    p->capture = capture;
    if (!p->started)
        cudaStreamWaitEvent(stream, p->planned, 0); /* a capture must come together again */
    return status;
}

lplb_status lplb_cuda_start(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                            const lplb_cuda_problem *problem, lplb_cuda_stream stream,
                            lplb_cuda_stream side) {
    lplb__cuda_scope scope;
    if (!problem) return LPLB_FAIL(LPLB_INVALID, "problem is NULL");
    LPLB_TRY(lplb__cuda_enter(planner, &scope));
    lplb_status status = start(planner, ids, problem, stream, side);
    lplb__cuda_leave(&scope);
    return status;
}

/* A wait across the border of a capture would end that capture, so it is refused before. */
static lplb_status join(lplb_cuda_planner *p, cudaStream_t stream) {
    unsigned long long capture;
    if (!p->started)
        return LPLB_FAIL(LPLB_STATE, "no plan was started: call lplb_cuda_start first");
    LPLB_TRY(lplb__cuda_capture_of(stream, &capture));
    if (capture != p->capture && !p->capture)
        return LPLB_FAIL(LPLB_STATE, "the plan was started before this capture: join it outside");
    if (capture != p->capture) {
        p->started = false;
        return LPLB_FAIL(LPLB_STATE, "the plan was started in a capture that is over, or that this "
                                     "stream has no part in, and is forgotten now: start it again");
    }
    lplb_status status =
        lplb__cuda_check(cudaStreamWaitEvent(stream, p->planned, 0), "cudaStreamWaitEvent");
    if (status == LPLB_OK || p->capture) p->started = false;
    return status;
}

lplb_status lplb_cuda_join(lplb_cuda_planner *planner, lplb_cuda_stream stream) {
    lplb__cuda_scope scope;
    LPLB_TRY(lplb__cuda_enter(planner, &scope));
    lplb_status status = join(planner, stream);
    lplb__cuda_leave(&scope);
    return status;
}
