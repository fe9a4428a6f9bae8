#include "train/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

typedef enum option_kind {
    KIND_INT32,
    KIND_INT64,
    KIND_REAL,
    KIND_FLAG,
    KIND_TEXT,
    KIND_CHOICE
} option_kind;

typedef struct option_entry {
    const char *section, *name;
    option_kind kind;
    size_t offset, bytes; /* bytes: of a text */
    const char *choices;  /* "a|b|c" by value */
    const char *help;
} option_entry;

#define AT(field)    offsetof(run_options, field)
#define MODEL(field) offsetof(run_options, trainer.model.field)
#define ADAM(field)  offsetof(run_options, trainer.optimizer.field)

static const option_entry entries[] = {
    {"model", "layers", KIND_INT32, MODEL(layers), 0, NULL, "transformer layers"},
    {"model", "width", KIND_INT32, MODEL(width), 0, NULL, "width of the residual stream"},
    {"model", "heads", KIND_INT32, MODEL(heads), 0, NULL, "query heads"},
    {"model", "kv-heads", KIND_INT32, MODEL(kv_heads), 0, NULL, "key/value heads"},
    {"model", "context", KIND_INT32, MODEL(context), 0, NULL, "tokens (bytes) of a sequence"},
    {"model", "experts", KIND_INT32, MODEL(experts), 0, NULL, "experts of a layer"},
    {"model", "topk", KIND_INT32, MODEL(topk), 0, NULL, "experts of a token"},
    {"model", "expert-width", KIND_INT32, MODEL(expert_width), 0, NULL,
     "hidden width of an expert"},
    {"model", "shared-width", KIND_INT32, MODEL(shared_width), 0, NULL,
     "hidden width of the shared expert, 0 = none"},
    {"model", "dense-layers", KIND_INT32, MODEL(dense_layers), 0, NULL,
     "first layers without experts"},
    {"model", "dense-width", KIND_INT32, MODEL(dense_width), 0, NULL, "hidden width of those"},
    {"model", "tied", KIND_FLAG, MODEL(tied), 0, NULL, "head and embedding are not one matrix"},
    {"model", "rope-theta", KIND_REAL, MODEL(rope_theta), 0, NULL, "base of the rotary positions"},
    {"router", "router", KIND_CHOICE, MODEL(router), 0, "softmax|sigmoid", "scores of the router"},
    {"router", "normalize-gates", KIND_FLAG, MODEL(normalize_gates), 0, NULL,
     "the gates of a token need not add up to 1"},
    {"router", "aux", KIND_CHOICE, MODEL(aux), 0, "none|sequence|batch|global",
     "scope of the balance loss"},
    {"router", "aux-coeff", KIND_REAL, MODEL(aux_coeff), 0, NULL, "weight of the balance loss"},
    {"router", "z-coeff", KIND_REAL, MODEL(z_coeff), 0, NULL, "weight of the z loss"},
    {"router", "bias-rate", KIND_REAL, MODEL(bias_rate), 0, NULL,
     "step of the loss-free balance bias, 0 = none"},
    {"router", "capacity-factor", KIND_REAL, MODEL(capacity_factor), 0, NULL,
     "capacity of an expert over its fair share, 0 = dropless"},
    {"router", "drop", KIND_CHOICE, MODEL(drop), 0, "probs|position", "which choices go first"},
    {"train", "text", KIND_TEXT, AT(text), PATH_BYTES, NULL,
     "kjv, austen, fortunes, foldoc, perl, mixed or files, with commas"},
    {"train", "steps", KIND_INT64, ADAM(steps), 0, NULL, "optimizer steps"},
    {"train", "global-batch", KIND_INT64, AT(trainer.global_batch), 0, NULL,
     "sequences of a step over all ranks"},
    {"train", "micro-batch", KIND_INT64, AT(trainer.micro_batch), 0, NULL,
     "sequences of a rank at a time"},
    {"train", "rate", KIND_REAL, ADAM(rate), 0, NULL, "peak learning rate"},
    {"train", "min-rate", KIND_REAL, ADAM(min_rate), 0, NULL, "final learning rate"},
    {"train", "schedule", KIND_CHOICE, ADAM(schedule), 0, "cosine|wsd", "learning rate schedule"},
    {"train", "warmup-steps", KIND_INT64, ADAM(warmup_steps), 0, NULL, "linear warm-up"},
    {"train", "schedule-steps", KIND_INT64, ADAM(schedule_steps), 0, NULL,
     "step at which the final rate is reached, 0 = the last"},
    {"train", "decay-steps", KIND_INT64, ADAM(decay_steps), 0, NULL, "last of them with wsd"},
    {"train", "beta1", KIND_REAL, ADAM(beta1), 0, NULL, "AdamW's decay of the first moment"},
    {"train", "beta2", KIND_REAL, ADAM(beta2), 0, NULL, "AdamW's decay of the second moment"},
    {"train", "eps", KIND_REAL, ADAM(eps), 0, NULL, "AdamW's, beside the root of the second"},
    {"train", "weight-decay", KIND_REAL, ADAM(weight_decay), 0, NULL, "AdamW's"},
    {"train", "clip", KIND_REAL, ADAM(clip), 0, NULL, "norm of the gradient at most, 0 = no limit"},
    {"train", "seed", KIND_INT64, AT(trainer.seed), 0, NULL, "weights and order of the text"},
    {"train", "held-out", KIND_REAL, AT(held_out), 0, NULL, "fraction of the text for validation"},
    {"train", "validate-every", KIND_INT64, AT(validate_every), 0, NULL, "steps, 0 = at the end"},
    {"train", "validate-sequences", KIND_INT64, AT(validate_sequences), 0, NULL,
     "held-out sequences"},
    {"train", "dtype", KIND_CHOICE, AT(trainer.kept), 0, REAL_NAME "|bf16",
     "numbers that matrix products read; sums are " REAL_NAME},
    {"train", "overlap", KIND_FLAG, AT(trainer.overlap), 0, NULL,
     "sums of gradients wait for the end of the backward"},
    {"train", "bucket-items", KIND_INT64, AT(trainer.bucket_items), 0, NULL,
     "gradients that travel together"},
    {"balance", "mode", KIND_CHOICE, AT(trainer.mode), 0, "none|eplb|lplb|search",
     "placement of the experts' copies"},
    {"balance", "solver", KIND_TEXT, AT(solver), sizeof((run_options *)0)->solver, NULL,
     "per-batch plan: exact, exact:locality=1, even, ... (lplb plan --help)"},
    {"balance", "redundant", KIND_INT32, AT(trainer.redundant), 0, NULL,
     "expert slots a rank beyond its share"},
    {"balance", "rebalance-every", KIND_INT64, AT(trainer.rebalance_every), 0, NULL,
     "steps between placements, fewer while loads vary; 0 = never"},
    {"balance", "expert-ranks", KIND_INT32, AT(trainer.expert_ranks), 0, NULL,
     "ranks of an expert-parallel group, 0 = all"},
    {"run", "checkpoint", KIND_TEXT, AT(checkpoint), PATH_BYTES, NULL, "folder for checkpoints"},
    {"run", "checkpoint-every", KIND_INT64, AT(checkpoint_every), 0, NULL, "steps, 0 = at the end"},
    {"run", "resume", KIND_FLAG, AT(resume), 0, NULL, "go on from the latest checkpoint"},
    {"run", "resume-changed", KIND_FLAG, AT(resume_changed), 0, NULL,
     "with --resume: keep weights and step, read on in another text, order, batch or context"},
    {"run", "checkpoint-step", KIND_INT64, AT(checkpoint_step), 0, NULL,
     "the checkpoint to resume, generate or export from, 0 = the latest"},
    {"run", "init", KIND_TEXT, AT(init), PATH_BYTES, NULL,
     "begin with this safetensors file's weights; the model's options must fit them"},
    {"run", "export", KIND_TEXT, AT(export_to), PATH_BYTES, NULL,
     "write the checkpoint's weights to this safetensors file, and stop"},
    {"run", "record-routing", KIND_TEXT, AT(record_routing), PATH_BYTES, NULL,
     "write the routing to this .npz (for lplb replay)"},
    {"run", "record-tokens", KIND_INT64, AT(record_tokens), 0, NULL,
     "tokens to record at most, 0 = all"},
    {"run", "generate", KIND_TEXT, AT(generate), PATH_BYTES, NULL,
     "continue this text with the checkpoint, and stop"},
    {"run", "generate-bytes", KIND_INT64, AT(generate_bytes), 0, NULL, "bytes to generate"},
    {"run", "temperature", KIND_REAL, AT(temperature), 0, NULL, "of generation, 0 = most likely"},
    {"run", "log", KIND_TEXT, AT(log), PATH_BYTES, NULL, "JSON lines, one a step"},
    {"run", "metrics-port", KIND_INT32, AT(metrics_port), 0, NULL,
     "serve figures over HTTP here (lplb top), 0 = any free port, -1 = no"},
    {"run", "metrics-address", KIND_TEXT, AT(metrics_address),
     sizeof((run_options *)0)->metrics_address, NULL,
     "numeric; who can reach it can read the figures"},
    {"run", "event-log", KIND_TEXT, AT(event_log), PATH_BYTES, NULL,
     "append what the manager decides, JSON lines"},
    {"run", "chrome-trace", KIND_TEXT, AT(chrome_trace), PATH_BYTES, NULL,
     "write rank 0's phases for chrome://tracing or Perfetto"},
    {"run", "json", KIND_FLAG, AT(json), 0, NULL, "print the summary as one JSON document"},
    {"run", "plan-memory", KIND_FLAG, AT(plan_memory), 0, NULL,
     "print what the run needs of memory, and stop"},
};
enum { ENTRIES = sizeof entries / sizeof *entries };
_Static_assert((int)ENTRIES <= (int)OPTIONS_MOST, "run_options.given has room for every option");

