/* See progress_line.h. */
#include "cli/progress_line.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/pool.h"
#include "base/str.h"

#define FIRST_SECONDS 1.0
#define EVERY_SECONDS 0.1

struct MoeProgressLine {
    bool on, open;
    double start, last;
};

MoeProgressLine *moe_progress_line_create(bool quiet) {
    MoeProgressLine *p = calloc(1, sizeof *p);
    MOE_ASSERT(p, "no memory for the progress line");
    p->on = !quiet && isatty(STDERR_FILENO);
    p->start = p->last = moe_now();
    return p;
}

void moe_progress_line(MoeProgressLine *p, double done, const char *what, ...) {
    double now = p->on ? moe_now() : 0;
    if (!p->on || now - p->start < FIRST_SECONDS || now - p->last < EVERY_SECONDS || !(done > 0))
        return;
    p->last = now;
    char eta[32];
    MoeStr s = {0};
    va_list ap;
    va_start(ap, what);
    moe_str_vprintf(&s, what, ap);
    va_end(ap);
    moe_str_printf(&s, " (%d%%)  ETA %s", (int)(100 * done),
                   moe_format_duration((now - p->start) / done * (1 - done), eta));
    fprintf(stderr, "\r\033[K%s", moe_str_c(&s));
    fflush(stderr);
    p->open = true;
    moe_str_free(&s);
}

void moe_progress_line_done(MoeProgressLine *p) {
    if (p->open)
        fputs("\r\033[K", stderr);
    free(p);
}
