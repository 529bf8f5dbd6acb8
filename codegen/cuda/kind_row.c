/* ROWS row groups (kind_row.h): one kernel, a team of threads a row. In: a MoeRowPlan. Out: text.
 *
 * Each stage of a row first does its scalar work, which every thread of the team does, then a loop for each column count.
 * The text is made twice: once to count which loops read a value from memory, then with the values held that fit. */
#include "codegen/cuda/kind_row.h"

#include "base/assert.h"
#include "codegen/cuda/kind_row_internal.h"
#include "ir/numbers.h"

enum { SM_THREADS = 2048 }; /* of a multiprocessor: what the grid is sized by */

bool moe_cuda_row_is_local(MoeOpcode o) {
    return o == MOE_OP_TOPK || o == MOE_OP_TAKE || o == MOE_OP_PUT;
}

/* ---- where things lie ---- */

/* Which row of operand v goes with row `row` of the group, as an expression: leading dims of size 1 (or missing ones)
 * repeat. */
static const char *operand_row(MoeCudaRows *w, const MoeRowValue *v) {
    const MoeRowPlan *p = w->p;
    const MoeType *t = &v->v->type;
    int shift;
    MoeRowMatch match = moe_row_match(p, v, &shift);
    if (match != MOE_ROW_MIXED)
        return match == MOE_ROW_SAME ? "row" : "0";
    MoeStr s = {0};
    int64_t step = 1, below = 1;
    for (int d = p->lead_rank - 1; d >= shift; d--) {
        if (t->dims[d - shift].size != 1)
            moe_str_printf(&s, "%srow / %lld %% %lld * %lld", s.len ? " + " : "", (long long)below,
                           (long long)p->lead[d], (long long)step);
        below *= p->lead[d];
        step *= t->dims[d - shift].size;
    }
    const char *text = moe_arena_printf(w->x.arena, "(%s)", moe_str_c(&s));
    moe_str_free(&s);
    return text;
}

/* Pointers to the row's memory, its scalars, arrays for what is held. */
static void open_row(MoeCudaRows *w) {
    const MoeRowPlan *p = w->p;
    MoeStr *s = &w->x.s;
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *v = &p->values[i];
        const char *type = moe_cuda_row_memory_type(v->dtype), *name = w->x.name[i];
        if (v->cls == MOE_ROW_SEG || v->cls == MOE_ROW_UNIFORM || v->is_const)
            continue;
        if (v->def < 0) {
            moe_str_printf(s, "%*sconst %s *const %s_row = buf<const %s>(a, %d) + %s * %lld;\n",
                           w->indent, "", type, name, type, v->buf_in, operand_row(w, v),
                           (long long)v->cols);
            if (v->cls == MOE_ROW_SCALAR)
                moe_str_printf(s, "%*sconst %s %s = load(%s_row);\n", w->indent, "",
                               moe_cuda_row_value_type(v->dtype), name, name);
        } else if (v->buf_out >= 0) {
            moe_str_printf(s, "%*s%s *const %s_row = buf<%s>(a, %d) + row * %lld;\n", w->indent, "",
                           type, name, type, v->buf_out, (long long)v->cols);
        }
        MoeCudaRowMap m = moe_cuda_row_map(v->cols);
        if (w->held[i])
            moe_str_printf(s, "%*s%s %ss[%lld][%d];\n", w->indent, "",
                           moe_cuda_row_value_type(v->dtype), name, (long long)m.chunks, m.vec);
        w->loaded[i] = false;
    }
}

const char *moe_cuda_row_own(const MoeCudaRows *w, int at) {
    long long word = (long long)w->shared[at];
    if (w->p->values[at].dtype == MOE_I32)
        return moe_arena_printf(w->x.arena, "(i32 *)(own + %lld)", word);
    return moe_arena_printf(w->x.arena, word ? "(own + %lld)" : "own", word);
}

