/* Ranks that share counts on the device: threads of one process, each with its own planner. Ids
 * against dispatch on the CPU over the counts of all, id by id. */
#include <dlfcn.h>
#include <lplb/cuda_comm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "gpu.h"
#include "meeting.h"

enum { FEW_IDS = 700, MOST_IDS = 2500 };

/* ---- an all-gather of one's own: the tests' NCCL, by hand ---- */

typedef struct own_id {
    char bytes[128];
} own_id;
typedef struct own_nccl {
    int (*init)(void **comm, int ranks, own_id id, int rank);
    int (*all_gather)(const void *send, void *receive, size_t count, int type, void *comm,
                      void *stream);
    int (*abort)(void *comm);
    void *comm;
} own_nccl;

static lplb_status gather_own(void *state, const void *send, void *receive, int64_t bytes,
                              lplb_cuda_stream stream) {
    const own_nccl *n = state;
    enum { INT64 = 4 };
    return n->all_gather(send, receive, (size_t)bytes / 8, INT64, n->comm, stream) ? LPLB_DEVICE
                                                                                   : LPLB_OK;
}
static void abort_own(void *state) {
    const own_nccl *n = state;
    n->abort(n->comm);
}

static void join_own(own_nccl *n, const member *m) {
    const char *names[] = {"ncclCommInitRank", "ncclAllGather", "ncclCommAbort"};
    void *library = dlopen(getenv("LPLB_NCCL_LIBRARY"), RTLD_NOW), *symbol[3];
    for (int i = 0; i < 3; i++) symbol[i] = dlsym(library, names[i]);
    memcpy(&n->init, &symbol[0], sizeof symbol[0]);
    memcpy(&n->all_gather, &symbol[1], sizeof symbol[1]);
    memcpy(&n->abort, &symbol[2], sizeof symbol[2]);
    own_id own = {{0}}, all[MOST_RANKS];
    if (m->rank == 0) {
        int (*make)(own_id * id);
        void *function = dlsym(library, "ncclGetUniqueId");
        memcpy(&make, &function, sizeof function);
        make(&own);
    }
    exchange((void *)(uintptr_t)m, &own, all, sizeof own);
    CHECK(n->init(&n->comm, m->all->ranks, all[0], m->rank) == 0, "rank %d", m->rank);
}

/* ---- what all ranks do, and what must come of it ---- */

typedef struct scene {
    const char *shape; /* of the placement */
    int32_t ranks;
    lplb_cuda_transport transport;
    int32_t ranks_per_node;
    int32_t steps;
    int32_t leaves;     /* rank that does not run the last steps; -1 = none */
    int32_t lacks;      /* how many of them, 0 = 1 */
    int32_t disagrees;  /* rank that plans with the even solver; -1 = none */
    int32_t graph;      /* nonzero: every step is a replay of the same graph */
    int32_t local;      /* nonzero: tokens stay with their sources where they can */
    int32_t ipm;        /* nonzero: with the interior-point method */
    int32_t moves;      /* rank that has another placement in the last but one step; -1 = none */
    int32_t apart;      /* nonzero: planned beside the stream, then mapped */
    int32_t twins;      /* nonzero: two planners, by turns, with one communicator */
    int32_t unfit;      /* rank that asks for what there is not; -1 = none */
    int32_t no_device;  /* nonzero: that is a device, else a number of experts */
    double reuse;       /* of the plan cache */
    int32_t many;       /* nonzero: ids for several blocks */
    int32_t heavy;      /* nonzero: all ranks but the first give counts, beyond 2^28 together */
    int64_t timeout_ns; /* 0 = default */
    meeting all;
    lplb_placement *placement, *other;
} scene;

typedef struct actor {
    scene *s;
    member m;
    pthread_t thread;
    int64_t ids[8][MOST_IDS], n[8];
    int64_t out[8][MOST_IDS];
    lplb_status status[8], agreed, state, created, planned;
    int32_t reused[8];
    char message[256]; /* of created */
} actor;

static int64_t most_ids(const scene *s) { return s->many ? MOST_IDS : FEW_IDS; }
static int64_t heavy_count(int32_t rank, int64_t expert) {
    return ((int64_t)1 << 23) + rank * 1000 + expert * expert * 100;
}

