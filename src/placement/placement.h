/* What the files of src/placement share. */
#ifndef LPLB_PLACEMENT_PLACEMENT_H
#define LPLB_PLACEMENT_PLACEMENT_H

#include <lplb/placement.h>

/* physical_to_logical [P] of one layer. */
const int32_t *lplb__placement_layer(const lplb_placement *placement, int32_t layer);

#endif
