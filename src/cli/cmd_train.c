/* lplb train: finds lplb-train beside this program and starts it, on several ranks through mpirun.
 * The trainer is a program of its own because only it needs MPI and a BLAS. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { PATH_SIZE = 4096 };

/* Where the trainer is, it explains its options itself. */
static const char help_without_trainer[] =
    "Usage: lplb train [--ranks N] [--precision f32|f64] [--config FILE] [options]\n"
    "\n"
    "Trains a mixture-of-experts language model on text, with experts spread over ranks. The\n"
    "trainer is a program of its own, which is built where MPI and OpenBLAS are found; here it is\n"
    "not. With it, this help lists all options, --json among them.\n"
    "\n"
    "Example:\n"
    "  lplb train --ranks 8 --experts 16 --mode lplb --redundant 2 --steps 200\n";

typedef struct launch {
    int64_t ranks;
    const char *precision;
    char **rest; /* what goes on to the trainer, NULL-terminated */
    int n_rest;
} launch;

/* Value of "--name V" or "--name=V" at argv[*i], NULL if argv[*i] is another option. */
static const char *value_of(const char *option, char **argv, int argc, int *i) {
    size_t n = strlen(option);
    if (strncmp(argv[*i], option, n)) return NULL;
    if (argv[*i][n] == '=') return argv[*i] + n + 1;
    if (argv[*i][n] || *i + 1 >= argc) return NULL;
    return argv[++*i];
}

static bool parse(int argc, char **argv, launch *l) {
    *l = (launch){.ranks = 1, .precision = "f32"};
    l->rest = cli_need((size_t)argc + 1, sizeof *l->rest);
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = value_of("--ranks", argv, argc, &i))) {
            if (!cli_parse_int(argv[0], "--ranks", value, 1, 4096, &l->ranks)) return false;
        } else if ((value = value_of("--precision", argv, argc, &i))) {
            if (strcmp(value, "f32") && strcmp(value, "f64"))
                return cli_fail(argv[0], EXIT_USAGE, "--precision wants f32 or f64, not '%s'",
                                value),
                       false;
            l->precision = value;
        } else {
            l->rest[l->n_rest++] = argv[i];
        }
    }
    return true;
}

/* The path of the trainer beside this program; false if it is not there. */
static bool find_trainer(const char *precision, char *path) {
    char self[PATH_SIZE];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return false;
    self[n] = '\0';
    int length = snprintf(path, PATH_SIZE, "%s/lplb-train%s", dirname(self),
                          strcmp(precision, "f64") ? "" : "-f64");
    return length < PATH_SIZE && !access(path, X_OK);
}

/* Without a trainer there is still an answer to --help. */
static int without_trainer(const char *name, const launch *l) {
    for (int i = 0; i < l->n_rest; i++)
        if (!strcmp(l->rest[i], "--help") || !strcmp(l->rest[i], "-h")) {
            fputs(help_without_trainer, stdout);
            return EXIT_OK;
        }
    char other[PATH_SIZE];
    if (!strcmp(l->precision, "f64") && find_trainer("f32", other))
        return cli_fail(name, EXIT_USAGE,
                        "the trainer in double, lplb-train-f64, is not beside this program: it is "
                        "built with everything (make build), not by make demo");
    return cli_fail(name, EXIT_USAGE,
                    "no trainer beside this program: it is built where MPI and OpenBLAS are found "
                    "(apt-get install libopenmpi-dev openmpi-bin libopenblas-dev, then make)");
}

/* ---- several ranks ---- */

/* mpirun, told to end, kills its ranks after a second, which may be in the middle of a step. But it
 * hands SIGUSR1 on to them, which they understand as a wish to stop (src/train/run.c). So this
 * program stays, with mpirun in a process group that a terminal's Ctrl-C does not reach. */
static volatile sig_atomic_t launcher, asked_by;
enum { LISTENING_AFTER = 2 }; /* seconds: a rank that has only just begun dies of SIGUSR1 */
static time_t started;        /* when mpirun was */

