/* A small HTTP server for the figures: a few connections at a time, one request each, nothing that
 * a client sends is kept or acted on. Runs in the monitor's thread, in memory taken at creation. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "runtime/http.h"
#include "runtime/monitor.h"

enum { CLIENTS = 8, HEADER_BYTES = 512 };
static const int64_t CLIENT_NS = 5000000000; /* from connect to the last byte */

typedef struct client {
    int fd; /* -1 = free */
    int64_t deadline_ns;
    size_t received, sent, answer_bytes; /* answer_bytes 0: still reading */
    char request[LPLB__HTTP_REQUEST_BYTES];
    char *answer; /* [answer_capacity] */
} client;

struct lplb__server {
    int listener;
    int32_t port;
    size_t answer_capacity;
    lplb__arena arena;
    char *body; /* [answer_capacity] */
    client *clients;
};

/* ---- creation ---- */

static lplb_status open_listener(const char *address, int32_t port, int *out) {
    char service[16];
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM},
                    *found;
    snprintf(service, sizeof service, "%d", port);
    int error = getaddrinfo(address, service, &hints, &found);
    if (error)
        return LPLB_FAIL(LPLB_INVALID, "address '%s' is no numeric address: %s", address,
                         gai_strerror(error));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    bool ok = fd >= 0 && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) &&
              !bind(fd, found->ai_addr, found->ai_addrlen) && !listen(fd, CLIENTS);
    int reason = errno;
    freeaddrinfo(found);
    if (ok) {
        *out = fd;
        return LPLB_OK;
    }
    if (fd >= 0) close(fd);
    return LPLB_FAIL(LPLB_IO, "cannot listen on %s port %d: %s", address, port, strerror(reason));
}

static int32_t bound_port(int fd) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } name;
    socklen_t bytes = sizeof name;
    if (getsockname(fd, &name.any, &bytes)) return -1;
    return ntohs(name.any.sa_family == AF_INET6 ? name.v6.sin6_port : name.v4.sin_port);
}

static void *block(lplb__arena *arena, int64_t count, size_t item_bytes) {
    if (arena->base) return lplb__arena_take(arena, count, item_bytes);
    lplb__arena_reserve(arena, count, item_bytes);
    return NULL;
}

static void lay_out(struct lplb__server *s) {
    s->clients = block(&s->arena, CLIENTS, sizeof *s->clients);
    s->body = block(&s->arena, (int64_t)s->answer_capacity, 1);
    for (int i = 0; i < CLIENTS; i++) {
        char *answer = block(&s->arena, (int64_t)s->answer_capacity + HEADER_BYTES, 1);
        if (s->arena.base) s->clients[i] = (client){.fd = -1, .answer = answer};
    }
}

lplb_status lplb__server_create(lplb_monitor *m, const lplb_monitor_config *config) {
    struct lplb__server *s;
    LPLB_TRY(LPLB_CALLOC(s, 1));
    m->server = s;
    s->listener = -1;
    /* The metrics take at most 120 bytes a rank; events 2 KB each; the page is a constant. */
    size_t rows = 65536 + 160 * (size_t)m->ranks, events = 2048 * (size_t)LPLB__MONITOR_EVENTS;
    size_t page = strlen(lplb__monitor_page_html) + 1;
    s->answer_capacity = rows > events ? rows : events;
    if (page > s->answer_capacity) s->answer_capacity = page;
    lay_out(s);
    LPLB_TRY(lplb__arena_create(&s->arena));
    lay_out(s);
    LPLB_TRY(
        open_listener(config->address ? config->address : "127.0.0.1", config->port, &s->listener));
    s->port = bound_port(s->listener);
    return LPLB_OK;
}

static void drop_client(client *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->received = c->sent = c->answer_bytes = 0;
}

void lplb__server_destroy(struct lplb__server *s) {
    if (!s) return;
    for (int i = 0; s->arena.base && i < CLIENTS; i++) drop_client(&s->clients[i]);
    if (s->listener >= 0) close(s->listener);
    lplb__arena_destroy(&s->arena);
    lplb__free(s);
}

int32_t lplb__server_port(const struct lplb__server *server) { return server->port; }

/* ---- answers ---- */

static void put_events(lplb_monitor *m, lplb__text *out) {
    pthread_mutex_lock(&m->mutex);
    int64_t n = m->now.n_events, first = n > LPLB__MONITOR_EVENTS ? n - LPLB__MONITOR_EVENTS : 0;
    lplb__put(out, "{\"schema\":\"lplb.events/1\",\"events\":[");
    for (int64_t i = first; i < n; i++) {
        if (i > first) lplb__put(out, ",");
        lplb__monitor_put_event(&m->event[i % LPLB__MONITOR_EVENTS], out);
    }
    lplb__put(out, "]}");
    pthread_mutex_unlock(&m->mutex);
}

