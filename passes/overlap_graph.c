/* Edits of the overlap pass: waits, the order of groups, chunks. In: a fused graph. Out: the same ops with the same results.
 *
 *   %w = all_gather %p   #4           %w = all_gather %p   #4
 *   %y = neg %x          #5           %y = neg %x          #5
 *   %z = matmul %y, %w   #6     ->    %u = wait %w         #6
 *                                     %z = matmul %y, %u   #7 */
#include <string.h>

#include "base/assert.h"
#include "passes/overlap.h"

static bool is_exchange(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_COMM;
}

static bool is_decl(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_DECL;
}

/* Outputs and assigns: at the end of their phase. */
static bool is_tail(const MoeOp *op) {
    return is_decl(op) && op->n_operands > 0;
}

/* Puts ops back one by one; groups are numbered anew, without gaps. */
typedef struct {
    MoeGraph *g;
    int next, last; /* the next number; the old one of the last op that had one */
} Writer;

static void put(Writer *w, MoeOp *op) {
    moe_graph_append(w->g, op);
    if (op->group < 0)
        return;
    if (op->group != w->last)
        w->next++;
    w->last = op->group;
    op->group = w->next - 1;
}

/* ---- waits ---- */

typedef struct {
    size_t first, n; /* its ops */
    size_t place;    /* its wait stands before this op; n_ops: at the end of `phase` */
    MoePhase phase;
} Exchange;

typedef struct {
    MoeOp **ops;
    size_t n_ops;
    Exchange *items;
    size_t n, cap;
    MoeArena *a;
} Exchanges;

static int stretch_of(MoePhase ph) {
    return ph <= MOE_PHASE_BACKWARD ? 0 : (int)ph;
}

static size_t start_of_group(const Exchanges *x, size_t i) {
    while (x->ops[i]->group >= 0 && i > 0 && x->ops[i - 1]->group == x->ops[i]->group)
        i--;
    return i;
}

static bool reads_of(const Exchanges *x, const Exchange *e, const MoeOp *op) {
    for (int k = 0; k < op->n_operands; k++)
        for (size_t i = 0; i < e->n; i++)
            if (op->operands[k] == x->ops[e->first + i]->results[0])
                return true;
    return false;
}

/* Before the first reader in its stretch; false if that is a wait. */
static bool find_place(const Exchanges *x, Exchange *e) {
    e->place = x->n_ops;
    e->phase = x->ops[e->first]->phase;
    for (size_t i = e->first + e->n; i < x->n_ops; i++) {
        const MoeOp *op = x->ops[i];
        if (stretch_of(op->phase) != stretch_of(e->phase))
            break;
        if (moe_op_has_step(op) && op->phase > e->phase)
            e->phase = op->phase;
        if (!reads_of(x, e, op))
            continue;
        e->place = start_of_group(x, i);
        e->phase = op->phase;
        return op->opcode != MOE_OP_WAIT;
    }
    return true;
}

static void find_exchanges(Exchanges *x) {
    for (size_t i = 0; i < x->n_ops;) {
        Exchange e = {.first = i, .n = 1};
        if (is_exchange(x->ops[i])) {
            MOE_ASSERT(x->ops[i]->group >= 0, "overlap: %s has no group",
                       moe_op_info(x->ops[i]->opcode)->name);
            while (i + e.n < x->n_ops && x->ops[i + e.n]->group == x->ops[i]->group)
                e.n++;
            if (find_place(x, &e))
                MOE_PUSH(x->a, x->items, x->n, x->cap, e);
        }
        i += e.n;
    }
}

/* The waits that stand before op `at`; n_ops: at the end of phase ph. */
static void put_waits(Writer *w, const Exchanges *x, size_t at, MoePhase ph, MoeValue **instead) {
    for (size_t i = 0; i < x->n; i++) {
        const Exchange *e = &x->items[i];
        if (e->place != at || (at == x->n_ops && e->phase != ph))
            continue;
        for (size_t k = 0; k < e->n; k++) {
            MoeOp *op = x->ops[e->first + k];
            w->g->phase = e->phase;
            w->g->layer = (int)moe_attr_i_or(op, "layer", -1);
            MoeOp *wait = moe_op_build(w->g, MOE_OP_WAIT, op->results, 1, MOE_END);
            wait->group = w->next;
            instead[op->results[0]->id] = wait->results[0];
        }
        w->next++;
        w->last = -1;
    }
}

void moe_overlap_add_waits(MoeGraph *g) {
    Exchanges x = {.a = moe_arena_create()};
    moe_graph_renumber(g);
    int n_values = g->n_values, layer = g->layer;
    MoePhase phase = g->phase;
    MoeValue **instead = MOE_NEW_N(x.a, MoeValue *, n_values);
    x.ops = moe_graph_take_ops(g, &x.n_ops);
    find_exchanges(&x);
    Writer w = {.g = g, .last = -1};
    for (size_t i = 0; i < x.n_ops; i++) {
        MoeOp *op = x.ops[i];
        bool ends = i + 1 == x.n_ops || x.ops[i + 1]->phase != op->phase;
        bool first_tail = is_tail(op) && (i == 0 || !is_tail(x.ops[i - 1]) ||
                                          x.ops[i - 1]->phase != op->phase);
        put_waits(&w, &x, i, op->phase, instead);
        if (first_tail)
            put_waits(&w, &x, x.n_ops, op->phase, instead);
        for (int k = 0; k < op->n_operands; k++)
            if (op->operands[k]->id < n_values && instead[op->operands[k]->id])
                op->operands[k] = instead[op->operands[k]->id];
        put(&w, op);
        if (ends && !is_tail(op))
            put_waits(&w, &x, x.n_ops, op->phase, instead);
    }
    g->phase = phase;
    g->layer = layer;
    moe_graph_renumber(g);
    moe_arena_destroy(x.a);
}

