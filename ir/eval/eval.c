/* The interpreter's driver: gives every op its operands and result storage, checks extents, rounds,
 * and names the op in errors. In: a graph and the data of its inputs, params and states. Out: the
 * tensor of every value. The ops themselves are in eval_<theme>.c. */
#include "ir/eval/eval_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/mem.h"
#include "ir/numbers.h"
#include "ir/text.h"

static const MoeEvalFn eval_fns[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = moe_eval_##name,
#include "ir/ops.def"
#undef OP
};

double moe_eval_round_bf16(double x) {
    if (!isfinite(x) || x == 0)
        return x;
    int e;
    frexp(x, &e);  /* |x| in [2^(e-1), 2^e) */
    int q = e - 8; /* 8 significant bits */
    if (q < -133)  /* subnormal: the spacing below 2^-126 is 2^-133 */
        q = -133;
    double r =
        ldexp(nearbyint(ldexp(x, -q)), q); /* the default rounding mode: nearest, ties to even */
    return fabs(r) >= 0x1p128 ? copysign(INFINITY, r) : r;
}

MoeStatus moe_eval_check_index(const char *what, int64_t id, int64_t at, int64_t n) {
    if (id >= 0 && id < n)
        return NULL;
    return moe_error(MOE_E_INPUT, "%s %lld at position %lld is outside 0..%lld", what,
                     (long long)id, (long long)at, (long long)n - 1);
}

static const MoeTensor *find_segs(void *ctx, const MoeValue *seg) {
    MoeEvalContext *c = ctx;
    for (int i = 0; i < c->op->n_operands; i++)
        if (c->op->operands[i] == seg)
            return c->in[i];
    if (c->ev && seg->id < c->ev->n_values)
        return c->ev->tensors[seg->id];
    return NULL;
}

MoeStatus moe_eval_row_segs(MoeEvalOp *e, int i, const int32_t **out_table, int64_t *out_groups,
                            int64_t *out_shards) {
    const MoeValue *seg = e->op->operands[i]->type.dims[0].seg;
    if (!seg) {
        int32_t *table = MOE_NEW_N(e->arena, int32_t, 2);
        table[1] = (int32_t)e->in[i]->dims[0];
        *out_table = table;
        *out_groups = *out_shards = 1;
        return NULL;
    }
    const MoeTensor *t = e->segs(e->ctx, seg);
    if (!t)
        return moe_error(MOE_E_INPUT, "the segment table of operand %d is not known here", i);
    *out_table = t->i;
    *out_groups = seg->type.groups;
    *out_shards = seg->type.shards;
    return NULL;
}

/* Which result of the op the segs value is, -1 if none. */
static int own_result(const MoeOp *op, const MoeValue *seg) {
    for (int r = 0; r < op->n_results; r++)
        if (op->results[r] == seg)
            return r;
    return -1;
}

/* Live rows of a ragged dim: from the table if it is known, else from an operand with rows over the
 * same segments. */
static MoeStatus live_rows(MoeEvalContext *c, const MoeValue *seg, int64_t *out) {
    const MoeTensor *t = find_segs(c, seg);
    if (t) {
        *out = t->i[t->n - 1];
        return NULL;
    }
    for (int i = 0; i < c->op->n_operands; i++) {
        const MoeType *type = &c->op->operands[i]->type;
        if (type->kind == MOE_TYPE_TENSOR && type->dims[0].seg == seg) {
            *out = c->in[i]->dims[0];
            return NULL;
        }
    }
    return moe_error(MOE_E_INPUT, "the segments that its rows are ragged over have no value yet");
}

