/* npz: a zip archive of npy files. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>

#include "base/mem.h"
#include "io/array.h"
#include "io/npz.h"
#include "io/output.h"

/* Deflate cannot expand further than this (RFC 1951: 258 bytes from 2 bits). */
enum { MAX_DEFLATE_RATIO = 1032 };

static lplb_status open_archive(const lplb__input *input, struct zip **out) {
    zip_error_t error;
    zip_error_init(&error);
    lplb_status status = LPLB_OK;
    zip_source_t *source = NULL;
    *out = NULL;
    if (input->data) {
        source = zip_source_buffer_create(input->data, (zip_uint64_t)input->bytes, 0, &error);
    } else {
        int fd = dup(input->fd);
        FILE *file = fd < 0 ? NULL : fdopen(fd, "rb");
        if (!file) {
            if (fd >= 0) close(fd);
            return LPLB_FAIL(LPLB_IO, "cannot open %s a second time", input->name);
        }
        source = zip_source_filep_create(file, 0, -1, &error); /* takes the file */
        if (!source) fclose(file);
    }
    if (source) *out = zip_open_from_source(source, ZIP_RDONLY, &error);
    if (!*out) {
        status = LPLB_FAIL(LPLB_FORMAT, "%s: bad zip archive of %lld bytes: %s", input->name,
                           (long long)input->bytes, zip_error_strerror(&error));
        if (source) zip_source_free(source);
    }
    zip_error_fini(&error);
    return status;
}

/* The header of one entry; the sizes that the archive states must be possible. */
static lplb_status open_entry(lplb__arrays *arrays, zip_uint64_t index, lplb__array *out) {
    const char *file = arrays->input->name;
    zip_stat_t info;
    if (zip_stat_index(arrays->archive, index, 0, &info) != 0 || !(info.valid & ZIP_STAT_SIZE) ||
        !(info.valid & ZIP_STAT_COMP_SIZE) || !(info.valid & ZIP_STAT_NAME))
        return LPLB_FAIL(LPLB_FORMAT, "%s: entry %lld of the archive is unreadable", file,
                         (long long)index);
    size_t length = strlen(info.name);
    if (length > 4 && !strcmp(info.name + length - 4, ".npy")) length -= 4;
    out->zip_index = (int64_t)index;
    LPLB_TRY(LPLB_CALLOC(out->name, length + 1));
    memcpy(out->name, info.name, length);
    if ((info.valid & ZIP_STAT_ENCRYPTION_METHOD) && info.encryption_method != ZIP_EM_NONE)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "%s: %s is encrypted", file, info.name);
    if (info.size / MAX_DEFLATE_RATIO > info.comp_size + 64)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s claims %llu bytes from %llu compressed ones", file,
                         info.name, (unsigned long long)info.size,
                         (unsigned long long)info.comp_size);
    lplb__stream stream;
    lplb__stream_range(arrays->input, 0, 0, out->name, &stream);
    stream.entry = zip_fopen_index(arrays->archive, index, 0);
    if (!stream.entry)
        return LPLB_FAIL(LPLB_FORMAT, "%s: cannot open %s: %s", file, info.name,
                         zip_strerror(arrays->archive));
    lplb_status status = lplb__npy_parse(&stream, out);
    lplb__stream_close(&stream);
    LPLB_TRY(status);
    if (!out->numeric) return LPLB_OK;
    int64_t wanted = out->position + out->items * lplb__dtype_bytes(out->dtype);
    if ((zip_uint64_t)wanted != info.size)
        return LPLB_FAIL(LPLB_FORMAT, "%s: %s announces %lld bytes, the archive holds %llu", file,
                         info.name, (long long)wanted, (unsigned long long)info.size);
    return LPLB_OK;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

lplb_status lplb__arrays_open_npz(const lplb__input *input, lplb__arrays *out) {
    *out = (lplb__arrays){.input = input};
    LPLB_TRY(open_archive(input, &out->archive));
    lplb_status status = LPLB_OK;
    zip_int64_t entries = zip_get_num_entries(out->archive, 0);
    if (entries > LPLB__MAX_ARRAYS)
        LPLB_FAIL_GOTO(status, failed, LPLB_RANGE, "%s: %lld entries, at most %d are read",
                       input->name, (long long)entries, LPLB__MAX_ARRAYS);
    for (zip_int64_t i = 0; i < entries; i++) {
        const char *name = zip_get_name(out->archive, (zip_uint64_t)i, 0);
        if (name && ends_with(name, "data.pkl"))
            LPLB_FAIL_GOTO(status, failed, LPLB_UNSUPPORTED,
                           "%s is a torch.save file (a pickle); turn it into npz with "
                           "`python -m lplb.convert IN OUT.npz`",
                           input->name);
    }
    LPLB_TRY_GOTO(status, LPLB_CALLOC(out->array, entries), failed);
    for (zip_int64_t i = 0; i < entries; i++) {
        const char *name = zip_get_name(out->archive, (zip_uint64_t)i, 0);
        if (!name || !ends_with(name, ".npy")) continue;
        out->n++;
        LPLB_TRY_GOTO(status, open_entry(out, (zip_uint64_t)i, &out->array[out->n - 1]), failed);
    }
    if (out->n == 0)
        LPLB_FAIL_GOTO(status, failed, LPLB_FORMAT, "%s: a zip archive without any .npy entry",
                       input->name);
    return LPLB_OK;
failed:
    lplb__arrays_close(out);
    return status;
}

