/* The options that lplb replay and lplb explain share: which trace, which machine, which batches.
 */
#ifndef LPLB_CLI_REPLAY_OPTIONS_H
#define LPLB_CLI_REPLAY_OPTIONS_H

#include <getopt.h>

#include "cli/cli.h"

typedef struct replay_options {
    lplb_trace_options trace;
    lplb_replay_config config;
} replay_options;

enum {
    OPTION_RANKS = 1000,
    OPTION_REDUNDANT,
    OPTION_EXPERTS,
    OPTION_LAYOUT,
    OPTION_SLOTS,
    OPTION_NODES,
    OPTION_GROUPS,
    OPTION_TOPOLOGY,
    OPTION_BATCH_TOKENS,
    OPTION_ORDER,
    OPTION_HISTORY,
    OPTION_SEED,
    OPTION_THREADS
};

#define REPLAY_OPTIONS                                                                             \
    {"ranks", required_argument, 0, OPTION_RANKS},                                                 \
        {"redundant", required_argument, 0, OPTION_REDUNDANT},                                     \
        {"slots", required_argument, 0, OPTION_SLOTS},                                             \
        {"experts", required_argument, 0, OPTION_EXPERTS},                                         \
        {"layout", required_argument, 0, OPTION_LAYOUT},                                           \
        {"nodes", required_argument, 0, OPTION_NODES},                                             \
        {"groups", required_argument, 0, OPTION_GROUPS},                                           \
        {"topology", required_argument, 0, OPTION_TOPOLOGY},                                       \
        {"batch-tokens", required_argument, 0, OPTION_BATCH_TOKENS},                               \
        {"order", required_argument, 0, OPTION_ORDER},                                             \
        {"history", required_argument, 0, OPTION_HISTORY},                                         \
        {"seed", required_argument, 0, OPTION_SEED}, {                                             \
        "threads", required_argument, 0, OPTION_THREADS                                            \
    }

#define REPLAY_OPTIONS_HELP                                                                        \
    "  --ranks G          ranks of the expert-parallel group (required)\n"                         \
    "  --redundant D      expert slots of a rank beyond experts/G (default 0)\n"                   \
    "  --slots P          expert slots in all, a multiple of G, in place of --redundant: for\n"    \
    "                     ranks that do not divide the experts\n"                                  \
    "  --nodes N          nodes of G/N ranks each, linked more slowly (default 1)\n"               \
    "  --groups K         expert groups for EPLB's hierarchical form (default 1)\n"                \
    "  --topology T       cube, hypercube, ring, torus:MxN or an r2o file, for topology\n"         \
    "  --batch-tokens B   tokens of a batch over all ranks (default 4096); traces of counts\n"     \
    "                     have one batch a step\n"                                                 \
    "  --order O          recorded (default), interleave (one token of each sequence in\n"         \
    "                     turn, as decoding does) or shuffle\n"                                    \
    "  --history F        fraction of the batches that place the experts (default 0.5); the\n"     \
    "                     others are measured\n"                                                   \
    "  --experts E        experts of the model, where the trace does not say\n"                    \
    "  --layout L         TK, TLK, LTK or SLE: what a bare array's axes are\n"                     \
    "  --seed N           of shuffle and search (default 0)\n"                                     \
    "  --threads N        default: all processors; the result does not depend on it\n"

/* Defaults. */
void replay_options_init(replay_options *options);
/* Takes one of the options above: true if it was one and fine; prints what is wrong otherwise. */
bool replay_options_take(const char *name, int option, replay_options *options);
/* Reads the trace and replays it; returns an exit code after printing what is wrong. Progress goes
 * to a terminal. */
int replay_options_run(const char *name, const replay_options *options, const char *path,
                       lplb_trace **trace, lplb_replay_result **result);

/* "1,234,567" in one of eight static buffers. */
const char *cli_thousands(int64_t value);

#endif
