/* What the files of src/placement share. */
#ifndef LPLB_PLACEMENT_PLACEMENT_H
#define LPLB_PLACEMENT_PLACEMENT_H

#include <lplb/placement.h>

/* physical_to_logical [P] of one layer. */
const int32_t *lplb__placement_layer(const lplb_placement *placement, int32_t layer);

/* What lplb_place was asked. */
typedef struct lplb__place_task {
    const lplb_place_config *config;
    const int64_t *load;  /* [samples][L][E] */
    const double *weight; /* [samples] or NULL */
    int64_t samples;
    int32_t layers, experts;
} lplb__place_task;

static inline const int64_t *lplb__task_row(const lplb__place_task *task, int64_t sample,
                                            int32_t layer) {
    return task->load + (sample * task->layers + layer) * task->experts;
}

/* One layer by EPLB or along a topology: map [P]. LPLB_UNSUPPORTED or LPLB_INVALID if the shape
 * does not allow it. */
lplb_status lplb__place_simple_layer(const lplb__place_task *task, const lplb_placement *shape,
                                     int32_t layer, int32_t *map);

#endif
