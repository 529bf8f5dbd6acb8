/* A loop over the columns of a row (kind_row_internal.h): chunk by chunk, in each what is read is loaded, then the ops for
 * each element in order, then what leaves the loop is stored. Where registers allow, the loads of all chunks come first. */
#include <string.h>
#include "base/assert.h"
#include "codegen/cuda/kind_row_internal.h"

enum { ELEMENT_INDENT = 16, CHUNKS_AHEAD = 8, MAX_LOADS = 64 };

/* One loop while its text is made. */
typedef struct {
    MoeCudaRows *w;
    MoeCudaRowMap m;
    MoeStr ops;           /* lines for an element */
    int loads[MAX_LOADS]; /* values to load in this loop */
    int n_loads;
} Loop;

bool moe_cuda_row_in_loop(const MoeRowOp *o, int stage, int64_t cols) {
    return o->in_loop && o->stage == stage && o->cols == cols;
}

/* Which of the thread's chunks an array over all of them is at. */
static const char *chunk_of(const Loop *l) {
    return l->m.chunks == 1 ? "[0]" : "[j]";
}

static int element_indent(const Loop *l) {
    return l->w->indent + ELEMENT_INDENT;
}

/* ---- one element ---- */

static const char *element(Loop *l, int at);

static void compute(Loop *l, const MoeRowOp *o) {
    const char *in[3] = {NULL, NULL, NULL};
    for (int n = 0; n < o->n_in; n++)
        in[n] = element(l, o->in[n]);
    moe_cuda_row_ew(&l->w->x, &l->ops, element_indent(l), o, in);
    l->w->done[o->out] = true;
}

static const char *external(Loop *l, int at) {
    MoeCudaRows *w = l->w;
    bool listed = w->held[at] && w->loaded[at];
    for (int i = 0; i < l->n_loads; i++)
        listed |= l->loads[i] == at;
    if (!listed) {
        MOE_ASSERT(l->n_loads < MAX_LOADS, "row: a loop reads more than %d values", MAX_LOADS);
        l->loads[l->n_loads++] = at;
        w->loads[at]++;
    }
    return moe_arena_printf(w->x.arena, "%ss%s[i]", w->x.name[at],
                            w->held[at] || w->early[at] ? chunk_of(l) : "");
}

/* The text of value `at` for the element at hand; computes it first where that must be done here. */
static const char *element(Loop *l, int at) {
    MoeCudaRows *w = l->w;
    const MoeRowValue *v = &w->p->values[at];
    if (v->cls != MOE_ROW_VECTOR || v->is_const || w->done[at])
        return w->x.name[at];
    if (v->def < 0)
        return external(l, at);
    if (w->shared[at] >= 0)
        return moe_arena_printf(w->x.arena, "(%s)[col + i]", moe_cuda_row_own(w, at));
    if (w->held[at])
        return moe_arena_printf(w->x.arena, "%ss%s[i]", w->x.name[at], chunk_of(l));
    compute(l, &w->p->ops[v->def]);
    return w->x.name[at];
}

/* Whether terms of a column sum are stored like a row, in wide accesses. */
static bool wide_terms(const Loop *l, const MoeRowOp *o) {
    return !l->w->sums_in_memory && o->partial / 4 % l->m.vec == 0 && l->w->sums % l->m.vec == 0;
}

static void column_sum(Loop *l, const MoeRowOp *o, const char *value) {
    MoeCudaRows *w = l->w;
    int indent = element_indent(l);
    long long at = (long long)(o->partial / 4);
    moe_cuda_row_comment(&w->x, &l->ops, indent, o);
    if (wide_terms(l, o))
        moe_str_printf(&l->ops, "%*s%ss[i] = %s;\n", indent, "", w->x.name[o->out], value);
    else if (w->sums_in_memory)
        moe_str_printf(&l->ops,
                       "%*sslot[%lld + col + i] = (row == rows.lo ? 0.0f : slot[%lld + col + i]) + %s;\n",
                       indent, "", at, at, value);
    else
        moe_str_printf(&l->ops, "%*sterms[%lld + col + i] = %s;\n", indent, "", at, value);
}

static void ops_of_element(Loop *l) {
    MoeCudaRows *w = l->w;
    const MoeRowPlan *p = w->p;
    int indent = element_indent(l);
    moe_str_clear(&l->ops);
    memset(w->done, 0, (size_t)p->n_values * sizeof *w->done);
    l->n_loads = 0;
    for (int i = 0; i < p->n_ops; i++) {
        const MoeRowOp *o = &p->ops[i];
        MoeOpcode code = o->op->opcode;
        if (!moe_cuda_row_in_loop(o, w->stage, l->m.cols))
            continue;
        const char *name = w->x.name[o->out];
        if (moe_op_info(code)->kind == MOE_KIND_EW) {
            if (!w->done[o->out])
                compute(l, o);
            continue;
        }
        const char *in = element(l, o->in[0]);
        if (code == MOE_OP_COL_SUM) {
            column_sum(l, o, in);
            continue;
        }
        moe_cuda_row_comment(&w->x, &l->ops, indent, o);
        if (code == MOE_OP_ROW_SUM)
            moe_str_printf(&l->ops, "%*s%s_part += %s;\n", indent, "", name, in);
        else
            moe_str_printf(&l->ops, "%*s%s_part = max_nan(%s_part, %s);\n", indent, "", name, name,
                           in);
    }
}

