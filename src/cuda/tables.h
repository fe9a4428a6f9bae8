/* What the kernels know of a placement: one block of device memory, filled by the host when a
 * planner is made or its placement changes. Its sections lie at offsets that depend on the largest
 * shape only, so a captured graph keeps working when the placement is replaced. */
#ifndef LPLB_CUDA_TABLES_H
#define LPLB_CUDA_TABLES_H

#include <stdint.h>

/* Indices are 16 bits wide in the tables, and an id shares 32 bits with its number in a block. */
enum {
    LPLB__CUDA_MAX_EXPERTS = 16384,
    LPLB__CUDA_MAX_SLOTS = 32768,
    LPLB__CUDA_MAX_RANKS = 4095,
    LPLB__CUDA_PAIR_COLOURS = 8, /* of a component whose loads fit a warp's registers */
    LPLB__CUDA_LANES = 32,
    LPLB__CUDA_NO_HOST = 65535
};

/* A host is an (expert, rank) pair, numbered as in lplb_hosts. A rank's position is its number by
 * component, then by rank. */
typedef struct lplb__cuda_expert {
    uint16_t first_host, hosts, first_segment, segments;
    uint16_t slot[2]; /* of the first two segments */
    uint16_t rank;    /* position of the first host */
    uint16_t choice;  /* hosts of the experts before it that have several */
} lplb__cuda_expert;

/* Hosts of experts that have several: at most so many. Each such expert has at least two, and a
 * slot remains for every other. */
#define LPLB__CUDA_CHOICES(experts, slots)                                                         \
    (2 * ((slots) - (experts)) < (slots) ? 2 * ((slots) - (experts)) : (slots))

typedef struct lplb__cuda_host {
    uint16_t rank, expert, slots, first_segment;
} lplb__cuda_host;

/* Consecutive tokens of an expert that go to one slot. */
typedef struct lplb__cuda_segment {
    uint16_t slot, expert, host;
    uint16_t nth; /* of the host's slots of this expert */
} lplb__cuda_segment;

/* Ranks [first_rank, first_rank + ranks) of which some share movable experts. */
typedef struct lplb__cuda_component {
    uint16_t first_rank, ranks, colours;
    uint16_t first_movable, movables; /* in `set` */
    uint16_t first_chunk, chunks;     /* SETS: in `own_chunk` */
    uint16_t unused;
} lplb__cuda_component;

/* Pairs: what lane r of a component's warp does in a colour. 0 = nothing. */
#define LPLB__CUDA_EDGE(expert, partner, lower)                                                    \
    ((uint32_t)(expert) | (uint32_t)(partner) << 16 | (uint32_t)(lower) << 21 | 1u << 22)
#define LPLB__CUDA_EDGE_EXPERT(edge)  ((edge)&0xffff)
#define LPLB__CUDA_EDGE_PARTNER(edge) ((edge) >> 16 & 31)
#define LPLB__CUDA_EDGE_LOWER(edge)   ((edge) >> 21 & 1)
#define LPLB__CUDA_EDGE_USED(edge)    ((edge) >> 22 & 1)

/* Rows: one lane for each host of the movable experts, experts of a row share no rank. The lanes of
 * an expert lie in an aligned group of 2, 4, 8, 16 or 32, hosts by ascending rank; larger experts
 * have several chunks of 32 ("wide"). Lanes without a host have host NO_HOST. */
typedef struct lplb__cuda_lane {
    uint16_t host, rank, expert;
    uint16_t group; /* component << 4 | log2(lanes of the group), 6 = wide */
} lplb__cuda_lane;
enum { LPLB__CUDA_WIDE = 6 };

/* Sets: a movable expert, by component, colour, id; and the chunks of a component by colour (no
 * chunk then holds lanes of two components). */
typedef struct lplb__cuda_set {
    uint64_t hosts; /* bit q: rank q of the component */
    uint16_t expert, unused[3];
} lplb__cuda_set;
#define LPLB__CUDA_OWN_CHUNK(chunk, kind) ((uint32_t)(chunk) << 8 | (uint32_t)(kind))
#define LPLB__CUDA_CHUNK(own)             ((int32_t)((own) >> 8))
#define LPLB__CUDA_CHUNK_KIND(own)        ((int32_t)((own)&255))
enum {
    LPLB__CUDA_SET_RANKS = 64,   /* of a component at most */
    LPLB__CUDA_SET_EXPERTS = 64, /* likewise: movable ones */
    LPLB__CUDA_SET_CHUNKS = 64,  /* of all components, */
    LPLB__CUDA_SET_SLOTS = 1024  /* unless a block's shared memory is needed for more slots */
};