void run_options_default(run_options *o) {
    *o = (run_options){.text = "kjv,austen",
                       .held_out = 0.02,
                       .validate_sequences = 64,
                       .solver = "exact",
                       .record_tokens = 4 << 20,
                       .generate_bytes = 400,
                       .temperature = 0.8,
                       .metrics_port = -1,
                       .metrics_address = "127.0.0.1"};
    trainer_config_default(&o->trainer);
    o->trainer.rebalance_every = 50;
}

/* ---- one option ---- */

static const option_entry *find(const char *name) {
    const char *dot = strchr(name, '.');
    for (int i = 0; i < ENTRIES; i++) {
        const option_entry *e = &entries[i];
        if (dot &&
            (strncmp(name, e->section, (size_t)(dot - name)) || e->section[dot - name] != '\0'))
            continue;
        const char *own = dot ? dot + 1 : name;
        size_t n = strlen(e->name), at = 0;
        while (at < n && (own[at] == e->name[at] || (own[at] == '_' && e->name[at] == '-'))) at++;
        if (at == n && !own[n]) return e;
    }
    return NULL;
}

bool run_options_is_flag(const char *name) {
    const option_entry *e = find(name);
    return e && e->kind == KIND_FLAG;
}

static lplb_status set_choice(const option_entry *e, const char *value, int *out) {
    const char *at = e->choices;
    for (int i = 0;; i++) {
        size_t n = strcspn(at, "|");
        if (strlen(value) == n && !strncmp(at, value, n)) {
            *out = i;
            return LPLB_OK;
        }
        if (!at[n]) break;
        at += n + 1;
    }
    return LPLB_FAIL(LPLB_INVALID, "%s is '%s', must be one of %s", e->name, value, e->choices);
}

