/* Growable strings, and checks and parsing of text. Number formatting is in format.c. */
#include "base/str.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

static void reserve(MoeStr *s, size_t extra) {
    MOE_ASSERT(extra < SIZE_MAX / 4 && s->len < SIZE_MAX / 4, "a string of %zu + %zu bytes", s->len,
               extra);
    size_t need = s->len + extra + 1;
    if (need <= s->cap)
        return;
    size_t cap = s->cap ? s->cap * 2 : 64;
    if (cap < need)
        cap = need;
    char *p = realloc(s->data, cap);
    MOE_ASSERT(p, "out of memory for a string of %zu bytes", cap);
    s->data = p;
    s->cap = cap;
}

void moe_str_append_n(MoeStr *s, const char *text, size_t n) {
    reserve(s, n);
    if (n)
        memcpy(s->data + s->len, text, n);
    s->len += n;
    s->data[s->len] = '\0';
}

void moe_str_append(MoeStr *s, const char *text) {
    moe_str_append_n(s, text, strlen(text));
}

void moe_str_putc(MoeStr *s, char c) {
    moe_str_append_n(s, &c, 1);
}

void moe_str_vprintf(MoeStr *s, const char *fmt, va_list args) {
    reserve(s, 80); /* most pieces fit: one pass of formatting */
    size_t room = s->cap - s->len;
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(s->data + s->len, room, fmt, again);
    va_end(again);
    MOE_ASSERT(n >= 0, "a format that cannot be printed");
    if ((size_t)n >= room) {
        reserve(s, (size_t)n);
        vsnprintf(s->data + s->len, (size_t)n + 1, fmt, args);
    }
    s->len += (size_t)n;
}

void moe_str_printf(MoeStr *s, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    moe_str_vprintf(s, fmt, args);
    va_end(args);
}

void moe_str_clear(MoeStr *s) {
    s->len = 0;
    if (s->data)
        s->data[0] = '\0';
}

void moe_str_free(MoeStr *s) {
    free(s->data);
    *s = (MoeStr){0};
}

const char *moe_str_c(const MoeStr *s) {
    return s->data ? s->data : "";
}

bool moe_parse_i64(const char *s, int64_t *out) {
    if (!((*s >= '0' && *s <= '9') || *s == '-' || *s == '+'))
        return false; /* strtoll would skip spaces */
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (end == s || *end || errno)
        return false;
    *out = v;
    return true;
}

bool moe_parse_double(const char *s, double *out) {
    if (*s == '\0' || *s == ' ' || (*s >= '\t' && *s <= '\r'))
        return false;
    char *end;
    errno = 0;
    double v = strtod(s, &end);
    if (end == s || *end)
        return false;
    if (errno == ERANGE && (v > 1.0 || v < -1.0))
        return false; /* overflow; a denormal result also sets ERANGE and is fine */
    *out = v;
    return true;
}

/* Length of the valid UTF-8 sequence at p (n bytes left, n >= 1), or 0. Follows table 3-7 of the
 * Unicode Standard: no overlong forms, no surrogates, nothing past U+10FFFF. */
static size_t utf8_step(const unsigned char *p, size_t n) {
    unsigned c = p[0];
    if (c < 0x80)
        return 1;
    if (c < 0xc2 || c > 0xf4)
        return 0;
    unsigned lo = 0x80, hi = 0xbf;
    size_t len = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (c == 0xe0)
        lo = 0xa0;
    else if (c == 0xed)
        hi = 0x9f;
    else if (c == 0xf0)
        lo = 0x90;
    else if (c == 0xf4)
        hi = 0x8f;
    if (n < len || p[1] < lo || p[1] > hi)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

bool moe_utf8_valid(const char *s, size_t n, size_t *out_bad_offset) {
    const unsigned char *p = (const unsigned char *)s;
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        if (n - i >= 8) { /* eight ASCII bytes at a time: data files are gigabytes */
            memcpy(&word, p + i, 8);
            if (!(word & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        size_t len = utf8_step(p + i, n - i);
        if (!len) {
            if (out_bad_offset)
                *out_bad_offset = i;
            return false;
        }
        i += len;
    }
    return true;
}

/* Edits between two names: insertions, deletions, changes, and swaps of neighbours (the commonest slip of
 * the fingers). limit + 1 when the lengths alone say that it is more than `limit`. */
static size_t edit_distance(const char *a, size_t na, const char *b, size_t nb, size_t limit) {
    if (na > nb + limit || nb > na + limit)
        return limit + 1;
    size_t *rows = malloc(3 * (nb + 1) * sizeof *rows); /* of a's prefixes i - 2, i - 1 and i */
    MOE_ASSERT(rows, "out of memory comparing names");
    size_t *before = rows, *above = rows + nb + 1, *row = rows + 2 * (nb + 1);
    for (size_t j = 0; j <= nb; j++)
        row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t *spare = before;
        before = above;
        above = row;
        row = spare;
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
    }
    size_t d = row[nb];
    free(rows);
    return d;
}

const char *moe_nearest_name(const char *name, const char *const *candidates, size_t n) {
    size_t len = strlen(name);
    size_t limit = len / 3 > 1 ? len / 3 : 1;
    const char *best = NULL;
    size_t best_distance = limit + 1;
    for (size_t i = 0; i < n; i++) {
        size_t d = edit_distance(name, len, candidates[i], strlen(candidates[i]), limit);
        if (d < best_distance) { /* ties: the first, so that hints are deterministic */
            best_distance = d;
            best = candidates[i];
        }
    }
    return best;
}
