/* The solvers that engines use, or could: even, greedy, water-filling, pairwise balancing. All of
 * them look at the ranks of an expert in ascending order, so that the split does not depend on the
 * order in which the hosts are listed, and count fixed loads.
 *
 * Speeds: even ignores them (it is what an engine does that knows nothing of loads). The others
 * compare load/speed by cross products, never by division. */
#include "plan/plan.h"

__extension__ typedef __int128 wide;

enum { MAX_SWEEPS = 64 };

typedef struct view {
    lplb__baselines *b;
    const lplb__batch *batch;
} view;

static int64_t speed_of(const lplb__batch *batch, int32_t r) {
    return batch->speed ? batch->speed[r] : 1;
}

/* a/speed[r] < b/speed[q] */
static int lower(const lplb__batch *batch, int64_t a, int32_t r, int64_t b, int32_t q) {
    if (!batch->speed) return a < b;
    return (wide)a * batch->speed[q] < (wide)b * batch->speed[r];
}

/* Heap sort: no allocation, and no order of equal items to depend on as `before` is a total order.
 */
typedef int before_fn(const view *v, int32_t a, int32_t b);
static inline void sift(int32_t *item, int64_t root, int64_t n, before_fn *before, const view *v) {
    int32_t moving = item[root];
    for (int64_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && before(v, item[child], item[child + 1])) child++;
        if (!before(v, moving, item[child])) break;
        item[root] = item[child];
    }
    item[root] = moving;
}
static inline void sort(int32_t *item, int64_t n, before_fn *before, const view *v) {
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(item, i, n, before, v);
    for (int64_t i = n - 1; i > 0; i--) {
        int32_t last = item[i];
        item[i] = item[0];
        item[0] = last;
        sift(item, 0, i, before, v);
    }
}

static int more_tokens(const view *v, int32_t a, int32_t b) {
    const int64_t *tokens = v->batch->tokens;
    return tokens[a] != tokens[b] ? tokens[a] > tokens[b] : a < b;
}
/* Compares key[r] / speed[r]; ties to the lower rank. */
static int lower_key(const view *v, int32_t r, int32_t q) {
    const int64_t *key = v->b->key;
    if (lower(v->batch, key[r], r, key[q], q)) return 1;
    if (lower(v->batch, key[q], q, key[r], r)) return 0;
    return r < q;
}
static int higher_key(const view *v, int32_t r, int32_t q) { return lower_key(v, q, r); }
static int lower_rank(const view *v, int32_t a, int32_t b) {
    const int32_t *rank = v->batch->hosts->rank;
    return rank[a] < rank[b];
}

static void even_split(const lplb__baselines *b, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    for (int32_t e = 0; e < h->experts; e++) {
        int64_t first = h->offset[e], n = h->offset[e + 1] - first;
        int64_t share = batch->tokens[e] / n, rest = batch->tokens[e] % n;
        for (int64_t i = 0; i < n; i++) split[first + b->by_rank[first + i]] = share + (i < rest);
    }
}

static void greedy_split(const lplb__baselines *b, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    for (int32_t k = 0; k < h->experts; k++) {
        int32_t e = b->order[k];
        int64_t first = h->offset[e], n = h->offset[e + 1] - first, best = -1;
        int64_t tokens = batch->tokens[e];
        for (int64_t i = 0; i < n; i++) {
            int64_t host = first + b->by_rank[first + i];
            int32_t r = h->rank[host];
            split[host] = 0;
            /* with equal speeds the least load after is the least load before */
            if (best < 0 || lower(batch, b->load[r] + tokens, r, b->load[h->rank[best]] + tokens,
                                  h->rank[best]))
                best = host;
        }
        split[best] = tokens;
        b->load[h->rank[best]] += tokens;
    }
}

/* Raises the lowest of the n ranks in pick to a common level t of load/speed that takes all tokens:
 * gives each floor(t * s_r) - load_r, and the fewer than n that are left one by one to the rank
 * that they raise least. Leaves the new loads in load. */
static void pour(lplb__baselines *b, const lplb__batch *batch, int64_t n, int64_t tokens) {
    view v = {b, batch};
    int64_t m = 0, level = tokens, speeds = 0; /* t = level / speeds over the first m ranks */
    for (int64_t i = 0; i < n; i++) b->key[b->pick[i]] = b->load[b->pick[i]];
    sort(b->pick, n, lower_key, &v);
    for (; m < n; m++) {
        int32_t r = b->pick[m];
        if (m > 0 && (wide)b->load[r] * speeds >= (wide)level * speed_of(batch, r)) break;
        level += b->load[r];
        speeds += speed_of(batch, r);
    }
    for (int64_t i = 0; i < m; i++) {
        int32_t r = b->pick[i];
        int64_t target =
            batch->speed ? (int64_t)((wide)level * batch->speed[r] / speeds) : level / speeds;
        tokens -= target - b->load[r];
        b->load[r] = target;
        b->key[r] = target + 1;
    }
    for (int64_t i = m / 2 - 1; i >= 0; i--) sift(b->pick, i, m, higher_key, &v);
    for (; tokens > 0; tokens--) {
        int32_t r = b->pick[0];
        b->load[r]++;
        b->key[r]++;
        sift(b->pick, 0, m, higher_key, &v);
    }
}

