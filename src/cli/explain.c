#include "cli/explain.h"

#include <stdio.h>
#include <stdlib.h>

#include "cli/replay_options.h"
#include "cli/replay_table.h"

void explanation_init(explanation *x, int32_t ranks, int32_t experts) {
    *x = (explanation){.ranks = ranks, .layer = -1, .batch = -1};
    x->before = cli_need((size_t)ranks, sizeof *x->before);
    x->after = cli_need((size_t)ranks, sizeof *x->after);
    x->in_bottleneck = cli_need((size_t)ranks, sizeof *x->in_bottleneck);
    x->expert = cli_need((size_t)experts, sizeof *x->expert);
    x->expert_tokens = cli_need((size_t)experts, sizeof *x->expert_tokens);
}

void explanation_add_expert(explanation *x, int32_t expert, int64_t tokens) {
    int32_t at = x->n_experts++;
    for (; at > 0 && x->expert_tokens[at - 1] < tokens; at--) {
        x->expert[at] = x->expert[at - 1];
        x->expert_tokens[at] = x->expert_tokens[at - 1];
    }
    x->expert[at] = expert;
    x->expert_tokens[at] = tokens;
}

void explanation_free(explanation *x) {
    free(x->before);
    free(x->after);
    free(x->in_bottleneck);
    free(x->expert);
    free(x->expert_tokens);
}

static double rank_time(const explanation *x, const int64_t *loads, int32_t r) {
    return (double)loads[r] / (x->speed ? (double)x->speed[r] : 1);
}

static double imbalance(const explanation *x, const int64_t *loads) {
    double most = 0;
    for (int32_t r = 0; r < x->ranks; r++)
        if (rank_time(x, loads, r) > most) most = rank_time(x, loads, r);
    return x->mean > 0 ? most / x->mean : 0;
}

/* ---- JSON ---- */

static json_t *loads_json(const int64_t *loads, int32_t n) {
    json_t *array = json_array();
    for (int32_t r = 0; r < n; r++) json_array_append_new(array, json_integer(loads[r]));
    return array;
}

static json_t *list_json(const int32_t *list, int32_t n) {
    json_t *array = json_array();
    for (int32_t i = 0; i < n; i++) json_array_append_new(array, json_integer(list[i]));
    return array;
}

static json_t *bottleneck_json(const explanation *x) {
    if (!x->limited) return json_null();
    json_t *ranks = json_array(), *experts = json_array();
    for (int32_t r = 0; r < x->ranks; r++)
        if (x->in_bottleneck[r]) json_array_append_new(ranks, json_integer(r));
    for (int32_t i = 0; i < x->n_experts; i++)
        json_array_append_new(experts, json_pack("{s:i, s:I}", "expert", x->expert[i], "tokens",
                                                 (json_int_t)x->expert_tokens[i]));
    return json_pack("{s:o, s:o}", "ranks", ranks, "experts", experts);
}

static json_t *copy_json(int32_t layer, int32_t expert, int32_t rank, double before, double after) {
    json_t *copy = json_pack("{s:i, s:i, s:f, s:f}", "expert", expert, "rank", rank, "before",
                             before, "after", after);
    if (layer >= 0) json_object_set_new(copy, "layer", json_integer(layer));
    return copy;
}

static json_t *analysis_json(const lplb_analysis *a, const lplb_replay_result *r) {
    if (!a) return json_null();
    json_t *sets = json_array(), *copies = json_array();
    for (int32_t i = 0; i < a->sets; i++) {
        const lplb_bottleneck *s = &a->set[i];
        json_array_append_new(sets, json_pack("{s:i, s:I, s:f, s:o, s:o}", "layer",
                                              r->first_layer + s->layer, "batches",
                                              (json_int_t)s->pairs, "excess", s->excess, "ranks",
                                              list_json(s->rank, s->n_ranks), "experts",
                                              list_json(s->expert, s->n_experts)));
    }
    for (int32_t i = 0; i < a->replicas; i++) {
        const lplb_next_replica *n = &a->replica[i];
        json_array_append_new(
            copies, copy_json(r->first_layer + n->layer, n->expert, n->rank, n->before, n->after));
    }
    return json_pack("{s:I, s:I, s:f, s:f, s:I, s:o, s:o}", "pairs", (json_int_t)a->pairs,
                     "limited", (json_int_t)a->limited, "imbalance", a->imbalance, "bound",
                     a->bound, "bottlenecks", (json_int_t)a->n_sets, "most_often", sets,
                     "next_copies", copies);
}

