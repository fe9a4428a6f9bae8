/* A training run's figures through the runtime's monitor: rank 0 has one where metrics, an event
 * log or a trace were asked for. */
#ifndef LPLB_TRAIN_WATCH_H
#define LPLB_TRAIN_WATCH_H

#include "train/options.h"

/* NULL on other ranks and where nothing was asked for. All ranks call, and all fail if one does. */
lplb_status watch_open(const run_options *o, lplb__group *world, lplb_monitor **out);
/* One step; monitor may be NULL. */
lplb_status watch_step(lplb_monitor *monitor, const trainer *t, const step_report *report);

#endif
