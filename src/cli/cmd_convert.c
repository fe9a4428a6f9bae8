/* lplb convert: routing traces and placements from one format into another. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char help[] =
    "Usage: lplb convert [options] IN OUT\n"
    "\n"
    "Turns a routing trace or a placement into another format. What IN is, is recognised; the\n"
    "ending of OUT or --to says what OUT becomes. docs/formats.md describes the formats.\n"
    "\n"
    "  --to FORMAT       traces: npz, npy, safetensors (ids or counts), json, csv (counts);\n"
    "                    the ending of OUT must agree\n"
    "                    placements: sglang, vllm, trtllm, vllm-ascend, omni, lplb\n"
    "  --layers A-B      only these layers, counted from 0, both ends included\n"
    "  --json            one JSON document on stdout (docs/formats.md)\n"
    "  --help            this text\n"
    "\n"
    "Traces:\n"
    "  --layout NAME     of a bare array: TK, TLK, LTK, SLTK (ids) or LE, SLE (counts); T tokens,\n"
    "                    L layers, K selections, S steps, E experts\n"
    "  --experts E       when IN does not say: else the largest id + 1\n"
    "  --sum             one count of everything\n"
    "  --batch-tokens B  counts of every B tokens in turn, the last step having what is left\n"
    "  --max-bytes N     refuse a trace that takes more memory (default 8589934592)\n"
    "\n"
    "Placements:\n"
    "  --ranks G         when IN does not say\n"
    "  --dense-layers N  put N layers with the trivial map before the others: SGLang and\n"
    "                    TensorRT-LLM count the model's dense layers too, vLLM and omni do not\n"
    "\n"
    "Examples:\n"
    "  lplb convert --batch-tokens 4096 data/gpt-oss-20b/token_topk.npz counts.csv\n"
    "  lplb convert --to trtllm --ranks 8 --dense-layers 3 sglang.json moe_load_balancer.yaml\n";

static const char *name; /* "lplb convert", for messages */

typedef struct request {
    lplb_trace_options trace;
    const char *in, *out, *to;
    int64_t first_layer, last_layer; /* last < 0 = all */
    int64_t batch_tokens, ranks, dense_layers;
    bool sum, json;
} request;

/* ---- traces ---- */

/* Arrays of its own or borrowed ones; never given to lplb_trace_destroy. */
typedef struct view {
    lplb_trace trace;
    int16_t *ids;
    int64_t *counts;
} view;

static int select_layers(const request *r, view *v) {
    lplb_trace *t = &v->trace;
    if (r->last_layer < 0) return EXIT_OK;
    if (r->last_layer >= t->layers)
        return cli_fail(name, EXIT_USAGE, "--layers %lld-%lld, but %s has %d layers",
                        (long long)r->first_layer, (long long)r->last_layer, r->in, t->layers);
    int64_t layers = r->last_layer - r->first_layer + 1;
    if (t->kind == LPLB_TRACE_TOPK) {
        size_t kept = (size_t)layers * (size_t)t->topk;
        v->ids = cli_need((size_t)t->tokens * kept, sizeof *v->ids);
        for (int64_t i = 0; i < t->tokens; i++)
            memcpy(v->ids + (size_t)i * kept,
                   t->topk_ids + (i * t->layers + r->first_layer) * t->topk, kept * sizeof *v->ids);
        t->topk_ids = v->ids;
    } else {
        size_t kept = (size_t)layers * (size_t)t->experts;
        v->counts = cli_need((size_t)t->steps * kept, sizeof *v->counts);
        for (int64_t i = 0; i < t->steps; i++)
            memcpy(v->counts + (size_t)i * kept,
                   t->counts + (i * t->layers + r->first_layer) * t->experts,
                   kept * sizeof *v->counts);
        t->counts = v->counts;
    }
    t->layer_id += r->first_layer;
    t->layers = (int32_t)layers;
    return EXIT_OK;
}

