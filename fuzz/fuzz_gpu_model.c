/* Cost models of a GPU. */
#include <string.h>

#include "fuzz.h"
#include "io/input.h"
#include "replay/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    lplb__input input;
    lplb_gpu_model *model;
    lplb__input_memory(data, (int64_t)bytes, "input", FUZZ_MAX_BYTES, &input);
    lplb_error_clear();
    if (lplb__gpu_model_parse(&input, &model) == LPLB_OK) lplb_gpu_model_destroy(model);
    else FUZZ_ASSERT(strlen(lplb_error_message()) > 5);
    return 0;
}
