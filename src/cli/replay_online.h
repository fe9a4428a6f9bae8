/* lplb replay --online. */
#ifndef LPLB_CLI_REPLAY_ONLINE_H
#define LPLB_CLI_REPLAY_ONLINE_H

#include "cli/replay_options.h"

#define REPLAY_ONLINE_HELP                                                                         \
    "Online:\n"                                                                                    \
    "  --online           serve the steps one after another with experts moving as a live\n"       \
    "                     system would move them; policies are then\n"                             \
    "                     none, fixed (round robin), eplb[:every=N|adaptive] (default every\n"     \
    "                     1000 steps) and manager[:option=value,...] (every, alpha, window,\n"     \
    "                     samples, moves, budget, rate, cost, gain, keep, lag, min, max,\n"        \
    "                     interval, algorithm, effort, work, forecast,\n"                          \
    "                     season), +SOLVER;\n"                                                     \
    "                     --history F then leaves the first F out of the figures (default 0).\n"   \
    "                     Default: eplb:every=500, eplb:every=1000, eplb:adaptive, manager,\n"     \
    "                     each +even and +exact\n"                                                 \
    "  --step-ms X        how long the steps are taken to be (default 10), for the steps "         \
    "between\n"                                                                                    \
    "                     request and adoption, and for what they would have waited\n"             \
    "  --metrics-port P   while it runs, the monitor of the first manager (or else EPLB) at\n"     \
    "                     http://127.0.0.1:P, for `lplb top P` too; 0 = a free one\n"              \
    "  --link-gb-per-s X  speed of a rank's link, and\n"                                           \
    "  --token-ns X       time one selection costs its rank: with --expert-bytes the manager\n"    \
    "                     weighs what a move gains against what it costs\n"

/* Runs and prints; returns an exit code. */
int replay_online(const char *name, const lplb_online_config *config,
                  const lplb_trace_options *trace_options, const char *path, const char *report,
                  int32_t metrics_port, bool json);

#endif
