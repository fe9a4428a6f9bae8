/* lplb advise: what recorded loads ask for. */
#include <dirent.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/doctor.h"

static const char help[] =
    "Usage: lplb advise --ranks G [options] LOAD\n"
    "       lplb advise --ranks G [options] --stage NAME=LOAD [--stage NAME=LOAD]...\n"
    "\n"
    "From a routing trace or counts: how unequal the experts are, how many redundant slots\n"
    "pay, which topology, and from which batch size on planning every batch does.\n"
    "\n"
    "  --ranks G             ranks of the expert-parallel group (required)\n"
    "  --slots P             slots in all that redundancy is counted from, a multiple of G\n"
    "                        (default: the least that holds the experts)\n"
    "  --nodes N             nodes of G/N ranks (default 1)\n"
    "  --stage NAME=LOAD     advise each stage on its own (prefill=..., decode=...)\n"
    "  --batch-tokens B      tokens of a served batch (default 4096)\n"
    "  --topk K              selections a token, where LOAD holds counts (default 8)\n"
    "  --most-redundant D    slots a rank to try (default: experts a rank, 4 to 8)\n"
    "  --expert-bytes N      weights of one expert of one layer, for the memory\n"
    "  --token-ns X          time that one selection costs its rank, for the break-even\n"
    "  --plan-us X           time of one layer's plan (default: measured here, one core)\n"
    "  --seed S, --threads N, --experts E, --layout L\n"
    "  --json                one JSON document on stdout (docs/formats.md)\n"
    "  --help                this text\n"
    "\n"
    "Example:\n"
    "  lplb advise --ranks 8 --token-ns 200 data/gpt-oss-20b/token_topk.npz\n";

enum { MOST_STAGES = 8 };
static const char *name;

typedef struct stage {
    const char *label, *path;
    lplb_advice advice;
} stage;

typedef struct request {
    lplb_advise_config config;
    lplb_trace_options trace;
    stage stage[MOST_STAGES];
    int stages;
    bool json;
} request;

/* ---- recommendations: each with its reason and figure ---- */

static void recommend(json_t *list, const char *topic, json_t *text, json_t *reason,
                      double figure) {
    json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:f}", "topic", topic, "recommendation",
                                          text, "reason", reason, "figure", figure));
}

static void recommend_redundancy(json_t *list, const lplb_advice *a) {
    const lplb_advice_point *knee = &a->point[a->knee], *none = &a->point[0];
    const char *more = a->knee + 1 < a->points
                           ? "of what was tried, more brings less than a tenth of that gain"
                           : "more was not tried (--most-redundant)";
    recommend(
        list, "redundancy",
        json_sprintf("%d redundant slot%s a rank (%d slots in all)", knee->redundant,
                     knee->redundant == 1 ? "" : "s", knee->slots),
        json_sprintf("mean imbalance %.3f with the exact plan, %.3f evenly split, against "
                     "%.3f without; %s. The rule of thumb for a CV of %.2f says %d experts in all",
                     knee->exact, knee->even, none->exact, more, a->measures.cv, a->rule_redundant),
        knee->exact);
}

static void recommend_planning(json_t *list, const lplb_advice *a, const request *q) {
    if (!(q->config.token_ns > 0)) {
        recommend(list, "planning", json_string("give --token-ns to learn the break-even batch"),
                  json_string("what a saved token is worth is not known"), 0);
    } else if (a->break_even_tokens > 0) {
        recommend(list, "planning",
                  json_sprintf("plan every batch from about %.0f tokens on", a->break_even_tokens),
                  json_sprintf("a plan takes %.1f us a layer%s; at smaller batches the even split "
                               "loses less than that",
                               a->plan_us, a->plan_measured ? ", measured here on one core" : ""),
                  a->break_even_tokens);
    } else {
        recommend(list, "planning", json_string("do not plan every batch"),
                  json_sprintf("even at %lld tokens planning saves %.1f us a layer and takes %.1f",
                               (long long)a->batch[a->batches - 1].tokens,
                               a->batch[a->batches - 1].gain_us, a->plan_us),
                  0);
    }
}

