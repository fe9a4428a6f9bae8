/* Ranks that share counts on the device: threads of one process, each with its own planner. Ids
 * against dispatch on the CPU over the counts of all, id by id. */
#include <lplb/cuda_comm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rng.h"
#include "gpu.h"

enum { MOST_RANKS = 8, MOST_IDS = 700 };

/* ---- an exchange among threads ---- */

typedef struct meeting {
    pthread_barrier_t barrier;
    unsigned char card[MOST_RANKS][256];
    int32_t ranks;
} meeting;

typedef struct member {
    meeting *all;
    int32_t rank;
} member;

static lplb_status exchange(void *state, const void *send, void *receive, int64_t bytes) {
    const member *m = state;
    memcpy(m->all->card[m->rank], send, (size_t)bytes);
    pthread_barrier_wait(&m->all->barrier);
    for (int32_t r = 0; r < m->all->ranks; r++)
        memcpy((unsigned char *)receive + r * bytes, m->all->card[r], (size_t)bytes);
    pthread_barrier_wait(&m->all->barrier);
    return LPLB_OK;
}

/* ---- what all ranks do, and what must come of it ---- */

typedef struct scene {
    const char *shape; /* of the placement */
    int32_t ranks;
    lplb_cuda_transport transport;
    int32_t ranks_per_node;
    int32_t steps;
    int32_t leaves;     /* rank that does not run the last step; -1 = none */
    int32_t disagrees;  /* rank that plans with the even solver; -1 = none */
    int32_t graph;      /* nonzero: every step is a replay of the same graph */
    int32_t local;      /* nonzero: tokens stay with their sources where they can */
    int32_t ipm;        /* nonzero: with the interior-point method */
    int64_t timeout_ns; /* 0 = default */
    meeting all;
    lplb_placement *placement;
} scene;

typedef struct actor {
    scene *s;
    member m;
    pthread_t thread;
    int64_t ids[8][MOST_IDS], n[8];
    int64_t out[8][MOST_IDS];
    lplb_status status[8], agreed, state, created;
} actor;

/* Uneven and now and then none. */
static void draw_ids(actor *a, int32_t experts) {
    lplb__rng rng;
    for (int32_t step = 0; step < a->s->steps; step++) {
        lplb__rng_seed(&rng, (uint64_t)(step * 100 + a->m.rank), 3);
        a->n[step] = (step + a->m.rank) % 4 == 0 ? 0 : (int64_t)lplb__rng_below(&rng, MOST_IDS);
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

static void run_steps(actor *a, lplb_cuda_planner *planner, lplb_cuda_comm *comm) {
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
                               .n = MOST_IDS,
                               .n_device = tokens,
                               .source = a->m.rank};
    lplb_cuda_problem problem = {.struct_size = sizeof problem};
    if (a->s->graph) exec = capture(planner, &arguments, &problem, stream);
    for (int32_t step = 0; step < a->s->steps; step++) {
        if (step == a->s->steps - 1 && a->m.rank == a->s->leaves) break;
        gpu_put(ids, a->ids[step], MOST_IDS, 8);
        gpu_put(tokens, &a->n[step], 1, 8);
        if (exec) CUDA(cudaGraphLaunch(exec, stream));
        else OK(lplb_cuda_run(planner, &arguments, &problem, stream));
        lplb_cuda_report report;
        OK(lplb_cuda_report_read(planner, stream, &report));
        a->status[step] = lplb_cuda_report_status(&report);
        OK(lplb_cuda_report_clear(planner, stream));
        gpu_fetch(a->out[step], out, MOST_IDS, 8);
    }
    a->state = lplb_cuda_comm_state(comm);
    if (exec) CUDA(cudaGraphExecDestroy(exec));
    gpu_free(ids);
    gpu_free(out);
    gpu_free(tokens);
    CUDA(cudaStreamDestroy(stream));
}

static void ranks_of_sources(const scene *s, int32_t *rank) {
    for (int32_t r = 0; r < s->ranks; r++) rank[r] = r % s->placement->ranks;
}

static void *act(void *argument) {
    actor *a = argument;
    lplb_cuda_comm *comm = NULL;
    lplb_cuda_planner *planner = NULL;
    lplb_cuda_comm_config config = {.struct_size = sizeof config,
                                    .rank = a->m.rank,
                                    .ranks = a->s->ranks,
                                    .experts = a->s->placement->experts + 3,
                                    .transport = a->s->transport,
                                    .ranks_per_node = a->s->ranks_per_node,
                                    .timeout_ns = a->s->timeout_ns,
                                    .exchange = exchange,
                                    .state = &a->m};
    a->created = lplb_cuda_comm_create(&config, &comm);
    if (a->created != LPLB_OK) return NULL;
    int32_t rank[MOST_RANKS];
    ranks_of_sources(a->s, rank);
    lplb_cuda_config options = {.struct_size = sizeof options,
                                .sources = a->s->ranks,
                                .source_rank = rank,
                                .locality = a->s->local,
                                .placement = a->s->placement,
                                .solver = a->m.rank == a->s->disagrees ? LPLB_SOLVER_EVEN
                                          : a->s->ipm                  ? LPLB_SOLVER_IPM
                                                                       : LPLB_SOLVER_EXACT,
                                .max_ids = MOST_IDS,
                                .comm = comm};
    OK(lplb_cuda_planner_create(&options, &planner));
    a->agreed = lplb_cuda_comm_agree(comm, planner);
    run_steps(a, planner, comm);
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
    for (int32_t r = 0; r < S; r++) {
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
    free(actors);
}

static void play_well(scene s) {
    actor *actors = play(&s);
    for (int32_t r = 0; r < s.ranks; r++) {
        CHECK(actors[r].created == LPLB_OK, "%s: rank %d: not made: %d",
              lplb_cuda_transport_name(s.transport), r, (int)actors[r].created);
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
                   .disagrees = -1};
}

static void test_peers(void) {
    play_well(make_scene("cube8x2", 1, LPLB_CUDA_TRANSPORT_P2P));
    play_well(make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P));
    play_well(make_scene("eplb32", 2, LPLB_CUDA_TRANSPORT_AUTO));
    scene graph = make_scene("cube8x2", 2, LPLB_CUDA_TRANSPORT_P2P);
    graph.graph = 1;
    play_well(graph);
    scene local = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P);
    local.local = 1;
    play_well(local);
}