/* Uneven and now and then none. */
static void draw_ids(actor *a, int32_t experts) {
    lplb__rng rng;
    for (int32_t step = 0; step < a->s->steps; step++) {
        lplb__rng_seed(&rng, (uint64_t)(step * 100 + a->m.rank), 3);
        bool none = (step + a->m.rank) % 4 == 0 || (a->s->heavy && a->m.rank > 0);
        a->n[step] = none ? 0 : (int64_t)lplb__rng_below(&rng, (uint64_t)most_ids(a->s));
        for (int64_t i = 0; i < a->n[step]; i++) {
            double u = lplb__rng_uniform(&rng);
            a->ids[step][i] =
                lplb__rng_below(&rng, 16) == 0 ? -1 : (int64_t)(u * u * (double)experts);
        }
    }
}

static cudaGraphExec_t capture(lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                               const lplb_cuda_problem *problem, cudaStream_t stream) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(lplb_cuda_run(planner, ids, problem, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return exec;
}

/* Planned on a stream of its own, then mapped. */
static void run_apart(const actor *a, lplb_cuda_planner *planner, const lplb_cuda_ids *ids,
                      cudaStream_t stream) {
    const lplb_placement *placement = a->s->placement;
    cudaStream_t side;
    int64_t *gathered = gpu_copy(NULL, a->s->ranks * placement->experts, 8);
    int64_t *split = gpu_copy(NULL, placement->slots, 8);
    lplb_cuda_problem problem = {
        .struct_size = sizeof problem, .split = split, .gathered = gathered};
    CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    OK(lplb_cuda_start(planner, ids, &problem, stream, side));
    OK(lplb_cuda_join(planner, stream));
    OK(lplb_cuda_map(planner, ids, gathered, split, stream));
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaStreamDestroy(side));
    gpu_free(gathered);
    gpu_free(split);
}

static void solve_heavy(const actor *a, lplb_cuda_planner *planner, cudaStream_t stream) {
    int32_t experts = a->s->placement->experts;
    int64_t *host = calloc((size_t)experts, 8);
    for (int32_t e = 0; e < experts; e++) host[e] = heavy_count(a->m.rank, e);
    int64_t *own = gpu_copy(host, experts, 8);
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .own_counts = own};
    OK(lplb_cuda_solve(planner, &problem, stream));
    CUDA(cudaStreamSynchronize(stream));
    gpu_free(own);
    free(host);
}

static void run_steps(actor *a, lplb_cuda_planner *const *planners, lplb_cuda_comm *comm) {
    lplb_cuda_planner *planner = planners[0];
    cudaStream_t stream;
    cudaGraphExec_t exec = NULL;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    int64_t *ids = gpu_copy(NULL, MOST_IDS, 8), *out = gpu_copy(NULL, MOST_IDS, 8);
    int64_t *tokens = gpu_copy(NULL, 1, 8);
    lplb_cuda_ids arguments = {.struct_size = sizeof arguments,
                               .ids = ids,
                               .ids_dtype = LPLB_INT64,
                               .out = out,
                               .out_dtype = LPLB_INT64,
                               .n = most_ids(a->s),
                               .n_device = tokens,
                               .source = a->m.rank};
    lplb_cuda_problem problem = {.struct_size = sizeof problem};
    if (a->s->graph) exec = capture(planner, &arguments, &problem, stream);
    for (int32_t step = 0; step < a->s->steps; step++) {
        if (step == a->s->steps - (a->s->lacks ? a->s->lacks : 1) && a->m.rank == a->s->leaves)
            break;
        planner = planners[a->s->twins ? step % 2 : 0];
        gpu_put(ids, a->ids[step], MOST_IDS, 8);
        gpu_put(tokens, &a->n[step], 1, 8);
        if (step == a->s->steps - 2 && a->m.rank == a->s->moves)
            OK(lplb_cuda_planner_update(planner, a->s->other, 0, stream));
        if (step == a->s->steps - 1 && a->m.rank == a->s->moves)
            OK(lplb_cuda_planner_update(planner, a->s->placement, 0, stream));
        if (exec) CUDA(cudaGraphLaunch(exec, stream));
        else if (a->s->apart) run_apart(a, planner, &arguments, stream);
        else if (a->s->heavy && a->m.rank > 0) solve_heavy(a, planner, stream);
        else OK(lplb_cuda_run(planner, &arguments, &problem, stream));
        lplb_cuda_report report;
        OK(lplb_cuda_report_read(planner, stream, &report));
        a->status[step] = lplb_cuda_report_status(&report);
        a->reused[step] = report.reused;
        OK(lplb_cuda_report_clear(planner, stream));
        gpu_fetch(a->out[step], out, MOST_IDS, 8);
    }
    a->state = lplb_cuda_comm_state(comm);
    CHECK(a->state == LPLB_OK || strstr(lplb_error_message(), "rank"), "state: %s",
          lplb_error_message());
    if (exec) CUDA(cudaGraphExecDestroy(exec));
    gpu_free(ids);
    gpu_free(out);
    gpu_free(tokens);
    CUDA(cudaStreamDestroy(stream));
}

