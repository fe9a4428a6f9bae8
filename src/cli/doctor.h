/* Parts of lplb doctor. */
#ifndef LPLB_CLI_DOCTOR_H
#define LPLB_CLI_DOCTOR_H

#include "cli/cli.h"

/* The batch that is planned: 4 ranks of 3 slots, two experts of its own and a copy of the next
 * rank's first. Expert 0 is hot: ranks 0 and 3 share its tokens, and nothing can leave these two.
 */
enum { DOCTOR_RANKS = 4, DOCTOR_EXPERTS = 8, DOCTOR_HOSTS = 12 };
typedef struct doctor_batch {
    int64_t tokens[DOCTOR_EXPERTS], offset[DOCTOR_EXPERTS + 1];
    int32_t rank[DOCTOR_HOSTS];
    lplb_hosts hosts; /* of the two arrays before it */
} doctor_batch;
lplb_status doctor_fill_batch(doctor_batch *batch, lplb_placement **placement);

/* GPUs by NVIDIA's management library: {"driver", "cuda", "devices": [...], "nvlink_pairs",
 * "pairs"}; null where the library is not there. */
json_t *doctor_gpus(void);
/* "2.19.3" from a library's own version function, "" if it cannot be had. */
void doctor_nccl_version(char *out, size_t bytes);
/* A small batch by every solver, each verified: [{"solver", "ok", "status", "max_load"}]. */
json_t *doctor_solvers(bool *ok);
/* The batch on the GPU: {"backend": "cuda", "available", "ok" (null where not), "detail"}. */
json_t *doctor_cuda(void);
/* What should be looked at and what to do: [{"finding", "do"}]; reads the finished document. */
json_t *doctor_findings(const json_t *document);

#endif
