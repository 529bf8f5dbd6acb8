/* fuse: groups ops that run as one kernel, and moves ops to where their group is.
 *
 * In: primitives and what the target runs whole. Out: op->group for every op with a step; groups are consecutive and of
 * one phase. Declarations, accumulate and batch_sum keep group -1. The target is asked about every joining.
 *
 *   %h = mul %x, %r                    %h = mul %x, %r      #0
 *   %y = matmul %h, %w            ->   %y = matmul %h, %w   #1
 *   %n = neg %h                        %z = add %y, %x      #1     the matmul's tail
 *   %z = add %y, %x                    (neg joins #0: it reads %h)
 *
 * Ops are placed one by one, in list order, into a growing list of groups ("items"), so all that an op reads stands before it.
 * (a) Elementwise and row ops join the last group among those that make what they read, if it walks the same rows, or a
 *     recent one that reads the same large value; column sums close a group.
 * (b) dispatch waits for its readers: each matmul and weight_grad gets a copy of its own and gathers rows as it reads them.
 * (c) The elementwise tail of a matmul joins it. Two matmuls of the same rows whose results meet in one tail (gate and
 *     up) are placed together first.
 * (d) Collectives that follow each other and do not depend on each other are one exchange (fuse_comm.c).
 * [1]-valued ops and broadcasts wait too: with a single reader they join its group; the rest of a phase's scalars run together.
 * Last, a group that reads a value it could as well compute from its other inputs computes it (sigmoid(gate) in the
 * tail of a matmul that reads gate anyway): one tensor less in memory. Same op, same operands: same bits. */
#include "passes/fuse.h"

#include <string.h>
#include "base/assert.h"
#include "passes/group.h"
#include "passes/pass.h"

#define SHARE_WINDOW    8 /* items looked back for one that reads the same large value */
#define MEET_DEPTH      8 /* elementwise ops followed from two matmuls to where they meet */
#define COPIES_PER_ITEM 8 /* room for copies made by rematerialisation */

static MoeKind kind_of(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind;
}

static bool is_row_op(const MoeOp *op) {
    MoeKind k = kind_of(op);
    return k == MOE_KIND_EW || k == MOE_KIND_ROW || op->opcode == MOE_OP_COL_SUM;
}

static bool is_contraction(const MoeOp *op) {
    return op->opcode == MOE_OP_MATMUL || op->opcode == MOE_OP_WEIGHT_GRAD ||
           op->opcode == MOE_OP_ROOT_GRAD;
}

/* ---- placing ---- */

static int earliest_of(const Fuse *f, MoeOp *const *extra, size_t n, const MoeOp *op) {
    int at = moe_fuse_earliest(f, op);
    for (size_t i = 0; i < n; i++) {
        int e = moe_fuse_earliest(f, extra[i]);
        at = e > at ? e : at;
    }
    return at;
}

/* What op reads may come from several row items: they become one where they can. Returns the item to join. */
static int merge_producers(Fuse *f, MoeOp *const *extra, size_t n, const MoeOp *op) {
    int at = earliest_of(f, extra, n, op);
    for (bool merged = true; merged && at >= 0;) {
        merged = false;
        for (size_t i = 0; i < n + 1 && !merged; i++) {
            const MoeOp *o = i < n ? extra[i] : op;
            for (int k = 0; k < o->n_operands && !merged; k++) {
                int j = f->item_of[o->operands[k]->id];
                merged = j >= 0 && j < at && moe_fuse_merge(f, j, at);
            }
        }
        at = earliest_of(f, extra, n, op);
    }
    return at;
}

static bool shares_large_input(const Item *it, const MoeOp *op) {
    for (int k = 0; k < op->n_operands; k++) {
        const MoeValue *v = op->operands[k];
        if (v->type.kind != MOE_TYPE_TENSOR || moe_type_elements(&v->type) <= v->type.dims[0].size)
            continue;
        for (size_t i = 0; i < it->n; i++)
            for (int o = 0; o < it->ops[i]->n_operands; o++)
                if (it->ops[i]->operands[o] == v)
                    return true;
    }
    return false;
}

