/* Locality: among the splits within given capacities, the one that keeps most tokens on the rank
 * they come from, then most on its node.
 *
 * With c[r][e] tokens of expert e from rank r, min(x[e][r], c[r][e]) stay on their rank, and
 * min(sum of x, sum of c) over the ranks of a node stay on the node. Both are concave in x and the
 * nodes nest the ranks, so this is a minimum-cost flow on a forest a batch: expert -> its hosts of
 * one node (a group) -> rank. An edge carries x; its first c units gain, the rest gain nothing.
 * The gain at a rank outweighs all that one path can gain at nodes, which makes the order
 * lexicographic.
 *
 * Every expert alone first takes its best split, that leaves some ranks over capacity; the excess
 * then moves along shortest paths to ranks with room, all paths of one cost at a time (successive
 * shortest paths with potentials: Edmonds and Karp 1972; a blocking flow for each cost: Dinitz
 * 1970). Ranks, groups and edges are looked at in ascending order of (expert, rank), so the answer
 * depends on nothing else. */
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"

static const int64_t NONE = INT64_MAX;

typedef struct edge {
    int32_t parent, child; /* nodes: ranks, then groups, then experts with several groups */
    int64_t gain;          /* cost of taking one of the first `own` units away */
    int64_t flow, own;
} edge;

/* One direction of an edge as a path meets it. */
typedef struct arc {
    int32_t edge, to;
    int64_t cost, room;
} arc;

struct lplb__locality {
    const lplb_hosts *hosts;
    int32_t ranks, nodes, groups, experts; /* nodes of the graph = ranks + groups + tall experts */
    int32_t topology_nodes;
    int32_t *node_of;     /* [G] 0-based node of a rank */
    int32_t *expert;      /* [R] experts with several hosts */
    int32_t *first_group; /* [R+1] */
    int64_t *first_host;  /* [groups+1] first host edge of a group */
    int32_t *group_node;  /* [groups] topology node */
    int32_t *group_edge;  /* [groups] edge to the expert, -1 if it is the expert's only group */
    edge *edges;          /* host edges, then group edges */
    int64_t *host;        /* [host edges] index into the split */
    int64_t *first_edge;  /* [nodes+1] */
    int32_t *incident;    /* [2 * edges] edges of a node */
    int64_t *room;        /* [G] capacity - load, negative = excess */
    int64_t *from_node;   /* [topology_nodes] tokens of one expert by source node */
    int64_t *potential, *distance; /* [nodes] */
    int64_t *cursor;               /* [nodes] next edge to try */
    int32_t *level;                /* [nodes] */
    int32_t *heap, *place;         /* [nodes] */
    int32_t *path;                 /* [nodes] edges of the path being built */
    int32_t heap_size;
};

/* ---- construction ---- */

static int has_choice(const lplb_hosts *hosts, int32_t e) {
    return hosts->offset[e + 1] - hosts->offset[e] > 1;
}

static void lay_out(lplb__locality *locality, const lplb_hosts *hosts, lplb__arena *arena) {
    lplb__locality unused;
    lplb__locality *p = locality ? locality : &unused;
    int64_t G = hosts->ranks, experts = 0, columns = 0;
    for (int32_t e = 0; e < hosts->experts; e++) {
        if (!has_choice(hosts, e)) continue;
        experts++;
        columns += hosts->offset[e + 1] - hosts->offset[e];
    }
    int64_t nodes = G + columns + experts, edges = 2 * columns; /* a group a host at most */
#define ARRAY(name, count)                                                                         \
    do {                                                                                           \
        if (!locality) lplb__arena_reserve(arena, count, sizeof *p->name);                         \
        else p->name = lplb__arena_take(arena, count, sizeof *p->name);                            \
    } while (0)
    ARRAY(node_of, G);
    ARRAY(expert, experts);
    ARRAY(first_group, experts + 1);
    ARRAY(first_host, columns + 1);
    ARRAY(group_node, columns);
    ARRAY(group_edge, columns);
    ARRAY(edges, edges);
    ARRAY(host, columns);
    ARRAY(first_edge, nodes + 1);
    ARRAY(incident, 2 * edges);
    ARRAY(room, G);
    ARRAY(from_node, G);
    ARRAY(potential, nodes);
    ARRAY(distance, nodes);
    ARRAY(cursor, nodes);
    ARRAY(level, nodes);
    ARRAY(heap, nodes);
    ARRAY(place, nodes);
    ARRAY(path, nodes);
#undef ARRAY
}

