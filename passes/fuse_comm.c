/* Where fuse puts what passes between ranks (docs/RANKS.md). COMM ops have no kernel: a group of them is one exchange.
 *
 *   %1 = reduce_scatter %dq         %1 = reduce_scatter %dq   #7
 *   %2 = weight_grad ...       ->   (the weight gradient stands before them)
 *   %3 = reduce_scatter %2          %3 = reduce_scatter %2    #7
 *
 * An exchange costs its latency once, however many ops it has, so ops of one class that need not wait for each other come
 * together where that makes no value live much longer:
 * - the gathers of a layer's parameters stand where the first of them is needed, its reductions of gradients where the last of
 *   them can begin, while the exchange stays small (BUCKET_BYTES; larger ones are bound by bandwidth, not by latency);
 * - small sums over all ranks (losses, counts) that no large op of their phase reads go to the end of the phase;
 * - the reduce phase, whose values are all small, runs in rounds: what can be computed, then one exchange, and again.
 * On one rank there are no such ops, and nothing is moved. */
#include "passes/fuse.h"

#include <string.h>
#include "passes/group.h"

#define BUCKET_BYTES ((int64_t)16 << 20)
#define SMALL_BYTES  ((int64_t)64 << 10)
#define ROWS_WINDOW  4 /* groups looked back for an exchange of rows */

static bool is_decl(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_DECL;
}

static bool is_collective(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_COMM;
}

/* Calls of fn for all that op needs: operands, and the tables that types name. false from fn ends it; the last answer. */
static bool each_need(const MoeOp *op, bool (*fn)(void *cx, const MoeValue *v), void *cx) {
    for (int i = 0; i < op->n_operands + op->n_results; i++) {
        bool in = i < op->n_operands;
        const MoeValue *v = in ? op->operands[i] : op->results[i - op->n_operands];
        const MoeValue *seg = v->type.kind == MOE_TYPE_TENSOR ? v->type.dims[0].seg : NULL;
        if ((in && !fn(cx, v)) || (seg && seg->def != op && !fn(cx, seg)))
            return false;
    }
    return true;
}

typedef struct {
    const bool *set; /* by value id */
} InSet;

static bool is_outside(void *cx, const MoeValue *v) {
    return !((const InSet *)cx)->set[v->id];
}

/* Whether op needs any value of the set. */
static bool needs_any(const MoeOp *op, const bool *set) {
    InSet in = {set};
    return !each_need(op, is_outside, &in);
}

static void set_results(bool *set, const MoeOp *op, bool to) {
    for (int i = 0; i < op->n_results; i++)
        set[op->results[i]->id] = to;
}

/* ---- rounds ---- */

/* ops[0..n): all that can be computed, then all collectives that can run, and so on. `pending`: by value id, all false. */
static void in_rounds(MoeOp **ops, size_t n, bool *pending, MoeArena *a) {
    MoeOp **out = MOE_NEW_N(a, MoeOp *, n), **left = MOE_NEW_N(a, MoeOp *, n);
    size_t n_out = 0;
    memcpy(left, ops, n * sizeof *ops);
    for (bool comm = false; n; comm = !comm) {
        size_t kept = 0;
        for (size_t i = 0; i < n; i++) { /* in order: one look at each is enough */
            MoeOp *op = left[i];
            bool now = moe_op_is_comm(op) == comm && !needs_any(op, pending);
            set_results(pending, op,
                        !now || comm); /* collectives of one round do not read each other */
            if (now)
                out[n_out++] = op;
            else
                left[kept++] = op;
        }
        for (size_t i = 0; comm && i < n_out; i++)
            set_results(pending, out[i], false);
        n = kept;
    }
    memcpy(ops, out, n_out * sizeof *ops);
}

/* ---- small sums go to the end of their phase ---- */

static bool is_large(const MoeOp *op) {
    int64_t most = 0;
    for (int i = 0; i < op->n_operands + op->n_results; i++) {
        const MoeValue *v = i < op->n_operands ? op->operands[i] : op->results[i - op->n_operands];
        int64_t n = moe_type_bytes(&v->type);
        most = n > most ? n : most;
    }
    return most > SMALL_BYTES;
}

