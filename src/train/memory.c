#define _GNU_SOURCE /* mremap */
#include "train/memory.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- the formula ---- */

/* Numbers (not bytes) that one layer of each kind keeps from forward to backward, and that the
 * backward works with. Names as in docs/training.md. */
typedef struct sizes {
    int64_t N, D, E, K, F, kv; /* tokens of a micro-batch, widths */
    int64_t slots;             /* of a rank */
    int64_t kept;              /* bytes of a number that products read */
    bool rounds;               /* these are no reals */
} sizes;

static sizes sizes_of(const memory_input *in, int expert_ranks) {
    const model_config *c = &in->config->model;
    return (sizes){.N = in->config->micro_batch * c->context,
                   .D = c->width,
                   .E = c->experts,
                   .K = c->topk,
                   .F = c->expert_width,
                   .kv = (int64_t)c->width / c->heads * c->kv_heads,
                   .slots = c->experts / expert_ranks + in->config->redundant,
                   .kept = in->config->kept == KEPT_BF16 ? 2 : (int64_t)sizeof(real),
                   .rounds = in->config->kept == KEPT_BF16};
}

static void add_activations(const memory_input *in, const sizes *s, const param_layout *p,
                            int64_t *bytes) {
    const model_config *c = &in->config->model;
    const layer_tape *tape = in->run ? in->run->model->tape : NULL;
    int64_t r = sizeof(real), i4 = sizeof(int32_t), widest = 0, most = 0, slot_most = 0;
    for (int32_t l = 0; l < c->layers; l++) {
        int64_t ffn = p->layer[l].ffn_width;
        widest = ffn > widest ? ffn : widest;
        bytes[MEMORY_ATTENTION] +=
            s->N * (r * (3 * s->D + 2 * s->kv + c->heads + 2) + s->kept * 3 * s->D);
        bytes[MEMORY_DENSE] += s->kept * s->N * 2 * ffn;
        if (p->layer[l].moe < 0) continue;
        bytes[MEMORY_ROUTER] += s->N * (r * (2 * s->E + s->K + 1) + i4 * 2 * s->K);
        int64_t rows = tape ? tape[l].experts.most_rows : s->N * s->K;
        bytes[MEMORY_EXPERTS] +=
            s->kept * (rows * (s->D + 2 * s->F) + s->N * s->K * s->D) + i4 * s->N * s->K;
        int64_t slot_rows = tape ? tape[l].experts.most_slot_rows : rows / s->slots;
        most = rows > most ? rows : most;
        slot_most = slot_rows > slot_most ? slot_rows : slot_most;
    }
    bytes[MEMORY_HEAD] = s->N * (r * (s->D + c->vocab + 1) + s->kept * s->D);
    bytes[MEMORY_SCRATCH] = r * (s->N * (4 * s->D + 2 * s->kv + s->E + s->K) +
                                 (2 * ATTENTION_ROWS + s->D / c->heads) * c->context) +
                            s->kept * s->N * 3 * widest + i4 * s->N * (s->K + 1);
    bytes[MEMORY_EXCHANGE] =
        s->kept * (most * (2 * s->D + s->F) + slot_most * 2 * s->F + s->N * s->K * s->D);
    if (!s->rounds) return;
    int64_t operand = s->D > widest ? s->D : widest;
    operand = operand > c->vocab ? operand : c->vocab;
    bytes[MEMORY_SCRATCH] += s->N * (s->kept * operand + r * 2 * widest);
    bytes[MEMORY_EXCHANGE] += r * slot_most * (2 * s->F > s->D ? 2 * s->F : s->D);
}

/* Gradients of copies and experts that move have buffers that stay. Beforehand: as many copies come
 * as go, and a move changes all slots of a layer. */
