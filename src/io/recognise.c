#include "io/recognise.h"

#include <stdbool.h>
#include <string.h>

/* torch.save before zip archives: a pickle of protocol 2 and up starts with 0x80 and the number. */
static bool is_pickle(const unsigned char *start, int64_t n) {
    return n > 2 && start[0] == 0x80 && start[1] >= 2 && start[1] <= 5;
}

/* The header length must leave room for itself, and its JSON object follows at once. */
static bool is_safetensors(const unsigned char *start, int64_t n, int64_t bytes) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | start[i];
    return n > 8 && start[8] == '{' && length <= (uint64_t)bytes;
}

lplb_status lplb__recognise(const lplb__input *input, lplb__content *out) {
    unsigned char start[256] = {0};
    int64_t n = input->bytes < (int64_t)sizeof start ? input->bytes : (int64_t)sizeof start;
    if (n == 0) return LPLB_FAIL(LPLB_FORMAT, "%s is empty", input->name);
    LPLB_TRY(lplb__input_read(input, 0, start, n));
    int64_t at = 0, binary = 0;
    while (at < n && memchr(" \t\r\n", start[at], 4)) at++;
    while (binary < n && (start[binary] >= ' ' || memchr("\t\r\n", start[binary], 3))) binary++;
    if (!memcmp(start, "\x93NUMPY", 6)) {
        *out = LPLB__NPY;
    } else if (!memcmp(start, "PK\003\004", 4) || !memcmp(start, "PK\005\006", 4)) {
        *out = LPLB__ZIP;
    } else if (is_pickle(start, n)) {
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "%s is a pickle (torch.save); turn it into npz with "
                         "`python -m lplb.convert IN -o OUT.npz`",
                         input->name);
    } else if (is_safetensors(start, n, input->bytes)) {
        *out = LPLB__SAFETENSORS;
    } else if (at < n && (start[at] == '{' || start[at] == '[')) {
        *out = LPLB__JSON;
    } else if (binary == n && at < n) {
        *out = LPLB__TEXT;
    } else {
        return LPLB_FAIL(LPLB_FORMAT, "%s is in no known format; byte %lld is 0x%02x", input->name,
                         (long long)(binary < n ? binary : 0), start[binary < n ? binary : 0]);
    }
    return LPLB_OK;
}
