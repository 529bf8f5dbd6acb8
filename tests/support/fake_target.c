/* See fake_target.h. */
#include "tests/support/fake_target.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"

static MoeKind kind_of(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind;
}

static bool implements(const MoeTarget *t, MoeOpcode op) {
    (void)t;
    return moe_op_info(op)->kind != MOE_KIND_COMPOSITE;
}

/* What passes between ranks is the runtime's. */
static void check_group(const MoeGroup *g) {
    for (size_t i = 0; i < g->n_ops; i++)
        MOE_ASSERT(kind_of(g->ops[i]) != MOE_KIND_COMM && g->ops[i]->opcode != MOE_OP_WAIT,
                   "the target is asked about %s", moe_op_info(g->ops[i]->opcode)->name);
}

static bool row_like(const MoeOp *op) {
    return kind_of(op) == MOE_KIND_EW || kind_of(op) == MOE_KIND_ROW ||
           op->opcode == MOE_OP_COL_SUM;
}

static bool can_join(const MoeTarget *base, MoeOp *const *ops, size_t n, const MoeOp *op) {
    const MoeFakeTarget *t = (const MoeFakeTarget *)base;
    if (t->refuse_joins)
        return false;
    bool gemm = false, rows = true;
    for (size_t i = 0; i < n; i++) {
        gemm |= ops[i]->opcode == MOE_OP_MATMUL;
        rows &= row_like(ops[i]);
        if (ops[i]->opcode == MOE_OP_COL_SUM && op->opcode != MOE_OP_COL_SUM)
            return false;
    }
    if (op->opcode == MOE_OP_DISPATCH)
        return n == 1 && ops[0]->opcode == MOE_OP_DISPATCH;
    if (op->opcode == MOE_OP_MATMUL || op->opcode == MOE_OP_WEIGHT_GRAD)
        return (n == 1 && ops[0]->opcode == MOE_OP_DISPATCH) ||
               (op->opcode == MOE_OP_MATMUL && ops[n - 1]->opcode == MOE_OP_MATMUL);
    bool sums = op->opcode == MOE_OP_ROW_SUM && base->fuse.matmul_row_sums;
    return row_like(op) && (rows || (gemm && (kind_of(op) == MOE_KIND_EW || sums)));
}

static int64_t workspace_bytes(MoeTarget *base, const MoeGroup *g) {
    const MoeFakeTarget *t = (const MoeFakeTarget *)base;
    check_group(g);
    for (size_t i = 0; i < g->n_ops; i++)
        if (kind_of(g->ops[i]) == MOE_KIND_REDUCE || kind_of(g->ops[i]) == MOE_KIND_WGRAD)
            return t->workspace;
    return 0;
}

/* Elementwise groups, where the operand has the result's shape. */
static bool can_alias(const MoeTarget *base, const MoeGroup *g, const MoeValue *in,
                      const MoeValue *out) {
    const MoeFakeTarget *t = (const MoeFakeTarget *)base;
    check_group(g);
    for (size_t i = 0; i < g->n_ops; i++)
        if (kind_of(g->ops[i]) != MOE_KIND_EW)
            return false;
    return !t->refuse_alias && moe_type_equal(&in->type, &out->type);
}

static MoeStatus lower(MoeTarget *base, const MoeGroup *g, MoeLowered *out) {
    MoeFakeTarget *t = (MoeFakeTarget *)base;
    check_group(g);
    MoeBufRef *bufs = MOE_NEW_N(out->arena, MoeBufRef, g->n_inputs + g->n_outputs + 1);
    size_t n = 0;
    for (size_t i = 0; i < g->n_inputs; i++)
        if (g->inputs[i]->def->opcode != MOE_OP_CONST)
            bufs[n++].value = g->inputs[i];
    for (size_t i = 0; i < g->n_outputs; i++)
        bufs[n++].value = g->outputs[i];
    if (workspace_bytes(base, g))
        n++;
    MoeLaunch l = {
        .kernel = moe_arena_printf(out->arena, "k%zu", t->n_lowered++), .bufs = bufs, .n_bufs = n};
    MOE_PUSH(out->arena, out->launches, out->n_launches, out->cap_launches, l);
    if (out->scratch_bytes < 256)
        out->scratch_bytes = 256;
    return NULL;
}

static MoeStatus finish(MoeTarget *base, bool want_text, void **out_object, size_t *out_n,
                        char **out_text) {
    MoeFakeTarget *t = (MoeFakeTarget *)base;
    char text[64];
    snprintf(text, sizeof text, "fake object of %zu kernels", t->n_lowered);
    *out_object = strdup(text);
    *out_n = strlen(text);
    *out_text = want_text ? strdup("; fake text\n") : NULL;
    return NULL;
}

static void destroy(MoeTarget *t) {
    (void)t;
}

void moe_fake_target_init(MoeFakeTarget *t) {
    memset(t, 0, sizeof *t);
    snprintf(t->base.name, sizeof t->base.name, "fake:1");
    t->base.fuse = (MoeFuseRules){.row = true, .gather_matmul = true, .matmul_epilogue = true};
    t->base.object_file = "kernels.o";
    t->base.text_file = "kernels.ll";
    t->base.peak_flops_f32 = 1e11;
    t->base.peak_flops_bf16 = 2e11;
    t->base.memory_bandwidth = 4e10;
    t->base.implements = implements;
    t->base.can_join = can_join;
    t->base.workspace_bytes = workspace_bytes;
    t->base.can_alias = can_alias;
    t->base.lower = lower;
    t->base.finish = finish;
    t->base.destroy = destroy;
    t->workspace = 4096;
}
