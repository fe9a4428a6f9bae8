/* The small plan on the GPU: liblplb_cuda and the CUDA driver are loaded when asked for, so that
 * the command needs neither. The plan is verified on the CPU, certificate and all. */
#include <dlfcn.h>
#include <lplb/cuda.h>
#include <stdio.h>
#include <string.h>

#include "cli/doctor.h"

/* The driver's functions that are needed, by their documented signatures (docs.nvidia.com/cuda,
 * Driver API); CUdevice is an int, CUdeviceptr an unsigned integer of 64 bits. */
typedef struct driver {
    void *library;
    int (*init)(unsigned);
    int (*count)(int *);
    int (*device)(int *, int);
    int (*name)(char *, int, int);
    int (*retain)(void **, int);
    int (*release)(int);
    int (*set_context)(void *);
    int (*alloc)(unsigned long long *, size_t);
    int (*free)(unsigned long long);
    int (*to_device)(unsigned long long, const void *, size_t);
    int (*from_device)(void *, unsigned long long, size_t);
} driver;

typedef struct backend {
    void *library;
    lplb_status (*create)(const lplb_cuda_config *, lplb_cuda_planner **);
    void (*destroy)(lplb_cuda_planner *);
    lplb_status (*solve)(lplb_cuda_planner *, const lplb_cuda_problem *, lplb_cuda_stream);
    lplb_status (*read)(lplb_cuda_planner *, lplb_cuda_stream, lplb_cuda_report *);
    lplb_status (*status)(const lplb_cuda_report *);
} backend;

