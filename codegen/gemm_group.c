/* gemm_group.h */
#include "codegen/gemm_group.h"

#include <string.h>
#include "base/assert.h"

static bool is_ew(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_EW;
}

/* ---- what a group may hold ---- */

static bool same_dim(const MoeDim *a, const MoeDim *b) {
    return a->size == b->size && a->seg == b->seg;
}

/* What a value of type t is beside a product of type `tile`. */
static MoeGemmLevel level_of(const MoeType *t, const MoeType *tile) {
    if (t->kind != MOE_TYPE_TENSOR)
        return MOE_LEVEL_NONE;
    bool rows = t->rank == 2 && same_dim(&t->dims[0], &tile->dims[0]);
    if (rows && t->dims[1].size == tile->dims[1].size)
        return MOE_LEVEL_TILE;
    if (rows && t->dims[1].size == 1)
        return MOE_LEVEL_ROW;
    if (!t->dims[0].seg && moe_type_elements(t) == 1)
        return MOE_LEVEL_UNIFORM;
    bool one_row = t->rank == 1 || (t->rank == 2 && t->dims[0].size == 1 && !t->dims[0].seg);
    return one_row && moe_type_cols(t) == tile->dims[1].size ? MOE_LEVEL_COLUMN : MOE_LEVEL_NONE;
}

static bool tail_op_fits(const MoeOp *op, const MoeType *tile) {
    if (!is_ew(op))
        return false;
    for (int i = 0; i < op->n_operands; i++) {
        const MoeType *t = &op->operands[i]->type;
        if (op->opcode == MOE_OP_BROADCAST && i == 1)
            continue;
        if (level_of(t, tile) == MOE_LEVEL_NONE ||
            (t->dtype == MOE_I32 && op->opcode != MOE_OP_CONVERT))
            return false;
    }
    MoeGemmLevel level = level_of(&op->results[0]->type, tile);
    return op->results[0]->type.dtype != MOE_I32 &&
           (level == MOE_LEVEL_TILE || level == MOE_LEVEL_ROW || level == MOE_LEVEL_UNIFORM);
}

static bool same_product(const MoeOp *a, const MoeOp *b) {
    return a->operands[0] == b->operands[0] && moe_attr_i(a, "tb") == moe_attr_i(b, "tb") &&
           moe_attr_i(a, "grouped") == moe_attr_i(b, "grouped") &&
           moe_type_equal(&a->results[0]->type, &b->results[0]->type);
}

static bool add_product(MoeGemmGroup *gg, const MoeOp *op) {
    if (gg->n_products == 2 || gg->n_tail || gg->n_sums ||
        (gg->n_products && !same_product(gg->product[0], op)) ||
        (gg->dispatch && op->operands[0] != gg->dispatch->results[0]))
        return false;
    for (int k = 0; k < gg->n_products; k++) /* b made in the group: no */
        if (op->operands[1] == gg->product[k]->results[0])
            return false;
    if (op->operands[1] == op->operands[0] && gg->dispatch)
        return false;
    gg->product[gg->n_products++] = op;
    return true;
}

static bool reads_sum(const MoeGemmGroup *gg, const MoeOp *op) {
    for (int i = 0; i < gg->n_sums; i++)
        for (int k = 0; k < op->n_operands; k++)
            if (op->operands[k] == gg->sum[i]->results[0])
                return true;
    return false;
}

/* A sum over the columns of a tile that the group makes. */
static bool add_sum(MoeGemmGroup *gg, const MoeOp *op) {
    const MoeValue *v = op->operands[0];
    bool made = false;
    if (!gg->n_products || gg->n_sums == MOE_GEMM_MAX_SUMS || v->type.dtype != MOE_F32 ||
        level_of(&v->type, &gg->product[0]->results[0]->type) != MOE_LEVEL_TILE || reads_sum(gg, op))
        return false;
    for (int i = 0; i < gg->n_products; i++)
        made |= v == gg->product[i]->results[0];
    for (int i = 0; i < gg->n_tail; i++)
        made |= v == gg->tail[i]->results[0];
    if (made)
        gg->sum[gg->n_sums++] = op;
    return made;
}

static bool add_tail(MoeGemmGroup *gg, const MoeOp *op) {
    if (!gg->n_products || !tail_op_fits(op, &gg->product[0]->results[0]->type) ||
        reads_sum(gg, op))
        return false;
    for (int k = 0; k < op->n_operands; k++)
        if (gg->dispatch && op->operands[k] == gg->dispatch->results[0])
            return false;
    gg->tail[gg->n_tail++] = op;
    return true;
}

