/* Messages for people, on stderr: "moec: warning: ...". Libraries may warn; errors are statuses, which the command line prints. */
#ifndef MOE_BASE_LOG_H
#define MOE_BASE_LOG_H

#include <stdbool.h>
#include "base/status.h"

void moe_warn(const char *fmt, ...) MOE_PRINTF(1, 2);
void moe_note(const char *fmt, ...) MOE_PRINTF(1, 2);
void moe_log_error(MoeStatus st); /* unless it is told already (base/status.h), which it is then; NULL: nothing */
void moe_log_quiet(bool quiet); /* drops notes (not warnings) */

#endif
