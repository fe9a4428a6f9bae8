/* Everything of the CPU library. */
#ifndef LPLB_LPLB_H
#define LPLB_LPLB_H

#include <lplb/advise.h>
#include <lplb/comm.h>
#include <lplb/dispatch.h>
#include <lplb/gen.h>
#include <lplb/monitor.h>
#include <lplb/online.h>
#include <lplb/placement.h>
#include <lplb/plan.h>
#include <lplb/replay.h>
#include <lplb/runtime.h>
#include <lplb/status.h>
#include <lplb/trace.h>
#include <lplb/tracker.h>
#include <lplb/tuning.h>

#endif