/* Extents and storage of one value of the given type. */
static MoeStatus make_tensor(MoeEvalContext *c, const MoeType *type, MoeArena *arena,
                             MoeTensor *out) {
    memset(out, 0, sizeof *out);
    out->dtype = type->dtype;
    if (type->kind == MOE_TYPE_SEGS) {
        out->rank = 1;
        out->n = out->dims[0] = type->groups * type->shards + 1;
        out->i = MOE_NEW_N(arena, int32_t, out->n);
        return NULL;
    }
    out->rank = type->rank;
    out->n = 1;
    for (int d = 0; d < type->rank; d++) {
        out->dims[d] = type->dims[d].size;
        if (type->dims[d].seg && own_result(c->op, type->dims[d].seg) >= 0) {
            /* A plan: its rows are at most one for each entry of ids; trim says how many. */
            if (c->in[0]->n < out->dims[d])
                out->dims[d] = c->in[0]->n;
        } else if (type->dims[d].seg) {
            MOE_TRY(live_rows(c, type->dims[d].seg, &out->dims[d]));
            if (out->dims[d] > type->dims[d].size)
                return moe_error(MOE_E_INPUT, "%lld live rows exceed the capacity %lld",
                                 (long long)out->dims[d], (long long)type->dims[d].size);
        }
        if (!moe_mul_i64(out->n, out->dims[d], &out->n))
            return moe_error(MOE_E_INPUT, "the tensor is too large");
    }
    if (moe_dtype_is_float(type->dtype))
        out->f = MOE_NEW_N(arena, double, out->n);
    else
        out->i = MOE_NEW_N(arena, int32_t, out->n);
    return NULL;
}

static void round_tensor(MoeTensor *t, unsigned flags) {
    if (t->dtype == MOE_BF16)
        for (int64_t i = 0; i < t->n; i++)
            t->f[i] = moe_eval_round_bf16(t->f[i]);
    else if (t->dtype == MOE_F32 && (flags & MOE_EVAL_ROUND_F32))
        for (int64_t i = 0; i < t->n; i++)
            t->f[i] = (double)(float)t->f[i];
}

/* A table starts at 0 and never decreases. */
static MoeStatus check_table(const MoeTensor *t) {
    if (t->i[0] != 0)
        return moe_error(MOE_E_INPUT, "a segment table starts at 0, not %d", t->i[0]);
    for (int64_t s = 1; s < t->n; s++)
        if (t->i[s] < t->i[s - 1])
            return moe_error(MOE_E_INPUT, "a segment table decreases at entry %lld: %d after %d",
                             (long long)s, t->i[s], t->i[s - 1]);
    return NULL;
}

/* That operand i is what its type says; matters for tensors that callers of moe_eval_op made. */
static MoeStatus check_operand(MoeEvalContext *c, int i) {
    const MoeType *type = &c->op->operands[i]->type;
    const MoeTensor *t = c->in[i];
    if (!t)
        return moe_error(MOE_E_INPUT, "operand %d has no value yet", i);
    if (type->kind == MOE_TYPE_SEGS) {
        if (!t->i || t->n != type->groups * type->shards + 1)
            return moe_error(MOE_E_INPUT, "operand %d is not a segment table of %lld entries", i,
                             (long long)(type->groups * type->shards + 1));
        return check_table(t);
    }
    bool fits =
        t->rank == type->rank && (moe_dtype_is_float(type->dtype) ? t->f != NULL : t->i != NULL);
    for (int d = 0; fits && d < t->rank; d++) {
        int64_t want = type->dims[d].size;
        if (type->dims[d].seg)
            MOE_TRY(live_rows(c, type->dims[d].seg, &want));
        fits = t->dims[d] == want;
    }
    if (!fits)
        return moe_error(MOE_E_INPUT, "the extents of operand %d are not those of its type", i);
    return NULL;
}

/* Rows over a table that the op itself made are as many as that says. */
static void trim(const MoeEvalContext *c, int r) {
    const MoeType *type = &c->op->results[r]->type;
    int own = type->kind == MOE_TYPE_TENSOR && type->dims[0].seg
                  ? own_result(c->op, type->dims[0].seg)
                  : -1;
    MoeTensor *t = &c->out[r];
    if (own < 0 || t->dims[0] == 0)
        return;
    int64_t live = c->out[own].i[c->out[own].n - 1];
    MOE_ASSERT(live <= t->dims[0], "%s made %lld rows", moe_op_info(c->op->opcode)->name,
               (long long)live);
    t->n = t->n / t->dims[0] * live;
    t->dims[0] = live;
}

