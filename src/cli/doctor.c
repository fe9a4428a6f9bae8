#include "cli/doctor.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* ---- GPUs: the few functions of NVML that are needed, by their documented signatures ---- */

enum { NVML_NVLINK = 2, NAME_BYTES = 96, MOST_DEVICES = 64 };

typedef struct nvml_memory {
    unsigned long long total, free, used;
} nvml_memory;

typedef struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*driver)(char *, unsigned);
    int (*cuda)(int *);
    int (*count)(unsigned *);
    int (*device)(unsigned, void **);
    int (*name)(void *, char *, unsigned);
    int (*memory)(void *, nvml_memory *);
    int (*peer)(void *, void *, int, int *);
} nvml;

/* C has no cast from object to function pointer; copying the bytes is what POSIX advises. */
static bool load(void *library, const char *symbol, void *function) {
    void *found = dlsym(library, symbol);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static bool open_nvml(nvml *n) {
    n->library = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (!n->library) return false;
    bool ok = load(n->library, "nvmlInit_v2", &n->init) &&
              load(n->library, "nvmlShutdown", &n->shutdown) &&
              load(n->library, "nvmlSystemGetDriverVersion", &n->driver) &&
              load(n->library, "nvmlSystemGetCudaDriverVersion_v2", &n->cuda) &&
              load(n->library, "nvmlDeviceGetCount_v2", &n->count) &&
              load(n->library, "nvmlDeviceGetHandleByIndex_v2", &n->device) &&
              load(n->library, "nvmlDeviceGetName", &n->name) &&
              load(n->library, "nvmlDeviceGetMemoryInfo", &n->memory) &&
              load(n->library, "nvmlDeviceGetP2PStatus", &n->peer) && n->init() == 0;
    if (!ok) dlclose(n->library);
    return ok;
}

static json_t *describe_devices(const nvml *n, void **handle, unsigned count) {
    json_t *list = json_array();
    for (unsigned i = 0; i < count; i++) {
        char name[NAME_BYTES] = "unknown";
        nvml_memory memory = {0, 0, 0};
        if (n->device(i, &handle[i])) {
            handle[i] = NULL;
            continue;
        }
        n->name(handle[i], name, sizeof name);
        n->memory(handle[i], &memory);
        json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "name", name, "memory_bytes",
                                              (json_int_t)memory.total, "free_bytes",
                                              (json_int_t)memory.free));
    }
    return list;
}

json_t *doctor_gpus(void) {
    nvml n;
    if (!open_nvml(&n)) return json_null();
    char driver[NAME_BYTES] = "", cuda[32];
    int version = 0, status, pairs = 0, linked = 0;
    unsigned count = 0;
    void *handle[MOST_DEVICES] = {NULL};
    n.driver(driver, sizeof driver);
    n.cuda(&version);
    n.count(&count);
    if (count > MOST_DEVICES) count = MOST_DEVICES;
    snprintf(cuda, sizeof cuda, "%d.%d", version / 1000, version % 1000 / 10);
    json_t *devices = describe_devices(&n, handle, count);
    for (unsigned i = 0; i < count; i++)
        for (unsigned k = i + 1; k < count; k++) {
            if (!handle[i] || !handle[k]) continue;
            pairs++;
            linked += n.peer(handle[i], handle[k], NVML_NVLINK, &status) == 0 && status == 0;
        }
    n.shutdown();
    dlclose(n.library);
    return json_pack("{s:s, s:s, s:o, s:i, s:i}", "driver", driver, "cuda", cuda, "devices",
                     devices, "pairs", pairs, "nvlink_pairs", linked);
}

