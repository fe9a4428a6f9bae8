#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

int cli_fail(const char *name, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

int cli_fail_status(const char *name, lplb_status status) {
    bool failed_run = status == LPLB_NO_MEMORY || status == LPLB_NOT_CONVERGED ||
                      status == LPLB_TIMEOUT || status == LPLB_CHECK_FAILED ||
                      status == LPLB_INTERNAL || status == LPLB_DEVICE || status == LPLB_REMOTE;
    const char *message = lplb_error_message();
    return cli_fail(name, failed_run ? EXIT_FAILED : EXIT_USAGE, "%s",
                    *message ? message : lplb_status_text(status));
}

int cli_print_json(json_t *document) {
    int failed = json_dumpf(document, stdout, JSON_COMPACT | JSON_REAL_PRECISION(15));
    json_decref(document);
    if (failed || putchar('\n') == EOF || fflush(stdout)) {
        fprintf(stderr, "lplb: cannot write to stdout: %s\n", strerror(errno));
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

json_t *cli_read_json(const char *name, const char *path) {
    json_error_t error;
    size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
    bool from_stdin = !strcmp(path, "-");
    json_t *document;
    if (from_stdin) {
        document = json_loadf(stdin, flags, &error);
    } else {
        FILE *file = fopen(path, "rb");
        if (!file) {
            cli_fail(name, EXIT_USAGE, "cannot open %s: %s", path, strerror(errno));
            return NULL;
        }
        document = json_loadf(file, flags, &error);
        fclose(file);
    }
    if (!document)
        cli_fail(name, EXIT_USAGE, "%s, line %d, column %d: %s", from_stdin ? "stdin" : path,
                 error.line, error.column, error.text);
    return document;
}

void *cli_need(size_t count, size_t item_bytes) {
    void *block = calloc(count ? count : 1, item_bytes);
    if (block) return block;
    fprintf(stderr, "lplb: out of memory for %zu items of %zu bytes\n", count, item_bytes);
    exit(EXIT_FAILED);
}

bool cli_parse_int(const char *name, const char *option, const char *text, int64_t low,
                   int64_t high, int64_t *out) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < low || value > high) {
        cli_fail(name, EXIT_USAGE, "%s wants a whole number from %lld to %lld, not '%s'", option,
                 (long long)low, (long long)high, text);
        return false;
    }
    *out = value;
    return true;
}

bool cli_parse_double(const char *name, const char *option, const char *text, double low,
                      double high, double *out) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= low && value <= high)) {
        cli_fail(name, EXIT_USAGE, "%s wants a number from %g to %g, not '%s'", option, low, high,
                 text);
        return false;
    }
    *out = value;
    return true;
}

bool cli_is_terminal(void) {
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
}

void cli_progress(double fraction, const char *what, void *unused) {
    (void)unused;
    if (!cli_is_terminal()) return;
    if (fraction >= 1) {
        fprintf(stderr, "\r\033[K");
    } else {
        int filled = (int)(fraction * 24);
        fprintf(stderr, "\r\033[K[%.*s%*s] %3.0f%% %s", filled, "########################",
                24 - filled, "", 100 * fraction, what ? what : "");
    }
    fflush(stderr);
}
