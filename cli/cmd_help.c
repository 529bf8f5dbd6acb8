/* moec help [COMMAND] | --markdown | --bash */
#include "cli/commands.h"

#include <stdio.h>
#include <string.h>

MoeStatus moe_cmd_help(const MoeOptions *o) {
    MoeStr text = {0};
    const char *what = o->n_positionals > 0 ? o->positionals[0] : NULL;
    MoeStatus st = NULL;
    if (what && strcmp(what, "markdown") == 0)
        moe_options_markdown(&text);
    else if (what && strcmp(what, "bash") == 0)
        moe_options_bash(&text);
    else if (what && !moe_command_known(what)) {
        const char *near = moe_command_nearest(what);
        st = moe_error(MOE_E_MISUSE, "no command \"%s\"%s%s%s", what,
                       near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
    } else
        moe_options_help(what, &text);
    fputs(moe_str_c(&text), stdout);
    moe_str_free(&text);
    return st;
}