static json_t *to_json(const explanation *x, const lplb_analysis *a, const lplb_replay_result *r) {
    json_t *before = json_pack("{s:s, s:f, s:o}", "name", x->before_name, "imbalance",
                               imbalance(x, x->before), "loads", loads_json(x->before, x->ranks));
    json_t *after = json_pack("{s:s, s:f, s:o}", "name", x->after_name, "imbalance",
                              imbalance(x, x->after), "loads", loads_json(x->after, x->ranks));
    json_t *copy = x->has_copy
                       ? copy_json(-1, x->copy_expert, x->copy_rank, x->copy_before, x->copy_after)
                       : json_null();
    return json_pack("{s:s, s:o, s:o, s:i, s:I, s:f, s:f, s:o, s:o, s:o, s:o, s:o}", "schema",
                     "lplb.explain/1", "layer", x->layer < 0 ? json_null() : json_integer(x->layer),
                     "batch", x->layer < 0 ? json_null() : json_integer(x->batch), "ranks",
                     x->ranks, "tokens", (json_int_t)x->tokens, "mean", x->mean, "lower_bound",
                     x->lower_bound, "before", before, "after", after, "bottleneck",
                     bottleneck_json(x), "next_copy", copy, "trace", analysis_json(a, r));
}

/* ---- for people ---- */

enum { BAR = 22 };

static void print_bar(const explanation *x, const int64_t *loads, int32_t r, double most) {
    char bar[BAR + 1];
    int filled = most > 0 ? (int)(BAR * rank_time(x, loads, r) / most + 0.5) : 0;
    int mean = most > 0 ? (int)(BAR * x->mean / most + 0.5) : 0;
    for (int i = 0; i < BAR; i++) bar[i] = i == mean - 1 ? '|' : i < filled ? '#' : ' ';
    bar[BAR] = '\0';
    printf("  %s %9s", bar, cli_thousands(loads[r]));
}

static void print_loads(const explanation *x) {
    double most = 0;
    for (int32_t r = 0; r < x->ranks; r++) {
        double a = rank_time(x, x->before, r), b = rank_time(x, x->after, r);
        most = a > most ? a : most;
        most = b > most ? b : most;
    }
    printf("  rank  %-*s %9s  %-*s %9s\n", BAR, x->before_name, "tokens", BAR, x->after_name,
           "tokens");
    for (int32_t r = 0; r < x->ranks; r++) {
        printf("  %4d", r);
        print_bar(x, x->before, r, most);
        print_bar(x, x->after, r, most);
        printf("%s\n", x->limited && x->in_bottleneck[r] ? "  bottleneck" : "");
    }
    printf("  max / mean  %*.3f  %*s %9.3f    (| is the mean%s)\n\n", BAR + 4,
           imbalance(x, x->before), BAR, "", imbalance(x, x->after),
           x->speed ? "; bars are tokens / speed" : "");
}

