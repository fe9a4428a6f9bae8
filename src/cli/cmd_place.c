/* lplb place: which copies of which experts live on which rank, from recorded loads. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/place.h"

static const char help[] =
    "Usage: lplb place --algorithm A --load FILE --ranks G --slots P [options]\n"
    "\n"
    "Chooses which copies of which experts live in which slot, from a routing trace or counts,\n"
    "predicts how even the ranks will be, and says what remains in the way.\n"
    "\n"
    "  --algorithm A       eplb (DeepSeek's), topology (LPLB's), or search: slots such that "
    "single\n"
    "                      batches can be split evenly, near the present placement\n"
    "  --load FILE         trace or counts, any format of docs/formats.md\n"
    "  --ranks G           ranks of the expert-parallel group\n"
    "  --slots P           expert slots over all ranks; a multiple of G, or with\n"
    "  --slots-per-rank L  a,b,...: slots of every rank (search only)\n"
    "  --nodes N           nodes of G/N ranks (1)      --groups K  expert groups, for eplb (1)\n"
    "  --topology T        cube, hypercube, ring, torus:MxN or an r2o file, for topology\n"
    "  --from PLACEMENT    the present placement, any engine's; search stays near it\n"
    "  --max-moves M       at most M experts a layer that a rank did not have before\n"
    "  --dead-ranks L      a,b,...: ranks that get nothing\n"
    "  --batch-tokens B    tokens of a served batch: a trace is cut into such batches (4096)\n"
    "  --history F         only the first F of the batches place, and the prediction is for the\n"
    "                      others, which the placement has not seen (1: all, for all)\n"
    "  --split S           exact (default) or even: what the search expects of the per-batch plan\n"
    "  --expert-bytes N    weights of one expert: the moves are given in bytes too\n"
    "  --seed S, --effort N, --threads N   of the search (0, 0, all)\n"
    "  --work N            bounds the search: what a layer may cost, in about nanoseconds of a "
    "core,\n"
    "                      counted, so that results do not depend on the machine (no bound)\n"
    "  --experts E, --layout L             where the trace does not say\n"
    "  -o FILE             write what SGLang's --init-expert-location takes\n"
    "  --json              one JSON document on stdout (docs/formats.md)\n"
    "  --help              this text\n"
    "\n"
    "Example:\n"
    "  lplb place --algorithm search --load data/gpt-oss-20b/token_topk.npz --ranks 8 --slots 48 "
    "\\\n"
    "      --batch-tokens 512 -o placement.json\n";

enum {
    ALGORITHM = 1000,
    LOAD,
    RANKS,
    SLOTS,
    SLOTS_PER_RANK,
    NODES,
    GROUPS,
    TOPOLOGY,
    FROM,
    MAX_MOVES,
    DEAD_RANKS,
    BATCH_TOKENS,
    HISTORY,
    SPLIT,
    EXPERT_BYTES,
    SEED,
    EFFORT,
    THREADS,
    WORK,
    EXPERTS,
    LAYOUT
};

static const struct option options[] = {{"algorithm", required_argument, 0, ALGORITHM},
                                        {"load", required_argument, 0, LOAD},
                                        {"ranks", required_argument, 0, RANKS},
                                        {"slots", required_argument, 0, SLOTS},
                                        {"slots-per-rank", required_argument, 0, SLOTS_PER_RANK},
                                        {"nodes", required_argument, 0, NODES},
                                        {"groups", required_argument, 0, GROUPS},
                                        {"topology", required_argument, 0, TOPOLOGY},
                                        {"from", required_argument, 0, FROM},
                                        {"max-moves", required_argument, 0, MAX_MOVES},
                                        {"dead-ranks", required_argument, 0, DEAD_RANKS},
                                        {"batch-tokens", required_argument, 0, BATCH_TOKENS},
                                        {"history", required_argument, 0, HISTORY},
                                        {"split", required_argument, 0, SPLIT},
                                        {"expert-bytes", required_argument, 0, EXPERT_BYTES},
                                        {"seed", required_argument, 0, SEED},
                                        {"effort", required_argument, 0, EFFORT},
                                        {"threads", required_argument, 0, THREADS},
                                        {"work", required_argument, 0, WORK},
                                        {"experts", required_argument, 0, EXPERTS},
                                        {"layout", required_argument, 0, LAYOUT},
                                        {"json", no_argument, 0, 'j'},
                                        {"help", no_argument, 0, 'h'},
                                        {0, 0, 0, 0}};

static bool set_algorithm(const char *name, place_request *r, const char *text) {
    static const char *const names[] = {"eplb", "topology", "search"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) {
            r->config.algorithm = (lplb_place_algorithm)i;
            r->algorithm = names[i];
            return true;
        }
    return cli_fail(name, EXIT_USAGE, "--algorithm wants eplb, topology or search, not '%s'", text),
           false;
}

static bool set_split(const char *name, place_request *r, const char *text) {
    r->config.exact_split = !strcmp(text, "even") ? 2 : 1;
    if (!strcmp(text, "even") || !strcmp(text, "exact")) return true;
    return cli_fail(name, EXIT_USAGE, "--split wants exact or even, not '%s'", text), false;
}

static bool number(const char *name, const char *option, int64_t low, int64_t high, int64_t *out) {
    return cli_parse_int(name, option, optarg, low, high, out);
}

static bool number32(const char *name, const char *option, int64_t low, int64_t high,
                     int32_t *out) {
    int64_t value;
    if (!cli_parse_int(name, option, optarg, low, high, &value)) return false;
    *out = (int32_t)value;
    return true;
}

static bool set_option(const char *name, place_request *r, int option) {
    lplb_place_config *c = &r->config;
    int64_t seed;
    switch (option) {
    case ALGORITHM: return set_algorithm(name, r, optarg);
    case LOAD: r->load = optarg; return true;
    case RANKS: return number32(name, "--ranks", 1, LPLB_MAX_RANKS, &c->ranks);
    case SLOTS: return number32(name, "--slots", 1, 1 << 24, &c->slots);
    case SLOTS_PER_RANK: r->slots_per_rank = optarg; return true;
    case NODES: return number32(name, "--nodes", 1, LPLB_MAX_RANKS, &c->nodes);
    case GROUPS: return number32(name, "--groups", 1, 32767, &c->groups);
    case TOPOLOGY: r->topology = optarg; return true;
    case FROM: r->from = optarg; return true;
    case MAX_MOVES: return number(name, "--max-moves", 0, INT32_MAX, &c->max_moves);
    case DEAD_RANKS: r->dead_ranks = optarg; return true;
    case BATCH_TOKENS: return number(name, "--batch-tokens", 1, INT64_C(1) << 40, &c->batch_tokens);
    case HISTORY: return cli_parse_double(name, "--history", optarg, 1e-9, 1, &r->history);
    case SPLIT: return set_split(name, r, optarg);
    case EXPERT_BYTES: return number(name, "--expert-bytes", 0, INT64_C(1) << 50, &r->expert_bytes);
    case SEED:
        if (!number(name, "--seed", 0, INT64_MAX, &seed)) return false;
        c->seed = (uint64_t)seed;
        return true;
    case EFFORT: return number32(name, "--effort", 0, 1000, &c->effort);
    case THREADS: return number32(name, "--threads", 0, 1024, &c->threads);
    case WORK: return number(name, "--work", 1, INT64_C(1) << 60, &c->work);
    case EXPERTS: return number32(name, "--experts", 1, 32767, &r->trace.experts);
    case LAYOUT: r->trace.layout = optarg; return true;
    case 'o': r->out = optarg; return true;
    default: r->json = true; return option == 'j';
    }
}

/* What cannot be done is refused before any file is read. */
static bool check_request(const char *name, const place_request *r) {
    if (!r->algorithm || !r->load || r->config.ranks == 0)
        return cli_fail(name, EXIT_USAGE, "give --algorithm, --load and --ranks; see --help"),
               false;
    if (r->config.slots == 0 && !r->slots_per_rank)
        return cli_fail(name, EXIT_USAGE, "give --slots or --slots-per-rank"), false;
    if (r->topology && r->config.algorithm != LPLB_PLACE_TOPOLOGY)
        return cli_fail(name, EXIT_USAGE, "--topology goes with --algorithm topology"), false;
    if (r->config.max_moves >= 0 && !r->from)
        return cli_fail(name, EXIT_USAGE, "--max-moves counts from a placement: give --from"),
               false;
    return true;
}

int cmd_place(int argc, char **argv) {
    const char *name = argv[0];
    place_request r = {.config = {.struct_size = sizeof r.config, .max_moves = -1}, .history = 1};
    for (int c; (c = getopt_long(argc, argv, "ho:", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return EXIT_OK;
        }
        if (c == '?' || !set_option(name, &r, c)) return EXIT_USAGE;
    }
    if (optind < argc)
        return cli_fail(name, EXIT_USAGE, "'%s' is no option; the load goes after --load",
                        argv[optind]);
    if (!check_request(name, &r)) return EXIT_USAGE;
    return place_run(name, &r);
}
