/* Traces in npz. */
#include "trace_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    read_trace(data, bytes, NULL);
    return 0;
}
