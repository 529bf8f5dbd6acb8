/* Diagnostics for text that people write (.moe files, JSON): file:line:col, the message, the source line with
 * a caret, an optional hint. Several are collected before giving up. */
#ifndef MOE_BASE_DIAG_H
#define MOE_BASE_DIAG_H

#include <stddef.h>
#include "base/status.h"
#include "base/str.h"

typedef struct {
    int line, col; /* 1-based; 0 = unknown */
} MoeLoc;

typedef struct MoeDiag {
    const char *file;   /* borrowed */
    const char *source; /* borrowed whole text, or NULL: then no source line is shown */
    size_t n_errors;
    size_t max_errors; /* 0 = 20 */
    MoeStr text;       /* what was said, ready to print */
} MoeDiag;

/* "file:line:col: error: ..." then the source line and a caret. */
void moe_diag_error(MoeDiag *d, MoeLoc loc, const char *fmt, ...) MOE_PRINTF(3, 4);
/* "  hint: ..." below the last error. */
void moe_diag_hint(MoeDiag *d, const char *fmt, ...) MOE_PRINTF(2, 3);
/* NULL if nothing was reported, else MOE_E_INPUT with all the text. */
MoeStatus moe_diag_status(const MoeDiag *d);
void moe_diag_free(MoeDiag *d);

#endif