/* Lean: the same pairs as the small kernels want them (lean.cuh), one warp a group. A group is a
 * component, or up to 32 ranks that share no expert with others. A lane has a rank's record, in
 * three quads of 16 bytes that lie [group][quad][lane]. Colours without an expert have partner =
 * self and expert = E, which has no tokens. */
enum { LPLB__CUDA_LEAN_GROUPS = 16, LPLB__CUDA_LEAN_QUADS = 3, LPLB__CUDA_LEAN_EXPERTS = 1024 };
enum { LPLB__CUDA_LEAN_SOLVE = 1, LPLB__CUDA_LEAN_STEP = 2 }; /* what can be done by them */
enum { LPLB__CUDA_LEAN_BLOCKS = 4 };                          /* a step by many blocks */
typedef struct lplb__cuda_lean_lane {
    uint16_t rank;          /* or NO_HOST */
    uint8_t ranks, colours; /* of the group */
    uint8_t lower, used;    /* bit c: of colour c's expert we are the lower host; there is one */
    uint8_t groups, kinds;  /* of the whole placement, the same in all records */
    uint8_t partner[8];     /* lanes */
    struct {                /* our host of */
        uint16_t expert, host;
    } edge[LPLB__CUDA_PAIR_COLOURS];
} lplb__cuda_lean_lane;
typedef struct lplb__cuda_lean_expert {
    uint16_t cell; /* group * 32 + lane of the only host; NO_HOST = there are two */
    uint16_t host; /* the first */
    uint16_t slot[2];
} lplb__cuda_lean_expert;

enum { LPLB__CUDA_PAIRS = 1, LPLB__CUDA_ROWS = 2, LPLB__CUDA_SETS = 3 };

typedef struct lplb__cuda_header {
    int32_t experts, ranks, hosts, segments;
    int32_t engine;     /* PAIRS, SETS or ROWS; ROWS tables are always there */
    int32_t speeds;     /* nonzero: ranks differ in speed */
    int32_t components; /* with movable experts */
    int32_t rows, chunks;
    int32_t widest_row;                  /* chunks */
    int32_t tag;                         /* of what ranks that share counts must have alike */
    int32_t largest_ranks, largest_rows; /* of a component: ranks; ranks and movable experts */
    int32_t lean_kinds, lean_groups;     /* 0: the small kernels cannot be used */
    int32_t team_warps[2]; /* that solve a component together, by its ranks and by its rows */
    int32_t segmented;     /* experts with more than two segments */
    int64_t total_speed, first_speed; /* of all ranks; of the one at position 0 */
} lplb__cuda_header;

/* Offsets in bytes of the sections, for the largest shape. The first hot_bytes are copied to shared
 * memory by every block, all at once, before anything else. */
typedef struct lplb__cuda_tables {
    uint32_t expert;       /* [E] */
    uint32_t rank_id;      /* uint16 [G]: rank at each position */
    uint32_t component_of; /* uint16 [G] by position; LPLB__CUDA_NO_HOST = none */
    uint32_t component;    /* [G/2] */
    uint32_t host;         /* [P] */
    uint32_t segment;      /* [P] */
    uint32_t hot_bytes;
    uint32_t speed;     /* int64 [G] by position */
    uint32_t edge;      /* uint32 [G/2][PAIR_COLOURS][LANES] */
    uint32_t row;       /* uint32 [rows+1] first chunk */
    uint32_t chunk;     /* uint8 [chunks]: lanes of its largest group; 64 = first of a wide expert,
                           0 = further ones */
    uint32_t lane;      /* [chunks][LANES] */
    uint32_t set;       /* [E] */
    uint32_t own_chunk; /* uint32 [set_chunks] */
    int32_t set_chunks; /* 0 = no SETS */
    /* for the interior-point method: what a component and a rank have of movable experts */
    uint32_t movable;       /* uint16 [E] experts, by component */
    uint32_t first_movable; /* uint16 [G/2+1] of each component */
    uint32_t rank_host;     /* uint16 [P] hosts, by position of their rank */
    uint32_t first_host;    /* uint16 [G+1] of each rank */
    uint32_t lean_lane;     /* [groups][QUADS][LANES] */
    uint32_t lean_expert;   /* [E] */
    uint32_t bytes;
} lplb__cuda_tables;

#endif