void lplb__locality_reserve(const lplb_plan_config *config, lplb__arena *arena) {
    lplb__arena_reserve(arena, 1, sizeof(lplb__locality));
    lplb__arena_reserve(arena, config->hosts.ranks, sizeof(uint64_t)); /* init's sorting */
    lay_out(NULL, &config->hosts, arena);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Numbers the nodes 0, 1, ... by ascending id. */
static void number_nodes(lplb__locality *l, const int32_t *node, uint64_t *sorted) {
    l->topology_nodes = 1;
    if (!node) return;
    for (int32_t r = 0; r < l->ranks; r++)
        sorted[r] = (uint64_t)((int64_t)node[r] - INT32_MIN) << 32 | (uint32_t)r;
    qsort(sorted, (size_t)l->ranks, sizeof *sorted, by_value);
    for (int32_t i = 1; i < l->ranks; i++) {
        if (sorted[i] >> 32 != sorted[i - 1] >> 32) l->topology_nodes++;
        l->node_of[(uint32_t)sorted[i]] = l->topology_nodes - 1;
    }
}

/* Hosts of one expert sorted by (node, rank), cut into groups of one node. */
static void add_expert(lplb__locality *l, int32_t k, int64_t *n_hosts) {
    const lplb_hosts *h = l->hosts;
    int32_t e = l->expert[k];
    int64_t first = *n_hosts, end = first;
    for (int64_t i = h->offset[e]; i < h->offset[e + 1]; i++, end++) {
        int64_t at = end;
        int32_t r = h->rank[i], node = l->node_of[r];
        for (; at > first; at--) {
            int32_t q = h->rank[l->host[at - 1]];
            if (l->node_of[q] < node || (l->node_of[q] == node && q < r)) break;
            l->host[at] = l->host[at - 1];
        }
        l->host[at] = i;
    }
    for (int64_t i = first; i < end; i++) {
        int32_t r = h->rank[l->host[i]];
        if (i == first || l->node_of[r] != l->group_node[l->groups - 1]) {
            l->first_host[l->groups] = i;
            l->group_node[l->groups++] = l->node_of[r];
        }
        l->edges[i] = (edge){.parent = l->ranks + l->groups - 1, .child = r};
    }
    *n_hosts = end;
    l->first_group[k + 1] = l->groups;
}

/* An expert of several groups becomes a node above them. */
static int32_t add_group_edges(lplb__locality *l, int32_t n_edges) {
    l->nodes = l->ranks + l->groups;
    for (int32_t k = 0; k < l->experts; k++) {
        int several = l->first_group[k + 1] - l->first_group[k] > 1;
        for (int32_t g = l->first_group[k]; g < l->first_group[k + 1]; g++) {
            l->group_edge[g] = several ? n_edges : -1;
            if (several)
                l->edges[n_edges++] = (edge){.parent = l->nodes, .child = l->ranks + g, .gain = 1};
        }
        l->nodes += several;
    }
    return n_edges;
}

static void link_edges(lplb__locality *l, int32_t n_edges) {
    for (int32_t i = 0; i < n_edges; i++) {
        l->first_edge[l->edges[i].parent + 1]++;
        l->first_edge[l->edges[i].child + 1]++;
    }
    for (int32_t v = 0; v < l->nodes; v++) {
        l->first_edge[v + 1] += l->first_edge[v];
        l->cursor[v] = l->first_edge[v];
    }
    for (int32_t i = 0; i < n_edges; i++) {
        l->incident[l->cursor[l->edges[i].parent]++] = i;
        l->incident[l->cursor[l->edges[i].child]++] = i;
    }
}

lplb_status lplb__locality_init(lplb__locality **out, const lplb_plan_config *config,
                                lplb__arena *arena) {
    const lplb_hosts *hosts = &config->hosts;
    lplb__locality *l = lplb__arena_take(arena, 1, sizeof *l);
    uint64_t *sorted = lplb__arena_take(arena, hosts->ranks, sizeof *sorted);
    lay_out(l, hosts, arena);
    l->hosts = hosts;
    l->ranks = hosts->ranks;
    number_nodes(l, config->node, sorted);
    int64_t n_hosts = 0;
    for (int32_t e = 0; e < hosts->experts; e++)
        if (has_choice(hosts, e)) {
            l->expert[l->experts] = e;
            add_expert(l, l->experts++, &n_hosts);
        }
    if (n_hosts > INT32_MAX / 4)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%lld copies of experts with several hosts; at most %d "
                         "with locality",
                         (long long)n_hosts, INT32_MAX / 4);
    l->first_host[l->groups] = n_hosts;
    /* a path has fewer group edges than there are groups, so this outweighs them all */
    for (int64_t i = 0; i < n_hosts; i++) l->edges[i].gain = 2 * (int64_t)l->groups + 1;
    link_edges(l, add_group_edges(l, (int32_t)n_hosts));
    *out = l;
    return LPLB_OK;
}

