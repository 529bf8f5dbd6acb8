/* Load traces as CSV: a header `step,layer,rank,e0,e1,...`, then a row for each step, layer and rank. Read twice from a mapping: the
 * first time everything is checked and the places of rows are noted, the second time counts go where they belong, so that nothing
 * of the text is kept in memory. */
#include "placement/load_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *path;
    int64_t line;
    const char *p, *end; /* of the line */
} Cursor;

/* The text of the next cell. */
static void cell(const Cursor *c, const char **text, int *n) {
    const char *comma = memchr(c->p, ',', (size_t)(c->end - c->p));
    const char *end = comma ? comma : c->end;
    *text = c->p;
    *n = end - c->p > 40 ? 40 : (int)(end - c->p);
}

static MoeStatus bad_cell(const Cursor *c, const char *name, int64_t most) {
    const char *text;
    int n;
    cell(c, &text, &n);
    while (n && *text == ' ')
        text++, n--;
    if (n == 0)
        return moe_error(MOE_E_INPUT, "%s:%lld: %s is empty; expected a whole number", c->path,
                         (long long)c->line, name);
    if (*text == '-' && n > 1 && text[1] >= '0' && text[1] <= '9')
        return moe_error(MOE_E_INPUT, "%s:%lld: %s is %.*s; it cannot be negative", c->path,
                         (long long)c->line, name, n, text);
    if (strspn(text, "0123456789") >= (size_t)n)
        return moe_error(MOE_E_INPUT, "%s:%lld: %s is %.*s; at most %" PRId64 " is possible",
                         c->path, (long long)c->line, name, n, text, most);
    return moe_error(MOE_E_INPUT, "%s:%lld: %s is \"%.*s\"; expected a whole number", c->path,
                     (long long)c->line, name, n, text);
}

/* The next cell as a number from 0 to `most`, and the comma after it; false if it is none. */
static bool number(Cursor *c, int64_t most, int64_t *out) {
    const char *p = c->p;
    int64_t v = 0;
    while (p < c->end && *p == ' ')
        p++;
    const char *first = p;
    for (; p < c->end && *p >= '0' && *p <= '9'; p++) {
        v = v * 10 + (*p - '0');
        if (v > most)
            return false;
    }
    if (p == first)
        return false;
    while (p < c->end && *p == ' ')
        p++;
    if (p < c->end && *p != ',')
        return false;
    c->p = p;
    *out = v;
    return true;
}

static MoeStatus key(Cursor *c, const char *name, int64_t most, int64_t *out) {
    if (!number(c, most, out))
        return bad_cell(c, name, most);
    if (c->p == c->end)
        return moe_error(MOE_E_INPUT, "%s:%lld: the row ends after its %s", c->path,
                         (long long)c->line, name);
    c->p++;
    return NULL;
}

/* The cursor is behind the count `n` of a row. */
static MoeStatus ragged(const Cursor *c, int n, int experts) {
    for (const char *p = c->p; p < c->end; p++)
        n += *p == ',';
    return moe_error(MOE_E_INPUT, "%s:%lld: %d counts, expected %d (e0 to e%d)", c->path,
                     (long long)c->line, n, experts, experts - 1);
}

/* All counts of a row; out may be NULL: then they are only checked. */
static MoeStatus counts(Cursor *c, int experts, int32_t *out) {
    for (int e = 0; e < experts; e++) {
        int64_t v;
        if (!number(c, INT32_MAX, &v)) {
            char name[16];
            snprintf(name, sizeof name, "e%d", e);
            return bad_cell(c, name, INT32_MAX);
        }
        if ((c->p == c->end) != (e == experts - 1))
            return ragged(c, e + 1, experts);
        c->p += c->p < c->end;
        if (out)
            out[e] = (int32_t)v;
    }
    return NULL;
}