static time_t seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static void hand_on(void) {
    if (launcher > 0 && seconds_now() - started > LISTENING_AFTER) kill((pid_t)launcher, SIGUSR1);
}

/* The first is handed on until the ranks have ended; one more after some seconds ends mpirun, and
 * it them; another one kills mpirun, which can hang when its ranks die while it starts them. */
static void pass_on(int signal_number) {
    static volatile sig_atomic_t asked_at, ending;
    int32_t now = (int32_t)seconds_now();
    if (!asked_by) {
        asked_by = signal_number;
        asked_at = now;
        hand_on();
    } else if (now - asked_at > LISTENING_AFTER && launcher > 0) {
        kill((pid_t)launcher, ending ? SIGKILL : SIGTERM);
        ending = 1;
        asked_at = now;
    }
}

static int wait_for_launcher(pid_t child) {
    const struct timespec again = {.tv_nsec = 300000000};
    int status = 0;
    for (;;) {
        pid_t ended = waitpid(child, &status, asked_by ? WNOHANG : 0);
        if (ended == child || (ended < 0 && errno != EINTR)) return status;
        if (!asked_by) continue;
        hand_on();
        nanosleep(&again, NULL);
    }
}

static void start_launcher(char **words) {
    int nothing = open("/dev/null", O_RDONLY); /* a background group may not read the terminal */
    setpgid(0, 0);
    signal(SIGUSR1, SIG_IGN); /* until mpirun and the ranks listen to it */
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
    if (nothing >= 0) dup2(nothing, STDIN_FILENO);
    execvp(words[0], words);
    _exit(127);
}

/* mpirun says 1 when it was told to end too, as by a signal to all of a job's processes. */
static int exit_code(const char *name, int status) {
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (code == 127)
        return cli_fail(name, EXIT_FAILED, "cannot start mpirun (apt-get install openmpi-bin)");
    if (asked_by && (code == EXIT_FAILED || code > 128)) return 128 + (int)asked_by;
    if (code > 128 && code != 128 + SIGINT && code != 128 + SIGTERM) /* those have said why */
        return cli_fail(name, code, "a rank was ended by signal %d (%s)", code - 128,
                        strsignal(code - 128));
    return code;
}

static int run_ranks(const char *name, char **words) {
    struct sigaction action = {.sa_handler = pass_on};
    started = seconds_now();
    pid_t child = fork();
    if (child < 0) return cli_fail(name, EXIT_FAILED, "cannot start mpirun: %s", strerror(errno));
    if (child == 0) start_launcher(words);
    launcher = (sig_atomic_t)child;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return exit_code(name, wait_for_launcher(child));
}

int cmd_train(int argc, char **argv) {
    char trainer[PATH_SIZE], ranks[24];
    launch l;
    bool understood = parse(argc, argv, &l);
    if (!understood || !find_trainer(l.precision, trainer)) {
        int code = understood ? without_trainer(argv[0], &l) : EXIT_USAGE;
        free(l.rest);
        return code;
    }
    /* Several ranks share the processors, so each computes on one thread. */
    if (l.ranks > 1) setenv("OPENBLAS_NUM_THREADS", "1", 0);
    char **words = cli_need((size_t)l.n_rest + 16, sizeof *words);
    int n = 0;
    if (l.ranks > 1) {
        snprintf(ranks, sizeof ranks, "%lld", (long long)l.ranks);
        /* --quiet, but Open MPI 5 would stop at that: it has no way to leave its notices out. */
        setenv("OMPI_MCA_orte_execute_quiet", "1", 0);
        char *mpirun[] = {"mpirun", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-n",
                          ranks};
        for (size_t i = 0; i < sizeof mpirun / sizeof *mpirun; i++) words[n++] = mpirun[i];
        if (geteuid() == 0) words[n++] = "--allow-run-as-root";
    }
    words[n++] = trainer;
    for (int i = 0; i < l.n_rest; i++) words[n++] = l.rest[i];
    if (l.ranks > 1) return run_ranks(argv[0], words);
    execvp(words[0], words);
    return cli_fail(argv[0], EXIT_FAILED, "cannot start %s: %s", words[0], strerror(errno));
}
