/* Making, changing and destroying a planner. */
#include "cuda/planner.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "plan/plan.h"

static const uint64_t PLANNER_MAGIC = 0x6c706c6263756461u; /* "lplbcuda" */

/* As in src/plan/planner.c. */
enum { TOLERANCE_BITS = 16 };
static const uint64_t TIMEOUT_NS = UINT64_C(10000000000);
enum { MOST_IDS = 1 << 30 }; /* positions and counts of one source take 32 bits */
enum { LEAST_PLANNING_WARPS = 4, USUAL_ID_WARPS = 4 };

/* ---- the device ---- */

lplb_status lplb__cuda_check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return LPLB_OK;
    cudaGetLastError(); /* it is reported here */
    return LPLB_FAIL(LPLB_DEVICE, "%.*s: %s", (int)strcspn(what, "("), what,
                     cudaGetErrorString(error));
}

lplb_status lplb__cuda_enter(const lplb_cuda_planner *planner, lplb__cuda_scope *scope) {
    if (!planner || planner->magic != PLANNER_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a planner, or one that was destroyed");
    scope->now = planner->device;
    LPLB_CUDA_TRY(cudaGetDevice(&scope->before));
    if (scope->before != scope->now) LPLB_CUDA_TRY(cudaSetDevice(scope->now));
    return LPLB_OK;
}

void lplb__cuda_leave(const lplb__cuda_scope *scope) {
    if (scope->before != scope->now) cudaSetDevice(scope->before);
}

lplb_status lplb__cuda_not_captured(cudaStream_t stream, const char *what) {
    enum cudaStreamCaptureStatus capture;
    LPLB_CUDA_TRY(cudaStreamIsCapturing(stream, &capture));
    if (capture == cudaStreamCaptureStatusNone) return LPLB_OK;
    return LPLB_FAIL(LPLB_STATE, "%s cannot be captured into a graph; call it outside", what);
}

lplb_status lplb__cuda_capture_of(cudaStream_t stream, unsigned long long *capture) {
    enum cudaStreamCaptureStatus status;
#if CUDART_VERSION >= 13000
    LPLB_CUDA_TRY(cudaStreamGetCaptureInfo(stream, &status, capture, NULL, NULL, NULL, NULL));
#else
    LPLB_CUDA_TRY(cudaStreamGetCaptureInfo_v2(stream, &status, capture, NULL, NULL, NULL));
#endif
    if (status != cudaStreamCaptureStatusActive) *capture = 0;
    return LPLB_OK;
}

/* What allocates or waits while another stream is captured would end that capture, so this thread
 * says that it has nothing to do with it. Returns what to go back to. */
static enum cudaStreamCaptureMode leave_captures(void) {
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    return mode;
}
static void enter_captures(enum cudaStreamCaptureMode mode) {
    cudaThreadExchangeStreamCaptureMode(&mode);
}

/* ---- making ---- */

/* What would be ignored was meant for something else. */
static lplb_status check_unused(const lplb_cuda_config *c) {
    const lplb_ipm_options *ipm = &c->ipm;
    if (!c->locality && (c->source_rank || c->node))
        return LPLB_FAIL(LPLB_INVALID, "%s is for locality, which is 0",
                         c->source_rank ? "source_rank" : "node");
    if (c->solver != LPLB_SOLVER_IPM &&
        (ipm->iterations != 0 || ipm->tolerance != 0 || ipm->step != 0 || ipm->published != 0))
        return LPLB_FAIL(LPLB_INVALID, "ipm is for the solver ipm, not for %s",
                         lplb_solver_name(c->solver));
    if (c->solver == LPLB_SOLVER_EVEN && c->reuse > 0)
        return LPLB_FAIL(LPLB_INVALID, "reuse %g: the solver even has no plan to keep", c->reuse);
    return LPLB_OK;
}

static lplb_status check_config(const lplb_cuda_config *c) {
    if (c->struct_size != sizeof(lplb_cuda_config))
        return LPLB_FAIL(LPLB_INVALID,
                         "config.struct_size is %zu, must be %zu (set it to "
                         "sizeof(lplb_cuda_config))",
                         c->struct_size, sizeof(lplb_cuda_config));
    if (!c->placement) return LPLB_FAIL(LPLB_INVALID, "the placement is NULL");
    if (c->solver != LPLB_SOLVER_EXACT && c->solver != LPLB_SOLVER_EVEN &&
        c->solver != LPLB_SOLVER_IPM)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "the GPU plans with exact, ipm or even, not with %s",
                         lplb_solver_name(c->solver));
    if (c->comm)
        LPLB_TRY(lplb__cuda_comm_fits(c->comm, c->device, c->sources, c->placement->experts));
    if (c->solver == LPLB_SOLVER_IPM && c->comm && c->comm->peers.ranks > 0)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "ipm takes several launches, but %s shares counts inside one: make the "
                         "communicator with the transport nccl",
                         lplb_cuda_transport_name(lplb_cuda_comm_transport(c->comm)));
    if (c->tolerance != 0 && !(c->tolerance >= 1 && c->tolerance <= 1e4))
        return LPLB_FAIL(LPLB_RANGE, "tolerance %g; 0 for none, or from 1 to 10000", c->tolerance);
    if (!(c->reuse >= 0 && c->reuse <= 2))
        return LPLB_FAIL(LPLB_RANGE, "reuse %g is outside [0, 2]", c->reuse);
    if (c->sources < 0) return LPLB_FAIL(LPLB_RANGE, "%d sources", c->sources);
    if (c->max_ids < 0 || c->max_ids > MOST_IDS)
        return LPLB_FAIL(LPLB_RANGE, "max_ids %lld is outside [0, %d]", (long long)c->max_ids,
                         MOST_IDS);
    if (c->n_sms < 0) return LPLB_FAIL(LPLB_RANGE, "n_sms %d; 0 for all, or more", c->n_sms);
    return check_unused(c);
}