/* ---- what stays or leaves ---- */

static bool leaves(const Loop *l, const MoeRowOp *o) {
    return moe_cuda_row_in_loop(o, l->w->stage, l->m.cols) &&
           (l->w->p->values[o->out].in_loop ||
            (o->op->opcode == MOE_OP_COL_SUM && wide_terms(l, o)));
}

static void declare_results(Loop *l, MoeStr *s, int indent) {
    MoeCudaRows *w = l->w;
    for (int i = 0; i < w->p->n_ops; i++) {
        const MoeRowOp *o = &w->p->ops[i];
        const MoeRowValue *v = &w->p->values[o->out];
        if (leaves(l, o) && (v->buf_out >= 0 || o->op->opcode == MOE_OP_COL_SUM) && !w->held[o->out])
            moe_str_printf(s, "%*s%s %ss[%d];\n", indent, "", moe_cuda_row_value_type(v->dtype),
                           w->x.name[o->out], l->m.vec);
    }
}

static void keep_results(Loop *l) {
    MoeCudaRows *w = l->w;
    int indent = element_indent(l);
    for (int i = 0; i < w->p->n_ops; i++) {
        const MoeRowOp *o = &w->p->ops[i];
        const char *name = w->x.name[o->out];
        if (!leaves(l, o) || o->op->opcode == MOE_OP_COL_SUM)
            continue;
        if (w->held[o->out])
            moe_str_printf(&l->ops, "%*s%ss%s[i] = %s;\n", indent, "", name, chunk_of(l), name);
        else if (w->p->values[o->out].buf_out >= 0)
            moe_str_printf(&l->ops, "%*s%ss[i] = %s;\n", indent, "", name, name);
        if (w->shared[o->out] >= 0)
            moe_str_printf(&l->ops, "%*s(%s)[col + i] = %s;\n", indent, "",
                           moe_cuda_row_own(w, o->out), name);
    }
}

static void store_results(Loop *l, MoeStr *s, int indent) {
    MoeCudaRows *w = l->w;
    for (int i = 0; i < w->p->n_ops; i++) {
        const MoeRowOp *o = &w->p->ops[i];
        const char *name = w->x.name[o->out];
        if (!leaves(l, o))
            continue;
        if (o->op->opcode == MOE_OP_COL_SUM)
            moe_str_printf(s, "%*sstore_n(terms + %lld + col, %ss);\n", indent, "",
                           (long long)(o->partial / 4), name);
        else if (w->p->values[o->out].buf_out >= 0)
            moe_str_printf(s, "%*s%sstore_n(%s_row + col, %ss%s);\n", indent, "",
                           w->teams > 1 ? "if (live) " : "", name, name,
                           w->held[o->out] ? chunk_of(l) : "");
    }
}

/* ---- the loop ---- */

/* Lines for a chunk in the loop over chunks; a thread without columns in it passes. */
static void over_chunks(Loop *l, const char *lines, bool unrolled) {
    MoeCudaRows *w = l->w;
    MoeStr *s = &w->x.s;
    int indent = w->indent + 4;
    bool narrow = l->m.width < w->width, loops = l->m.chunks > 1;
    if (loops)
        moe_str_printf(s, "%s%*sfor (int j = 0; j < %lld; j++) {\n",
                       unrolled ? "#pragma unroll\n" : "", indent, "", (long long)l->m.chunks);
    else
        moe_str_printf(s, "%*s{\n", indent, "");
    if (!l->m.whole || strstr(lines, "col"))
        moe_str_printf(s, "%*sconst int col = %s * %d;\n", indent + 4, "",
                       loops ? moe_arena_printf(w->x.arena, "(j * %d + t)", l->m.width) : "t",
                       l->m.vec);
    MoeStr inside = {0};
    if (narrow)
        moe_str_printf(&inside, "t < %d", l->m.width);
    if (!l->m.whole)
        moe_str_printf(&inside, "%scol < %lld", narrow ? " && " : "", (long long)l->m.cols);
    if (inside.len)
        moe_str_printf(s, "%*sif (%s)\n", indent + 4, "", moe_str_c(&inside));
    moe_str_printf(s, "%*s{\n%s%*s}\n%*s}\n", indent + 4, "", lines, indent + 4, "", indent, "");
    moe_str_free(&inside);
}

/* Chooses what is loaded for all chunks before the first is computed: what is held anyway, then what differs from row to
 * row, then what the cache has, as far as registers go. */
