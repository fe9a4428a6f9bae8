/* Topologies from JSON. */
#ifndef LPLB_PLACEMENT_TOPOLOGY_FILE_H
#define LPLB_PLACEMENT_TOPOLOGY_FILE_H

#include <lplb/placement.h>

#include "io/json.h"

/* Rows of an r2o, bare or under "r2o". */
lplb_status lplb__topology_parse(const lplb__input *input, lplb_topology **out);

#endif