static lplb_status check_device(int32_t device) {
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) {
        cudaGetLastError(); /* it is reported here */
        return LPLB_FAIL(LPLB_DEVICE,
                         "no GPU that CUDA can use: no NVIDIA driver, or one older than this CUDA "
                         "wants, or no GPU in reach (%s); lplb doctor tells which",
                         error == cudaSuccess ? "0 devices" : cudaGetErrorString(error));
    }
    if (device < 0 || device >= devices)
        return LPLB_FAIL(LPLB_RANGE, "device %d; this process sees %d", device, devices);
    return LPLB_OK;
}

static lplb_status read_device(int32_t device, int *sms, int *shared_bytes) {
    int together;
    LPLB_CUDA_TRY(cudaDeviceGetAttribute(&together, cudaDevAttrCooperativeLaunch, device));
    if (!together)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "device %d has no cooperative launches, by which the "
                         "blocks of a step run together",
                         device);
    LPLB_CUDA_TRY(cudaDeviceGetAttribute(sms, cudaDevAttrMultiProcessorCount, device));
    LPLB_CUDA_TRY(
        cudaDeviceGetAttribute(shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return LPLB_OK;
}

/* Warps that plan: one for each component, or for each chunk of the widest row; not too few, for
 * they also bring in the tables while the others, at least id_warps, fetch the ids. */
static int32_t planning_warps(const lplb_cuda_planner *p, int32_t id_warps) {
    const lplb__cuda_header *header = (const lplb__cuda_header *)p->staging;
    int32_t most = p->threads / LPLB__CUDA_LANES - id_warps;
    int32_t wanted = header->engine == LPLB__CUDA_ROWS ? header->widest_row : header->components;
    if (p->step.solver != LPLB_SOLVER_EXACT || wanted < LEAST_PLANNING_WARPS)
        wanted = LEAST_PLANNING_WARPS;
    return wanted < most ? wanted : most;
}

/* As many threads as shared memory has room for: what it holds for each warp grows with them. */
static lplb_status choose_threads(lplb_cuda_planner *p, int shared_bytes) {
    lplb__cuda_step *s = &p->step;
    for (int32_t ids = USUAL_ID_WARPS; ids >= 1; ids /= 2) {
        int32_t least = (LEAST_PLANNING_WARPS + ids) * LPLB__CUDA_LANES;
        for (p->threads = LPLB__CUDA_MAX_THREADS; p->threads >= least;
             p->threads -= LPLB__CUDA_LANES) {
            s->solver_warps = planning_warps(p, ids);
            lplb__cuda_share_memory(s, p->threads, &s->shared);
            if (s->shared.bytes <= (uint32_t)shared_bytes) return LPLB_OK;
        }
    }
    return LPLB_FAIL(LPLB_UNSUPPORTED,
                     "%d experts in %d slots on %d ranks%s take at least %u bytes of a block's "
                     "shared memory, of which this device has %d: fewer experts or slots a "
                     "planner%s, or plan on the CPU",
                     s->experts, s->slots, s->ranks, s->local.nodes ? " with locality" : "",
                     s->shared.bytes, shared_bytes, s->local.nodes ? ", no locality" : "");
}

/* How many blocks can run at a time, which those that wait for each other need. */
static lplb_status measure_room(lplb_cuda_planner *p, int sms, int shared_bytes, int32_t n_sms) {
    lplb__cuda_kernel *const kernel[] = {lplb__cuda_step_kernel, lplb__cuda_lean_solve_kernel,
                                         lplb__cuda_lean_step_kernel,
                                         lplb__cuda_lean_blocks_kernel};
    int blocks_per_sm;
    /* Of the kernel, so also for the launches of larger planners: the most that there is. */
    for (int i = 0; i < 4; i++)
        LPLB_CUDA_TRY(cudaFuncSetAttribute(
            (const void *)kernel[i], cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    LPLB_CUDA_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &blocks_per_sm, (const void *)kernel[0], p->threads, p->step.shared.bytes));
    if (blocks_per_sm < 1)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "a block of %d threads with %u bytes of shared memory does not fit a "
                         "multiprocessor of this device",
                         p->threads, p->step.shared.bytes);
    p->most_blocks = n_sms > 0 && n_sms < sms ? n_sms : sms;
    if (p->most_blocks > LPLB__CUDA_MAX_BLOCKS) p->most_blocks = LPLB__CUDA_MAX_BLOCKS;
    return LPLB_OK;
}

