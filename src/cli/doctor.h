/* Parts of lplb doctor. */
#ifndef LPLB_CLI_DOCTOR_H
#define LPLB_CLI_DOCTOR_H

#include "cli/cli.h"

/* GPUs by NVIDIA's management library: {"driver", "cuda", "devices": [...], "nvlink_pairs",
 * "pairs"}; null where the library is not there. */
json_t *doctor_gpus(void);
/* "2.19.3" from a library's own version function, "" if it cannot be had. */
void doctor_nccl_version(char *out, size_t bytes);
/* A small batch by every solver, each verified: [{"solver", "ok", "status", "max_load"}]. */
json_t *doctor_solvers(bool *ok);
/* What should be looked at and what to do: [{"finding", "do"}]; reads the finished document. */
json_t *doctor_findings(const json_t *document);

#endif
