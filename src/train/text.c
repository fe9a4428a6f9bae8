#include "train/text.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/mem.h"

/* A growable run of bytes. */
typedef struct bytes {
    char *data;
    int64_t used, capacity;
} bytes;

static lplb_status append(bytes *b, const void *data, int64_t n) {
    if (b->used + n > b->capacity) {
        int64_t capacity = 2 * (b->used + n) + 4096;
        char *grown = lplb__realloc(b->data, (size_t)capacity);
        if (!grown)
            return LPLB_FAIL(LPLB_NO_MEMORY, "cannot hold %lld bytes of text", (long long)capacity);
        b->data = grown;
        b->capacity = capacity;
    }
    if (n > 0) memcpy(b->data + b->used, data, (size_t)n);
    b->used += n;
    return LPLB_OK;
}

static lplb_status missing(const char *what, const char *package) {
    return LPLB_FAIL(LPLB_IO, "%s: %s; apt-get install --no-install-recommends %s", what,
                     strerror(errno), package);
}

static lplb_status read_stream(FILE *file, bytes *out) {
    char block[65536];
    size_t n;
    while ((n = fread(block, 1, sizeof block, file)) > 0) LPLB_TRY(append(out, block, (int64_t)n));
    return LPLB_OK;
}

/* A file, plain or gzip (zlib reads both). */
static lplb_status read_file(const char *path, const char *package, bytes *out) {
    gzFile file = gzopen(path, "rb");
    if (!file) return missing(path, package);
    char block[65536];
    int n;
    lplb_status status = LPLB_OK;
    while (status == LPLB_OK && (n = gzread(file, block, sizeof block)) > 0)
        status = append(out, block, n);
    if (status == LPLB_OK && n < 0) status = LPLB_FAIL(LPLB_FORMAT, "%s: damaged", path);
    gzclose(file);
    return status;
}

/* ---- cutting text into documents ---- */

/* True if a new document begins at this line. */
typedef bool (*begins)(const char *line, int64_t n);

static lplb_status add_documents(corpus *c, const bytes *text, begins new_document) {
    int64_t start = 0;
    for (int64_t at = 0; at < text->used;) {
        const char *line = text->data + at;
        const char *end = memchr(line, '\n', (size_t)(text->used - at));
        int64_t n = end ? end - line + 1 : text->used - at;
        if (at > start && new_document(line, n)) {
            LPLB_TRY(corpus_add(c, text->data + start, at - start));
            start = at;
        }
        at += n;
    }
    return corpus_add(c, text->data + start, text->used - start);
}

static bool starts_with(const char *line, int64_t n, const char *prefix) {
    size_t length = strlen(prefix);
    return n >= (int64_t)length && !memcmp(line, prefix, length);
}
static bool at_chapter(const char *line, int64_t n) {
    return starts_with(line, n, "CHAPTER") || starts_with(line, n, "Chapter");
}
static bool at_entry(const char *line, int64_t n) {
    return n > 1 && line[0] != ' ' && line[0] != '\t' && line[0] != '\n';
}
static bool at_head(const char *line, int64_t n) { return starts_with(line, n, "=head1"); }
static bool at_form_feed(const char *line, int64_t n) { return n > 0 && line[0] == '\f'; }

/* ---- sources ---- */

/* Lines "Ge1:1 In the beginning ...": a document a chapter, verses without their tags. */
static lplb_status add_kjv(corpus *c) {
    bytes text = {0}, chapter = {0};
    char present[32] = "";
    FILE *pipe = popen("bible -f gen1:1-rev22:21 2>/dev/null", "r");
    if (!pipe) return missing("bible", "bible-kjv bible-kjv-text");
    lplb_status status = read_stream(pipe, &text);
    int code = pclose(pipe);
    if (status == LPLB_OK && (code != 0 || text.used == 0)) {
        errno = ENOENT;
        status = missing("the program bible", "bible-kjv bible-kjv-text");
    }
    for (int64_t at = 0; at < text.used && status == LPLB_OK;) {
        char *line = text.data + at, *end = memchr(line, '\n', (size_t)(text.used - at));
        int64_t n = end ? end - line + 1 : text.used - at;
        char *colon = memchr(line, ':', (size_t)n), *space = memchr(line, ' ', (size_t)n);
        at += n;
        if (!colon || !space || colon > space || colon - line >= (int64_t)sizeof present) continue;
        if (strncmp(present, line, (size_t)(colon - line)) || present[colon - line]) {
            status = corpus_add(c, chapter.data, chapter.used);
            chapter.used = 0;
            memcpy(present, line, (size_t)(colon - line));
            present[colon - line] = '\0';
        }
        if (status == LPLB_OK) status = append(&chapter, space + 1, line + n - space - 1);
    }
    if (status == LPLB_OK) status = corpus_add(c, chapter.data, chapter.used);
    lplb__free(text.data);
    lplb__free(chapter.data);
    return status;
}

