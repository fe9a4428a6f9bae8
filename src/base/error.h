/* How the library raises errors: LPLB_FAIL records the message, LPLB_TRY passes a failure up. */
#ifndef LPLB_BASE_ERROR_H
#define LPLB_BASE_ERROR_H

#include <lplb/status.h>

/* Exported for liblplb_cuda, like the functions of base/mem.h: one error record, one allocator. */
LPLB_API lplb_status lplb__fail(lplb_status code, const char *file, int line, const char *format,
                                ...) __attribute__((format(printf, 4, 5)));

/* return LPLB_FAIL(LPLB_RANGE, "rank %d is outside [0, %d)", r, ranks); */
#define LPLB_FAIL(code, ...) lplb__fail((code), __FILE__, __LINE__, __VA_ARGS__)

#define LPLB_TRY(call)                                                                             \
    do {                                                                                           \
        lplb_status lplb_try_status_ = (call);                                                     \
        if (lplb_try_status_ != LPLB_OK) return lplb_try_status_;                                  \
    } while (0)

/* Stores the status in `status` and jumps; the label frees what was taken, in reverse order. */
#define LPLB_TRY_GOTO(status, call, label)                                                         \
    do {                                                                                           \
        (status) = (call);                                                                         \
        if ((status) != LPLB_OK) goto label;                                                       \
    } while (0)

#define LPLB_FAIL_GOTO(status, label, code, ...)                                                   \
    do {                                                                                           \
        (status) = LPLB_FAIL(code, __VA_ARGS__);                                                   \
        goto label;                                                                                \
    } while (0)

#endif
