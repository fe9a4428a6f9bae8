/* What the commands of `lplb` share. A command returns its exit code: 0 on success, 1 on a failed
 * run or check, 2 on bad usage or bad input, with the message on stderr. */
#ifndef LPLB_CLI_CLI_H
#define LPLB_CLI_CLI_H

#include <jansson.h>
#include <lplb/lplb.h>
#include <stdbool.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

typedef struct command {
    const char *name;
    const char *summary;               /* one line of `lplb --help` */
    int (*run)(int argc, char **argv); /* argv[0] = "lplb NAME" */
} command;

/* In the order of `lplb --help`; cmake/install.cmake reads these lines for the man pages. */
/* clang-format off */
#define LPLB_COMMANDS(X)                                                                           \
    X(replay, "drive a recorded trace through policies and compare them")                          \
    X(explain, "what limits one batch, and which copy would help")                                 \
    X(place, "choose which expert copies live on which rank")                                      \
    X(plan, "split one batch's tokens over expert copies, optimally")                             \
    X(convert, "turn traces and placements of the engines into each other's formats")             \
    X(gen, "write a synthetic routing trace")                                                     \
    X(train, "train an MoE language model with the balancer in the loop")                          \
    X(bench, "time the solvers, EPLB and the dispatch on this machine")                            \
    X(advise, "what recorded loads ask for: redundancy, topology, batch size")                     \
    X(top, "watch the monitor of a running process")                                               \
    X(doctor, "what this machine offers, and whether the planner works on it")
/* clang-format on */

#define DECLARE_COMMAND(name, summary) int cmd_##name(int argc, char **argv);
LPLB_COMMANDS(DECLARE_COMMAND)
#undef DECLARE_COMMAND

/* "lplb plan: <message>" on stderr; returns code. */
int cli_fail(const char *name, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for a failed library call: bad input is 2, everything else 1. */
int cli_fail_status(const char *name, lplb_status status);

/* Prints one JSON document and a newline on stdout, takes the reference. Returns 0, or 1 if stdout
 * cannot be written. */
int cli_print_json(json_t *document);

/* Whole file or "-" = stdin as JSON; message names line and column. NULL after printing it. */
json_t *cli_read_json(const char *name, const char *path);

/* Zeroed memory, never NULL: a command without memory ends here, with exit code 1. free() it. */
void *cli_need(size_t count, size_t item_bytes);

/* Parsers of option values; false after printing what is wrong. */
bool cli_parse_int(const char *name, const char *option, const char *text, int64_t low,
                   int64_t high, int64_t *out);
bool cli_parse_double(const char *name, const char *option, const char *text, double low,
                      double high, double *out);

/* True if stderr is a terminal that wants progress lines (NO_COLOR and TERM=dumb respected). */
bool cli_is_terminal(void);
/* Redraws one progress line on stderr, nothing in a pipe; fraction >= 1 clears it. */
void cli_progress(double fraction, const char *what, void *unused);

#endif
