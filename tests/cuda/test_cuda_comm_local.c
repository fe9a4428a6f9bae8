/* Ranks that share counts on the device and keep tokens where they are: threads of one process,
 * each with its own planner. What they get is counted up, and compared id by id with dispatch on
 * the CPU over the counts of all. */
#include <lplb/cuda_comm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "gpu.h"
#include "meeting.h"

/* More than 2,048 ids take several blocks, which see each other's counts by way of memory. */
enum { MOST_IDS = 3500, STEPS = 2 };

typedef struct scene {
    const char *what;
    uint64_t seed;
    lplb_placement *placement;
    gpu_hosts hosts;
    int32_t ranks;                   /* sources, S */
    int32_t source_rank[MOST_RANKS]; /* where each of them lives */
    int32_t *node;                   /* [G] or NULL */
    lplb_cuda_transport transport;
    meeting all;
} scene;

typedef struct actor {
    const scene *s;
    member m;
    pthread_t thread;
    int64_t n[STEPS];
    int64_t *ids, *out;                /* [STEPS][MOST_IDS] */
    int64_t *split, *gathered, *loads; /* [STEPS] of [hosts], [S][E], [G]: what the device says */
} actor;

/* ---- a rank ---- */

static lplb_cuda_planner *make_planner(const scene *s, lplb_cuda_comm *comm) {
    lplb_cuda_planner *planner = NULL;
    lplb_cuda_config config = {.struct_size = sizeof config,
                               .placement = s->placement,
                               .sources = s->ranks,
                               .source_rank = s->source_rank,
                               .node = s->node,
                               .locality = 1,
                               .max_ids = MOST_IDS,
                               .comm = comm};
    OK(lplb_cuda_planner_create(&config, &planner));
    OK(lplb_cuda_comm_agree(comm, planner));
    return planner;
}

static void run_steps(actor *a, lplb_cuda_planner *planner) {
    const scene *s = a->s;
    int64_t E = s->placement->experts, G = s->placement->ranks, S = s->ranks;
    int64_t hosts = s->hosts.offset[E];
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    int64_t *ids = gpu_copy(NULL, MOST_IDS, 8), *out = gpu_copy(NULL, MOST_IDS, 8);
    int64_t *split = gpu_copy(NULL, hosts, 8), *loads = gpu_copy(NULL, G, 8);
    int64_t *gathered = gpu_copy(NULL, S * E, 8);
    for (int step = 0; step < STEPS; step++) {
        lplb_cuda_report report;
        lplb_cuda_problem problem = {
            .struct_size = sizeof problem, .split = split, .loads = loads, .gathered = gathered};
        lplb_cuda_ids arguments = {.struct_size = sizeof arguments,
                                   .ids = ids,
                                   .ids_dtype = LPLB_INT64,
                                   .out = out,
                                   .out_dtype = LPLB_INT64,
                                   .n = a->n[step],
                                   .source = a->m.rank};
        gpu_put(ids, a->ids + step * MOST_IDS, a->n[step], 8);
        OK(lplb_cuda_run(planner, &arguments, &problem, stream));
        OK(lplb_cuda_report_read(planner, stream, &report));
        OK(lplb_cuda_report_status(&report));
        gpu_fetch(a->out + step * MOST_IDS, out, a->n[step], 8);
        gpu_fetch(a->split + step * hosts, split, hosts, 8);
        gpu_fetch(a->loads + step * G, loads, G, 8);
        gpu_fetch(a->gathered + step * S * E, gathered, S * E, 8);
    }
    int64_t *arrays[] = {ids, out, split, loads, gathered};
    for (int i = 0; i < 5; i++) gpu_free(arrays[i]);
    CUDA(cudaStreamDestroy(stream));
}

static void *act(void *argument) {
    actor *a = argument;
    lplb_cuda_comm *comm = NULL;
    lplb_cuda_comm_config config = {.struct_size = sizeof config,
                                    .rank = a->m.rank,
                                    .ranks = a->s->ranks,
                                    .experts = a->s->placement->experts,
                                    .transport = a->s->transport,
                                    .exchange = exchange,
                                    .state = &a->m};
    OK(lplb_cuda_comm_create(&config, &comm));
    lplb_cuda_planner *planner = make_planner(a->s, comm);
    run_steps(a, planner);
    lplb_cuda_planner_destroy(planner);
    pthread_barrier_wait(&a->m.all->barrier);
    lplb_cuda_comm_destroy(comm);
    return NULL;
}

