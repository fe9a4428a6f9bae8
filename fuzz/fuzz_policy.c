/* "PLACEMENT+SOLVER:option=value,..." as --policy gives it; the solver part also stands alone. */
#include <string.h>

#include "fuzz.h"
#include "replay/replay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *text = malloc(bytes + 1);
    if (!text) return 0;
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    lplb__policy policy;
    lplb_error_clear();
    if (lplb__policy_parse(text, &policy) == LPLB_OK) {
        FUZZ_ASSERT(policy.placement_name && policy.solver_name);
        lplb__policy_destroy(&policy);
    } else {
        FUZZ_ASSERT(strlen(lplb_error_message()) > 5);
    }
    lplb_plan_config config = {.struct_size = sizeof config};
    int32_t locality;
    lplb_error_clear();
    if (lplb_plan_parse_solver(text, &config, &locality) != LPLB_OK)
        FUZZ_ASSERT(strlen(lplb_error_message()) > 5);
    free(text);
    return 0;
}
