/* Reading through files and pipes, and writing that leaves a whole file or nothing. */
#define _XOPEN_SOURCE 700
#include "io_helpers.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "io/output.h"

static int count_files(void) {
    int n = 0;
    DIR *entries = opendir(folder);
    assert_non_null(entries);
    for (struct dirent *entry; (entry = readdir(entries));)
        n += entry->d_name[0] != '.' || strlen(entry->d_name) > 2;
    closedir(entries);
    return n;
}

static void assert_content(const char *path, const char *wanted) {
    char text[256] = "";
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(text, 1, sizeof text - 1, file), strlen(wanted));
    fclose(file);
    assert_string_equal(text, wanted);
}

static void test_write(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s", in_folder("out.txt"));
    expect_ok(lplb__output_write(path, "old", 3));
    assert_content(path, "old");
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    mode_t mask = umask(0);
    umask(mask);
    assert_int_equal(info.st_mode & 0777, 0666 & ~mask);

    lplb__output output; /* nothing is seen before the commit, and nothing stays after an abort */
    expect_ok(lplb__output_open(path, &output));
    fputs("newer", output.file);
    fflush(output.file);
    assert_content(path, "old");
    assert_int_equal(count_files(), 2);
    lplb__output_abort(&output);
    lplb__output_abort(&output);
    assert_content(path, "old");
    assert_int_equal(count_files(), 1);
    expect_ok(lplb__output_open(path, &output));
    fputs("newer", output.file);
    expect_ok(lplb__output_commit(&output));
    lplb__output_abort(&output);
    assert_content(path, "newer");
    assert_int_equal(count_files(), 1);
    unlink(path);
}

static void test_write_failures(void **state) {
    (void)state;
    lplb__output output;
    expect_failure(lplb__output_open(in_folder("none/out.txt"), &output), LPLB_IO, "none/");
    expect_failure(lplb__output_open(folder, &output), LPLB_IO, "a folder");
    lplb_trace *trace = random_trace(3, LPLB_TRACE_COUNTS);
    expect_failure(lplb_trace_write(trace, in_folder("trace.txt")), LPLB_UNSUPPORTED, ".npz");
    expect_failure(lplb_trace_write(trace, in_folder("trace")), LPLB_UNSUPPORTED, ".npz");
    trace->counts[0] = -1;
    expect_failure(lplb_trace_write(trace, in_folder("trace.npz")), LPLB_RANGE, "negative");
    lplb_trace_destroy(trace);
    assert_int_equal(count_files(), 0);
}

/* A full disk, played by a limit on the file size in a child process. */
static void test_full_disk(void **state) {
    (void)state;
    put_file("a.csv", "old", 3);
    lplb_trace *trace = random_trace(5, LPLB_TRACE_COUNTS);
    static const char *const names[] = {"a.csv", "a.json", "a.npz", "a.safetensors", "a.npy"};
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            struct rlimit limit = {64, 64};
            struct sigaction ignore = {.sa_handler = SIG_IGN};
            sigaction(SIGXFSZ, &ignore, NULL);
            setrlimit(RLIMIT_FSIZE, &limit);
            lplb_status status = lplb_trace_write(trace, in_folder(names[i]));
            _exit(status == LPLB_IO && strstr(lplb_error_message(), "cannot write") ? 0 : 1);
        }
        int result;
        assert_int_equal(waitpid(child, &result, 0), child);
        assert_int_equal(result, 0);
        assert_int_equal(count_files(), 1);
    }
    assert_content(in_folder("a.csv"), "old");
    unlink(in_folder("a.csv"));
    lplb_trace_destroy(trace);
}

static void test_links_and_devices(void **state) {
    (void)state;
    char target[128], link_path[128];
    snprintf(target, sizeof target, "%s", put_file("target.txt", "old", 3));
    snprintf(link_path, sizeof link_path, "%s", in_folder("link.txt"));
    assert_int_equal(symlink("target.txt", link_path), 0);
    expect_ok(lplb__output_write(link_path, "new", 3));
    assert_content(target, "new");
    struct stat info;
    assert_int_equal(lstat(link_path, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
    expect_ok(lplb__output_write("/dev/null", "x", 1));
    assert_int_equal(stat("/dev/null", &info), 0);
    assert_true(S_ISCHR(info.st_mode));
    unlink(target);
    unlink(link_path);
}

static void test_read_failures(void **state) {
    (void)state;
    lplb_trace *trace;
    expect_failure(lplb_trace_read(in_folder("missing.npz"), NULL, &trace), LPLB_IO, "missing.npz");
    lplb_placement *placement;
    expect_failure(lplb_placement_read(folder, 2, &placement), LPLB_IO, "folder");
    lplb_trace_options options = {.max_bytes = 1000};
    expect_failure(lplb_trace_read("/dev/zero", &options, &trace), LPLB_RANGE, "more than 1000");
}

static void test_pipe(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s", in_folder("pipe"));
    assert_int_equal(mkfifo(path, 0600), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    static const char text[] = "{\"logical_count\": [[1, 2, 3]]}";
    if (child == 0) {
        int fd = open(path, O_WRONLY);
        _exit(write(fd, text, sizeof text - 1) == (ssize_t)sizeof text - 1 ? 0 : 1);
    }
    lplb_trace *trace;
    expect_ok(lplb_trace_read(path, NULL, &trace));
    assert_int_equal(trace->counts[2], 3);
    lplb_trace_destroy(trace);
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_int_equal(result, 0);
    unlink(path);
}

/* The same trace gives the same bytes, whenever it is written. */
static void test_same_bytes(void **state) {
    (void)state;
    lplb_trace *trace = random_trace(8, LPLB_TRACE_TOPK);
    char *image[2];
    size_t size[2];
    for (int i = 0; i < 2; i++) {
        expect_ok(lplb_trace_write(trace, in_folder("same.npz")));
        FILE *file = fopen(in_folder("same.npz"), "rb");
        image[i] = malloc(1 << 20);
        size[i] = fread(image[i], 1, 1 << 20, file);
        fclose(file);
        unlink(in_folder("same.npz"));
        if (i == 0) sleep(2); /* zip times have two seconds' resolution */
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(image[0], image[1], size[0]);
    free(image[0]);
    free(image[1]);
    lplb_trace_destroy(trace);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write),         cmocka_unit_test(test_write_failures),
        cmocka_unit_test(test_full_disk),     cmocka_unit_test(test_links_and_devices),
        cmocka_unit_test(test_read_failures), cmocka_unit_test(test_pipe),
        cmocka_unit_test(test_same_bytes),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