/* ---- what must hold of a step ---- */

/* What the CPU makes of the counts of all, and what came of it. */
typedef struct account {
    int64_t *counts, *tokens; /* [S][E], [E] */
    int64_t *split, *loads;   /* [hosts], [G] */
    int64_t *on_slot;         /* [P] tokens that the ranks sent there */
    int64_t *kept;            /* [E] of them, those that stayed on their rank */
    int64_t *near;            /* [E] or on its node */
} account;

static int32_t rank_of_slot(const lplb_placement *placement, int64_t slot) {
    int32_t rank = 0;
    while (placement->rank_offset[rank + 1] <= slot) rank++;
    return rank;
}

static int32_t node_of(const scene *s, int32_t rank) { return s->node ? s->node[rank] : 0; }

/* Adds up a rank's slots; each must be one of its id's expert. */
static void count_slots(const scene *s, const actor *a, int step, account *sum) {
    const int64_t *ids = a->ids + step * MOST_IDS, *out = a->out + step * MOST_IDS;
    int32_t home = s->source_rank[a->m.rank];
    for (int64_t i = 0; i < a->n[step]; i++) {
        int64_t slot = out[i];
        bool valid = ids[i] < 0 ? slot == -1
                                : slot >= 0 && slot < s->placement->slots &&
                                      s->placement->physical_to_logical[slot] == ids[i];
        CHECK(valid, "%s seed %llu, step %d, rank %d: id %lld has slot %lld", s->what,
              (unsigned long long)s->seed, step, a->m.rank, (long long)ids[i], (long long)slot);
        if (!valid || slot < 0) continue;
        int32_t rank = rank_of_slot(s->placement, slot);
        sum->on_slot[slot]++;
        sum->kept[ids[i]] += rank == home;
        sum->near[ids[i]] += node_of(s, rank) == node_of(s, home);
    }
}

/* Every slot has its part of what the plan gives its host: an even one, extras to lower slots. */
static void check_slots(const scene *s, const account *sum, int step) {
    for (int32_t e = 0; e < s->placement->experts; e++)
        for (int64_t h = s->hosts.offset[e]; h < s->hosts.offset[e + 1]; h++) {
            const int32_t *slots = s->placement->physical_to_logical;
            int32_t begin = s->placement->rank_offset[s->hosts.rank[h]];
            int32_t end = s->placement->rank_offset[s->hosts.rank[h] + 1], n = 0, k = 0;
            for (int32_t p = begin; p < end; p++) n += slots[p] == e;
            for (int32_t p = begin; p < end; p++) {
                if (slots[p] != e) continue;
                int64_t wanted = sum->split[h] / n + (k++ < sum->split[h] % n);
                CHECK(sum->on_slot[p] == wanted,
                      "%s seed %llu, step %d: slot %d has %lld, not %lld", s->what,
                      (unsigned long long)s->seed, step, p, (long long)sum->on_slot[p],
                      (long long)wanted);
            }
        }
}

/* Tokens of an expert that could be served on a place if nothing else counted: those that are
 * there, or those that the plan serves there, whichever are fewer. A place is a rank, or (by_node)
 * a node. Local first reaches this sum, so nothing could keep more. */
static int64_t most_that_stay(const scene *s, const account *sum, int32_t e, bool by_node) {
    int64_t most = 0, begin = s->hosts.offset[e], end = s->hosts.offset[e + 1];
    for (int64_t h = begin; h < end; h++) {
        int32_t place = by_node ? node_of(s, s->hosts.rank[h]) : s->hosts.rank[h];
        int64_t served = 0, there = 0;
        bool seen = false;
        for (int64_t other = begin; other < end; other++) {
            int32_t rank = s->hosts.rank[other];
            if ((by_node ? node_of(s, rank) : rank) != place) continue;
            seen = seen || other < h;
            served += sum->split[other];
        }
        for (int32_t r = 0; r < s->ranks; r++) {
            int32_t rank = s->source_rank[r];
            if ((by_node ? node_of(s, rank) : rank) == place)
                there += sum->counts[r * s->placement->experts + e];
        }
        if (!seen) most += served < there ? served : there;
    }
    return most;
}

