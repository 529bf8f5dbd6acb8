/* kind_row.h: names, types, and the lines that all row kernels share. */
#include <math.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cuda/kind_row.h"

const char *moe_cuda_row_memory_type(MoeDtype d) {
    return d == MOE_F32 ? "float" : d == MOE_BF16 ? "bf16" : "i32";
}

const char *moe_cuda_row_value_type(MoeDtype d) {
    return d == MOE_I32 ? "i32" : "float";
}

static const char *number(MoeArena *a, MoeDtype d, double v) {
    if (d == MOE_I32)
        return moe_arena_printf(a, "(i32)%lld", (long long)v);
    float f = (float)v;
    if (isnan(f))
        return "__int_as_float(0x7fffffff)";
    if (isinf(f))
        return f > 0 ? "MOE_INFINITY" : "-MOE_INFINITY";
    return moe_arena_printf(a, "%af", (double)f);
}

MoeCudaRowText moe_cuda_row_text(MoeArena *arena, const MoeRowPlan *p) {
    MoeCudaRowText x = {.arena = arena, .p = p, .name = MOE_NEW_N(arena, const char *, p->n_values)};
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *v = &p->values[i];
        if (v->is_const)
            x.name[i] = number(arena, v->dtype, v->constant);
        else if (v->def >= 0)
            x.name[i] = moe_arena_printf(arena, "%s%d",
                                         moe_op_info(p->ops[v->def].op->opcode)->name, i);
        else
            x.name[i] = moe_arena_printf(arena, "in%d", i);
    }
    return x;
}

/* Whether an op of the group reads the value: else what it would be rounded to only the store sees, and rounds itself. */
static bool is_read(const MoeRowPlan *p, int at) {
    for (int i = 0; i < p->n_ops; i++)
        for (int n = 0; n < p->ops[i].n_in; n++)
            if (p->ops[i].in[n] == at)
                return true;
    return false;
}

void moe_cuda_row_comment(const MoeCudaRowText *x, MoeStr *out, int indent, const MoeRowOp *o) {
    moe_str_printf(out, "%*s// %s: ", indent, "", x->name[o->out]);
    const MoeType *t = &x->p->values[o->out].v->type;
    moe_str_append(out, moe_dtype_name(t->dtype));
    for (int d = 0; d < t->rank; d++)
        if (t->dims[d].seg)
            moe_str_printf(out, "%cr", d ? ',' : '[');
        else
            moe_str_printf(out, "%c%lld", d ? ',' : '[', (long long)t->dims[d].size);
    moe_str_printf(out, "] = %s", moe_op_info(o->op->opcode)->name);
    for (int i = 0; i < o->n_in; i++)
        moe_str_printf(out, " %s", x->name[o->in[i]]);
    moe_str_putc(out, '\n');
}

static void expression(MoeStr *out, const MoeOp *op, const char *const *in, int n_in) {
    MoeOpcode o = op->opcode;
    MoeDtype from = op->operands[0]->type.dtype, to = op->results[0]->type.dtype;
    if (o == MOE_OP_CONVERT || o == MOE_OP_BROADCAST) {
        moe_str_printf(out, "%s%s", from == MOE_I32 && to != MOE_I32 ? "(float)" : "", in[0]);
        return;
    }
    MOE_ASSERT(moe_op_info(o)->kind == MOE_KIND_EW, "row: %s is not elementwise",
               moe_op_info(o)->name);
    moe_str_printf(out, "ew_%s(", moe_op_info(o)->name);
    for (int i = 0; i < n_in; i++)
        moe_str_printf(out, "%s%s", i ? ", " : "", in[i]);
    moe_str_putc(out, ')');
}