/* Where a row-local op finds value `at`. */
static const char *local_memory(MoeCudaRows *w, int at) {
    const MoeRowValue *v = &w->p->values[at];
    if (w->shared[at] < 0)
        return v->cls == MOE_ROW_UNIFORM
                   ? moe_arena_printf(w->x.arena, "buf<const %s>(a, %d)",
                                      moe_cuda_row_memory_type(v->dtype), v->buf_in)
                   : moe_arena_printf(w->x.arena, "%s_row", w->x.name[at]);
    return moe_cuda_row_own(w, at);
}

/* ---- scalars of the row ---- */

/* After the line that declares the scalar. */
static void scalar_done(MoeCudaRows *w, int at) {
    const MoeRowValue *v = &w->p->values[at];
    MoeStr *s = &w->x.s;
    if (w->shared[at] >= 0)
        moe_str_printf(s, "%*sif (t == 0)\n%*s*%s = %s;\n", w->indent, "", w->indent + 4, "",
                       local_memory(w, at), w->x.name[at]);
    if (v->buf_out >= 0)
        moe_str_printf(s, "%*sif (t == 0%s)\n%*sstore(%s_row, %s);\n", w->indent, "",
                       w->teams > 1 ? " && live" : "", w->indent + 4, "", w->x.name[at],
                       w->x.name[at]);
}

static void local_op(MoeCudaRows *w, const MoeRowOp *o) {
    MoeStr *s = &w->x.s;
    const MoeRowValue *out = &w->p->values[o->out], *in = &w->p->values[o->in[0]];
    const char *name = w->x.name[o->out];
    moe_cuda_row_comment(&w->x, s, w->indent, o);
    moe_str_printf(s, "%*steam_sync<%d>();\n", w->indent, "", w->width);
    if (o->op->opcode == MOE_OP_TOPK)
        moe_str_printf(s, "%*srow_topk<%d, %d, %lld, %lld>(%s, %s, t);\n", w->indent, "", w->width,
                       w->threads, (long long)in->cols, (long long)out->cols,
                       local_memory(w, o->in[0]), local_memory(w, o->out));
    else if (o->op->opcode == MOE_OP_TAKE)
        moe_str_printf(s, "%*srow_take<%d, %lld>(%s, %s, %s, t);\n", w->indent, "", w->width,
                       (long long)out->cols, local_memory(w, o->in[0]), local_memory(w, o->in[1]),
                       local_memory(w, o->out));
    else
        moe_str_printf(s, "%*srow_put<%d, %lld, %lld>(%s, %s, %s, t);\n", w->indent, "", w->width,
                       (long long)in->cols, (long long)out->cols, local_memory(w, o->in[0]),
                       local_memory(w, o->in[1]), local_memory(w, o->out));
    moe_str_printf(s, "%*steam_sync<%d>();\n", w->indent, "", w->width);
    if (out->cls == MOE_ROW_SCALAR) /* not read by name where only other row-local ops read it */
        moe_str_printf(s, "%*s[[maybe_unused]] const %s %s = *%s;\n", w->indent, "",
                       moe_cuda_row_value_type(out->dtype), name, local_memory(w, o->out));
    if (out->buf_out >= 0)
        moe_str_printf(s,
                       "%*sfor (int col = t; col < %lld%s; col += %d)\n"
                       "%*sstore(%s_row + col, (%s)[col]);\n",
                       w->indent, "", (long long)out->cols, w->teams > 1 ? " && live" : "", w->width,
                       w->indent + 4, "", name, local_memory(w, o->out));
}

/* The term of a column sum: where it goes. */
static const char *term(MoeCudaRows *w, const MoeRowOp *o, const char *column) {
    long long at = (long long)(o->partial / 4);
    return w->sums_in_memory ? moe_arena_printf(w->x.arena, "slot[%lld%s]", at, column)
                             : moe_arena_printf(w->x.arena, "terms[%lld%s]", at, column);
}

