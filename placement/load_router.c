/* Megatron-Core's router trace: what RouterTracer (megatron/core/transformer/moe/router_trace.py, --moe-routing-trace-path) writes, a
 * file a rank, a line of JSON a call of a router:
 *   {"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 3, "rank": 0, "num_tokens": 128, "topk": 8,
 *    "top_indices": [[12, 45, ...], ...]}
 * with "mtp_idx" in records of block "mtp". A training step has a record a micro-batch; what a recomputation calls again is there
 * again, which scales counts and changes no ratio. Layers are numbered within their pipeline stage: traces of one stage are
 * read. The list of choices is nearly all of a line: it is counted where it stands, and only the rest goes through the JSON
 * reader. */
#include "placement/load_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"

#define MTP_LAYERS                                                                                 \
    ((int64_t)1 << 20) /* a block of multi-token prediction begins at a multiple of it */

typedef struct {
    MoeArena *a;
    MoeLoadRows rows;
    int experts;
    int64_t *counts; /* of the record under way, [MOE_LOAD_EXPERTS] */
    MoeStr text;     /* its line without the list */
} Reader;

typedef struct {
    const char *path;
    int64_t line;
    const char *begin, *end;
} Line;

static MoeStatus bad(const Line *l, const char *what) {
    return moe_error(MOE_E_INPUT, "%s:%lld: %s", l->path, (long long)l->line, what);
}

/* Counts the choices in [[...], ...] at p; *after: behind it. tokens, choices: of the lists. */
static MoeStatus count_choices(Reader *r, const Line *l, const char *p, int *experts,
                               int64_t *tokens, int64_t *choices, const char **after) {
    int depth = 0;
    *experts = 0;
    *tokens = *choices = 0;
    for (; p < l->end; p++) {
        if (*p == '[') {
            depth++;
            *tokens += depth == 2;
        } else if (*p == ']') {
            if (--depth == 0) {
                *after = p + 1;
                return NULL;
            }
        } else if (*p >= '0' && *p <= '9') {
            int64_t e = 0;
            for (; p < l->end && *p >= '0' && *p <= '9' && e < MOE_LOAD_EXPERTS; p++)
                e = e * 10 + (*p - '0');
            p--;
            if (e >= MOE_LOAD_EXPERTS)
                return bad(l, "an expert's id is too large: at most 65535 is possible");
            for (; *experts <= e; ++*experts)
                r->counts[*experts] = 0;
            r->counts[e]++;
            ++*choices;
        } else if (*p == '-') {
            return bad(l, "top_indices has a negative expert id");
        } else if (*p != ',' && *p != ' ') {
            return bad(l, "top_indices is not a list of lists of whole numbers");
        }
        if (depth < 1 || depth > 2 || (depth == 1 && !strchr("[], ", *p)))
            return bad(l, "top_indices is not a list of lists of whole numbers");
    }
    return bad(l, "the line ends within top_indices");
}

/* What the record says beside the list. */
static MoeStatus read_keys(Reader *r, const Line *l, MoeLoadRow *row, int64_t *tokens,
                           int64_t *topk) {
    char where[512];
    json_t *o = NULL;
    const char *block = NULL;
    int64_t source = -1, mtp = 0;
    snprintf(where, sizeof where, "%.400s:%lld", l->path, (long long)l->line);
    json_error_t error;
    o = json_loadb(moe_str_c(&r->text), r->text.len, JSON_REJECT_DUPLICATES, &error);
    if (!o)
        return moe_error(MOE_E_INPUT, "%s: bad JSON: %s", where, error.text);
    MoeStatus st = moe_json_i64(o, where, "step", true, &row->step);
    if (!st)
        st = moe_json_i64(o, where, "layer", true, &row->layer);
    if (!st)
        st = moe_json_i64(o, where, "rank", true, &source);
    if (!st)
        st = moe_json_i64(o, where, "num_tokens", false, tokens);
    if (!st)
        st = moe_json_i64(o, where, "topk", false, topk);
    if (!st)
        st = moe_json_i64(o, where, "mtp_idx", false, &mtp);
    if (!st)
        st = moe_json_str(o, where, "block", false, &block);
    if (!st && (row->step < 0 || row->step > INT64_MAX / 16 || row->layer < 0 ||
                row->layer >= MTP_LAYERS || source < 0 || source >= MOE_LOAD_SOURCES || mtp < 0 ||
                mtp > 1000))
        st = moe_error(MOE_E_INPUT, "%s: step %lld, layer %lld, rank %lld: out of range", where,
                       (long long)row->step, (long long)row->layer, (long long)source);
    if (!st && block && strcmp(block, "mtp") == 0)
        row->layer += MTP_LAYERS * (1 + mtp);
    row->source = (int32_t)source;
    json_decref(o);
    return st;
}

