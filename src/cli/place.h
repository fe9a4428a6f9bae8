/* What `lplb place` was asked, and doing it. */
#ifndef LPLB_CLI_PLACE_H
#define LPLB_CLI_PLACE_H

#include "cli/cli.h"

typedef struct place_request {
    lplb_place_config config; /* arrays and from are filled by place_run */
    lplb_trace_options trace;
    const char *algorithm, *load, *slots_per_rank, *topology, *from, *dead_ranks, *out;
    int64_t expert_bytes;
    double history; /* fraction of the batches that place; the others are predicted on */
    bool json;
} place_request;

/* Reads, places, prints and writes; the command's exit code. */
int place_run(const char *name, const place_request *request);

#endif
