/* Runs a fuzz target without libFuzzer: every seed of the given folders as it is, then seeded
 * mutations of each, within a few seconds and a bounded address space. So every fuzz target is also
 * a plain test, under any compiler and sanitizer.
 *
 *   fuzz_NAME [FOLDER | FILE]...
 * LPLB_FUZZ_SEED chooses other mutations (default 1), LPLB_FUZZ_SECONDS another length (default 3).
 * A crash prints the seed, file and number of the mutation, and leaves the input in crash.bin. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/rng.h"
#include "fuzz.h"

enum { MAX_SEEDS = 1024, MAX_INPUT = 1 << 16, MAX_ROUNDS = 4000 };

typedef struct seed_file {
    char *path;
    uint8_t *data;
    size_t bytes;
} seed_file;

static seed_file seeds[MAX_SEEDS];
static int n_seeds;

/* What is running now, for the report of a crash. */
static uint8_t input[MAX_INPUT];
static size_t input_bytes;
static char what[512] = "start";

static void report_crash(int number) {
    static const char text[] = "\nfuzz: the target died on ";
    (void)!write(2, text, sizeof text - 1);
    (void)!write(2, what, strlen(what));
    (void)!write(2, " (input in crash.bin)\n", 22);
    int fd = open("crash.bin", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd >= 0) (void)!write(fd, input, input_bytes);
    signal(number, SIG_DFL);
    raise(number);
}

static void add_seed(const char *path) {
    struct stat info;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &info) != 0 || info.st_size > MAX_INPUT ||
        n_seeds == MAX_SEEDS) {
        fprintf(stderr, "fuzz: cannot use %s (at most %d bytes, %d files)\n", path, MAX_INPUT,
                MAX_SEEDS);
        exit(2);
    }
    seed_file *s = &seeds[n_seeds++];
    s->path = strdup(path);
    s->bytes = (size_t)info.st_size;
    s->data = malloc(s->bytes + 1);
    if (!s->path || !s->data || fread(s->data, 1, s->bytes, file) != s->bytes) exit(2);
    fclose(file);
}

static void add_path(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) {
        fprintf(stderr, "fuzz: no corpus %s\n", path);
        exit(2);
    }
    if (!S_ISDIR(info.st_mode)) {
        add_seed(path);
        return;
    }
    DIR *entries = opendir(path);
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        if (entry->d_name[0] == '.') continue;
        char name[1024];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        add_seed(name);
    }
    if (entries) closedir(entries);
}

static int compare_seeds(const void *a, const void *b) {
    return strcmp(((const seed_file *)a)->path, ((const seed_file *)b)->path);
}

static size_t below(lplb__rng *rng, size_t n) { return (size_t)lplb__rng_below(rng, (int64_t)n); }

/* n bytes of text at `to` are replaced by m bytes of `from` (may be NULL: a gap to be filled). */
static void replace(size_t to, size_t n, const uint8_t *from, size_t m) {
    if (input_bytes - n + m > MAX_INPUT) return;
    memmove(input + to + m, input + to + n, input_bytes - to - n);
    if (from) memmove(input + to, from, m);
    input_bytes = input_bytes - n + m;
}

