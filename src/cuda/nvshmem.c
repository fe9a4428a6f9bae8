/* NVSHMEM, loaded at run time: the few host functions that are needed, declared after its public
 * manual (docs.nvidia.com/nvshmem/api) for versions 3.x, whose structs carry version and size.
 *
 * Its symmetric memory takes the place of what CUDA IPC maps (peers.c), so ranks may also be on
 * several hosts of one NVLink domain. Ranks whose memory cannot be reached by loads and stores get
 * our row by a put on the stream. NVSHMEM cannot take back an all-gather that waits for a missing
 * rank; puts wait for nobody, and what does not come is found by the step itself. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cuda/comm.h"
#include "cuda/planner.h"

enum { WITH_UNIQUE_ID = 1 << 3, IS_INITIALIZED = 2, ID_BYTES = 128 };

typedef struct unique_id {
    int version;
    char internal[ID_BYTES - sizeof(int)];
} unique_id;
typedef struct unique_id_arguments {
    int version;
    unique_id *id;
    int rank, ranks;
} unique_id_arguments;
typedef struct init_arguments {
    int version;
    unique_id_arguments unique;
    char content[96];
} init_arguments;
typedef struct init_attributes {
    int version;
    void *mpi_comm;
    init_arguments arguments;
} init_attributes;
_Static_assert(sizeof(init_arguments) == 128 && sizeof(init_attributes) == 144, "as documented");
#define VERSION_1(type) ((1 << 16) + (int)sizeof(type))

typedef struct nvshmem_functions {
    void *handle;
    int (*get_uniqueid)(unique_id *id);
    int (*set_uniqueid)(int rank, int ranks, const unique_id *id, init_attributes *attributes);
    int (*init)(unsigned flags, init_attributes *attributes);
    int (*init_status)(void);
    int (*my_pe)(void);
    int (*n_pes)(void);
    void *(*malloc)(size_t bytes);
    void *(*ptr)(const void *address, int pe);
    void (*put_on_stream)(void *to, const void *from, size_t bytes, int pe, cudaStream_t stream);
} nvshmem_functions;

/* Never unloaded, never finalised: the program may use it too, and ending is collective. */
static nvshmem_functions nvshmem;

static lplb_status find(void *handle, const char *name, void *function) {
    void *symbol = dlsym(handle, name);
    if (!symbol) return LPLB_FAIL(LPLB_UNSUPPORTED, "the NVSHMEM library has no %s", name);
    memcpy(function, &symbol, sizeof symbol); /* C has no cast from object to function pointers */
    return LPLB_OK;
}

static lplb_status load(void) {
    const char *named = getenv("LPLB_NVSHMEM_LIBRARY"), *name = named;
    if (nvshmem.handle) return LPLB_OK;
    if (!name) name = "libnvshmem_host.so.3";
    nvshmem_functions found = {.handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL)};
    if (!found.handle)
        return LPLB_FAIL(LPLB_UNSUPPORTED,
                         "NVSHMEM 3 is not there (%s): install it (pip install "
                         "nvidia-nvshmem-cu13, or -cu12), or name the file in "
                         "LPLB_NVSHMEM_LIBRARY",
                         dlerror());
    LPLB_TRY(find(found.handle, "nvshmemx_get_uniqueid", &found.get_uniqueid));
    LPLB_TRY(find(found.handle, "nvshmemx_set_attr_uniqueid_args", &found.set_uniqueid));
    LPLB_TRY(find(found.handle, "nvshmemx_hostlib_init_attr", &found.init));
    LPLB_TRY(find(found.handle, "nvshmemx_init_status", &found.init_status));
    LPLB_TRY(find(found.handle, "nvshmem_my_pe", &found.my_pe));
    LPLB_TRY(find(found.handle, "nvshmem_n_pes", &found.n_pes));
    LPLB_TRY(find(found.handle, "nvshmem_malloc", &found.malloc));
    LPLB_TRY(find(found.handle, "nvshmem_ptr", &found.ptr));
    LPLB_TRY(find(found.handle, "nvshmemx_putmem_on_stream", &found.put_on_stream));
    nvshmem = found;
    return LPLB_OK;
}

/* ---- joining ---- */

/* Where a rank stands. */
typedef struct place {
    int32_t initialized, pe, pes;
    int32_t reaches_all; /* by loads and stores */
} place;

static place own_place(void) {
    place own = {.initialized = nvshmem.init_status() >= IS_INITIALIZED, .pe = -1};
    if (!own.initialized) return own;
    own.pe = nvshmem.my_pe();
    own.pes = nvshmem.n_pes();
    return own;
}

static lplb_status initialize(const lplb_cuda_comm *comm) {
    const lplb_cuda_comm_config *c = &comm->config;
    unique_id own = {.version = VERSION_1(unique_id)}, *ids;
    lplb_status status = LPLB_OK;
    if (c->rank == 0 && nvshmem.get_uniqueid(&own) != 0)
        status = LPLB_FAIL(LPLB_DEVICE, "nvshmemx_get_uniqueid failed");
    LPLB_TRY(lplb__cuda_all_agree(comm, status, "start NVSHMEM"));
    LPLB_TRY(LPLB_CALLOC(ids, c->ranks));
    status = lplb__cuda_meet(comm, &own, ids, sizeof own);
    if (status == LPLB_OK) {
        init_attributes attributes = {.version = VERSION_1(init_attributes)};
        attributes.arguments.version = VERSION_1(init_arguments);
        attributes.arguments.unique.version = VERSION_1(unique_id_arguments);
        int error = nvshmem.set_uniqueid(c->rank, c->ranks, &ids[0], &attributes);
        if (error == 0) error = nvshmem.init(WITH_UNIQUE_ID, &attributes);
        if (error != 0)
            status = LPLB_FAIL(LPLB_DEVICE,
                               "nvshmemx_hostlib_init_attr failed: error %d "
                               "(NVSHMEM_DEBUG=INFO says more)",
                               error);
    }
    lplb__free(ids);
    return lplb__cuda_all_agree(comm, status, "start NVSHMEM");
}