static bool add_to_set(void *cx, const MoeValue *v) {
    ((bool *)cx)[v->id] = true;
    return true;
}

static void sink_small_sums(Fuse *f, size_t first, size_t end) {
    MoeOp **ops = f->ops;
    bool *feeds_large = MOE_NEW_N(f->a, bool, f->g->n_values),
         *late = MOE_NEW_N(f->a, bool, f->g->n_values),
         *pending = MOE_NEW_N(f->a, bool, f->g->n_values);
    for (size_t i = end; i-- > first;) {
        bool large = !is_decl(ops[i]) && is_large(ops[i]);
        for (int k = 0; k < ops[i]->n_results; k++)
            large |= feeds_large[ops[i]->results[k]->id];
        if (large)
            each_need(ops[i], add_to_set, feeds_large);
        else if (ops[i]->opcode == MOE_OP_ALL_REDUCE)
            late[ops[i]->results[0]->id] = true;
    }
    MoeOp **sunk = MOE_NEW_N(f->a, MoeOp *, end - first);
    size_t n = 0, kept = first;
    for (size_t i = first; i < end; i++) {
        MoeOp *op = ops[i];
        bool sink =
            !is_decl(op) && (needs_any(op, late) || (op->n_results && late[op->results[0]->id]));
        if (sink) {
            set_results(late, op, true);
            sunk[n++] = op;
        } else {
            ops[kept++] = op;
        }
    }
    in_rounds(sunk, n, pending, f->a);
    memcpy(ops + kept, sunk, n * sizeof *sunk);
}

/* ---- buckets ---- */

static int64_t layer_of(const MoeOp *op) {
    return moe_attr_i_or(op, "layer", -1);
}

static int64_t bytes_moved(const MoeOp *op) {
    int64_t in = moe_type_bytes(&op->operands[0]->type),
            out = moe_type_bytes(&op->results[0]->type);
    return in > out ? in : out;
}

static size_t place_of(MoeOp *const *ops, size_t from, size_t end, const MoeOp *op) {
    while (from < end && ops[from] != op)
        from++;
    return from;
}

/* Moves ops[at] up to place `to`. */
static void move_up(MoeOp **ops, size_t at, size_t to) {
    MoeOp *op = ops[at];
    memmove(ops + to + 1, ops + to, (at - to) * sizeof *ops);
    ops[to] = op;
}

/* The slots of copies of a layer's experts are filled in one exchange: where the first of them is needed, as nothing else is. */
static void bucket_copies(Fuse *f, size_t first, size_t end) {
    size_t tail = end; /* behind the open bucket */
    for (size_t i = first; i < end; i++) {
        MoeOp *op = f->ops[i];
        if (op->opcode != MOE_OP_COPY_EXPERTS)
            continue;
        if (tail < end && layer_of(f->ops[tail - 1]) == layer_of(op))
            move_up(f->ops, i, tail++);
        else
            tail = i + 1;
    }
}

/* Gathers of what is there from the start: those of one layer next to the first, with the convert of a slice before them. */
static void bucket_gathers(Fuse *f, size_t first, size_t end) {
    int64_t layer = 0, bytes = 0;
    size_t head = end, tail = end; /* the open bucket: ops[head..tail) */
    for (size_t i = first; i < end; i++) {
        MoeOp *op = f->ops[i], *d = op->opcode == MOE_OP_ALL_GATHER ? op->operands[0]->def : NULL;
        if (!d)
            continue;
        size_t at = place_of(f->ops, head, i, d); /* what makes the slice; i: not behind the head */
        bool movable = d->opcode == MOE_OP_CONVERT && is_decl(d->operands[0]->def);
        int64_t n = bytes_moved(op);
        if (head == end || (at < i && !movable) || layer_of(op) != layer ||
            bytes + n > BUCKET_BYTES) {
            head = i;
            tail = i + 1;
            bytes = n;
            layer = layer_of(op);
            continue;
        }
        move_up(f->ops, i, tail++);
        if (at < i) {
            move_up(f->ops, at + 1, head++);
            tail++;
        }
        bytes += n;
    }
}

static bool reads(const MoeOp *op, const MoeValue *v) {
    for (int i = 0; i < op->n_operands; i++)
        if (op->operands[i] == v)
            return true;
    return false;
}