static int numa_nodes(void) {
    DIR *folder = opendir("/sys/devices/system/node");
    int n = 0, unused;
    for (struct dirent *at; folder && (at = readdir(folder));)
        n += sscanf(at->d_name, "node%d", &unused) == 1;
    if (folder) closedir(folder);
    return n ? n : 1;
}

/* The figure is the share of pairs of GPUs that NVLink joins. */
static void recommend_links(json_t *list, int32_t per_node) {
    json_t *gpus = doctor_gpus();
    int64_t n = (int64_t)json_array_size(json_object_get(gpus, "devices"));
    int64_t pairs = json_integer_value(json_object_get(gpus, "pairs"));
    int64_t linked = json_integer_value(json_object_get(gpus, "nvlink_pairs"));
    if (!n)
        recommend(list, "nvlink", json_string("ask again on a machine of the job"),
                  json_string("no GPU is to be seen here"), 0);
    else if (linked == pairs && n >= per_node)
        recommend(list, "nvlink", json_string("keep it"),
                  json_sprintf("all %lld pairs of %lld GPUs are peers by NVLink", (long long)pairs,
                               (long long)n),
                  1);
    else if (linked == pairs)
        recommend(
            list, "nvlink",
            json_sprintf("use --nodes so that %lld ranks share a node", (long long)n),
            json_sprintf("%lld GPUs here, all linked, and %d ranks a node", (long long)n, per_node),
            1);
    else
        recommend(list, "nvlink", json_string("give linked GPUs a node each (--nodes)"),
                  json_sprintf("%lld of %lld pairs of GPUs are peers by NVLink", (long long)linked,
                               (long long)pairs),
                  (double)linked / (double)pairs);
    json_decref(gpus);
}

static void recommend_hardware(json_t *list, const request *q) {
    int32_t nodes = q->config.nodes ? q->config.nodes : 1, per_node = q->config.ranks / nodes;
    bool power = (per_node & (per_node - 1)) == 0;
    recommend(list, "ranks_per_node",
              json_string(power ? "keep it" : "use a power of two, so that cubes exist"),
              json_sprintf("%d ranks a node", per_node), per_node);
    int numa = numa_nodes();
    recommend(list, "numa",
              json_string(numa > 1 ? "bind each rank's process to the node of its GPU"
                                   : "nothing to bind on this machine"),
              json_sprintf("%d NUMA node%s here", numa, numa == 1 ? "" : "s"), numa);
    recommend_links(list, per_node);
}

/* The figure is the number of groups. */
static void recommend_groups(json_t *list, const lplb_advice *a) {
    const lplb_advice_groups *best = &a->group[0], *global = best;
    if (!a->group_counts) {
        recommend(list, "groups", json_string("none: groups keep experts inside nodes"),
                  json_sprintf("there is one node here; give --nodes to measure them (the rule of "
                               "thumb for %d experts says %d)",
                               a->experts, a->rule_groups),
                  1);
        return;
    }
    if (a->group_counts == 1) {
        recommend(list, "groups", json_string("none: the global form of EPLB"),
                  json_sprintf("no number of groups divides over the nodes and divides %d experts",
                               a->experts),
                  1);
        return;
    }
    while (global->groups != 1) global++;
    if (best->groups == 1)
        recommend(list, "groups", json_string("none: the global form of EPLB"),
                  json_sprintf("mean imbalance %.3f with the exact plan; the best of %d numbers of "
                               "groups in nodes reaches %.3f (the rule of thumb says %d)",
                               best->exact, a->group_counts - 1, a->group[1].exact, a->rule_groups),
                  1);
    else
        recommend(list, "groups", json_sprintf("%d expert groups, kept inside nodes", best->groups),
                  json_sprintf("mean imbalance %.3f with the exact plan, the global form %.3f (the "
                               "rule of thumb says %d)",
                               best->exact, global->exact, a->rule_groups),
                  best->groups);
}