/* C has no cast from object to function pointer; copying the bytes is what POSIX advises. */
static bool load(void *library, const char *symbol, void *function) {
    void *found = dlsym(library, symbol);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static bool open_driver(driver *d) {
    d->library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    return d->library && load(d->library, "cuInit", &d->init) &&
           load(d->library, "cuDeviceGetCount", &d->count) &&
           load(d->library, "cuDeviceGet", &d->device) &&
           load(d->library, "cuDeviceGetName", &d->name) &&
           load(d->library, "cuDevicePrimaryCtxRetain", &d->retain) &&
           load(d->library, "cuDevicePrimaryCtxRelease_v2", &d->release) &&
           load(d->library, "cuCtxSetCurrent", &d->set_context) &&
           load(d->library, "cuMemAlloc_v2", &d->alloc) &&
           load(d->library, "cuMemFree_v2", &d->free) &&
           load(d->library, "cuMemcpyHtoD_v2", &d->to_device) &&
           load(d->library, "cuMemcpyDtoH_v2", &d->from_device);
}

static bool open_backend(backend *b) {
    b->library = dlopen("liblplb_cuda.so.0", RTLD_NOW | RTLD_LOCAL);
    return b->library && load(b->library, "lplb_cuda_planner_create", &b->create) &&
           load(b->library, "lplb_cuda_planner_destroy", &b->destroy) &&
           load(b->library, "lplb_cuda_solve", &b->solve) &&
           load(b->library, "lplb_cuda_report_read", &b->read) &&
           load(b->library, "lplb_cuda_report_status", &b->status);
}

/* Tokens to the device, the plan there, its split and loads back. */
static lplb_status plan_there(const driver *d, const backend *b, lplb_cuda_planner *planner,
                              const doctor_batch *batch, int64_t *split, int64_t *loads,
                              lplb_cuda_report *report) {
    enum { WORDS = DOCTOR_EXPERTS + DOCTOR_HOSTS + DOCTOR_RANKS };
    unsigned long long memory;
    size_t bytes = WORDS * sizeof(int64_t);
    if (d->alloc(&memory, bytes)) return LPLB_NO_MEMORY;
    unsigned long long split_at = memory + DOCTOR_EXPERTS * sizeof(int64_t);
    unsigned long long loads_at = split_at + DOCTOR_HOSTS * sizeof(int64_t);
    lplb_cuda_problem problem = {.struct_size = sizeof problem,
                                 .source_counts = (const int64_t *)(uintptr_t)memory,
                                 .split = (int64_t *)(uintptr_t)split_at,
                                 .loads = (int64_t *)(uintptr_t)loads_at};
    lplb_status status = LPLB_OK;
    if (d->to_device(memory, batch->tokens, sizeof batch->tokens)) status = LPLB_DEVICE;
    if (status == LPLB_OK) status = b->solve(planner, &problem, NULL);
    if (status == LPLB_OK) status = b->read(planner, NULL, report); /* waits for the plan */
    if (status == LPLB_OK) status = b->status(report);
    if (status == LPLB_OK && (d->from_device(split, split_at, DOCTOR_HOSTS * sizeof *split) ||
                              d->from_device(loads, loads_at, DOCTOR_RANKS * sizeof *loads)))
        status = LPLB_DEVICE;
    d->free(memory);
    return status;
}

static lplb_status verify(const doctor_batch *batch, int64_t *split, int64_t *loads,
                          const lplb_cuda_report *report) {
    uint64_t certificate[1];
    lplb_bound bound;
    lplb_plan_input input = {.tokens = batch->tokens};
    lplb_status status = lplb_plan_bound(&batch->hosts, NULL, &input, &bound, certificate);
    if (status != LPLB_OK) return status;
    lplb_plan plan = {.split = split,
                      .loads = loads,
                      .certificate = certificate,
                      .outcome = (lplb_outcome)report->outcome,
                      .max_load = report->max_load,
                      .objective = (double)report->max_load,
                      .bound = (double)bound.integer_bound};
    status = lplb_plan_check(&batch->hosts, NULL, &input, &plan);
    if (status != LPLB_OK) return status;
    return plan.outcome == LPLB_OUTCOME_OPTIMAL && report->max_load == bound.integer_bound
               ? LPLB_OK
               : LPLB_CHECK_FAILED;
}

static lplb_status plan_on_device(const driver *d, const backend *b, lplb_cuda_report *report) {
    doctor_batch batch;
    lplb_placement *placement;
    lplb_status status = doctor_fill_batch(&batch, &placement);
    if (status != LPLB_OK) return status;
    lplb_cuda_config config = {.struct_size = sizeof config, .placement = placement, .max_ids = 1};
    lplb_cuda_planner *planner = NULL;
    int64_t split[DOCTOR_HOSTS], loads[DOCTOR_RANKS];
    status = b->create(&config, &planner);
    if (status == LPLB_OK) status = plan_there(d, b, planner, &batch, split, loads, report);
    if (status == LPLB_OK) status = verify(&batch, split, loads, report);
    b->destroy(planner);
    lplb_placement_destroy(placement);
    return status;
}

static json_t *absent(const char *why) {
    return json_pack("{s:s, s:b, s:n, s:s, s:n}", "backend", "cuda", "available", 0, "ok", "detail",
                     why, "max_load");
}

static json_t *plan_on(const driver *d, const backend *b, int device) {
    char name[96] = "GPU";
    void *context;
    d->name(name, sizeof name, device);
    if (d->retain(&context, device) || d->set_context(context))
        return absent("the GPU's context cannot be had (it may be in exclusive use)");
    lplb_cuda_report report = {0};
    lplb_status status = plan_on_device(d, b, &report);
    const char *message = *lplb_error_message() ? lplb_error_message() : lplb_status_text(status);
    json_t *found = json_pack("{s:s, s:b, s:b, s:s, s:I}", "backend", "cuda", "available", 1, "ok",
                              status == LPLB_OK, "detail", status == LPLB_OK ? name : message,
                              "max_load", (json_int_t)report.max_load);
    d->release(device);
    return found;
}

json_t *doctor_cuda(void) {
    driver d = {0};
    backend b = {0};
    int count = 0, device = 0;
    if (!open_driver(&d)) return absent("no CUDA driver (libcuda.so.1)");
    if (d.init(0) || d.count(&count) || count < 1 || d.device(&device, 0))
        return absent("the CUDA driver sees no GPU");
    if (!open_backend(&b))
        return absent("a GPU, but no liblplb_cuda.so.0: build lplb where nvcc is "
                      "(cmake -DLPLB_CUDA=ON), or set LD_LIBRARY_PATH to it");
    return plan_on(&d, &b, device); /* both stay loaded: they have threads and exit handlers */
}