static void add_copies(const memory_input *in, const sizes *s, const param_layout *p,
                       int64_t *bytes) {
    int64_t copies = 2 * (int64_t)p->moe_layers * in->config->redundant * p->expert_items;
    int64_t moved = in->moves ? 8 * s->slots * p->expert_items : 0;
    if (in->run) {
        copies = 0;
        for (int32_t l = 0; l < p->moe_layers; l++)
            copies += in->run->reducer->sum[l].send.most + in->run->reducer->sum[l].recv.most;
        moved = in->run->balancer ? mover_items(in->run->balancer->mover) : 0;
    }
    bytes[MEMORY_COPIES] = (int64_t)sizeof(real) * copies;
    bytes[MEMORY_MOVES] = (int64_t)sizeof(real) * moved;
}

/* Tokens of the recording; returned is what writing them takes beside: ids in one or two bytes,
 * once more for the archive, and compressed as far as equally frequent ids can be. */
static int64_t add_recording(const memory_input *in, const sizes *s, const param_layout *p,
                             int64_t *bytes) {
    enum { HASH_BYTES = 1 << 17, WINDOW_BYTES = 1 << 18 }; /* of zlib's deflate (zconf.h) */
    int64_t ids = p->moe_layers * s->K, recorded = in->leader ? in->recorded_tokens * ids : 0;
    int64_t packed = s->E <= 256 ? 1 : 2, bits = 0;
    if (in->recorded_tokens == 0) return 0;
    while ((int64_t)1 << bits < s->E) bits++;
    bytes[MEMORY_RECORD] = 2 * (s->N * (1 + in->ranks) * ids + recorded);
    if (recorded == 0) return 0;
    int64_t window = packed * recorded < WINDOW_BYTES ? packed * recorded : WINDOW_BYTES;
    return 2 * packed * recorded + bits * recorded / 8 + HASH_BYTES + window;
}

/* Sums over ranks hold every rank's piece of the replicated gradients; a checkpoint brings a
 * layer's experts to rank 0. They do not happen together, nor does writing the recording. */
static int64_t transient_bytes(const memory_input *in, const sizes *s, const param_layout *p,
                               int expert_ranks, int64_t writing) {
    int64_t r = sizeof(real), X = p->expert_items, M = p->moe_layers;
    int64_t sums = in->ranks > 1 ? r * p->items : 0, state = 3 * r * X;
    if (in->ranks > expert_ranks) sums += r * M * s->slots * X;
    int64_t saving = in->checkpoints ? (s->slots + (in->leader ? s->E : 0)) * state : 0;
    int64_t most = sums > saving ? sums : saving;
    return most > writing ? most : writing;
}

lplb_status memory_predict(const memory_input *in, memory_plan *out) {
    const trainer_config *c = in->config;
    int expert_ranks = c->expert_ranks ? c->expert_ranks : in->ranks;
    int64_t r = sizeof(real);
    param_layout p;
    *out = (memory_plan){0};
    LPLB_TRY(model_config_check(&c->model));
    lplb_status status = param_layout_create(&c->model, &p);
    if (status != LPLB_OK) {
        param_layout_destroy(&p);
        return status;
    }
    sizes s = sizes_of(in, expert_ranks);
    int64_t weights = r * (p.items + (int64_t)p.moe_layers * s.slots * p.expert_items);
    out->bytes[MEMORY_WEIGHTS] = out->bytes[MEMORY_GRADIENTS] = weights;
    out->bytes[MEMORY_MOMENTS] = 2 * weights;
    if (s.rounds) out->bytes[MEMORY_WEIGHTS] += weights / r * s.kept;
    add_activations(in, &s, &p, out->bytes);
    add_copies(in, &s, &p, out->bytes);
    out->bytes[MEMORY_TRANSIENT] =
        transient_bytes(in, &s, &p, expert_ranks, add_recording(in, &s, &p, out->bytes));
    out->bytes[MEMORY_TEXT] =
        in->text_bytes + in->held_out_bytes +
        (int64_t)sizeof(int32_t) * (in->text_bytes / c->model.context +
                                    3 * c->global_batch / in->ranks * c->model.context);
    out->bytes[MEMORY_BASE] = in->base_bytes > 0 ? in->base_bytes : 0;
    for (int i = 0; i < MEMORY_PARTS; i++) out->total += out->bytes[i];
    param_layout_destroy(&p);
    return LPLB_OK;
}