static void place_row_op(Fuse *f, MoeOp *op) {
    MoeOp **extra = NULL;
    size_t n = 0, cap = 0;
    moe_fuse_absorb(f, op, &extra, &n, &cap);
    int at = merge_producers(f, extra, n, op);
    if (at >= 0 && moe_fuse_try_join(f, at, extra, n, op))
        return;
    for (int i = (int)f->n_items - 1; i > at && i >= (int)f->n_items - SHARE_WINDOW; i--)
        if (f->items[i]->kind == ITEM_ROWS && shares_large_input(f->items[i], op) &&
            moe_fuse_try_join(f, i, extra, n, op))
            return;
    if (n) {
        MoeOp **all = MOE_NEW_N(f->a, MoeOp *, n + 1);
        memcpy(all, extra, n * sizeof *all);
        all[n] = op;
        if (op->opcode == MOE_OP_COL_SUM || !moe_fuse_accepts(f, all, n + 1)) {
            for (size_t i = 0; i < n; i++) { /* on their own, then */
                for (int k = 0; k < extra[i]->n_results; k++)
                    f->waiting[extra[i]->results[k]->id] = true;
                if (!moe_fuse_is_scalar_op(extra[i]))
                    moe_fuse_force(f, extra[i]->results[0]);
            }
            moe_fuse_force_operands(f, op);
            n = 0;
        }
    }
    Item *it =
        moe_fuse_new_item(f, op->opcode == MOE_OP_COL_SUM ? ITEM_OTHER : ITEM_ROWS, f->phase);
    it->space = moe_fuse_space(op);
    for (size_t i = 0; i < n; i++)
        moe_fuse_add(f, it, extra[i]);
    moe_fuse_add(f, it, op);
}

static bool reaches(const Fuse *f, const MoeValue *from, const MoeValue *to, int depth) {
    if (from == to)
        return true;
    if (depth == 0 || from->id >= f->g->n_values)
        return false;
    for (int i = 0; i < f->n_users[from->id]; i++) {
        const MoeOp *u = f->users[from->id][i];
        if (kind_of(u) == MOE_KIND_EW && u->phase == f->phase &&
            moe_type_same_shape(&u->results[0]->type, &from->type) &&
            reaches(f, u->results[0], to, depth - 1))
            return true;
    }
    return false;
}

/* Whether an elementwise op reads (what becomes of) both. */
static bool meet(const Fuse *f, const MoeValue *x, const MoeValue *y, int depth) {
    for (int i = 0; depth > 0 && i < f->n_users[x->id]; i++) {
        const MoeOp *u = f->users[x->id][i];
        if (kind_of(u) != MOE_KIND_EW || u->phase != f->phase ||
            !moe_type_same_shape(&u->results[0]->type, &x->type))
            continue;
        if (reaches(f, y, u->results[0], MEET_DEPTH) || meet(f, u->results[0], y, depth - 1))
            return true;
    }
    return false;
}

/* What depends on nothing but declarations and may be placed at any time: a weight's bf16 copy, or its gathering from the ranks, or the
 * filling of its slots of copies. */
static bool is_movable(const Fuse *f, const MoeOp *op) {
    if (op->phase != f->phase ||
        (op->opcode != MOE_OP_CONVERT && op->opcode != MOE_OP_ALL_GATHER && op->opcode != MOE_OP_COPY_EXPERTS))
        return false;
    const MoeOp *d = op->operands[0]->def;
    if (kind_of(d) == MOE_KIND_DECL)
        return true;
    if (d->opcode == MOE_OP_COPY_EXPERTS)
        return f->placed[f->index_of[d->results[0]->id]] || is_movable(f, d);
    return op->opcode == MOE_OP_ALL_GATHER && is_movable(f, d);
}

static void place_movable(Fuse *f, MoeOp *op) {
    size_t at = (size_t)f->index_of[op->results[0]->id];
    if (kind_of(op) == MOE_KIND_DECL || f->placed[at])
        return;
    f->placed[at] = true;
    place_movable(f, op->operands[0]->def);
    if (moe_op_is_comm(op))
        moe_fuse_place_collective(f, op);
    else
        place_row_op(f, op);
}

/* Whether op can be placed right now, with its operands that may be placed at any time before it. */
static bool hoist_operands(Fuse *f, const MoeOp *op, int first, bool really) {
    for (int i = first; i < op->n_operands; i++) {
        MoeOp *d = op->operands[i]->def;
        int at = f->index_of[op->operands[i]->id];
        if (kind_of(d) == MOE_KIND_DECL || f->placed[at])
            continue;
        if (!is_movable(f, d))
            return false;
        if (really)
            place_movable(f, d);
    }
    return true;
}