static int64_t take(int64_t *bytes, int64_t count, size_t item_bytes) {
    int64_t at = *bytes;
    *bytes += (count * (int64_t)item_bytes + 255) / 256 * 256;
    return at;
}

static lplb_status allocate(lplb_cuda_planner *p) {
    lplb__cuda_step *s = &p->step;
    int64_t E = s->experts, P = s->slots;
    int64_t blocks = lplb__cuda_choose_shape(p->max_ids, p->most_blocks, 1).blocks;
    if (blocks == 1) blocks = 0; /* it shares with none */
    int64_t block = take(&p->bytes, s->tables.bytes, 1);
    int64_t memory = take(&p->bytes, 1, sizeof(lplb__cuda_memory));
    int64_t words = take(&p->bytes, 2 * blocks * E, sizeof(uint64_t));
    int64_t totals = take(&p->bytes, blocks ? LPLB__CUDA_TOTAL_WORDS(E) : 0, sizeof(uint64_t));
    int64_t cached = take(&p->bytes, s->reuse ? 2 * (E + P + s->ranks) : 0, sizeof(int64_t));
    int64_t between = take(&p->bytes, s->solver == LPLB_SOLVER_IPM ? E + P : 0, sizeof(int64_t));
    int64_t local = take(&p->bytes, p->local.n, sizeof(int32_t));
    LPLB_CUDA_TRY(cudaMalloc((void **)&p->memory, (size_t)p->bytes));
    s->block = p->memory + block;
    s->lean.lane = (const lplb__cuda_lean_lane *)(s->block + s->tables.lean_lane);
    s->lean.expert = (const lplb__cuda_lean_expert *)(s->block + s->tables.lean_expert);
    s->lean.groups = lplb__cuda_lean_groups(s->ranks);
    s->memory = (lplb__cuda_memory *)(p->memory + memory);
    s->words = (uint64_t *)(p->memory + words);
    s->totals = (uint64_t *)(p->memory + totals);
    s->cached = (int64_t *)(p->memory + cached);
    p->ipm.counts = (int64_t *)(p->memory + between);
    p->ipm.split = p->ipm.counts + E;
    lplb__cuda_local_place(p, (const int32_t *)(p->memory + local));
    LPLB_CUDA_TRY(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking));
    cudaEvent_t *events[] = {&p->staged, &p->begun, &p->planned};
    for (int i = 0; i < 3; i++)
        LPLB_CUDA_TRY(cudaEventCreateWithFlags(events[i], cudaEventDisableTiming));
    LPLB_CUDA_TRY(cudaMemsetAsync(p->memory, 0, (size_t)p->bytes, p->stream));
    return LPLB_OK;
}

