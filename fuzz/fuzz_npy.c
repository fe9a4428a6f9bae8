/* Traces in npy; the last byte chooses the layout that a user would give. */
#include "trace_target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char *const layouts[] = {NULL, "TK", "TLK", "LTK", "SLTK", "LE", "SLE", "XY"};
    if (bytes == 0) return 0;
    read_trace(data, bytes - 1, layouts[data[bytes - 1] % 8]);
    return 0;
}
