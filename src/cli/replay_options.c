#include "cli/replay_options.h"

#include <stdio.h>
#include <string.h>

void replay_options_init(replay_options *options) {
    *options = (replay_options){
        .config = {.struct_size = sizeof(lplb_replay_config), .all_layers = 1, .history = -1}};
}

static bool parse_order(const char *name, const char *text, lplb_replay_order *out) {
    static const char *const orders[] = {"recorded", "interleave", "shuffle"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(text, orders[i])) {
            *out = (lplb_replay_order)i;
            return true;
        }
    cli_fail(name, EXIT_USAGE, "--order wants recorded, interleave or shuffle, not '%s'", text);
    return false;
}

static bool take_int32(const char *name, const char *option, int64_t low, int64_t high,
                       int32_t *out) {
    int64_t value;
    if (!cli_parse_int(name, option, optarg, low, high, &value)) return false;
    *out = (int32_t)value;
    return true;
}

bool replay_options_take(const char *name, int option, replay_options *o) {
    lplb_replay_config *c = &o->config;
    int64_t seed;
    switch (option) {
    case OPTION_RANKS: return take_int32(name, "--ranks", 1, LPLB_MAX_RANKS, &c->ranks);
    case OPTION_REDUNDANT: return take_int32(name, "--redundant", 0, 65536, &c->redundant);
    case OPTION_SLOTS: return take_int32(name, "--slots", 1, INT32_MAX, &c->slots);
    case OPTION_EXPERTS: return take_int32(name, "--experts", 1, 32767, &o->trace.experts);
    case OPTION_LAYOUT: o->trace.layout = optarg; return true;
    case OPTION_NODES: return take_int32(name, "--nodes", 1, LPLB_MAX_RANKS, &c->nodes);
    case OPTION_GROUPS: return take_int32(name, "--groups", 1, 32767, &c->groups);
    case OPTION_TOPOLOGY: c->topology = optarg; return true;
    case OPTION_BATCH_TOKENS:
        return cli_parse_int(name, "--batch-tokens", optarg, 1, INT32_MAX, &c->batch_tokens);
    case OPTION_ORDER: return parse_order(name, optarg, &c->order);
    case OPTION_HISTORY:
        return cli_parse_double(name, "--history", optarg, 0, 0.999999999, &c->history);
    case OPTION_SEED:
        if (!cli_parse_int(name, "--seed", optarg, 0, INT64_MAX, &seed)) return false;
        c->seed = (uint64_t)seed;
        return true;
    case OPTION_THREADS: return take_int32(name, "--threads", 1, 256, &c->threads);
    default: return false; /* getopt has printed what it does not know */
    }
}

int replay_options_run(const char *name, const replay_options *options, const char *path,
                       lplb_trace **trace, lplb_replay_result **result) {
    *trace = NULL;
    *result = NULL;
    if (options->config.ranks == 0)
        return cli_fail(name, EXIT_USAGE, "--ranks is required; see --help");
    lplb_replay_config config = options->config;
    config.progress = cli_progress;
    lplb_status status = lplb_trace_read(path, &options->trace, trace);
    if (status == LPLB_OK) status = lplb_replay(*trace, &config, result);
    if (status == LPLB_OK) return EXIT_OK;
    cli_progress(1, "", NULL); /* clears the line */
    return cli_fail_status(name, status);
}

const char *cli_thousands(int64_t value) {
    static char buffers[8][32];
    static unsigned turn;
    char digits[24], *out = buffers[turn++ % 8];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)value), at = 0;
    for (int i = 0; i < n; i++) {
        int left = n - i;
        if (i > 0 && left % 3 == 0 && digits[i - 1] != '-') out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = '\0';
    return out;
}
