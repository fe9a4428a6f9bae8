/* The monitor: its figures against plain sums, its documents, its HTTP server, its files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <jansson.h>
#include <lplb/monitor.h>
#include <math.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/rng.h"
#include "cases/count_alloc.h"
#include "cases/run_cli.h"
#include "runtime/histogram.h"
#include "runtime/http.h"

enum { G = 4 };

static lplb_monitor *make(lplb_monitor_config config) {
    config.struct_size = sizeof config;
    config.ranks = G;
    lplb_monitor *m;
    lplb_status status = lplb_monitor_create(&config, &m);
    if (status != LPLB_OK) fail_msg("%s", lplb_error_message());
    return m;
}

static void test_histogram(void **state) {
    (void)state;
    static lplb__histogram h;
    lplb__rng rng;
    lplb__rng_seed(&rng, 41, 0);
    enum { N = 5000 };
    static double values[N];
    for (int i = 0; i < N; i++) {
        int64_t v = 1 + (int64_t)floor(exp(25 * lplb__rng_uniform(&rng)));
        values[i] = (double)v;
        lplb__histogram_add(&h, v);
    }
    for (int i = 1; i < N; i++) /* insertion sort: the oracle */
        for (int k = i; k > 0 && values[k - 1] > values[k]; k--) {
            double swap = values[k];
            values[k] = values[k - 1];
            values[k - 1] = swap;
        }
    static const double at[] = {0.01, 0.5, 0.9, 0.99, 1};
    for (int i = 0; i < 5; i++) {
        double want = values[(int)ceil(at[i] * N) - 1], got = lplb__histogram_percentile(&h, at[i]);
        assert_true(fabs(got - want) <= want / 16 + 1);
    }
    lplb__histogram_add(&h, 0);
    lplb__histogram_add(&h, -5);
    assert_int_equal(h.count, N);
    lplb__histogram_add(&h, INT64_MAX);
    assert_int_equal(h.count, N + 1);
}

static void test_figures(void **state) {
    (void)state;
    lplb_monitor *m = make((lplb_monitor_config){.job = "a \"job\"\n"});
    int64_t calls = count_alloc_calls();
    for (int i = 0; i < 2500; i++) {
        int64_t rank_load[G], loads[2 * G] = {30, 10, 10, 10, 0, 0, 0, 0};
        lplb_monitor_step_data step = {
            .step = i, .tokens = 60, .step_ns = 1000000, .comm_ns = 250000, .comm_bytes = 7};
        if (i >= 2490) loads[0] = 10; /* even: the last ten */
        lplb_monitor_measure(loads, 2, G, rank_load, &step);
        lplb_monitor_step(m, &step);
    }
    assert_int_equal(count_alloc_calls(), calls);
    lplb_monitor_summary s;
    double share[G];
    lplb_monitor_get(m, &s, share);
    assert_int_equal(s.steps, 2500);
    assert_int_equal(s.tokens, 150000);
    assert_int_equal(s.comm_bytes, 17500);
    assert_true(fabs(s.tokens_per_s - 60000) < 1);
    assert_true(fabs(s.comm_share - 0.25) < 1e-9);
    assert_true(fabs(s.step_s.mean - 1e-3) < 1e-9 && s.step_s.std < 1e-6);
    assert_true(s.imbalance[0].mean == 1 && s.imbalance[0].max == 1);
    assert_true(fabs(s.imbalance[1].mean - (0.9 * 2 + 0.1)) < 1e-9);
    assert_true(fabs(s.balancedness[1].mean - (0.9 * 0.5 + 0.1)) < 1e-9);
    assert_true(s.imbalance[3].max == 2 && s.imbalance[3].min == 1);
    assert_true(share[0] > 0.99 && share[1] > 0.3 && share[1] < 0.9);
    lplb_monitor_destroy(m);
}

static char *render(lplb_monitor *m, lplb_monitor_format format) {
    size_t bytes = 0;
    assert_int_equal(lplb_monitor_render(m, format, NULL, 0, &bytes), LPLB_RANGE);
    char *text = malloc(bytes + 64); /* memory figures may take a digit more meanwhile */
    assert_int_equal(lplb_monitor_render(m, format, text, bytes + 64, &bytes), LPLB_OK);
    return text;
}