/* A missing rank: the others get an error in time, valid ids, and a dead communicator. */
static void test_lost_rank(void) {
    scene s = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P);
    s.leaves = 1;
    s.timeout_ns = 300000000;
    actor *actors = play(&s);
    for (int32_t r = 0; r < s.ranks; r++) {
        if (r == s.leaves) continue;
        lplb_status last = actors[r].status[s.steps - 1];
        CHECK(last == LPLB_TIMEOUT || last == LPLB_REMOTE, "rank %d: %d", r, (int)last);
        CHECK(actors[r].state != LPLB_OK, "rank %d: alive", r);
        check_valid(&s, &actors[r], s.steps - 1);
    }
    for (int32_t step = 0; step < s.steps - 1; step++) check_step(&s, actors, step);
    strike(&s, actors);
}

/* Told at creation, and in every step; nothing dies of it. */
static void test_disagreement(void) {
    scene s = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_P2P);
    s.disagrees = 2;
    actor *actors = play(&s);
    for (int32_t r = 0; r < s.ranks; r++) {
        CHECK(actors[r].agreed == LPLB_DISAGREE, "rank %d: agreed %d", r, (int)actors[r].agreed);
        CHECK(actors[r].state == LPLB_OK, "rank %d: %d", r, (int)actors[r].state);
        for (int32_t step = 0; step < s.steps; step++) {
            CHECK(actors[r].status[step] == LPLB_DISAGREE, "rank %d, step %d: %d", r, step,
                  (int)actors[r].status[step]);
            check_valid(&s, &actors[r], step);
        }
    }
    strike(&s, actors);
}

static void test_nccl(void) {
    play_well(make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_NCCL));
    scene nodes = make_scene("cube8x2", 4, LPLB_CUDA_TRANSPORT_HIERARCHICAL);
    nodes.ranks_per_node = 2;
    play_well(nodes);
    nodes.ranks_per_node = 1;
    nodes.transport = LPLB_CUDA_TRANSPORT_AUTO;
    play_well(nodes);
    scene ipm = make_scene("cube8x2", 3, LPLB_CUDA_TRANSPORT_NCCL);
    ipm.ipm = 1;
    play_well(ipm);
}

static void test_refusals(void) {
    scene s = make_scene("cube8x2", 2, LPLB_CUDA_TRANSPORT_P2P);
    s.ranks_per_node = 1;
    actor *actors = play(&s);
    for (int32_t r = 0; r < s.ranks; r++)
        CHECK(actors[r].created == LPLB_UNSUPPORTED, "p2p across nodes: %d",
              (int)actors[r].created);
    strike(&s, actors);
    lplb_cuda_comm *comm;
    lplb_cuda_comm_config config = {.struct_size = sizeof config, .ranks = 1, .experts = 8};
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_INVALID && !comm, "no exchange");
    config.exchange = exchange;
    config.rank = 1;
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_RANGE, "rank");
    config.struct_size = 1;
    CHECK(lplb_cuda_comm_create(&config, &comm) == LPLB_INVALID, "size");
    lplb_cuda_comm_destroy(NULL);
}

int main(int argc, char **argv) {
    const gpu_test tests[] = {{"peers", test_peers},
                              {"lost_rank", test_lost_rank},
                              {"disagreement", test_disagreement},
                              {"refusals", test_refusals},
                              {"nccl", test_nccl}};
    return gpu_main(tests, (int)(sizeof tests / sizeof tests[0]), argc, argv);
}