/* Counts that were given, of which rank r has r + e of expert e, and what all ranks have. */
static void share_counts(const actor *a, lplb_cuda_planner *planner) {
    int64_t experts = a->s->placement->experts, ranks = a->s->ranks;
    int64_t *host = calloc((size_t)experts, 8), *total = gpu_copy(NULL, experts, 8);
    for (int64_t e = 0; e < experts; e++) host[e] = a->m.rank + e;
    int64_t *own = gpu_copy(host, experts, 8);
    lplb_cuda_problem problem = {.struct_size = sizeof problem, .own_counts = own, .counts = total};
    lplb_cuda_report report;
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(lplb_cuda_solve(planner, &problem, stream));
    OK(lplb_cuda_report_read(planner, stream, &report));
    OK(lplb_cuda_report_status(&report));
    gpu_fetch(host, total, experts, 8);
    for (int64_t e = 0; e < experts; e++)
        CHECK(host[e] == ranks * e + ranks * (ranks - 1) / 2, "%s, expert %lld: %lld",
              lplb_cuda_transport_name(a->s->transport), (long long)e, (long long)host[e]);
    CUDA(cudaStreamDestroy(stream));
    free(host);
    gpu_free(own);
    gpu_free(total);
}

static void ranks_of_sources(const scene *s, int32_t *rank) {
    for (int32_t r = 0; r < s->ranks; r++) rank[r] = r % s->placement->ranks;
}

static void *act(void *argument) {
    actor *a = argument;
    lplb_cuda_comm *comm = NULL;
    lplb_cuda_planner *planner = NULL, *twin = NULL;
    lplb_cuda_comm_config config = {.struct_size = sizeof config,
                                    .rank = a->m.rank,
                                    .ranks = a->s->ranks,
                                    .experts = a->s->placement->experts + 3,
                                    .transport = a->s->transport,
                                    .ranks_per_node = a->s->ranks_per_node,
                                    .timeout_ns = a->s->timeout_ns,
                                    .exchange = exchange,
                                    .state = &a->m};
    own_nccl own;
    if (a->s->transport == LPLB_CUDA_TRANSPORT_CUSTOM) {
        join_own(&own, &a->m);
        config.all_gather = gather_own;
        config.abort = abort_own;
        config.gather_state = &own;
    }
    if (a->m.rank == a->s->unfit) *(a->s->no_device ? &config.device : &config.experts) = -7;
    a->created = lplb_cuda_comm_create(&config, &comm);
    snprintf(a->message, sizeof a->message, "%s", lplb_error_message());
    if (a->created != LPLB_OK) return NULL;
    int32_t rank[MOST_RANKS];
    ranks_of_sources(a->s, rank);
    lplb_cuda_config options = {.struct_size = sizeof options,
                                .sources = a->s->ranks,
                                .source_rank = a->s->local ? rank : NULL,
                                .reuse = a->s->reuse,
                                .locality = a->s->local,
                                .placement = a->s->placement,
                                .solver = a->m.rank == a->s->disagrees ? LPLB_SOLVER_EVEN
                                          : a->s->ipm                  ? LPLB_SOLVER_IPM
                                                                       : LPLB_SOLVER_EXACT,
                                .max_ids = most_ids(a->s),
                                .comm = comm};
    a->planned = lplb_cuda_planner_create(&options, &planner);
    if (a->planned != LPLB_OK) {
        pthread_barrier_wait(&a->s->all.barrier);
        lplb_cuda_comm_destroy(comm);
        return NULL;
    }
    a->agreed = lplb_cuda_comm_agree(comm, planner);
    if (a->agreed == LPLB_OK && !a->s->reuse) share_counts(a, planner);
    if (a->s->twins) OK(lplb_cuda_planner_create(&options, &twin));
    run_steps(a, (lplb_cuda_planner *const[]){planner, twin}, comm);
    lplb_cuda_planner_destroy(twin);
    lplb_cuda_planner_destroy(planner);
    pthread_barrier_wait(&a->s->all.barrier);
    lplb_cuda_comm_destroy(comm);
    return NULL;
}

