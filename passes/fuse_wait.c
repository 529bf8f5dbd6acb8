/* What fuse lets wait for a reader: [1]-valued ops, broadcasts and dispatches. See fuse.c. */
#include "passes/fuse.h"

#include <string.h>
#include "base/assert.h"

static MoeKind kind_of(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind;
}

bool moe_fuse_is_scalar_op(const MoeOp *op) {
    if (kind_of(op) != MOE_KIND_EW || !moe_fuse_is_scalar(op->results[0]))
        return false;
    for (int i = 0; i < op->n_operands; i++)
        if (!moe_fuse_is_scalar(op->operands[i]))
            return false;
    return true;
}

/* The waiting scalar ops that v needs, v's included, in order of the old list. */
void moe_fuse_collect_scalars(Fuse *f, const MoeValue *v, MoeOp ***list, size_t *n, size_t *cap) {
    if (!f->waiting[v->id] || !moe_fuse_is_scalar_op(v->def))
        return;
    for (size_t i = 0; i < *n; i++)
        if ((*list)[i] == v->def)
            return;
    for (int i = 0; i < v->def->n_operands; i++)
        moe_fuse_collect_scalars(f, v->def->operands[i], list, n, cap);
    MOE_PUSH(f->a, *list, *n, *cap, v->def);
}

void moe_fuse_place_scalars(Fuse *f, MoeOp **ops, size_t n) {
    Item *it = NULL;
    for (size_t i = 0; i < n; i++) {
        if (it) {
            MoeOp **all = MOE_NEW_N(f->a, MoeOp *, it->n + 1);
            memcpy(all, it->ops, it->n * sizeof *all);
            all[it->n] = ops[i];
            if (!f->t->fuse.row || !moe_fuse_accepts(f, all, it->n + 1))
                it = NULL;
        }
        if (!it)
            it = moe_fuse_new_item(f, ITEM_SCALAR, f->phase);
        moe_fuse_add(f, it, ops[i]);
    }
}

/* Places a waiting value now, at the end of the list. */
void moe_fuse_force(Fuse *f, MoeValue *v) {
    if (!f->waiting[v->id])
        return;
    if (moe_fuse_is_scalar_op(v->def)) {
        MoeOp **list = NULL;
        size_t n = 0, cap = 0;
        moe_fuse_collect_scalars(f, v, &list, &n, &cap);
        moe_fuse_place_scalars(f, list, n);
        return;
    }
    for (int i = 0; i < v->def->n_operands; i++)
        moe_fuse_force(f, v->def->operands[i]);
    bool rows = v->def->opcode == MOE_OP_BROADCAST;
    Item *it = moe_fuse_new_item(f, rows ? ITEM_ROWS : ITEM_OTHER, f->phase);
    it->space = rows ? moe_fuse_space(v->def) : (Space){0};
    moe_fuse_add(f, it, v->def);
}

void moe_fuse_force_operands(Fuse *f, const MoeOp *op) {
    for (int i = 0; i < op->n_operands; i++)
        moe_fuse_force(f, op->operands[i]);
}

/* Whether every reader of waiting scalar v is `op` or one of the waiting ops that only op needs. */
static bool only_for(const Fuse *f, const MoeValue *v, const MoeOp *op) {
    for (int i = 0; i < f->n_users[v->id]; i++) {
        const MoeOp *u = f->users[v->id][i];
        if (u == op)
            continue;
        if (u->n_results != 1 || !f->waiting[u->results[0]->id] || !moe_fuse_is_scalar_op(u) ||
            !only_for(f, u->results[0], op))
            return false;
    }
    return true;
}

MoeOp *moe_fuse_copy(Fuse *f, const MoeOp *op) {
    f->g->phase = f->phase;
    MoeOp *c = moe_op_clone(f->g, op, op->operands);
    for (int i = 0; i < c->n_results; i++) {
        MOE_ASSERT(c->results[i]->id < f->cap_values, "fuse: no room for another copy");
        f->item_of[c->results[i]->id] = -1;
    }
    return c;
}

/* The waiting operands that may run inside op's own group: scalars only it needs, and broadcasts, of which every reader
 * gets a copy. All others are placed now. */
void moe_fuse_absorb(Fuse *f, MoeOp *op, MoeOp ***extra, size_t *n, size_t *cap) {
    for (int i = 0; i < op->n_operands; i++) {
        MoeValue *v = op->operands[i];
        if (!f->waiting[v->id])
            continue;
        if (moe_fuse_is_scalar_op(v->def) && f->t->fuse.row && only_for(f, v, op)) {
            moe_fuse_collect_scalars(f, v, extra, n, cap);
        } else if (v->def->opcode == MOE_OP_BROADCAST && f->t->fuse.row) {
            moe_fuse_force_operands(f, v->def);
            MoeOp *b = f->n_users[v->id] == 1 ? v->def : moe_fuse_copy(f, v->def);
            op->operands[i] = b->results[0];
            for (int k = i + 1; k < op->n_operands; k++)
                if (op->operands[k] == v)
                    op->operands[k] = b->results[0];
            MOE_PUSH(f->a, *extra, *n, *cap, b);
        } else {
            moe_fuse_force(f, v);
        }
    }
}
