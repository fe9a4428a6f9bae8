/* The cost model of a GPU: what is accepted predicts finite times that do not fall with load. */
#include <math.h>
#include <string.h>

#include "fuzz.h"
#include "replay/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    lplb__input input;
    lplb__input_memory(data, (int64_t)bytes, "input", FUZZ_MAX_BYTES, &input);
    lplb_gpu_model *model;
    lplb_error_clear();
    if (lplb__gpu_model_parse(&input, &model) == LPLB_OK) {
        double last = 0;
        for (double tokens = 0; tokens < 1e9; tokens = 2 * tokens + 1) {
            double us = lplb__gpu_gemm_us(model, tokens, 3);
            FUZZ_ASSERT(isfinite(us) && us >= last * (1 - 1e-12));
            last = us;
        }
        FUZZ_ASSERT(isfinite(lplb__gpu_link_us(model, 1000, 1000)));
        lplb_gpu_model_destroy(model);
    } else {
        FUZZ_ASSERT(!model && strlen(lplb_error_message()) > 5);
    }
    lplb__input_close(&input);
    return 0;
}