/* Whether the wait's group is the next one after its exchange, and nothing goes chunk by chunk. */
static bool is_idle(const MoeGroups *whole, const MoeOp *wait) {
    int exchange = whole->step_of[wait->operands[0]->id], at = whole->step_of[wait->results[0]->id];
    const MoeOp *plan;
    moe_group_chunk_role(&whole->groups[exchange], &plan);
    return at == exchange + 1 && (!plan || moe_attr_i(plan, "chunks") == 1);
}

void moe_overlap_drop_waits(MoeGraph *g, bool all) {
    MoeArena *a = moe_arena_create();
    MoeGroups whole = moe_groups_whole(g, a);
    MoeValue **instead = MOE_NEW_N(a, MoeValue *, g->n_values);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_WAIT && (all || is_idle(&whole, op)))
            instead[op->results[0]->id] = op->operands[0];
    }
    moe_graph_replace(g, instead);
    size_t n;
    MoeOp **ops = moe_graph_take_ops(g, &n);
    Writer w = {.g = g, .last = -1};
    for (size_t i = 0; i < n; i++)
        if (ops[i]->opcode != MOE_OP_WAIT || !instead[ops[i]->results[0]->id])
            put(&w, ops[i]);
    moe_graph_renumber(g);
    moe_arena_destroy(a);
}

/* ---- order ---- */

typedef struct {
    Writer w;
    MoeOp **ops;
    size_t n;
    bool *placed;  /* by index in ops */
    bool *defined; /* by value id */
} Reorder;

static void place(Reorder *r, size_t i) {
    put(&r->w, r->ops[i]);
    r->placed[i] = true;
    for (int k = 0; k < r->ops[i]->n_results; k++)
        r->defined[r->ops[i]->results[k]->id] = true;
}

static bool can_stand(const Reorder *r, const MoeOp *op) {
    for (int k = 0; k < op->n_operands; k++)
        if (!r->defined[op->operands[k]->id])
            return false;
    return true;
}

/* accumulate and batch_sum: as soon as what they pass on is there. */
static void place_loose(Reorder *r, MoePhase ph) {
    for (size_t i = 0; i < r->n; i++) {
        const MoeOp *op = r->ops[i];
        if (!r->placed[i] && op->phase == ph && op->group < 0 && !is_decl(op) && can_stand(r, op))
            place(r, i);
    }
}

static void place_decls(Reorder *r, MoePhase ph, bool tails) {
    for (size_t i = 0; i < r->n; i++)
        if (r->ops[i]->phase == ph && is_decl(r->ops[i]) && is_tail(r->ops[i]) == tails)
            place(r, i);
}

void moe_overlap_reorder(MoeGraph *g, const int *groups, size_t n) {
    MoeArena *a = moe_arena_create();
    Reorder r = {.w = {.g = g, .last = -1}};
    size_t *first = MOE_NEW_N(a, size_t, n), next = 0;
    bool loose[MOE_N_PHASES] = {false};
    r.defined = MOE_NEW_N(a, bool, g->n_values);
    r.ops = moe_graph_take_ops(g, &r.n);
    r.placed = MOE_NEW_N(a, bool, r.n);
    for (size_t i = r.n; i-- > 0;) {
        if (r.ops[i]->group >= 0)
            first[r.ops[i]->group] = i;
        else if (!is_decl(r.ops[i]))
            loose[r.ops[i]->phase] = true;
    }
    for (MoePhase ph = 0; ph < MOE_N_PHASES; ph++) {
        place_decls(&r, ph, false);
        for (;; next++) {
            if (loose[ph])
                place_loose(&r, ph);
            if (next == n || r.ops[first[groups[next]]]->phase != ph)
                break;
            int group = groups[next];
            for (size_t i = first[group]; i < r.n && !r.placed[i] && r.ops[i]->group == group; i++)
                place(&r, i);
        }
        place_decls(&r, ph, true);
    }
    MOE_ASSERT(g->n_ops == r.n, "overlap: @%s: %zu of %zu ops are placed", g->name, g->n_ops, r.n);
    moe_graph_renumber(g);
    moe_arena_destroy(a);
}

/* ---- chunks ---- */

static bool is_plan(const MoeOp *op) {
    return op->opcode == MOE_OP_SEND_PLAN || op->opcode == MOE_OP_EXPERT_PLAN;
}

bool moe_overlap_can_chunk(const MoeGraph *g, int chunks) {
    bool any = false;
    for (size_t i = 0; i < g->n_ops; i++) {
        if (!is_plan(g->ops[i]))
            continue;
        any = true;
        int64_t slots = moe_attr_i(g->ops[i], "slots"), each = (slots + chunks - 1) / chunks;
        bool copies = g->ops[i]->operands[0]->def->opcode == MOE_OP_COPY_PLAN;
        if (copies ? each * (chunks - 1) >= slots : slots % chunks != 0)
            return false;
    }
    return any || chunks == 1;
}

/* Only the tables of chunks change their type: send segs<ranks,chunks>, recv segs<chunks,V>. */
void moe_overlap_set_chunks(MoeGraph *g, int chunks) {
    for (size_t i = 0; i < g->n_ops; i++) {
        MoeOp *op = g->ops[i];
        if (!is_plan(op))
            continue;
        MoeType *t = &op->results[0]->type;
        moe_attr_set_i(g, op, "chunks", chunks);
        *(op->opcode == MOE_OP_SEND_PLAN ? &t->shards : &t->groups) = chunks;
    }
}
