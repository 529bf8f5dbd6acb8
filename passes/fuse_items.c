/* What may join what: the rules of the fuse pass about one group. See fuse.c. */
#include "passes/fuse.h"

#include <string.h>
#include "base/assert.h"

#define ROWS_DEPTH 12 /* elementwise ops followed from a product to sums over its rows */

bool moe_fuse_is_scalar(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR && v->type.rank == 1 && !v->type.dims[0].seg &&
           v->type.dims[0].size == 1;
}

Space moe_fuse_space(const MoeOp *op) {
    MoeKind k = moe_op_info(op->opcode)->kind;
    const MoeType *t = k == MOE_KIND_EW ? &op->results[0]->type : &op->operands[0]->type;
    Space s = {.rank = t->rank, .seg = t->dims[0].seg};
    s.dims[0] = t->dims[0].size;
    if (t->rank > 2) /* flat: only the very same shape walks together */
        for (int i = 0; i < t->rank; i++)
            s.dims[i] = t->dims[i].size;
    return s;
}

bool moe_fuse_same_space(const Space *a, const Space *b) {
    return a->rank == b->rank && a->seg == b->seg && !memcmp(a->dims, b->dims, sizeof a->dims);
}

Item *moe_fuse_new_item(Fuse *f, ItemKind kind, MoePhase phase) {
    Item *it = MOE_NEW(f->a, Item);
    it->kind = kind;
    it->phase = phase;
    MOE_PUSH(f->a, f->items, f->n_items, f->cap_items, it);
    return it;
}

static int index_of_item(const Fuse *f, const Item *it) {
    for (size_t i = f->n_items; i-- > 0;)
        if (f->items[i] == it)
            return (int)i;
    MOE_ASSERT(false, "fuse: unknown item");
    return -1;
}

void moe_fuse_add(Fuse *f, Item *it, MoeOp *op) {
    int index = index_of_item(f, it);
    MOE_PUSH(f->a, it->ops, it->n, it->cap, op);
    op->phase = it->phase;
    for (int i = 0; i < op->n_results; i++) {
        f->item_of[op->results[i]->id] = index;
        f->waiting[op->results[i]->id] = false;
    }
}

static int later(int a, int b) {
    return a > b ? a : b;
}

static int item_of_seg(const Fuse *f, const MoeType *t) {
    const MoeValue *seg = t->kind == MOE_TYPE_TENSOR ? t->dims[0].seg : NULL;
    return seg ? f->item_of[seg->id] : -1;
}

int moe_fuse_earliest(const Fuse *f, const MoeOp *op) {
    int at = -1;
    for (int i = 0; i < op->n_operands; i++) {
        at = later(at, f->item_of[op->operands[i]->id]);
        at = later(at, item_of_seg(f, &op->operands[i]->type));
    }
    for (int i = 0; i < op->n_results; i++)
        at = later(at, item_of_seg(f, &op->results[i]->type));
    return at;
}

bool moe_fuse_accepts(const Fuse *f, MoeOp *const *ops, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (!f->t->can_join(f->t, ops, i, ops[i]))
            return false;
    return true;
}

static bool defined_in(MoeOp *const *ops, size_t n, const MoeValue *v) {
    for (size_t i = 0; i < n; i++)
        if (ops[i] == v->def)
            return true;
    return false;
}

/* A row sum that only leaves: what reads it has no rows of its own. One that comes back to the rows it was taken of (softmax, a
 * norm) belongs into a kernel that has whole rows. */
static bool leaves_rows(const Fuse *f, const MoeOp *op) {
    if (op->opcode != MOE_OP_ROW_SUM || !f->t->fuse.matmul_row_sums)
        return false;
    const MoeValue *v = op->results[0];
    for (int i = 0; i < f->n_users[v->id]; i++) {
        const MoeOp *u = f->users[v->id][i];
        MoeKind k = moe_op_info(u->opcode)->kind;
        if (k == MOE_KIND_EW || k == MOE_KIND_ROW || u->opcode == MOE_OP_COL_SUM)
            return false;
    }
    return true;
}

/* [R, n]: the result of the item's matmuls; NULL: there are none. */
static const MoeType *product_type(const Item *it) {
    for (size_t i = 0; i < it->n; i++)
        if (it->ops[i]->opcode == MOE_OP_MATMUL)
            return &it->ops[i]->results[0]->type;
    return NULL;
}