/* ---- printing ---- */

static const struct {
    const char *key, *text;
} parts[MEMORY_PARTS] = {
    {"weights", "weights"},
    {"gradients", "gradients"},
    {"moments", "AdamW's moments"},
    {"attention", "activations, attention"},
    {"dense", "activations, dense and shared feed-forward"},
    {"router", "activations, router"},
    {"experts", "activations, experts"},
    {"head", "activations, head"},
    {"scratch", "scratch of the backward"},
    {"exchange", "scratch of the experts, all-to-all"},
    {"copies", "gradients of copies on their way"},
    {"moves", "experts on their way to other slots"},
    {"recording", "recorded routing"},
    {"transient", "sums, checkpoint, recording's file: the most"},
    {"text", "text and batches"},
    {"base", "program and libraries, measured"},
};

void memory_print(const memory_plan *plan, int ranks, bool json, FILE *out) {
    if (json) {
        json_t *bytes = json_object();
        for (int i = 0; i < MEMORY_PARTS; i++)
            json_object_set_new(bytes, parts[i].key, json_integer(plan->bytes[i]));
        json_t *whole =
            json_pack("{s:s, s:i, s:o, s:I, s:I}", "schema", "lplb.train_memory/1", "ranks", ranks,
                      "bytes", bytes, "rank_bytes", (json_int_t)plan->total, "total_bytes",
                      (json_int_t)plan->total * ranks);
        json_dumpf(whole, out, JSON_COMPACT);
        fputc('\n', out);
        json_decref(whole);
        return;
    }
    fprintf(out, "%-44s %12s\n", "memory of a rank, by formula", "MB");
    for (int i = 0; i < MEMORY_PARTS; i++)
        fprintf(out, "%-44s %12.1f\n", parts[i].text, (double)plan->bytes[i] * 1e-6);
    fprintf(out, "%-44s %12.1f\n", "a rank", (double)plan->total * 1e-6);
    fprintf(out, "all %-40d %12.1f\n", ranks, (double)plan->total * ranks * 1e-6);
}

/* ---- measuring ---- */

#ifdef __SANITIZE_ADDRESS__
void memory_return_blocks(void) {} /* which watches malloc's blocks only */
#else
/* Large blocks are mappings of their own. M_MMAP_THRESHOLD would have malloc do so too, but for the
 * libraries' blocks as well, and OpenBLAS takes and frees 2 MB in every product on several threads.
 * Before each block lie 16 bytes with its own size, of which 0 says that it is malloc's. */
enum { LARGE_BYTES = 1 << 17, HEADER_BYTES = 16 };

static size_t *header_of(void *block) { return (size_t *)(void *)((char *)block - HEADER_BYTES); }

static void *take_block(size_t bytes, void *user) {
    (void)user;
    bool large = bytes >= LARGE_BYTES;
    if (bytes > SIZE_MAX - HEADER_BYTES) return NULL;
    bytes += HEADER_BYTES;
    void *start =
        large ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
              : malloc(bytes);
    if (!start || start == MAP_FAILED) return NULL;
    *(size_t *)start = large ? bytes : 0;
    return (char *)start + HEADER_BYTES;
}

static void free_block(void *block, void *user) {
    (void)user;
    size_t bytes = *header_of(block);
    if (bytes > 0) munmap(header_of(block), bytes);
    else free(header_of(block));
}

static void *enlarge_block(void *block, size_t bytes, void *user) {
    if (!block) return take_block(bytes, user);
    size_t mapped = *header_of(block);
    if (bytes > SIZE_MAX - HEADER_BYTES) return NULL;
    bytes += HEADER_BYTES;
    void *start = mapped > 0 ? mremap(header_of(block), mapped, bytes, MREMAP_MAYMOVE)
                             : realloc(header_of(block), bytes);
    if (!start || start == MAP_FAILED) return NULL;
    *(size_t *)start = mapped > 0 ? bytes : 0;
    return (char *)start + HEADER_BYTES;
}

