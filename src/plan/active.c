/* Fewest activated experts on a rank (decoding reads an expert's weights whole, however few tokens
 * it has). One token per expert that has any turns the count into the exact planner's problem: an
 * expert need be active on one host only, and a bipartite matching with capacities is integral.
 *
 * The tokens follow heuristically. They start on the one host of each expert and are then evened
 * out pair by pair, as the balance solver does; a further host becomes active only while its rank
 * has fewer experts than the optimum, so the count never rises. Fixed tokens count as load but not
 * as experts, and speeds only in the second step. */
#include <string.h>

#include "plan/plan.h"

enum { MAX_SWEEPS = 64 };

struct lplb__active {
    lplb__exact *exact;
    const int32_t *by_rank; /* [offset[E]] as in lplb__baselines */
    int64_t *one;           /* [E] 1 for an expert with tokens */
    int64_t *none;          /* [G] zeros: fixed loads of the count */
    int64_t *load;          /* [G] */
    int64_t *count;         /* [G] active experts */
};

void lplb__active_reserve(const lplb_hosts *hosts, lplb__arena *arena) {
    lplb__arena_reserve(arena, 1, sizeof(lplb__active));
    lplb__arena_reserve(arena, hosts->experts, sizeof(int64_t));
    for (int i = 0; i < 3; i++) lplb__arena_reserve(arena, hosts->ranks, sizeof(int64_t));
}

void lplb__active_init(lplb__active **active, const lplb_hosts *hosts, lplb__exact *exact,
                       const lplb__baselines *baselines, lplb__arena *arena) {
    lplb__active *a = lplb__arena_take(arena, 1, sizeof *a);
    a->exact = exact;
    a->by_rank = baselines->by_rank;
    a->one = lplb__arena_take(arena, hosts->experts, sizeof(int64_t));
    a->none = lplb__arena_take(arena, hosts->ranks, sizeof(int64_t));
    a->load = lplb__arena_take(arena, hosts->ranks, sizeof(int64_t));
    a->count = lplb__arena_take(arena, hosts->ranks, sizeof(int64_t));
    *active = a;
}

/* Moves what evens out two hosts of an expert if the count allows it. */
static int even_out(lplb__active *a, const lplb__batch *batch, int64_t *split, int64_t limit,
                    int64_t i, int64_t j) {
    const int32_t *rank = batch->hosts->rank;
    int64_t amount = lplb__excess(batch, a->load, rank[i], rank[j]);
    if (amount < 0) {
        int64_t swapped = i;
        i = j;
        j = swapped;
        amount = -amount;
    }
    if (amount > split[i]) amount = split[i];
    if (amount == 0 || (split[j] == 0 && a->count[rank[j]] == limit)) return 0;
    a->count[rank[j]] += split[j] == 0;
    a->count[rank[i]] -= split[i] == amount;
    a->load[rank[i]] -= amount;
    a->load[rank[j]] += amount;
    split[i] -= amount;
    split[j] += amount;
    return 1;
}

static int32_t spread(lplb__active *a, const lplb__batch *batch, int64_t *split, int64_t limit) {
    const lplb_hosts *h = batch->hosts;
    int32_t sweeps = 0;
    for (int changed = 1; changed && sweeps < MAX_SWEEPS; sweeps++) {
        changed = 0;
        for (int32_t e = 0; e < h->experts; e++) {
            int64_t first = h->offset[e], n = h->offset[e + 1] - first;
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = i + 1; j < n; j++)
                    changed |= even_out(a, batch, split, limit, first + a->by_rank[first + i],
                                        first + a->by_rank[first + j]);
        }
    }
    return sweeps;
}

lplb_status lplb__active_solve(lplb__active *a, const lplb__batch *batch, lplb_plan *plan) {
    const lplb_hosts *h = batch->hosts;
    lplb__batch count = {.hosts = h, .tokens = a->one, .fixed = a->none};
    for (int32_t e = 0; e < h->experts; e++) a->one[e] = batch->tokens[e] > 0;
    LPLB_TRY(lplb__exact_solve(a->exact, &count, plan, NULL));
    memcpy(a->load, batch->fixed, sizeof(int64_t) * (size_t)h->ranks);
    memset(a->count, 0, sizeof(int64_t) * (size_t)h->ranks);
    int64_t limit = 0;
    for (int32_t e = 0; e < h->experts; e++)
        for (int64_t i = h->offset[e]; i < h->offset[e + 1]; i++) {
            if (plan->split[i] == 0) continue;
            int32_t r = h->rank[i];
            plan->split[i] = batch->tokens[e];
            a->load[r] += batch->tokens[e];
            if (++a->count[r] > limit) limit = a->count[r];
        }
    plan->sweeps += spread(a, batch, plan->split, limit);
    plan->objective = (double)limit;
    return LPLB_OK;
}
