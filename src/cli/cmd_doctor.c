/* lplb doctor: what this machine offers, which optional parts are there, and whether the planner
 * works on it. Nothing optional is needed for what the CPU library does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "cli/cli.h"
#include "cli/doctor.h"

static const char help[] =
    "Usage: lplb doctor [--json]\n"
    "\n"
    "Shows the processor, memory and versions, which optional parts are installed and what\n"
    "each is for, and plans a small batch by every solver, and on the GPU where there is one\n"
    "and liblplb_cuda; each plan is verified. Says what to do about what it finds.\n"
    "\n"
    "  --json    one JSON document on stdout (docs/formats.md)\n"
    "  --help    this text\n"
    "\n"
    "Example:\n"
    "  lplb doctor\n";

/* ---- processor and memory ---- */

/* Value of the first "key : value" line of a file like /proc/cpuinfo, "" if there is none. */
static void read_key(const char *path, const char *key, char *out, size_t bytes) {
    *out = '\0';
    FILE *file = fopen(path, "r");
    if (!file) return;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        char *value = strchr(line, ':');
        if (!value) continue;
        value += strspn(value, ": \t");
        value[strcspn(value, "\n")] = '\0';
        snprintf(out, bytes, "%s", value);
        break;
    }
    fclose(file);
}

static int64_t read_kib(const char *key) {
    char value[64];
    read_key("/proc/meminfo", key, value, sizeof value);
    return strtoll(value, NULL, 10) * 1024;
}

/* The control group's limit, if it is lower than the machine's memory (containers). */
static int64_t memory_limit(int64_t total) {
    static const char *const files[] = {"/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(files[i], "r");
        if (!file) continue;
        long long limit = 0;
        int n = fscanf(file, "%lld", &limit);
        fclose(file);
        if (n == 1 && limit > 0 && limit < total) return limit;
    }
    return total;
}

static json_t *simd_features(void) {
    json_t *list = json_array();
#define ADD_IF(condition, name)                                                                    \
    if (condition) json_array_append_new(list, json_string(name))
#if defined(__x86_64__)
    ADD_IF(__builtin_cpu_supports("sse4.2"), "sse4.2");
    ADD_IF(__builtin_cpu_supports("popcnt"), "popcnt");
    ADD_IF(__builtin_cpu_supports("avx"), "avx");
    ADD_IF(__builtin_cpu_supports("avx2"), "avx2");
    ADD_IF(__builtin_cpu_supports("bmi2"), "bmi2");
    ADD_IF(__builtin_cpu_supports("fma"), "fma");
    ADD_IF(__builtin_cpu_supports("avx512f"), "avx512f");
    ADD_IF(__builtin_cpu_supports("avx512bw"), "avx512bw");
    ADD_IF(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
#elif defined(__aarch64__)
    unsigned long features = getauxval(AT_HWCAP);
    ADD_IF(features & (1UL << 1), "asimd");
    ADD_IF(features & (1UL << 8), "atomics");
    ADD_IF(features & (1UL << 22), "sve");
#endif
#undef ADD_IF
    return list;
}

static int usable_cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static json_t *describe_system(void) {
    struct utsname system;
    uname(&system);
    char os[256], cpu[256];
    os[0] = '\0';
    FILE *file = fopen("/etc/os-release", "r");
    char line[256];
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "PRETTY_NAME=\"%255[^\"]", os) == 1) break;
    if (file) fclose(file);
    read_key("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    int64_t total = read_kib("MemTotal");
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:o, s:I, s:I, s:I}", "os",
                     *os ? os : system.sysname, "kernel", system.release, "arch", system.machine,
                     "cpu", *cpu ? cpu : "unknown", "cores", (int)sysconf(_SC_NPROCESSORS_ONLN),
                     "usable_cores", usable_cores(), "simd", simd_features(), "memory_bytes",
                     (json_int_t)total, "memory_limit_bytes", (json_int_t)memory_limit(total),
                     "memory_available_bytes", (json_int_t)read_kib("MemAvailable"));
}

/* ---- optional parts ---- */

/* First line that a command prints, false if it fails. Commands are this file's own literals. */
static bool first_line(const char *shell, char *out, size_t bytes) {
    *out = '\0';
    FILE *pipe = popen(shell, "r");
    if (!pipe) return false;
    bool got = fgets(out, (int)bytes, pipe) != NULL;
    char rest[256];
    while (fgets(rest, sizeof rest, pipe)) continue;
    out[strcspn(out, "\n")] = '\0';
    return pclose(pipe) == 0 && got && *out;
}

typedef struct optional_part {
    const char *name, *purpose;
    const char *libraries; /* names to try, blank between them, or NULL */
    const char *command;   /* prints a version on its first line, or NULL */
    const char *install;   /* what to do about its absence */
} optional_part;

