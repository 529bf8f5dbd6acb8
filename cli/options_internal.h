/* The option and command tables, shared by the parser (options.c) and the texts made from them
 * (options_text.c). */
#ifndef MOE_CLI_OPTIONS_INTERNAL_H
#define MOE_CLI_OPTIONS_INTERNAL_H

#include "cli/options.h"

typedef enum { TYPE_STRING, TYPE_INT, TYPE_REAL, TYPE_FLAG, TYPE_CHOICE, TYPE_SIZE } MoeOptionType;

typedef struct {
    const char *name;
    char short_name; /* 0: none */
    MoeOptionType type;
    const char *default_value, *metavar, *commands, *help;
} MoeOptionRow;

typedef struct {
    const char *name, *positionals, *summary;
} MoeCommandRow;

enum {
#define COMMAND(name, positionals, summary) COMMAND_##name,
#include "cli/commands.def"
#undef COMMAND
    N_COMMANDS
};

extern const MoeOptionRow moe_option_rows[N_OPTIONS];
extern const MoeCommandRow moe_command_rows[N_COMMANDS];
bool moe_option_applies(const MoeOptionRow *r, const char *command);
int moe_command_index(const char *name); /* -1: no such command */

#endif
