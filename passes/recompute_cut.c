/* Which forward values to keep for the backward pass, and which to compute again: a minimum cut (as min-cut
 * rematerialisation in AOTAutograd; the flow by Dinic's algorithm).
 *
 * Each forward value is two nodes. Cutting in -> out keeps the value: its bytes. Cutting source -> in computes it again: a
 * little, in the same unit, so that a tie keeps; infinite where the op must not run twice. What backward ops read must be
 * on the sink's side, and so must the operands of whatever is computed again. Values that live that long anyway
 * (program outputs, what reduce and update read) cost nothing to keep. */
#include "passes/recompute.h"

#include <string.h>
#include "base/assert.h"

#define INFINITE    INT64_MAX
#define AGAIN_SHIFT 4 /* computing an element again costs a 16th of keeping it, */
#define SENT_SHIFT  2 /* sending it again a quarter */
#define WIDE_ROWS   32

typedef struct {
    int to, next; /* next edge of the same node; edges e and e ^ 1 are a pair */
    int64_t room;
} Edge;

typedef struct {
    MoeArena *a;
    Edge *edges;
    size_t n_edges, cap_edges;
    int *first, *level, *at, *queue, *path; /* by node */
    int n_nodes;
} Flow;

static void add_edge(Flow *f, int from, int to, int64_t room) {
    Edge there = {to, f->first[from], room};
    MOE_PUSH(f->a, f->edges, f->n_edges, f->cap_edges, there);
    f->first[from] = (int)f->n_edges - 1;
    Edge back = {from, f->first[to], 0};
    MOE_PUSH(f->a, f->edges, f->n_edges, f->cap_edges, back);
    f->first[to] = (int)f->n_edges - 1;
}

/* Distance from the source over edges with room; false when the sink is out of reach. */
static bool find_levels(Flow *f, int source, int sink) {
    for (int i = 0; i < f->n_nodes; i++)
        f->level[i] = -1;
    int head = 0, tail = 0;
    f->level[source] = 0;
    f->queue[tail++] = source;
    while (head < tail) {
        int n = f->queue[head++];
        for (int e = f->first[n]; e >= 0; e = f->edges[e].next)
            if (f->edges[e].room > 0 && f->level[f->edges[e].to] < 0) {
                f->level[f->edges[e].to] = f->level[n] + 1;
                f->queue[tail++] = f->edges[e].to;
            }
    }
    return f->level[sink] >= 0;
}

/* Fills shortest paths until none is left; `path` holds the edges from the source to where the search stands. */
static void fill_level(Flow *f, int source, int sink) {
    int depth = 0, n = source;
    for (;;) {
        if (n == sink) {
            int64_t least = INFINITE;
            for (int i = 0; i < depth; i++)
                if (f->edges[f->path[i]].room < least)
                    least = f->edges[f->path[i]].room;
            MOE_ASSERT(least < INFINITE,
                       "recompute: a backward op needs a value that can be neither kept nor made");
            int back_to = depth;
            for (int i = depth - 1; i >= 0; i--) {
                Edge *e = &f->edges[f->path[i]], *r = &f->edges[f->path[i] ^ 1];
                if (e->room != INFINITE)
                    e->room -= least;
                if (r->room != INFINITE)
                    r->room += least;
                if (e->room == 0)
                    back_to = i;
            }
            depth = back_to;
            n = f->edges[f->path[depth] ^ 1].to;
            continue;
        }
        int e = f->at[n];
        while (e >= 0 && !(f->edges[e].room > 0 && f->level[f->edges[e].to] == f->level[n] + 1))
            e = f->edges[e].next;
        f->at[n] = e;
        if (e >= 0) {
            f->path[depth++] = e;
            n = f->edges[e].to;
            continue;
        }
        if (n == source)
            return;
        f->level[n] = -1; /* a dead end */
        n = f->edges[f->path[--depth] ^ 1].to;
    }
}

