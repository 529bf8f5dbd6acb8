/* Diagnostics with source lines and carets. Columns count bytes; the caret is placed by characters.
 */
#include "base/diag.h"

#include <string.h>

#define SHOWN_BYTES                                                                                \
    160 /* of a very long source line (minified JSON) only the part around the error is shown */

static size_t error_cap(const MoeDiag *d) {
    return d->max_errors ? d->max_errors : 20;
}

static bool is_continuation(char c) {
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* The source line of `loc` and a caret under its column. */
static void show_source(MoeDiag *d, MoeLoc loc) {
    const char *line = d->source;
    for (int i = 1; i < loc.line; i++) {
        line = strchr(line, '\n');
        if (!line)
            return; /* past the end of the text */
        line++;
    }
    size_t n = strcspn(line, "\r\n");
    size_t at = loc.col > 0 ? (size_t)loc.col - 1 : 0;
    if (at > n)
        at = n;
    size_t first = at > SHOWN_BYTES / 2 && n > SHOWN_BYTES ? at - SHOWN_BYTES / 2 : 0;
    while (first < at && is_continuation(line[first]))
        first++;
    size_t last = n - first > SHOWN_BYTES ? first + SHOWN_BYTES : n;
    while (last < n && is_continuation(line[last]))
        last++;
    moe_str_append(&d->text, first ? "    ..." : "    ");
    for (size_t i = first; i < last; i++) /* control characters would reach the terminal */
        moe_str_putc(&d->text, (unsigned char)line[i] < 0x20 && line[i] != '\t' ? '?' : line[i]);
    moe_str_append(&d->text, last < n ? "...\n" : "\n");
    if (loc.col <= 0)
        return;
    moe_str_append(&d->text, first ? "       " : "    ");
    for (size_t i = first; i < at; i++)
        if (!is_continuation(line[i]))
            moe_str_putc(&d->text, line[i] == '\t' ? '\t' : ' ');
    moe_str_append(&d->text, "^\n");
}

void moe_diag_error(MoeDiag *d, MoeLoc loc, const char *fmt, ...) {
    d->n_errors++;
    if (d->n_errors > error_cap(d)) {
        if (d->n_errors == error_cap(d) + 1)
            moe_str_printf(&d->text, "%s: too many errors; the rest is not shown\n",
                           d->file ? d->file : "input");
        return;
    }
    moe_str_append(&d->text, d->file ? d->file : "input");
    if (loc.line > 0)
        moe_str_printf(&d->text, ":%d", loc.line);
    if (loc.line > 0 && loc.col > 0)
        moe_str_printf(&d->text, ":%d", loc.col);
    moe_str_append(&d->text, ": error: ");
    va_list args;
    va_start(args, fmt);
    moe_str_vprintf(&d->text, fmt, args);
    va_end(args);
    moe_str_putc(&d->text, '\n');
    if (d->source && loc.line > 0)
        show_source(d, loc);
}

void moe_diag_hint(MoeDiag *d, const char *fmt, ...) {
    if (d->n_errors > error_cap(d))
        return; /* its error is not shown either */
    moe_str_append(&d->text, "  hint: ");
    va_list args;
    va_start(args, fmt);
    moe_str_vprintf(&d->text, fmt, args);
    va_end(args);
    moe_str_putc(&d->text, '\n');
}

MoeStatus moe_diag_status(const MoeDiag *d) {
    if (!d->n_errors)
        return NULL;
    const char *text = moe_str_c(&d->text);
    size_t n = d->text.len;
    while (n > 0 && text[n - 1] == '\n')
        n--; /* whoever prints a status ends the line */
    return moe_error(MOE_E_INPUT, "%.*s", (int)n, text);
}

void moe_diag_free(MoeDiag *d) {
    moe_str_free(&d->text);
    *d = (MoeDiag){0};
}
