/* Status codes and the per-thread error record.
 *
 * Every fallible function returns an lplb_status: 0 on success, a negative code otherwise. The
 * library never prints and never exits; the text of the last failure of the calling thread, which
 * names the offending value and the fix, is in lplb_error_message(). */
#ifndef LPLB_STATUS_H
#define LPLB_STATUS_H

#include <lplb/export.h>
#include <stddef.h>

LPLB_BEGIN_DECLS

#define LPLB_STATUS_MAP(X)                                                                         \
    X(OK, 0, "success")                                                                            \
    X(INVALID, -1, "invalid argument")                                                             \
    X(RANGE, -2, "value out of range")                                                             \
    X(OVERFLOW, -3, "integer overflow")                                                            \
    X(NO_MEMORY, -4, "out of memory")                                                              \
    X(IO, -5, "input/output error")                                                                \
    X(FORMAT, -6, "malformed input")                                                               \
    X(UNSUPPORTED, -7, "not supported")                                                            \
    X(INFEASIBLE, -8, "no feasible answer exists")                                                 \
    X(NOT_CONVERGED, -9, "did not converge")                                                       \
    X(STATE, -10, "call not allowed in this state")                                                \
    X(TIMEOUT, -11, "timed out")                                                                   \
    X(DISAGREE, -12, "ranks disagree")                                                             \
    X(REMOTE, -13, "a peer failed")                                                                \
    X(DEVICE, -14, "accelerator error")                                                            \
    X(CHECK_FAILED, -15, "verification failed")                                                    \
    X(INTERNAL, -16, "internal error")

typedef enum lplb_status {
#define LPLB_STATUS_ENUM(name, value, text) LPLB_##name = value,
    LPLB_STATUS_MAP(LPLB_STATUS_ENUM)
#undef LPLB_STATUS_ENUM
} lplb_status;

/* "LPLB_INVALID" for LPLB_INVALID; "LPLB_UNKNOWN" for a value that is no status. */
LPLB_API const char *lplb_status_name(lplb_status status);
/* One short phrase, never NULL. */
LPLB_API const char *lplb_status_text(lplb_status status);

/* The message of the calling thread's last failure, "" if none. Valid until the thread's next
 * failing call. Thread-safe: every thread has its own record. */
LPLB_API const char *lplb_error_message(void);
/* Source file and line that raised it, for bug reports. */
LPLB_API const char *lplb_error_location(void);
LPLB_API void lplb_error_clear(void);
/* Records a failure for lplb_error_message() and returns its status: for plug-ins, so that errors
 * look alike wherever they come from. */
LPLB_API lplb_status lplb_error_raise(lplb_status status, const char *message);

/* "MAJOR.MINOR.PATCH" of the loaded library. */
LPLB_API const char *lplb_version(void);

/* Replaces malloc, realloc and free for everything the library allocates. Call it before any other
 * function; not thread-safe. NULL restores the C library's. */
typedef struct lplb_allocator {
    void *(*alloc)(size_t bytes, void *user);
    void *(*realloc)(void *block, size_t bytes, void *user);
    void (*free)(void *block, void *user);
    void *user;
} lplb_allocator;
LPLB_API void lplb_set_allocator(const lplb_allocator *allocator);

LPLB_END_DECLS

#endif