/* FNV-1a (Fowler, Noll, Vo), 32 bits. */
static uint32_t hash_bytes(uint32_t hash, const void *data, size_t bytes) {
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ byte[i]) * 0x01000193u;
    return hash;
}

static lplb_status fill_tables(const lplb_cuda_planner *p, const lplb_placement *placement,
                               int32_t layer, unsigned char *block) {
    const lplb__cuda_tables *tables = &p->step.tables;
    lplb__cuda_header *header = (lplb__cuda_header *)block;
    LPLB_TRY(lplb__cuda_build_tables(tables, placement, layer, p->speed, block));
    header->tag = (int32_t)hash_bytes(p->options_tag, block, tables->bytes);
    return LPLB_OK;
}

lplb_status lplb__cuda_planner_tag(const lplb_cuda_planner *planner, int32_t *tag) {
    if (!planner || planner->magic != PLANNER_MAGIC)
        return LPLB_FAIL(LPLB_INVALID, "not a planner, or one that was destroyed");
    *tag = ((const lplb__cuda_header *)planner->staging)->tag;
    return LPLB_OK;
}

static uint32_t hash_options(const lplb_cuda_planner *p) {
    const int64_t option[] = {p->step.solver, p->step.tolerance, p->step.reuse, p->locality,
                              p->sources};
    uint32_t hash = hash_bytes(0x811c9dc5u, option, sizeof option);
    hash = hash_bytes(hash, p->local.numbers, (size_t)p->local.n * sizeof(int32_t));
    if (p->step.solver != LPLB_SOLVER_IPM) return hash;
    const double number[] = {p->ipm.options.iterations, p->ipm.options.tolerance,
                             p->ipm.options.step, p->ipm.options.published != 0};
    return hash_bytes(hash, number, sizeof number);
}

static lplb_status send_tables(lplb_cuda_planner *p, const unsigned char *block,
                               cudaStream_t stream) {
    LPLB_CUDA_TRY(cudaMemcpyAsync((void *)p->step.block, block, p->step.tables.bytes,
                                  cudaMemcpyHostToDevice, stream));
    LPLB_CUDA_TRY(cudaEventRecord(p->staged, stream));
    return LPLB_OK;
}

static lplb_status make(lplb_cuda_planner *p, const lplb_cuda_config *c) {
    int sms, shared_bytes;
    lplb__cuda_step *s = &p->step;
    LPLB_TRY(read_device(c->device, &sms, &shared_bytes));
    LPLB_TRY(lplb__cuda_size_tables(s->experts, s->slots, s->ranks, &s->tables));
    if (c->speed) {
        LPLB_TRY(LPLB_CALLOC(p->speed, s->ranks));
        memcpy(p->speed, c->speed, (size_t)s->ranks * sizeof *p->speed);
    }
    LPLB_CUDA_TRY(cudaMallocHost((void **)&p->staging, s->tables.bytes));
    LPLB_CUDA_TRY(cudaMallocHost((void **)&p->next, s->tables.bytes));
    LPLB_TRY(lplb__cuda_local_init(p, c));
    p->options_tag = hash_options(p);
    LPLB_TRY(fill_tables(p, c->placement, c->layer, p->staging));
    LPLB_TRY(choose_threads(p, shared_bytes));
    LPLB_TRY(measure_room(p, sms, shared_bytes, c->n_sms));
    if (s->solver == LPLB_SOLVER_IPM) LPLB_TRY(lplb__cuda_ipm_init(p, shared_bytes));
    LPLB_TRY(allocate(p));
    LPLB_TRY(send_tables(p, p->staging, p->stream));
    if (p->local.n)
        LPLB_CUDA_TRY(cudaMemcpyAsync((void *)s->local.source_rank, p->local.numbers,
                                      (size_t)p->local.n * sizeof(int32_t), cudaMemcpyHostToDevice,
                                      p->stream));
    LPLB_CUDA_TRY(cudaStreamSynchronize(p->stream));
    return LPLB_OK;
}