/* The matmul that shares op's rows and meets it in an elementwise tail: gate and up. NULL if there is none. */
static MoeOp *find_pair(Fuse *f, const MoeOp *op) {
    const MoeValue *a = op->operands[0];
    if (op->opcode != MOE_OP_MATMUL || !f->t->fuse.matmul_epilogue)
        return NULL;
    for (int i = 0; i < f->n_users[a->id]; i++) {
        MoeOp *o = f->users[a->id][i];
        if (o == op || o->opcode != MOE_OP_MATMUL || o->phase != f->phase || o->operands[0] != a ||
            f->placed[f->index_of[o->results[0]->id]] ||
            !moe_type_equal(&o->results[0]->type, &op->results[0]->type) ||
            moe_attr_i(o, "tb") != moe_attr_i(op, "tb") ||
            moe_attr_i(o, "grouped") != moe_attr_i(op, "grouped") ||
            !hoist_operands(f, o, 1, false))
            continue;
        if (meet(f, op->results[0], o->results[0], MEET_DEPTH))
            return o;
    }
    return NULL;
}

/* matmul, weight_grad and root_grad: with copies of the dispatches they read, and the matmul's pair. */
static void place_contraction(Fuse *f, MoeOp *op) {
    MoeOp *pair = find_pair(f, op);
    if (pair)
        hoist_operands(f, pair, 1, true);
    MoeOp *group[4];
    size_t n = 0;
    for (int i = op->n_operands - 1; i >= 0; i--) { /* weight_grad: x first, then dy */
        MoeValue *v = op->operands[i];
        if (!f->waiting[v->id])
            continue;
        if (v->def->opcode == MOE_OP_DISPATCH && f->t->fuse.gather_matmul) {
            moe_fuse_force_operands(f, v->def);
            MoeOp *c = moe_fuse_copy(f, v->def);
            op->operands[i] = c->results[0];
            group[n] = c;
            group[n + 1] = op;
            if (moe_fuse_accepts(f, group, n + 2)) {
                n++;
                continue;
            }
            op->operands[i] = v;
        }
        moe_fuse_force(f, v);
    }
    group[n++] = op;
    Item *it = moe_fuse_new_item(f, op->opcode == MOE_OP_MATMUL ? ITEM_GEMM : ITEM_OTHER, f->phase);
    if (pair) {
        MoeValue *a = pair->operands[0];
        pair->operands[0] = op->operands[0];
        group[n] = pair;
        if (moe_fuse_accepts(f, group, n + 1)) {
            f->placed[f->index_of[pair->results[0]->id]] = true;
            n++;
        } else {
            pair->operands[0] = a;
        }
    }
    for (size_t i = 0; i < n; i++)
        moe_fuse_add(f, it, group[i]);
}

static void wait_for_reader(Fuse *f, const MoeOp *op) {
    f->waiting[op->results[0]->id] = true;
}

static bool has_user(const Fuse *f, const MoeValue *v, bool (*is)(const MoeOp *)) {
    for (int i = 0; i < f->n_users[v->id]; i++)
        if (is(f->users[v->id][i]))
            return true;
    return false;
}

static void place(Fuse *f, MoeOp *op) {
    MoeKind k = kind_of(op);
    if (moe_fuse_is_scalar_op(op)) {
        wait_for_reader(f, op);
    } else if (op->opcode == MOE_OP_DISPATCH && f->t->fuse.gather_matmul &&
               has_user(f, op->results[0], is_contraction)) {
        wait_for_reader(f, op);
    } else if (op->opcode == MOE_OP_BROADCAST && f->t->fuse.row &&
               has_user(f, op->results[0], is_row_op)) {
        wait_for_reader(f, op);
    } else if (is_row_op(op)) {
        place_row_op(f, op);
    } else if (is_contraction(op)) {
        place_contraction(f, op);
    } else {
        moe_fuse_force_operands(f, op);
        Item *it = moe_fuse_new_item(f, k == MOE_KIND_SYNC ? ITEM_LOOSE : ITEM_OTHER, f->phase);
        moe_fuse_add(f, it, op);
    }
}

/* At the end of a phase: what waits and is read by an output, an assign or a later phase. A broadcast or a dispatch can
 * still wait for a later phase, where it is nearer to its reader. */
static void end_phase(Fuse *f) {
    MoeOp **scalars = NULL;
    size_t n = 0, cap = 0;
    for (size_t i = 0; i < f->n_ops; i++) {
        MoeOp *op = f->ops[i];
        if (op->n_results != 1 || op->phase != f->phase || !f->waiting[op->results[0]->id])
            continue;
        const MoeValue *v = op->results[0];
        for (int k = 0; k < f->n_users[v->id]; k++) {
            const MoeOp *u = f->users[v->id][k];
            if (moe_fuse_is_scalar_op(op) && (u->phase != f->phase || kind_of(u) == MOE_KIND_DECL))
                moe_fuse_collect_scalars(f, v, &scalars, &n, &cap);
        }
    }
    moe_fuse_place_scalars(f, scalars, n);
    for (size_t i = 0; i < f->n_ops; i++)
        if (f->ops[i]->phase == f->phase && kind_of(f->ops[i]) == MOE_KIND_DECL)
            moe_fuse_force_operands(f, f->ops[i]);
}