/* Ids of a step that all ranks ran alike. */
static void check_step(const scene *s, const actor *actors, int32_t step) {
    gpu_hosts hosts;
    gpu_hosts_create(s->placement, &hosts);
    int64_t E = s->placement->experts, S = s->ranks;
    int64_t *counts = calloc((size_t)(S * E), 8), *tokens = calloc((size_t)E, 8);
    int64_t *split = calloc((size_t)hosts.offset[E], 8);
    int64_t *loads = calloc((size_t)s->placement->ranks, 8), slots[MOST_IDS];
    int32_t rank[MOST_RANKS];
    ranks_of_sources(s, rank);
    for (int32_t r = 0; r < S; r++) {
        OK(lplb_count_experts(actors[r].ids[step], LPLB_INT64, actors[r].n[step], (int32_t)E, 1,
                              counts + r * E));
        for (int64_t e = 0; s->heavy && r > 0 && e < E; e++) counts[r * E + e] = heavy_count(r, e);
        for (int64_t e = 0; e < E; e++) tokens[e] += counts[r * E + e];
    }
    lplb_planner *planner = NULL;
    lplb_dispatcher *dispatcher = NULL;
    lplb_plan_config config = {.struct_size = sizeof config, .hosts = hosts.hosts};
    lplb_plan plan = {.split = split, .loads = loads};
    lplb_plan_input input = {.tokens = tokens};
    OK(lplb_planner_create(&config, &planner));
    OK(lplb_dispatcher_create(s->placement, 0, s->ranks, rank, NULL, 1, &dispatcher));
    OK(lplb_plan_solve(planner, &input, &plan));
    for (int32_t r = 0; r < (s->heavy ? 1 : S); r++) {
        const actor *a = &actors[r];
        OK(lplb_dispatch_prepare(dispatcher, counts, split, r, s->local));
        OK(lplb_dispatch_map(dispatcher, a->ids[step], LPLB_INT64, a->n[step], slots, LPLB_INT64));
        for (int64_t i = 0; i < a->n[step]; i++)
            if (slots[i] != a->out[step][i]) {
                CHECK(false,
                      "%s, transport %d, %d ranks, step %d, rank %d: slot %lld of id %lld, "
                      "expected %lld",
                      s->shape, (int)s->transport, s->ranks, step, r, (long long)a->out[step][i],
                      (long long)i, (long long)slots[i]);
                break;
            }
    }
    lplb_planner_destroy(planner);
    lplb_dispatcher_destroy(dispatcher);
    gpu_hosts_destroy(&hosts);
    void *blocks[] = {counts, tokens, split, loads};
    for (int i = 0; i < 4; i++) free(blocks[i]);
}

/* Every id has a slot of its expert, whatever happened. */
static void check_valid(const scene *s, const actor *a, int32_t step) {
    for (int64_t i = 0; i < a->n[step]; i++) {
        int64_t id = a->ids[step][i], slot = a->out[step][i];
        bool valid = id < 0 ? slot == -1
                            : slot >= 0 && slot < s->placement->slots &&
                                  s->placement->physical_to_logical[slot] == id;
        if (valid) continue;
        CHECK(false, "rank %d, step %d: id %lld has slot %lld", a->m.rank, step, (long long)id,
              (long long)slot);
        return;
    }
}

