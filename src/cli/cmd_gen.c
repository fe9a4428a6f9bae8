/* lplb gen: synthetic routing traces. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char help[] =
    "Usage: lplb gen [options] OUT\n"
    "\n"
    "Writes a synthetic routing trace, the same for the same options on every machine. The\n"
    "ending of OUT chooses the format: .npz, .npy, .safetensors, and with --counts .json, .csv.\n"
    "\n"
    "  --layers L --experts E --topk K   of the model (default 4, 64, 8)\n"
    "  --tokens T        in all (default 65536)\n"
    "  --batch-tokens B  tokens of a step (default 4096): patterns change between steps, and\n"
    "                    --counts sums up a step\n"
    "  --counts          counts of every step instead of the ids of every token\n"
    "  --multinomial     with --counts: every selection drawn for itself, so that a step's\n"
    "                    counts follow the weights; else a token's K experts are different\n"
    "\n"
    "Weights of the experts:\n"
    "  --sigma X         log-normal with this spread (default 1; DeepSeek-V3 layers have 0.44\n"
    "                    to 1.07, one domain on a small model up to 2.1; 0 = all equal)\n"
    "  --zipf X          1 / place^X, experts in random order\n"
    "  --load FILE       recorded loads: any trace that lplb reads, summed up; gives L and E\n"
    "  --drift-to FILE   with --load: the weights move there until the last step\n"
    "\n"
    "Patterns on top:\n"
    "  --hot-experts N --hot-share X     N experts of each layer have X of the weight\n"
    "  --hot-rank R --ranks G --hot-share X   the E/G experts of rank R have it\n"
    "  --rotate-every N [--rotate-by M]  every N steps all weights move M experts on (default 1)\n"
    "  --burst P [--burst-factor F]      in a (step, layer), with probability P, one expert's\n"
    "                    weight is F times as large (default 10)\n"
    "  --zero P          with probability P, a step selects nothing\n"
    "\n"
    "  --seed S          (default 1)\n"
    "  --threads N       (default 0 = all; the trace does not depend on it)\n"
    "  --json            one JSON document on stdout (docs/formats.md)\n"
    "  --help            this text\n"
    "\n"
    "Example:\n"
    "  lplb gen --layers 2 --experts 256 --tokens 20000 --sigma 0.8 --burst 0.1 trace.npz\n";

static const char *name; /* "lplb gen", for messages */

typedef struct gen_request {
    lplb_gen_config config;
    const char *load, *drift_to, *out;
    bool sigma, zipf, layers, experts, hot_rank, json;
} gen_request;

enum {
    LAYERS = 1000,
    EXPERTS,
    TOPK,
    TOKENS,
    BATCH,
    COUNTS,
    MULTINOMIAL,
    SIGMA,
    ZIPF,
    LOAD,
    DRIFT,
    HOT_EXPERTS,
    HOT_SHARE,
    HOT_RANK,
    RANKS,
    ROTATE,
    ROTATE_BY,
    BURST,
    BURST_FACTOR,
    ZERO,
    SEED,
    THREADS,
    JSON,
    HELP
};

static const struct option options[] = {{"layers", required_argument, 0, LAYERS},
                                        {"experts", required_argument, 0, EXPERTS},
                                        {"topk", required_argument, 0, TOPK},
                                        {"tokens", required_argument, 0, TOKENS},
                                        {"batch-tokens", required_argument, 0, BATCH},
                                        {"counts", no_argument, 0, COUNTS},
                                        {"multinomial", no_argument, 0, MULTINOMIAL},
                                        {"sigma", required_argument, 0, SIGMA},
                                        {"zipf", required_argument, 0, ZIPF},
                                        {"load", required_argument, 0, LOAD},
                                        {"drift-to", required_argument, 0, DRIFT},
                                        {"hot-experts", required_argument, 0, HOT_EXPERTS},
                                        {"hot-share", required_argument, 0, HOT_SHARE},
                                        {"hot-rank", required_argument, 0, HOT_RANK},
                                        {"ranks", required_argument, 0, RANKS},
                                        {"rotate-every", required_argument, 0, ROTATE},
                                        {"rotate-by", required_argument, 0, ROTATE_BY},
                                        {"burst", required_argument, 0, BURST},
                                        {"burst-factor", required_argument, 0, BURST_FACTOR},
                                        {"zero", required_argument, 0, ZERO},
                                        {"seed", required_argument, 0, SEED},
                                        {"threads", required_argument, 0, THREADS},
                                        {"json", no_argument, 0, JSON},
                                        {"help", no_argument, 0, HELP},
                                        {0, 0, 0, 0}};