static const optional_part parts[] = {
    {"CUDA driver", "NVIDIA GPUs", "libcuda.so.1", NULL,
     "install NVIDIA's driver (apt install nvidia-driver); in a container start it with --gpus "
     "all"},
    {"liblplb_cuda", "plan and dispatch on a GPU", "liblplb_cuda.so.0", NULL,
     "build lplb where nvcc is (cmake -DLPLB_CUDA=ON), or add its folder to LD_LIBRARY_PATH"},
    {"CUDA toolkit", "building liblplb_cuda", NULL,
     "PATH=$PATH:/usr/local/cuda/bin nvcc --version 2>/dev/null | sed -n 's/.*release //p'",
     "install NVIDIA's cuda-toolkit package, or put nvcc on the PATH"},
    {"MPI", "the trainer, on several ranks", "libmpi.so.40 libmpi.so.12 libmpi.so",
     "mpirun --version 2>/dev/null", "apt install libopenmpi-dev openmpi-bin"},
    {"OpenBLAS", "the trainer", "libopenblas.so.0", NULL, "apt install libopenblas-dev"},
    {"NCCL", "counts shared between GPUs (transport nccl of liblplb_cuda, loaded at run time)",
     "libnccl.so.2", NULL, "pip install nvidia-nccl-cu13, or apt install libnccl2"},
    {"NVSHMEM", "counts between GPUs of several nodes (transport nvshmem of liblplb_cuda)",
     "libnvshmem_host.so.3", NULL,
     "pip install nvidia-nvshmem-cu13, or name the file in LPLB_NVSHMEM_LIBRARY"},
    {"DeepEP", "dispatch and combine in engines", NULL,
     "python3 -c 'import importlib.metadata as m; print(m.version(\"deep_ep\"))' 2>/dev/null",
     "build it from github.com/deepseek-ai/DeepEP"},
    {"NVTX", "ranges in Nsight (headers, when the library is built)", NULL, NULL,
     "build lplb with nvtx3 in the include path; the CUDA toolkit has it"},
    {"CLP", "independent LP solver of the benchmarks", "libClp.so.1",
     "pkg-config --modversion clp 2>/dev/null", "apt install coinor-libclp-dev"},
    {"Python", "the Python package, and the tests' checks of the source text", NULL,
     "python3 --version 2>/dev/null", "apt install python3 python3-numpy"},
    {"PyTorch", "tensors in the Python package, recording traces in engines", NULL,
     "python3 -c 'import importlib.metadata as m; print(m.version(\"torch\"))' 2>/dev/null",
     "pip install torch, or apt install python3-torch"},
};
enum { N_PARTS = sizeof parts / sizeof parts[0] };

static bool find_library(const char *names, char *found, size_t bytes) {
    char list[256];
    snprintf(list, sizeof list, "%s", names);
    for (char *save, *name = strtok_r(list, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
        void *handle = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
        if (!handle) continue;
        dlclose(handle);
        snprintf(found, bytes, "%s", name);
        return true;
    }
    return false;
}

static json_t *describe_part(const optional_part *part) {
    char version[256] = "", library[256] = "";
    bool has_library = part->libraries && find_library(part->libraries, library, sizeof library);
    bool has_command = part->command && first_line(part->command, version, sizeof version);
    bool found = part->libraries ? has_library : has_command;
    if (!strcmp(part->name, "NVTX") && lplb_has_nvtx()) {
        found = true;
        snprintf(library, sizeof library, "built in");
    }
    if (found && !strcmp(part->name, "NCCL")) {
        doctor_nccl_version(version, sizeof version);
        has_command = *version != '\0';
    }
    const char *detail = has_command ? version : library;
    return json_pack("{s:s, s:b, s:o, s:s, s:s}", "name", part->name, "found", found, "detail",
                     found && *detail ? json_string(detail) : json_null(), "for", part->purpose,
                     "install", part->install);
}

static json_t *describe_parts(void) {
    json_t *list = json_array();
    for (int i = 0; i < N_PARTS; i++) json_array_append_new(list, describe_part(&parts[i]));
    return list;
}

/* ---- the planner ---- */

static lplb_status plan_small(lplb_plan *plan, int64_t *solve_ns) {
    static int64_t split[DOCTOR_HOSTS], loads[DOCTOR_RANKS];
    static uint64_t certificate[1];
    doctor_batch batch;
    lplb_placement *placement;
    lplb_planner *planner;
    *plan = (lplb_plan){.split = split, .loads = loads, .certificate = certificate};
    lplb_status status = doctor_fill_batch(&batch, &placement);
    if (status != LPLB_OK) return status;
    lplb_placement_destroy(placement);
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = batch.hosts};
    lplb_plan_input input = {.tokens = batch.tokens};
    status = lplb_planner_create(&config, &planner);
    if (status != LPLB_OK) return status;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    status = lplb_plan_solve(planner, &input, plan);
    clock_gettime(CLOCK_MONOTONIC, &end);
    *solve_ns = (end.tv_sec - start.tv_sec) * 1000000000 + end.tv_nsec - start.tv_nsec;
    if (status == LPLB_OK) status = lplb_plan_check(&config.hosts, NULL, &input, plan);
    lplb_planner_destroy(planner);
    return status;
}

