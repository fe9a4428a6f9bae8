/* What the parts of an online replay share. */
#ifndef LPLB_REPLAY_ONLINE_H
#define LPLB_REPLAY_ONLINE_H

#include <lplb/online.h>

#include "replay/replay.h"

typedef enum lplb__online_kind {
    LPLB__ONLINE_NONE,
    LPLB__ONLINE_FIXED,
    LPLB__ONLINE_EPLB,
    LPLB__ONLINE_MANAGER
} lplb__online_kind;

typedef struct lplb__online_policy {
    lplb__online_kind kind;
    char *placement_name, *solver_name;
    lplb_plan_config plan;    /* hosts are filled per layer */
    bool solves;              /* needs a planner: any solver but even */
    int64_t forecast, season; /* blocks of so many steps, of so many blocks; 0 = none */
    /* What the text says of the manager; shape, seed and costs are filled by the run. */
    lplb_manager_config manager;
} lplb__online_policy;

lplb_status lplb__online_parse(const char *text, lplb__online_policy *out);
void lplb__online_policy_destroy(lplb__online_policy *policy);

#endif
