#include "cli/cli.h"
int cmd_plan(int argc, char **argv) {
    (void)argc;
    return cli_fail(argv[0], EXIT_USAGE, "being written");
}