/* ---- the network ---- */

typedef struct {
    bool needed;   /* read by the backward phase */
    bool free_;    /* lives on anyway */
    bool crossing; /* leaves its layer */
} Fact;

static bool in_forward(const MoeValue *v) {
    return v->def->phase == MOE_PHASE_FORWARD && moe_op_info(v->def->opcode)->kind != MOE_KIND_DECL;
}

static void note_use(Fact *facts, const MoeOp *user, const MoeValue *v) {
    if (!v || !in_forward(v))
        return;
    Fact *x = &facts[v->id];
    if (user->opcode == MOE_OP_OUTPUT || user->phase > MOE_PHASE_BACKWARD)
        x->free_ = true;
    else if (user->phase == MOE_PHASE_BACKWARD)
        x->needed = true;
    if (moe_attr_i_or(user, "layer", -1) != moe_attr_i_or(v->def, "layer", -1) &&
        user->phase == MOE_PHASE_FORWARD)
        x->crossing = true;
}

static const MoeValue *seg_of(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR ? v->type.dims[0].seg : NULL;
}

static Fact *find_facts(const MoeGraph *g, MoeArena *a) {
    Fact *facts = MOE_NEW_N(a, Fact, g->n_values);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_operands; k++) {
            note_use(facts, op, op->operands[k]);
            note_use(facts, op, seg_of(op->operands[k]));
        }
        for (int k = 0; k < op->n_results; k++)
            note_use(facts, op, seg_of(op->results[k]));
        if (op->opcode == MOE_OP_COPY_EXPERTS && in_forward(op->results[0]))
            facts[op->results[0]->id].free_ = true; /* in the parameter's memory */
    }
    return facts;
}

/* The parameter that v is, rounded or not, with slots of copies filled or not; NULL: something else. */
static const MoeOp *param_of(const MoeValue *v) {
    const MoeOp *d = v->def;
    if (d->opcode == MOE_OP_CONVERT)
        d = d->operands[0]->def;
    if (d->opcode == MOE_OP_COPY_EXPERTS)
        d = d->operands[0]->def;
    return d->opcode == MOE_OP_PARAM ? d : NULL;
}

bool moe_recompute_is_param(const MoeOp *gather) {
    if (gather->opcode != MOE_OP_ALL_GATHER)
        return false;
    return param_of(gather->operands[0]) != NULL;
}

MoeOp *moe_recompute_twin(MoeOp *const *ops, size_t n, const MoeOp *gather) {
    for (size_t i = 0; i < n; i++)
        if (ops[i]->phase == MOE_PHASE_BACKWARD && moe_recompute_is_param(ops[i]) &&
            param_of(ops[i]->operands[0]) == param_of(gather->operands[0]) &&
            moe_type_equal(&ops[i]->results[0]->type, &gather->results[0]->type))
            return ops[i];
    return NULL;
}

/* Whether the op may run twice: cheap ops anywhere; in the chosen layers all but routing, selection and what reduces
 * over rows or ranks. A parameter is gathered again rather than kept whole. */
static bool may_repeat(const MoeOp *op, int64_t n_layers) {
    MoeKind k = moe_op_info(op->opcode)->kind;
    if (op->opcode == MOE_OP_TOPK)
        return false;
    if (moe_recompute_is_param(op))
        return true;
    if (k == MOE_KIND_EW || k == MOE_KIND_ROW || op->opcode == MOE_OP_DISPATCH ||
        op->opcode == MOE_OP_DISPATCH_WEIGHT)
        return true;
    int64_t layer = moe_attr_i_or(op, "layer", -1);
    bool rows = k == MOE_KIND_COMM && seg_of(op->results[0]) &&
                op->opcode != MOE_OP_ALL_GATHER_ROWS; /* sent, brought home, added up over tp */
    return layer >= 0 && layer < n_layers &&
           (k == MOE_KIND_GEMM || k == MOE_KIND_ATTN || k == MOE_KIND_ROPE || k == MOE_KIND_MOVE ||
            rows);
}