static void add_term(MoeCudaRows *w, MoeStr *s, int indent, const MoeRowOp *o, const char *column,
                     const char *value) {
    const char *to = term(w, o, column);
    if (w->sums_in_memory)
        moe_str_printf(s, "%*s%s = (row == rows.lo ? 0.0f : %s) + %s;\n", indent, "", to, to, value);
    else
        moe_str_printf(s, "%*s%s = %s;\n", indent, "", to, value);
}

/* Ops of the stage that are not part of a loop over columns. */
static void scalar_op(MoeCudaRows *w, const MoeRowOp *o) {
    MoeOpcode code = o->op->opcode;
    MoeStr *s = &w->x.s;
    const char *in[3] = {NULL, NULL, NULL};
    if (w->p->values[o->out].cls == MOE_ROW_UNIFORM)
        return;
    if (moe_cuda_row_is_local(code)) {
        local_op(w, o);
        return;
    }
    for (int n = 0; n < o->n_in; n++)
        in[n] = w->x.name[o->in[n]];
    if (moe_op_info(code)->kind == MOE_KIND_EW) {
        moe_cuda_row_ew(&w->x, s, w->indent, o, in);
        scalar_done(w, o->out);
        return;
    }
    moe_cuda_row_comment(&w->x, s, w->indent, o);
    if (code == MOE_OP_COL_SUM) {
        moe_str_printf(s, "%*sif (t == 0)\n", w->indent, "");
        add_term(w, s, w->indent + 4, o, "", in[0]);
        return;
    }
    moe_str_printf(s, "%*sconst float %s = %s%s;\n", w->indent, "", w->x.name[o->out],
                   code == MOE_OP_ROW_SUM ? "0.0f + " : "", in[0]);
    scalar_done(w, o->out);
}

/* ---- the stages of a row ---- */

static void uniform_for_locals(MoeCudaRows *w) {
    for (int i = 0; i < w->p->n_values; i++)
        if (w->shared[i] >= 0 &&
            (w->p->values[i].cls == MOE_ROW_UNIFORM || w->p->values[i].is_const))
            moe_str_printf(&w->x.s, "%*sif (t == 0)\n%*s*%s = %s;\n", w->indent, "", w->indent + 4,
                           "", local_memory(w, i), w->x.name[i]);
}

static void row_body(MoeCudaRows *w) {
    const MoeRowPlan *p = w->p;
    bool locals = false;
    open_row(w);
    uniform_for_locals(w);
    for (w->stage = 0; w->stage < p->n_stages; w->stage++) {
        for (int i = 0; i < p->n_ops; i++)
            if (!p->ops[i].in_loop && p->ops[i].stage == w->stage) {
                scalar_op(w, &p->ops[i]);
                locals |= moe_cuda_row_is_local(p->ops[i].op->opcode);
            }
        for (int i = 0; i < p->n_ops; i++) {
            const MoeRowOp *o = &p->ops[i];
            bool first = o->in_loop && o->stage == w->stage;
            for (int k = 0; k < i && first; k++)
                first = !moe_cuda_row_in_loop(&p->ops[k], w->stage, o->cols);
            if (first)
                moe_cuda_row_loop(w, o->cols);
        }
    }
    if (locals) /* before the next row's values take these places */
        moe_str_printf(&w->x.s, "%*steam_sync<%d>();\n", w->indent, "", w->width);
}

/* Rows one after another, teams of a block side by side. */
static void emit_by_rows(MoeCudaRows *w) {
    MoeStr *s = &w->x.s;
    moe_str_printf(s,
                   "    const i64 end = %s;\n"
                   "    for (i64 base = %s + (i64)blockIdx.x * %d; base < end;\n"
                   "         base += (i64)gridDim.x * %d) {\n",
                   moe_cuda_row_end(&w->x), moe_cuda_row_first(&w->x), w->teams, w->teams);
    if (w->teams > 1)
        moe_str_append(s, "        const bool live = base + team < end;\n"
                          "        const i64 row = live ? base + team : base;\n");
    else
        moe_str_append(s, "        const i64 row = base;\n");
    w->indent = 8;
    row_body(w);
    moe_str_append(s, "    }\n");
}

