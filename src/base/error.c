#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"

static _Thread_local char message[1024];
static _Thread_local char location[160];

lplb_status lplb__fail(lplb_status code, const char *file, int line, const char *format, ...) {
    char text[sizeof message]; /* the arguments may point into the old message */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(message, text, sizeof text);
    const char *slash = strrchr(file, '/');
    snprintf(location, sizeof location, "%s:%d", slash ? slash + 1 : file, line);
    return code;
}

lplb_status lplb_error_raise(lplb_status status, const char *text) {
    return lplb__fail(status, "plug-in", 0, "%s", text);
}

const char *lplb_error_message(void) { return message; }
const char *lplb_error_location(void) { return location; }

void lplb_error_clear(void) {
    message[0] = '\0';
    location[0] = '\0';
}

const char *lplb_status_name(lplb_status status) {
    switch (status) {
#define CASE_NAME(name, value, text)                                                               \
    case LPLB_##name: return "LPLB_" #name;
        LPLB_STATUS_MAP(CASE_NAME)
#undef CASE_NAME
    }
    return "LPLB_UNKNOWN";
}

const char *lplb_status_text(lplb_status status) {
    switch (status) {
#define CASE_TEXT(name, value, text)                                                               \
    case LPLB_##name: return text;
        LPLB_STATUS_MAP(CASE_TEXT)
#undef CASE_TEXT
    }
    return "unknown status";
}

const char *lplb_version(void) { return LPLB_VERSION; }