static MoeStatus read_line(Reader *r, const Line *l, int file) {
    static const char key[] = "\"top_indices\"";
    const char *list = memmem(l->begin, (size_t)(l->end - l->begin), key, sizeof key - 1),
               *after = NULL;
    if (!list)
        return bad(l, "no \"top_indices\"; expected a record of Megatron-Core's router trace");
    list += sizeof key - 1;
    while (list < l->end && (*list == ' ' || *list == ':'))
        list++;
    int experts;
    int64_t tokens, choices, num_tokens = -1, topk = -1;
    MOE_TRY(count_choices(r, l, list, &experts, &tokens, &choices, &after));
    moe_str_clear(&r->text);
    moe_str_append_n(&r->text, l->begin, (size_t)(list - l->begin));
    moe_str_append(&r->text, "null");
    moe_str_append_n(&r->text, after, (size_t)(l->end - after));
    MoeLoadRow row = {.file = file, .line = l->line, .n = experts};
    MOE_TRY(read_keys(r, l, &row, &num_tokens, &topk));
    if ((num_tokens >= 0 && num_tokens != tokens) ||
        (topk >= 0 && topk < INT32_MAX && topk * tokens != choices))
        return moe_error(
            MOE_E_INPUT,
            "%s:%lld: %lld choices of %lld tokens in top_indices; num_tokens is %lld and topk %lld",
            l->path, (long long)l->line, (long long)choices, (long long)tokens,
            (long long)num_tokens, (long long)topk);
    row.data = moe_arena_copy(r->a, r->counts, sizeof *r->counts * (size_t)experts);
    r->experts = experts > r->experts ? experts : r->experts;
    MOE_PUSH(r->a, r->rows.rows, r->rows.n, r->rows.cap, row);
    return NULL;
}

static MoeStatus read_file(Reader *r, const char *path, int file) {
    MoeMap map;
    MOE_TRY(moe_map_open(path, &map));
    Line l = {.path = path};
    const char *p = (const char *)map.data, *stop = p + map.n;
    MoeStatus st = NULL;
    while (p < stop && !st) {
        const char *nl = memchr(p, '\n', (size_t)(stop - p));
        l.begin = p;
        l.end = nl ? nl : stop;
        l.line++;
        p = nl ? nl + 1 : stop;
        while (l.end > l.begin && (l.end[-1] == '\r' || l.end[-1] == ' '))
            l.end--;
        if (l.end > l.begin)
            st = read_line(r, &l, file);
    }
    moe_map_close(&map);
    return st;
}

/* Adds up the rows' counts. */
static MoeStatus fill(const Reader *r, const char *path, MoeLoad *l) {
    MOE_TRY(moe_load_allocate(path, r->a, l));
    for (size_t i = 0; i < r->rows.n; i++) {
        const MoeLoadRow *row = &r->rows.rows[i];
        const int64_t *from = row->data;
        int32_t *to = moe_load_cell(l, row);
        for (int e = 0; e < row->n; e++) {
            if (from[e] > INT32_MAX - to[e])
                return moe_error(MOE_E_INPUT, "%s:%lld: expert %d has more than %d rows in a step",
                                 r->rows.files[row->file], (long long)row->line, e, INT32_MAX);
            to[e] += (int32_t)from[e];
        }
    }
    return moe_load_check_totals(path, l);
}

/* Layers of multi-token prediction are numbered on from the decoder's. */
static void number_mtp(MoeLoad *l) {
    for (int k = 0; k < l->layers; k++)
        if (l->layer[k] >= MTP_LAYERS)
            l->layer[k] = k ? l->layer[k - 1] + 1 : 0;
}

MoeStatus moe_load_read_router(const char **paths, int n_paths, MoeArena *a, MoeLoad *out) {
    Reader r = {.a = a, .rows = {.files = paths, .sum = true}};
    r.counts = malloc(sizeof *r.counts * MOE_LOAD_EXPERTS);
    MoeStatus st = r.counts ? NULL : moe_error(MOE_E_NOMEM, "no memory to read %s", paths[0]);
    for (int i = 0; i < n_paths && !st; i++)
        st = read_file(&r, paths[i], i);
    if (!st && !r.rows.n)
        st = moe_error(MOE_E_INPUT, "%s: empty", paths[0]);
    if (!st)
        st = moe_load_arrange(&r.rows, a, out);
    if (!st) {
        out->experts = r.experts;
        st = r.experts ? fill(&r, paths[0], out)
                       : moe_error(MOE_E_INPUT, "%s: no token was routed in this trace", paths[0]);
        number_mtp(out);
    }
    free(r.counts);
    moe_str_free(&r.text);
    return st;
}