/* Experts that the header names. */
static MoeStatus header(Cursor *c, int *experts) {
    static const char head[] = "step,layer,rank";
    size_t n = sizeof head - 1;
    if ((size_t)(c->end - c->p) < n || memcmp(c->p, head, n))
        return moe_error(MOE_E_INPUT, "%s:1: expected the columns step,layer,rank,e0,e1,...",
                         c->path);
    c->p += n;
    int e = 0;
    for (; c->p < c->end; e++) {
        char want[16];
        const char *text;
        int len;
        c->p++; /* the comma: anything else shows in the next name */
        cell(c, &text, &len);
        snprintf(want, sizeof want, "e%d", e);
        if (text[-1] != ',' || len != (int)strlen(want) || memcmp(text, want, (size_t)len))
            return moe_error(MOE_E_INPUT, "%s:1: column %d is \"%.*s\"; expected \"%s\"", c->path,
                             e + 4, len, text, want);
        if (e == MOE_LOAD_EXPERTS)
            return moe_error(MOE_E_INPUT, "%s:1: more than %d experts", c->path, MOE_LOAD_EXPERTS);
        c->p += len;
    }
    if (!e)
        return moe_error(MOE_E_INPUT,
                         "%s:1: no column for an expert; expected step,layer,rank,e0,e1,...",
                         c->path);
    *experts = e;
    return NULL;
}

/* The next line that is not blank, without its end; false at the text's end. *whole: it ended in a newline. */
static bool next_line(Cursor *c, const char **rest, const char *stop, bool *whole) {
    while (*rest < stop) {
        const char *p = *rest, *nl = memchr(p, '\n', (size_t)(stop - p));
        *whole = nl != NULL;
        *rest = nl ? nl + 1 : stop;
        c->line++;
        c->p = p;
        c->end = nl ? nl : stop;
        if (c->end > p && c->end[-1] == '\r')
            c->end--;
        if (c->end > p)
            return true;
    }
    return false;
}

static MoeStatus read_row(Cursor *c, int experts, MoeLoadRow *out) {
    int64_t source = 0;
    *out = (MoeLoadRow){.line = c->line, .n = experts};
    MOE_TRY(key(c, "step", INT64_MAX / 16, &out->step));
    MOE_TRY(key(c, "layer", INT32_MAX - 1, &out->layer));
    MOE_TRY(key(c, "rank", MOE_LOAD_SOURCES - 1, &source));
    out->source = (int32_t)source;
    out->data = c->p;
    return counts(c, experts, NULL);
}

MoeStatus moe_load_read_csv(const char *path, const char *text, size_t n, bool growing, MoeArena *a,
                            MoeLoad *out) {
    Cursor c = {.path = path};
    const char *rest = text, *stop = text + n;
    bool whole;
    int experts = 0;
    if (!next_line(&c, &rest, stop, &whole))
        return moe_error(MOE_E_INPUT, "%s: empty", path);
    MOE_TRY(header(&c, &experts));
    MoeLoadRows r = {.files = &path, .growing = growing};
    while (next_line(&c, &rest, stop, &whole)) {
        if (!whole && growing)
            break; /* it is being written */
        MoeLoadRow row;
        MOE_TRY(read_row(&c, experts, &row));
        MOE_PUSH(a, r.rows, r.n, r.cap, row);
    }
    if (!r.n)
        return moe_error(MOE_E_INPUT, "%s: a header and no rows", path);
    MOE_TRY(moe_load_arrange(&r, a, out));
    out->experts = experts;
    MOE_TRY(moe_load_allocate(path, a, out));
    for (size_t i = 0; i < r.n; i++) {
        const MoeLoadRow *row = &r.rows[i];
        const char *p = row->data, *nl = memchr(p, '\n', (size_t)(stop - p));
        Cursor at = {.path = path, .line = row->line, .p = p, .end = nl ? nl : stop};
        if (at.end > p && at.end[-1] == '\r')
            at.end--;
        MOE_TRY(counts(&at, experts, moe_load_cell(out, row)));
    }
    return moe_load_check_totals(path, out);
}