/* ---- start: every expert at its own best ---- */

static void give(lplb__locality *l, int64_t i, int64_t amount) {
    l->edges[i].flow += amount;
    l->room[l->edges[i].child] -= amount;
}

/* Tokens that are as good on any of these hosts go where there is room; the rest to the first. */
static void pour(lplb__locality *l, int64_t first, int64_t end, int64_t amount) {
    for (int64_t i = first; i < end && amount > 0; i++) {
        int64_t room = l->room[l->edges[i].child], part = room < amount ? room : amount;
        if (part <= 0) continue;
        give(l, i, part);
        amount -= part;
    }
    if (amount > 0) give(l, first, amount);
}

static int64_t tokens_from(const lplb__locality *l, const lplb__batch *batch, int32_t r,
                           int32_t e) {
    return batch->sources[(int64_t)r * l->hosts->experts + e];
}

/* What comes from the hosts themselves stays there. */
static void start_local(lplb__locality *l, const lplb__batch *batch, const int64_t *capacity,
                        int64_t *split) {
    const lplb_hosts *h = l->hosts;
    for (int32_t r = 0; r < l->ranks; r++) l->room[r] = capacity[r] - batch->fixed[r];
    for (int32_t e = 0; e < h->experts; e++) {
        if (has_choice(h, e)) continue;
        split[h->offset[e]] = batch->tokens[e];
        l->room[h->rank[h->offset[e]]] -= batch->tokens[e];
    }
    for (int32_t k = 0; k < l->experts; k++)
        for (int64_t i = l->first_host[l->first_group[k]]; i < l->first_host[l->first_group[k + 1]];
             i++) {
            l->edges[i].own = tokens_from(l, batch, l->edges[i].child, l->expert[k]);
            l->edges[i].flow = 0;
            give(l, i, l->edges[i].own);
        }
}

/* Of the other ranks' tokens, those from a node with hosts stay on it, the rest goes anywhere. */
static void start_expert(lplb__locality *l, const lplb__batch *batch, int32_t k) {
    int32_t first = l->first_group[k], end = l->first_group[k + 1];
    int64_t left = batch->tokens[l->expert[k]];
    if (end - first > 1) {
        memset(l->from_node, 0, sizeof(int64_t) * (size_t)l->topology_nodes);
        for (int32_t r = 0; r < l->ranks; r++)
            l->from_node[l->node_of[r]] += tokens_from(l, batch, r, l->expert[k]);
        for (int32_t g = first; g < end; g++) {
            int64_t others = l->from_node[l->group_node[g]];
            l->edges[l->group_edge[g]].own = others;
            for (int64_t i = l->first_host[g]; i < l->first_host[g + 1]; i++)
                others -= l->edges[i].flow;
            pour(l, l->first_host[g], l->first_host[g + 1], others);
        }
    }
    for (int64_t i = l->first_host[first]; i < l->first_host[end]; i++) left -= l->edges[i].flow;
    pour(l, l->first_host[first], l->first_host[end], left);
    for (int32_t g = first; g < end && end - first > 1; g++) {
        edge *up = &l->edges[l->group_edge[g]];
        up->flow = 0;
        for (int64_t i = l->first_host[g]; i < l->first_host[g + 1]; i++)
            up->flow += l->edges[i].flow;
    }
}