/* Ids become counts of batch tokens a step, counts become one step; batch 0 = all in one. */
static int count_steps(int64_t batch, int64_t max_bytes, view *v) {
    lplb_trace *t = &v->trace;
    int64_t rows = t->kind == LPLB_TRACE_TOPK ? t->tokens : t->steps;
    if (batch == 0) batch = rows;
    int64_t steps = (rows - 1) / batch + 1, step_cells = (int64_t)t->layers * t->experts;
    if (step_cells > max_bytes / 8 / steps)
        return cli_fail(name, EXIT_USAGE, "%lld steps of %d x %d counts pass --max-bytes %lld",
                        (long long)steps, t->layers, t->experts, (long long)max_bytes);
    int64_t *counts = cli_need((size_t)(steps * step_cells), sizeof *counts);
    for (int64_t s = 0; s < steps; s++)
        for (int32_t l = 0; l < t->layers; l++)
            lplb_trace_count(t, l, s * batch, s + 1 < steps ? batch : rows - s * batch, NULL,
                             counts + s * step_cells + (int64_t)l * t->experts);
    free(v->counts);
    v->counts = t->counts = counts;
    t->steps = steps;
    t->kind = LPLB_TRACE_COUNTS;
    t->tokens = t->sequences = 0;
    t->topk = 0;
    return EXIT_OK;
}

static bool numbered_layers(const lplb_trace *t) {
    for (int32_t l = 0; l < t->layers; l++)
        if (t->layer_id[l] != l) return false;
    return true;
}

/* What IN knows and OUT cannot say. */
static json_t *lost_by_trace(const lplb_trace *t, const char *format) {
    json_t *lost = json_array();
    if (strcmp(format, "npy") != 0) return lost;
    if (t->sequences) json_array_append_new(lost, json_string("sequences"));
    if (!numbered_layers(t)) json_array_append_new(lost, json_string("layer_id"));
    if (t->kind == LPLB_TRACE_TOPK) json_array_append_new(lost, json_string("experts"));
    return lost;
}

static int report_trace(const request *r, const lplb_trace *t, const char *format) {
    bool topk = t->kind == LPLB_TRACE_TOPK;
    json_t *lost = lost_by_trace(t, format);
    if (r->json)
        return cli_print_json(
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:I, s:i, s:I, s:o}", "schema",
                      "lplb.convert/1", "input", r->in, "output", r->out, "kind",
                      topk ? "topk" : "counts", "format", format, "layers", t->layers, "experts",
                      t->experts, "tokens", (json_int_t)t->tokens, "steps", (json_int_t)t->steps,
                      "topk", t->topk, "sequences", (json_int_t)t->sequences, "lost", lost));
    printf("%s: %lld %s, %d layers, %d experts\n", r->out, (long long)(topk ? t->tokens : t->steps),
           topk ? "tokens" : "steps of counts", t->layers, t->experts);
    size_t i;
    json_t *what;
    json_array_foreach(lost, i, what)
        fprintf(stderr, "%s: note: %s cannot hold %s\n", name, format, json_string_value(what));
    json_decref(lost);
    return EXIT_OK;
}

static int convert_trace(const request *r, const char *format) {
    if (r->ranks || r->dense_layers)
        return cli_fail(name, EXIT_USAGE, "--ranks and --dense-layers are for placements");
    lplb_trace *trace;
    lplb_status status = lplb_trace_read(r->in, &r->trace, &trace);
    if (status != LPLB_OK) return cli_fail_status(name, status);
    view v = {.trace = *trace};
    int code = select_layers(r, &v);
    int64_t max_bytes = r->trace.max_bytes ? r->trace.max_bytes : (int64_t)8 << 30;
    bool topk = trace->kind == LPLB_TRACE_TOPK;
    bool counts_only = !strcmp(format, "json") || !strcmp(format, "csv");
    if (code == EXIT_OK && !topk && r->batch_tokens)
        code = cli_fail(name, EXIT_USAGE, "%s holds counts, --batch-tokens needs ids", r->in);
    else if (code == EXIT_OK && topk && counts_only && !r->sum && !r->batch_tokens)
        code = cli_fail(name, EXIT_USAGE,
                        "%s holds counts: say how to count the tokens of %s, with --sum or "
                        "--batch-tokens B",
                        format, r->in);
    else if (code == EXIT_OK && (r->sum || r->batch_tokens))
        code = count_steps(r->batch_tokens, max_bytes, &v);
    if (code == EXIT_OK) {
        status = lplb_trace_write(&v.trace, r->out);
        code =
            status != LPLB_OK ? cli_fail_status(name, status) : report_trace(r, &v.trace, format);
    }
    free(v.ids);
    free(v.counts);
    lplb_trace_destroy(trace);
    return code;
}

