/* A program that is asked by lines: started by the shell, one line to its standard input, one line from its standard output, within
 * a time. What it writes to standard error goes where ours goes. */
#ifndef MOE_PLACEMENT_POLICY_PROGRAM_IO_H
#define MOE_PLACEMENT_POLICY_PROGRAM_IO_H

#include <stdbool.h>
#include "base/str.h"

typedef struct MoeLineProgram MoeLineProgram;

/* A line may have this many bytes. */
#define MOE_LINE_PROGRAM_BYTES (256u << 20)

/* Starts `sh -c command` in a process group of its own. MOE_E_IO. */
MoeStatus moe_line_program_start(const char *command, MoeLineProgram **out);
/* Sends `line` (n bytes, without newline) and waits for the answer: *answer without newline. What came before the question is thrown away.
 * MOE_E_IO if the program ends, answers too much or nothing within `seconds`: it is of no use then. */
MoeStatus moe_line_program_ask(MoeLineProgram *p, const char *line, size_t n, double seconds,
                               MoeStr *answer);
/* Closes its input, which should end it; what is left of its group after a moment is killed. NULL is fine. */
void moe_line_program_stop(MoeLineProgram *p);

#endif
