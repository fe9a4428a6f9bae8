#define _XOPEN_SOURCE 700
#include "cases/run_cli.h"

#include <errno.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "run_cli: %s: %s\n", what, strerror(errno));
    abort();
}

/* Temporary files instead of pipes: no amount of output can block the child. */
static FILE *open_temporary(const char *text) {
    FILE *file = tmpfile();
    if (!file) die("cannot make a temporary file");
    if (text && fputs(text, file) == EOF) die("cannot write a temporary file");
    if (fflush(file)) die("cannot write a temporary file");
    rewind(file);
    return file;
}

static char *read_all(FILE *file, size_t *bytes) {
    size_t used = 0, capacity = 4096;
    char *text = malloc(capacity);
    if (!text) die("out of memory");
    rewind(file);
    for (;;) {
        used += fread(text + used, 1, capacity - used - 1, file);
        if (used < capacity - 1) break;
        capacity *= 2;
        text = realloc(text, capacity);
        if (!text) die("out of memory");
    }
    text[used] = '\0';
    if (bytes) *bytes = used;
    fclose(file);
    return text;
}

void run_command(run_result *result, const char *input, const char *const *argv) {
    FILE *in = open_temporary(input), *out = open_temporary(NULL), *err = open_temporary(NULL);
    fflush(NULL); /* or the child would print what is buffered here once more */
    pid_t child = fork();
    if (child < 0) die("cannot fork");
    if (child == 0) {
        dup2(fileno(in), STDIN_FILENO);
        dup2(fileno(out), STDOUT_FILENO);
        dup2(fileno(err), STDERR_FILENO);
        execvp(argv[0], (char *const *)argv);
        fprintf(stderr, "cannot run %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) die("cannot wait for the command");
    result->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result->out = read_all(out, &result->out_bytes);
    result->err = read_all(err, &result->err_bytes);
    fclose(in);
    if (result->code == 127) {
        fputs(result->err, stderr);
        abort();
    }
}

void run_cli(run_result *result, const char *input, ...) {
    enum { MOST = 64 };
    const char *argv[MOST + 2] = {LPLB_CLI};
    int n = 1;
    va_list args;
    va_start(args, input);
    for (const char *arg; (arg = va_arg(args, const char *)) != NULL; argv[n++] = arg)
        if (n > MOST) {
            errno = E2BIG;
            die("too many arguments");
        }
    va_end(args);
    run_command(result, input, argv);
}

void run_free(run_result *result) {
    free(result->out);
    free(result->err);
    memset(result, 0, sizeof *result);
}

char *scratch_create(void) {
    const char *base = getenv("TMPDIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/lplb-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(path)) die("cannot make a scratch folder");
    char *copy = strdup(path);
    if (!copy) die("out of memory");
    return copy;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *walk) {
    (void)info, (void)type, (void)walk;
    return remove(path);
}

void scratch_remove(char *path) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS)) die("cannot remove a scratch folder");
    free(path);
}

const char *path_join(const char *dir, const char *name) {
    static _Thread_local char paths[4][4096];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

const char *write_text(const char *dir, const char *name, const char *text) {
    const char *path = path_join(dir, name);
    FILE *file = fopen(path, "wb");
    if (!file || fputs(text, file) == EOF || fclose(file)) die(path);
    return path;
}

char *read_text(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    return file ? read_all(file, bytes) : NULL;
}