/* Leaves, a block each: batches of as many rows as there are teams. */
static void emit_by_leaves(MoeCudaRows *w) {
    const MoeRowPlan *p = w->p;
    MoeStr *s = &w->x.s;
    int64_t groups, shards, mine = (w->sums + w->threads - 1) / w->threads;
    moe_row_tree_shape(p, &groups, &shards);
    const char *table = p->seg < 0 ? "(const i32 *)nullptr"
                                   : moe_arena_printf(w->x.arena, "buf<const i32>(a, %d)",
                                                      p->values[p->seg].buf_in);
    moe_str_printf(s,
                   "    for (int leaf = (int)blockIdx.x;; leaf += (int)gridDim.x) {\n"
                   "        const LeafRows rows = leaf_rows(%s, %lld, %lld, leaf);\n"
                   "        if (rows.lo < 0)\n"
                   "            break;\n"
                   "        float *const slot = buf<float>(a, %d) + (i64)leaf * %lld;\n",
                   table, (long long)p->rows, (long long)(groups * shards), p->n_bufs - 1,
                   (long long)w->sums);
    if (!w->sums_in_memory)
        moe_str_printf(s, "        float sum[%lld] = {};\n", (long long)mine);
    moe_str_printf(s, "        for (i64 base = rows.lo; base < rows.hi; base += %d) {\n", w->teams);
    if (w->teams > 1)
        moe_str_append(s, "            const bool live = base + team < rows.hi;\n"
                          "            const i64 row = live ? base + team : base;\n");
    else
        moe_str_append(s, "            const i64 row = base;\n");
    w->indent = 12;
    row_body(w);
    if (!w->sums_in_memory)
        moe_str_printf(s,
                       "            __syncthreads();\n"
                       "            const int n = (int)least((i64)%d, rows.hi - base);\n"
                       "#pragma unroll\n"
                       "            for (int i = 0; i < %lld; i++) {\n"
                       "                const int col = (int)threadIdx.x + i * %d;\n"
                       "                if (col < %lld)\n"
                       "                    for (int k = 0; k < n; k++)\n"
                       "                        sum[i] += all_terms[k * %lld + col];\n"
                       "            }\n"
                       "            __syncthreads();\n",
                       w->teams, (long long)mine, w->threads, (long long)w->sums,
                       (long long)w->sums);
    moe_str_append(s, "        }\n");
    if (!w->sums_in_memory)
        moe_str_printf(s,
                       "#pragma unroll\n"
                       "        for (int i = 0; i < %lld; i++)\n"
                       "            if ((int)threadIdx.x + i * %d < %lld)\n"
                       "                slot[threadIdx.x + i * %d] = sum[i];\n",
                       (long long)mine, w->threads, (long long)w->sums, w->threads);
    moe_str_append(s, "    }\n");
}

static void emit(MoeCudaRows *w) {
    MoeStr *s = &w->x.s;
    int64_t buffers = (w->teams * w->team_words + 31) / 32 * 32;
    w->shared_bytes =
        (buffers + (w->p->col_sums && !w->sums_in_memory ? w->teams * w->sums : 0)) * 4;
    moe_str_clear(s);
    moe_str_append(s, "    using namespace moe;\n");
    if (w->shared_bytes)
        moe_str_append(s, "    MOE_SHARED(shared);\n");
    moe_cuda_row_uniform(&w->x);
    moe_str_printf(s, "    const int t = (int)threadIdx.x %% %d; // of the row's team\n", w->width);
    if (w->teams > 1)
        moe_str_printf(s, "    const int team = (int)threadIdx.x / %d;\n", w->width);
    const char *team = w->teams > 1 ? "team" : "0";
    if (w->team_words)
        moe_str_printf(s, "    float *const own = (float *)shared + %s * %lld;\n", team,
                       (long long)w->team_words);
    if (w->p->col_sums && !w->sums_in_memory)
        moe_str_printf(s,
                       "    float *const all_terms = (float *)shared + %lld;\n"
                       "    float *const terms = all_terms + %s * %lld;\n",
                       (long long)buffers, team, (long long)w->sums);
    if (w->p->col_sums)
        emit_by_leaves(w);
    else
        emit_by_rows(w);
}

