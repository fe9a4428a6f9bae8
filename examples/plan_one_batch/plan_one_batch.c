/* One batch of one layer: 4 ranks with 2 experts each, and a second copy of every rank's hotter
 * expert on the next rank. How should the tokens split over the copies? */
#include <inttypes.h>
#include <lplb/lplb.h>
#include <stdio.h>

enum { RANKS = 4, EXPERTS = 8 };

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, lplb_error_message());
    return 1;
}

int main(void) {
    /* Experts 0, 2, 4, 6 have copies on two ranks; 1, 3, 5, 7 live on one. */
    const int64_t offset[EXPERTS + 1] = {0, 2, 3, 5, 6, 8, 9, 11, 12};
    const int32_t rank[] = {0, 1, 0, 1, 2, 1, 2, 3, 2, 0, 3, 3};
    const int64_t tokens[EXPERTS] = {900, 100, 120, 80, 110, 90, 60, 40};

    /* Made once for a placement... */
    lplb_plan_config config = {.struct_size = sizeof config,
                               .hosts = {RANKS, EXPERTS, offset, rank}};
    lplb_planner *planner;
    if (lplb_planner_create(&config, &planner)) return fail("cannot make a planner");

    /* ...and used for every batch, without allocating. */
    int64_t split[12], loads[RANKS];
    uint64_t certificate[1];
    lplb_plan_input input = {.tokens = tokens};
    lplb_plan plan = {.split = split, .loads = loads, .certificate = certificate};
    if (lplb_plan_solve(planner, &input, &plan)) return fail("cannot plan");

    for (int e = 0; e < EXPERTS; e++) {
        printf("expert %d: %4" PRId64 " tokens =", e, tokens[e]);
        for (int64_t h = offset[e]; h < offset[e + 1]; h++)
            printf(" %4" PRId64 " on rank %" PRId32, split[h], rank[h]);
        printf("\n");
    }
    printf("loads:");
    for (int r = 0; r < RANKS; r++) printf(" %" PRId64, loads[r]);
    printf("\n%s: the fullest rank has %" PRId64 " tokens\n", lplb_outcome_name(plan.outcome),
           plan.max_load);

    /* The certificate: these ranks cannot do better, for these tokens live nowhere else. */
    printf("because of ranks");
    for (int r = 0; r < RANKS; r++)
        if (certificate[0] >> r & 1) printf(" %d", r);
    printf("\n");
    lplb_status checked = lplb_plan_check(&config.hosts, NULL, &input, &plan);
    lplb_planner_destroy(planner);
    return checked ? fail("the plan does not check") : 0;
}
