#include "meeting.h"

#include <string.h>

lplb_status exchange(void *state, const void *send, void *receive, int64_t bytes) {
    const member *m = state;
    memcpy(m->all->card[m->rank], send, (size_t)bytes);
    pthread_barrier_wait(&m->all->barrier);
    for (int32_t r = 0; r < m->all->ranks; r++)
        memcpy((unsigned char *)receive + r * bytes, m->all->card[r], (size_t)bytes);
    pthread_barrier_wait(&m->all->barrier);
    return LPLB_OK;
}
