/* Running the lplb command from a test and looking at what it did. */
#ifndef LPLB_TESTS_RUN_CLI_H
#define LPLB_TESTS_RUN_CLI_H

#include <stddef.h>

typedef struct run_result {
    int code;        /* exit code; 128 + signal if a signal ended it */
    char *out, *err; /* what it printed, NUL-terminated */
    size_t out_bytes, err_bytes;
} run_result;

/* run_cli(&r, NULL, "plan", "--json", "problem.json", NULL): runs lplb with these arguments and
 * `input` (NULL = empty) on stdin. Aborts, saying why, if the command cannot be run at all. Free
 * with run_free. */
void run_cli(run_result *result, const char *input, ...) __attribute__((sentinel));

/* The same for any program: argv is NULL-terminated, argv[0] is looked up in PATH. */
void run_command(run_result *result, const char *input, const char *const *argv);
void run_free(run_result *result);

/* A new empty folder for a test's files, removed with all it holds by scratch_remove. */
char *scratch_create(void);
void scratch_remove(char *path); /* frees path too */

/* "DIR/NAME" in a static buffer of the calling thread, four of them in turn. */
const char *path_join(const char *dir, const char *name);

/* Writes text to DIR/NAME and returns the path (as path_join). */
const char *write_text(const char *dir, const char *name, const char *text);

/* The whole file with a NUL behind it, or NULL if it cannot be read; bytes may be NULL. Free it. */
char *read_text(const char *path, size_t *bytes);

#endif