/* ---- placements ---- */

/* The chosen layers with the trivial ones before them. */
static int select_placement(const request *r, const lplb_placement *from, lplb_placement **out) {
    int64_t first = r->last_layer < 0 ? 0 : r->first_layer;
    int64_t last = r->last_layer < 0 ? from->layers - 1 : r->last_layer;
    if (last >= from->layers)
        return cli_fail(name, EXIT_USAGE, "--layers %lld-%lld, but %s has %d layers",
                        (long long)first, (long long)last, r->in, from->layers);
    int32_t *slots_per_rank = cli_need((size_t)from->ranks, sizeof *slots_per_rank);
    for (int32_t i = 0; i < from->ranks; i++)
        slots_per_rank[i] = from->rank_offset[i + 1] - from->rank_offset[i];
    lplb_status status =
        lplb_placement_create((int32_t)(r->dense_layers + last - first + 1), from->experts,
                              from->slots, from->ranks, slots_per_rank, out);
    free(slots_per_rank);
    if (status != LPLB_OK) return cli_fail_status(name, status);
    lplb_placement_fill_trivial(*out);
    memcpy((*out)->physical_to_logical + r->dense_layers * from->slots,
           from->physical_to_logical + first * from->slots,
           (size_t)(last - first + 1) * (size_t)from->slots * sizeof(int32_t));
    return EXIT_OK;
}

static int convert_placement(const request *r, lplb_placement_format format,
                             const char *format_name) {
    if (r->trace.layout || r->trace.experts || r->trace.max_bytes || r->sum || r->batch_tokens)
        return cli_fail(name, EXIT_USAGE,
                        "--layout, --experts, --sum, --batch-tokens and "
                        "--max-bytes are for traces");
    lplb_placement *from, *p = NULL;
    lplb_status status = lplb_placement_read(r->in, (int32_t)r->ranks, &from);
    if (status != LPLB_OK) return cli_fail_status(name, status);
    int code = select_placement(r, from, &p);
    if (code == EXIT_OK) {
        status = lplb_placement_write(p, format, r->out);
        if (status != LPLB_OK) code = cli_fail_status(name, status);
    }
    if (code == EXIT_OK && r->json)
        code = cli_print_json(json_pack(
            "{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:o}", "schema", "lplb.convert/1",
            "input", r->in, "output", r->out, "kind", "placement", "format", format_name, "layers",
            p->layers, "experts", p->experts, "slots", p->slots, "ranks", p->ranks, "lost",
            format == LPLB_PLACEMENT_OMNI ? json_pack("[s]", "slot_order") : json_array()));
    else if (code == EXIT_OK)
        printf("%s: %d layers, %d experts in %d slots on %d ranks\n", r->out, p->layers, p->experts,
               p->slots, p->ranks);
    lplb_placement_destroy(p);
    lplb_placement_destroy(from);
    return code;
}

/* ---- the command ---- */

static const char *const trace_formats[] = {"npz", "npy", "safetensors", "json", "csv", NULL};
static const char *const placement_formats[] = {"sglang", "vllm", "trtllm", "vllm-ascend",
                                                "omni",   "lplb", NULL};

