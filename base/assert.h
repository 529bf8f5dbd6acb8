/* MOE_ASSERT: for our own bugs only. Stays on in every build. Prints file:line, the expression and a
 * printf-style message (say which pass and op), then aborts. */
#ifndef MOE_BASE_ASSERT_H
#define MOE_BASE_ASSERT_H

#include "base/status.h"

#define MOE_ASSERT(cond, ...)                                                                      \
    ((cond) ? (void)0 : moe_assert_fail(__FILE__, __LINE__, #cond, __VA_ARGS__))

_Noreturn void moe_assert_fail(const char *file, int line, const char *expr, const char *fmt, ...)
    MOE_PRINTF(4, 5);

#endif