static void print_limit(const explanation *x) {
    int32_t n = 0, *ranks = cli_need((size_t)x->ranks, sizeof *ranks);
    int64_t inside = 0;
    for (int32_t r = 0; r < x->ranks; r++)
        if (x->in_bottleneck[r]) ranks[n++] = r;
    for (int32_t i = 0; i < x->n_experts; i++) inside += x->expert_tokens[i];
    printf("The bottleneck is ");
    print_ranks(ranks, n, x->ranks);
    free(ranks);
    printf(": %.1f tokens%s at least, %.3f times the mean, as\n", x->lower_bound,
           x->speed ? " per unit of speed"
           : n > 1  ? " each"
                    : "",
           x->lower_bound / x->mean);
    printf("%s tokens are for experts that live nowhere else: ", cli_thousands(inside));
    for (int32_t i = 0; i < x->n_experts && i < 8; i++)
        printf("%s%d (%s)", i ? ", " : "", x->expert[i], cli_thousands(x->expert_tokens[i]));
    if (x->n_experts > 8) printf(" and %d more", x->n_experts - 8);
    printf(".\n");
    if (x->has_copy)
        printf("One more copy of expert %d on rank %d would move the limit from %.3f to %.3f.\n",
               x->copy_expert, x->copy_rank, x->copy_before, x->copy_after);
    else printf("No single further copy would move the limit.\n");
}

static void print_verdict(const explanation *x) {
    if (x->tokens == 0) {
        printf("There are no tokens.\n");
        return;
    }
    if (x->limited) print_limit(x);
    else printf("The placement does not limit this batch: it allows perfectly even ranks.\n");
    double lost = imbalance(x, x->after) - x->lower_bound / x->mean;
    if (lost <= 0.01) return;
    /* below one token there is no whole number of tokens */
    if (!x->speed && lost * x->mean < 1)
        printf("The split of %s is %.3f above the limit: the rounding to whole tokens.\n",
               x->after_name, lost);
    else
        printf("The split of %s is %.3f above the limit; the exact one reaches it.\n",
               x->after_name, lost);
}

static void print_trace(const explanation *x, const lplb_analysis *a, const lplb_replay_result *r) {
    printf("\nOver %d layer%s and %s batches, %s: imbalance %.3f, limit %.3f; %s of %s\n"
           "(layer, batch) pairs have a bottleneck, %s different ones.\n",
           r->layers, r->layers == 1 ? "" : "s", cli_thousands(r->measured), x->after_name,
           a->imbalance, a->bound, cli_thousands(a->limited), cli_thousands(a->pairs),
           cli_thousands(a->n_sets));
    if (a->sets) printf("\n  most often in the way\n  layer  batches  excess\n");
    for (int32_t i = 0; i < a->sets; i++) {
        const lplb_bottleneck *s = &a->set[i];
        printf("  %5d  %7s  %5.1f%%  ", r->first_layer + s->layer, cli_thousands(s->pairs),
               100 * s->excess);
        print_ranks(s->rank, s->n_ranks, r->ranks);
        printf("; ");
        print_experts(s->expert, s->n_experts, 5);
        printf("\n");
    }
    if (a->replicas) printf("\n  one more copy that would help\n  layer  expert  rank   limit\n");
    for (int32_t i = 0; i < a->replicas && i < 5; i++) {
        const lplb_next_replica *n = &a->replica[i];
        printf("  %5d  %6d  %4d   %.3f -> %.3f\n", r->first_layer + n->layer, n->expert, n->rank,
               n->before, n->after);
    }
}

int explanation_show(const char *name, const explanation *x, const lplb_analysis *analysis,
                     const lplb_replay_result *result, bool json) {
    if (json) return cli_print_json(to_json(x, analysis, result));
    if (x->layer >= 0)
        printf("layer %d, batch %s (measured are %s to %s): ", x->layer, cli_thousands(x->batch),
               cli_thousands(x->first_batch), cli_thousands(x->last_batch));
    printf("%s tokens on %d ranks\n\n", cli_thousands(x->tokens), x->ranks);
    print_loads(x);
    print_verdict(x);
    if (analysis) print_trace(x, analysis, result);
    if (fflush(stdout) || ferror(stdout))
        return cli_fail(name, EXIT_FAILED, "cannot write to stdout");
    return EXIT_OK;
}
