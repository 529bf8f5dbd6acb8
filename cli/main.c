/* moec: picks the command, parses its options, turns a status into a message and an exit code. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/commands.h"

typedef MoeStatus (*CommandFn)(const MoeOptions *o);
static const struct {
    const char *name;
    CommandFn run;
} table[] = {
#define COMMAND(name, positionals, summary) {#name, moe_cmd_##name},
#include "cli/commands.def"
#undef COMMAND
};

static int finish(MoeStatus st) {
    int code = moe_status_exit_code(st);
    moe_log_error(st);
    moe_status_free(st);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0)
        code = 1; /* a full disk or closed pipe must not look like success */
    return code;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        MoeStr help = {0};
        moe_options_help(NULL, &help);
        fputs(moe_str_c(&help), argc < 2 ? stderr : stdout);
        moe_str_free(&help);
        return argc < 2 ? 2 : 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("moec %s\n", MOE_VERSION);
        return 0;
    }
    const char *name = argv[1];
    if (!moe_command_known(name)) {
        const char *near = moe_command_nearest(name);
        return finish(
            moe_error(MOE_E_MISUSE, "unknown command \"%s\"%s%s%s; 'moec help' lists them", name,
                      near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : ""));
    }
    MoeOptions o;
    MoeStatus st = moe_options_parse(name, argc - 2, argv + 2, &o);
    if (!st && o.want_help) {
        MoeStr help = {0};
        moe_options_help(name, &help);
        fputs(moe_str_c(&help), stdout);
        moe_str_free(&help);
    } else if (!st) {
        moe_log_quiet(moe_opt_b(&o, OPT_QUIET));
        for (size_t i = 0; i < sizeof table / sizeof *table; i++)
            if (strcmp(table[i].name, name) == 0)
                st = table[i].run(&o);
    }
    moe_options_free(&o);
    return finish(st);
}