/* What computing v again costs, in bytes kept. A kernel of its own for a column is no bargain, nor is an exchange for a few. */
static int64_t cost_again(const MoeValue *v) {
    int64_t bytes = moe_value_expected_bytes(v);
    if (moe_op_info(v->def->opcode)->kind == MOE_KIND_COMM)
        return moe_type_cols(&v->type) < WIDE_ROWS ? 2 * bytes : (bytes >> SENT_SHIFT) + 1;
    return v->def->opcode == MOE_OP_DISPATCH_WEIGHT ? 2 * bytes : (bytes >> AGAIN_SHIFT) + 1;
}

MoeRecomputeChoice moe_recompute_choose(const MoeGraph *g, int64_t n_layers, bool keep_weights,
                                        MoeArena *a) {
    int n = 2 * g->n_values + 2, source = n - 2, sink = n - 1;
    Flow f = {.a = a, .n_nodes = n};
    f.first = MOE_NEW_N(a, int, n);
    f.level = MOE_NEW_N(a, int, n);
    f.at = MOE_NEW_N(a, int, n);
    f.queue = MOE_NEW_N(a, int, n);
    f.path = MOE_NEW_N(a, int, n);
    for (int i = 0; i < n; i++)
        f.first[i] = -1;
    const Fact *facts = find_facts(g, a);
    MoeRecomputeChoice c = {.again = MOE_NEW_N(a, bool, g->n_values)};
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int r = 0; r < op->n_results; r++) {
            const MoeValue *v = op->results[r];
            if (!in_forward(v))
                continue;
            const Fact *x = &facts[v->id];
            int64_t bytes = moe_value_expected_bytes(v);
            int64_t layer = moe_attr_i_or(op, "layer", -1);
            bool stays = x->crossing && layer >= 0 && layer < n_layers;
            bool weight = op->opcode == MOE_OP_CONVERT && param_of(v);
            bool repeat = !x->free_ && !stays && !(weight && keep_weights) &&
                          may_repeat(op, n_layers);
            bool twin = repeat && moe_recompute_is_param(op) &&
                        moe_recompute_twin(g->ops, g->n_ops, op); /* comes again anyway */
            add_edge(&f, 2 * v->id, 2 * v->id + 1, x->free_ ? 0 : bytes);
            add_edge(&f, source, 2 * v->id, twin ? 1 : repeat ? cost_again(v) : INFINITE);
            if (x->needed) {
                add_edge(&f, 2 * v->id + 1, sink, INFINITE);
                c.kept_before += x->free_ ? 0 : bytes;
            }
            for (int k = 0; repeat && !twin && k < op->n_operands; k++)
                if (in_forward(op->operands[k]))
                    add_edge(&f, 2 * op->operands[k]->id + 1, 2 * v->id, INFINITE);
            if (repeat && seg_of(v) && in_forward(seg_of(v)))
                add_edge(&f, 2 * seg_of(v)->id + 1, 2 * v->id, INFINITE);
        }
    }
    while (find_levels(&f, source, sink)) {
        memcpy(f.at, f.first, (size_t)n * sizeof *f.at);
        fill_level(&f, source, sink);
    }
    /* find_levels left the source's side with level >= 0 */
    for (size_t i = 0; i < g->n_ops; i++)
        for (int r = 0; r < g->ops[i]->n_results; r++) {
            const MoeValue *v = g->ops[i]->results[r];
            if (!in_forward(v))
                continue;
            bool in_kept = f.level[2 * v->id] >= 0, out_there = f.level[2 * v->id + 1] < 0;
            c.again[v->id] = !in_kept;
            if (in_kept && out_there && !facts[v->id].free_)
                c.kept_after += moe_value_expected_bytes(v);
        }
    return c;
}
