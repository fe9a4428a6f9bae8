/* What the transports of src/comm share. */
#ifndef LPLB_COMM_COMM_H
#define LPLB_COMM_COMM_H

#include <lplb/comm.h>

#include "base/mem.h"

/* Least transport.max_bytes: one lplb_comm_agree. */
enum { LPLB__COMM_LEAST_BYTES = (LPLB_COMM_MAX_ITEMS + 1) * (int)sizeof(uint64_t) };

#endif