static uint32_t big_endian(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* One R object in XDR form (R Internals, "Serialization Formats") that is a vector of strings. */
static lplb_status add_r_strings(corpus *c, const unsigned char *data, int64_t n) {
    enum { HEADER = 14, STRING_VECTOR = 16, STRING = 9 };
    int64_t at = HEADER;
    bytes text = {0};
    if (n < HEADER + 8 || memcmp(data, "X\n", 2))
        return LPLB_FAIL(LPLB_FORMAT, "not an R object in XDR form");
    if (big_endian(data + 2) >= 3) { /* version 3 names its encoding */
        uint32_t length = big_endian(data + at);
        at += 4 + (int64_t)length;
    }
    if (at + 8 > n || (big_endian(data + at) & 255) != STRING_VECTOR) return LPLB_OK;
    int64_t count = big_endian(data + at + 4);
    at += 8;
    lplb_status status = LPLB_OK;
    for (int64_t i = 0; i < count && status == LPLB_OK; i++) {
        if (at + 8 > n || (big_endian(data + at) & 255) != STRING) {
            status = LPLB_FAIL(LPLB_FORMAT, "an R vector of strings ends early, byte %lld",
                               (long long)at);
            break;
        }
        int64_t length = (int32_t)big_endian(data + at + 4);
        at += 8;
        if (length < 0) continue; /* NA */
        if (at + length > n) {
            status =
                LPLB_FAIL(LPLB_FORMAT, "an R string leaves its vector, byte %lld", (long long)at);
            break;
        }
        status = append(&text, data + at, length);
        if (status == LPLB_OK) status = append(&text, "\n", 1);
        at += length;
    }
    if (status == LPLB_OK) status = add_documents(c, &text, at_chapter);
    lplb__free(text.data);
    return status;
}

/* An R database of lazily loaded objects: for each a big-endian length and a zlib stream. */
static lplb_status add_austen(corpus *c) {
    static const char path[] = "/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb";
    enum { MOST = 64 << 20 };
    bytes raw = {0};
    FILE *file = fopen(path, "rb");
    if (!file) return missing(path, "r-cran-janeaustenr");
    lplb_status status = read_stream(file, &raw);
    fclose(file);
    for (int64_t at = 0; status == LPLB_OK && at + 4 < raw.used;) {
        uint32_t length = big_endian((unsigned char *)raw.data + at);
        unsigned char *object = length < MOST ? lplb__malloc(length) : NULL;
        z_stream z = {.next_in = (unsigned char *)raw.data + at + 4,
                      .avail_in = (unsigned)(raw.used - at - 4),
                      .next_out = object,
                      .avail_out = length};
        bool fine = object && inflateInit(&z) == Z_OK;
        int code = fine ? inflate(&z, Z_FINISH) : Z_MEM_ERROR;
        if (fine) inflateEnd(&z);
        at += 4 + (int64_t)z.total_in;
        if (code == Z_STREAM_END) status = add_r_strings(c, object, (int64_t)z.total_out);
        else status = LPLB_FAIL(LPLB_FORMAT, "%s: damaged before byte %lld", path, (long long)at);
        lplb__free(object);
    }
    lplb__free(raw.data);
    return status;
}

/* Entries of a folder with an ending ("" = without any dot), sorted, so that the text is the same
 * on every machine. */
static lplb_status add_folder(corpus *c, const char *folder, const char *ending,
                              const char *package, begins new_document) {
    struct dirent **entries;
    int n = scandir(folder, &entries, NULL, alphasort);
    if (n < 0) return missing(folder, package);
    lplb_status status = LPLB_OK;
    for (int i = 0; i < n; i++) {
        const char *entry = entries[i]->d_name, *dot = strrchr(entry, '.');
        bool wanted = *ending ? dot && !strcmp(dot, ending) : !dot;
        if (wanted && status == LPLB_OK) {
            char path[512];
            bytes text = {0};
            snprintf(path, sizeof path, "%s/%s", folder, entry);
            status = read_file(path, package, &text);
            if (status == LPLB_OK) status = add_documents(c, &text, new_document);
            lplb__free(text.data);
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

/* A fortune ends at a line "%". */
static bool after_percent(const char *line, int64_t n) { return starts_with(line, n, "%\n"); }

static lplb_status add_foldoc(corpus *c) {
    bytes text = {0};
    lplb_status status = read_file("/usr/share/dictd/foldoc.dict.dz", "dict-foldoc", &text);
    if (status == LPLB_OK) status = add_documents(c, &text, at_entry);
    lplb__free(text.data);
    return status;
}

static lplb_status add_perl(corpus *c) {
    struct dirent **entries;
    char folder[300] = "";
    int n = scandir("/usr/share/perl", &entries, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        if (strchr(entries[i]->d_name, '.') && entries[i]->d_name[0] != '.' && !*folder)
            snprintf(folder, sizeof folder, "/usr/share/perl/%s/pod", entries[i]->d_name);
        free(entries[i]);
    }
    if (n >= 0) free(entries);
    return add_folder(c, folder, ".pod", "perl-doc", at_head);
}

static lplb_status add_path(corpus *c, const char *path) {
    bytes text = {0};
    lplb_status status = LPLB_OK;
    FILE *file = fopen(path, "rb");
    if (!file)
        return LPLB_FAIL(LPLB_IO,
                         "%s: %s; text is kjv, austen, fortunes, foldoc, perl, mixed or a file",
                         path, strerror(errno));
    fclose(file);
    status = read_file(path, "", &text);
    if (status == LPLB_OK) status = add_documents(c, &text, at_form_feed);
    lplb__free(text.data);
    return status;
}

static const char *const mixed[] = {"kjv", "austen", "fortunes", "foldoc", "perl"};
enum { MIXED = sizeof mixed / sizeof *mixed };

static lplb_status add_one(corpus *c, const char *name);

/* Next document of a corpus, separator included; 0 bytes at the end. */
static int64_t next_document(const corpus *c, int64_t at) {
    if (at >= c->bytes) return 0;
    const uint8_t *end = memchr(c->byte + at, CORPUS_SEPARATOR, (size_t)(c->bytes - at));
    return (end ? end - c->byte + 1 : c->bytes) - at;
}

/* Documents of all sources interleaved so that each lasts to the end: always one of the source that
 * is least far through. Domains change from document to document. */
static lplb_status add_mixed(corpus *c) {
    corpus part[MIXED] = {{0}};
    int64_t at[MIXED] = {0};
    lplb_status status = LPLB_OK;
    for (int i = 0; i < MIXED && status == LPLB_OK; i++) status = add_one(&part[i], mixed[i]);
    while (status == LPLB_OK) {
        int next = -1;
        for (int i = 0; i < MIXED; i++)
            if (at[i] < part[i].bytes && (next < 0 || (double)at[i] * (double)part[next].bytes <
                                                          (double)at[next] * (double)part[i].bytes))
                next = i;
        if (next < 0) break;
        int64_t n = next_document(&part[next], at[next]);
        status = corpus_add(c, part[next].byte + at[next], n - 1);
        at[next] += n;
    }
    for (int i = 0; i < MIXED; i++) corpus_destroy(&part[i]);
    return status;
}

static lplb_status add_one(corpus *c, const char *name) {
    if (!strcmp(name, "kjv")) return add_kjv(c);
    if (!strcmp(name, "austen")) return add_austen(c);
    if (!strcmp(name, "fortunes"))
        return add_folder(c, "/usr/share/games/fortunes", "", "fortunes", after_percent);
    if (!strcmp(name, "foldoc")) return add_foldoc(c);
    if (!strcmp(name, "perl")) return add_perl(c);
    if (!strcmp(name, "mixed")) return add_mixed(c);
    return add_path(c, name);
}

lplb_status text_add(corpus *c, const char *sources) {
    char name[512];
    for (const char *at = sources;;) {
        size_t n = strcspn(at, ",");
        if (n == 0 || n >= sizeof name)
            return LPLB_FAIL(LPLB_INVALID, "'%s' is no list of text sources", sources);
        memcpy(name, at, n);
        name[n] = '\0';
        LPLB_TRY(add_one(c, name));
        at += n;
        if (!*at) return LPLB_OK;
        at++;
    }
}
