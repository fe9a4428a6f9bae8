#include "train/generate.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"

static int32_t sample(const real *logit, double temperature, lplb__rng *rng) {
    double weight[CORPUS_VOCAB], sum = 0;
    int32_t best = 0;
    for (int32_t i = 1; i < CORPUS_VOCAB; i++)
        if (logit[i] > logit[best]) best = i;
    if (temperature <= 0) return best;
    for (int32_t i = 0; i < CORPUS_VOCAB; i++) {
        weight[i] = exp(((double)logit[i] - (double)logit[best]) / temperature);
        sum += weight[i];
    }
    double u = lplb__rng_uniform(rng) * sum;
    for (int32_t i = 0; i < CORPUS_VOCAB; i++) {
        u -= weight[i];
        if (u < 0) return i;
    }
    return best;
}

/* Logits of the last of n tokens. The cross-entropy of a forward turns logits into gradients, so
 * they are computed again from the normalised state. */
static lplb_status last_logits(trainer *t, const int32_t *token, int64_t n, real *logit) {
    model *m = t->model;
    int64_t T = m->config.context, D = m->config.width;
    for (int64_t i = 0; i < T; i++) {
        t->token[i] = i < n ? token[i] : CORPUS_SEPARATOR;
        t->target[i] = -1;
        t->first[i] = i < n ? 0 : (int32_t)i; /* padding sees only itself */
    }
    batch b = {1, t->token, t->target, t->first, 1, 1};
    losses ignored;
    LPLB_TRY(model_forward(m, &b, &ignored));
    m->ops->linear_forward(logit, kept_at(m->ops, m->final_norm, (n - 1) * D),
                           kept_at(m->ops, m->weight, m->layout.head), 1, m->config.vocab, D, 0);
    return LPLB_OK;
}

/* The text is one, prompt and continuation; on a terminal the prompt stands out. */
static void print_prompt(const char *prompt, FILE *out) {
    const char *term = getenv("TERM");
    bool bold = isatty(fileno(out)) && !getenv("NO_COLOR") && term && strcmp(term, "dumb");
    fprintf(out, "%s%s%s", bold ? "\033[1m" : "", prompt, bold ? "\033[0m" : "");
}

lplb_status generate_text(trainer *t, const char *prompt, int64_t bytes, double temperature,
                          uint64_t seed, FILE *out) {
    int64_t T = t->config.model.context, used = 0, length = (int64_t)strlen(prompt);
    int32_t *token;
    real logit[CORPUS_VOCAB];
    lplb__rng rng;
    if (t->grid.world->size != 1)
        return LPLB_FAIL(LPLB_UNSUPPORTED, "text is generated on one rank; run without --ranks");
    if (length == 0)
        return LPLB_FAIL(LPLB_INVALID,
                         "an empty prompt: text is continued, give at least one byte");
    lplb__rng_seed(&rng, seed, 77);
    LPLB_TRY(LPLB_CALLOC(token, T));
    for (int64_t i = length > T / 2 ? length - T / 2 : 0; i < length; i++)
        token[used++] = (unsigned char)prompt[i];
    print_prompt(prompt, out);
    lplb_status status = LPLB_OK;
    for (int64_t i = 0; i < bytes && status == LPLB_OK; i++) {
        if (used == T) { /* keep the newer half */
            memmove(token, token + T / 2, sizeof *token * (size_t)(T - T / 2));
            used = T - T / 2;
        }
        status = last_logits(t, token, used, logit);
        int32_t next = status == LPLB_OK ? sample(logit, temperature, &rng) : CORPUS_SEPARATOR;
        if (next == CORPUS_SEPARATOR) break;
        fputc(next, out);
        fflush(out);
        token[used++] = next;
    }
    fputc('\n', out);
    lplb__free(token);
    return status;
}