static int find_name(const char *const *names, const char *wanted) {
    for (int i = 0; names[i]; i++)
        if (!strcmp(names[i], wanted)) return i;
    return -1;
}

static int convert(const request *r) {
    const char *dot = strrchr(r->out, '.');
    const char *ending = dot && !strchr(dot, '/') ? dot + 1 : "";
    const char *to = r->to ? r->to : ending;
    if (!r->to && (!strcmp(ending, "yaml") || !strcmp(ending, "yml"))) to = "trtllm";
    int placement = find_name(placement_formats, to);
    if (placement >= 0) return convert_placement(r, (lplb_placement_format)placement, to);
    if (find_name(trace_formats, to) < 0)
        return cli_fail(name, EXIT_USAGE,
                        r->to ? "--to '%s' is no format; see --help"
                              : "what should '%s' become? Say it with --to; see --help",
                        r->to ? r->to : r->out);
    if (strcmp(to, ending) != 0)
        return cli_fail(name, EXIT_USAGE, "--to %s wants a file whose name ends in .%s", to, to);
    return convert_trace(r, to);
}

static bool parse_layers(const char *text, request *r) {
    char *end;
    long long first = strtoll(text, &end, 10), last = first;
    bool good = end != text && first >= 0 && first <= INT32_MAX;
    if (good && *end == '-') {
        const char *second = end + 1;
        last = strtoll(second, &end, 10);
        good = end != second && last >= first && last <= INT32_MAX;
    }
    if (!good || *end)
        return cli_fail(name, EXIT_USAGE, "--layers wants A-B, not '%s'", text), false;
    r->first_layer = first;
    r->last_layer = last;
    return true;
}

int cmd_convert(int argc, char **argv) {
    static const struct option options[] = {{"to", required_argument, 0, 't'},
                                            {"layers", required_argument, 0, 'l'},
                                            {"layout", required_argument, 0, 'y'},
                                            {"experts", required_argument, 0, 'e'},
                                            {"sum", no_argument, 0, 's'},
                                            {"batch-tokens", required_argument, 0, 'b'},
                                            {"max-bytes", required_argument, 0, 'm'},
                                            {"ranks", required_argument, 0, 'r'},
                                            {"dense-layers", required_argument, 0, 'd'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0, 0, 0, 0}};
    name = argv[0];
    request r = {.last_layer = -1};
    int64_t experts = 0;
    bool good = true;
    for (int c; good && (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 't': r.to = optarg; break;
        case 'l': good = parse_layers(optarg, &r); break;
        case 'y': r.trace.layout = optarg; break;
        case 'e': good = cli_parse_int(name, "--experts", optarg, 1, INT32_MAX, &experts); break;
        case 's': r.sum = true; break;
        case 'b':
            good = cli_parse_int(name, "--batch-tokens", optarg, 1, INT64_MAX, &r.batch_tokens);
            break;
        case 'm':
            good = cli_parse_int(name, "--max-bytes", optarg, 1, INT64_MAX, &r.trace.max_bytes);
            break;
        case 'r': good = cli_parse_int(name, "--ranks", optarg, 1, INT32_MAX, &r.ranks); break;
        case 'd':
            good = cli_parse_int(name, "--dense-layers", optarg, 1, 1 << 20, &r.dense_layers);
            break;
        case 'j': r.json = true; break;
        case 'h': fputs(help, stdout); return EXIT_OK;
        default: return EXIT_USAGE;
        }
    }
    if (!good) return EXIT_USAGE;
    if (argc - optind != 2)
        return cli_fail(name, EXIT_USAGE,
                        "give the file to read and the file to write; see "
                        "--help");
    if (r.sum && r.batch_tokens)
        return cli_fail(name, EXIT_USAGE, "give one of --sum and --batch-tokens");
    r.trace.experts = (int32_t)experts;
    r.in = argv[optind];
    r.out = argv[optind + 1];
    return convert(&r);
}