/* ---- writing ---- */

struct lplb__npz_writer {
    struct zip *archive;
    zip_source_t *target; /* the archive's bytes, in memory */
};

lplb_status lplb__npz_create(lplb__npz_writer **out) {
    lplb__npz_writer *writer;
    LPLB_TRY(LPLB_CALLOC(writer, 1));
    zip_error_t error;
    zip_error_init(&error);
    lplb_status status = LPLB_OK;
    writer->target = zip_source_buffer_create(NULL, 0, 0, &error);
    if (writer->target) {
        writer->archive = zip_open_from_source(writer->target, ZIP_TRUNCATE | ZIP_CREATE, &error);
        if (writer->archive) zip_source_keep(writer->target); /* to read the result after close */
    }
    if (!writer->archive) {
        status =
            LPLB_FAIL(LPLB_NO_MEMORY, "cannot start a zip archive: %s", zip_error_strerror(&error));
        if (writer->target) zip_source_free(writer->target);
        lplb__free(writer);
        writer = NULL;
    }
    zip_error_fini(&error);
    *out = writer;
    return status;
}

lplb_status lplb__npz_add(lplb__npz_writer *writer, const char *name, lplb_dtype dtype,
                          int32_t dims, const int64_t *shape, const void *items) {
    char header[LPLB__NPY_HEADER_BYTES], file[80];
    size_t header_bytes = lplb__npy_header(dtype, dims, shape, header);
    size_t bytes = (size_t)lplb__dtype_bytes(dtype);
    for (int32_t d = 0; d < dims; d++) bytes *= (size_t)shape[d];
    snprintf(file, sizeof file, "%s.npy", name);

    zip_error_t error;
    zip_error_init(&error);
    /* libzip reads the data when the archive is closed; it must own a copy of the header, and one
     * block for both is the simplest source it takes. */
    char *image = malloc(header_bytes + bytes);
    zip_source_t *source = NULL;
    if (image) {
        memcpy(image, header, header_bytes);
        memcpy(image + header_bytes, items, bytes);
        source = zip_source_buffer_create(image, header_bytes + bytes, 1, &error);
        if (!source) free(image);
    }
    zip_int64_t index = source ? zip_file_add(writer->archive, file, source, ZIP_FL_ENC_UTF_8) : -1;
    if (source && index < 0) zip_source_free(source);
    zip_error_fini(&error);
    /* A fixed time keeps equal traces equal files: 1980-01-01, the first that zip can say. */
    if (index < 0 ||
        zip_set_file_compression(writer->archive, (zip_uint64_t)index, ZIP_CM_DEFLATE, 6) != 0 ||
        zip_file_set_dostime(writer->archive, (zip_uint64_t)index, 0, 0x21, 0) != 0)
        return LPLB_FAIL(LPLB_NO_MEMORY, "cannot add %s of %zu bytes to the archive", file, bytes);
    return LPLB_OK;
}

void lplb__npz_destroy(lplb__npz_writer *writer) {
    if (!writer) return;
    if (writer->archive) zip_discard(writer->archive);
    zip_source_free(writer->target);
    lplb__free(writer);
}

lplb_status lplb__npz_finish(lplb__npz_writer *writer, const char *path) {
    lplb_status status = LPLB_OK;
    void *data = NULL;
    zip_stat_t info;
    if (zip_close(writer->archive) != 0)
        LPLB_FAIL_GOTO(status, done, LPLB_NO_MEMORY, "cannot compress %s: %s", path,
                       zip_strerror(writer->archive));
    writer->archive = NULL;
    if (zip_source_open(writer->target) != 0 || zip_source_stat(writer->target, &info) != 0 ||
        !(data = malloc(info.size ? info.size : 1)) ||
        zip_source_read(writer->target, data, info.size) != (zip_int64_t)info.size)
        LPLB_FAIL_GOTO(status, done, LPLB_NO_MEMORY, "cannot compress %s", path);
    zip_source_close(writer->target);
    status = lplb__output_write(path, data, info.size);
done:
    free(data);
    lplb__npz_destroy(writer);
    return status;
}
