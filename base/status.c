/* Statuses: owned error values. See status.h. Running out of memory while an error is being made
 * gives a static "out of memory" status, so that a failure is never lost. */
#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct MoeStatusRep {
    MoeCode code;
    char *message;
    bool told;
};

static char no_memory_text[] = "out of memory (while reporting another error)";
static struct MoeStatusRep no_memory = {MOE_E_NOMEM, no_memory_text, false};

/* malloc'd text, or NULL when there is no memory for it. */
static char *format_text(const char *fmt, va_list args) {
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    if (n < 0)
        return NULL;
    char *text = malloc((size_t)n + 1);
    if (text)
        vsnprintf(text, (size_t)n + 1, fmt, args);
    return text;
}

/* Takes `message`. */
static MoeStatus make_status(MoeCode code, char *message) {
    struct MoeStatusRep *s = message ? malloc(sizeof *s) : NULL;
    if (!s) {
        free(message);
        return &no_memory;
    }
    s->code = code;
    s->message = message;
    s->told = false;
    return s;
}

MoeStatus moe_error(MoeCode code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    char *text = format_text(fmt, args);
    va_end(args);
    return make_status(code, text);
}

/* "a" + sep + "b", malloc'd; NULL if either is NULL or there is no memory. */
static char *join_text(const char *a, const char *sep, const char *b) {
    if (!a || !b)
        return NULL;
    size_t na = strlen(a), ns = strlen(sep), nb = strlen(b);
    char *text = malloc(na + ns + nb + 1);
    if (!text)
        return NULL;
    memcpy(text, a, na);
    memcpy(text + na, sep, ns);
    memcpy(text + na + ns, b, nb + 1);
    return text;
}

MoeStatus moe_error_errno(const char *fmt, ...) {
    int err = errno;
    va_list args;
    va_start(args, fmt);
    char *what = format_text(fmt, args);
    va_end(args);
    char buf[128];
    /* The GNU strerror_r: thread-safe, and may return a static string instead of filling buf. */
    const char *why = strerror_r(err, buf, sizeof buf);
    char *text = join_text(what, ": ", why);
    free(what);
    return make_status(err == ENOMEM ? MOE_E_NOMEM : MOE_E_IO, text);
}

MoeStatus moe_status_prefix(MoeStatus s, const char *fmt, ...) {
    if (!s || s == &no_memory)
        return s;
    va_list args;
    va_start(args, fmt);
    char *context = format_text(fmt, args);
    va_end(args);
    char *text = join_text(context, ": ", s->message);
    free(context);
    if (text) { /* without memory the old message is better than none */
        free(s->message);
        s->message = text;
    }
    return s;
}

MoeCode moe_status_code(MoeStatus s) {
    return s->code;
}

const char *moe_status_message(MoeStatus s) {
    return s ? s->message : "ok";
}

bool moe_status_is_told(MoeStatus s) {
    return s && s->told;
}

void moe_status_set_told(MoeStatus s, bool told) {
    if (s != &no_memory) /* shared: better twice than never */
        s->told = told;
}

int moe_status_exit_code(MoeStatus s) {
    if (!s)
        return 0;
    return s->code == MOE_E_MISUSE ? 2 : 1;
}

void moe_status_free(MoeStatus s) {
    if (!s || s == &no_memory)
        return;
    free(s->message);
    free(s);
}