/* All ranks together have balanced the loads but for rounding: all planned the same. */
static void check_balance(const scene *s, const actor *actors, int32_t step) {
    gpu_hosts hosts;
    gpu_hosts_create(s->placement, &hosts);
    int32_t E = s->placement->experts, G = s->placement->ranks;
    int64_t *tokens = calloc((size_t)E, 8), *loads = calloc((size_t)G, 8);
    for (int32_t r = 0; r < s->ranks; r++) {
        check_valid(s, &actors[r], step);
        for (int64_t i = 0; i < actors[r].n[step]; i++) {
            int32_t rank = 0;
            if (actors[r].ids[step][i] < 0) continue;
            while (s->placement->rank_offset[rank + 1] <= actors[r].out[step][i]) rank++;
            tokens[actors[r].ids[step][i]]++;
            loads[rank]++;
        }
    }
    lplb_bound bound;
    lplb_plan_input input = {.tokens = tokens};
    OK(lplb_plan_bound(&hosts.hosts, NULL, &input, &bound, NULL));
    for (int32_t g = 0; g < G; g++)
        CHECK(loads[g] <= bound.integer_bound + E / G, "step %d: %lld tokens on rank %d, best %lld",
              step, (long long)loads[g], g, (long long)bound.integer_bound);
    gpu_hosts_destroy(&hosts);
    free(tokens);
    free(loads);
}

/* Runs it on one thread a rank; the actors, to be freed. */
static actor *play(scene *s) {
    plan_instance instance;
    instance_create(find_plan_case(s->shape), 7, &instance);
    s->placement = gpu_placement(&instance.hosts, 0);
    s->other = gpu_placement(&instance.hosts, 0);
    int32_t *slot = s->other->physical_to_logical, first = slot[0];
    slot[0] = slot[1]; /* the same experts on the same ranks, in other slots */
    slot[1] = first;
    instance_destroy(&instance);
    actor *actors = calloc((size_t)s->ranks, sizeof *actors);
    s->all.ranks = s->ranks;
    pthread_barrier_init(&s->all.barrier, NULL, (unsigned)s->ranks);
    for (int32_t r = 0; r < s->ranks; r++) {
        actors[r].s = s;
        actors[r].m = (member){&s->all, r};
        draw_ids(&actors[r], s->placement->experts);
        pthread_create(&actors[r].thread, NULL, act, &actors[r]);
    }
    for (int32_t r = 0; r < s->ranks; r++) pthread_join(actors[r].thread, NULL);
    pthread_barrier_destroy(&s->all.barrier);
    return actors;
}

static void strike(scene *s, actor *actors) {
    lplb_placement_destroy(s->placement);
    lplb_placement_destroy(s->other);
    free(actors);
}

static void play_well(scene s) {
    actor *actors = play(&s);
    for (int32_t r = 0; r < s.ranks; r++) {
        CHECK(actors[r].created == LPLB_OK && actors[r].planned == LPLB_OK,
              "%s: rank %d: not made: %d, %d", lplb_cuda_transport_name(s.transport), r,
              (int)actors[r].created, (int)actors[r].planned);
        CHECK(actors[r].agreed == LPLB_OK && actors[r].state == LPLB_OK, "rank %d: %d, %d", r,
              (int)actors[r].agreed, (int)actors[r].state);
        for (int32_t step = 0; step < s.steps; step++)
            CHECK(actors[r].status[step] == LPLB_OK, "rank %d, step %d: %d", r, step,
                  (int)actors[r].status[step]);
    }
    for (int32_t step = 0; step < s.steps; step++)
        if (s.ipm) check_balance(&s, actors, step);
        else check_step(&s, actors, step);
    strike(&s, actors);
}

static scene make_scene(const char *shape, int32_t ranks, lplb_cuda_transport transport) {
    return (scene){.shape = shape,
                   .ranks = ranks,
                   .transport = transport,
                   .steps = 5,
                   .leaves = -1,
                   .moves = -1,
                   .unfit = -1,
                   .disagrees = -1};
}