/* Reductions: those of one layer down to the last, past nothing of another layer or that reads them. */
static void bucket_reductions(Fuse *f, size_t first, size_t end) {
    int64_t bytes = 0;
    size_t head = end; /* first of the open bucket */
    for (size_t i = end; i-- > first;) {
        MoeOp *op = f->ops[i];
        if (head < end && op->opcode != MOE_OP_REDUCE_SCATTER) {
            int64_t layer = layer_of(op);
            if (layer >= 0 && layer != layer_of(f->ops[head]))
                head = end;
            continue;
        }
        if (op->opcode != MOE_OP_REDUCE_SCATTER)
            continue;
        bool joins = head < end && layer_of(op) == layer_of(f->ops[head]) &&
                     bytes + bytes_moved(op) <= BUCKET_BYTES;
        for (size_t k = i + 1; joins && k < head; k++)
            joins = !reads(f->ops[k], op->results[0]);
        if (joins) { /* down to just before the bucket */
            memmove(f->ops + i, f->ops + i + 1, (head - 1 - i) * sizeof *f->ops);
            f->ops[--head] = op;
            bytes += bytes_moved(op);
        } else {
            head = i;
            bytes = bytes_moved(op);
        }
    }
}

void moe_fuse_order_comm(Fuse *f) {
    size_t first = 0;
    for (MoePhase ph = 0; ph < MOE_N_PHASES; ph++) {
        size_t end = first;
        bool any = false;
        for (; end < f->n_ops && f->ops[end]->phase == ph; end++)
            any |= is_collective(f->ops[end]);
        if (any && ph == MOE_PHASE_REDUCE) {
            in_rounds(f->ops + first, end - first, MOE_NEW_N(f->a, bool, f->g->n_values), f->a);
        } else if (any) {
            sink_small_sums(f, first, end);
            bucket_copies(f, first, end);
            bucket_gathers(f, first, end);
            bucket_reductions(f, first, end);
        }
        first = end;
    }
}

/* ---- placing ---- */

/* Ops of one class may share an exchange. */
static int class_of(const MoeOp *op) {
    if (op->opcode == MOE_OP_ALL_GATHER)
        return 0;
    if (op->opcode == MOE_OP_REDUCE_SCATTER || op->opcode == MOE_OP_ALL_REDUCE)
        return 1;
    if (op->opcode == MOE_OP_COPY_EXPERTS || op->opcode == MOE_OP_FOLD_COPIES)
        return op->opcode == MOE_OP_COPY_EXPERTS ? 4 : 5;
    return op->opcode == MOE_OP_A2A_DISPATCH || op->opcode == MOE_OP_A2A_COMBINE ? 2 : 3;
}

/* Whether a later `wait` ends it. */
static bool is_started(const Fuse *f, const MoeOp *op) {
    const MoeValue *v = op->results[0];
    for (int i = 0; i < f->n_users[v->id]; i++)
        if (f->users[v->id][i]->opcode == MOE_OP_WAIT)
            return true;
    return false;
}

static bool shares_exchange(const Fuse *f, const Item *it, const MoeOp *op) {
    if (it->kind != ITEM_COMM || it->phase != f->phase || class_of(it->ops[0]) != class_of(op) ||
        is_started(f, it->ops[0]) != is_started(f, op))
        return false;
    int64_t bytes = bytes_moved(op);
    for (size_t i = 0; i < it->n; i++)
        bytes += bytes_moved(it->ops[i]);
    return class_of(op) > 1 || bytes <= BUCKET_BYTES;
}

/* Joins the exchange at the end of the list, if it is one and op reads nothing of it. Rows may also go with other rows of their
 * layer that were sent just before (a gradient's, and those of the input that is sent again). */
void moe_fuse_place_collective(Fuse *f, MoeOp *op) {
    moe_fuse_force_operands(f, op);
    int last = (int)f->n_items - 1,
        first = op->opcode == MOE_OP_A2A_DISPATCH ? last - ROWS_WINDOW : last;
    for (int i = last; i >= 0 && i >= first && i > moe_fuse_earliest(f, op); i--) {
        Item *it = f->items[i];
        if (shares_exchange(f, it, op) && (i == last || (it->ops[0]->opcode == op->opcode &&
                                                         layer_of(it->ops[0]) == layer_of(op)))) {
            moe_fuse_add(f, it, op);
            return;
        }
    }
    moe_fuse_add(f, moe_fuse_new_item(f, ITEM_COMM, f->phase), op);
}

