/* Synthetic routing: seeded traces whose skew is chosen, the same on every machine and for any
 * number of threads. */
#ifndef LPLB_GEN_H
#define LPLB_GEN_H

#include <lplb/status.h>
#include <lplb/trace.h>
#include <stddef.h>
#include <stdint.h>

LPLB_BEGIN_DECLS

/* Where the experts' weights come from. */
typedef enum lplb_gen_base {
    LPLB_GEN_LOGNORMAL = 0, /* exp(sigma * normal); sigma 0 = all equal */
    LPLB_GEN_ZIPF = 1,      /* 1 / place^exponent, experts in random order */
    LPLB_GEN_LOADS = 2      /* recorded loads */
} lplb_gen_base;

/* Zero-initialise, set struct_size. Time passes in steps of batch_tokens; the patterns below the
 * weights act on every step, in the order in which they stand here. */
typedef struct lplb_gen_config {
    size_t struct_size;
    lplb_trace_kind kind; /* ids of every token, or counts of every step */
    int32_t layers, experts, topk;
    int64_t tokens;       /* in all; the last step has what is left */
    int64_t batch_tokens; /* 0 = 4096 */
    lplb_gen_base base;
    double sigma;                /* LOGNORMAL: 0..20 */
    double exponent;             /* ZIPF: 0..20 */
    const int64_t *load;         /* LOADS: [L][E]; a layer of zeros selects nothing */
    const int64_t *load_end;     /* LOADS: [L][E], the weights drift there until the last step; or
                                    NULL */
    int32_t hot_experts;         /* so many experts of a layer, chosen at random, ... */
    int32_t hot_ranks, hot_rank; /* ... or those of rank hot_rank of hot_ranks (E / hot_ranks in
                                    a row) have together ... */
    double hot_share;            /* ... this share of the weight, in (0, 1) */
    int64_t rotate_every;        /* after so many steps every weight moves on ... */
    int32_t rotate_by;           /* ... by so many experts (0 = 1) */
    double burst_probability;    /* of a (step, layer): one expert's weight times ... */
    double burst_factor;         /* ... this, >= 1 */
    double zero_probability;     /* of a step without any selection */
    uint64_t seed;
    int32_t threads;     /* 0 = all */
    int64_t max_bytes;   /* refuse a larger trace; 0 = 8 GiB */
    int32_t multinomial; /* nonzero, for COUNTS: every selection is drawn for itself */
} lplb_gen_config;

/* Every token selects topk different experts of each layer, one after the other, each with the
 * probability weight / (weights of those not yet selected); so the hottest experts get less than
 * their share of the weights. With `multinomial` a step's counts are multinomial with just these
 * shares: tokens * topk selections, not told apart by token. LPLB_INVALID names the option that
 * cannot be. */
LPLB_API lplb_status lplb_gen(const lplb_gen_config *config, lplb_trace **out);

LPLB_END_DECLS

#endif
