/* lplb-train: trains an MoE model on the ranks that mpirun or srun started, or alone. `lplb train`
 * starts it. Exit codes as all of lplb's: 0, 1 for a failed run, 2 for bad usage or input; and 128
 * and the signal's number for a run that SIGINT or SIGTERM ended early. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "comm/mpi/group_mpi.h"
#include "train/blas.h"
#include "train/memory.h"
#include "train/run.h"

static void print_help(void) {
    printf("Usage: lplb train [--ranks N] [--precision f32|f64] [--config FILE] [options]\n\n"
           "Trains a mixture-of-experts language model on text, with experts spread over ranks,\n"
           "copies of busy experts, and every batch's tokens split over the copies.\n\n"
           "  --ranks N            start N ranks on this machine (through mpirun; 1)\n"
           "  --precision f32|f64  compute in float or, for exactness, in double (f32)\n"
           "  --config FILE        YAML with the sections below; flags win, wherever they stand\n"
           "  --help               this text\n");
    run_options_help(stdout);
    printf(
        "\nExample:\n  lplb train --ranks 8 --experts 16 --mode lplb --redundant 2 --steps 200 \\\n"
        "      --record-routing trace.npz\n");
}

/* "--layers 4", "--layers=4", "--tied", "--no-tied": name and value of argv[*i], which moves to the
 * last word of them. */
static lplb_status next_argument(int argc, char **argv, int *i, char name[64], const char **value) {
    enum { NAME_BYTES = 64 };
    const char *argument = argv[*i];
    if (strncmp(argument, "--", 2))
        return LPLB_FAIL(LPLB_INVALID, "'%s' is no option; --help lists them", argument);
    size_t n = strcspn(argument + 2, "=");
    *value = argument[2 + n] ? argument + 3 + n : NULL;
    if (n >= NAME_BYTES) return LPLB_FAIL(LPLB_INVALID, "no option '%s'", argument);
    memcpy(name, argument + 2, n);
    name[n] = '\0';
    if (!*value && run_options_is_flag(name)) {
        *value = "true";
    } else if (!*value && !strncmp(name, "no-", 3) && run_options_is_flag(name + 3)) {
        memmove(name, name + 3, n - 2);
        *value = "false";
    } else if (!*value) {
        if (*i + 1 >= argc) return LPLB_FAIL(LPLB_INVALID, "--%s needs a value", name);
        *value = argv[++*i];
    }
    /* Of a file an empty text is no text; here it is a variable that was not set. */
    if (!**value)
        return LPLB_FAIL(LPLB_INVALID, "--%s is empty; leave it out, or give it a value", name);
    return LPLB_OK;
}

/* Files first, whatever their place, so that flags win over them. */
static lplb_status parse_arguments(run_options *o, int argc, char **argv) {
    for (int flags = 0; flags < 2; flags++)
        for (int i = 1; i < argc; i++) {
            char name[64];
            const char *value = NULL;
            LPLB_TRY(next_argument(argc, argv, &i, name, &value));
            bool file = !strcmp(name, "config");
            if (file && !flags) LPLB_TRY(run_options_read(o, value));
            if (!file && flags) LPLB_TRY(run_options_set(o, name, value));
        }
    return run_options_check(o);
}

/* Under a launcher there are others to talk to; alone there is no need to wake MPI. */
static bool is_launched(void) {
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK",
                                        "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (getenv(signs[i])) return true;
    return false;
}

static int exit_code(lplb_status status) {
    switch (status) {
    case LPLB_OK: return 0;
    case LPLB_INVALID:
    case LPLB_RANGE:
    case LPLB_FORMAT:
    case LPLB_IO:
    case LPLB_UNSUPPORTED:
    case LPLB_DISAGREE: return 2;
    default: return 1;
    }
}

/* One line from one rank. When all ranks fail, the one that knows the reason speaks (the others say
 * LPLB_REMOTE); a rank that fails alone would leave the others waiting for it, so it ends them. */
static int report_failure(lplb__group *world, lplb_status status) {
    enum { PATIENCE_SECONDS = 5 };
    bool alone = false;
    int speaker = 0, code = exit_code(status);
    if (world->size > 1)
        lplb__group_mpi_failed(world, status != LPLB_REMOTE, PATIENCE_SECONDS, &alone, &speaker,
                               &code);
    if (speaker == world->rank) fprintf(stderr, "lplb train: %s\n", lplb_error_message());
    if (alone) lplb__group_mpi_abort(code);
    return code;
}

int main(int argc, char **argv) {
    static run_options options;
    lplb__group *world;
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            print_help();
            return 0;
        }
    memory_return_blocks();
    signal(SIGUSR1, SIG_IGN); /* lplb train says it again when we listen (run.c) */
    blas_choose_core(argv);   /* before MPI is awake */
    lplb_status status =
        is_launched() ? lplb__group_mpi_world(&argc, &argv, &world) : lplb__group_self(&world);
    if (status != LPLB_OK) {
        fprintf(stderr, "lplb train: %s\n", lplb_error_message());
        return exit_code(status);
    }
    gemm_share_processors(world->size);
    run_options_default(&options);
    status = parse_arguments(&options, argc, argv);
    int32_t stopped = 0;
    if (status == LPLB_OK) status = run_training(&options, world, &stopped);
    int code = stopped ? 128 + stopped : 0;
    if (status != LPLB_OK) code = report_failure(world, status);
    world->table->destroy(world);
    lplb__group_mpi_finish();
    return code;
}
