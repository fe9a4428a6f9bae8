/* The configuration files of lplb train: whatever they hold, they are read or refused, and what was
 * read can be written. */
#include <stdio.h>

#include "fuzz.h"
#include "train/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static run_options options;
    FILE *file = size ? fmemopen((void *)data, size, "rb") : NULL, *out = fopen("/dev/null", "w");
    run_options_default(&options);
    if (file && out && run_options_read_stream(&options, "input", file) == LPLB_OK) {
        (void)run_options_check(&options);
        run_options_write(&options, out);
    }
    if (file) fclose(file);
    if (out) fclose(out);
    return 0;
}