/* Where an option's value goes; NULL pointers for options of another type. */
typedef struct target {
    int option;
    int32_t *whole;
    int64_t *large;
    double *real;
    double low, high;
} target;

static bool parse_value(gen_request *r, int option, const char *option_name, const char *text) {
    lplb_gen_config *c = &r->config;
    const target targets[] = {
        {LAYERS, &c->layers, NULL, NULL, 1, 1 << 20},
        {EXPERTS, &c->experts, NULL, NULL, 1, 1 << 20},
        {TOPK, &c->topk, NULL, NULL, 1, 1 << 20},
        {TOKENS, NULL, &c->tokens, NULL, 1, 0x1p40},
        {BATCH, NULL, &c->batch_tokens, NULL, 1, 0x1p40},
        {SIGMA, NULL, NULL, &c->sigma, 0, 20},
        {ZIPF, NULL, NULL, &c->exponent, 0, 20},
        {HOT_EXPERTS, &c->hot_experts, NULL, NULL, 1, 1 << 20},
        {HOT_SHARE, NULL, NULL, &c->hot_share, 0, 1},
        {HOT_RANK, &c->hot_rank, NULL, NULL, 0, 1 << 20},
        {RANKS, &c->hot_ranks, NULL, NULL, 2, 1 << 20},
        {ROTATE, NULL, &c->rotate_every, NULL, 1, 0x1p40},
        {ROTATE_BY, &c->rotate_by, NULL, NULL, 1, 1 << 20},
        {BURST, NULL, NULL, &c->burst_probability, 0, 1},
        {BURST_FACTOR, NULL, NULL, &c->burst_factor, 1, 1e6},
        {ZERO, NULL, NULL, &c->zero_probability, 0, 1},
        {THREADS, &c->threads, NULL, NULL, 0, 1024},
    };
    char shown[40];
    snprintf(shown, sizeof shown, "--%s", option_name);
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        const target *t = &targets[i];
        if (t->option != option) continue;
        if (t->real) return cli_parse_double(name, shown, text, t->low, t->high, t->real);
        int64_t value;
        if (!cli_parse_int(name, shown, text, (int64_t)t->low, (int64_t)t->high, &value))
            return false;
        if (t->whole) *t->whole = (int32_t)value;
        else *t->large = value;
        return true;
    }
    int64_t seed;
    if (!cli_parse_int(name, shown, text, 0, INT64_MAX, &seed)) return false;
    c->seed = (uint64_t)seed;
    return true;
}

static bool usage(const char *text) { return cli_fail(name, EXIT_USAGE, "%s", text), false; }

/* Options that only make sense together. */
static bool check(gen_request *r) {
    lplb_gen_config *c = &r->config;
    if (r->sigma + r->zipf + (r->load != NULL) > 1)
        return usage("give one of --sigma, --zipf and --load");
    if (c->multinomial && c->kind != LPLB_TRACE_COUNTS)
        return usage("--multinomial needs --counts");
    if (r->drift_to && !r->load) return usage("--drift-to needs --load");
    if (r->load && (r->layers || r->experts))
        return usage("--load gives the layers and experts; leave --layers and --experts out");
    if (r->hot_rank != (c->hot_ranks > 0)) return usage("--hot-rank and --ranks go together");
    if ((c->hot_experts || r->hot_rank) != (c->hot_share > 0))
        return usage("--hot-share goes with --hot-experts or --hot-rank");
    if (c->burst_probability == 0 && c->burst_factor > 0)
        return usage("--burst-factor needs --burst");
    if (c->burst_probability > 0 && c->burst_factor == 0) c->burst_factor = 10;
    if (c->rotate_by && !c->rotate_every) return usage("--rotate-by needs --rotate-every");
    if (r->zipf) c->base = LPLB_GEN_ZIPF;
    else if (r->load) c->base = LPLB_GEN_LOADS;
    else if (!r->sigma) c->sigma = 1;
    return true;
}

