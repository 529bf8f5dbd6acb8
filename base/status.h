/* Status: how a failure of the environment or of the user's input travels up.
 *
 * A MoeStatus is NULL on success, else an owned error that the receiver passes on, reports or frees.
 * Library code never exits and never prints; the command line turns a status into an exit code
 * (moe_status_exit_code) and one clear message. Our own bugs are assertions, not statuses. */
#ifndef MOE_BASE_STATUS_H
#define MOE_BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>

typedef struct MoeStatusRep *MoeStatus; /* NULL = success */

typedef enum {
    MOE_E_INPUT = 1, /* bad input file or content: exit 1 */
    MOE_E_MISUSE,    /* bad command line: exit 2 */
    MOE_E_IO,        /* the system failed us: disk, permissions: exit 1 */
    MOE_E_NOMEM,     /* not enough memory: exit 1 */
    MOE_E_CORRUPT,   /* a file of our own is damaged: exit 1 */
    MOE_E_INTERNAL,  /* an invariant of moec broke: exit 1 */
    MOE_E_PEER       /* another rank died, hangs or gave up: exit 1 */
} MoeCode;

#if defined(__GNUC__)
#define MOE_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define MOE_PRINTF(a, b)
#endif

/* A new error. The message names file, key or tensor, what was expected, and what to do. */
MoeStatus moe_error(MoeCode code, const char *fmt, ...) MOE_PRINTF(2, 3);
/* Like moe_error(MOE_E_IO, ...), with ": strerror(errno)" appended; ENOMEM becomes MOE_E_NOMEM. */
MoeStatus moe_error_errno(const char *fmt, ...) MOE_PRINTF(1, 2);
/* Puts "context: " before the message of `s`; returns s. NULL stays NULL. */
MoeStatus moe_status_prefix(MoeStatus s, const char *fmt, ...) MOE_PRINTF(2, 3);
MoeCode moe_status_code(MoeStatus s);        /* s != NULL */
const char *moe_status_message(MoeStatus s); /* owned by s; "ok" for NULL */
int moe_status_exit_code(MoeStatus s);       /* 0, 1 or 2 */
/* Whether somebody else says it: another rank, whose own error it is, or this process has said it already. */
bool moe_status_is_told(MoeStatus s); /* false for NULL */
void moe_status_set_told(MoeStatus s, bool told); /* s != NULL */
void moe_status_free(MoeStatus s);           /* NULL is fine */

#define MOE_TRY(expr)                                                                              \
    do {                                                                                           \
        MoeStatus moe_try_ = (expr);                                                               \
        if (moe_try_)                                                                              \
            return moe_try_;                                                                       \
    } while (0)

/* For functions that clean up: sets `st` and jumps to the one label. */
#define MOE_TRY_GOTO(st, expr, label)                                                              \
    do {                                                                                           \
        (st) = (expr);                                                                             \
        if (st)                                                                                    \
            goto label;                                                                            \
    } while (0)

#endif
