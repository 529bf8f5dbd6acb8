/* Warnings and notes on stderr, one line at a time. */
#include "base/log.h"

#include <stdatomic.h>
#include <stdio.h>

static atomic_bool quiet_notes;

static void say(const char *kind, const char *fmt, va_list args) {
    flockfile(stderr); /* whole lines, also from several threads */
    fprintf(stderr, "moec: %s: ", kind);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    funlockfile(stderr);
}

void moe_warn(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    say("warning", fmt, args);
    va_end(args);
}

void moe_note(const char *fmt, ...) {
    if (atomic_load(&quiet_notes))
        return;
    va_list args;
    va_start(args, fmt);
    say("note", fmt, args);
    va_end(args);
}

void moe_log_quiet(bool quiet) {
    atomic_store(&quiet_notes, quiet);
}
