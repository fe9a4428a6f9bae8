#include "train/identity.h"

#include <stdio.h>
#include <string.h>

void identity_model(const model_config *c, char text[IDENTITY_BYTES]) {
    snprintf(text, IDENTITY_BYTES,
             "layers=%d width=%d heads=%d kv_heads=%d vocab=%d experts=%d topk=%d expert_width=%d "
             "shared_width=%d dense_layers=%d dense_width=%d tied=%d router=%s normalize_gates=%d "
             "rope_theta=%.17g norm_eps=%.17g",
             c->layers, c->width, c->heads, c->kv_heads, c->vocab, c->experts, c->topk,
             c->expert_width, c->shared_width, c->dense_layers,
             c->dense_layers ? c->dense_width : 0, c->tied != 0,
             c->router == ROUTER_SOFTMAX ? "softmax" : "sigmoid", c->normalize_gates != 0,
             c->rope_theta, c->norm_eps);
}

lplb_status identity_read_model(const char *text, model_config *c) {
    enum { FIELDS = 16 };
    char router[16] = "";
    int n = sscanf(text,
                   "layers=%d width=%d heads=%d kv_heads=%d vocab=%d experts=%d topk=%d "
                   "expert_width=%d shared_width=%d dense_layers=%d dense_width=%d tied=%d "
                   "router=%15s normalize_gates=%d rope_theta=%lg norm_eps=%lg",
                   &c->layers, &c->width, &c->heads, &c->kv_heads, &c->vocab, &c->experts, &c->topk,
                   &c->expert_width, &c->shared_width, &c->dense_layers, &c->dense_width, &c->tied,
                   router, &c->normalize_gates, &c->rope_theta, &c->norm_eps);
    c->router = strcmp(router, "sigmoid") ? ROUTER_SOFTMAX : ROUTER_SIGMOID;
    return n == FIELDS ? LPLB_OK : LPLB_FAIL(LPLB_FORMAT, "'%.60s' describes no model", text);
}

/* Reals in 15 digits: what a person has written comes back as it was written. */
void identity_training(const trainer_config *c, char text[IDENTITY_BYTES]) {
    static const char *const aux[] = {"none", "sequence", "batch", "global"};
    const optimizer_config *o = &c->optimizer;
    const model_config *m = &c->model;
    bool wsd = o->schedule == SCHEDULE_WSD;
    snprintf(text, IDENTITY_BYTES,
             "rate=%.15g min_rate=%.15g schedule=%s schedule_steps=%lld warmup_steps=%lld "
             "decay_steps=%lld beta1=%.15g beta2=%.15g eps=%.15g weight_decay=%.15g clip=%.15g "
             "aux=%s aux_coeff=%.15g z_coeff=%.15g bias_rate=%.15g capacity_factor=%.15g drop=%s",
             o->rate, o->min_rate, wsd ? "wsd" : "cosine", (long long)schedule_steps(o),
             (long long)o->warmup_steps, (long long)(wsd ? o->decay_steps : 0), o->beta1, o->beta2,
             o->eps, o->weight_decay, o->clip, aux[m->aux], m->aux_coeff, m->z_coeff, m->bias_rate,
             m->capacity_factor, m->drop == DROP_PROBS ? "probs" : "position");
}

/* The value of "key=" in a list of words, as it goes on to the next blank; NULL without one. */
static const char *value_of(const char *words, const char *key, size_t n) {
    for (const char *at = words; at; at = strchr(at, ' ')) {
        at += *at == ' ';
        if (!strncmp(at, key, n) && at[n] == '=') return at + n + 1;
    }
    return NULL;
}

bool identity_differences(const char *theirs, const char *ours, char *out, size_t bytes) {
    bool any = false;
    for (const char *word = ours; *word;) {
        size_t n = strcspn(word, "= "), length = strcspn(word, " "), used = strlen(out);
        const char *was = value_of(theirs, word, n), *is = word + n + (word[n] == '=');
        int is_length = (int)(word + length - is);
        int was_length = was ? (int)strcspn(was, " ") : 0;
        if (!was || was_length != is_length || strncmp(was, is, (size_t)is_length)) {
            snprintf(out + used, bytes - used, "%s%.*s was %.*s and is %.*s", used ? ", " : "",
                     (int)n, word, was ? was_length : 12, was ? was : "not recorded", is_length,
                     is);
            for (char *c = out + used; *c; c++) /* as the options are written */
                if (*c == '_') *c = '-';
            any = true;
        }
        word += length + (word[length] == ' ');
    }
    return any;
}
