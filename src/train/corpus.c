#include "train/corpus.h"

#include <string.h>

#include "base/mem.h"
#include "base/rng.h"

void corpus_destroy(corpus *c) {
    lplb__free(c->byte);
    *c = (corpus){0};
}

static lplb_status corpus_need(corpus *c, int64_t bytes) {
    if (bytes <= c->capacity) return LPLB_OK;
    int64_t capacity = bytes + bytes / 2 + 4096;
    uint8_t *grown = lplb__realloc(c->byte, (size_t)capacity);
    if (!grown)
        return LPLB_FAIL(LPLB_NO_MEMORY, "cannot hold %lld bytes of text", (long long)capacity);
    c->byte = grown;
    c->capacity = capacity;
    return LPLB_OK;
}

lplb_status corpus_add(corpus *c, const void *text, int64_t bytes) {
    if (bytes <= 0) return LPLB_OK;
    LPLB_TRY(corpus_need(c, c->bytes + bytes + 1));
    const uint8_t *from = text;
    for (int64_t i = 0; i < bytes; i++)
        c->byte[c->bytes + i] = from[i] == CORPUS_SEPARATOR ? ' ' : from[i];
    c->bytes += bytes;
    c->byte[c->bytes++] = CORPUS_SEPARATOR;
    c->documents++;
    return LPLB_OK;
}

lplb_status corpus_split(corpus *c, int64_t first, corpus *tail) {
    *tail = (corpus){0};
    if (first < 0 || first > c->bytes)
        return LPLB_FAIL(LPLB_RANGE, "cannot split a text of %lld bytes at %lld",
                         (long long)c->bytes, (long long)first);
    LPLB_TRY(corpus_need(tail, c->bytes - first));
    tail->bytes = c->bytes - first;
    if (tail->bytes > 0) memcpy(tail->byte, c->byte + first, (size_t)tail->bytes);
    c->bytes = first;
    c->documents = tail->documents = 0;
    for (int64_t i = 0; i < c->bytes; i++) c->documents += c->byte[i] == CORPUS_SEPARATOR;
    for (int64_t i = 0; i < tail->bytes; i++) tail->documents += tail->byte[i] == CORPUS_SEPARATOR;
    return LPLB_OK;
}

/* ---- windows ---- */

static void shuffle(sampler *s, int64_t epoch) {
    lplb__rng rng;
    lplb__rng_seed(&rng, s->seed, (uint64_t)epoch);
    for (int64_t i = 0; i < s->windows; i++) s->order[i] = (int32_t)i;
    for (int64_t i = s->windows - 1; i > 0; i--) {
        int64_t j = lplb__rng_below(&rng, i + 1);
        int32_t swap = s->order[i];
        s->order[i] = s->order[j];
        s->order[j] = swap;
    }
    s->epoch = epoch;
}

lplb_status sampler_create(const corpus *c, int64_t context, uint64_t seed, sampler *out) {
    *out = (sampler){.corpus = c, .context = context, .seed = seed};
    out->windows = (c->bytes - 1) / context;
    if (c->bytes < context + 1)
        return LPLB_FAIL(LPLB_INVALID,
                         "the text has %lld bytes, a sequence takes %lld; give more text or a "
                         "shorter context",
                         (long long)c->bytes, (long long)context + 1);
    if (out->windows > INT32_MAX)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "a text of %lld bytes", (long long)c->bytes);
    LPLB_TRY(LPLB_CALLOC(out->order, out->windows));
    shuffle(out, 0);
    return LPLB_OK;
}

void sampler_destroy(sampler *s) {
    lplb__free(s->order);
    s->order = NULL;
}

int64_t sampler_read(sampler *s, int64_t number, int32_t *token, int32_t *target, int32_t *first) {
    if (number / s->windows != s->epoch) shuffle(s, number / s->windows);
    const uint8_t *from = s->corpus->byte + s->order[number % s->windows] * s->context;
    int32_t start = 0;
    int64_t counted = 0;
    for (int64_t t = 0; t < s->context; t++) {
        if (t > 0 && from[t - 1] == CORPUS_SEPARATOR) start = (int32_t)t;
        token[t] = from[t];
        target[t] = from[t] == CORPUS_SEPARATOR ? -1 : from[t + 1];
        first[t] = start;
        counted += target[t] >= 0;
    }
    return counted;
}