static MoeStatus prepare(MoeEvalContext *c, MoeArena *arena) {
    for (int i = 0; i < c->op->n_operands; i++)
        MOE_TRY(check_operand(c, i));
    for (int r = 0; r < c->op->n_results; r++)
        MOE_TRY(make_tensor(c, &c->op->results[r]->type, arena, &c->out[r]));
    return NULL;
}

static MoeStatus finish(MoeEvalContext *c, unsigned flags) {
    for (int r = 0; r < c->op->n_results; r++) {
        if (c->op->results[r]->type.kind == MOE_TYPE_SEGS)
            MOE_TRY(check_table(&c->out[r]));
        trim(c, r);
        round_tensor(&c->out[r], flags);
    }
    return NULL;
}

static MoeStatus compute(MoeEvalContext *c, MoeArena *arena) {
    int leaf_rows = c->ev ? moe_graph_leaf_rows(c->ev->graph) : MOE_LEAF_ROWS;
    MoeEvalOp e = {arena, c->op, c->in, c->out, find_segs, c, leaf_rows};
    return eval_fns[c->op->opcode](&e);
}

MoeStatus moe_eval_name_op(MoeStatus st, const MoeOp *op) {
    if (!st)
        return NULL;
    MoeStr text = {0};
    moe_print_op(op, &text);
    st = moe_status_prefix(st, "eval of `%s`", moe_str_c(&text));
    moe_str_free(&text);
    return st;
}

MoeStatus moe_eval_op(const MoeOp *op, const MoeTensor *const *operands, MoeTensor *results,
                      MoeArena *scratch) {
    MoeEvalContext c = {NULL, op, operands, results};
    MoeStatus st = prepare(&c, scratch);
    if (!st)
        st = compute(&c, scratch);
    if (!st)
        st = finish(&c, 0);
    return moe_eval_name_op(st, op);
}

MoeEval *moe_eval_create(const MoeGraph *g) {
    MoeEval *ev = calloc(1, sizeof *ev);
    MOE_ASSERT(ev, "out of memory for the interpreter");
    size_t n = g->n_values > 0 ? (size_t)g->n_values : 1;
    ev->graph = g;
    ev->n_values = g->n_values;
    ev->given = calloc(n, sizeof *ev->given);
    ev->tensors = calloc(n, sizeof(MoeTensor *));
    MOE_ASSERT(ev->given && ev->tensors, "out of memory for the interpreter");
    for (size_t i = 0; i < n; i++)
        ev->given[i].n = -1;
    return ev;
}

void moe_eval_destroy(MoeEval *ev) {
    if (!ev)
        return;
    for (int i = 0; i < ev->n_values; i++) {
        free(ev->given[i].f);
        free(ev->given[i].i);
    }
    free(ev->given);
    free(ev->tensors);
    moe_arena_destroy(ev->run_arena);
    free(ev);
}

void moe_eval_set_flags(MoeEval *ev, unsigned flags) {
    ev->flags = flags;
}

static MoeStatus check_given(const MoeEval *ev, const MoeValue *v, bool floats, int64_t n) {
    const char *name = v->name ? v->name : "?";
    MoeOpcode op = v->def->opcode;
    if (v->id < 0 || v->id >= ev->n_values)
        return moe_error(MOE_E_INPUT, "eval: %%%s is no value of this graph", name);
    if (op != MOE_OP_INPUT && op != MOE_OP_PARAM && op != MOE_OP_STATE)
        return moe_error(MOE_E_INPUT, "eval: %%%s is no input, param or state", name);
    if (floats != moe_dtype_is_float(v->type.dtype))
        return moe_error(MOE_E_INPUT, "eval: %%%s holds %s", name, moe_dtype_name(v->type.dtype));
    int64_t cap = moe_type_elements(&v->type);
    bool ragged = v->type.kind == MOE_TYPE_TENSOR && v->type.dims[0].seg;
    if (n < 0 || n > cap || (!ragged && n != cap))
        return moe_error(MOE_E_INPUT, "eval: %%%s takes %s%lld elements, got %lld", name,
                         ragged ? "up to " : "", (long long)cap, (long long)n);
    return NULL;
}