void doctor_nccl_version(char *out, size_t bytes) {
    *out = '\0';
    int (*get)(int *), version = 0;
    void *library = dlopen("libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);
    if (!library) return;
    if (load(library, "ncclGetVersion", &get) && get(&version) == 0 && version >= 10000)
        snprintf(out, bytes, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    dlclose(library);
}

/* ---- solvers ---- */

lplb_status doctor_fill_batch(doctor_batch *batch, lplb_placement **placement) {
    static const int32_t row[DOCTOR_HOSTS] = {0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 0};
    static const int64_t tokens[DOCTOR_EXPERTS] = {900, 100, 120, 80, 110, 90, 60, 40};
    memcpy(batch->tokens, tokens, sizeof tokens);
    lplb_status status =
        lplb_placement_create(1, DOCTOR_EXPERTS, DOCTOR_HOSTS, DOCTOR_RANKS, NULL, placement);
    if (status != LPLB_OK) return status;
    memcpy((*placement)->physical_to_logical, row, sizeof row);
    status = lplb_placement_hosts(*placement, 0, batch->offset, batch->rank, &batch->hosts);
    if (status != LPLB_OK) lplb_placement_destroy(*placement);
    return status;
}

static lplb_status plan_by(lplb_solver solver, lplb_plan *plan) {
    static int64_t split[DOCTOR_HOSTS], loads[DOCTOR_RANKS];
    static uint64_t certificate[1];
    doctor_batch batch;
    lplb_placement *placement;
    lplb_planner *planner;
    *plan = (lplb_plan){.split = split, .loads = loads, .certificate = certificate};
    lplb_status status = doctor_fill_batch(&batch, &placement);
    if (status != LPLB_OK) return status;
    lplb_placement_destroy(placement);
    lplb_plan_config config = {
        .struct_size = sizeof config, .hosts = batch.hosts, .solver = solver};
    lplb_plan_input input = {.tokens = batch.tokens};
    status = lplb_planner_create(&config, &planner);
    if (status != LPLB_OK) return status;
    status = lplb_plan_solve(planner, &input, plan);
    if (status == LPLB_OK) status = lplb_plan_check(&config.hosts, NULL, &input, plan);
    lplb_planner_destroy(planner);
    return status;
}

json_t *doctor_solvers(bool *ok) {
    json_t *list = json_array();
    *ok = true;
    for (int s = LPLB_SOLVER_EXACT; s <= LPLB_SOLVER_BALANCE; s++) {
        lplb_plan plan;
        bool good = plan_by((lplb_solver)s, &plan) == LPLB_OK;
        *ok = *ok && good;
        json_array_append_new(
            list,
            json_pack("{s:s, s:b, s:s, s:I}", "solver", lplb_solver_name((lplb_solver)s), "ok",
                      good, "status", good ? lplb_outcome_name(plan.outcome) : lplb_error_message(),
                      "max_load", good ? (json_int_t)plan.max_load : (json_int_t)0));
    }
    return list;
}

/* ---- findings ---- */

static void find_that(json_t *list, const char *finding, const char *what_to_do) {
    json_array_append_new(list, json_pack("{s:s, s:s}", "finding", finding, "do", what_to_do));
}

static int64_t whole(const json_t *object, const char *key) {
    return json_integer_value(json_object_get(object, key));
}

static void find_memory(json_t *list, const json_t *system) {
    int64_t total = whole(system, "memory_bytes"), limit = whole(system, "memory_limit_bytes");
    if (whole(system, "memory_available_bytes") < (int64_t)2 << 30)
        find_that(list, "less than 2 GiB of memory are available",
                  "free some before replaying large traces; a trace of counts takes 8 bytes for "
                  "each (step, layer, expert)");
    if (limit < total)
        find_that(list, "the control group allows less memory than the machine has",
                  "raise the container's memory limit if runs end without a message");
    if (whole(system, "usable_cores") < whole(system, "cores"))
        find_that(list, "this process may not run on all cores",
                  "look at the affinity mask (taskset -p $$) or the container's cpuset");
}

static void find_backends(json_t *list, const json_t *document) {
    size_t i;
    json_t *backend;
    json_array_foreach(json_object_get(document, "backends"), i, backend) {
        const char *detail = json_string_value(json_object_get(backend, "detail"));
        const json_t *gpus = json_object_get(document, "gpus");
        if (json_is_false(json_object_get(backend, "ok")))
            find_that(list, "the GPU's plan failed or did not pass verification", detail);
        else if (!json_is_true(json_object_get(backend, "available")) &&
                 json_array_size(json_object_get(gpus, "devices")))
            find_that(list, "no plan was tried on the GPU", detail);
    }
}

json_t *doctor_findings(const json_t *document) {
    json_t *list = json_array();
    const json_t *gpus = json_object_get(document, "gpus"), *part;
    find_memory(list, json_object_get(document, "system"));
    if (json_is_null(gpus))
        find_that(list, "no NVIDIA driver",
                  "nothing, for the CPU; for GPUs install the driver, in containers pass them "
                  "through (--gpus all)");
    else if (!json_array_size(json_object_get(gpus, "devices")))
        find_that(list, "an NVIDIA driver but no GPU",
                  "see whether nvidia-smi lists one, and CUDA_VISIBLE_DEVICES");
    else if (whole(gpus, "nvlink_pairs") < whole(gpus, "pairs"))
        find_that(list, "not all pairs of GPUs are linked by NVLink",
                  "put GPUs that are not linked on different nodes (--nodes) so that copies stay "
                  "near");
    size_t i;
    json_array_foreach(json_object_get(document, "optional"), i, part) {
        if (json_is_true(json_object_get(part, "found"))) continue;
        const char *hint = json_string_value(json_object_get(part, "install"));
        char finding[128], what[512];
        snprintf(finding, sizeof finding, "%s was not found",
                 json_string_value(json_object_get(part, "name")));
        snprintf(what, sizeof what, "nothing, unless you need it for: %s; then %s",
                 json_string_value(json_object_get(part, "for")), hint);
        find_that(list, finding, what);
    }
    find_backends(list, document);
    json_array_foreach(json_object_get(document, "solvers"), i,
                       part) if (!json_is_true(json_object_get(part, "ok")))
        find_that(list, "a solver's plan did not pass verification",
                  "report it with this output: it is a bug");
    return list;
}