/* The figure is the imbalance of what is recommended. */
static void recommend_topology(json_t *list, const lplb_advice *a) {
    const lplb_advice_point *knee = &a->point[a->knee];
    const lplb_advice_topology *best = &a->topology[0];
    if (a->topology_pays)
        recommend(
            list, "topology",
            json_sprintf("%s with %d redundant slots a rank", best->name, best->redundant),
            json_sprintf("mean imbalance %.3f with the exact plan, at least as even as EPLB's "
                         "placement with %d: %.3f",
                         best->exact, knee->redundant, knee->exact),
            best->exact);
    else if (a->topologies)
        recommend(list, "topology", json_string("none: EPLB's placement or the search's"),
                  json_sprintf("mean imbalance %.3f with the exact plan; the best topology, %s, "
                               "reaches %.3f",
                               knee->exact, best->name, best->exact),
                  knee->exact);
    else
        recommend(list, "topology", json_string("none: EPLB's placement or the search's"),
                  json_sprintf("no topology exists for %d ranks, %d experts and %d redundant slots "
                               "a rank",
                               a->ranks, a->experts, knee->redundant),
                  knee->exact);
}

static json_t *recommendations(const lplb_advice *a, const request *q) {
    json_t *list = json_array();
    recommend_groups(list, a);
    recommend_redundancy(list, a);
    recommend_topology(list, a);
    recommend_planning(list, a, q);
    recommend_hardware(list, q);
    return list;
}

/* ---- JSON ---- */

static json_t *stage_json(const stage *s, const request *q) {
    const lplb_advice *a = &s->advice;
    const lplb_advice_measures *m = &a->measures;
    json_t *curve = json_array(), *topologies = json_array(), *batches = json_array();
    json_t *groups = json_array();
    bool knows_bytes = q->config.expert_bytes > 0, knows_time = q->config.token_ns > 0;
    for (int32_t i = 0; i < a->points; i++)
        json_array_append_new(
            curve, json_pack("{s:i, s:i, s:f, s:f, s:o}", "redundant", a->point[i].redundant,
                             "slots", a->point[i].slots, "even", a->point[i].even, "exact",
                             a->point[i].exact, "bytes_per_rank",
                             knows_bytes ? json_integer(a->point[i].bytes) : json_null()));
    for (int32_t i = 0; i < a->topologies; i++)
        json_array_append_new(topologies,
                              json_pack("{s:s, s:i, s:f}", "name", a->topology[i].name, "redundant",
                                        a->topology[i].redundant, "exact", a->topology[i].exact));
    for (int32_t i = 0; i < a->group_counts; i++)
        json_array_append_new(groups,
                              json_pack("{s:i, s:f, s:f}", "groups", a->group[i].groups, "even",
                                        a->group[i].even, "exact", a->group[i].exact));
    for (int32_t i = 0; i < a->batches; i++)
        json_array_append_new(
            batches, json_pack("{s:I, s:f, s:f, s:o}", "tokens", (json_int_t)a->batch[i].tokens,
                               "even", a->batch[i].even, "exact", a->batch[i].exact, "gain_us",
                               knows_time ? json_real(a->batch[i].gain_us) : json_null()));
    json_t *measures = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:f, s:i}", "cv", m->cv, "worst_cv", m->worst_cv, "hottest",
        m->hottest, "worst_hottest", m->worst_hottest, "contiguous_imbalance", m->contiguous,
        "worst_contiguous_imbalance", m->worst_contiguous, "layers_with_load", m->layers);
    json_t *even = a->break_even_tokens > 0 ? json_real(a->break_even_tokens) : json_null();
    return json_pack("{s:s, s:b, s:o, s:i, s:i, s:o, s:i, s:o, s:o, s:f, s:b, s:o, s:o, s:o}",
                     "stage", s->label, "held_out", a->held_out, "measures", measures,
                     "rule_groups", a->rule_groups, "rule_redundant", a->rule_redundant, "curve",
                     curve, "knee", a->point[a->knee].redundant, "topologies", topologies, "groups",
                     groups, "plan_us", a->plan_us, "plan_measured", a->plan_measured, "batches",
                     batches, "break_even_tokens", even, "recommendations", recommendations(a, q));
}

