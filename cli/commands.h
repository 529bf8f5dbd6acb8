/* The commands, one file each: cmd_NAME.c. */
#ifndef MOE_CLI_COMMANDS_H
#define MOE_CLI_COMMANDS_H

#include "cli/options.h"
#include "runtime/exec.h"

#define MOE_VERSION "0.1"

/* --device. */
MoeStatus moe_device_option(const MoeOptions *o, MoeDevicePlace *out);

#define COMMAND(name, positionals, summary) MoeStatus moe_cmd_##name(const MoeOptions *o);
#include "cli/commands.def"
#undef COMMAND

#endif