static void waterfill_split(lplb__baselines *b, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    for (int32_t k = 0; k < h->experts; k++) {
        int32_t e = b->order[k];
        int64_t first = h->offset[e], n = h->offset[e + 1] - first;
        for (int64_t i = 0; i < n; i++) {
            b->pick[i] = h->rank[first + i];
            split[first + i] = -b->load[b->pick[i]];
        }
        pour(b, batch, n, batch->tokens[e]);
        for (int64_t i = 0; i < n; i++) split[first + i] += b->load[h->rank[first + i]];
    }
}

int64_t lplb__excess(const lplb__batch *batch, const int64_t *load, int32_t from, int32_t to) {
    if (!batch->speed) return (load[from] - load[to]) / 2;
    wide difference = (wide)load[from] * batch->speed[to] - (wide)load[to] * batch->speed[from];
    return (int64_t)(difference / (batch->speed[from] + batch->speed[to]));
}

/* Moves what evens out two hosts of an expert, as far as its tokens go. */
static int balance_pair(const lplb__batch *batch, int64_t *load, int64_t *split, int64_t i,
                        int64_t j) {
    const int32_t *rank = batch->hosts->rank;
    int64_t amount = lplb__excess(batch, load, rank[i], rank[j]);
    if (amount < 0) {
        int64_t swapped = i;
        i = j;
        j = swapped;
        amount = -amount;
    }
    if (amount > split[i]) amount = split[i];
    split[i] -= amount;
    split[j] += amount;
    load[rank[i]] -= amount;
    load[rank[j]] += amount;
    return amount > 0;
}

static int32_t balance_split(const lplb__baselines *b, const lplb__batch *batch, int64_t *split) {
    const lplb_hosts *h = batch->hosts;
    int32_t sweeps = 0;
    even_split(b, batch, split);
    for (int64_t i = 0; i < h->offset[h->experts]; i++) b->load[h->rank[i]] += split[i];
    for (int changed = 1; changed && sweeps < MAX_SWEEPS; sweeps++) {
        changed = 0;
        for (int32_t e = 0; e < h->experts; e++) {
            int64_t first = h->offset[e], n = h->offset[e + 1] - first;
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = i + 1; j < n; j++)
                    changed |= balance_pair(batch, b->load, split, first + b->by_rank[first + i],
                                            first + b->by_rank[first + j]);
        }
    }
    return sweeps;
}

void lplb__baselines_reserve(const lplb_hosts *hosts, lplb__arena *arena) {
    lplb__arena_reserve(arena, hosts->ranks, sizeof(int64_t));
    lplb__arena_reserve(arena, hosts->ranks, sizeof(int64_t));
    lplb__arena_reserve(arena, hosts->experts, sizeof(int32_t));
    lplb__arena_reserve(arena, hosts->ranks, sizeof(int32_t));
    lplb__arena_reserve(arena, hosts->offset[hosts->experts], sizeof(int32_t));
}

void lplb__baselines_init(lplb__baselines *b, const lplb_hosts *hosts, lplb__arena *arena) {
    b->load = lplb__arena_take(arena, hosts->ranks, sizeof *b->load);
    b->key = lplb__arena_take(arena, hosts->ranks, sizeof *b->key);
    b->order = lplb__arena_take(arena, hosts->experts, sizeof *b->order);
    b->pick = lplb__arena_take(arena, hosts->ranks, sizeof *b->pick);
    b->by_rank = lplb__arena_take(arena, hosts->offset[hosts->experts], sizeof *b->by_rank);
    for (int32_t e = 0; e < hosts->experts; e++) {
        lplb_hosts own = {.rank = hosts->rank + hosts->offset[e]};
        lplb__batch batch = {.hosts = &own};
        view v = {b, &batch};
        int64_t n = hosts->offset[e + 1] - hosts->offset[e];
        int32_t *position = b->by_rank + hosts->offset[e];
        for (int64_t i = 0; i < n; i++) position[i] = (int32_t)i;
        sort(position, n, lower_rank, &v);
    }
}

void lplb__baselines_solve(lplb__baselines *b, lplb_solver solver, const lplb__batch *batch,
                           int64_t *split, int32_t *sweeps) {
    view v = {b, batch};
    int32_t done = 0;
    for (int32_t r = 0; r < batch->hosts->ranks; r++) b->load[r] = batch->fixed[r];
    if (solver == LPLB_SOLVER_GREEDY || solver == LPLB_SOLVER_WATERFILL) {
        for (int32_t e = 0; e < batch->hosts->experts; e++) b->order[e] = e;
        sort(b->order, batch->hosts->experts, more_tokens, &v);
    }
    switch (solver) {
    case LPLB_SOLVER_GREEDY: greedy_split(b, batch, split); break;
    case LPLB_SOLVER_WATERFILL: waterfill_split(b, batch, split); break;
    case LPLB_SOLVER_BALANCE: done = balance_split(b, batch, split); break;
    default: even_split(b, batch, split); break;
    }
    if (sweeps) *sweeps = done;
}
