/* The kind of a group, and what follows from it for every target. */
#include "codegen/kinds.h"

#include "base/assert.h"
#include "codegen/gemm_group.h"
#include "codegen/wgrad_group.h"

/* The kind of a group that this op alone decides; MOE_N_GROUP_KINDS: it does not (it joins others, or needs no kernel). */
static MoeGroupKind anchor_kind(MoeKind k) {
    switch (k) {
    case MOE_KIND_GEMM:
        return MOE_GROUP_gemm;
    case MOE_KIND_WGRAD:
        return MOE_GROUP_wgrad;
    case MOE_KIND_ROUTE:
        return MOE_GROUP_route;
    case MOE_KIND_EMBED:
    case MOE_KIND_EMBED_GRAD:
        return MOE_GROUP_embed;
    case MOE_KIND_ROPE:
        return MOE_GROUP_rope;
    case MOE_KIND_ATTN:
        return MOE_GROUP_attn;
    case MOE_KIND_ATTN_GRAD:
        return MOE_GROUP_attn_grad;
    case MOE_KIND_XENT:
        return MOE_GROUP_xent;
    case MOE_KIND_DECL:
    case MOE_KIND_EW:
    case MOE_KIND_ROW:
    case MOE_KIND_REDUCE:
    case MOE_KIND_SYNC:
    case MOE_KIND_MOVE:
    case MOE_KIND_COMM:
    case MOE_KIND_STORE:
    case MOE_KIND_COMPOSITE:
    case MOE_N_KINDS:
        break;
    }
    return MOE_N_GROUP_KINDS;
}

MoeGroupKind moe_group_kind(MoeOp *const *ops, size_t n_ops) {
    bool has_row = false, has_reduce = false, has_move = false;
    for (size_t i = 0; i < n_ops; i++) {
        const MoeOpInfo *info = moe_op_info(ops[i]->opcode);
        if (anchor_kind(info->kind) != MOE_N_GROUP_KINDS)
            return anchor_kind(info->kind);
        MOE_ASSERT(info->kind != MOE_KIND_COMPOSITE, "composite op %s reached the target",
                   info->name);
        has_row |= info->kind == MOE_KIND_EW || info->kind == MOE_KIND_ROW;
        has_reduce |= info->kind == MOE_KIND_REDUCE;
        has_move |= info->kind == MOE_KIND_MOVE;
    }
    if (has_row)
        return MOE_GROUP_row;
    return has_reduce ? MOE_GROUP_reduce : has_move ? MOE_GROUP_move : MOE_N_GROUP_KINDS;
}

bool moe_group_can_join(const MoeTarget *t, MoeOp *const *ops, size_t n_ops, const MoeOp *op) {
    if (n_ops == 0)
        return true;
    MoeGroupKind kind = moe_group_kind(ops, n_ops);
    if (kind == MOE_GROUP_gemm || op->opcode == MOE_OP_MATMUL)
        return (op->opcode != MOE_OP_ROW_SUM || t->fuse.matmul_row_sums) &&
               moe_gemm_group_joins(ops, n_ops, op);
    if (kind == MOE_GROUP_wgrad || op->opcode == MOE_OP_WEIGHT_GRAD ||
        op->opcode == MOE_OP_ROOT_GRAD)
        return moe_wgrad_group_joins(ops, n_ops, op);
    if (ops[0]->opcode == MOE_OP_DISPATCH || op->opcode == MOE_OP_DISPATCH)
        return moe_gemm_group_joins(ops, n_ops, op) || moe_wgrad_group_joins(ops, n_ops, op);
    return kind == MOE_GROUP_row && moe_row_can_join(ops, n_ops, op);
}

bool moe_group_can_alias(const MoeRowRules *r, const MoeGroup *group, const MoeValue *input,
                         const MoeValue *output) {
    MoeGroupKind kind = moe_group_kind(group->ops, group->n_ops);
    if (kind == MOE_GROUP_row)
        return moe_row_can_alias(r, group, input, output);
    return kind == MOE_GROUP_gemm && moe_gemm_group_can_alias(group, input, output);
}

bool moe_group_works_by_rows(const MoeGroup *group) {
    MoeGroupKind kind = moe_group_kind(group->ops, group->n_ops);
    return kind == MOE_GROUP_row ||
           (kind == MOE_GROUP_reduce && group->ops[0]->opcode == MOE_OP_COL_SUM);
}

bool moe_implements_primitives(const MoeTarget *t, MoeOpcode op) {
    (void)t;
    return moe_op_info(op)->kind != MOE_KIND_COMPOSITE;
}