static int print_json(const request *q) {
    json_t *stages = json_array();
    for (int i = 0; i < q->stages; i++) json_array_append_new(stages, stage_json(&q->stage[i], q));
    return cli_print_json(json_pack("{s:s, s:i, s:i, s:i, s:o}", "schema", "lplb.advise/1",
                                    "experts", q->stage[0].advice.experts, "layers",
                                    q->stage[0].advice.layers, "ranks", q->config.ranks, "stages",
                                    stages));
}

/* ---- text ---- */

/* "-" for what is not known; in one static buffer. */
static const char *figure(bool known, int decimals, double value) {
    static char text[32];
    if (!known) return "-";
    snprintf(text, sizeof text, "%.*f", decimals, value);
    return text;
}

static void print_stage(const stage *s, const request *q) {
    const lplb_advice *a = &s->advice;
    const lplb_advice_measures *m = &a->measures;
    printf("%s: %d layers with load, %d experts, %d ranks; judged on %s\n", s->label, m->layers,
           a->experts, a->ranks, a->held_out ? "the second half" : "redrawn batches of the same");
    printf("loads: CV %.2f (worst layer %.2f), hottest expert %.1f x mean (%.1f), contiguous "
           "imbalance %.3f (%.3f)\n\n  redundant a rank    even   exact   GiB a rank\n",
           m->cv, m->worst_cv, m->hottest, m->worst_hottest, m->contiguous, m->worst_contiguous);
    for (int32_t i = 0; i < a->points; i++)
        printf("  %16d  %6.3f  %6.3f  %11s%s\n", a->point[i].redundant, a->point[i].even,
               a->point[i].exact,
               figure(q->config.expert_bytes > 0, 2, (double)a->point[i].bytes / 1073741824.0),
               i == a->knee ? "  <- knee" : "");
    for (int32_t i = 0; i < a->group_counts; i++)
        printf("%s  %16d  %6.3f  %6.3f\n", i ? "" : "\n   expert groups    even   exact\n",
               a->group[i].groups, a->group[i].even, a->group[i].exact);
    printf("\n  batch tokens    even   exact   saved us   (a plan: %.1f us)\n", a->plan_us);
    for (int32_t i = 0; i < a->batches; i++)
        printf("  %12lld  %6.3f  %6.3f  %9s\n", (long long)a->batch[i].tokens, a->batch[i].even,
               a->batch[i].exact, figure(q->config.token_ns > 0, 1, a->batch[i].gain_us));
    printf("\n");
    json_t *list = recommendations(a, q), *item;
    size_t i;
    json_array_foreach(list, i, item)
        printf("%-15s %s\n%-15s   %s\n", json_string_value(json_object_get(item, "topic")),
               json_string_value(json_object_get(item, "recommendation")), "",
               json_string_value(json_object_get(item, "reason")));
    json_decref(list);
    printf("\n");
}

/* ---- the command ---- */

static bool take_stage(request *q, char *text) {
    char *equals = strchr(text, '=');
    if (!equals || equals == text || !equals[1] || q->stages == MOST_STAGES) {
        cli_fail(name, EXIT_USAGE, "--stage wants NAME=LOAD, at most %d times, not '%s'",
                 MOST_STAGES, text);
        return false;
    }
    *equals = '\0';
    q->stage[q->stages].label = text;
    q->stage[q->stages++].path = equals + 1;
    return true;
}

static bool take_int32(const char *option, int64_t high, int32_t *out) {
    int64_t value;
    if (!cli_parse_int(name, option, optarg, 1, high, &value)) return false;
    *out = (int32_t)value;
    return true;
}

