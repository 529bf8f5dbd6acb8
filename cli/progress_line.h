/* How far a command is, on a terminal: a line on stderr that rewrites itself, with the time left. Nothing where stderr is no
 * terminal, and nothing in the first second. */
#ifndef MOE_CLI_PROGRESS_LINE_H
#define MOE_CLI_PROGRESS_LINE_H

#include <stdbool.h>
#include "base/status.h"

typedef struct MoeProgressLine MoeProgressLine;
MoeProgressLine *moe_progress_line_create(bool quiet);
/* done: the part of all the work, 0 to 1; what: a few words. */
void moe_progress_line(MoeProgressLine *p, double done, const char *what, ...) MOE_PRINTF(3, 4);
void moe_progress_line_done(MoeProgressLine *p); /* clears the line, frees p */

#endif
