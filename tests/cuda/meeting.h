/* Ranks that are threads of one process, and their hosts' all-gather. */
#ifndef LPLB_TESTS_CUDA_MEETING_H
#define LPLB_TESTS_CUDA_MEETING_H

#include <lplb/status.h>
#include <pthread.h>
#include <stdint.h>

enum { MOST_RANKS = 8 };

typedef struct meeting {
    pthread_barrier_t barrier;
    unsigned char card[MOST_RANKS][256];
    int32_t ranks;
} meeting;

typedef struct member {
    meeting *all;
    int32_t rank;
} member;

/* lplb_cuda_comm_config.exchange; state: a member. */
lplb_status exchange(void *state, const void *send, void *receive, int64_t bytes);

#endif