static int number_items(Fuse *f, MoePhase phase, int next) {
    for (size_t i = 0; i < f->n_items; i++) {
        Item *it = f->items[i];
        if (it->phase != phase)
            continue;
        for (size_t k = 0; k < it->n; k++) {
            it->ops[k]->group = it->kind == ITEM_LOOSE ? -1 : next;
            it->ops[k]->phase = phase;
            moe_graph_append(f->g, it->ops[k]);
        }
        next += it->kind != ITEM_LOOSE;
    }
    return next;
}

/* Declarations first in their phase, outputs and assigns last. */
static void rebuild(Fuse *f) {
    size_t dropped;
    moe_graph_take_ops(f->g, &dropped); /* copies, appended where they were made */
    int next = 0;
    for (MoePhase ph = 0; ph < MOE_N_PHASES; ph++) {
        for (int tail = 0; tail < 2; tail++) {
            if (tail)
                next = number_items(f, ph, next);
            for (size_t i = 0; i < f->n_ops; i++) {
                MoeOp *op = f->ops[i];
                if (op->phase != ph || kind_of(op) != MOE_KIND_DECL ||
                    (op->n_operands > 0) != (tail == 1))
                    continue;
                op->group = -1;
                moe_graph_append(f->g, op);
            }
        }
    }
    moe_graph_dce(f->g);
    int group = -1, last = -1; /* without gaps, as some groups are gone */
    for (size_t i = 0; i < f->g->n_ops; i++) {
        MoeOp *op = f->g->ops[i];
        if (op->group < 0)
            continue;
        if (op->group != last) {
            last = op->group;
            group++;
        }
        op->group = group;
    }
    moe_graph_renumber(f->g);
}

static void fuse_graph(MoeGraph *g, const MoeTarget *t, MoeArena *a) {
    Fuse f = {.g = g, .t = t, .a = a};
    if (t->fuse.gather_matmul)
        moe_fuse_sink_dispatches(g);
    moe_fuse_sink_exchanges(g);
    moe_graph_renumber(g);
    size_t n_operands = 0;
    f.ops = moe_graph_take_ops(g, &f.n_ops);
    moe_fuse_hoist_weights(&f);
    moe_fuse_order_comm(&f);
    for (size_t i = 0; i < f.n_ops; i++)
        n_operands += (size_t)f.ops[i]->n_operands;
    f.cap_values = g->n_values + (int)n_operands + (int)f.n_ops * COPIES_PER_ITEM;
    f.item_of = MOE_NEW_N(a, int, f.cap_values);
    f.index_of = MOE_NEW_N(a, int, f.cap_values);
    f.waiting = MOE_NEW_N(a, bool, f.cap_values);
    f.placed = MOE_NEW_N(a, bool, f.n_ops);
    for (int i = 0; i < f.cap_values; i++)
        f.item_of[i] = -1;
    for (size_t i = 0; i < f.n_ops; i++)
        for (int k = 0; k < f.ops[i]->n_results; k++)
            f.index_of[f.ops[i]->results[k]->id] = (int)i;
    moe_fuse_find_users(&f);
    size_t next = 0;
    for (MoePhase ph = 0; ph < MOE_N_PHASES; ph++) {
        f.phase = g->phase = ph;
        for (; next < f.n_ops && f.ops[next]->phase == ph; next++) {
            if (kind_of(f.ops[next]) == MOE_KIND_DECL || f.placed[next])
                continue;
            f.placed[next] = true;
            if (moe_op_is_comm(f.ops[next]))
                moe_fuse_place_comm(&f, next);
            else
                place(&f, f.ops[next]);
        }
        end_phase(&f);
    }
    MOE_ASSERT(next == f.n_ops, "fuse: @%s: phases are out of order", g->name);
    moe_fuse_rematerialise(&f);
    rebuild(&f);
}

MoeStatus moe_pass_fuse(MoePassContext *cx) {
    if (!cx->target)
        return moe_error(MOE_E_INTERNAL, "the fuse pass needs a target");
    for (size_t i = 0; i < cx->module->n_graphs; i++) {
        MoeArena *scratch = moe_arena_create();
        fuse_graph(cx->module->graphs[i], cx->target, scratch);
        moe_arena_destroy(scratch);
    }
    return NULL;
}