static lplb_status set_flag(const option_entry *e, const char *value, int32_t *out) {
    static const char *const yes[] = {"true", "yes", "on", "1"},
                             *no[] = {"false", "no", "off", "0"};
    for (int i = 0; i < 4; i++) {
        if (!strcmp(value, yes[i])) {
            *out = 1;
            return LPLB_OK;
        }
        if (!strcmp(value, no[i])) {
            *out = 0;
            return LPLB_OK;
        }
    }
    return LPLB_FAIL(LPLB_INVALID, "%s is '%s', must be true or false", e->name, value);
}

static lplb_status set_number(const option_entry *e, const char *value, char *field) {
    char *end;
    errno = 0;
    if (e->kind == KIND_REAL) {
        double number = strtod(value, &end);
        if (end == value || *end || !isfinite(number))
            return LPLB_FAIL(LPLB_INVALID, "%s is '%s', must be a number", e->name, value);
        memcpy(field, &number, sizeof number);
        return LPLB_OK;
    }
    int64_t number = strtoll(value, &end, 10);
    bool fits = e->kind == KIND_INT64 || (number >= INT32_MIN && number <= INT32_MAX);
    if (end == value || *end || errno || !fits)
        return LPLB_FAIL(LPLB_INVALID, "%s is '%s', must be a whole number", e->name, value);
    int32_t small = (int32_t)number;
    if (e->kind == KIND_INT64) memcpy(field, &number, sizeof number);
    else memcpy(field, &small, sizeof small);
    return LPLB_OK;
}

