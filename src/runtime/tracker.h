/* One layer of a tracker, for those who look at a few layers a step. */
#ifndef LPLB_RUNTIME_TRACKER_H
#define LPLB_RUNTIME_TRACKER_H

#include <lplb/tracker.h>

/* All stages together: mean and variance [E] of one layer. */
void lplb__tracker_layer(const lplb_tracker *tracker, int32_t layer, float *mean, float *variance);

#endif
