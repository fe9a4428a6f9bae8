#include "train/run.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "io/output.h"
#include "train/checkpoint.h"
#include "train/generate.h"
#include "train/memory.h"
#include "train/record.h"
#include "train/text.h"
#include "train/watch.h"

/* Sums over the steps of this run. */
typedef struct totals {
    int64_t steps, tokens, moved_slots, rebalances;
    double seconds, before, after, cpu_max, cpu_mean, plan_us, first_loss, last_loss, move_seconds;
} totals;

typedef struct run {
    const run_options *options;
    lplb__group *world;
    corpus text, held_out;
    int64_t text_bytes, documents; /* of both */
    char digest[SHA256_HEX_BYTES]; /* of the text as it was read */
    trainer *trainer;
    lplb_monitor *monitor; /* of rank 0, if asked for */
    recorder recorder;
    FILE *log; /* JSON lines, rank 0 */
    totals sum;
    double validation; /* last one, < 0 if none was made */
    memory_plan memory;
    int64_t base_bytes, peak_bytes; /* peak: of the rank with the most */
    int32_t stopped;                /* signal that ended the training early, or 0 */
    char changes[CHANGES_BYTES];    /* since the checkpoint that is resumed */
    bool leader, terminal;
} run;

/* ---- being told to stop ---- */

static volatile sig_atomic_t stop_signal;

enum { IMPATIENT_NS = 1000000000 };

/* The step under way is finished first. A second signal ends the program at once, unless it comes
 * within a second, when it was meant for the first. SIGUSR1 is how lplb train hands SIGINT and
 * SIGTERM on through mpirun, more than once if need be. */