static void test_peers(void) {
    play_well(make_scene("cube8x2", 1, LPLB_CUDA_TRANSPORT_P2P));
    play_well(make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P));
    play_well(make_scene("eplb32", 2, LPLB_CUDA_TRANSPORT_AUTO));
    scene graph = make_scene("cube8x2", 2, LPLB_CUDA_TRANSPORT_P2P);
    graph.graph = 1;
    play_well(graph);
    scene heavy = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P);
    heavy.many = heavy.heavy = 1;
    play_well(heavy);
    scene local = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P);
    local.local = 1;
    play_well(local);
}

/* Every way to share counts, with the emulated ranks as so many nodes. */
static const struct {
    lplb_cuda_transport transport;
    int32_t ranks, ranks_per_node, many;
} WAYS[] = {{LPLB_CUDA_TRANSPORT_P2P, 3, 0, 0},     {LPLB_CUDA_TRANSPORT_P2P, 2, 0, 1},
            {LPLB_CUDA_TRANSPORT_NCCL, 3, 0, 0},    {LPLB_CUDA_TRANSPORT_NCCL, 2, 0, 1},
            {LPLB_CUDA_TRANSPORT_NVSHMEM, 3, 0, 0}, {LPLB_CUDA_TRANSPORT_NVSHMEM, 3, 1, 0},
            {LPLB_CUDA_TRANSPORT_CUSTOM, 3, 0, 0},  {LPLB_CUDA_TRANSPORT_HIERARCHICAL, 4, 2, 0}};
enum { N_WAYS = sizeof WAYS / sizeof WAYS[0] };

static scene scene_of_way(int way) {
    scene s = make_scene("cube8x2", WAYS[way].ranks, WAYS[way].transport);
    s.ranks_per_node = WAYS[way].ranks_per_node;
    s.many = WAYS[way].many;
    return s;
}

static void test_ways(void) {
    for (int way = 0; way < N_WAYS; way++) {
        scene s = scene_of_way(way);
        play_well(s);
        s.local = 1;
        play_well(s);
        s.local = 0;
        s.apart = 1;
        play_well(s);
    }
}

/* A scene in which a rank leaves. The steps before that must go well, so the timeout grows until
 * the machine, whatever else it does, is fast enough. */
static actor *play_loss(scene *s) {
    for (s->timeout_ns = 300000000;; s->timeout_ns *= 4) {
        int32_t late = 0, before = s->steps - (s->lacks ? s->lacks : 1);
        actor *actors = play(s);
        for (int32_t r = 0; r < s->ranks; r++)
            for (int32_t step = 0; step < before; step++)
                late +=
                    actors[r].status[step] == LPLB_TIMEOUT || actors[r].status[step] == LPLB_REMOTE;
        if (!late) return actors;
        CHECK(s->timeout_ns < 20000000000, "%s: steps before the loss were late",
              lplb_cuda_transport_name(s->transport));
        if (s->timeout_ns >= 20000000000) return actors;
        strike(s, actors);
    }
}

/* A missing rank: the others get an error in time, valid ids, and a dead communicator. */
static void test_lost_rank(void) {
    for (int way = 0; way < N_WAYS; way++) {
        scene s = scene_of_way(way);
        s.leaves = 1;
        actor *actors = play_loss(&s);
        for (int32_t r = 0; r < s.ranks; r++) {
            for (int32_t step = 0; step < s.steps - 1; step++)
                CHECK(actors[r].status[step] == LPLB_OK, "way %d, rank %d, step %d: %d", way, r,
                      step, (int)actors[r].status[step]);
            if (r == s.leaves) continue;
            lplb_status last = actors[r].status[s.steps - 1];
            CHECK(last == LPLB_TIMEOUT || last == LPLB_REMOTE, "way %d, rank %d: %d", way, r,
                  (int)last);
            CHECK(actors[r].state != LPLB_OK, "way %d, rank %d: alive", way, r);
            check_valid(&s, &actors[r], s.steps - 1);
        }
        for (int32_t step = 0; step < s.steps - 1; step++) check_step(&s, actors, step);
        strike(&s, actors);
    }
}