/* The device's arrays: the same on all ranks, and those of the CPU. */
static void check_plans(const scene *s, const actor *actors, const account *sum, int step) {
    size_t E = (size_t)s->placement->experts, G = (size_t)s->placement->ranks;
    size_t hosts = (size_t)s->hosts.offset[E], all = (size_t)s->ranks * E, at = (size_t)step;
    for (int32_t r = 0; r < s->ranks; r++) {
        const actor *a = &actors[r];
        bool same = !memcmp(a->split + at * hosts, sum->split, hosts * 8) &&
                    !memcmp(a->loads + at * G, sum->loads, G * 8) &&
                    !memcmp(a->gathered + at * all, sum->counts, all * 8);
        CHECK(same, "%s seed %llu, step %d: rank %d has another plan", s->what,
              (unsigned long long)s->seed, step, r);
    }
}

static void check_ids(const scene *s, const actor *actors, const account *sum, int step) {
    lplb_dispatcher *dispatcher = NULL;
    int64_t *slots = malloc(MOST_IDS * 8);
    OK(lplb_dispatcher_create(s->placement, 0, s->ranks, s->source_rank, s->node, 1, &dispatcher));
    for (int32_t r = 0; r < s->ranks; r++) {
        const int64_t *ids = actors[r].ids + step * MOST_IDS, n = actors[r].n[step];
        OK(lplb_dispatch_prepare(dispatcher, sum->counts, sum->split, r, 1));
        OK(lplb_dispatch_map(dispatcher, ids, LPLB_INT64, n, slots, LPLB_INT64));
        CHECK(!memcmp(slots, actors[r].out + step * MOST_IDS, (size_t)n * 8),
              "%s seed %llu, step %d: rank %d has other slots than on the CPU", s->what,
              (unsigned long long)s->seed, step, r);
    }
    free(slots);
    lplb_dispatcher_destroy(dispatcher);
}

static void plan_on_cpu(const scene *s, const actor *actors, int step, account *sum) {
    int64_t E = s->placement->experts;
    lplb_planner *planner = NULL;
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = s->hosts.hosts};
    lplb_plan plan = {.split = sum->split, .loads = sum->loads};
    lplb_plan_input input = {.tokens = sum->tokens};
    for (int32_t r = 0; r < s->ranks; r++) {
        int64_t *counts = sum->counts + r * E;
        OK(lplb_count_experts(actors[r].ids + step * MOST_IDS, LPLB_INT64, actors[r].n[step],
                              (int32_t)E, 1, counts));
        for (int64_t e = 0; e < E; e++) sum->tokens[e] += counts[e];
    }
    OK(lplb_planner_create(&config, &planner));
    OK(lplb_plan_solve(planner, &input, &plan));
    lplb_planner_destroy(planner);
}

static void check_step(const scene *s, const actor *actors, int step) {
    size_t E = (size_t)s->placement->experts;
    account sum = {.counts = calloc((size_t)s->ranks * E, 8),
                   .tokens = calloc(E, 8),
                   .split = calloc((size_t)s->hosts.offset[E], 8),
                   .loads = calloc((size_t)s->placement->ranks, 8),
                   .on_slot = calloc((size_t)s->placement->slots, 8),
                   .kept = calloc(E, 8),
                   .near = calloc(E, 8)};
    plan_on_cpu(s, actors, step, &sum);
    check_plans(s, actors, &sum, step);
    for (int32_t r = 0; r < s->ranks; r++) count_slots(s, &actors[r], step, &sum);
    check_slots(s, &sum, step);
    for (int32_t e = 0; e < s->placement->experts; e++) {
        int64_t kept = most_that_stay(s, &sum, e, false), near = most_that_stay(s, &sum, e, true);
        CHECK(sum.kept[e] == kept && sum.near[e] == near,
              "%s seed %llu, step %d, expert %d: %lld and %lld stay on rank and node, not %lld and "
              "%lld",
              s->what, (unsigned long long)s->seed, step, e, (long long)sum.kept[e],
              (long long)sum.near[e], (long long)kept, (long long)near);
    }
    check_ids(s, actors, &sum, step);
    void *blocks[] = {sum.counts,  sum.tokens, sum.split, sum.loads,
                      sum.on_slot, sum.kept,   sum.near};
    for (int i = 0; i < 7; i++) free(blocks[i]);
}

/* ---- scenes ---- */