static void note_signal(int signal_number) {
    static volatile int64_t asked_ns;
    if (stop_signal && signal_number != SIGUSR1 && lplb__now_ns() - asked_ns > IMPATIENT_NS) {
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
    if (stop_signal) return;
    asked_ns = lplb__now_ns();
    stop_signal = signal_number == SIGUSR1 ? SIGTERM : signal_number;
}

static void listen_to_signals(void) {
    struct sigaction action = {.sa_handler = note_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

/* ---- printing ---- */

static void clear_progress(const run *r) {
    if (r->terminal) fprintf(stderr, "\r\033[K");
}

static void print_header(const run *r) {
    const run_options *o = r->options;
    const model *m = r->trainer->model;
    char products[64];
    if (!r->leader || o->json) return;
    gemm_name(m->ops->rounds, products, sizeof products);
    int64_t expert_params =
        (int64_t)m->layout.moe_layers * m->config.experts * m->layout.expert_items;
    int64_t active =
        m->layout.items + (int64_t)m->layout.moe_layers * m->config.topk * m->layout.expert_items;
    printf("text %s: %.2f MB, %lld document%s, sha256 %s\n", o->text, (double)r->text_bytes * 1e-6,
           (long long)r->documents, r->documents == 1 ? "" : "s", r->digest);
    printf("model: %.2f M parameters, %.2f M active a token; %d layers, %d experts, top-%d; %s, "
           "products by %s\n",
           (double)(m->layout.items + expert_params) * 1e-6, (double)active * 1e-6,
           m->config.layers, m->config.experts, m->config.topk, m->ops->rounds ? "bf16" : REAL_NAME,
           products);
    printf("%d rank%s (%d expert-parallel), %d expert slots each; %lld sequences of %d a step\n\n",
           r->world->size, r->world->size == 1 ? "" : "s", m->group->size, m->experts->local_slots,
           (long long)o->trainer.global_batch, m->config.context);
    printf("%6s %8s %9s %9s %9s | %19s | %8s | %s\n", "step", "loss", "grad", "rate", "tokens/s",
           "imbalance, balanced", "plan us", "experts' CPU s max/mean");
}

static void print_step(const run *r, const step_report *s) {
    int64_t steps = r->options->trainer.optimizer.steps;
    int64_t every = steps / 20 > 0 ? steps / 20 : 1;
    double rate = (double)s->tokens / s->seconds;
    bool shown = r->sum.steps == 1 || (s->step + 1) % every == 0 || s->step + 1 == steps;
    if (!r->leader || r->options->json) return;
    if (shown) {
        clear_progress(r);
        printf("%6lld %8.4f %9.3f %9.2e %9.0f | %8.3f -> %7.3f | %8.2f | %.3f / %.3f\n",
               (long long)s->step + 1, s->loss, s->grad_norm, s->rate, rate, s->imbalance_before,
               s->imbalance_after, s->plan_us, s->expert_cpu_max, s->expert_cpu_mean);
        fflush(stdout);
    }
    if (r->terminal)
        fprintf(stderr,
                "\r\033[Kstep %lld of %lld, loss %.4f, %.0f tokens/s, imbalance %.3f -> %.3f, plan "
                "%.1f us",
                (long long)s->step + 1, (long long)steps, s->loss, rate, s->imbalance_before,
                s->imbalance_after, s->plan_us);
}

/* validated: r->validation is of this step. */
static void log_step(const run *r, const step_report *s, bool validated) {
    if (!r->log) return;
    json_t *line = json_pack(
        "{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:o}",
        "schema", "lplb.train_step/1", "step", (json_int_t)s->step + 1, "loss", s->loss,
        "balance_loss", s->balance, "z_loss", s->z, "grad_norm", s->grad_norm, "rate", s->rate,
        "tokens", (json_int_t)s->tokens, "dropped", (json_int_t)s->dropped, "seconds", s->seconds,
        "imbalance_before", s->imbalance_before, "imbalance_after", s->imbalance_after, "plan_us",
        s->plan_us, "expert_cpu_max", s->expert_cpu_max, "expert_cpu_mean", s->expert_cpu_mean,
        "validation_loss", validated ? json_real(r->validation) : json_null());
    json_dumpf(line, r->log, JSON_COMPACT | JSON_REAL_PRECISION(12));
    fputc('\n', r->log);
    fflush(r->log);
    json_decref(line);
}

static lplb_status print_summary(const run *r) {
    const totals *s = &r->sum;
    double n = s->steps > 0 ? (double)s->steps : 1;
    if (!r->leader) return LPLB_OK;
    clear_progress(r);
    if (!r->options->json) {
        printf("\n%lld steps, %.0f tokens/s; loss %.4f -> %.4f", (long long)s->steps,
               (double)s->tokens / s->seconds, s->first_loss, s->last_loss);
        if (r->validation >= 0) printf(", held-out text %.4f", r->validation);
        printf("\nimbalance %.3f without balancing, %.3f as planned; experts' CPU time on the "
               "slowest rank %.3f s a step, mean %.3f s\n",
               s->before / n, s->after / n, s->cpu_max / n, s->cpu_mean / n);
        if (s->rebalances > 0)
            printf("%lld placements, %lld expert copies moved, steps waited %.2f s for them\n",
                   (long long)s->rebalances, (long long)s->moved_slots, s->move_seconds);
        printf("memory of a rank: %.1f MB by formula, %.1f MB at most\n",
               (double)r->memory.total * 1e-6, (double)r->peak_bytes * 1e-6);
        return LPLB_OK;
    }
    json_t *out = json_pack(
        "{s:s, s:I, s:I, s:I, s:f, s:f, s:o, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:i, s:I, s:I, "
        "s:I}",
        "schema", "lplb.train/1", "steps", (json_int_t)s->steps, "step",
        (json_int_t)r->trainer->step, "tokens", (json_int_t)s->tokens, "first_loss", s->first_loss,
        "last_loss", s->last_loss, "validation_loss",
        r->validation >= 0 ? json_real(r->validation) : json_null(), "tokens_per_s",
        (double)s->tokens / s->seconds, "imbalance_before", s->before / n, "imbalance_after",
        s->after / n, "expert_cpu_max", s->cpu_max / n, "expert_cpu_mean", s->cpu_mean / n,
        "rebalances", (json_int_t)s->rebalances, "moved_slots", (json_int_t)s->moved_slots, "ranks",
        r->world->size, "memory_base", (json_int_t)r->base_bytes, "memory_planned",
        (json_int_t)r->memory.total, "memory_peak", (json_int_t)r->peak_bytes);
    json_dumpf(out, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(out);
    return LPLB_OK;
}

/* ---- the run ---- */

static lplb_status validate(run *r) {
    int64_t begin = lplb_range_begin("validate");
    LPLB_TRY(
        trainer_evaluate(r->trainer, &r->held_out, r->options->validate_sequences, &r->validation));
    lplb_range_end(r->monitor, "validate", 0, begin);
    clear_progress(r);
    if (r->leader && !r->options->json)
        printf("%6lld %8.4f on held-out text\n", (long long)r->trainer->step, r->validation);
    return LPLB_OK;
}

static lplb_status save(run *r) {
    int64_t begin = lplb_range_begin("checkpoint");
    LPLB_TRY(checkpoint_save(r->trainer, r->options->checkpoint));
    lplb_range_end(r->monitor, "checkpoint", 0, begin);
    return LPLB_OK;
}

/* Every rank calls; said by one. */
static lplb_status stop_early(run *r, int32_t signal_number, bool saved) {
    const char *folder = r->options->checkpoint;
    r->stopped = signal_number;
    if (*folder && !saved) LPLB_TRY(save(r));
    clear_progress(r);
    if (!r->leader) return LPLB_OK;
    fprintf(stderr, "lplb train: told to stop after step %lld: ", (long long)r->trainer->step);
    if (*folder) fprintf(stderr, "saved in %s, --resume goes on\n", folder);
    else fprintf(stderr, "no --checkpoint, so nothing is saved\n");
    return LPLB_OK;
}

static void add_up(totals *sum, const step_report *s) {
    if (sum->steps++ == 0) sum->first_loss = s->loss;
    sum->last_loss = s->loss;
    sum->tokens += s->tokens;
    sum->seconds += s->seconds;
    sum->before += s->imbalance_before;
    sum->after += s->imbalance_after;
    sum->cpu_max += s->expert_cpu_max;
    sum->cpu_mean += s->expert_cpu_mean;
}

/* What the manager has done since the run began, or since it was resumed. */
static void count_moves(run *r, int sign) {
    const balancer *b = r->trainer->balancer;
    lplb_manager_stats stats;
    if (!b) return;
    lplb_manager_get_stats(b->manager, &stats);
    r->sum.rebalances += sign * stats.adopted;
    r->sum.moved_slots += sign * stats.moves;
    r->sum.move_seconds = b->move_seconds;
}

static lplb_status train_all(run *r) {
    const run_options *o = r->options;
    trainer *t = r->trainer;
    count_moves(r, -1);
    while (t->step < o->trainer.optimizer.steps && !r->stopped) {
        step_report s;
        LPLB_TRY(trainer_step(t, &s));
        add_up(&r->sum, &s);
        LPLB_TRY(watch_step(r->monitor, t, &s));
        print_step(r, &s);
        bool last = t->step == o->trainer.optimizer.steps;
        bool validating = (last || (o->validate_every && t->step % o->validate_every == 0)) &&
                          r->held_out.bytes > o->trainer.model.context;
        if (validating) LPLB_TRY(validate(r));
        log_step(r, &s, validating);
        bool saving =
            *o->checkpoint && (last || (o->checkpoint_every && t->step % o->checkpoint_every == 0));
        if (saving) LPLB_TRY(save(r));
        if (s.stop && !last) LPLB_TRY(stop_early(r, s.stop, saving));
    }
    count_moves(r, 1);
    return LPLB_OK;
}

/* Rank 0 reads the text and sends it, so that all ranks see the same and a package is needed once.
 */
static lplb_status share_text(run *r) {
    int64_t bytes = 0;
    int32_t status = LPLB_OK;
    if (r->leader) {
        status = text_add(&r->text, r->options->text);
        bytes = status == LPLB_OK ? r->text.bytes : -1;
        r->documents = r->text.documents;
        sha256_hex(r->text.byte, r->text.bytes, r->digest);
    }
    LPLB_TRY(r->world->table->broadcast(r->world, &bytes, sizeof bytes, 0));
    if (bytes < 0)
        return r->leader ? (lplb_status)status
                         : LPLB_FAIL(LPLB_REMOTE, "rank 0 could not read the text");
    if (!r->leader) {
        r->text.byte = lplb__malloc((size_t)bytes);
        if (!r->text.byte) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the text");
        r->text.bytes = r->text.capacity = bytes;
    }
    LPLB_TRY(r->world->table->broadcast(r->world, r->text.byte, bytes, 0));
    LPLB_TRY(r->world->table->broadcast(r->world, r->digest, sizeof r->digest, 0));
    r->text_bytes = bytes;
    int64_t first = bytes - (int64_t)((double)bytes * r->options->held_out);
    return corpus_split(&r->text, first, &r->held_out);
}

/* Instead of taking something from a checkpoint. */
static bool trains(const run_options *o) { return !*o->generate && !*o->export_to; }

/* Every rank must have been given the same options. */
static lplb_status compare_options(const run *r) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    if (!memory) return LPLB_FAIL(LPLB_NO_MEMORY, "no memory for the options");
    run_options_write(r->options, memory);
    fclose(memory);
    uint64_t hash = 1469598103934665603u; /* FNV-1a */
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211u;
    free(text);
    uint64_t first = hash;
    LPLB_TRY(r->world->table->broadcast(r->world, &first, sizeof first, 0));
    int64_t different = first != hash;
    LPLB_TRY(r->world->table->all_reduce_sum(r->world, &different, 1, ELEMENT_INT64));
    if (different)
        return LPLB_FAIL(LPLB_DISAGREE,
                         "%lld ranks have other options than rank 0; start all with "
                         "the same",
                         (long long)different);
    return LPLB_OK;
}

static lplb_status plan_memory(run *r) {
    const run_options *o = r->options;
    int64_t tokens =
        o->trainer.optimizer.steps * o->trainer.global_batch * o->trainer.model.context;
    if (o->record_tokens > 0 && tokens > o->record_tokens) tokens = o->record_tokens;
    memory_input in = {.config = &o->trainer,
                       .ranks = r->world->size,
                       .leader = r->leader,
                       .moves = o->trainer.mode != MODE_NONE && o->trainer.rebalance_every > 0,
                       .checkpoints = *o->checkpoint,
                       .recorded_tokens = *o->record_routing ? tokens : 0,
                       .text_bytes = r->text_bytes,
                       .held_out_bytes = r->held_out.bytes,
                       .base_bytes = r->base_bytes,
                       .run = r->trainer};
    return memory_predict(&in, &r->memory);
}

/* By the formula, with the rows that the experts really had, and measured: of the rank with the
 * largest peak. */
static lplb_status measure_memory(run *r) {
    LPLB_TRY(plan_memory(r));
    int64_t own[3] = {memory_peak(), r->memory.total, r->base_bytes}, *all;
    LPLB_TRY(LPLB_CALLOC(all, 3 * r->world->size));
    lplb_status status = r->world->table->all_gather(r->world, own, all, sizeof own);
    r->peak_bytes = own[0];
    for (int i = 0; i < r->world->size; i++)
        if (all[3 * i] > r->peak_bytes) {
            r->peak_bytes = all[3 * i];
            r->memory.total = all[3 * i + 1];
            r->base_bytes = all[3 * i + 2];
        }
    lplb__free(all);
    return status;
}

/* By the leader: what is written in the end is found to be writable before the first step. */
static lplb_status probe_output(const char *path) {
    lplb__output probe;
    if (!*path) return LPLB_OK;
    LPLB_TRY(lplb__output_open(path, &probe));
    lplb__output_abort(&probe);
    return LPLB_OK;
}

static lplb_status probe_outputs(const run_options *o) {
    if (o->plan_memory) return LPLB_OK;
    LPLB_TRY(probe_output(o->export_to));
    if (!trains(o)) return LPLB_OK;
    if (*o->checkpoint) LPLB_TRY(checkpoint_prepare(o->checkpoint, o->resume, o->checkpoint_step));
    return probe_output(o->record_routing);
}

/* The model is the checkpoint's; where an option that was given says otherwise, loading it fails
 * with both. No text is needed. */
static lplb_status open_checkpoint(run *r) {
    run_options o = *r->options;
    model_config stored = o.trainer.model;
    LPLB_TRY(checkpoint_model(o.checkpoint, o.checkpoint_step, &stored));
    run_options_adopt_model(&o, &stored);
    o.trainer.micro_batch = 1;
    o.trainer.global_batch = r->world->size;
    o.trainer.mode = MODE_NONE;
    o.trainer.redundant = 0;
    LPLB_TRY(trainer_create(&o.trainer, r->world, NULL, &r->trainer));
    return checkpoint_load(r->trainer, o.checkpoint, o.checkpoint_step, false, NULL);
}

static lplb_status begin_with(run *r) {
    const run_options *o = r->options;
    int64_t from = o->checkpoint_step;
    if (*o->init) return weights_load(r->trainer, o->init);
    if (!o->resume) return LPLB_OK;
    if (from == 0) LPLB_TRY(checkpoint_latest(o->checkpoint, &from));
    if (from >= 0)
        return checkpoint_load(r->trainer, o->checkpoint, o->checkpoint_step, !o->resume_changed,
                               r->changes);
    if (r->leader) fprintf(stderr, "no checkpoint in %s: starting anew\n", o->checkpoint);
    return LPLB_OK;
}

static lplb_status open_run(run *r) {
    const run_options *o = r->options;
    lplb_status status = LPLB_OK;
    LPLB_TRY(compare_options(r));
    if (o->trainer.mode == MODE_LPLB && r->world->size == 1 && trains(o))
        return LPLB_FAIL(LPLB_INVALID, "mode lplb balances ranks, and there is one; give --ranks 2 "
                                       "or more, or --mode none --redundant 0");
    LPLB_TRY(lplb__group_agree(r->world, r->leader ? probe_outputs(o) : LPLB_OK,
                               "before the first step"));
    if (!trains(o) && !o->plan_memory) return open_checkpoint(r);
    LPLB_TRY(memory_base(&o->trainer, r->world, &r->base_bytes));
    LPLB_TRY(share_text(r));
    LPLB_TRY(plan_memory(r));
    if (o->plan_memory) return LPLB_OK;
    trainer_config config = o->trainer;
    LPLB_TRY(watch_open(o, r->world, &r->monitor));
    config.monitor = r->monitor;
    config.stop = &stop_signal;
    memcpy(config.text_digest, r->digest, sizeof r->digest);
    LPLB_TRY(trainer_create(&config, r->world, &r->text, &r->trainer));
    LPLB_TRY(begin_with(r));
    if (*o->log && r->leader && !(r->log = fopen(o->log, o->resume ? "a" : "w")))
        status = LPLB_FAIL(LPLB_IO, "cannot write %s: %s", o->log, strerror(errno));
    return lplb__group_agree(r->world, status, "opening the log");
}

static void close_run(run *r) {
    trainer_destroy(r->trainer);
    lplb_monitor_destroy(r->monitor);
    corpus_destroy(&r->text);
    corpus_destroy(&r->held_out);
    if (r->log) fclose(r->log);
}

/* What was recorded is written after a failure too; the failure is what is reported. */
static lplb_status finish_recording(run *r, lplb_status status) {
    const char *path = r->options->record_routing;
    char reason[512];
    snprintf(reason, sizeof reason, "%s", status == LPLB_OK ? "" : lplb_error_message());
    lplb_status written = recorder_write(&r->recorder, r->trainer, path);
    if (r->leader && written == LPLB_OK) {
        clear_progress(r);
        if (status != LPLB_OK)
            fprintf(stderr, "recorded %lld tokens before the failure: %s\n",
                    (long long)r->recorder.tokens, path);
        else if (r->recorder.tokens < r->recorder.seen)
            fprintf(stderr, "recorded the first %lld of %lld tokens (--record-tokens): %s\n",
                    (long long)r->recorder.tokens, (long long)r->recorder.seen, path);
    }
    recorder_finish(&r->recorder, r->trainer);
    if (status != LPLB_OK) return LPLB_FAIL(status, "%s", reason);
    return lplb__group_agree(r->world, written, "writing the recorded routing");
}

static lplb_status train(run *r) {
    const run_options *o = r->options;
    lplb_status status = LPLB_OK;
    if (r->trainer->step >= o->trainer.optimizer.steps) { /* a job that is queued once more */
        if (r->leader)
            fprintf(stderr,
                    "lplb train: %s is at step %lld already; more --steps go on from there\n",
                    o->checkpoint, (long long)r->trainer->step);
        return LPLB_OK;
    }
    if (r->leader && *r->changes)
        fprintf(stderr, "lplb train: changed since the checkpoint: %s\n", r->changes);
    print_header(r);
    if (r->leader && !o->json && r->trainer->step > 0)
        printf("going on after step %lld\n", (long long)r->trainer->step);
    if (*o->record_routing) status = recorder_start(&r->recorder, r->trainer, o->record_tokens);
    if (status == LPLB_OK) status = train_all(r);
    if (*o->record_routing) status = finish_recording(r, status);
    if (status == LPLB_OK) status = measure_memory(r);
    if (status == LPLB_OK) status = print_summary(r);
    clear_progress(r);
    return status;
}

static lplb_status do_what_is_asked(run *r) {
    const run_options *o = r->options;
    if (o->plan_memory) {
        if (r->leader) memory_print(&r->memory, r->world->size, o->json, stdout);
        return LPLB_OK;
    }
    if (*o->export_to) {
        LPLB_TRY(weights_save(r->trainer, o->export_to));
        if (r->leader && !o->json)
            printf("weights after step %lld of %s: %s\n", (long long)r->trainer->step,
                   o->checkpoint, o->export_to);
        return LPLB_OK;
    }
    if (*o->generate)
        return generate_text(r->trainer, o->generate, o->generate_bytes, o->temperature,
                             o->trainer.seed, stdout);
    return train(r);
}

lplb_status run_training(const run_options *o, lplb__group *world, int32_t *stopped) {
    const char *term = getenv("TERM");
    run r = {.options = o, .world = world, .validation = -1, .leader = world->rank == 0};
    r.terminal = r.leader && isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"));
    listen_to_signals();
    lplb_status status = open_run(&r);
    if (status == LPLB_OK) status = do_what_is_asked(&r);
    *stopped = r.stopped;
    close_run(&r);
    return status;
}
