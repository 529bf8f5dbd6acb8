/* See profile.h. A first line {"rank", "step", "clock"}, then one a step of the plan: {"i", "micro", "counting", "begin", "end"}, in
 * seconds of that clock. */
#include "runtime/profile.h"

#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/json.h"
#include "base/mem.h"
#include "runtime/emulate.h"

#define MAX_BYTES ((size_t)1 << 30)

struct MoeProfile {
    MoeExec *x;
    MoeExecSpan *spans;
    size_t n, cap;
    bool no_memory;
};

static void keep(void *ctx, const MoeExecSpan *span) {
    MoeProfile *p = ctx;
    if (MOE_ROOM(p->spans, p->n, p->cap))
        p->spans[p->n++] = *span;
    else
        p->no_memory = true;
}

MoeStatus moe_profile_begin(MoeExec *x, MoeProfile **out) {
    MoeProfile *p = calloc(1, sizeof *p);
    if (!p)
        return moe_error(MOE_E_NOMEM, "no memory to record a step");
    p->x = x;
    moe_exec_watch(x, keep, p);
    *out = p;
    return NULL;
}

void moe_profile_abandon(MoeProfile *p) {
    if (!p)
        return;
    moe_exec_watch(p->x, NULL, NULL);
    free(p->spans);
    free(p);
}

static char *path_of(const char *run_dir, int rank) {
    char name[48];
    snprintf(name, sizeof name, "profile-rank-%d.jsonl", rank);
    return moe_path_join(run_dir, name);
}

MoeStatus moe_profile_end(MoeProfile *p, const char *run_dir, int64_t step) {
    MoeStr s = {0};
    int rank = moe_exec_rank(p->x);
    char *path = path_of(run_dir, rank);
    MoeStatus st = p->no_memory
                       ? moe_error(MOE_E_NOMEM, "no memory to record step %lld", (long long)step)
                       : NULL;
    moe_str_printf(&s, "{\"rank\": %d, \"step\": %lld, \"clock\": \"%s\"}\n", rank, (long long)step,
                   moe_comm_emulated(moe_exec_comm(p->x)) ? "emulated" : "measured");
    for (size_t i = 0; i < p->n; i++) {
        const MoeExecSpan *a = &p->spans[i];
        moe_str_printf(
            &s, "{\"i\": %zu, \"micro\": %d, \"counting\": %s, \"begin\": %.9f, \"end\": %.9f}\n",
            a->step, a->micro, a->counting ? "true" : "false", a->begin, a->end);
    }
    if (!st)
        st = moe_file_write_atomic(path, moe_str_c(&s), s.len);
    free(path);
    moe_str_free(&s);
    moe_profile_abandon(p);
    return st;
}

/* ---- reading ---- */

static MoeStatus read_head(const json_t *o, const char *where, int rank, MoeProfileRank *out) {
    const char *clock = "";
    int64_t r = -1;
    MOE_TRY(moe_json_i64(o, where, "rank", true, &r));
    MOE_TRY(moe_json_i64(o, where, "step", true, &out->step));
    MOE_TRY(moe_json_str(o, where, "clock", true, &clock));
    if (r != rank)
        return moe_error(MOE_E_CORRUPT, "%s: of rank %lld", where, (long long)r);
    out->rank = rank;
    out->emulated = strcmp(clock, "emulated") == 0;
    return NULL;
}

static MoeStatus read_span(const json_t *o, const char *where, const MoePlanProgram *g,
                           MoeExecSpan *out) {
    int64_t i = -1, micro = 0;
    MOE_TRY(moe_json_i64(o, where, "i", true, &i));
    MOE_TRY(moe_json_i64(o, where, "micro", true, &micro));
    MOE_TRY(moe_json_bool(o, where, "counting", true, &out->counting));
    MOE_TRY(moe_json_f64(o, where, "begin", true, &out->begin));
    MOE_TRY(moe_json_f64(o, where, "end", true, &out->end));
    if (i < 0 || (size_t)i >= g->n_steps || micro < 0 || micro > INT32_MAX ||
        !(out->end >= out->begin))
        return moe_error(MOE_E_CORRUPT,
                         "%s: step %lld of a program of %zu; was the plan compiled anew since?",
                         where, (long long)i, g->n_steps);
    out->step = (size_t)i;
    out->micro = (int)micro;
    return NULL;
}

static MoeStatus read_lines(char *text, const char *path, int rank, const MoePlanProgram *g,
                            MoeProfileRank *out) {
    size_t lines = 0, number = 0;
    for (const char *p = text; *p; p++)
        lines += *p == '\n';
    out->spans = calloc(lines + 1, sizeof *out->spans);
    if (!out->spans)
        return moe_error(MOE_E_NOMEM, "no memory for %zu steps of %s", lines, path);
    for (char *line = text, *end; *line; line = end + 1) {
        char where[512];
        json_t *o;
        end = strchr(line, '\n');
        snprintf(where, sizeof where, "%.400s:%zu", path, ++number);
        if (!end)
            return moe_error(MOE_E_CORRUPT, "%s: the line has no end", where);
        MOE_TRY(moe_json_load_text(line, (size_t)(end - line), where, &o));
        MoeStatus st = number == 1 ? read_head(o, where, rank, out)
                                   : read_span(o, where, g, &out->spans[out->n++]);
        json_decref(o);
        MOE_TRY(st);
    }
    return number ? NULL : moe_error(MOE_E_CORRUPT, "%s: empty", path);
}

MoeStatus moe_profile_read(const char *run_dir, int rank, const MoePlanProgram *program,
                           MoeProfileRank *out) {
    char *path = path_of(run_dir, rank), *text = NULL;
    size_t n;
    *out = (MoeProfileRank){0};
    MoeStatus st =
        moe_path_exists(path)
            ? moe_file_read(path, MAX_BYTES, &text, &n)
            : moe_error(MOE_E_INPUT, "%s: no step was recorded; train with --profile-step N", path);
    if (!st)
        st = read_lines(text, path, rank, program, out);
    if (st) {
        free(out->spans);
        *out = (MoeProfileRank){0};
    }
    free(text);
    free(path);
    return st;
}
