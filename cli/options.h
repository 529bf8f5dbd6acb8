/* Option values of one invocation: default < JSON file (--config) < MOEC_* variables < flags. */
#ifndef MOE_CLI_OPTIONS_H
#define MOE_CLI_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"
#include "base/str.h"

typedef enum {
#define OPT(id, name, short_name, type, default_value, metavar, commands, help) OPT_##id,
#include "cli/options.def"
#undef OPT
    N_OPTIONS
} MoeOption;

typedef struct {
    const char *command;
    const char *values[N_OPTIONS]; /* text; checked against the type when set */
    const char *source[N_OPTIONS]; /* "default", "--config FILE", "MOEC_BATCH", "--batch" */
    const char **positionals;
    int n_positionals;
    bool want_help;
    char **owned; /* strings to free */
    int n_owned;
} MoeOptions;

/* argv: what follows the command's name. Unknown options: MOE_E_MISUSE with the nearest known one.
 */
MoeStatus moe_options_parse(const char *command, int argc, char **argv, MoeOptions *out);
void moe_options_free(MoeOptions *o);
const char *moe_opt(const MoeOptions *o, MoeOption id);
int64_t moe_opt_i(const MoeOptions *o, MoeOption id); /* INT, SIZE */
double moe_opt_f(const MoeOptions *o, MoeOption id);
bool moe_opt_b(const MoeOptions *o, MoeOption id);
bool moe_opt_given(const MoeOptions *o, MoeOption id); /* not the default */
/* The resolved set of the command's options as a JSON object (new reference), to keep with a run.
 */
json_t *moe_options_json(const MoeOptions *o);
/* Exactly n positionals, else MOE_E_MISUSE that shows the usage line. */
MoeStatus moe_options_expect(const MoeOptions *o, int n);

void moe_options_help(const char *command, MoeStr *out); /* one command, or NULL: all commands */
void moe_options_markdown(MoeStr *out);
void moe_options_bash(MoeStr *out);
const char *moe_command_nearest(const char *name); /* or NULL */
bool moe_command_known(const char *name);

#endif