/* Steps after that end at once, with valid ids and the error that ended the sharing. */
static void test_steps_after_a_loss(void) {
    for (int way = 0; way < N_WAYS; way++) {
        scene s = scene_of_way(way);
        s.leaves = s.ranks - 1;
        s.steps = 6;
        s.lacks = 3; /* steps */
        actor *actors = play_loss(&s);
        for (int32_t r = 0; r < s.ranks - 1; r++)
            for (int32_t step = s.steps - s.lacks; step < s.steps; step++) {
                lplb_status status = actors[r].status[step];
                CHECK(status == LPLB_TIMEOUT || status == LPLB_REMOTE,
                      "way %d, rank %d, step %d: %d", way, r, step, (int)status);
                check_valid(&s, &actors[r], step);
            }
        strike(&s, actors);
    }
}

/* Planners that share a communicator, and the plan cache with one: all ranks decide alike. */
static void test_twins_and_reuse(void) {
    for (int way = 0; way < N_WAYS; way++) {
        scene s = scene_of_way(way);
        s.twins = 1;
        play_well(s);
        s.reuse = 2; /* whatever comes is near enough */
        actor *actors = play(&s);
        for (int32_t r = 0; r < s.ranks; r++)
            for (int32_t step = 0; step < s.steps; step++) {
                CHECK(actors[r].status[step] == LPLB_OK && actors[r].reused[step] == (step >= 2),
                      "way %d, rank %d, step %d: %d, reused %d", way, r, step,
                      (int)actors[r].status[step], actors[r].reused[step]);
                check_valid(&s, &actors[r], step);
            }
        for (int32_t step = 0; step < 2; step++) check_step(&s, actors, step);
        strike(&s, actors);
    }
}

/* A rank that is refused tells the others, who would else wait for it. */
static void test_unfit_rank(void) {
    for (int way = 0; way < N_WAYS; way++)
        for (int32_t device = 0; device < 2; device++) {
            scene s = scene_of_way(way);
            s.unfit = 1;
            s.no_device = device;
            actor *actors = play(&s);
            for (int32_t r = 0; r < s.ranks; r++) {
                const char *part = r != s.unfit ? "rank 1 cannot prepare"
                                   : device     ? "cuda"
                                                : "-7 experts";
                CHECK(actors[r].created != LPLB_OK && strstr(actors[r].message, part),
                      "way %d, rank %d: %d, %s", way, r, (int)actors[r].created, actors[r].message);
            }
            strike(&s, actors);
        }
}

/* Told at creation, and in every step; nothing dies of it. */
static void test_disagreement(void) {
    for (int way = 0; way < N_WAYS; way++) {
        scene s = scene_of_way(way);
        s.disagrees = s.ranks - 1;
        actor *actors = play(&s);
        for (int32_t r = 0; r < s.ranks; r++) {
            CHECK(actors[r].agreed == LPLB_DISAGREE, "rank %d: agreed %d", r,
                  (int)actors[r].agreed);
            CHECK(actors[r].state == LPLB_OK, "way %d, rank %d: %d", way, r, (int)actors[r].state);
            for (int32_t step = 0; step < s.steps; step++) {
                CHECK(actors[r].status[step] == LPLB_DISAGREE, "way %d, rank %d, step %d: %d", way,
                      r, step, (int)actors[r].status[step]);
                check_valid(&s, &actors[r], step);
            }
        }
        strike(&s, actors);
    }
}

/* A rank that has another placement for one step: all are told in that step, the next goes well. */
static void test_other_placement(void) {
    for (int way = 0; way < N_WAYS; way++) {
        scene s = scene_of_way(way);
        s.moves = 1;
        actor *actors = play(&s);
        for (int32_t r = 0; r < s.ranks; r++)
            for (int32_t step = 0; step < s.steps; step++) {
                lplb_status wanted = step == s.steps - 2 ? LPLB_DISAGREE : LPLB_OK;
                CHECK(actors[r].status[step] == wanted, "way %d, rank %d, step %d: %d", way, r,
                      step, (int)actors[r].status[step]);
                if (r != s.moves) check_valid(&s, &actors[r], step);
            }
        check_step(&s, actors, s.steps - 1);
        strike(&s, actors);
    }
}

