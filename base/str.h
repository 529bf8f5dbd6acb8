/* Growable strings and the few string helpers that every room needs. */
#ifndef MOE_BASE_STR_H
#define MOE_BASE_STR_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/status.h"

/* A growable, always NUL-terminated byte string. Zero-initialise; free with moe_str_free. */
typedef struct {
    char *data; /* may be NULL while len == 0; use moe_str_c */
    size_t len, cap;
} MoeStr;

void moe_str_printf(MoeStr *s, const char *fmt, ...) MOE_PRINTF(2, 3);
void moe_str_vprintf(MoeStr *s, const char *fmt, va_list args) MOE_PRINTF(2, 0);
void moe_str_append(MoeStr *s, const char *text);
void moe_str_append_n(MoeStr *s, const char *text, size_t n);
void moe_str_putc(MoeStr *s, char c);
void moe_str_clear(MoeStr *s);
void moe_str_free(MoeStr *s);
const char *moe_str_c(const MoeStr *s); /* "" when empty */

/* Shortest decimal text that reads back to the same double, always with '.' or 'e' or inf/nan, e.g. "1e-05",
 * "0.5", "2.0". buf holds at least 32 bytes; returns buf. */
char *moe_format_double(double v, char *buf);
/* 1536 -> "1.5 KiB". buf holds at least 32 bytes; returns buf. */
char *moe_format_bytes(double n_bytes, char *buf);
/* 3725.0 s -> "1h02m". buf holds at least 32 bytes; returns buf. */
char *moe_format_duration(double seconds, char *buf);
/* The candidate nearest to `name` by edit distance (at most a third of its length, and at least 1, away), else NULL. */
const char *moe_nearest_name(const char *name, const char *const *candidates, size_t n);
/* Whole-string number parsing: false when anything is left over or out of range. */
bool moe_parse_i64(const char *s, int64_t *out);
bool moe_parse_double(const char *s, double *out);
bool moe_utf8_valid(const char *s, size_t n,
                    size_t *out_bad_offset); /* out_bad_offset may be NULL */

#endif