static bool take(int option, request *q) {
    lplb_advise_config *c = &q->config;
    int64_t seed;
    switch (option) {
    case 'r': return take_int32("--ranks", LPLB_MAX_RANKS, &c->ranks);
    case 'P': return take_int32("--slots", INT32_MAX, &c->slots);
    case 'n': return take_int32("--nodes", LPLB_MAX_RANKS, &c->nodes);
    case 's': return take_stage(q, optarg);
    case 'b': return cli_parse_int(name, "--batch-tokens", optarg, 1, INT32_MAX, &c->batch_tokens);
    case 'k': return take_int32("--topk", 1024, &c->topk);
    case 'd': return take_int32("--most-redundant", LPLB_ADVICE_POINTS - 1, &c->most_redundant);
    case 'e':
        return cli_parse_int(name, "--expert-bytes", optarg, 1, (int64_t)1 << 40, &c->expert_bytes);
    case 't': return cli_parse_double(name, "--token-ns", optarg, 1e-6, 1e9, &c->token_ns);
    case 'p': return cli_parse_double(name, "--plan-us", optarg, 1e-6, 1e9, &c->plan_us);
    case 'S':
        if (!cli_parse_int(name, "--seed", optarg, 0, INT64_MAX, &seed)) return false;
        c->seed = (uint64_t)seed;
        return true;
    case 'T': return take_int32("--threads", 256, &c->threads);
    case 'E': return take_int32("--experts", 32767, &q->trace.experts);
    case 'L': q->trace.layout = optarg; return true;
    case 'j': q->json = true; return true;
    default: return false;
    }
}

static int run(request *q) {
    for (int i = 0; i < q->stages; i++) {
        stage *s = &q->stage[i];
        lplb_trace *trace = NULL;
        lplb_status status = lplb_trace_read(s->path, &q->trace, &trace);
        if (status == LPLB_OK) status = lplb_advise(trace, &q->config, &s->advice);
        lplb_trace_destroy(trace);
        if (status != LPLB_OK) return cli_fail_status(name, status);
    }
    if (q->json) return print_json(q);
    for (int i = 0; i < q->stages; i++) print_stage(&q->stage[i], q);
    return fflush(stdout) || ferror(stdout) ? cli_fail(name, EXIT_FAILED, "cannot write to stdout")
                                            : EXIT_OK;
}

int cmd_advise(int argc, char **argv) {
    static const struct option options[] = {{"ranks", required_argument, 0, 'r'},
                                            {"slots", required_argument, 0, 'P'},
                                            {"nodes", required_argument, 0, 'n'},
                                            {"stage", required_argument, 0, 's'},
                                            {"batch-tokens", required_argument, 0, 'b'},
                                            {"topk", required_argument, 0, 'k'},
                                            {"most-redundant", required_argument, 0, 'd'},
                                            {"expert-bytes", required_argument, 0, 'e'},
                                            {"token-ns", required_argument, 0, 't'},
                                            {"plan-us", required_argument, 0, 'p'},
                                            {"seed", required_argument, 0, 'S'},
                                            {"threads", required_argument, 0, 'T'},
                                            {"experts", required_argument, 0, 'E'},
                                            {"layout", required_argument, 0, 'L'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0, 0, 0, 0}};
    static request q;
    q.config.struct_size = sizeof q.config;
    name = argv[0];
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'h') return fputs(help, stdout), EXIT_OK;
        if (!take(c, &q)) return EXIT_USAGE;
    }
    if (!q.config.ranks) return cli_fail(name, EXIT_USAGE, "--ranks is required; see --help");
    if (argc - optind != (q.stages ? 0 : 1))
        return cli_fail(name, EXIT_USAGE, "give one LOAD, or --stage NAME=LOAD; see --help");
    if (!q.stages) {
        q.stages = 1;
        q.stage[0].label = "all";
        q.stage[0].path = argv[optind];
    }
    return run(&q);
}
