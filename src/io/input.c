#define _POSIX_C_SOURCE 200809L
#include "io/input.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zip.h>

#include "base/mem.h"

/* A pipe has no positions, so it is taken into memory whole. */
static lplb_status take_pipe(int fd, const char *path, int64_t max_bytes, lplb__input *out) {
    int64_t capacity = 0, used = 0;
    unsigned char *data = NULL;
    lplb_status status = LPLB_OK;
    for (;;) {
        if (used == capacity) {
            if (used >= max_bytes)
                LPLB_FAIL_GOTO(status, failed, LPLB_RANGE, "%s gives more than %lld bytes", path,
                               (long long)max_bytes);
            capacity = capacity ? 2 * capacity : 1 << 16;
            if (capacity > max_bytes) capacity = max_bytes;
            unsigned char *grown = lplb__realloc(data, (size_t)capacity);
            if (!grown)
                LPLB_FAIL_GOTO(status, failed, LPLB_NO_MEMORY, "cannot hold %lld bytes of %s",
                               (long long)capacity, path);
            data = grown;
        }
        ssize_t n = read(fd, data + used, (size_t)(capacity - used));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            LPLB_FAIL_GOTO(status, failed, LPLB_IO, "cannot read %s: %s", path, strerror(errno));
        if (n == 0) break;
        used += n;
    }
    static const unsigned char nothing[1];
    out->data = data ? data : nothing;
    out->owned = data;
    out->bytes = used;
    return LPLB_OK;
failed:
    lplb__free(data);
    return status;
}

lplb_status lplb__input_open(const char *path, int64_t max_bytes, lplb__input *out) {
    if (max_bytes <= 0) max_bytes = LPLB__DEFAULT_MAX_BYTES;
    *out = (lplb__input){.name = path, .fd = -1, .max_bytes = max_bytes};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return LPLB_FAIL(LPLB_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat info;
    lplb_status status = LPLB_OK;
    if (fstat(fd, &info) != 0)
        LPLB_FAIL_GOTO(status, done, LPLB_IO, "cannot stat %s: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        LPLB_FAIL_GOTO(status, done, LPLB_IO, "%s is a folder, a file is wanted", path);
    if (S_ISREG(info.st_mode)) {
        out->fd = fd;
        out->bytes = info.st_size;
        return LPLB_OK;
    }
    status = take_pipe(fd, path, max_bytes, out);
done:
    close(fd);
    return status;
}

void lplb__input_memory(const void *data, int64_t bytes, const char *name, int64_t max_bytes,
                        lplb__input *out) {
    static const unsigned char nothing[1];
    *out = (lplb__input){.name = name,
                         .fd = -1,
                         .data = bytes ? data : nothing,
                         .bytes = bytes,
                         .max_bytes = max_bytes > 0 ? max_bytes : LPLB__DEFAULT_MAX_BYTES};
}

lplb_status lplb__input_read(const lplb__input *input, int64_t offset, void *buffer,
                             int64_t bytes) {
    if (offset < 0 || bytes < 0 || offset > input->bytes || bytes > input->bytes - offset)
        return LPLB_FAIL(LPLB_FORMAT,
                         "%s ends at byte %lld, %lld bytes were expected from byte %lld on",
                         input->name, (long long)input->bytes, (long long)bytes, (long long)offset);
    if (input->data) {
        memcpy(buffer, input->data + offset, (size_t)bytes);
        return LPLB_OK;
    }
    for (int64_t done = 0; done < bytes;) {
        ssize_t n = pread(input->fd, (char *)buffer + done, (size_t)(bytes - done), offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return LPLB_FAIL(LPLB_IO, "cannot read %s at byte %lld: %s", input->name,
                             (long long)(offset + done), strerror(errno));
        if (n == 0)
            return LPLB_FAIL(LPLB_IO, "%s shrank to %lld bytes while it was read", input->name,
                             (long long)(offset + done));
        done += n;
    }
    return LPLB_OK;
}

void lplb__input_close(lplb__input *input) {
    if (input->fd >= 0) close(input->fd);
    lplb__free(input->owned);
    *input = (lplb__input){.fd = -1};
}

lplb_status lplb__input_load(const lplb__input *input, char **out) {
    *out = NULL;
    if (input->bytes > input->max_bytes)
        return LPLB_FAIL(LPLB_RANGE, "%s has %lld bytes, at most %lld are read", input->name,
                         (long long)input->bytes, (long long)input->max_bytes);
    char *text;
    LPLB_TRY(LPLB_CALLOC(text, input->bytes + 1));
    lplb_status status = lplb__input_read(input, 0, text, input->bytes);
    if (status != LPLB_OK) lplb__free(text);
    else *out = text;
    return status;
}

void lplb__stream_range(const lplb__input *input, int64_t position, int64_t bytes, const char *name,
                        lplb__stream *out) {
    *out =
        (lplb__stream){.input = input, .position = position, .end = position + bytes, .name = name};
}

lplb_status lplb__stream_read(lplb__stream *stream, void *buffer, int64_t bytes, int64_t *got) {
    *got = 0;
    if (!stream->entry) {
        int64_t left = stream->end - stream->position;
        int64_t n = bytes < left ? bytes : left;
        LPLB_TRY(lplb__input_read(stream->input, stream->position, buffer, n));
        stream->position += n;
        stream->done += n;
        *got = n;
        return LPLB_OK;
    }
    while (*got < bytes) {
        zip_int64_t n =
            zip_fread(stream->entry, (char *)buffer + *got, (zip_uint64_t)(bytes - *got));
        if (n < 0)
            return LPLB_FAIL(LPLB_FORMAT, "%s: bad compressed data after byte %lld: %s",
                             stream->name, (long long)stream->done,
                             zip_error_strerror(zip_file_get_error(stream->entry)));
        if (n == 0) break;
        *got += n;
        stream->done += n;
    }
    return LPLB_OK;
}

lplb_status lplb__stream_read_exact(lplb__stream *stream, void *buffer, int64_t bytes) {
    int64_t got;
    LPLB_TRY(lplb__stream_read(stream, buffer, bytes, &got));
    if (got < bytes)
        return LPLB_FAIL(LPLB_FORMAT, "%s is cut off at byte %lld, %lld more were expected",
                         stream->name, (long long)stream->done, (long long)(bytes - got));
    return LPLB_OK;
}

void lplb__stream_close(lplb__stream *stream) {
    if (stream->entry) zip_fclose(stream->entry);
    stream->entry = NULL;
}