/* Each rank has its own number of ids, perhaps none, and its own favourites. */
static void draw_ids(actor *a) {
    lplb__rng rng;
    uint64_t E = (uint64_t)a->s->placement->experts;
    lplb__rng_seed(&rng, a->s->seed * 100 + (uint64_t)a->m.rank, 21);
    for (int step = 0; step < STEPS; step++) {
        uint64_t favourite = lplb__rng_below(&rng, E), kind = lplb__rng_below(&rng, 4);
        uint64_t most = kind == 0 ? 0 : kind == 1 ? 200 : MOST_IDS;
        a->n[step] = (int64_t)lplb__rng_below(&rng, most + 1);
        for (int64_t i = 0; i < a->n[step]; i++) {
            double u = lplb__rng_uniform(&rng);
            uint64_t e = ((uint64_t)(u * u * u * (double)E) + favourite) % E;
            a->ids[step * MOST_IDS + i] = lplb__rng_below(&rng, 20) == 0 ? -1 : (int64_t)e;
        }
    }
}

static void create_actor(const scene *s, meeting *all, int32_t rank, actor *a) {
    int64_t E = s->placement->experts;
    a->s = s;
    a->m = (member){all, rank};
    a->ids = calloc(STEPS * MOST_IDS, 8);
    a->out = calloc(STEPS * MOST_IDS, 8);
    a->split = calloc((size_t)(STEPS * s->hosts.offset[E]), 8);
    a->gathered = calloc((size_t)(STEPS * s->ranks * E), 8);
    a->loads = calloc((size_t)(STEPS * s->placement->ranks), 8);
    draw_ids(a);
}

static void play(const lplb_hosts *hosts, scene *s) {
    lplb__rng rng;
    lplb__rng_seed(&rng, s->seed, 20);
    s->placement = gpu_placement(hosts, (int32_t)lplb__rng_below(&rng, 4));
    gpu_hosts_create(s->placement, &s->hosts);
    uint64_t G = (uint64_t)s->placement->ranks;
    bool every_rank = G > 1 && G <= MOST_RANKS && lplb__rng_below(&rng, 2) == 0;
    s->ranks = every_rank ? (int32_t)G : 2 + (int32_t)lplb__rng_below(&rng, MOST_RANKS - 1);
    for (int32_t r = 0; r < s->ranks; r++)
        s->source_rank[r] = every_rank ? r : (int32_t)lplb__rng_below(&rng, G);
    uint64_t nodes = lplb__rng_below(&rng, 4);
    s->node = nodes ? calloc((size_t)G, sizeof *s->node) : NULL;
    for (uint64_t r = 0; nodes && r < G; r++) s->node[r] = (int32_t)lplb__rng_below(&rng, nodes);
    actor actors[MOST_RANKS];
    s->all.ranks = s->ranks;
    pthread_barrier_init(&s->all.barrier, NULL, (unsigned)s->ranks);
    for (int32_t r = 0; r < s->ranks; r++) {
        create_actor(s, &s->all, r, &actors[r]);
        pthread_create(&actors[r].thread, NULL, act, &actors[r]);
    }
    for (int32_t r = 0; r < s->ranks; r++) pthread_join(actors[r].thread, NULL);
    pthread_barrier_destroy(&s->all.barrier);
    for (int step = 0; step < STEPS; step++) check_step(s, actors, step);
    for (int32_t r = 0; r < s->ranks; r++) {
        int64_t *arrays[] = {actors[r].ids, actors[r].out, actors[r].split, actors[r].gathered,
                             actors[r].loads};
        for (int i = 0; i < 5; i++) free(arrays[i]);
    }
    free(s->node);
    gpu_hosts_destroy(&s->hosts);
    lplb_placement_destroy(s->placement);
}

static void test_cases(void) {
    static const char *const shapes[] = {"cube8x2", "random8", "everywhere", "random16", "eplb32"};
    for (int i = 0; i < 5; i++)
        for (uint64_t seed = 0; seed < (uint64_t)gpu_effort(10); seed++) {
            plan_instance instance;
            scene s = {.what = shapes[i], .seed = seed, .transport = LPLB_CUDA_TRANSPORT_P2P};
            instance_create(find_plan_case(shapes[i]), seed + 60, &instance);
            play(&instance.hosts, &s);
            instance_destroy(&instance);
        }
}

static void test_random(void) {
    for (uint64_t seed = 0; seed < (uint64_t)gpu_effort(40); seed++) {
        plan_instance instance;
        scene s = {.what = "random", .seed = seed + 1000, .transport = LPLB_CUDA_TRANSPORT_P2P};
        instance_random(seed, 1000, &instance);
        play(&instance.hosts, &s);
        instance_destroy(&instance);
    }
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"cases", test_cases}, {"random", test_random}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