/* A trace summed over all its steps or tokens: [L][E]. free() it; NULL after a message. */
static int64_t *read_load(const char *path, int32_t *layers, int32_t *experts) {
    lplb_trace *trace;
    lplb_status status = lplb_trace_read(path, NULL, &trace);
    if (status != LPLB_OK) {
        cli_fail_status(name, status);
        return NULL;
    }
    int64_t n = trace->kind == LPLB_TRACE_COUNTS ? trace->steps : trace->tokens;
    int64_t *load = cli_need((size_t)trace->layers * (size_t)trace->experts, sizeof *load);
    for (int32_t l = 0; l < trace->layers; l++)
        lplb_trace_count(trace, l, 0, n, NULL, load + (int64_t)l * trace->experts);
    *layers = trace->layers;
    *experts = trace->experts;
    lplb_trace_destroy(trace);
    return load;
}

static int generate(gen_request *r, int64_t **load, int64_t **end) {
    lplb_gen_config *c = &r->config;
    if (r->load) {
        c->load = *load = read_load(r->load, &c->layers, &c->experts);
        if (!*load) return EXIT_USAGE;
    }
    if (r->drift_to) {
        int32_t layers, experts;
        c->load_end = *end = read_load(r->drift_to, &layers, &experts);
        if (!*end) return EXIT_USAGE;
        if (layers != c->layers || experts != c->experts)
            return cli_fail(name, EXIT_USAGE, "%s has %d layers of %d experts, %s %d of %d",
                            r->load, c->layers, c->experts, r->drift_to, layers, experts);
    }
    lplb_trace *trace;
    lplb_status status = lplb_gen(c, &trace);
    if (status != LPLB_OK) return cli_fail_status(name, status);
    status = lplb_trace_write(trace, r->out);
    int64_t steps = (c->tokens - 1) / (c->batch_tokens ? c->batch_tokens : 4096) + 1;
    int code = EXIT_OK;
    if (status != LPLB_OK) code = cli_fail_status(name, status);
    else if (r->json)
        code = cli_print_json(json_pack(
            "{s:s, s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:I}", "schema", "lplb.gen/1", "output",
            r->out, "kind", c->kind == LPLB_TRACE_COUNTS ? "counts" : "topk", "layers", c->layers,
            "experts", c->experts, "topk", c->topk, "tokens", (json_int_t)c->tokens, "steps",
            (json_int_t)steps, "seed", (json_int_t)c->seed));
    else printf("%s: %s\n", r->out, trace->source);
    lplb_trace_destroy(trace);
    return code;
}

int cmd_gen(int argc, char **argv) {
    name = argv[0];
    gen_request r = {.config = {.struct_size = sizeof(lplb_gen_config),
                                .layers = 4,
                                .experts = 64,
                                .topk = 8,
                                .tokens = 65536,
                                .seed = 1}};
    int index = 0;
    for (int c; (c = getopt_long(argc, argv, "h", options, &index)) != -1;) {
        switch (c) {
        case COUNTS: r.config.kind = LPLB_TRACE_COUNTS; continue;
        case MULTINOMIAL: r.config.multinomial = 1; continue;
        case LOAD: r.load = optarg; continue;
        case DRIFT: r.drift_to = optarg; continue;
        case JSON: r.json = true; continue;
        case HELP:
        case 'h': fputs(help, stdout); return EXIT_OK;
        case '?': return EXIT_USAGE;
        case SIGMA: r.sigma = true; break;
        case ZIPF: r.zipf = true; break;
        case LAYERS: r.layers = true; break;
        case EXPERTS: r.experts = true; break;
        case HOT_RANK: r.hot_rank = true; break;
        default: break;
        }
        if (!parse_value(&r, c, options[index].name, optarg)) return EXIT_USAGE;
    }
    if (argc - optind != 1) return cli_fail(name, EXIT_USAGE, "give the file to write; see --help");
    r.out = argv[optind];
    if (!check(&r)) return EXIT_USAGE;
    int64_t *load = NULL, *end = NULL;
    int code = generate(&r, &load, &end);
    free(load);
    free(end);
    return code;
}
