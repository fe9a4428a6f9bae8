#include "cli/replay_table.h"

#include <stdio.h>
#include <string.h>

#include "cli/replay_options.h"

int32_t best_policy(const lplb_replay_result *r) {
    int32_t best = -1;
    for (int32_t i = 0; i < r->policies; i++) {
        const lplb_policy_result *p = &r->policy[i];
        if (!p->placement || p->imbalance.mean <= 0) continue;
        if (best < 0 || p->imbalance.mean < r->policy[best].imbalance.mean) best = i;
    }
    return best;
}

static void print_list(const char *one, const char *many, const int32_t *list, int32_t n,
                       int32_t most) {
    printf("%s", n == 1 ? one : many);
    int32_t shown = n <= most ? n : most;
    for (int32_t i = 0; i < shown; i++)
        printf("%s%d", i == 0 ? " " : i == n - 1 ? " and " : ", ", list[i]);
    if (shown < n) printf(" and %d more", n - shown);
}

void print_experts(const int32_t *expert, int32_t n, int32_t most) {
    print_list("expert", "experts", expert, n, most);
}

void print_ranks(const int32_t *rank, int32_t n, int32_t ranks) {
    enum { SHOWN = 12 };
    if (2 * n <= ranks || ranks - n > SHOWN) {
        print_list("rank", "ranks", rank, n, SHOWN);
        return;
    }
    int32_t others[SHOWN], count = 0;
    for (int32_t r = 0, i = 0; r < ranks; r++)
        if (i < n && rank[i] == r) i++;
        else others[count++] = r;
    print_list("all ranks but", "all ranks but", others, count, SHOWN);
}

static int64_t selections(const lplb_replay_result *r) {
    int64_t sum = 0;
    for (int64_t i = 0; i < (int64_t)r->layers * r->measured * r->experts; i++) sum += r->counts[i];
    return sum;
}

static void print_header(const lplb_trace *trace, const lplb_replay_result *r) {
    int64_t history = r->batches - r->measured;
    printf("%s\n", trace->source);
    if (r->batch_tokens)
        printf("%s batches of %s tokens", cli_thousands(r->batches),
               cli_thousands(r->batch_tokens));
    else printf("%s steps", cli_thousands(r->batches));
    if (history > 0)
        printf(": the first %s place the experts, the last %s are measured\n",
               cli_thousands(history), cli_thousands(r->measured));
    else printf(", all measured\n");
    printf("%d ranks", r->ranks);
    if (r->nodes > 1) printf(" on %d nodes", r->nodes);
    int32_t beyond = r->slots - r->experts;
    printf(", %d expert slots a layer (%d redundant", r->slots,
           beyond % r->ranks ? beyond : beyond / r->ranks);
    printf("%s)", beyond % r->ranks ? " in all" : " a rank");
    if (r->layers < trace->layers)
        printf(", layers %d-%d", r->first_layer, r->first_layer + r->layers - 1);
    printf("\n");
    for (int32_t i = 0; i < r->policies; i++) {
        const lplb_placement *p = r->policy[i].placement;
        if (strncmp(r->policy[i].policy, "file:", 5) || !p) continue;
        printf("%s has %d slots a layer, and may have been made from the measured batches\n",
               r->policy[i].policy, p->slots);
    }
    printf("\n");
}

static int name_width(const lplb_replay_result *r) {
    int width = (int)strlen("policy");
    for (int32_t i = 0; i < r->policies; i++) {
        int length = (int)strlen(r->policy[i].policy);
        if (length > width) width = length;
    }
    return width;
}

static void print_policies(const lplb_replay_result *r, int width, int32_t best) {
    double total = (double)selections(r);
    printf("  %-*s  imbalance: max / mean of ranks   ranks   plan [us]        tokens   slots\n"
           "  %-*s   mean    p50    p99    max       wait    p50     p99     moved   moved\n",
           width, "", width, "policy");
    for (int32_t i = 0; i < r->policies; i++) {
        const lplb_policy_result *p = &r->policy[i];
        const lplb_distribution *d = &p->imbalance;
        printf("%s %-*s  %5.3f  %5.3f  %5.3f  %5.3f    %5.1f %%", i == best ? ">" : " ", width,
               p->policy, d->mean, d->p50, d->p99, d->max, 100 * (1 - p->balancedness));
        if (p->has_plan_time) printf("  %5.1f  %6.1f", p->plan_us_p50, p->plan_us_p99);
        else printf("  %5s  %6s", "-", "-");
        if (p->placement && total > 0)
            printf("   %5.1f %%  %6s\n", 100 * (double)p->moved_tokens / total,
                   cli_thousands(p->moved_slots));
        else printf("   %7s  %6s\n", "-", "-");
    }
}

