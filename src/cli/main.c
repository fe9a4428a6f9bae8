/* lplb: the command line. `lplb COMMAND [options]`; every command has --help and --json. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static const command commands[] = {
#define LIST_COMMAND(name, summary) {#name, summary, cmd_##name},
    LPLB_COMMANDS(LIST_COMMAND)
#undef LIST_COMMAND
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out) {
    fprintf(out, "Usage: lplb COMMAND [options]\n\n"
                 "Balances expert-parallel Mixture-of-Experts models: where expert copies live,\n"
                 "how each batch's tokens split over them, and what either would bring on a\n"
                 "recorded routing trace.\n\nCommands:\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n`lplb COMMAND --help` shows the options and an example.\n"
                 "Exit codes: 0 success, 1 failed run or check, 2 bad usage or bad input.\n");
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return EXIT_OK;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
        printf("lplb %s\n", lplb_version());
        return EXIT_OK;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name)) continue;
        char name[64];
        snprintf(name, sizeof name, "lplb %s", commands[i].name);
        argv[1] = name; /* so that messages and usage name the command */
        return commands[i].run(argc - 1, argv + 1);
    }
    fprintf(stderr, "lplb: no command '%s'; `lplb --help` lists them\n", argv[1]);
    return EXIT_USAGE;
}
