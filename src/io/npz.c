/* npz: a zip archive of npy files. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>

#include "base/mem.h"
#include "io/array.h"
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
    int64_t wanted = out->position + out->items * lplb_dtype_bytes(out->dtype);
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
                           "`python -m lplb.convert IN -o OUT.npz`",
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

/* libzip reads the items when the archive is closed, as one block with the header before them. */
static zip_source_t *tensor_source(const lplb__tensor *tensor, zip_error_t *error) {
    char header[LPLB__NPY_HEADER_BYTES];
    size_t header_bytes = lplb__npy_header(tensor->dtype, tensor->dims, tensor->shape, header);
    size_t bytes = (size_t)lplb__tensor_bytes(tensor);
    char *image = malloc(header_bytes + bytes); /* freed by libzip */
    if (!image) return NULL;
    memcpy(image, header, header_bytes);
    memcpy(image + header_bytes, tensor->items, bytes);
    zip_source_t *source = zip_source_buffer_create(image, header_bytes + bytes, 1, error);
    if (!source) free(image);
    return source;
}

static bool add_tensor(zip_t *archive, const lplb__tensor *tensor, zip_error_t *error) {
    char file[80];
    snprintf(file, sizeof file, "%s.npy", tensor->name);
    zip_source_t *source = tensor_source(tensor, error);
    if (!source) return false;
    zip_int64_t index = zip_file_add(archive, file, source, ZIP_FL_ENC_UTF_8);
    if (index < 0) {
        zip_source_free(source);
        return false;
    }
    /* A fixed time keeps equal traces equal files: 1980-01-01, the first that zip can say. */
    return zip_set_file_compression(archive, (zip_uint64_t)index, ZIP_CM_DEFLATE, 6) == 0 &&
           zip_file_set_dostime(archive, (zip_uint64_t)index, 0, 0x21, 0) == 0;
}

/* The finished archive's bytes. Free with free. */
static char *read_back(zip_source_t *target, zip_uint64_t *bytes) {
    zip_stat_t info;
    if (zip_source_open(target) != 0) return NULL;
    char *data = NULL;
    if (zip_source_stat(target, &info) == 0 && (data = malloc(info.size + 1))) {
        *bytes = info.size;
        if (zip_source_read(target, data, info.size) != (zip_int64_t)info.size) {
            free(data);
            data = NULL;
        }
    }
    zip_source_close(target);
    return data;
}

lplb_status lplb__npz_write(const char *path, const lplb__tensor *tensor, int32_t n) {
    zip_error_t error;
    zip_error_init(&error);
    lplb_status status = LPLB_OK;
    zip_t *archive = NULL;
    char *data = NULL;
    zip_uint64_t bytes = 0;
    /* The archive is made in memory: libzip would write and rename files of its own. */
    zip_source_t *target = zip_source_buffer_create(NULL, 0, 0, &error);
    bool good = target != NULL;
    if (good) zip_source_keep(target); /* still needed after the archive has taken and closed it */
    if (good) archive = zip_open_from_source(target, ZIP_TRUNCATE | ZIP_CREATE, &error);
    if (good && !archive) zip_source_free(target);
    good = archive != NULL;
    for (int32_t i = 0; i < n && good; i++) good = add_tensor(archive, &tensor[i], &error);
    if (good && zip_close(archive) == 0) archive = NULL;
    else good = false;
    if (archive) zip_discard(archive);
    if (good) data = read_back(target, &bytes);
    if (data) status = lplb__output_write(path, data, bytes);
    else
        status = LPLB_FAIL(LPLB_NO_MEMORY, "cannot make the archive %s: %s", path,
                           zip_error_strerror(&error));
    free(data);
    if (target) zip_source_free(target);
    zip_error_fini(&error);
    return status;
}