/* Each family once, samples under their family, counters end in _total, the end is marked. */
static void check_metrics(const char *text) {
    char family[128] = "", type[32] = "", line[512];
    int samples = 0;
    for (const char *at = text; *at;) {
        size_t n = strcspn(at, "\n");
        assert_true(n < sizeof line);
        memcpy(line, at, n);
        line[n] = '\0';
        at += n + 1;
        if (!strncmp(line, "# TYPE ", 7)) {
            assert_int_equal(sscanf(line, "# TYPE %127s %31s", family, type), 2);
            char again[160];
            snprintf(again, sizeof again, "\n# TYPE %s ", family);
            assert_null(strstr(at, again));
        } else if (line[0] != '#') {
            assert_int_equal(strncmp(line, family, strlen(family)), 0);
            if (!strcmp(type, "counter"))
                assert_int_equal(strncmp(line + strlen(family), "_total", 6), 0);
            char *space = strrchr(line, ' '), *end;
            assert_non_null(space);
            strtod(space + 1, &end);
            assert_true(end != space + 1 && !*end);
            samples++;
        }
    }
    assert_true(samples > 80);
    assert_string_equal(text + strlen(text) - 6, "# EOF\n");
}

static void test_documents(void **state) {
    (void)state;
    lplb_monitor *m = make((lplb_monitor_config){.job = "a \"job\"\n\xff"});
    lplb_monitor_step_data step = {.step = 5, .tokens = 10, .step_ns = 3000, .imbalance = 1.5};
    lplb_monitor_step(m, &step);
    lplb_manager_stats stats = {.steps = 10, .adopted = 2, .moves = 33, .usable = 1};
    lplb_monitor_manager(m, &stats);
    char *json = render(m, LPLB_MONITOR_JSON);
    json_t *document = json_loads(json, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(document);
    assert_string_equal(json_string_value(json_object_get(document, "schema")), "lplb.monitor/1");
    assert_string_equal(json_string_value(json_object_get(document, "job")),
                        "a \"job\"\n\xef\xbf\xbd");
    const json_t *rebalance = json_object_get(document, "rebalance");
    assert_int_equal(json_integer_value(json_object_get(rebalance, "moves")), 33);
    json_decref(document);
    char *metrics = render(m, LPLB_MONITOR_OPENMETRICS), *text = render(m, LPLB_MONITOR_TEXT);
    check_metrics(metrics);
    assert_non_null(strstr(text, "33 experts"));
    free(json), free(metrics), free(text);
    lplb_monitor_destroy(m);
}

/* ---- HTTP ---- */

static void test_http_parse(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int status;
        const char *path;
    } cases[] = {
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "/"},
        {"HEAD /metrics?x=1 HTTP/1.0\n\n", 200, "/metrics"},
        {"GET / HTTP/1.1\r\nHost: x\r\n", 0, NULL},
        {"POST / HTTP/1.1\r\n\r\n", 405, NULL},
        {"GET / HTTP/2.0\r\n\r\n", 505, NULL},
        {"GET  HTTP/1.1\r\n\r\n", 400, NULL},
        {"GET x HTTP/1.1\r\n\r\n", 400, NULL},
        {"GET\r\n\r\n", 400, NULL},
        {"GET /a\x01 HTTP/1.1\r\n\r\n", 400, NULL},
        {"\r\n\r\n", 400, NULL},
        {"", 0, NULL},
    };
    lplb__http_request request;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(lplb__http_parse(cases[i].text, strlen(cases[i].text), &request),
                         cases[i].status);
        if (cases[i].path) assert_string_equal(request.path, cases[i].path);
    }
    /* Noise must never be read past its end. */
    lplb__rng rng;
    lplb__rng_seed(&rng, 42, 0);
    static const char letters[] = "GETHAD /? HTTP1.10\r\n\r\n\r\n:x\0";
    for (int i = 0; i < 20000; i++) {
        size_t n = (size_t)lplb__rng_below(&rng, 60);
        char *bytes = malloc(n ? n : 1);
        for (size_t k = 0; k < n; k++) bytes[k] = letters[lplb__rng_below(&rng, sizeof letters)];
        int status = lplb__http_parse(bytes, n, &request);
        assert_true(status == 0 || status == 200 || status >= 400);
        free(bytes);
    }
}