static lplb_status set(run_options *o, const option_entry *e, const char *value) {
    char *field = (char *)o + e->offset;
    switch (e->kind) {
    case KIND_CHOICE: return set_choice(e, value, (int *)(void *)field);
    case KIND_FLAG: return set_flag(e, value, (int32_t *)(void *)field);
    case KIND_TEXT:
        if (strlen(value) >= e->bytes)
            return LPLB_FAIL(LPLB_INVALID, "%s is longer than %zu bytes", e->name, e->bytes - 1);
        memcpy(field, value, strlen(value) + 1);
        return LPLB_OK;
    default: return set_number(e, value, field);
    }
}

lplb_status run_options_set(run_options *o, const char *name, const char *value) {
    const option_entry *e = find(name);
    if (!e) return LPLB_FAIL(LPLB_INVALID, "no option '%s'; --help lists them", name);
    LPLB_TRY(set(o, e, value));
    o->given[e - entries] = true;
    return LPLB_OK;
}

void run_options_adopt_model(run_options *o, const model_config *stored) {
    static const size_t bytes[] = {[KIND_INT32] = sizeof(int32_t),
                                   [KIND_INT64] = sizeof(int64_t),
                                   [KIND_REAL] = sizeof(double),
                                   [KIND_FLAG] = sizeof(int32_t),
                                   [KIND_CHOICE] = sizeof(int)};
    for (int i = 0; i < ENTRIES; i++) {
        const option_entry *e = &entries[i];
        size_t at = e->offset - offsetof(run_options, trainer.model); /* wraps before it */
        if (o->given[i] || at >= sizeof(model_config)) continue;
        memcpy((char *)o + e->offset, (const char *)stored + at, bytes[e->kind]);
    }
}

/* ---- configuration files ---- */

static lplb_status wrong_place(const char *path, const yaml_mark_t *mark, const char *why) {
    return LPLB_FAIL(LPLB_FORMAT, "%s, line %zu, column %zu: %s", path, mark->line + 1,
                     mark->column + 1, why);
}

static lplb_status read_section(run_options *o, const char *path, yaml_document_t *document,
                                const char *section, yaml_node_t *node) {
    if (node->type != YAML_MAPPING_NODE)
        return wrong_place(path, &node->start_mark, "a section with options expected");
    for (yaml_node_pair_t *pair = node->data.mapping.pairs.start;
         pair < node->data.mapping.pairs.top; pair++) {
        yaml_node_t *key = yaml_document_get_node(document, pair->key);
        yaml_node_t *value = yaml_document_get_node(document, pair->value);
        if (key->type != YAML_SCALAR_NODE || value->type != YAML_SCALAR_NODE)
            return wrong_place(path, &value->start_mark, "an option and its value expected");
        char name[128];
        snprintf(name, sizeof name, "%s.%s", section, (char *)key->data.scalar.value);
        if (run_options_set(o, name, (char *)value->data.scalar.value) != LPLB_OK) {
            char why[256];
            snprintf(why, sizeof why, "%s", lplb_error_message());
            return wrong_place(path, &key->start_mark, why);
        }
    }
    return LPLB_OK;
}

