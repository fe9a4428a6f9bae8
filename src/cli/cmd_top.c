/* lplb top: the figures of a running process, live in the terminal. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

static const char help[] =
    "Usage: lplb top [options] PORT\n"
    "\n"
    "Shows what the monitor of a running process reports (it serves HTTP on PORT): imbalance,\n"
    "times, ranks, rebalancing. Ends with Ctrl-C. The same as a page: http://127.0.0.1:PORT/\n"
    "\n"
    "  --host H       where it runs (default 127.0.0.1)\n"
    "  --interval S   seconds between looks (default 1)\n"
    "  --once         one look, no clearing of the screen (default when not on a terminal)\n"
    "  --json         the summary as one JSON document (docs/formats.md), once\n"
    "  --help         this text\n"
    "\n"
    "Example:\n"
    "  lplb top 9400\n";

enum { MOST_BYTES = 32 << 20 };
static volatile sig_atomic_t stopped;
static void on_signal(int number) {
    (void)number;
    stopped = 1;
}

static int dial(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    if (getaddrinfo(host, port, &hints, &list)) return -1;
    int fd = -1;
    for (struct addrinfo *at = list; at && fd < 0; at = at->ai_next) {
        fd = socket(at->ai_family, at->ai_socktype, 0);
        struct timeval limit = {5, 0};
        if (fd >= 0) {
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        }
        if (fd >= 0 && connect(fd, at->ai_addr, at->ai_addrlen)) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd;
}

/* Body of an answer 200, NULL otherwise; free it. */
static char *fetch(const char *host, const char *port, const char *path) {
    char request[512];
    int length =
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %.200s\r\n\r\n", path, host);
    int fd = dial(host, port);
    if (fd < 0) return NULL;
    size_t used = 0, capacity = 1 << 16;
    char *text = cli_need(capacity, 1);
    bool ok = send(fd, request, (size_t)length, MSG_NOSIGNAL) == length;
    for (ssize_t n; ok && (n = recv(fd, text + used, capacity - used - 1, 0)) > 0;) {
        used += (size_t)n;
        if (capacity - used > 1) continue;
        char *larger = capacity < MOST_BYTES ? realloc(text, 2 * capacity) : NULL;
        if (!larger) break;
        text = larger;
        capacity *= 2;
    }
    close(fd);
    text[used] = '\0';
    char *body = strstr(text, "\r\n\r\n");
    if (!body || strncmp(text, "HTTP/1.1 200", 12) != 0) {
        free(text);
        return NULL;
    }
    memmove(text, body + 4, strlen(body + 4) + 1);
    return text;
}

/* Ranks as a row of bars, eight heights; long rows show the mean of neighbours. */
static void print_ranks(const json_t *summary) {
    static const char *const bars[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const json_t *rank = json_object_get(json_object_get(summary, "utilisation"), "rank");
    size_t n = json_array_size(rank), columns = n < 96 ? n : 96;
    printf("per rank   ");
    for (size_t c = 0; c < columns; c++) {
        double sum = 0;
        size_t first = c * n / columns, end = (c + 1) * n / columns;
        for (size_t r = first; r < end; r++) sum += json_number_value(json_array_get(rank, r));
        double share = sum / (double)(end - first);
        int height = (int)(share * 8 + 0.5);
        printf("%s", bars[height < 0 ? 0 : height > 8 ? 8 : height]);
    }
    printf("\n");
}

/* What comes from the other side must not steer the terminal. */
static void print_plain(const char *text) {
    for (; *text; text++) putchar((unsigned char)*text >= 0x20 || *text == '\n' ? *text : '?');
}

static void print_events(const char *host, const char *port) {
    char *body = fetch(host, port, "/events.json");
    json_t *document = body ? json_loads(body, 0, NULL) : NULL;
    const json_t *events = json_object_get(document, "events");
    size_t n = json_array_size(events);
    if (n) printf("\nlast events\n");
    for (size_t i = n > 8 ? n - 8 : 0; i < n; i++) {
        const json_t *e = json_array_get(events, i);
        const char *name = json_string_value(json_object_get(e, "event"));
        const char *text = json_string_value(json_object_get(e, "text"));
        printf("  %8lld  ", (long long)json_integer_value(json_object_get(e, "step")));
        print_plain(name ? name : "");
        printf(": ");
        print_plain(text ? text : "");
        printf("\n");
    }
    json_decref(document);
    free(body);
}

static int look(const char *name, const char *host, const char *port, bool clear) {
    char *text = fetch(host, port, "/summary.txt"), *json = fetch(host, port, "/summary.json");
    json_t *summary = json ? json_loads(json, 0, NULL) : NULL;
    int code = EXIT_OK;
    if (!text || !summary) {
        code = cli_fail(name, EXIT_FAILED, "no monitor answers on %s port %s", host, port);
    } else {
        if (clear) printf("\033[H\033[2J");
        print_plain(text);
        print_ranks(summary);
        print_events(host, port);
        if (fflush(stdout)) code = cli_fail(name, EXIT_FAILED, "cannot write to stdout");
    }
    json_decref(summary);
    free(text);
    free(json);
    return code;
}

static int print_json(const char *name, const char *host, const char *port) {
    char *body = fetch(host, port, "/summary.json");
    json_t *summary = body ? json_loads(body, 0, NULL) : NULL;
    free(body);
    if (!summary)
        return cli_fail(name, EXIT_FAILED, "no monitor answers on %s port %s", host, port);
    return cli_print_json(summary);
}

static int watch(const char *name, const char *host, const char *port, double interval) {
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    struct timespec nap = {(time_t)interval, (long)((interval - (double)(time_t)interval) * 1e9)};
    int code = EXIT_OK;
    while (!stopped && code == EXIT_OK) {
        code = look(name, host, port, true);
        if (code == EXIT_OK && !stopped) nanosleep(&nap, NULL);
    }
    return code;
}

int cmd_top(int argc, char **argv) {
    static const struct option options[] = {
        {"host", required_argument, 0, 'H'}, {"interval", required_argument, 0, 'i'},
        {"once", no_argument, 0, 'o'},       {"json", no_argument, 0, 'j'},
        {"help", no_argument, 0, 'h'},       {0, 0, 0, 0}};
    const char *host = "127.0.0.1";
    double interval = 1;
    bool once = !isatty(STDOUT_FILENO), json = false;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 'H': host = optarg; break;
        case 'i':
            if (!cli_parse_double(argv[0], "--interval", optarg, 0.1, 3600, &interval))
                return EXIT_USAGE;
            break;
        case 'o': once = true; break;
        case 'j': json = true; break;
        case 'h': fputs(help, stdout); return EXIT_OK;
        default: return EXIT_USAGE;
        }
    }
    int64_t port;
    if (argc - optind != 1)
        return cli_fail(argv[0], EXIT_USAGE, "give the port of a monitor; see --help");
    if (!cli_parse_int(argv[0], "PORT", argv[optind], 1, 65535, &port)) return EXIT_USAGE;
    if (json) return print_json(argv[0], host, argv[optind]);
    if (once) return look(argv[0], host, argv[optind], false);
    return watch(argv[0], host, argv[optind], interval);
}