static void release(lplb_cuda_planner *p) {
    if (p->stream) cudaStreamSynchronize(p->stream);
    cudaFree(p->memory);
    if (p->staging) cudaFreeHost(p->staging);
    if (p->next) cudaFreeHost(p->next);
    if (p->stream) cudaStreamDestroy(p->stream);
    cudaEvent_t events[] = {p->staged, p->begun, p->planned};
    for (int i = 0; i < 3; i++)
        if (events[i]) cudaEventDestroy(events[i]);
    lplb__free(p->speed);
    lplb__free(p->local.numbers);
    p->magic = 0;
    lplb__free(p);
}

lplb_status lplb_cuda_planner_create(const lplb_cuda_config *config, lplb_cuda_planner **out) {
    if (!config || !out) return LPLB_FAIL(LPLB_INVALID, "config and out must be given");
    *out = NULL;
    LPLB_TRY(check_config(config));
    LPLB_TRY(check_device(config->device));
    lplb_cuda_planner *p;
    LPLB_TRY(LPLB_CALLOC(p, 1));
    p->magic = PLANNER_MAGIC;
    p->device = config->device;
    p->sources = config->sources > 0 ? config->sources : 1;
    if (config->comm && config->sources == 0) p->sources = config->comm->config.ranks;
    p->comm = config->comm;
    p->locality = config->locality;
    p->ipm.options = config->ipm;
    p->max_ids = config->max_ids;
    p->step.experts = config->placement->experts;
    p->step.slots = config->placement->slots;
    p->step.ranks = config->placement->ranks;
    p->step.solver = config->solver;
    p->step.tolerance = llround(config->tolerance * (1 << TOLERANCE_BITS));
    p->step.reuse = llround(config->reuse * (1 << TOLERANCE_BITS));
    p->step.timeout_ns = TIMEOUT_NS;
    lplb__cuda_scope scope = {0, 0};
    lplb_status status = lplb__cuda_enter(p, &scope);
    if (status == LPLB_OK) {
        enum cudaStreamCaptureMode mode = leave_captures();
        status = make(p, config);
        if (status != LPLB_OK) release(p);
        enter_captures(mode);
        lplb__cuda_leave(&scope);
    } else {
        lplb__free(p);
    }
    if (status == LPLB_OK) *out = p;
    return status;
}

void lplb_cuda_planner_destroy(lplb_cuda_planner *planner) {
    lplb__cuda_scope scope;
    if (!planner || lplb__cuda_enter(planner, &scope) != LPLB_OK) return;
    enum cudaStreamCaptureMode mode = leave_captures();
    release(planner);
    enter_captures(mode);
    lplb__cuda_leave(&scope);
}

int64_t lplb_cuda_planner_bytes(const lplb_cuda_planner *planner) {
    return planner ? planner->bytes : 0;
}

/* ---- changing ---- */

static lplb_status update(lplb_cuda_planner *p, const lplb_placement *placement, int32_t layer,
                          cudaStream_t stream) {
    const lplb__cuda_step *s = &p->step;
    unsigned char *next = p->next;
    if (!placement) return LPLB_FAIL(LPLB_INVALID, "the placement is NULL");
    LPLB_TRY(lplb__cuda_not_captured(stream, "a change of the placement"));
    if (p->started)
        return LPLB_FAIL(LPLB_STATE, "a plan was started and not joined: call lplb_cuda_join");
    if (placement->experts != s->experts || placement->slots != s->slots ||
        placement->ranks != s->ranks)
        return LPLB_FAIL(LPLB_INVALID,
                         "the planner was made for %d experts in %d slots on %d ranks, not for "
                         "%d, %d, %d",
                         s->experts, s->slots, s->ranks, placement->experts, placement->slots,
                         placement->ranks);
    LPLB_CUDA_TRY(cudaEventSynchronize(p->staged)); /* all tables before have left */
    LPLB_TRY(fill_tables(p, placement, layer, next));
    if (s->solver == LPLB_SOLVER_IPM)
        LPLB_TRY(lplb__cuda_ipm_check(p, (const lplb__cuda_header *)next));
    LPLB_TRY(send_tables(p, next, stream));
    p->next = p->staging;
    p->staging = next;
    LPLB_CUDA_TRY(cudaMemsetAsync(&s->memory->cached, 0, sizeof s->memory->cached, stream));
    return LPLB_OK;
}