/* ---- shortest paths ---- */

/* Leaving u by the edge: downwards flow grows, upwards it shrinks. Only the next stretch of
 * constant cost is offered; the costs of an edge rise with its flow, so no cheaper stretch lies
 * behind. */
static arc leave(const lplb__locality *l, int32_t u, int32_t i) {
    const edge *d = &l->edges[i];
    if (u == d->parent) {
        if (d->flow < d->own) return (arc){i, d->child, -d->gain, d->own - d->flow};
        return (arc){i, d->child, 0, NONE};
    }
    if (d->flow > d->own) return (arc){i, d->parent, 0, d->flow - d->own};
    return (arc){i, d->parent, d->gain, d->flow};
}

static int nearer(const lplb__locality *l, int32_t a, int32_t b) {
    return l->distance[a] != l->distance[b] ? l->distance[a] < l->distance[b] : a < b;
}

static void heap_up(lplb__locality *l, int32_t at) {
    int32_t v = l->heap[at];
    for (; at > 0 && nearer(l, v, l->heap[(at - 1) / 2]); at = (at - 1) / 2) {
        l->heap[at] = l->heap[(at - 1) / 2];
        l->place[l->heap[at]] = at;
    }
    l->heap[at] = v;
    l->place[v] = at;
}

static int32_t heap_pop(lplb__locality *l) {
    int32_t top = l->heap[0], v = l->heap[--l->heap_size], at = 0;
    for (int32_t child; (child = 2 * at + 1) < l->heap_size; at = child) {
        if (child + 1 < l->heap_size && nearer(l, l->heap[child + 1], l->heap[child])) child++;
        if (!nearer(l, l->heap[child], v)) break;
        l->heap[at] = l->heap[child];
        l->place[l->heap[at]] = at;
    }
    l->heap[at] = v;
    l->place[v] = at;
    return top;
}

static void shorten(lplb__locality *l, int32_t v, int64_t distance) {
    if (distance >= l->distance[v]) return;
    if (l->distance[v] == NONE) {
        l->place[v] = l->heap_size;
        l->heap[l->heap_size++] = v;
    }
    l->distance[v] = distance;
    heap_up(l, l->place[v]);
}

/* Dijkstra from all ranks with excess; makes every arc on a shortest path to room have reduced cost
 * 0. *reach is the potential of the ranks with room that are nearest. Returns 0 if none is. */
static int find_distances(lplb__locality *l, int64_t *reach) {
    int64_t best = NONE; /* least distance + potential over ranks with room */
    l->heap_size = 0;
    for (int32_t v = 0; v < l->nodes; v++) l->distance[v] = NONE;
    for (int32_t r = 0; r < l->ranks; r++)
        if (l->room[r] < 0) shorten(l, r, 0);
    while (l->heap_size > 0) {
        int32_t u = heap_pop(l);
        if (best != NONE && l->distance[u] > best - *reach) break;
        if (u < l->ranks && l->room[u] > 0 && l->distance[u] + l->potential[u] < best)
            best = l->distance[u] + l->potential[u];
        for (int64_t k = l->first_edge[u]; k < l->first_edge[u + 1]; k++) {
            arc a = leave(l, u, l->incident[k]);
            if (a.room == 0) continue;
            shorten(l, a.to, l->distance[u] + a.cost + l->potential[u] - l->potential[a.to]);
        }
    }
    if (best == NONE) return 0;
    int64_t farthest = best - *reach;
    for (int32_t v = 0; v < l->nodes; v++)
        l->potential[v] += l->distance[v] < farthest ? l->distance[v] : farthest;
    *reach = best;
    return 1;
}

static int is_target(const lplb__locality *l, int32_t v, int64_t reach) {
    return v < l->ranks && l->room[v] > 0 && l->potential[v] == reach;
}