/* Body and its type; the status. */
static int route(lplb_monitor *m, const char *path, lplb__text *body, const char **type) {
    lplb_monitor_summary summary;
    if (!strcmp(path, "/events.json")) {
        *type = "application/json";
        put_events(m, body);
        return 200;
    }
    bool metrics = !strcmp(path, "/metrics");
    if (metrics || !strcmp(path, "/summary.json") || !strcmp(path, "/summary.txt")) {
        lplb__monitor_copy(m, &m->seen, m->seen_share, m->seen_total);
        lplb__monitor_sum_up(m, &m->seen, m->seen_share, &summary);
    }
    if (metrics) {
        *type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        lplb__monitor_put_metrics(m, &m->seen, &summary, m->seen_share, m->seen_total, body);
    } else if (!strcmp(path, "/summary.json")) {
        *type = "application/json";
        lplb__monitor_put_json(&summary, m->seen_share, m->seen_total, body);
    } else if (!strcmp(path, "/summary.txt")) {
        *type = "text/plain; charset=utf-8";
        lplb__monitor_put_text(&summary, body);
    } else if (!strcmp(path, "/")) {
        *type = "text/html; charset=utf-8";
        lplb__put(body, "%s", lplb__monitor_page_html);
    } else {
        *type = "text/plain; charset=utf-8";
        lplb__put(body, "There are /, /metrics, /summary.json, /summary.txt and /events.json.\n");
        return 404;
    }
    return 200;
}

static void answer(lplb_monitor *m, client *c, int status, const lplb__http_request *request) {
    struct lplb__server *s = m->server;
    lplb__text body = {s->body, s->answer_capacity, 0};
    const char *type = "text/plain; charset=utf-8";
    if (status == 200) status = route(m, request->path, &body, &type);
    else lplb__put(&body, "Only GET and HEAD of a few paths are answered here.\n");
    if (body.used >= s->answer_capacity) {
        status = 500;
        body.used = 0;
    }
    lplb__text out = {c->answer, s->answer_capacity + HEADER_BYTES, 0};
    lplb__http_headers(&out, status, type, body.used);
    if (!request->head) {
        memcpy(c->answer + out.used, s->body, body.used);
        out.used += body.used;
    }
    c->answer_bytes = out.used;
}

/* ---- connections ---- */

static void accept_client(struct lplb__server *s) {
    int fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    for (int i = 0; i < CLIENTS; i++)
        if (s->clients[i].fd < 0) {
            s->clients[i].fd = fd;
            s->clients[i].deadline_ns = lplb__now_ns() + CLIENT_NS;
            return;
        }
    close(fd); /* not reached: the listener is only polled while one is free */
}

static void read_client(lplb_monitor *m, client *c) {
    ssize_t n = recv(c->fd, c->request + c->received, sizeof c->request - c->received, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        drop_client(c);
        return;
    }
    if (n > 0) c->received += (size_t)n;
    lplb__http_request request;
    int status = lplb__http_parse(c->request, c->received, &request);
    if (status) answer(m, c, status, &request);
}

static void write_client(client *c) {
    ssize_t n = send(c->fd, c->answer + c->sent, c->answer_bytes - c->sent, MSG_NOSIGNAL);
    if (n > 0) c->sent += (size_t)n;
    if ((n < 0 && errno != EAGAIN && errno != EINTR) || c->sent == c->answer_bytes) drop_client(c);
}

static void serve_clients(lplb_monitor *m, const struct pollfd *polled) {
    int64_t now = lplb__now_ns();
    for (int i = 0; i < CLIENTS; i++) {
        client *c = &m->server->clients[i];
        if (c->fd < 0 || polled[i].fd != c->fd) continue;
        if (polled[i].revents && !c->answer_bytes) read_client(m, c);
        if (c->fd >= 0 && c->answer_bytes) write_client(c);
        if (c->fd >= 0 && now > c->deadline_ns) drop_client(c);
    }
}

bool lplb__server_poll(lplb_monitor *m, int timeout_ms) {
    struct pollfd polled[CLIENTS + 2];
    struct lplb__server *s = m->server;
    int n = 0;
    bool room = false;
    for (; s && n < CLIENTS; n++) {
        const client *c = &s->clients[n];
        polled[n] = (struct pollfd){.fd = c->fd, .events = c->answer_bytes ? POLLOUT : POLLIN};
        room = room || c->fd < 0;
    }
    int wake = n, listener = n + 1;
    polled[n++] = (struct pollfd){.fd = m->wake[0], .events = POLLIN};
    if (s) polled[n++] = (struct pollfd){.fd = room ? s->listener : -1, .events = POLLIN};
    if (poll(polled, (nfds_t)n, timeout_ms) < 0 && errno != EINTR) return false;
    if (polled[wake].revents) return false;
    if (!s) return true;
    serve_clients(m, polled);
    if (polled[listener].revents) accept_client(s);
    return true;
}