bool moe_gemm_group(MoeOp *const *ops, size_t n_ops, const MoeOp *more, MoeGemmGroup *gg) {
    memset(gg, 0, sizeof *gg);
    if (n_ops + 1 > MOE_GEMM_MAX_OPS)
        return false;
    for (size_t i = 0; i < n_ops + (more ? 1 : 0); i++) {
        const MoeOp *op = i < n_ops ? ops[i] : more;
        if (op->opcode == MOE_OP_DISPATCH) {
            if (gg->dispatch || gg->n_products || gg->n_tail)
                return false;
            gg->dispatch = op;
        } else if (!(op->opcode == MOE_OP_MATMUL    ? add_product(gg, op)
                     : op->opcode == MOE_OP_ROW_SUM ? add_sum(gg, op)
                                                    : add_tail(gg, op))) {
            return false;
        }
    }
    return true;
}

bool moe_gemm_group_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op) {
    MoeGemmGroup gg;
    return moe_gemm_group(ops, n_ops, op, &gg) && gg.n_products > 0;
}

bool moe_gemm_group_can_alias(const MoeGroup *g, const MoeValue *input, const MoeValue *output) {
    if (!moe_type_same_shape(&input->type, &output->type) ||
        moe_dtype_bytes(input->type.dtype) != moe_dtype_bytes(output->type.dtype))
        return false;
    MoeGemmGroup gg;
    if (!moe_gemm_group(g->ops, g->n_ops, NULL, &gg) || !gg.n_products || !gg.n_tail)
        return false;
    const MoeType *tile = &gg.product[0]->results[0]->type;
    /* The tail reads an element of a tile before it writes the one at its place, and only there. */
    if (level_of(&output->type, tile) != MOE_LEVEL_TILE ||
        level_of(&input->type, tile) != MOE_LEVEL_TILE)
        return false;
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_operands && !is_ew(g->ops[i]); k++)
            if (g->ops[i]->operands[k] == input)
                return false;
    return true;
}

bool moe_gemm_group_plain(const MoeGemmGroup *gg) {
    return gg->n_products == 1 && gg->n_tail == 0 && gg->n_sums == 0;
}

/* ---- the tail's values ---- */

const MoeOp *moe_constant_of(const MoeValue *v) {
    return v->def && v->def->opcode == MOE_OP_CONST ? v->def : NULL;
}

bool moe_group_writes(const MoeGroup *g, const MoeValue *v) {
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i] == v)
            return true;
    return false;
}

int moe_gemm_tail_inputs(const MoeOp *op) {
    return op->opcode == MOE_OP_BROADCAST ? 1 : op->n_operands;
}

int moe_gemm_group_find(const MoeGemmGroup *gg, const MoeValue *v) {
    for (int i = 0; i < gg->n_values; i++)
        if (gg->values[i].v == v)
            return i;
    return -1;
}

static MoeGemmValue *add_value(MoeGemmGroup *gg, const MoeGroup *g, const MoeValue *v) {
    int at = moe_gemm_group_find(gg, v);
    if (at >= 0)
        return &gg->values[at];
    MOE_ASSERT(gg->n_values < MOE_GEMM_MAX_VALUES, "gemm: the tail has too many values");
    MoeGemmValue *x = &gg->values[gg->n_values++];
    *x = (MoeGemmValue){.v = v, .buf_in = -1, .buf_out = -1, .product = -1};
    x->level = level_of(&v->type, &gg->product[0]->results[0]->type);
    x->is_output = moe_group_writes(g, v);
    return x;
}

void moe_gemm_group_values(MoeGemmGroup *gg, const MoeGroup *g) {
    for (int i = 0; i < gg->n_products; i++)
        add_value(gg, g, gg->product[i]->results[0])->product = i;
    for (int i = 0; i < gg->n_tail; i++) {
        const MoeOp *op = gg->tail[i];
        for (int k = 0; k < moe_gemm_tail_inputs(op); k++)
            if (moe_gemm_group_find(gg, op->operands[k]) < 0)
                add_value(gg, g, op->operands[k])->is_input = !moe_constant_of(op->operands[k]);
        add_value(gg, g, op->results[0]);
    }
}

bool moe_group_dispatch_alone(const MoeGroup *g, const MoeOp *dispatch, MoeGroup *out,
                              MoeOp **out_op, MoeValue **out_value) {
    if (!dispatch || !moe_group_writes(g, dispatch->results[0]))
        return false;
    *out_value = dispatch->results[0];
    *out_op = dispatch->results[0]->def;
    *out = *g;
    out->ops = out_op;
    out->n_ops = 1;
    out->outputs = out_value;
    out->n_outputs = 1;
    return true;
}
