/* Before fuse places anything: rewrites and moves that let more ops join, and who reads what. See fuse.c. */
#include "passes/fuse.h"

#include <string.h>

/* convert(dispatch(x)) becomes dispatch(convert(x)): the same bits, fewer rows to convert, and a gather that a matmul can do. */
void moe_fuse_sink_dispatches(MoeGraph *g) {
    size_t n;
    MoeOp **ops = moe_graph_take_ops(g, &n);
    g->layer = -1;
    for (size_t i = 0; i < n; i++) {
        MoeOp *op = ops[i];
        const MoeOp *d = op->opcode == MOE_OP_CONVERT ? op->operands[0]->def : NULL;
        if (d && d->opcode == MOE_OP_DISPATCH) {
            g->phase = op->phase;
            MoeOp *x = moe_op_clone(g, op, d->operands);
            MoeValue **operands = MOE_NEW_N(g->arena, MoeValue *, 3);
            memcpy(operands, d->operands, 3 * sizeof *operands);
            operands[0] = x->results[0];
            op->opcode =
                MOE_OP_DISPATCH; /* the result stays what it was: same type, same readers */
            op->operands = operands;
            op->n_operands = 3;
            int kept = 0;
            for (int k = 0; k < op->n_attrs; k++)
                if (strcmp(op->attrs[k].key, "to") != 0)
                    op->attrs[kept++] = op->attrs[k];
            op->n_attrs = kept;
        }
        moe_graph_append(g, op);
    }
    moe_graph_dce(g);
}

/* The weights of the expert rows are ready long before the list asks for them: as early as their layer allows, so that the
 * tail of a matmul can read them. */
void moe_fuse_hoist_weights(Fuse *f) {
    for (size_t i = 0; i < f->n_ops; i++) {
        MoeOp *op = f->ops[i];
        if (op->opcode != MOE_OP_DISPATCH_WEIGHT)
            continue;
        int64_t layer = moe_attr_i_or(op, "layer", -1);
        size_t to = i;
        for (bool free_ = true; to > 0; to -= free_) {
            const MoeOp *before = f->ops[to - 1];
            free_ = before->phase == op->phase && moe_attr_i_or(before, "layer", -1) == layer;
            for (int k = 0; k < op->n_operands; k++)
                free_ = free_ && op->operands[k]->def != before;
            if (!free_)
                break;
        }
        memmove(f->ops + to + 1, f->ops + to, (i - to) * sizeof *f->ops);
        f->ops[to] = op;
    }
}

void moe_fuse_find_users(Fuse *f) {
    f->users = MOE_NEW_N(f->a, MoeOp **, f->cap_values);
    f->n_users = MOE_NEW_N(f->a, int, f->cap_values);
    for (size_t i = 0; i < f->n_ops; i++)
        for (int k = 0; k < f->ops[i]->n_operands; k++)
            f->n_users[f->ops[i]->operands[k]->id]++;
    for (int i = 0; i < f->cap_values; i++) {
        f->users[i] = MOE_NEW_N(f->a, MoeOp *, f->n_users[i]);
        f->n_users[i] = 0;
    }
    for (size_t i = 0; i < f->n_ops; i++)
        for (int k = 0; k < f->ops[i]->n_operands; k++) {
            int id = f->ops[i]->operands[k]->id, seen = f->n_users[id];
            if (!seen || f->users[id][seen - 1] != f->ops[i]) /* x + x is one reader */
                f->users[id][f->n_users[id]++] = f->ops[i];
        }
}
