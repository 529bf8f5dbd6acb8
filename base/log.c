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

static void MOE_PRINTF(1, 2) say_error(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    say("error", fmt, args);
    va_end(args);
}

void moe_log_error(MoeStatus st) {
    if (!st || moe_status_is_told(st))
        return;
    say_error("%s", moe_status_message(st));
    moe_status_set_told(st, true);
}

void moe_log_quiet(bool quiet) {
    atomic_store(&quiet_notes, quiet);
}
