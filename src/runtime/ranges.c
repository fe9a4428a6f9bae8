/* Named ranges: NVTX where it was there at build time, and the monitor's Chrome trace. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "runtime/monitor.h"

#ifdef LPLB_HAVE_NVTX
#include <nvtx3/nvToolsExt.h> /* headers only; does nothing unless a tool is attached */
#endif

int32_t lplb_has_nvtx(void) {
#ifdef LPLB_HAVE_NVTX
    return 1;
#else
    return 0;
#endif
}

#ifdef LPLB_HAVE_NVTX
/* NVTX would do so at the first range, which several threads may reach at once. */
static void find_tool(void) { nvtxInitialize(NULL); }
#endif

int64_t lplb_range_begin(const char *name) {
#ifdef LPLB_HAVE_NVTX
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_tool);
    nvtxRangePushA(name);
#else
    (void)name;
#endif
    return lplb__now_ns();
}

void lplb_range_end(lplb_monitor *m, const char *name, int32_t lane, int64_t begin_ns) {
#ifdef LPLB_HAVE_NVTX
    nvtxRangePop();
#endif
    if (!m || !m->range) return;
    lplb__range range = {
        .begin_ns = begin_ns, .duration_ns = lplb__now_ns() - begin_ns, .lane = lane};
    snprintf(range.name, sizeof range.name, "%s", name);
    pthread_mutex_lock(&m->mutex);
    m->range[m->now.n_ranges++ % LPLB__MONITOR_RANGES] = range;
    pthread_mutex_unlock(&m->mutex);
}
