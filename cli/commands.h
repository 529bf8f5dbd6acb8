/* The commands, one file each: cmd_NAME.c. */
#ifndef MOE_CLI_COMMANDS_H
#define MOE_CLI_COMMANDS_H

#include "cli/options.h"

#define MOE_VERSION "0.1"

#define COMMAND(name, positionals, summary) MoeStatus moe_cmd_##name(const MoeOptions *o);
#include "cli/commands.def"
#undef COMMAND

#endif
