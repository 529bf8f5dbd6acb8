/* Load as a matrix, as one hands to EPLB's rebalance_experts: a line a layer, a column an expert, separated by commas or blanks; or
 * printed as nested lists, [[...], [...]], whose rows may go over several lines. '#' begins a comment. It is one step of one
 * source. */
#include "placement/load_internal.h"

#include <math.h>
#include <string.h>

#include "base/str.h"

typedef struct {
    const char *path;
    const char *p, *stop;
    int64_t line;
    MoeArena *a;
    int32_t *counts; /* rows one after another */
    size_t n, cap;
    size_t row_begin; /* of the row under way */
    int64_t row_line;
    int layers, experts;
    double largest;
} Reader;

static MoeStatus end_row(Reader *r) {
    size_t n = r->n - r->row_begin;
    if (!n)
        return NULL;
    if (!r->layers)
        r->experts = (int)n;
    else if ((int)n != r->experts)
        return moe_error(MOE_E_INPUT, "%s:%lld: %zu experts, the first layer has %d", r->path,
                         (long long)r->row_line, n, r->experts);
    r->layers++;
    r->row_begin = r->n;
    return NULL;
}

static bool in_number(char c) {
    return (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E';
}

static MoeStatus read_number(Reader *r) {
    char text[48];
    size_t n = 0;
    while (r->p < r->stop && n + 1 < sizeof text && !strchr(" \t\r\n,[]#;", *r->p))
        text[n++] = *r->p++;
    text[n] = 0;
    size_t known = 0;
    while (in_number(text[known]))
        known++;
    double v = 0;
    if (!n || known < n || !moe_parse_double(text, &v) || !isfinite(v))
        return moe_error(MOE_E_INPUT,
                         "%s:%lld: \"%.40s\" is not a number; expected a load trace: CSV "
                         "step,layer,rank,e0,..., a matrix with a "
                         "line a layer, or a router trace in JSON lines",
                         r->path, (long long)r->line, text);
    if (v < 0)
        return moe_error(MOE_E_INPUT, "%s:%lld: %s: a load cannot be negative", r->path,
                         (long long)r->line, text);
    if (v > INT32_MAX)
        return moe_error(MOE_E_INPUT, "%s:%lld: %s: at most %d is possible; scale the matrix",
                         r->path, (long long)r->line, text, INT32_MAX);
    r->largest = fmax(r->largest, v);
    if (r->n == r->row_begin)
        r->row_line = r->line;
    if (r->n - r->row_begin == MOE_LOAD_EXPERTS)
        return moe_error(MOE_E_INPUT, "%s:%lld: more than %d experts", r->path, (long long)r->line,
                         MOE_LOAD_EXPERTS);
    MOE_PUSH(r->a, r->counts, r->n, r->cap, (int32_t)lrint(v));
    return NULL;
}

static MoeStatus read_all(Reader *r) {
    bool lists = r->p < r->stop && *r->p == '[';
    while (r->p < r->stop) {
        char c = *r->p;
        if (c == '#') {
            const char *nl = memchr(r->p, '\n', (size_t)(r->stop - r->p));
            r->p = nl ? nl : r->stop;
            continue;
        }
        if (c == '\n') {
            if (!lists)
                MOE_TRY(end_row(r));
            r->line++;
        } else if (c == ']' && lists) {
            MOE_TRY(end_row(r));
        } else if (!strchr(lists ? " \t\r,[" : " \t\r,", c)) {
            MOE_TRY(read_number(r));
            continue;
        }
        r->p++;
    }
    return end_row(r);
}

MoeStatus moe_load_read_matrix(const char *path, const char *text, size_t n, MoeArena *a,
                               MoeLoad *out) {
    Reader r = {.path = path, .p = text, .stop = text + n, .line = 1, .a = a};
    MOE_TRY(read_all(&r));
    if (!r.layers)
        return moe_error(MOE_E_INPUT, "%s: empty", path);
    if (r.largest > 0 && r.largest < 1)
        return moe_error(MOE_E_INPUT,
                         "%s: the largest load is %g; expected rows of tokens, so scale the matrix",
                         path, r.largest);
    *out = (MoeLoad){.steps = 1,
                     .layers = r.layers,
                     .sources = 1,
                     .experts = r.experts,
                     .counts = r.counts,
                     .layer = MOE_NEW_N(a, int32_t, r.layers)};
    for (int k = 0; k < r.layers; k++)
        out->layer[k] = k;
    return moe_load_check_totals(path, out);
}
