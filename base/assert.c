/* The failing end of MOE_ASSERT: says what broke and where, then aborts (core dumps and tests see
 * SIGABRT). */
#include "base/assert.h"

#include <stdio.h>
#include <stdlib.h>

void moe_assert_fail(const char *file, int line, const char *expr, const char *fmt, ...) {
    va_list args;
    fflush(stdout);
    fprintf(stderr, "moec: internal error: %s:%d: assertion failed: %s\nmoec:   ", file, line,
            expr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    fflush(stderr);
    abort();
}
