/* NCCL, loaded at run time: the few functions that are needed, declared after its public manual
 * (docs.nvidia.com/deeplearning/nccl/user-guide, "NCCL API"). */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/comm.h"
#include "cuda/planner.h"

typedef struct nccl_id {
    char bytes[LPLB__NCCL_ID_BYTES];
} nccl_id;
typedef struct nccl_comm nccl_comm;
enum { NCCL_INT64 = 4 };

typedef struct nccl_functions {
    void *handle;
    int (*GetVersion)(int *version);
    int (*GetUniqueId)(nccl_id *id);
    int (*CommInitRank)(nccl_comm **comm, int ranks, nccl_id id, int rank);
    int (*AllGather)(const void *send, void *receive, size_t count, int type, nccl_comm *comm,
                     cudaStream_t stream);
    int (*CommDestroy)(nccl_comm *comm);
    int (*CommAbort)(nccl_comm *comm);
    const char *(*GetErrorString)(int result);
} nccl_functions;

/* Never unloaded: the framework that brought it may go on using it. */
static nccl_functions nccl;

static lplb_status find(void *handle, const char *name, void *function) {
    void *symbol = dlsym(handle, name);
    if (!symbol) return LPLB_FAIL(LPLB_UNSUPPORTED, "the NCCL library has no %s", name);
    memcpy(function, &symbol, sizeof symbol); /* C has no cast from object to function pointers */
    return LPLB_OK;
}

lplb_status lplb__nccl_load(int *version) {
    const char *named = getenv("LPLB_NCCL_LIBRARY"), *name = named ? named : "libnccl.so.2";
    if (!nccl.handle) {
        nccl_functions found = {.handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)};
        if (!found.handle)
            return LPLB_FAIL(LPLB_UNSUPPORTED,
                             "NCCL is not there (%s): install it, or name the file in "
                             "LPLB_NCCL_LIBRARY",
                             dlerror());
        LPLB_TRY(find(found.handle, "ncclGetVersion", &found.GetVersion));
        LPLB_TRY(find(found.handle, "ncclGetUniqueId", &found.GetUniqueId));
        LPLB_TRY(find(found.handle, "ncclCommInitRank", &found.CommInitRank));
        LPLB_TRY(find(found.handle, "ncclAllGather", &found.AllGather));
        LPLB_TRY(find(found.handle, "ncclCommDestroy", &found.CommDestroy));
        LPLB_TRY(find(found.handle, "ncclCommAbort", &found.CommAbort));
        LPLB_TRY(find(found.handle, "ncclGetErrorString", &found.GetErrorString));
        nccl = found;
    }
    *version = 0;
    nccl.GetVersion(version);
    return LPLB_OK;
}

static lplb_status check(int result, const char *what) {
    if (result == 0) return LPLB_OK;
    return LPLB_FAIL(LPLB_DEVICE, "%s: %s", what, nccl.GetErrorString(result));
}

lplb_status lplb__nccl_new_id(unsigned char *id) {
    nccl_id made;
    LPLB_TRY(check(nccl.GetUniqueId(&made), "ncclGetUniqueId"));
    memcpy(id, made.bytes, sizeof made.bytes);
    return LPLB_OK;
}

/* ncclInt64: 8 bytes are all that matters. */
static lplb_status all_gather(void *state, const void *send, void *receive, int64_t bytes,
                              lplb_cuda_stream stream) {
    return check(nccl.AllGather(send, receive, (size_t)bytes / 8, NCCL_INT64, state, stream),
                 "ncclAllGather");
}
static void abort_comm(void *state) { nccl.CommAbort(state); }
static void destroy_comm(void *state) { nccl.CommDestroy(state); }

lplb_status lplb__nccl_create(const unsigned char *id, int32_t rank, int32_t ranks,
                              lplb__cuda_gatherer *out) {
    nccl_id shared;
    nccl_comm *comm;
    memcpy(shared.bytes, id, sizeof shared.bytes);
    LPLB_TRY(check(nccl.CommInitRank(&comm, ranks, shared, rank), "ncclCommInitRank"));
    *out = (lplb__cuda_gatherer){all_gather, abort_comm, destroy_comm, comm};
    return LPLB_OK;
}