static int dial(int32_t port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static char *fetch(int32_t port, const char *request) {
    int fd = dial(port);
    char *out = calloc(1, 1 << 20);
    size_t used = 0;
    assert_int_equal(send(fd, request, strlen(request), 0), (ssize_t)strlen(request));
    for (ssize_t n; (n = recv(fd, out + used, (1 << 20) - 1 - used, 0)) > 0;) used += (size_t)n;
    close(fd);
    return out;
}

static void test_server(void **state) {
    (void)state;
    lplb_monitor *m = make((lplb_monitor_config){.serve = 1});
    int32_t port = lplb_monitor_port(m);
    assert_true(port > 0);
    lplb_event event = {.step = 3,
                        .kind = LPLB_EVENT_REFUSE,
                        .status = LPLB_INVALID,
                        .layer = -1,
                        .rank = -1,
                        .text = "because <b>\"x\"</b>"};
    lplb_monitor_event(m, &event);
    static const struct {
        const char *request, *status, *has;
    } cases[] = {
        {"GET / HTTP/1.1\r\n\r\n", "200", "<!DOCTYPE html>"},
        {"GET /metrics HTTP/1.1\r\n\r\n", "200", "# EOF"},
        {"GET /summary.json HTTP/1.1\r\n\r\n", "200", "lplb.monitor/1"},
        {"GET /summary.txt HTTP/1.1\r\n\r\n", "200", "imbalance"},
        {"GET /events.json HTTP/1.1\r\n\r\n", "200", "because <b>\\\"x\\\"</b>"},
        {"GET /nothing HTTP/1.1\r\n\r\n", "404", "There are"},
        {"POST / HTTP/1.1\r\n\r\n", "405", "Allow: GET"},
        {"nonsense\r\n\r\n", "400", "Only GET"},
    };
    int idle[7]; /* all connections but one, saying nothing: the others are served */
    for (int i = 0; i < 7; i++) idle[i] = dial(port);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *got = fetch(port, cases[i].request);
        assert_int_equal(strncmp(got + 9, cases[i].status, 3), 0);
        assert_non_null(strstr(got, cases[i].has));
        free(got);
    }
    char *head = fetch(port, "HEAD / HTTP/1.1\r\n\r\n");
    assert_null(strstr(head, "<!DOCTYPE"));
    free(head);
    for (int i = 0; i < 7; i++) close(idle[i]);
    char text[16];
    snprintf(text, sizeof text, "%d", port);
    run_result r;
    run_cli(&r, NULL, "top", "--once", text, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "refuse: because"));
    run_free(&r);
    run_cli(&r, NULL, "top", "--json", text, NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, "lplb.monitor/1"));
    run_free(&r);
    run_cli(&r, NULL, "top", "--once", "1", NULL);
    assert_int_equal(r.code, 1);
    assert_string_equal(r.out, "");
    run_free(&r);
    lplb_monitor *other;
    lplb_monitor_config taken = {.struct_size = sizeof taken, .ranks = 1, .serve = 1, .port = port};
    assert_int_equal(lplb_monitor_create(&taken, &other), LPLB_IO);
    taken.address = "example.org";
    assert_int_equal(lplb_monitor_create(&taken, &other), LPLB_INVALID);
    lplb_monitor_destroy(m);
}

/* ---- files ---- */

static void test_files(void **state) {
    (void)state;
    char *dir = scratch_create();
    char log[512], trace[512];
    snprintf(log, sizeof log, "%s", path_join(dir, "events.jsonl"));
    snprintf(trace, sizeof trace, "%s", path_join(dir, "trace.json"));
    lplb_monitor *m = make((lplb_monitor_config){.event_log = log, .trace = trace});
    for (int i = 0; i < 50; i++) {
        lplb_event event = {.step = i,
                            .kind = LPLB_EVENT_SKIP,
                            .layer = -1,
                            .rank = i % 3 - 1,
                            .text = "tab\there \xff"};
        lplb_monitor_event(m, &event);
        int64_t begin = lplb_range_begin("a \"range\"");
        lplb_range_end(m, "a \"range\"", i % 2, begin);
    }
    lplb_monitor_destroy(m);
    char *text = read_text(log, NULL);
    int lines = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), lines++) {
        json_t *event = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(event);
        assert_int_equal(json_integer_value(json_object_get(event, "step")), lines);
        json_decref(event);
    }
    assert_int_equal(lines, 50);
    free(text);
    text = read_text(trace, NULL);
    json_t *ranges = json_loads(text, 0, NULL);
    assert_int_equal(json_array_size(ranges), 50);
    json_decref(ranges);
    free(text);
    lplb_monitor_config config = {
        .struct_size = sizeof config, .ranks = 1, .event_log = path_join(dir, "no/such/folder")};
    assert_int_equal(lplb_monitor_create(&config, &m), LPLB_IO);
    scratch_remove(dir);
}