static json_t *check_planner(bool *ok) {
    lplb_plan plan;
    int64_t solve_ns = 0;
    lplb_status status = plan_small(&plan, &solve_ns);
    *ok = status == LPLB_OK && plan.outcome == LPLB_OUTCOME_OPTIMAL;
    if (status != LPLB_OK)
        return json_pack("{s:b, s:s}", "ok", 0, "error",
                         *lplb_error_message() ? lplb_error_message() : lplb_status_text(status));
    return json_pack("{s:b, s:s, s:I, s:I}", "ok", *ok, "status", lplb_outcome_name(plan.outcome),
                     "max_load", (json_int_t)plan.max_load, "solve_ns", (json_int_t)solve_ns);
}

/* ---- output ---- */

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static double gib_of(const json_t *object, const char *key) {
    return (double)json_integer_value(json_object_get(object, key)) / (1 << 30);
}

static void print_text(const json_t *document) {
    const json_t *system = json_object_get(document, "system");
    printf("lplb      %s\n", text_of(document, "version"));
    printf("system    %s, Linux %s, %s\n", text_of(system, "os"), text_of(system, "kernel"),
           text_of(system, "arch"));
    printf("processor %s, %d of %d cores usable\n", text_of(system, "cpu"),
           (int)json_integer_value(json_object_get(system, "usable_cores")),
           (int)json_integer_value(json_object_get(system, "cores")));
    printf("SIMD     ");
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(system, "simd"), i, item)
        printf(" %s", json_string_value(item));
    printf("\nmemory    %.1f GiB available, %.1f GiB usable, %.1f GiB installed\n\n",
           gib_of(system, "memory_available_bytes"), gib_of(system, "memory_limit_bytes"),
           gib_of(system, "memory_bytes"));
    printf("Optional parts; everything on the CPU works without them:\n");
    json_array_foreach(json_object_get(document, "optional"), i, item) {
        bool found = json_is_true(json_object_get(item, "found"));
        printf("  %-13s %-9s  %-28s %s\n", text_of(item, "name"), found ? "found" : "not found",
               text_of(item, "detail"), text_of(item, "for"));
    }
    const json_t *check = json_object_get(document, "planner");
    if (json_is_true(json_object_get(check, "ok")))
        printf("\nPlanner: a small batch planned in %.1f us, %s, certificate checked\n",
               (double)json_integer_value(json_object_get(check, "solve_ns")) / 1e3,
               text_of(check, "status"));
    else printf("\nPlanner: FAILED: %s%s\n", text_of(check, "error"), text_of(check, "status"));
    json_array_foreach(json_object_get(document, "backends"), i, item) {
        const json_t *good = json_object_get(item, "ok");
        printf("GPU plan: %s%s\n",
               json_is_true(good)    ? "the same batch, optimal, certificate checked, on "
               : json_is_false(good) ? "FAILED: "
                                     : "not tried: ",
               text_of(item, "detail"));
    }
}

static void print_more(const json_t *document) {
    const json_t *gpus = json_object_get(document, "gpus"), *item;
    size_t i;
    json_array_foreach(json_object_get(gpus, "devices"), i, item)
        printf("GPU %zu     %s, %.1f GiB, %.1f free; driver %s, CUDA %s\n", i,
               text_of(item, "name"), gib_of(item, "memory_bytes"), gib_of(item, "free_bytes"),
               text_of(gpus, "driver"), text_of(gpus, "cuda"));
    printf("Solvers: ");
    json_array_foreach(json_object_get(document, "solvers"), i, item)
        printf("%s%s %s", i ? ", " : "", text_of(item, "solver"),
               json_is_true(json_object_get(item, "ok")) ? "verified" : "FAILED");
    printf("\n\nFindings, and what to do (docs/troubleshooting.md):\n");
    json_array_foreach(json_object_get(document, "findings"), i, item)
        printf("  %s: %s\n", text_of(item, "finding"), text_of(item, "do"));
}

int cmd_doctor(int argc, char **argv) {
    static const struct option options[] = {
        {"json", no_argument, 0, 'j'}, {"help", no_argument, 0, 'h'}, {0, 0, 0, 0}};
    bool json = false;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 'j': json = true; break;
        case 'h': fputs(help, stdout); return EXIT_OK;
        default: return EXIT_USAGE;
        }
    }
    if (optind < argc)
        return cli_fail(argv[0], EXIT_USAGE, "takes no arguments, not '%s'", argv[optind]);
    bool ok, planner_ok, solvers_ok;
    json_t *cuda = doctor_cuda();
    ok = !json_is_false(json_object_get(cuda, "ok"));
    json_t *document =
        json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:[o]}", "schema", "lplb.doctor/1",
                  "version", lplb_version(), "system", describe_system(), "gpus", doctor_gpus(),
                  "optional", describe_parts(), "planner", check_planner(&planner_ok), "solvers",
                  doctor_solvers(&solvers_ok), "backends", cuda);
    if (!document) return cli_fail(argv[0], EXIT_FAILED, "out of memory");
    json_object_set_new(document, "findings", doctor_findings(document));
    ok = ok && planner_ok && solvers_ok;
    int code = EXIT_OK;
    if (json) {
        code = cli_print_json(document);
    } else {
        print_text(document);
        print_more(document);
        json_decref(document);
    }
    return ok ? code : EXIT_FAILED;
}
