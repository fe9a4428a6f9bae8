/* How much of a split stays on the ranks and nodes its tokens come from. Only sums are needed, so
 * whole intervals are intersected instead of mapping tokens. */
#include <string.h>

#include "replay/replay.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t overlap(int64_t a, int64_t a_end, int64_t b, int64_t b_end) {
    return larger(0, smaller(a_end, b_end) - larger(a, b));
}

/* Hosts take consecutive intervals of the tokens, numbered source by source. */
static void flow_in_order(lplb__flow *f, const lplb_hosts *hosts, int32_t e, const int64_t *split) {
    int64_t at = 0, E = hosts->experts;
    for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++) {
        int32_t r = hosts->rank[h], n = f->node[r];
        int64_t end = at + split[h];
        f->on_rank[r] += overlap(at, end, f->before[r * E + e], f->before[(r + 1) * E + e]);
        f->on_node[r] += overlap(at, end, f->before[f->first_rank[n] * E + e],
                                 f->before[f->first_rank[n + 1] * E + e]);
        at = end;
    }
}

/* Each source fills its own rank's host, then the hosts of its node in ascending order. */
static void flow_local_first(lplb__flow *f, const lplb_hosts *hosts, int32_t e,
                             const int64_t *split) {
    int64_t E = hosts->experts;
    for (int32_t n = 0; n < f->nodes; n++)
        f->node_left[n] =
            f->before[f->first_rank[n + 1] * E + e] - f->before[f->first_rank[n] * E + e];
    for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++) {
        int32_t r = hosts->rank[h];
        int64_t kept = smaller(split[h], f->sources[r * E + e]);
        f->on_rank[r] += kept;
        f->on_node[r] += kept;
        f->node_left[f->node[r]] -= kept;
    }
    for (int64_t h = hosts->offset[e]; h < hosts->offset[e + 1]; h++) {
        int32_t r = hosts->rank[h];
        int64_t kept = smaller(split[h], f->sources[r * E + e]);
        int64_t near = smaller(split[h] - kept, f->node_left[f->node[r]]);
        f->on_node[r] += near;
        f->node_left[f->node[r]] -= near;
    }
}

void lplb__flow_of_split(lplb__flow *flow, const lplb_hosts *hosts, const int64_t *split,
                         bool locality) {
    memset(flow->on_rank, 0, (size_t)hosts->ranks * sizeof *flow->on_rank);
    memset(flow->on_node, 0, (size_t)hosts->ranks * sizeof *flow->on_node);
    for (int32_t e = 0; e < hosts->experts; e++)
        if (locality) flow_local_first(flow, hosts, e, split);
        else flow_in_order(flow, hosts, e, split);
}
