#include <lplb/tuning.h>
#include <math.h>

#include "base/error.h"

lplb_status lplb_batch_sizer_init(lplb_batch_sizer *s) {
    if (!s->grow_below_ns) s->grow_below_ns = 2000000;
    if (!s->shrink_above_ns) s->shrink_above_ns = 10000000;
    if (s->factor == 0) s->factor = 1.25;
    if (!s->patience) s->patience = 3;
    s->streak = 0;
    s->grown = s->shrunk = 0;
    if (s->least < 1 || s->size < s->least || s->most < s->size)
        return LPLB_FAIL(LPLB_RANGE, "batch size %lld, at least %lld, at most %lld, do not rise",
                         (long long)s->size, (long long)s->least, (long long)s->most);
    if (s->grow_below_ns < 1 || s->shrink_above_ns <= s->grow_below_ns)
        return LPLB_FAIL(LPLB_RANGE, "grow below %lld ns, shrink above %lld ns: no band between",
                         (long long)s->grow_below_ns, (long long)s->shrink_above_ns);
    if (!(s->factor > 1 && s->factor <= 16) || s->patience < 1)
        return LPLB_FAIL(LPLB_RANGE, "factor %g must be in (1, 16], patience %d at least 1",
                         s->factor, s->patience);
    return LPLB_OK;
}

int64_t lplb_batch_sizer_update(lplb_batch_sizer *s, int64_t step_ns) {
    int asks = step_ns < s->grow_below_ns ? 1 : step_ns > s->shrink_above_ns ? -1 : 0;
    if (asks == 0 || (asks > 0) != (s->streak > 0)) s->streak = 0;
    s->streak += asks;
    if (s->streak < s->patience && s->streak > -s->patience) return s->size;
    double wanted =
        asks > 0 ? ceil((double)s->size * s->factor) : floor((double)s->size / s->factor);
    int64_t size = wanted >= (double)s->most    ? s->most
                   : wanted <= (double)s->least ? s->least
                                                : (int64_t)wanted;
    s->grown += size > s->size;
    s->shrunk += size < s->size;
    s->size = size;
    s->streak = 0;
    return size;
}