/* An op at the end of a matmul: works on its result tile, with operands that a tile can fetch; or a row sum that leaves. */
static bool fits_epilogue(const Fuse *f, const Item *it, const MoeOp *op) {
    const MoeType *c = product_type(it);
    if (c && leaves_rows(f, op))
        return moe_type_same_shape(&op->operands[0]->type, c);
    if (moe_op_info(op->opcode)->kind != MOE_KIND_EW || op->opcode == MOE_OP_BROADCAST || !c)
        return false;
    if (!moe_type_same_shape(&op->results[0]->type, c))
        return moe_fuse_is_scalar(op->results[0]);
    for (int i = 0; i < op->n_operands; i++) {
        const MoeType *t = &op->operands[i]->type;
        if (moe_type_same_shape(t, c) || moe_fuse_is_scalar(op->operands[i]))
            continue;
        bool column = t->rank == 2 && t->dims[0].size == c->dims[0].size &&
                      t->dims[0].seg == c->dims[0].seg && t->dims[1].size == 1;
        bool row = t->rank == 1 && !t->dims[0].seg && t->dims[0].size == c->dims[1].size;
        if (!column && !row)
            return false;
    }
    return true;
}

/* Whether v, through elementwise ops of its shape and phase, feeds an op that reads whole rows or columns. */
static bool feeds_rows(const Fuse *f, const MoeValue *v, int depth) {
    for (int i = 0; i < f->n_users[v->id]; i++) {
        const MoeOp *u = f->users[v->id][i];
        MoeKind k = moe_op_info(u->opcode)->kind;
        if (u->phase != f->phase)
            continue;
        if ((k == MOE_KIND_ROW || u->opcode == MOE_OP_COL_SUM) && !leaves_rows(f, u))
            return true;
        if (k == MOE_KIND_EW && depth > 0 && moe_type_same_shape(&u->results[0]->type, &v->type) &&
            feeds_rows(f, u->results[0], depth - 1))
            return true;
    }
    return false;
}

/* The tail of a matmul saves reading its result again. That is no gain where the result has other readers in this phase
 * and some of them end in row or column sums: all of them together make one row kernel that reads it once. */
static bool gains_from_epilogue(const Fuse *f, const Item *it, const MoeOp *op) {
    for (int i = 0; i < op->n_operands; i++) {
        const MoeValue *v = op->operands[i];
        if (!defined_in(it->ops, it->n, v) || moe_fuse_is_scalar(v))
            continue;
        int readers = 0;
        for (int k = 0; k < f->n_users[v->id]; k++)
            readers += f->users[v->id][k]->phase == f->phase;
        if (readers > 1 && feeds_rows(f, v, ROWS_DEPTH))
            return false;
    }
    return true;
}

/* Whether v, as in feeds_rows, feeds a row sum that leaves. */
static bool feeds_leaving_sum(const Fuse *f, const MoeValue *v, int depth) {
    for (int i = 0; i < f->n_users[v->id]; i++) {
        const MoeOp *u = f->users[v->id][i];
        if (u->phase != f->phase)
            continue;
        if (leaves_rows(f, u))
            return true;
        if (moe_op_info(u->opcode)->kind == MOE_KIND_EW && depth > 0 &&
            moe_type_same_shape(&u->results[0]->type, &v->type) &&
            feeds_leaving_sum(f, u->results[0], depth - 1))
            return true;
    }
    return false;
}

/* Whether row item `b`, which makes what the tail of matmul item `a` is about to read, may be part of that tail: where the tail ends in a
 * row sum, so that otherwise the product would go to b's kernel by way of memory. */
static bool fits_tail(const Fuse *f, const Item *a, const Item *b) {
    bool sums = false;
    for (size_t i = 0; i < a->n; i++)
        if (a->ops[i]->opcode == MOE_OP_MATMUL)
            sums |= feeds_leaving_sum(f, a->ops[i]->results[0], ROWS_DEPTH);
    for (size_t i = 0; i < b->n && sums; i++)
        sums = fits_epilogue(f, a, b->ops[i]);
    return sums;
}

/* Column sums finish only after all rows: they stay last, and nothing in the group reads them. */
static size_t n_column_sums(const Item *it) {
    size_t n = 0;
    while (n < it->n && it->ops[it->n - 1 - n]->opcode == MOE_OP_COL_SUM)
        n++;
    return n;
}

static bool reads_column_sum(const Item *it, const MoeOp *op) {
    for (int i = 0; i < op->n_operands; i++)
        if (op->operands[i]->def->opcode == MOE_OP_COL_SUM &&
            defined_in(it->ops, it->n, op->operands[i]))
            return true;
    return false;
}