static bool choose_early(Loop *l) {
    MoeCudaRows *w = l->w;
    int64_t mine = l->m.chunks * l->m.vec, room = w->ahead;
    bool any = false;
    for (int varying = 1; varying >= 0; varying--)
        for (int i = 0; i < l->n_loads; i++) {
            int at = l->loads[i];
            if (w->varies[at] != (varying != 0) || l->m.chunks == 1 || l->m.rolled)
                continue;
            if (!w->held[at] && (mine > room || l->m.chunks > CHUNKS_AHEAD))
                continue;
            w->early[at] = any = true;
            room -= w->held[at] ? 0 : mine;
        }
    return any;
}

static void declare_loads(Loop *l, MoeStr *s, int indent, bool early) {
    MoeCudaRows *w = l->w;
    for (int i = 0; i < l->n_loads; i++) {
        int at = l->loads[i];
        const char *type = moe_cuda_row_value_type(w->p->values[at].dtype);
        if (w->held[at] || w->early[at] != early)
            continue;
        if (early)
            moe_str_printf(s, "%*s%s %ss[%lld][%d];\n", indent, "", type, w->x.name[at],
                           (long long)l->m.chunks, l->m.vec);
        else
            moe_str_printf(s, "%*s%s %ss[%d];\n", indent, "", type, w->x.name[at], l->m.vec);
    }
}

static void load_chunk(Loop *l, MoeStr *s, int indent, bool early) {
    MoeCudaRows *w = l->w;
    for (int i = 0; i < l->n_loads; i++) {
        int at = l->loads[i];
        if (w->early[at] == early)
            moe_str_printf(s, "%*sload_n(%s_row + col, %ss%s);\n", indent, "", w->x.name[at],
                           w->x.name[at], w->held[at] || early ? chunk_of(l) : "");
    }
}

/* The accumulators before the loop, or the sums over the team after it. */
static void sums(Loop *l, bool before) {
    MoeCudaRows *w = l->w;
    MoeStr *s = &w->x.s;
    for (int i = 0; i < w->p->n_ops; i++) {
        const MoeRowOp *o = &w->p->ops[i];
        bool sum = o->op->opcode == MOE_OP_ROW_SUM;
        const char *name = w->x.name[o->out];
        if (!moe_cuda_row_in_loop(o, w->stage, l->m.cols) ||
            (!sum && o->op->opcode != MOE_OP_ROW_MAX))
            continue;
        if (before) {
            moe_str_printf(s, "%*sfloat %s_part = %s;\n", w->indent, "", name,
                           sum ? "0.0f" : "-MOE_INFINITY");
            continue;
        }
        moe_str_printf(s, "%*sconst float %s = team_%s<%d, %d>(%s_part);\n", w->indent, "", name,
                       sum ? "sum" : "max", w->width, w->threads, name);
        if (w->p->values[o->out].buf_out >= 0)
            moe_str_printf(s, "%*sif (t == 0%s)\n%*sstore(%s_row, %s);\n", w->indent, "",
                           w->teams > 1 ? " && live" : "", w->indent + 4, "", name, name);
        if (w->shared[o->out] >= 0)
            moe_str_printf(s, "%*sif (t == 0)\n%*s*%s = %s;\n", w->indent, "", w->indent + 4, "",
                           moe_cuda_row_own(w, o->out), name);
    }
}

void moe_cuda_row_loop(MoeCudaRows *w, int64_t cols) {
    Loop l = {.w = w, .m = moe_cuda_row_map(cols)};
    MoeStr *s = &w->x.s, lines = {0};
    int indent = w->indent, inner = w->indent + 12;
    memset(w->early, 0, (size_t)w->p->n_values * sizeof *w->early);
    ops_of_element(&l);
    bool early = choose_early(&l);
    if (early) { /* again, with the other names */
        for (int i = 0; i < l.n_loads; i++)
            w->loads[l.loads[i]]--;
        ops_of_element(&l);
    }
    keep_results(&l);
    moe_str_printf(s, "%*s// stage %d, %lld columns: %d threads, %lld chunks of %d\n", indent, "",
                   w->stage, (long long)cols, l.m.width, (long long)l.m.chunks, l.m.vec);
    sums(&l, true);
    moe_str_printf(s, "%*s{\n", indent, "");
    declare_loads(&l, s, indent + 4, true);
    if (early) {
        load_chunk(&l, &lines, inner, true);
        over_chunks(&l, moe_str_c(&lines), true);
        moe_str_clear(&lines);
    }
    declare_loads(&l, &lines, inner, false);
    declare_results(&l, &lines, inner);
    load_chunk(&l, &lines, inner, false);
    moe_str_printf(&lines,
                   "#pragma unroll\n"
                   "%*sfor (int i = 0; i < %d; i++) {\n"
                   "%s"
                   "%*s}\n",
                   inner, "", l.m.vec, moe_str_c(&l.ops), inner, "");
    store_results(&l, &lines, inner);
    over_chunks(&l, moe_str_c(&lines), !l.m.rolled);
    moe_str_printf(s, "%*s}\n", indent, "");
    sums(&l, false);
    for (int i = 0; i < l.n_loads; i++)
        w->loaded[l.loads[i]] = true;
    moe_str_free(&lines);
    moe_str_free(&l.ops);
}
