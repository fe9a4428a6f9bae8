/* What the readers of placement files share. */
#ifndef LPLB_IO_PLACEMENT_FILE_H
#define LPLB_IO_PLACEMENT_FILE_H

#include <lplb/placement.h>
#include <stdbool.h>

#include "io/input.h"

/* A physical-to-logical map as a file gives it. */
typedef struct lplb__slot_map {
    const char *name;               /* of the file */
    int64_t layers, slots, experts; /* experts 0 = the largest id + 1 */
    int64_t ranks;                  /* 0 = the file does not say */
    int32_t *slots_per_rank;        /* [ranks] or NULL = equal */
    int32_t *map;                   /* [layers][slots], -1 = empty */
} lplb__slot_map;

/* Zeroed map; LPLB_RANGE above input->max_bytes. */
lplb_status lplb__slot_map_create(lplb__slot_map *map, const lplb__input *input, int64_t layers,
                                  int64_t slots);
void lplb__slot_map_destroy(lplb__slot_map *map);
/* wanted_ranks 0 = from the file. Validates. */
lplb_status lplb__slot_map_finish(const lplb__slot_map *map, int32_t wanted_ranks,
                                  lplb_placement **out);

/* The formats. */
lplb_status lplb__placement_from_json(const lplb__input *input, int32_t ranks,
                                      lplb_placement **out);
lplb_status lplb__placement_from_yaml(const lplb__input *input, int32_t ranks,
                                      lplb_placement **out);

lplb_status lplb__placement_read_input(const lplb__input *input, int32_t ranks,
                                       lplb_placement **out);
lplb_status lplb__placement_read_memory(const void *data, int64_t bytes, const char *name,
                                        int64_t max_bytes, int32_t ranks, lplb_placement **out);

#endif
