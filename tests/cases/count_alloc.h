/* A counting allocator: how many blocks were asked for and how many bytes are in use. */
#ifndef LPLB_TESTS_COUNT_ALLOC_H
#define LPLB_TESTS_COUNT_ALLOC_H

#include <stdint.h>

void count_alloc_install(void);       /* before anything else of the library */
int64_t count_alloc_calls(void);      /* of the calling thread, since the install */
int64_t count_alloc_live_bytes(void); /* of all threads */

#endif
