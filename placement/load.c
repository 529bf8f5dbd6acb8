/* Load traces: which reader a path is for, writing, and what replay does to a trace: other numbers of sources and experts. */
#include "placement/load_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/str.h"

/* ---- reading ---- */

static MoeStatus read_file(const char *path, bool growing, MoeArena *a, MoeLoad *out) {
    MoeMap map;
    MOE_TRY(moe_map_open(path, &map));
    const char *text = (const char *)map.data, *p = text, *stop = text + map.n;
    while (p < stop && strchr(" \t\r\n", *p))
        p++;
    MoeStatus st;
    if (p == stop)
        st = moe_error(MOE_E_INPUT, "%s: empty; expected a load trace", path);
    else if (*p == '{')
        st = moe_load_read_router(&path, 1, a, out);
    else if (strchr("[0123456789.#-", *p))
        st = moe_load_read_matrix(path, text, map.n, a, out);
    else if (stop - p >= 5 && memcmp(p, "step,", 5) == 0)
        st = moe_load_read_csv(path, text, map.n, growing, a, out);
    else
        st = moe_error(MOE_E_INPUT,
                       "%s:1: not a load trace; expected CSV step,layer,rank,e0,..., a matrix with "
                       "a line a layer, or a router trace in "
                       "JSON lines",
                       path);
    moe_map_close(&map);
    return st;
}

/* "router_trace_rank12.jsonl" */
static bool is_router_trace(const char *name) {
    static const char head[] = "router_trace_rank";
    size_t n = strlen(name), digits;
    if (n < sizeof head || memcmp(name, head, sizeof head - 1))
        return false;
    digits = strspn(name + sizeof head - 1, "0123456789");
    return digits && strcmp(name + sizeof head - 1 + digits, ".jsonl") == 0;
}

static MoeStatus read_router_directory(const char *path, MoeArena *a, MoeLoad *out) {
    char **names;
    size_t n, n_paths = 0, cap = 0;
    const char **paths = NULL;
    MOE_TRY(moe_dir_list(path, &names, &n));
    for (size_t i = 0; i < n; i++)
        if (is_router_trace(names[i]))
            MOE_PUSH(a, paths, n_paths, cap, moe_arena_printf(a, "%s/%s", path, names[i]));
    moe_dir_list_free(names, n);
    if (!n_paths)
        return moe_error(
            MOE_E_INPUT,
            "%s: neither a run with a trace.csv nor a directory of router_trace_rank*.jsonl", path);
    return moe_load_read_router(paths, (int)n_paths, a, out);
}

MoeStatus moe_load_read(const char *path, MoeArena *a, MoeLoad *out) {
    if (!moe_path_is_dir(path))
        return read_file(path, false, a, out);
    const char *trace = moe_arena_printf(a, "%s/trace.csv", path);
    return moe_path_exists(trace) ? read_file(trace, true, a, out)
                                  : read_router_directory(path, a, out);
}

/* ---- writing ---- */

static MoeStatus write_all(MoeFileOut *f, const MoeLoad *l, MoeStr *s) {
    moe_str_append(s, "step,layer,rank");
    for (int e = 0; e < l->experts; e++)
        moe_str_printf(s, ",e%d", e);
    moe_str_putc(s, '\n');
    for (int t = 0; t < l->steps; t++) {
        for (int k = 0; k < l->layers; k++)
            for (int r = 0; r < l->sources; r++) {
                const int32_t *c = moe_load_at(l, t, k) + (int64_t)r * l->experts;
                moe_str_printf(s, "%lld,%d,%d", (long long)(l->first_step + t), l->layer[k], r);
                for (int e = 0; e < l->experts; e++)
                    moe_str_printf(s, ",%d", c[e]);
                moe_str_putc(s, '\n');
            }
        MOE_TRY(moe_out_write(f, moe_str_c(s), s->len));
        moe_str_clear(s);
    }
    return NULL;
}

MoeStatus moe_load_write(const char *path, const MoeLoad *l) {
    MoeFileOut *f = NULL;
    MoeStr s = {0};
    MOE_TRY(moe_out_create(path, &f));
    MoeStatus st = write_all(f, l, &s);
    moe_str_free(&s);
    if (st) {
        moe_out_abandon(f);
        return st;
    }
    return moe_out_finish(f, NULL, NULL);
}

/* ---- other sizes ---- */

MoeStatus moe_load_widen(MoeLoad *l, int n, MoeArena *a) {
    if (n < l->experts)
        return moe_error(MOE_E_INPUT, "the trace has %d experts, more than the %d asked for",
                         l->experts, n);
    if (n == l->experts)
        return NULL;
    MoeLoad wide = *l;
    wide.experts = n;
    MOE_TRY(moe_load_allocate("the trace", a, &wide));
    int64_t rows = (int64_t)l->steps * l->layers * l->sources;
    for (int64_t i = 0; i < rows; i++)
        memcpy(wide.counts + i * n, l->counts + i * l->experts,
               sizeof *l->counts * (size_t)l->experts);
    *l = wide;
    return NULL;
}

static int gcd(int a, int b) {
    return b ? gcd(b, a % b) : a;
}

/* Source s is `parts` equal parts of its own, one after another; a new source is `merged` consecutive parts of the whole line. A
 * row of c tokens gives each part floor(c / parts), and the rest one by one to the parts whose turn it is, so that no part is
 * favoured over all experts. */
void moe_load_divide(const int32_t *in, int sources, int experts, int n, int32_t *out) {
    int parts = n / gcd(sources, n), merged = sources / gcd(sources, n);
    memset(out, 0, sizeof *out * (size_t)n * (size_t)experts);
    for (int s = 0; s < sources; s++) {
        int turn = 0;
        for (int e = 0; e < experts; e++) {
            int32_t c = in[(int64_t)s * experts + e], each = c / parts, rest = c % parts;
            for (int i = 0; i < parts; i++) {
                bool more = (i - turn + parts) % parts < rest;
                int64_t to = ((int64_t)s * parts + i) / merged;
                out[to * experts + e] += each + more;
            }
            turn = (turn + rest) % parts;
        }
    }
}

MoeStatus moe_load_sources(const MoeLoad *in, int n, MoeArena *a, MoeLoad *out, bool *divided) {
    if (n < 1 || n > MOE_LOAD_SOURCES)
        return moe_error(MOE_E_MISUSE, "%d sources; expected 1 to %d", n, MOE_LOAD_SOURCES);
    *divided = in->sources % n != 0;
    MoeLoad l = *in;
    l.sources = n;
    if (n == in->sources) {
        *out = l;
        return NULL;
    }
    MOE_TRY(moe_load_allocate("the trace", a, &l));
    for (int s = 0; s < l.steps; s++)
        for (int k = 0; k < l.layers; k++)
            moe_load_divide(moe_load_at(in, s, k), in->sources, l.experts, n,
                            l.counts + ((int64_t)s * l.layers + k) * n * l.experts);
    *out = l;
    return NULL;
}

const int32_t *moe_load_at(const MoeLoad *l, int step, int layer) {
    return l->counts + ((int64_t)step * l->layers + layer) * l->sources * l->experts;
}