/* All waits for one exchange are one step. */
static void place_wait(Fuse *f, MoeOp *op) {
    int exchange = f->item_of[op->operands[0]->id];
    for (size_t i = f->n_items; i-- > 0 && (int)i > exchange;)
        if (f->items[i]->kind == ITEM_WAIT && f->items[i]->phase == f->phase &&
            f->item_of[f->items[i]->ops[0]->operands[0]->id] == exchange) {
            moe_fuse_add(f, f->items[i], op);
            return;
        }
    moe_fuse_add(f, moe_fuse_new_item(f, ITEM_WAIT, f->phase), op);
}

void moe_fuse_place_comm(Fuse *f, size_t first) {
    size_t n = 0;
    MoeOp **run = f->ops + first;
    while (first + n < f->n_ops && is_collective(run[n]) && run[n]->phase == f->phase &&
           (n == 0 || !f->placed[first + n]))
        n++;
    if (n == 0) {
        place_wait(f, run[0]);
        return;
    }
    for (size_t i = 0; i < n; i++) { /* what is made for them only now comes before all of them */
        bool inside = false;
        for (size_t k = 0; k < i; k++)
            inside = inside || reads(run[i], run[k]->results[0]);
        if (!inside)
            moe_fuse_force_operands(f, run[i]);
    }
    for (size_t i = 0; i < n; i++) {
        f->placed[first + i] = true;
        moe_fuse_place_collective(f, run[i]);
    }
}

/* ---- before all that ---- */

static bool only_converted(const MoeGraph *g, const MoeValue *v, MoeDtype *to) {
    bool any = false;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *u = g->ops[i];
        if (!reads(u, v))
            continue;
        if (u->opcode != MOE_OP_CONVERT || (any && u->results[0]->type.dtype != *to))
            return false;
        *to = u->results[0]->type.dtype;
        any = true;
    }
    return any;
}

/* convert(a2a_dispatch(x)) becomes a2a_dispatch(convert(x)): the same bits, half the bytes. */
void moe_fuse_sink_exchanges(MoeGraph *g) {
    bool any = false;
    for (size_t i = 0; i < g->n_ops; i++)
        any |= g->ops[i]->opcode == MOE_OP_A2A_DISPATCH;
    if (!any)
        return;
    moe_graph_renumber(g);
    int n_values = g->n_values;
    bool *sink = MOE_NEW_N(g->arena, bool, n_values);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        MoeDtype to = op->n_results ? op->results[0]->type.dtype : MOE_I32;
        if (op->opcode == MOE_OP_A2A_DISPATCH && only_converted(g, op->results[0], &to))
            sink[op->results[0]->id] =
                moe_dtype_bytes(to) < moe_dtype_bytes(op->results[0]->type.dtype);
    }
    size_t n;
    MoeOp **ops = moe_graph_take_ops(g, &n);
    MoeValue **second =
                 MOE_NEW_N(g->arena, MoeValue *, n_values), /* the exchange of converted rows */
        **instead = MOE_NEW_N(g->arena, MoeValue *, n_values + 2 * (int)n);
    g->layer = -1;
    for (size_t i = 0; i < n; i++) {
        MoeOp *op = ops[i];
        MoeValue *rows = op->opcode == MOE_OP_CONVERT ? op->operands[0] : NULL;
        if (!rows || rows->id >= n_values || !sink[rows->id]) {
            moe_graph_append(g, op);
            continue;
        }
        if (!second[rows->id]) {
            MoeOp *a2a = rows->def;
            g->phase = a2a->phase;
            MoeValue *operands[] = {NULL, a2a->operands[1], a2a->operands[2]};
            operands[0] = moe_op_clone(g, op, a2a->operands)->results[0];
            second[rows->id] = moe_op_clone(g, a2a, operands)->results[0];
        }
        instead[op->results[0]->id] = second[rows->id];
    }
    moe_graph_replace(g, instead);
    moe_graph_dce(g);
    moe_graph_sort_phases(g);
}