static void mutate(lplb__rng *rng) {
    static const char *const words[] = {"-1",
                                        "0",
                                        "1",
                                        "[",
                                        "]",
                                        "{",
                                        "}",
                                        ",",
                                        ":",
                                        "\"",
                                        "(",
                                        "1e999",
                                        "null",
                                        "\n",
                                        "65536",
                                        "0.5",
                                        "true",
                                        "-",
                                        "999999",
                                        "4611686018427387904",
                                        "9223372036854775807",
                                        "99999999999999999999"};
    static const uint64_t numbers[] = {
        0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, UINT64_MAX};
    uint8_t piece[256];
    size_t at = below(rng, input_bytes + 1), left = input_bytes - at;
    size_t n = left ? 1 + below(rng, left < 64 ? left : 64) : 0;
    switch (below(rng, 9)) {
    case 0:
        if (left) input[at] ^= (uint8_t)(1u << below(rng, 8));
        break;
    case 1:
        if (left) input[at] = (uint8_t)below(rng, 256);
        break;
    case 2: replace(at, n, NULL, 0); break;
    case 3: /* doubles a piece */
        memcpy(piece, input + at, n);
        replace(at, 0, piece, n);
        break;
    case 4: input_bytes = at; break;
    case 5: {
        const char *word = words[below(rng, sizeof words / sizeof words[0])];
        replace(at, below(rng, 2) ? (n < 4 ? n : 4) : 0, (const uint8_t *)word, strlen(word));
        break;
    }
    case 6: {
        uint64_t number = numbers[below(rng, sizeof numbers / sizeof numbers[0])];
        size_t width = (size_t)1 << below(rng, 4);
        if (left >= width) memcpy(input + at, &number, width);
        break;
    }
    case 7: { /* a piece of another seed */
        const seed_file *other = &seeds[below(rng, (size_t)n_seeds)];
        size_t from = below(rng, other->bytes + 1), most = other->bytes - from;
        size_t m = most ? 1 + below(rng, most < 200 ? most : 200) : 0;
        replace(at, n, other->data + from, m);
        break;
    }
    default:
        if (left && input[at] >= '0' && input[at] <= '9')
            input[at] = (uint8_t)('0' + below(rng, 10));
        break;
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Address sanitizers reserve terabytes; everything else must do with 2 GiB. */
static void limit_memory(void) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(FUZZ_SANITIZED)
    struct rlimit limit = {(rlim_t)2 << 30, (rlim_t)2 << 30};
    setrlimit(RLIMIT_AS, &limit);
#endif
}

static void load(const seed_file *s) {
    memcpy(input, s->data, s->bytes);
    input_bytes = s->bytes;
}

static void run(void) {
    /* A block of exactly this size, so that reading past the end is noticed. */
    uint8_t *copy = malloc(input_bytes ? input_bytes : 1);
    if (!copy) exit(2);
    memcpy(copy, input, input_bytes);
    LLVMFuzzerTestOneInput(copy, input_bytes);
    free(copy);
}

int main(int argc, char **argv) {
    const char *seed_text = getenv("LPLB_FUZZ_SEED"), *seconds = getenv("LPLB_FUZZ_SECONDS");
    uint64_t seed = seed_text ? strtoull(seed_text, NULL, 10) : 1;
    double end = now() + (seconds ? strtod(seconds, NULL) : 3);
    limit_memory();
    for (int i = 1; i < argc; i++) add_path(argv[i]);
    if (n_seeds == 0) {
        fprintf(stderr, "usage: %s FOLDER...\n", argv[0]);
        return 2;
    }
    qsort(seeds, (size_t)n_seeds, sizeof *seeds, compare_seeds);
    static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        signal(signals[i], report_crash);
    printf("fuzz: %d seeds, mutations with LPLB_FUZZ_SEED=%llu\n", n_seeds,
           (unsigned long long)seed);
    long long runs = 0;
    for (int round = 0; round <= MAX_ROUNDS && (round == 0 || now() < end); round++)
        for (int i = 0; i < n_seeds && (round == 0 || now() < end); i++, runs++) {
            snprintf(what, sizeof what, "LPLB_FUZZ_SEED=%llu, %s, mutation %d",
                     (unsigned long long)seed, seeds[i].path, round);
            lplb__rng rng;
            lplb__rng_seed(&rng, seed, (uint64_t)round * MAX_SEEDS + (uint64_t)i);
            load(&seeds[i]);
            for (int64_t m = round ? 1 + lplb__rng_below(&rng, 4) : 0; m > 0; m--) mutate(&rng);
            run();
        }
    printf("fuzz: %lld runs\n", runs);
    for (int i = 0; i < n_seeds; i++) {
        free(seeds[i].path);
        free(seeds[i].data);
    }
    return 0;
}