static void *grow(void *old, size_t n_bytes) {
    void *p = realloc(old, n_bytes ? n_bytes : 1);
    MOE_ASSERT(p, "out of memory for %zu bytes of interpreter data", n_bytes);
    return p;
}

MoeStatus moe_eval_set_f(MoeEval *ev, const MoeValue *v, const double *data, int64_t n) {
    MOE_TRY(check_given(ev, v, true, n));
    MoeEvalGiven *g = &ev->given[v->id];
    g->f = grow(g->f, (size_t)n * sizeof(double));
    if (n)
        memcpy(g->f, data, (size_t)n * sizeof(double));
    g->n = n;
    return NULL;
}

MoeStatus moe_eval_set_i(MoeEval *ev, const MoeValue *v, const int32_t *data, int64_t n) {
    MOE_TRY(check_given(ev, v, false, n));
    MoeEvalGiven *g = &ev->given[v->id];
    g->i = grow(g->i, (size_t)n * sizeof(int32_t));
    if (n)
        memcpy(g->i, data, (size_t)n * sizeof(int32_t));
    g->n = n;
    return NULL;
}

MoeStatus moe_eval_begin(MoeEval *ev) {
    const MoeGraph *g = ev->graph;
    if (g->n_values != ev->n_values)
        return moe_error(MOE_E_INPUT,
                         "eval: graph @%s had %d values when its interpreter was made, now %d",
                         g->name, ev->n_values, g->n_values);
    moe_arena_destroy(ev->run_arena);
    ev->run_arena = moe_arena_create();
    memset(ev->tensors, 0, (size_t)ev->n_values * sizeof(MoeTensor *));
    return NULL;
}

MoeStatus moe_eval_prepare(MoeEval *ev, const MoeOp *op, MoeEvalContext *out) {
    const MoeTensor **in = MOE_NEW_N(ev->run_arena, const MoeTensor *, op->n_operands + 1);
    for (int i = 0; i < op->n_operands; i++)
        in[i] = ev->tensors[op->operands[i]->id];
    *out = (MoeEvalContext){ev, op, in, MOE_NEW_N(ev->run_arena, MoeTensor, op->n_results + 1)};
    return moe_eval_name_op(prepare(out, ev->run_arena), op);
}

MoeStatus moe_eval_finish(MoeEvalContext *c) {
    MOE_TRY(moe_eval_name_op(finish(c, c->ev->flags), c->op));
    for (int r = 0; r < c->op->n_results; r++)
        c->ev->tensors[c->op->results[r]->id] = &c->out[r];
    return NULL;
}

MoeStatus moe_eval_step(MoeEval *ev, const MoeOp *op) {
    MoeEvalContext c;
    MOE_TRY(moe_eval_prepare(ev, op, &c));
    MOE_TRY(moe_eval_name_op(compute(&c, ev->run_arena), op));
    return moe_eval_finish(&c);
}

MoeStatus moe_eval_run(MoeEval *ev) {
    MOE_TRY(moe_eval_begin(ev));
    for (size_t k = 0; k < ev->graph->n_ops; k++)
        MOE_TRY(moe_eval_step(ev, ev->graph->ops[k]));
    return NULL;
}

const MoeTensor *moe_eval_get(const MoeEval *ev, const MoeValue *v) {
    return v->id >= 0 && v->id < ev->n_values ? ev->tensors[v->id] : NULL;
}

void moe_eval_commit(MoeEval *ev) {
    for (size_t k = 0; k < ev->graph->n_ops; k++) {
        const MoeOp *op = ev->graph->ops[k];
        if (op->opcode != MOE_OP_ASSIGN)
            continue;
        const MoeTensor *t = ev->tensors[op->operands[1]->id];
        MOE_ASSERT(t, "commit of %%%s before a run", op->operands[0]->name);
        MoeStatus st = t->f ? moe_eval_set_f(ev, op->operands[0], t->f, t->n)
                            : moe_eval_set_i(ev, op->operands[0], t->i, t->n);
        MOE_ASSERT(!st, "commit: %s", moe_status_message(st));
    }
}