lplb_status lplb_cuda_planner_update(lplb_cuda_planner *planner, const lplb_placement *placement,
                                     int32_t layer, lplb_cuda_stream stream) {
    lplb__cuda_scope scope;
    LPLB_TRY(lplb__cuda_enter(planner, &scope));
    enum cudaStreamCaptureMode mode = leave_captures();
    lplb_status status = update(planner, placement, layer, stream);
    enter_captures(mode);
    lplb__cuda_leave(&scope);
    return status;
}

/* ---- the report ---- */

const lplb_cuda_report *lplb_cuda_report_address(const lplb_cuda_planner *planner) {
    return planner ? &planner->step.memory->report : NULL;
}

static lplb_status read_report(lplb_cuda_planner *p, cudaStream_t stream, lplb_cuda_report *out) {
    LPLB_TRY(lplb__cuda_not_captured(stream, "reading the report"));
    LPLB_CUDA_TRY(
        cudaMemcpyAsync(out, &p->step.memory->report, sizeof *out, cudaMemcpyDeviceToHost, stream));
    LPLB_CUDA_TRY(cudaStreamSynchronize(stream));
    return LPLB_OK;
}

lplb_status lplb_cuda_report_read(lplb_cuda_planner *planner, lplb_cuda_stream stream,
                                  lplb_cuda_report *out) {
    lplb__cuda_scope scope;
    if (!out) return LPLB_FAIL(LPLB_INVALID, "out is NULL");
    LPLB_TRY(lplb__cuda_enter(planner, &scope));
    enum cudaStreamCaptureMode mode = leave_captures();
    lplb_status status = read_report(planner, stream, out);
    enter_captures(mode);
    lplb__cuda_leave(&scope);
    return status;
}

lplb_status lplb_cuda_report_clear(lplb_cuda_planner *planner, lplb_cuda_stream stream) {
    lplb__cuda_scope scope;
    LPLB_TRY(lplb__cuda_enter(planner, &scope));
    uint64_t *error = &planner->step.memory->report.error;
    lplb_status status =
        lplb__cuda_check(cudaMemsetAsync(error, 0, sizeof *error, stream), "cudaMemsetAsync");
    lplb__cuda_leave(&scope);
    return status;
}

static lplb_status range_status(long long detail) {
    long long at = detail & (long long)(LPLB_CUDA_DETAIL_COUNT - 1);
    if ((uint64_t)detail & LPLB_CUDA_DETAIL_FIXED)
        return LPLB_FAIL(LPLB_RANGE, "fixed[%lld], of rank %lld, is negative", at, at);
    if ((uint64_t)detail & LPLB_CUDA_DETAIL_COUNT)
        return LPLB_FAIL(LPLB_RANGE, "a count of expert %lld is out of range", at);
    return LPLB_FAIL(LPLB_RANGE, "the id at position %lld is out of range", at);
}

lplb_status lplb_cuda_report_status(const lplb_cuda_report *report) {
    if (!report) return LPLB_FAIL(LPLB_INVALID, "report is NULL");
    lplb_status code = (lplb_status) - (int)(report->error >> 56);
    long long detail = (long long)(LPLB_CUDA_DETAIL_MASK - (report->error & LPLB_CUDA_DETAIL_MASK));
    if (report->error == 0) return LPLB_OK;
    switch (code) {
    case LPLB_RANGE: return range_status(detail);
    case LPLB_INVALID:
        return LPLB_FAIL(code, "expert %lld: ids, counts and split do not agree", detail);
    case LPLB_OVERFLOW: return LPLB_FAIL(code, "the tokens of one problem exceed 2^62");
    case LPLB_TIMEOUT:
        if (detail > 0)
            return LPLB_FAIL(code,
                             "rank %lld did not share its counts in time: it is gone or late; make "
                             "the communicator again on all ranks",
                             detail - 1);
        return LPLB_FAIL(code, "blocks of a step waited in vain for the others' counts");
    case LPLB_REMOTE:
        return LPLB_FAIL(code,
                         "rank %lld has left, or waited for another rank in vain: make the "
                         "communicator again on all ranks",
                         detail);
    case LPLB_DISAGREE:
        return LPLB_FAIL(code,
                         "rank %lld plans for another placement, or with other options: give all "
                         "ranks the same and call them in the same order",
                         detail);
    default: return LPLB_FAIL(code, "the step failed on the device (detail %lld)", detail);
    }
}