/* A process that is killed while it traces leaves a file that can be read. */
static void test_killed(void **state) {
    (void)state;
    char *dir = scratch_create();
    char trace[512];
    snprintf(trace, sizeof trace, "%s", path_join(dir, "trace.json"));
    size_t most = 0;
    for (int run = 0; run < 9 && most < 100; run++) {
        pid_t child = fork();
        if (child == 0) {
            lplb_monitor *m = make((lplb_monitor_config){.trace = trace});
            for (;;) {
                lplb_range_end(m, "work", 0, lplb_range_begin("work"));
                struct timespec pause = {0, 100000};
                nanosleep(&pause, NULL);
            }
        }
        assert_true(child > 0);
        struct timespec while_it_writes = {0, 100000000 * (run + 1)};
        nanosleep(&while_it_writes, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        char *text = read_text(trace, NULL);
        if (!*text) { /* killed before it began */
            free(text);
            continue;
        }
        json_t *ranges = json_loads(text, 0, NULL);
        assert_true(json_is_array(ranges));
        if (json_array_size(ranges) > most) most = json_array_size(ranges);
        json_decref(ranges);
        free(text);
    }
    assert_true(most >= 100);
    scratch_remove(dir);
}

/* A manager reports by itself. */
static void test_with_manager(void **state) {
    (void)state;
    lplb_monitor *m = make((lplb_monitor_config){.serve = 1});
    lplb_manager_config config = {.struct_size = sizeof config,
                                  .layers = 1,
                                  .experts = 8,
                                  .ranks = G,
                                  .slots = 12,
                                  .interval = 20,
                                  .min_interval = 10,
                                  .monitor = m};
    lplb_manager *manager;
    assert_int_equal(lplb_manager_create(&config, &manager), LPLB_OK);
    int64_t counts[8] = {900, 10, 10, 300, 10, 10, 10, 10};
    for (int64_t step = 0; step < 100; step++)
        assert_int_equal(lplb_manager_step(manager, step, LPLB_STAGE_DECODE, counts), LPLB_OK);
    lplb_monitor_summary s;
    lplb_monitor_get(m, &s, NULL);
    assert_int_equal(s.manager.steps, 100);
    assert_true(s.events[LPLB_EVENT_REQUEST] > 0);
    assert_int_equal(s.events[LPLB_EVENT_REQUEST], s.manager.requests);
    /* Deaths show at once, not at the next step; figures nobody told are not zeros. */
    uint8_t dead[G] = {1, 1, 1, 0};
    assert_int_equal(lplb_manager_set_dead(manager, dead), LPLB_INFEASIBLE);
    lplb_monitor_get(m, &s, NULL);
    assert_true(s.manager.dead_ranks == 3 && !s.manager.usable);
    static char text[1 << 16];
    size_t bytes;
    assert_int_equal(lplb_monitor_render(m, LPLB_MONITOR_TEXT, text, sizeof text, &bytes), LPLB_OK);
    assert_non_null(strstr(text, "NO MAPPING SERVES EVERY EXPERT"));
    assert_non_null(strstr(text, "no step has told its ranks' loads"));
    lplb_manager_destroy(manager);
    lplb_monitor_destroy(m);
}

int main(void) {
    count_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_histogram), cmocka_unit_test(test_figures),
        cmocka_unit_test(test_documents), cmocka_unit_test(test_http_parse),
        cmocka_unit_test(test_server),    cmocka_unit_test(test_files),
        cmocka_unit_test(test_killed),    cmocka_unit_test(test_with_manager),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
