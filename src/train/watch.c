#include "train/watch.h"

static lplb_status create(const run_options *o, int32_t ranks, lplb_monitor **out) {
    bool serve = o->metrics_port >= 0;
    const char *address = *o->metrics_address ? o->metrics_address : "127.0.0.1";
    lplb_monitor_config config = {.struct_size = sizeof config,
                                  .ranks = ranks,
                                  .job = "lplb train",
                                  .serve = serve,
                                  .port = serve ? o->metrics_port : 0,
                                  .address = serve ? address : NULL,
                                  .event_log = *o->event_log ? o->event_log : NULL,
                                  .trace = *o->chrome_trace ? o->chrome_trace : NULL};
    LPLB_TRY(lplb_monitor_create(&config, out));
    int32_t port = lplb_monitor_port(*out);
    if (serve) fprintf(stderr, "metrics: http://%s:%d/, or lplb top %d\n", address, port, port);
    return LPLB_OK;
}

lplb_status watch_open(const run_options *o, lplb__group *world, lplb_monitor **out) {
    bool wanted = o->metrics_port >= 0 || *o->event_log || *o->chrome_trace;
    lplb_status status = LPLB_OK;
    *out = NULL;
    if (!wanted) return LPLB_OK;
    if (world->rank == 0)
        status = create(o, o->trainer.expert_ranks ? o->trainer.expert_ranks : world->size, out);
    return lplb__group_agree(world, status, "opening the monitor");
}

/* Memory of a slot: weights, gradients and two moments. */
static int64_t redundant_bytes(const trainer *t) {
    const experts *x = t->model->experts;
    return 4 * (int64_t)sizeof(real) * x->expert_items * x->placement->layers * t->config.redundant;
}

lplb_status watch_step(lplb_monitor *monitor, const trainer *t, const step_report *r) {
    const experts *x = t->model->experts;
    int64_t *rank_load;
    if (!monitor) return LPLB_OK;
    lplb_monitor_step_data data = {.step = r->step,
                                   .tokens = r->tokens,
                                   .step_ns = (int64_t)(1e9 * r->seconds),
                                   .plan_ns = (int64_t)(1e9 * x->plan_seconds),
                                   .dispatch_ns = (int64_t)(1e9 * x->dispatch_seconds),
                                   .comm_ns = (int64_t)(1e9 * x->comm_seconds),
                                   .comm_bytes = x->comm_bytes,
                                   .moved_tokens = x->moved_tokens};
    LPLB_TRY(LPLB_CALLOC(rank_load, x->group->size));
    /* loads of the last micro-batch; the imbalance is the mean over all of them */
    lplb_monitor_measure(x->plan_loads, x->placement->layers, x->group->size, rank_load, &data);
    data.imbalance = r->imbalance_after;
    lplb_monitor_step(monitor, &data);
    lplb_monitor_redundant_bytes(monitor, redundant_bytes(t));
    lplb__free(rank_load);
    return LPLB_OK;
}
