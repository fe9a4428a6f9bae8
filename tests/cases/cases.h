/* The one table of planning problems that tests, sanitizer runs, fuzz seeds and benchmarks share.
 * A case is a placement shape and a load shape; a seed makes an instance of it. */
#ifndef LPLB_TESTS_CASES_H
#define LPLB_TESTS_CASES_H

#include <lplb/plan.h>
#include <stdint.h>

typedef enum case_shape {
    SHAPE_R2O,    /* LPLB's cube, hypercube, ring, torus groups: two copies of the redundant ones */
    SHAPE_RANDOM, /* every expert on a random number of random ranks */
    SHAPE_EPLB    /* replicas by load, packed by load: one redundant slot count over many ranks */
} case_shape;

typedef struct plan_case {
    const char *name;
    case_shape shape;
    const char *topology; /* for SHAPE_R2O: "cube", "hypercube", "ring", "torus:MxN" */
    int32_t ranks, experts, slots, max_copies;
    double sigma; /* of ln(load), or of load / mean when gaussian */
    int gaussian;
    int64_t mean_tokens; /* per expert */
    int fixed, speeds;   /* nonzero: random fixed loads / speeds */
} plan_case;

extern const plan_case plan_cases[];
extern const int n_plan_cases;
const plan_case *find_plan_case(const char *name); /* NULL if there is none */

/* An instance; hosts points into the struct's own arrays. */
typedef struct plan_instance {
    lplb_hosts hosts;
    int64_t *offset;  /* [E+1] */
    int32_t *rank;    /* [offset[E]] */
    double *weight;   /* [E] the loads that the placement was made for, mean about 1; or NULL */
    int64_t *tokens;  /* [E] */
    int64_t *fixed;   /* [G] or NULL */
    int64_t *speed;   /* [G] or NULL */
    int64_t *sources; /* [G][E] or NULL; filled by instance_add_sources */
    int64_t *split, *loads;
    uint64_t *certificate;
} plan_instance;

/* Same (case, seed) gives the same instance on every machine. Aborts when out of memory. */
void instance_create(const plan_case *shape, uint64_t seed, plan_instance *out);
/* New tokens for the same hosts. */
void instance_redraw(const plan_case *shape, uint64_t seed, plan_instance *instance);
/* Splits tokens over sources at random (multinomial). */
void instance_add_sources(plan_instance *instance, uint64_t seed);
void instance_destroy(plan_instance *instance);

/* A random small problem, for bulk exactness runs: 2-16 ranks, 1-8 copies, tokens of every
 * magnitude (zero included) that with the fixed ones sum to at most max_tokens, speeds and fixed
 * loads now and then. */
void instance_random(uint64_t seed, int64_t max_tokens, plan_instance *out);

#endif
