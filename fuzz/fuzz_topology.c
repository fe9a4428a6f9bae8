/* Files with an r2o: what is accepted is a topology without fixed points. */
#include <string.h>

#include "fuzz.h"
#include "io/input.h"
#include "placement/topology_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    lplb__input input;
    lplb_topology *topology;
    lplb__input_memory(data, (int64_t)bytes, "input", FUZZ_MAX_BYTES, &input);
    lplb_error_clear();
    if (lplb__topology_parse(&input, &topology) != LPLB_OK) {
        FUZZ_ASSERT(strlen(lplb_error_message()) > 5);
        return 0;
    }
    for (int32_t r = 0; r < topology->group_size; r++)
        for (int32_t k = 0; k < topology->redundant; k++) {
            int32_t from = topology->r2o[r * topology->redundant + k];
            FUZZ_ASSERT(from >= 0 && from < topology->group_size && from != r);
        }
    lplb_topology_destroy(topology);
    return 0;
}