bool moe_fuse_try_join(Fuse *f, int item, MoeOp *const *extra, size_t n_extra, MoeOp *op) {
    Item *it = f->items[item];
    if (it->phase != f->phase || it->n == 0 || it->ops[0]->opcode == MOE_OP_SUM_SQUARES)
        return false;
    bool ok = false;
    if (it->kind == ITEM_ROWS && f->t->fuse.row) {
        Space s = moe_fuse_space(op);
        ok = moe_fuse_same_space(&s, &it->space) && !reads_column_sum(it, op);
        if (op->opcode == MOE_OP_COL_SUM)
            ok = ok && defined_in(it->ops, it->n, op->operands[0]);
        for (size_t i = 0; i < n_extra && ok; i++)
            ok = !reads_column_sum(it, extra[i]);
    } else if (it->kind == ITEM_GEMM && f->t->fuse.matmul_epilogue) {
        ok = fits_epilogue(f, it, op) && gains_from_epilogue(f, it, op);
        for (size_t i = 0; i < n_extra && ok; i++)
            ok = fits_epilogue(f, it, extra[i]);
    }
    if (!ok)
        return false;
    for (size_t i = 0; i < n_extra; i++)
        if (moe_fuse_earliest(f, extra[i]) > item)
            return false;
    size_t tail = op->opcode == MOE_OP_COL_SUM ? 0 : n_column_sums(it), n = 0;
    MoeOp **ops = MOE_NEW_N(f->a, MoeOp *, it->n + n_extra + 1);
    for (size_t i = 0; i < it->n - tail; i++)
        ops[n++] = it->ops[i];
    for (size_t i = 0; i < n_extra; i++)
        ops[n++] = extra[i];
    ops[n++] = op;
    for (size_t i = it->n - tail; i < it->n; i++)
        ops[n++] = it->ops[i];
    if (!moe_fuse_accepts(f, ops, n))
        return false;
    it->ops = ops;
    it->n = it->cap = n;
    for (size_t i = 0; i < n_extra + 1; i++) {
        MoeOp *o = i < n_extra ? extra[i] : op;
        o->phase = it->phase;
        for (int k = 0; k < o->n_results; k++) {
            f->item_of[o->results[k]->id] = item;
            f->waiting[o->results[k]->id] = false;
        }
    }
    return true;
}

/* Moves all of row item `from` up into item `to`, an earlier one of rows or of a matmul, if nothing in it needs what lies between. */
bool moe_fuse_merge(Fuse *f, int to, int from) {
    Item *a = f->items[to], *b = f->items[from];
    if (b->kind != ITEM_ROWS || !a->n || !b->n || a->phase != b->phase || !f->t->fuse.row)
        return false;
    if (a->kind == ITEM_GEMM ? !fits_tail(f, a, b)
                             : a->kind != ITEM_ROWS || !moe_fuse_same_space(&a->space, &b->space))
        return false;
    for (size_t i = 0; i < b->n; i++) {
        for (int k = 0; k < b->ops[i]->n_operands; k++) {
            const MoeValue *v = b->ops[i]->operands[k];
            int at = f->item_of[v->id], seg = item_of_seg(f, &v->type);
            if ((at > to && at != from) || seg > to || reads_column_sum(a, b->ops[i]))
                return false;
        }
        for (int k = 0; k < b->ops[i]->n_results; k++)
            if (item_of_seg(f, &b->ops[i]->results[k]->type) > to)
                return false;
    }
    size_t n = 0, a_sums = n_column_sums(a);
    MoeOp **ops = MOE_NEW_N(f->a, MoeOp *, a->n + b->n);
    for (size_t i = 0; i < a->n - a_sums; i++)
        ops[n++] = a->ops[i];
    for (size_t i = 0; i < b->n; i++) /* b's own column sums end it */
        ops[n++] = b->ops[i];
    size_t b_sums = n_column_sums(b);
    memmove(ops + n - b_sums + a_sums, ops + n - b_sums, b_sums * sizeof *ops);
    memcpy(ops + n - b_sums, a->ops + a->n - a_sums, a_sums * sizeof *ops);
    n += a_sums;
    if (!moe_fuse_accepts(f, ops, n))
        return false;
    for (size_t i = 0; i < b->n; i++)
        for (int k = 0; k < b->ops[i]->n_results; k++)
            f->item_of[b->ops[i]->results[k]->id] = to;
    a->ops = ops;
    a->n = a->cap = n;
    b->n = 0;
    return true;
}