static void print_predictions(const lplb_replay_result *r, int width) {
    if (!r->policies || !r->policy[0].has_prediction) return;
    bool timed = false;
    for (int32_t i = 0; i < r->policies; i++) timed |= r->policy[i].ms_per_layer > 0;
    printf("\n  %-*s", width, "predicted");
    if (timed) printf("  ms per layer      tokens/s");
    printf("  redundant GiB a rank  internode tokens\n");
    for (int32_t i = 0; i < r->policies; i++) {
        const lplb_policy_result *p = &r->policy[i];
        printf("  %-*s", width, p->policy);
        if (timed)
            printf("  %12.4f  %12s", p->ms_per_layer, cli_thousands((int64_t)p->tokens_per_s));
        printf("  %20.3f  %16s\n", (double)p->redundant_bytes / (1 << 30) / r->ranks,
               cli_thousands(p->internode_tokens));
    }
}

/* The set whose excess adds up to the most over its batches. */
static const lplb_bottleneck *worst_set(const lplb_analysis *a) {
    const lplb_bottleneck *worst = &a->set[0];
    for (int32_t i = 1; i < a->sets; i++)
        if ((double)a->set[i].pairs * a->set[i].excess > (double)worst->pairs * worst->excess)
            worst = &a->set[i];
    return worst;
}

/* What still stands between the best policy and perfect balance. */
static void print_limits(const lplb_replay_result *r, int32_t best) {
    lplb_analysis_config config = {
        .struct_size = sizeof config, .layer = -1, .batch = -1, .max_sets = 1000};
    lplb_analysis *a;
    if (lplb_replay_analyze(r, best, &config, &a) != LPLB_OK) return;
    if (a->imbalance - a->bound > 0.01 && a->imbalance - a->bound > a->bound - 1)
        printf("Its split limits it: the same placement allows %.3f with +exact.\n", a->bound);
    if (a->sets > 0 && a->bound > 1.0005) {
        const lplb_bottleneck *s = worst_set(a);
        printf("Its placement allows no less than %.3f. Most in the way: in layer %d, ", a->bound,
               r->first_layer + s->layer);
        print_ranks(s->rank, s->n_ranks, r->ranks);
        printf(",\nthe only home of ");
        print_experts(s->expert, s->n_experts, 6);
        printf(" (in %s of %s batches, by %.0f %%).\n", cli_thousands(s->pairs),
               cli_thousands(r->measured), 100 * s->excess);
    } else {
        printf("Its placement allows perfectly even ranks.\n");
    }
    if (a->replicas > 0 && a->bound > 1.0005) {
        const lplb_next_replica *n = &a->replica[0];
        printf("One more copy of expert %d on rank %d would bring layer %d from %.3f to %.3f; "
               "`lplb explain`\nsays more.\n",
               n->expert, n->rank, r->first_layer + n->layer, n->before, n->after);
    }
    lplb_analysis_destroy(a);
}

static void print_conclusion(const lplb_replay_result *r, int32_t best) {
    const lplb_policy_result *p = &r->policy[best], *none = NULL;
    for (int32_t i = 0; i < r->policies; i++)
        if (!strcmp(r->policy[i].placement_name, "none") && !none) none = &r->policy[i];
    printf("\n%s is the most even: the fullest rank carries %.3f times the mean", p->policy,
           p->imbalance.mean);
    if (none && none != p)
        printf(" instead of %.3f,\nand ranks wait %.1f %% of the time instead of %.1f %%",
               none->imbalance.mean, 100 * (1 - p->balancedness), 100 * (1 - none->balancedness));
    printf(".\n");
    print_limits(r, best);
    printf("(replayed in %.2f s", r->seconds - r->place_seconds);
    if (r->place_seconds > 0.005) printf(", placed in %.2f s", r->place_seconds);
    printf(")\n");
}

void print_replay(const lplb_trace *trace, const lplb_replay_result *r) {
    int32_t best = best_policy(r);
    int width = name_width(r);
    print_header(trace, r);
    print_policies(r, width, best);
    print_predictions(r, width);
    if (best >= 0) print_conclusion(r, best);
    else printf("\nNo measured batch has any load under a policy with a placement.\n");
}