/* Breadth first over arcs of reduced cost 0. Returns 0 when no target is in reach. */
static int find_levels(lplb__locality *l, int64_t reach) {
    int32_t head = 0, tail = 0, found = 0, *queue = l->heap;
    for (int32_t v = 0; v < l->nodes; v++) {
        l->level[v] = -1;
        l->cursor[v] = l->first_edge[v];
    }
    for (int32_t r = 0; r < l->ranks; r++)
        if (l->room[r] < 0) {
            l->level[r] = 0;
            queue[tail++] = r;
        }
    while (head < tail) {
        int32_t u = queue[head++];
        found |= is_target(l, u, reach);
        for (int64_t k = l->first_edge[u]; k < l->first_edge[u + 1]; k++) {
            arc a = leave(l, u, l->incident[k]);
            if (l->level[a.to] >= 0 || a.room == 0 ||
                a.cost + l->potential[u] != l->potential[a.to])
                continue;
            l->level[a.to] = l->level[u] + 1;
            queue[tail++] = a.to;
        }
    }
    return found;
}

/* Moves what fits along the path from source to the target at its end. */
static void augment(lplb__locality *l, int32_t source, int32_t target, int32_t length) {
    int64_t amount = l->room[target] < -l->room[source] ? l->room[target] : -l->room[source];
    int32_t u = source;
    for (int32_t i = 0; i < length; i++) {
        arc a = leave(l, u, l->path[i]);
        if (a.room < amount) amount = a.room;
        u = a.to;
    }
    u = source;
    for (int32_t i = 0; i < length; i++) {
        edge *d = &l->edges[l->path[i]];
        int down = u == d->parent;
        d->flow += down ? amount : -amount;
        u = down ? d->child : d->parent;
    }
    l->room[source] += amount;
    l->room[target] -= amount;
}

/* Advances from u along the next usable arc; -1 when there is none left. */
static int32_t advance(lplb__locality *l, int32_t u, int32_t length) {
    for (; l->cursor[u] < l->first_edge[u + 1]; l->cursor[u]++) {
        arc a = leave(l, u, l->incident[l->cursor[u]]);
        if (a.room == 0 || l->level[a.to] != l->level[u] + 1 ||
            a.cost + l->potential[u] != l->potential[a.to])
            continue;
        l->path[length] = a.edge;
        return a.to;
    }
    return -1;
}

/* Depth first from one rank with excess; the cursors remember what is exhausted. A path that has
 * been used is built anew from its source, which costs its length once more. */
static void drain(lplb__locality *l, int32_t source, int64_t reach) {
    int32_t u = source, length = 0;
    while (l->room[source] < 0) {
        if (is_target(l, u, reach)) {
            augment(l, source, u, length);
            u = source;
            length = 0;
            continue;
        }
        int32_t next = advance(l, u, length);
        if (next >= 0) {
            length++;
            u = next;
        } else if (length > 0) {
            const edge *d = &l->edges[l->path[--length]];
            u = u == d->parent ? d->child : d->parent;
            l->cursor[u]++;
        } else {
            return;
        }
    }
}

lplb_status lplb__locality_solve(lplb__locality *l, const lplb__batch *batch,
                                 const int64_t *capacity, int64_t *split) {
    int64_t reach = 0, excess = 0;
    start_local(l, batch, capacity, split);
    for (int32_t k = 0; k < l->experts; k++) start_expert(l, batch, k);
    memset(l->potential, 0, sizeof(int64_t) * (size_t)l->nodes);
    for (;;) {
        excess = 0;
        for (int32_t r = 0; r < l->ranks; r++) excess |= l->room[r] < 0;
        if (!excess) break;
        if (!find_distances(l, &reach))
            return LPLB_FAIL(LPLB_INFEASIBLE, "no split keeps every rank within its capacity");
        while (find_levels(l, reach))
            for (int32_t r = 0; r < l->ranks; r++)
                if (l->room[r] < 0) drain(l, r, reach);
    }
    for (int64_t i = 0; i < l->first_host[l->groups]; i++) split[l->host[i]] = l->edges[i].flow;
    return LPLB_OK;
}