void memory_return_blocks(void) {
    static const lplb_allocator blocks = {take_block, enlarge_block, free_block, NULL};
    lplb_set_allocator(&blocks);
}
#endif

/* A line of /proc/self/status, in bytes. */
static int64_t status_bytes(const char *field) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    int64_t bytes = -1;
    size_t n = strlen(field);
    while (file && bytes < 0 && fgets(line, sizeof line, file))
        if (!strncmp(line, field, n) && line[n] == ':')
            bytes = 1024 * strtoll(line + n + 1, NULL, 10);
    if (file) fclose(file);
    return bytes;
}

/* The products of a linear layer as wide as the run's, in all three directions, alone and added to
 * what is there: the libraries' buffers grow with them up to some size, and oneDNN makes code for
 * each kind. */
static lplb_status multiply_once(const trainer_config *c) {
    enum { TALLEST = 512, WIDEST = 2048 };
    const ops *o;
    int64_t D = c->model.width, wide = D, tall = c->micro_batch * c->model.context;
    wide = c->model.dense_width > wide ? c->model.dense_width : wide;
    wide = c->model.expert_width > wide ? c->model.expert_width : wide;
    wide = c->model.vocab > wide ? c->model.vocab : wide;
    wide = wide < WIDEST ? wide : WIDEST;
    tall = tall < TALLEST ? tall : TALLEST;
    D = D < TALLEST ? D : TALLEST;
    LPLB_TRY(ops_cpu(c->kept, &o));
    real *in, *weight, *out;
    const int64_t items = tall * D + wide * D + tall * wide;
    LPLB_TRY(LPLB_CALLOC(in, 2 * items));
    weight = in + tall * D;
    out = weight + wide * D;
    const kept *x = o->operand((kept *)(void *)(in + items), in, items);
    const kept *w = kept_at(o, x, tall * D), *dy = kept_at(o, x, tall * D + wide * D);
    for (int beta = 0; beta < 2; beta++) {
        o->linear_forward(out, x, w, tall, wide, D, (real)beta);
        o->linear_backward_weight(weight, dy, x, tall, wide, D);
        o->linear_backward_input(in, dy, w, tall, wide, D, (real)beta);
    }
    lplb__free(in);
    return LPLB_OK;
}

static lplb_status step_once(const trainer_config *c, lplb__group *world) {
    enum { CONTEXT = 16 };
    char text[4 * CONTEXT];
    memset(text, 'a', sizeof text);
    trainer_config small;
    trainer_config_default(&small);
    small.model.layers = 2;
    small.model.dense_layers = small.model.topk = 1;
    small.model.heads = small.model.kv_heads = 2;
    small.model.width = small.model.expert_width = small.model.dense_width = 16;
    small.model.context = CONTEXT;
    small.expert_ranks = c->expert_ranks;
    small.model.experts = c->expert_ranks ? c->expert_ranks : world->size;
    small.global_batch = world->size;
    small.micro_batch = 1;
    small.kept = c->kept;
    corpus letters = {0};
    trainer *t = NULL;
    step_report report;
    lplb_status status = corpus_add(&letters, text, sizeof text);
    if (status == LPLB_OK) status = trainer_create(&small, world, &letters, &t);
    if (status == LPLB_OK) status = trainer_step(t, &report);
    trainer_destroy(t);
    corpus_destroy(&letters);
    return status;
}

lplb_status memory_base(const trainer_config *config, lplb__group *world, int64_t *bytes) {
    LPLB_TRY(multiply_once(config));
    LPLB_TRY(step_once(config, world));
    *bytes = status_bytes("VmRSS");
    return LPLB_OK;
}

int64_t memory_peak(void) { return status_bytes("VmHWM"); }
