/* The progress line: rewritten in place on a terminal, else a plain line now and then. Declared in
 * log.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/str.h"
#include "runtime/log.h"

#define TERMINAL_SECONDS 0.1

struct MoeProgress {
    bool quiet, terminal, line_open;
    double every, last, max_seconds;
    int64_t steps, done; /* done: steps of this process */
    double rate, mfu;    /* smoothed */
};

MoeProgress *moe_progress_create(bool quiet, double every_seconds, int64_t steps,
                                 double max_seconds) {
    MoeProgress *p = calloc(1, sizeof *p);
    MOE_ASSERT(p, "no memory for the progress line");
    p->quiet = quiet;
    p->terminal = isatty(STDERR_FILENO);
    p->every = p->terminal ? TERMINAL_SECONDS : every_seconds;
    p->last = -INFINITY;
    p->steps = steps;
    p->max_seconds = max_seconds;
    return p;
}

static double smooth(double old, double v, int64_t n) {
    double weight = n < 10 ? 1.0 / (double)n : 0.1;
    return isfinite(v) ? old + weight * (v - old) : old;
}

static void clear_line(MoeProgress *p) {
    if (p->line_open)
        fputs("\r\033[K", stderr);
    p->line_open = false;
}

void moe_progress_step(MoeProgress *p, const MoeLogRecord *r, double elapsed_seconds) {
    p->done++;
    p->rate = smooth(p->rate, r->tokens_per_second, p->done);
    p->mfu = isfinite(r->mfu) ? smooth(p->mfu, r->mfu, p->done) : NAN;
    bool last = r->step >= p->steps;
    if (p->quiet || (!last && elapsed_seconds - p->last < p->every))
        return;
    p->last = elapsed_seconds;
    double left = elapsed_seconds / (double)p->done * (double)(p->steps - r->step);
    if (p->max_seconds > 0 && left > p->max_seconds - elapsed_seconds)
        left = p->max_seconds > elapsed_seconds ? p->max_seconds - elapsed_seconds : 0;
    char eta[32];
    MoeStr s = {0};
    moe_str_printf(&s, "step %lld/%lld (%d%%)  loss %.4f  lr %.2e  %.0f tok/s", (long long)r->step,
                   (long long)p->steps, (int)(100 * r->step / p->steps), r->loss, r->lr, p->rate);
    if (isfinite(p->mfu))
        moe_str_printf(&s, "  MFU %.1f%%", 100 * p->mfu);
    if (!last)
        moe_str_printf(&s, "  ETA %s", moe_format_duration(left, eta));
    if (r->skipped)
        moe_str_append(&s, "  (skipped: not finite)");
    clear_line(p);
    fputs(moe_str_c(&s), stderr);
    if (!p->terminal)
        fputc('\n', stderr);
    p->line_open = p->terminal;
    fflush(stderr);
    moe_str_free(&s);
}

void moe_progress_say(MoeProgress *p, const char *fmt, ...) {
    if (p->quiet)
        return;
    va_list ap;
    va_start(ap, fmt);
    clear_line(p);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    fflush(stderr);
    va_end(ap);
}

void moe_progress_done(MoeProgress *p) {
    if (p && p->line_open)
        fputc('\n', stderr);
    free(p);
}
