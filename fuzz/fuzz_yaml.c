/* Placements in YAML. */
#include "placement_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    read_placement(data, bytes, 2);
    return 0;
}
