/* wgrad_group.h */
#include "codegen/wgrad_group.h"

#include <string.h>
#include "codegen/bufs.h"

static bool is_result_of(const MoeOp *op, const MoeValue *v) {
    return op->results[0] == v;
}

bool moe_wgrad_group(MoeOp *const *ops, size_t n_ops, const MoeOp *more, MoeWgradGroup *w) {
    const MoeOp *dispatches[2];
    int n = 0;
    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < n_ops + (more ? 1 : 0); i++) {
        const MoeOp *op = i < n_ops ? ops[i] : more;
        if (w->grad)
            return false;
        if (op->opcode == MOE_OP_DISPATCH && n < 2)
            dispatches[n++] = op;
        else if (op->opcode == MOE_OP_WEIGHT_GRAD || op->opcode == MOE_OP_ROOT_GRAD)
            w->grad = op;
        else
            return false;
    }
    for (int i = 0; i < n && w->grad; i++) {
        if (is_result_of(dispatches[i], w->grad->operands[0]))
            w->dy = dispatches[i];
        if (is_result_of(dispatches[i], w->grad->operands[1]))
            w->x = dispatches[i];
        if (w->dy != dispatches[i] && w->x != dispatches[i])
            return false;
    }
    return true;
}

bool moe_wgrad_group_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op) {
    MoeWgradGroup w;
    return moe_wgrad_group(ops, n_ops, op, &w);
}

int64_t moe_wgrad_leaf_rows(const MoeGraph *g) {
    return g->fast_reduce ? 0 : moe_graph_leaf_rows(g);
}

MoeStatus moe_wgrad_shape(const MoeGraph *g, const MoeWgradGroup *w, MoeWgradShape *out) {
    const MoeOp *op = w->grad;
    const MoeType *dy = &op->operands[0]->type, *x = &op->operands[1]->type;
    memset(out, 0, sizeof *out);
    out->leaf_rows = moe_wgrad_leaf_rows(g);
    out->n = dy->dims[1].size;
    out->k = x->dims[1].size;
    if (out->n == 0 || out->k == 0)
        return moe_error(MOE_E_INPUT, "weight_grad: an extent of zero (n = %lld, k = %lld)",
                         (long long)out->n, (long long)out->k);
    bool roots = op->opcode == MOE_OP_ROOT_GRAD, grouped = roots || moe_attr_i(op, "grouped") != 0;
    const MoeValue *seg = out->seg = roots ? op->operands[2] : moe_rows_seg(dy);
    /* One result over several groups: the tree over shards, then over groups, is one tree where V
     * is a power of two. */
    if (seg && !grouped && seg->type.groups > 1 && (seg->type.shards & (seg->type.shards - 1)))
        return moe_error(MOE_E_INPUT,
                         "weight_grad over all groups needs a power of two of shards, not %lld",
                         (long long)seg->type.shards);
    out->rows = moe_row_space(dy, grouped, -1);
    if (roots) {
        out->rows.groups = seg->type.groups;
        out->root_slots = op->operands[3]->type.groups;
    }
    return NULL;
}