static void test_nccl(void) {
    scene nodes = make_scene("cube8x2", 4, LPLB_CUDA_TRANSPORT_AUTO);
    nodes.ranks_per_node = 1;
    play_well(nodes);
    scene ipm = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_NCCL);
    ipm.ipm = 1;
    play_well(ipm);
    ipm.transport = LPLB_CUDA_TRANSPORT_NVSHMEM;
    ipm.ranks_per_node = 1;
    play_well(ipm);
}

/* Before any other test has loaded the library. */
static void test_no_nvshmem(void) {
    char *present = getenv("LPLB_NVSHMEM_LIBRARY"), named[4096] = "";
    if (present) snprintf(named, sizeof named, "%s", present);
    setenv("LPLB_NVSHMEM_LIBRARY", "no_such_library.so", 1);
    scene s = make_scene("cube8x2", 1, LPLB_CUDA_TRANSPORT_NVSHMEM);
    member own = {&s.all, 0};
    lplb_cuda_comm *comm;
    lplb_cuda_comm_config config = {.struct_size = sizeof config,
                                    .ranks = 1,
                                    .experts = 8,
                                    .transport = s.transport,
                                    .exchange = exchange,
                                    .state = &own};
    s.all.ranks = 1;
    pthread_barrier_init(&s.all.barrier, NULL, 1);
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_UNSUPPORTED && !comm, "made");
    CHECK(strstr(lplb_error_message(), "pip install nvidia-nvshmem"), "%s", lplb_error_message());
    pthread_barrier_destroy(&s.all.barrier);
    if (present) setenv("LPLB_NVSHMEM_LIBRARY", named, 1);
}

static void test_refusals(void) {
    scene s = make_scene("cube8x2", 2, LPLB_CUDA_TRANSPORT_P2P);
    s.ranks_per_node = 1;
    actor *actors = play(&s);
    for (int32_t r = 0; r < s.ranks; r++)
        CHECK(actors[r].created == LPLB_UNSUPPORTED, "p2p across nodes: %d",
              (int)actors[r].created);
    strike(&s, actors);
    scene ipm = make_scene("cube8x2", 2, LPLB_CUDA_TRANSPORT_P2P);
    ipm.ipm = 1; /* takes several launches */
    actors = play(&ipm);
    for (int32_t r = 0; r < s.ranks; r++)
        CHECK(actors[r].planned == LPLB_UNSUPPORTED, "ipm with p2p: %d", (int)actors[r].planned);
    strike(&ipm, actors);
    lplb_cuda_comm *comm;
    member own = {&ipm.all, 0};
    lplb_cuda_comm_config config = {
        .struct_size = sizeof config, .ranks = 1, .experts = 8, .state = &own};
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_INVALID && !comm, "no exchange");
    config.exchange = exchange;
    ipm.all.ranks = 1;
    pthread_barrier_init(&ipm.all.barrier, NULL, 1);
    config.transport = LPLB_CUDA_TRANSPORT_CUSTOM;
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_INVALID, "no all-gather");
    config.transport = LPLB_CUDA_TRANSPORT_NCCL;
    config.all_gather = gather_own;
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_INVALID, "an all-gather for NCCL");
    config.rank = 1;
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_RANGE, "rank");
    config.struct_size = 1;
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_INVALID, "size");
    pthread_barrier_destroy(&ipm.all.barrier);
    CHECK(lplb_cuda_comm_create(NULL, &comm) == LPLB_INVALID, "no config");
    CHECK(lplb_cuda_comm_create(&config, NULL) == LPLB_INVALID, "no out");
    CHECK(lplb_cuda_comm_agree(NULL, NULL) == LPLB_INVALID, "nobody agrees");
    CHECK(lplb_cuda_comm_state(NULL) == LPLB_INVALID, "no state");
    lplb_cuda_comm_destroy(NULL);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"no_nvshmem", test_no_nvshmem},
                              {"peers", test_peers},
                              {"ways", test_ways},
                              {"lost_rank", test_lost_rank},
                              {"steps_after_a_loss", test_steps_after_a_loss},
                              {"twins_and_reuse", test_twins_and_reuse},
                              {"unfit_rank", test_unfit_rank},
                              {"other_placement", test_other_placement},
                              {"disagreement", test_disagreement},
                              {"refusals", test_refusals},
                              {"nccl", test_nccl}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
