/* The placements' targets: whatever is read must be a valid placement. */
#ifndef LPLB_FUZZ_PLACEMENT_TARGET_H
#define LPLB_FUZZ_PLACEMENT_TARGET_H

#include <string.h>

#include "fuzz.h"
#include "io/placement_file.h"

static inline void read_placement(const uint8_t *data, size_t bytes, int32_t ranks) {
    lplb_placement *placement;
    lplb_error_clear();
    lplb_status status = lplb__placement_read_memory(data, (int64_t)bytes, "input", FUZZ_MAX_BYTES,
                                                     ranks, &placement);
    if (status != LPLB_OK) {
        FUZZ_ASSERT(!placement);
        FUZZ_ASSERT(strlen(lplb_error_message()) > 5);
        return;
    }
    FUZZ_ASSERT(lplb_placement_validate(placement) == LPLB_OK);
    FUZZ_ASSERT(placement->rank_offset[placement->ranks] == placement->slots);
    FUZZ_ASSERT(ranks == 0 || placement->ranks == ranks);
    lplb_placement_destroy(placement);
}

#endif