/* All ranks, or none, have NVSHMEM running; if none, it is started. places: of all ranks. */
static lplb_status find_places(const lplb_cuda_comm *comm, place *places) {
    int32_t running = 0, ranks = comm->config.ranks;
    place own = own_place();
    LPLB_TRY(lplb__cuda_meet(comm, &own, places, sizeof own));
    for (int32_t r = 0; r < ranks; r++) running += places[r].initialized;
    if (running == 0) {
        LPLB_TRY(initialize(comm));
        own = own_place();
        LPLB_TRY(lplb__cuda_meet(comm, &own, places, sizeof own));
    }
    for (int32_t r = 0; r < ranks; r++)
        if (!places[r].initialized || places[r].pes != ranks)
            return LPLB_FAIL(LPLB_UNSUPPORTED,
                             "NVSHMEM runs on rank %d with %d processing elements, but there are "
                             "%d ranks: its memory is of all of them or none",
                             r, places[r].pes, ranks);
    return LPLB_OK;
}

/* ---- rows by puts ---- */

typedef struct rail {
    uint64_t *words; /* ours, and at the same place everybody's */
    int64_t turn_words, row_words;
    int32_t rank, ranks;
    int32_t pe[];
} rail;

/* Both turns' rows: the place of a put is fixed when a graph is captured. The row of the turn
 * before is written once more as it is. */
static lplb_status put_rows(void *state, const void *send, void *receive, int64_t bytes,
                            lplb_cuda_stream stream) {
    const rail *r = state;
    (void)send, (void)receive;
    for (int32_t turn = 0; turn < 2; turn++) {
        uint64_t *row = r->words + turn * r->turn_words + r->rank * r->row_words;
        for (int32_t i = 1; i < r->ranks; i++) /* not all to the same rank at the same time */
            nvshmem.put_on_stream(row, row, (size_t)bytes, r->pe[(r->rank + i) % r->ranks], stream);
    }
    return LPLB_OK;
}

static lplb_status use_puts(lplb_cuda_comm *comm, const place *places) {
    int32_t ranks = comm->config.ranks;
    void *block;
    LPLB_TRY(lplb__calloc(&block, 1, sizeof(rail) + (size_t)ranks * sizeof(int32_t)));
    rail *r = block;
    r->words = comm->peers.words;
    r->turn_words = comm->peers.turn_words;
    r->row_words = comm->peers.row_words;
    r->rank = comm->config.rank;
    r->ranks = ranks;
    for (int32_t i = 0; i < ranks; i++) r->pe[i] = places[i].pe;
    comm->row = r->words + r->rank * r->row_words;
    comm->gatherer =
        (lplb__cuda_gatherer){.all_gather = put_rows, .destroy = lplb__free, .state = r};
    return LPLB_OK;
}

/* ---- memory ---- */

static lplb_status allocate(lplb_cuda_comm *comm, const place *places, place *own) {
    int64_t bytes = lplb__cuda_peers_bytes(comm);
    int32_t each = comm->config.ranks_per_node, ranks = comm->config.ranks;
    void *memory = nvshmem.malloc((size_t)bytes);
    if (!memory)
        return LPLB_FAIL(LPLB_NO_MEMORY,
                         "nvshmem_malloc of %lld bytes: raise NVSHMEM_SYMMETRIC_SIZE",
                         (long long)bytes);
    LPLB_CUDA_TRY(cudaMemsetAsync(memory, 0, (size_t)bytes, comm->stream));
    LPLB_CUDA_TRY(cudaStreamSynchronize(comm->stream));
    lplb__cuda_peers_place(comm, memory);
    own->reaches_all = ranks <= LPLB__CUDA_MAX_PEERS && (each == 0 || each == ranks);
    for (int32_t r = 0; r < ranks && own->reaches_all; r++) {
        void *theirs = nvshmem.ptr(memory, places[r].pe);
        own->reaches_all = theirs != NULL;
        if (theirs) comm->peers.target[r] = lplb__cuda_peers_words(theirs);
    }
    return LPLB_OK;
}

/* What is allocated stays with NVSHMEM: giving it back is collective, and a rank may be gone. */
static lplb_status share_memory(lplb_cuda_comm *comm, place *places) {
    place own = places[comm->config.rank];
    LPLB_TRY(lplb__cuda_all_agree(comm, allocate(comm, places, &own), "allocate with NVSHMEM"));
    LPLB_TRY(lplb__cuda_meet(comm, &own, places, sizeof own));
    bool direct = true;
    for (int32_t r = 0; r < comm->config.ranks; r++) direct = direct && places[r].reaches_all;
    comm->peers.nodes = 1;
    comm->peers.timeout_ns = comm->timeout_ns;
    comm->peers.local = comm->config.rank;
    comm->peers.ranks = direct ? comm->config.ranks : 0;
    return lplb__cuda_all_agree(comm, direct ? LPLB_OK : use_puts(comm, places), "allocate");
}

lplb_status lplb__cuda_join_nvshmem(lplb_cuda_comm *comm) {
    place *places;
    LPLB_TRY(lplb__cuda_all_agree(comm, load(), "use NVSHMEM"));
    LPLB_TRY(LPLB_CALLOC(places, comm->config.ranks));
    lplb_status status = find_places(comm, places);
    if (status == LPLB_OK) status = share_memory(comm, places);
    lplb__free(places);
    return status;
}