static lplb_status read_document(run_options *o, const char *path, yaml_document_t *document) {
    yaml_node_t *root = yaml_document_get_root_node(document);
    if (!root || root->type != YAML_MAPPING_NODE)
        return LPLB_FAIL(LPLB_FORMAT, "%s: sections model, router, train, balance, run expected",
                         path);
    for (yaml_node_pair_t *pair = root->data.mapping.pairs.start;
         pair < root->data.mapping.pairs.top; pair++) {
        yaml_node_t *key = yaml_document_get_node(document, pair->key);
        if (key->type != YAML_SCALAR_NODE)
            return wrong_place(path, &key->start_mark, "a section's name expected");
        LPLB_TRY(read_section(o, path, document, (char *)key->data.scalar.value,
                              yaml_document_get_node(document, pair->value)));
    }
    return LPLB_OK;
}

lplb_status run_options_read_stream(run_options *o, const char *path, FILE *file) {
    yaml_parser_t parser;
    yaml_document_t document;
    if (!yaml_parser_initialize(&parser))
        return LPLB_FAIL(LPLB_NO_MEMORY, "no memory to read %s", path);
    yaml_parser_set_input_file(&parser, file);
    lplb_status status;
    if (yaml_parser_load(&parser, &document)) {
        status = read_document(o, path, &document);
        yaml_document_delete(&document);
    } else {
        status = wrong_place(path, &parser.problem_mark,
                             parser.problem ? parser.problem : "cannot be read");
    }
    yaml_parser_delete(&parser);
    return status;
}

lplb_status run_options_read(run_options *o, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return LPLB_FAIL(LPLB_IO, "cannot open %s: %s", path, strerror(errno));
    lplb_status status = run_options_read_stream(o, path, file);
    fclose(file);
    return status;
}

/* ---- checks, help, dump ---- */

lplb_status run_options_check(run_options *o) {
    trainer_config *t = &o->trainer;
    lplb_plan_config plan = {0};
    int32_t locality;
    t->model.vocab = CORPUS_VOCAB;
    LPLB_TRY(model_config_check(&t->model));
    LPLB_TRY(optimizer_config_check(&t->optimizer));
    if (t->kept == KEPT_BF16) LPLB_TRY(gemm_bf16_check());
    LPLB_TRY(lplb_plan_parse_solver(o->solver, &plan, &locality));
    t->solver = plan.solver;
    t->locality = locality;
    if (plan.tolerance != 0 || plan.ipm.iterations || plan.ipm.tolerance != 0 ||
        plan.ipm.step != 0 || plan.ipm.published)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "training takes no other solver option than locality, "
                         "not '%s'",
                         o->solver);
    if (t->redundant < 0 || (t->mode == MODE_NONE && t->redundant > 0))
        return LPLB_FAIL(LPLB_INVALID,
                         "%d redundant slots with mode none; choose eplb, lplb or "
                         "search",
                         t->redundant);
    if (t->mode != MODE_NONE && t->redundant == 0)
        return LPLB_FAIL(LPLB_INVALID, "this mode needs redundant slots; give --redundant");
    if (!(o->held_out >= 0 && o->held_out < 1))
        return LPLB_FAIL(LPLB_INVALID, "held-out is %g, must be in [0, 1)", o->held_out);
    if (t->rebalance_every < 0 || o->checkpoint_every < 0 || o->validate_every < 0 ||
        o->validate_sequences < 1 || o->generate_bytes < 1 || !(o->temperature >= 0))
        return LPLB_FAIL(LPLB_INVALID, "numbers of steps, sequences and bytes cannot be negative");
    if (o->metrics_port < -1 || o->metrics_port > 65535)
        return LPLB_FAIL(LPLB_INVALID, "metrics-port is %d, must be in [-1, 65535]",
                         o->metrics_port);
    if (*o->generate && !*o->checkpoint)
        return LPLB_FAIL(LPLB_INVALID, "--generate needs --checkpoint FOLDER to take weights from");
    if (*o->export_to && !*o->checkpoint)
        return LPLB_FAIL(LPLB_INVALID, "--export needs --checkpoint FOLDER to take weights from");
    if (*o->export_to && *o->generate)
        return LPLB_FAIL(LPLB_INVALID, "--export and --generate: one at a time");
    if (o->json && (*o->generate || *o->export_to))
        return LPLB_FAIL(LPLB_UNSUPPORTED, "--json is of a training run or --plan-memory: not with "
                                           "--generate, --export");
    if (o->checkpoint_step < 0 ||
        (o->checkpoint_step > 0 && !o->resume && !*o->generate && !*o->export_to))
        return LPLB_FAIL(LPLB_INVALID,
                         "checkpoint-step is %lld: that of a checkpoint, for use with --resume, "
                         "--generate or --export",
                         (long long)o->checkpoint_step);
    if (o->resume && !*o->checkpoint)
        return LPLB_FAIL(LPLB_INVALID, "--resume needs --checkpoint FOLDER");
    if (o->resume_changed && !o->resume)
        return LPLB_FAIL(LPLB_INVALID, "--resume-changed is for use with --resume");
    if (*o->init && (o->resume || *o->generate || *o->export_to))
        return LPLB_FAIL(LPLB_INVALID, "--init begins anew: not with --resume, --generate, "
                                       "--export");
    if (o->record_tokens < 0)
        return LPLB_FAIL(LPLB_INVALID, "record-tokens is %lld, 0 for all",
                         (long long)o->record_tokens);
    return LPLB_OK;
}

