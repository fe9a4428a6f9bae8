/* What the files of the host side share. */
#ifndef LPLB_CUDA_PLANNER_H
#define LPLB_CUDA_PLANNER_H

#include <cuda_runtime_api.h>
#include <lplb/cuda.h>
#include <stdbool.h>

#include "cuda/build_tables.h"
#include "cuda/comm.h"
#include "cuda/shape.h"

struct lplb_cuda_planner {
    uint64_t magic;
    int32_t device;
    int32_t sources, locality;
    int64_t max_ids;
    int64_t *speed;       /* [G] or NULL */
    lplb__cuda_step step; /* what all steps share */
    int32_t most_blocks;  /* that run at a time and that the step may use */
    int32_t threads;      /* of a block at most */
    struct {              /* the interior-point method, if that is the solver */
        lplb_ipm_options options;
        lplb__cuda_shared shared;
        uint32_t shared_bytes;
        int64_t *counts, *split; /* device [E], [P]: from one launch to the next */
    } ipm;
    struct {              /* locality, if there is any */
        int32_t *numbers; /* the arrays of step.local, one after another, until they are sent */
        int64_t n;
    } local;
    unsigned char *memory; /* device */
    int64_t bytes;
    /* Pinned: the tables that the device has or is about to have, and room for the next ones, so
     * that those which are refused leave no trace. */
    unsigned char *staging, *next;
    cudaStream_t stream; /* for making and reading; never for steps */
    cudaEvent_t staged, begun, planned;
    bool started;               /* a plan, and not yet joined */
    unsigned long long capture; /* in which it was; 0 = none */
    lplb_cuda_comm *comm;       /* or NULL */
    uint32_t options_tag;       /* of what the tables do not hold */
};

/* The device of the planner for as long as a call lasts. */
typedef struct lplb__cuda_scope {
    int before, now;
} lplb__cuda_scope;

lplb_status lplb__cuda_enter(const lplb_cuda_planner *planner, lplb__cuda_scope *scope);
void lplb__cuda_leave(const lplb__cuda_scope *scope);

/* LPLB_OK or LPLB_DEVICE with what was tried and CUDA's text. */
lplb_status lplb__cuda_check(cudaError_t error, const char *what);
#define LPLB_CUDA_TRY(call) LPLB_TRY(lplb__cuda_check((call), #call))

/* LPLB_STATE if the stream is being captured. */
lplb_status lplb__cuda_not_captured(cudaStream_t stream, const char *what);

/* The number of the stream's capture, 0 = none. */
lplb_status lplb__cuda_capture_of(cudaStream_t stream, unsigned long long *capture);

/* What ranks that share counts must have alike. */
lplb_status lplb__cuda_planner_tag(const lplb_cuda_planner *planner, int32_t *tag);

/* One argument, the step. */
typedef void lplb__cuda_kernel(const lplb__cuda_step step);
extern lplb__cuda_kernel lplb__cuda_step_kernel, lplb__cuda_ipm_kernel;
/* The small kernels, one for each kind of step (tables.h). */
extern lplb__cuda_kernel lplb__cuda_lean_solve_kernel, lplb__cuda_lean_step_kernel,
    lplb__cuda_lean_blocks_kernel;

/* One launch of the fused kernel; everything is checked. */
lplb_status lplb__cuda_launch(const lplb_cuda_planner *planner, lplb__cuda_step *step,
                              cudaStream_t stream);

/* ---- lean.c ---- */

/* Whether the step is one for the lean code: then its kind, and the block that it wants. */
void lplb__cuda_choose_lean(const lplb_cuda_planner *planner, lplb__cuda_step *step,
                            lplb__cuda_shape *shape);

/* ---- local.c ---- */

/* Where the sources live, if the config asks for locality. */
lplb_status lplb__cuda_local_init(lplb_cuda_planner *planner, const lplb_cuda_config *config);
/* Their place in device memory, room for planner->local.n numbers. */
void lplb__cuda_local_place(lplb_cuda_planner *planner, const int32_t *numbers);

/* ---- ipm.c ---- */

/* Options, and the kernel's shared memory for the largest shape. */
lplb_status lplb__cuda_ipm_init(lplb_cuda_planner *planner, int shared_bytes);
/* Whether the tables with this header are for it. */
lplb_status lplb__cuda_ipm_check(const lplb_cuda_planner *planner, const lplb__cuda_header *header);
/* A step that plans by it: count, plan and map, as far as the step's stages say. */
lplb_status lplb__cuda_ipm_launch(const lplb_cuda_planner *planner, const lplb__cuda_step *step,
                                  cudaStream_t stream);

#endif