/* Whether some op of the item reads v. */
static bool reads(const Item *it, const MoeValue *v) {
    for (size_t i = 0; i < it->n; i++)
        for (int k = 0; k < it->ops[i]->n_operands; k++)
            if (it->ops[i]->operands[k] == v)
                return true;
    return false;
}

/* An elementwise value that the item reads from outside but could compute from what it reads or makes anyway. */
static const MoeValue *find_cheap_input(const Fuse *f, int item) {
    const Item *it = f->items[item];
    const MoeType *full =
        it->kind == ITEM_ROWS ? &it->ops[0]->results[0]->type : product_type(it);
    for (size_t i = 0; i < it->n; i++)
        for (int k = 0; k < it->ops[i]->n_operands; k++) {
            const MoeValue *v = it->ops[i]->operands[k];
            const MoeOp *d = v->def;
            if (defined_in(it->ops, it->n, v) || moe_op_info(d->opcode)->kind != MOE_KIND_EW ||
                d->opcode == MOE_OP_BROADCAST || v->type.rank != full->rank ||
                moe_type_elements(&v->type) < moe_type_elements(full) || moe_fuse_is_scalar(v))
                continue;
            if (it->kind == ITEM_GEMM && !fits_epilogue(f, it, d))
                continue;
            Space s = moe_fuse_space(d);
            if (it->kind == ITEM_ROWS && !moe_fuse_same_space(&s, &it->space))
                continue;
            bool at_hand = true;
            for (int o = 0; o < d->n_operands; o++) {
                const MoeValue *u = d->operands[o];
                at_hand = at_hand && (u->def->opcode == MOE_OP_CONST ||
                                      ((reads(it, u) || defined_in(it->ops, it->n, u)) &&
                                       u->def->opcode != MOE_OP_COL_SUM));
            }
            if (at_hand)
                return v;
        }
    return NULL;
}

/* Puts a copy of v's op before its first reader in the item. false: the target does not want it. */
static bool pull_in(Fuse *f, int item, const MoeValue *v) {
    Item *it = f->items[item];
    MoeOp *copy = moe_op_clone(f->g, v->def, v->def->operands);
    copy->phase = it->phase;
    MOE_ASSERT(copy->results[0]->id < f->cap_values, "fuse: no room for another copy");
    size_t at = 0, ready = 0; /* first reader; after the last op that makes an operand */
    while (at < it->n) {
        bool found = false;
        for (int k = 0; k < it->ops[at]->n_operands; k++)
            found = found || it->ops[at]->operands[k] == v;
        if (found)
            break;
        at++;
    }
    for (size_t i = 0; i < it->n; i++)
        for (int k = 0; k < copy->n_operands; k++)
            if (copy->operands[k]->def == it->ops[i])
                ready = i + 1;
    if (ready > at)
        return false;
    for (size_t i = at; i < it->n; i++) /* a matmul comes before its tail */
        if (it->ops[i]->opcode == MOE_OP_MATMUL)
            return false;
    MoeOp **ops = MOE_NEW_N(f->a, MoeOp *, it->n + 1);
    memcpy(ops, it->ops, at * sizeof *ops);
    ops[at] = copy;
    memcpy(ops + at + 1, it->ops + at, (it->n - at) * sizeof *ops);
    MoeValue *old = (MoeValue *)v;
    for (size_t i = at + 1; i < it->n + 1; i++)
        for (int k = 0; k < ops[i]->n_operands; k++)
            if (ops[i]->operands[k] == old)
                ops[i]->operands[k] = copy->results[0];
    if (!moe_fuse_accepts(f, ops, it->n + 1)) {
        for (size_t i = at + 1; i < it->n + 1; i++)
            for (int k = 0; k < ops[i]->n_operands; k++)
                if (ops[i]->operands[k] == copy->results[0])
                    ops[i]->operands[k] = old;
        return false;
    }
    it->ops = ops;
    it->n = it->cap = it->n + 1;
    f->item_of[copy->results[0]->id] = item;
    return true;
}

void moe_fuse_rematerialise(Fuse *f) {
    for (size_t i = 0; i < f->n_items; i++) {
        Item *it = f->items[i];
        if (it->n < 2 || (it->kind != ITEM_ROWS && it->kind != ITEM_GEMM))
            continue;
        for (int tries = 0; tries < 32; tries++) {
            const MoeValue *v = find_cheap_input(f, (int)i);
            if (!v || !pull_in(f, (int)i, v))
                break;
        }
    }
}
