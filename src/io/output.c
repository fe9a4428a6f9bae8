#define _XOPEN_SOURCE 700
#include "io/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static lplb_status copy_text(const char *text, char **out) {
    size_t bytes = strlen(text) + 1;
    *out = lplb__malloc(bytes);
    if (!*out) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate %zu bytes", bytes);
    memcpy(*out, text, bytes);
    return LPLB_OK;
}

/* ".NAME.PID-N.tmp" beside the target; mkstemp would force mode 0600 on the result. */
static lplb_status open_temporary(lplb__output *out) {
    static atomic_uint serial;
    const char *slash = strrchr(out->path, '/');
    int folder = slash ? (int)(slash - out->path) + 1 : 0;
    size_t bytes = strlen(out->path) + 48;
    out->temporary = lplb__malloc(bytes);
    if (!out->temporary) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate %zu bytes", bytes);
    int fd = -1;
    for (int attempt = 0; attempt < 100 && fd < 0; attempt++) {
        /* A long name is cut so that the temporary one stays within the system's limit. */
        snprintf(out->temporary, bytes, "%.*s.%.200s.%ld-%u.tmp", folder, out->path,
                 out->path + folder, (long)getpid(), atomic_fetch_add(&serial, 1));
        fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    if (fd < 0)
        return LPLB_FAIL(LPLB_IO, "cannot write %s: %s: %s", out->path, out->temporary,
                         strerror(errno));
    out->file = fdopen(fd, "wb");
    if (!out->file) {
        close(fd);
        unlink(out->temporary);
        return LPLB_FAIL(LPLB_IO, "cannot write %s: %s", out->path, strerror(errno));
    }
    return LPLB_OK;
}

static void forget(lplb__output *output) {
    lplb__free(output->temporary);
    lplb__free(output->path);
    *output = (lplb__output){0};
}

lplb_status lplb__output_open(const char *path, lplb__output *out) {
    *out = (lplb__output){0};
    struct stat info;
    bool exists = stat(path, &info) == 0;
    char *resolved = exists ? realpath(path, NULL) : NULL;
    lplb_status status = copy_text(resolved ? resolved : path, &out->path);
    free(resolved);
    if (status != LPLB_OK) return status;
    if (exists && S_ISDIR(info.st_mode)) {
        status = LPLB_FAIL(LPLB_IO, "cannot write %s: it is a folder", path);
    } else if (exists && !S_ISREG(info.st_mode)) {
        out->file = fopen(path, "wb");
        if (!out->file) status = LPLB_FAIL(LPLB_IO, "cannot write %s: %s", path, strerror(errno));
    } else {
        status = open_temporary(out);
    }
    if (status != LPLB_OK) forget(out);
    return status;
}

/* The new name must survive a crash too; a file system without folder sync is left at that. */
static void sync_folder(const char *path) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash && (size_t)(slash - path) + 2 > sizeof folder) return;
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    (void)!fsync(fd);
    close(fd);
}

lplb_status lplb__output_commit(lplb__output *output) {
    int error = 0;
    bool wrong = ferror(output->file) != 0;
    errno = 0;
    if (fflush(output->file) != 0) error = errno;
    if (!error && output->temporary && fsync(fileno(output->file)) != 0) error = errno;
    if (fclose(output->file) != 0 && !error) error = errno;
    output->file = NULL;
    if (!error && !wrong && output->temporary) {
        if (rename(output->temporary, output->path) != 0) error = errno;
        else sync_folder(output->path);
    }
    lplb_status status = LPLB_OK;
    if (error || wrong) {
        status = LPLB_FAIL(LPLB_IO, "cannot write %s: %s", output->path,
                           error ? strerror(error) : "a write failed");
        if (output->temporary) unlink(output->temporary);
    }
    forget(output);
    return status;
}

void lplb__output_abort(lplb__output *output) {
    if (!output->file) return;
    fclose(output->file);
    if (output->temporary) unlink(output->temporary);
    forget(output);
}

lplb_status lplb__output_write(const char *path, const void *data, size_t bytes) {
    lplb__output output;
    LPLB_TRY(lplb__output_open(path, &output));
    if (fwrite(data, 1, bytes, output.file) != bytes) {
        lplb_status status = LPLB_FAIL(LPLB_IO, "cannot write %s: %s", path, strerror(errno));
        lplb__output_abort(&output);
        return status;
    }
    return lplb__output_commit(&output);
}