/* The shortest decimal that reads back as the same number. */
static void print_real(double value, FILE *out) {
    char text[32];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    if (strchr(text, '+') && value < 1e6) snprintf(text, sizeof text, "%.0f", value); /* 1e+04 */
    fputs(text, out);
}

static void print_value(const option_entry *e, const run_options *o, FILE *out) {
    const char *field = (const char *)o + e->offset;
    int64_t wide;
    int32_t small;
    double real_value;
    switch (e->kind) {
    case KIND_INT64:
        memcpy(&wide, field, sizeof wide), fprintf(out, "%lld", (long long)wide);
        break;
    case KIND_INT32: memcpy(&small, field, sizeof small), fprintf(out, "%d", small); break;
    case KIND_REAL:
        memcpy(&real_value, field, sizeof real_value), print_real(real_value, out);
        break;
    case KIND_FLAG:
        memcpy(&small, field, sizeof small), fprintf(out, small ? "true" : "false");
        break;
    case KIND_TEXT: {
        fputc('"', out);
        for (; *field; field++) {
            if (*field == '"' || *field == '\\') fputc('\\', out);
            if (*field == '\n') fputs("\\n", out);
            else fputc(*field, out);
        }
        fputc('"', out);
        break;
    }
    case KIND_CHOICE: {
        const char *at = e->choices;
        memcpy(&small, field, sizeof small);
        for (; small > 0; small--) at = strchr(at, '|') + 1;
        fprintf(out, "%.*s", (int)strcspn(at, "|"), at);
        break;
    }
    }
}

void run_options_help(FILE *out) {
    run_options defaults;
    const char *section = "";
    run_options_default(&defaults);
    for (int i = 0; i < ENTRIES; i++) {
        const option_entry *e = &entries[i];
        char flag[64];
        if (strcmp(section, e->section)) fprintf(out, "\n%s:\n", e->section);
        section = e->section;
        int32_t on = 0;
        if (e->kind == KIND_FLAG) memcpy(&on, (const char *)&defaults + e->offset, sizeof on);
        if (e->kind == KIND_FLAG) snprintf(flag, sizeof flag, "--%s%s", on ? "no-" : "", e->name);
        else
            snprintf(flag, sizeof flag, "--%s %s", e->name,
                     e->kind == KIND_CHOICE ? e->choices
                     : e->kind == KIND_TEXT ? "TEXT"
                                            : "N");
        fprintf(out, "  %-38s %s", flag, e->help);
        if (e->kind != KIND_FLAG &&
            (e->kind != KIND_TEXT || *((const char *)&defaults + e->offset))) {
            fprintf(out, " (");
            print_value(e, &defaults, out);
            fprintf(out, ")");
        }
        fputc('\n', out);
    }
}

void run_options_write(const run_options *o, FILE *out) {
    const char *section = "";
    for (int i = 0; i < ENTRIES; i++) {
        if (strcmp(section, entries[i].section)) fprintf(out, "%s:\n", entries[i].section);
        section = entries[i].section;
        fprintf(out, "  %s: ", entries[i].name);
        print_value(&entries[i], o, out);
        fputc('\n', out);
    }
}