void moe_cuda_row_ew(const MoeCudaRowText *x, MoeStr *out, int indent, const MoeRowOp *o,
                     const char *const *in) {
    const MoeOp *op = o->op;
    MoeOpcode code = op->opcode;
    MoeDtype from = op->operands[0]->type.dtype, to = op->results[0]->type.dtype;
    /* A bf16 result is rounded as it is produced; ops that only choose among bf16 values are exact. */
    bool exact = from == MOE_BF16 &&
                 (code == MOE_OP_NEG || code == MOE_OP_MAX || code == MOE_OP_MIN ||
                  code == MOE_OP_CONVERT || code == MOE_OP_BROADCAST);
    bool round = to == MOE_BF16 && !exact && is_read(x->p, o->out);
    moe_cuda_row_comment(x, out, indent, o);
    moe_str_printf(out, "%*sconst %s %s = %s", indent, "", moe_cuda_row_value_type(to),
                   x->name[o->out], round ? "round_bf16(" : "");
    expression(out, op, in, o->n_in);
    moe_str_append(out, round ? ");\n" : ";\n");
}

void moe_cuda_row_uniform(MoeCudaRowText *x) {
    const MoeRowPlan *p = x->p;
    for (int i = 0; i < p->n_values; i++) {
        const MoeRowValue *v = &p->values[i];
        if (v->cls != MOE_ROW_UNIFORM || v->is_const)
            continue;
        if (v->def < 0) {
            moe_str_printf(&x->s, "    const %s %s = load(buf<const %s>(a, %d));\n",
                           moe_cuda_row_value_type(v->dtype), x->name[i],
                           moe_cuda_row_memory_type(v->dtype), v->buf_in);
            continue;
        }
        const MoeRowOp *o = &p->ops[v->def];
        const char *in[3] = {NULL, NULL, NULL};
        for (int n = 0; n < o->n_in; n++)
            in[n] = x->name[o->in[n]];
        moe_cuda_row_ew(x, &x->s, 4, o, in);
    }
    for (int i = 0; i < p->n_values; i++)
        if (p->values[i].cls == MOE_ROW_UNIFORM && p->values[i].buf_out >= 0)
            moe_str_printf(&x->s,
                           "    if (blockIdx.x == 0 && threadIdx.x == 0)\n"
                           "        store(buf<%s>(a, %d), %s);\n",
                           moe_cuda_row_memory_type(p->values[i].dtype), p->values[i].buf_out,
                           x->name[i]);
}

const char *moe_cuda_row_first(const MoeCudaRowText *x) {
    const MoeRowPlan *p = x->p;
    if (p->seg < 0 || p->values[p->seg].v->type.groups == 1)
        return "0";
    return moe_arena_printf(x->arena, "(i64)buf<const i32>(a, %d)[0]", p->values[p->seg].buf_in);
}

const char *moe_cuda_row_end(const MoeCudaRowText *x) {
    const MoeRowPlan *p = x->p;
    if (p->seg < 0)
        return moe_arena_printf(x->arena, "(i64)%lld", (long long)p->rows);
    const MoeType *t = &p->values[p->seg].v->type;
    return moe_arena_printf(x->arena, "(i64)buf<const i32>(a, %d)[%lld]",
                            p->values[p->seg].buf_in, (long long)(t->groups * t->shards));
}

const char *moe_cuda_row_note(const MoeCudaRowText *x) {
    enum { SHOWN = 12 };
    MoeStr s = {0};
    const MoeRowPlan *p = x->p;
    for (int i = 0; i < p->n_ops && i < SHOWN; i++)
        moe_str_printf(&s, "%s%s", i ? " " : "", moe_op_info(p->ops[i].op->opcode)->name);
    if (p->n_ops > SHOWN)
        moe_str_printf(&s, " and %d more", p->n_ops - SHOWN);
    if (p->seg < 0)
        moe_str_printf(&s, "; %lld rows", (long long)p->rows);
    else
        moe_str_printf(&s, "; rows of segs<%lld,%lld>", (long long)p->values[p->seg].v->type.groups,
                       (long long)p->values[p->seg].v->type.shards);
    const char *text = moe_arena_strdup(x->arena, moe_str_c(&s));
    moe_str_free(&s);
    return text;
}