static MoeStatus check_shared(const MoeCudaTarget *t, const MoeCudaRows *w) {
    if (w->shared_bytes <= t->arch->shared_bytes)
        return NULL;
    return moe_error(MOE_E_INPUT,
                     "top-k and what follows keep %lld numbers of a row in shared memory: %lld bytes, "
                     "and %s has %lld; fewer columns (experts) are needed",
                     (long long)w->team_words, (long long)w->shared_bytes, t->arch->name,
                     (long long)t->arch->shared_bytes);
}

MoeStatus moe_cuda_row_rows(MoeCudaTarget *t, const MoeRowPlan *p, MoeLowered *out) {
    MoeArena *a = moe_arena_create();
    MoeCudaRows w = {.p = p, .x = moe_cuda_row_text(a, p)};
    w.shared = MOE_NEW_N(a, int64_t, p->n_values);
    w.held = MOE_NEW_N(a, bool, p->n_values);
    w.loaded = MOE_NEW_N(a, bool, p->n_values);
    w.done = MOE_NEW_N(a, bool, p->n_values);
    w.loads = MOE_NEW_N(a, int, p->n_values);
    w.varies = MOE_NEW_N(a, bool, p->n_values);
    w.early = MOE_NEW_N(a, bool, p->n_values);
    for (int i = 0; i < p->n_values; i++)
        w.varies[i] = p->values[i].cls == MOE_ROW_VECTOR && !p->values[i].is_const &&
                      moe_row_match(p, &p->values[i], NULL) != MOE_ROW_FIRST;
    moe_cuda_row_choose_team(&w);
    moe_cuda_row_hold(&w, false);
    emit(&w);
    moe_cuda_row_hold(&w, true);
    emit(&w);
    MoeStatus st = check_shared(t, &w);
    if (st) {
        moe_str_free(&w.x.s);
        moe_arena_destroy(a);
        return st;
    }
    MoeCudaKernelText k = {.prefix = "row",
                           .note = moe_cuda_row_note(&w.x),
                           .n_bufs = p->n_bufs,
                           .threads = w.threads,
                           .min_blocks = 1,
                           .shared_bytes = w.shared_bytes,
                           .parts = 1u << MOE_CUDA_PART_math | 1u << MOE_CUDA_PART_row |
                                    (p->col_sums ? 1u << MOE_CUDA_PART_tree : 0),
                           .body = moe_str_c(&w.x.s)};
    int64_t groups, shards;
    moe_row_tree_shape(p, &groups, &shards);
    int64_t tasks = p->col_sums ? (p->rows + MOE_LEAF_ROWS - 1) / MOE_LEAF_ROWS + groups * shards
                                : (p->rows + w.teams - 1) / w.teams;
    moe_cuda_launch(t, out, moe_cuda_kernel(t, &k),
                    moe_cuda_blocks(t, tasks, SM_THREADS / w.threads), p->refs, (size_t)p->n_bufs);
    moe_str_free(&w.x.s);
    moe_arena_destroy(a);
    for (int i = 0; i < p->n_ops; i++)
        if (p->ops[i].op->opcode == MOE_OP_COL_SUM)
            moe_cuda_row_fold(t, p, &p->ops[i], out);
    return NULL;
}

/* ---- the kind ---- */

int64_t moe_cuda_row_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    MoeRowRules rules = moe_cuda_row_rules(t);
    return moe_row_workspace(&rules, g);
}

MoeStatus moe_cuda_row_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    MoeArena *a = moe_arena_create();
    MoeRowRules rules = moe_cuda_row_rules(t);
    const MoeRowPlan *p = moe_row_plan(a, g, &rules);
    MoeStatus st = NULL;
    if (p->flat)
        moe_cuda_row_flat(t, p, out);
    else
        st = moe_cuda_row_rows(t, p, out);
    moe_arena_destroy(a);
    return st;
}
