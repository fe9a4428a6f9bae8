/* Topologies read from files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lplb/placement.h>
#include <string.h>

#include "cases/run_cli.h"

static void test_open(void **state) {
    char *dir = *state;
    lplb_topology *t;
    assert_int_equal(lplb_topology_open("ring", 4, 1, &t), LPLB_OK);
    assert_int_equal(t->r2o[0], 1);
    lplb_topology_destroy(t);
    assert_int_equal(lplb_topology_open(NULL, 8, 2, &t), LPLB_OK);
    assert_int_equal(t->group_size, 8);
    lplb_topology_destroy(t);
    const char *texts[] = {"[[1,2],[2,3],[3,0],[0,1]]", "{\"r2o\": [[1,2],[2,3],[3,0],[0,1]]}"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(lplb_topology_open(write_text(dir, "r2o.json", texts[i]), 8, 2, &t),
                         LPLB_OK);
        assert_int_equal(t->group_size, 4);
        assert_int_equal(t->redundant, 2);
        assert_memory_equal(t->r2o, ((int32_t[]){1, 2, 2, 3, 3, 0, 0, 1}), 8 * sizeof(int32_t));
        lplb_topology_destroy(t);
    }
}

static void test_errors(void **state) {
    char *dir = *state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"[[1],[0]]", "groups of 2 ranks do not divide 3"},
        {"[[1],[2],[2]]", "r2o[2][0]"},
        {"[[0],[2],[1]]", "r2o[0][0]"},
        {"[[1],[2],[3]]", "r2o[2][0]"},
        {"[[1],[2,0],[0]]", "r2o[1] must have 1 entries"},
        {"[[1.5],[2],[0]]", "r2o[0][0]"},
        {"{\"rto\": []}", "an r2o is"},
        {"[]", "an r2o is"},
        {"[[1],", "r2o.json"},
    };
    lplb_topology *t;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *path = write_text(dir, "r2o.json", cases[i].text);
        assert_int_not_equal(lplb_topology_open(path, 3, 1, &t), LPLB_OK);
        assert_null(t);
        if (!strstr(lplb_error_message(), cases[i].message))
            fail_msg("%s: \"%s\" lacks \"%s\"", cases[i].text, lplb_error_message(),
                     cases[i].message);
    }
    assert_int_equal(lplb_topology_open("cubic", 8, 2, &t), LPLB_IO);
    assert_non_null(strstr(lplb_error_message(), "no topology 'cubic'"));
    assert_int_equal(lplb_topology_open("torus:2", 8, 2, &t), LPLB_INVALID);
}

static int setup(void **state) {
    *state = scratch_create();
    return 0;
}

static int teardown(void **state) {
    scratch_remove(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
