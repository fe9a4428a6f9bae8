/* What every command of lplb owes its user: help, exit codes, messages on stderr. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <lplb/status.h>

#include "cases/run_cli.h"
#include "cli/cli.h"

static const char *const command_names[] = {
#define LIST_NAME(name, summary) #name,
    LPLB_COMMANDS(LIST_NAME)
#undef LIST_NAME
};
enum { N_COMMANDS = sizeof command_names / sizeof command_names[0] };

static void test_top_level(void **state) {
    (void)state;
    run_result r;
    run_cli(&r, NULL, "--help", NULL);
    assert_int_equal(r.code, 0);
    for (int i = 0; i < N_COMMANDS; i++) assert_non_null(strstr(r.out, command_names[i]));
    assert_string_equal(r.err, "");
    run_free(&r);

    run_cli(&r, NULL, "--version", NULL);
    assert_int_equal(r.code, 0);
    assert_non_null(strstr(r.out, lplb_version()));
    run_free(&r);

    run_cli(&r, NULL, NULL);
    assert_int_equal(r.code, 2);
    assert_string_equal(r.out, "");
    assert_non_null(strstr(r.err, "Usage"));
    run_free(&r);

    run_cli(&r, NULL, "dance", NULL);
    assert_int_equal(r.code, 2);
    assert_non_null(strstr(r.err, "dance"));
    run_free(&r);
}

/* Each command shows one real example, and refuses an option that it does not know. */
static void test_each_command(void **state) {
    (void)state;
    for (int i = 0; i < N_COMMANDS; i++) {
        run_result r;
        run_cli(&r, NULL, command_names[i], "--help", NULL);
        print_message("lplb %s --help\n", command_names[i]);
        assert_int_equal(r.code, 0);
        assert_non_null(strstr(r.out, "Usage: lplb "));
        assert_non_null(strstr(r.out, "Example"));
        assert_non_null(strstr(r.out, "--json"));
        assert_string_equal(r.err, "");
        run_free(&r);

        run_cli(&r, NULL, command_names[i], "--no-such-option", NULL);
        assert_int_equal(r.code, 2);
        assert_string_equal(r.out, "");
        assert_true(r.err_bytes > 0);
        run_free(&r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_top_level),
        cmocka_unit_test(test_each_command),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
