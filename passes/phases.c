/* Phases from dependences, and an order that respects both. See phases.h. */
#include <string.h>
#include "passes/phases.h"

/* A min-heap of op indices: of the ops whose operands stand already, the first in the old order
 * comes next. */
typedef struct {
    size_t *items, n;
} Heap;

static void heap_push(Heap *h, size_t x) {
    size_t i = h->n++;
    while (i > 0 && h->items[(i - 1) / 2] > x) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = x;
}

static size_t heap_pop(Heap *h) {
    size_t top = h->items[0], x = h->items[--h->n], i = 0;
    for (size_t c; (c = 2 * i + 1) < h->n; i = c) {
        if (c + 1 < h->n && h->items[c + 1] < h->items[c])
            c++;
        if (h->items[c] >= x)
            break;
        h->items[i] = h->items[c];
    }
    h->items[i] = x;
    return top;
}

/* Calls fn for every value that must exist before op: its operands, and the segs that types name.
 */
static void each_dependence(const MoeOp *op, void (*fn)(void *cx, const MoeValue *v), void *cx) {
    for (int i = 0; i < op->n_operands; i++) {
        const MoeValue *v = op->operands[i];
        fn(cx, v);
        for (int d = 0; d < v->type.rank; d++)
            if (v->type.dims[d].seg)
                fn(cx, v->type.dims[d].seg);
    }
    for (int i = 0; i < op->n_results; i++)
        for (int d = 0; d < op->results[i]->type.rank; d++) {
            const MoeValue *seg = op->results[i]->type.dims[d].seg;
            if (seg && seg->def != op)
                fn(cx, seg);
        }
}

typedef struct {
    const size_t *index_of; /* by value id: the index of the op that defines it */
    MoePhase *phase;        /* by op index */
    size_t *n_missing;      /* by op index: dependences not placed yet */
    size_t *first_use;      /* by op index: head of a list in uses, 0 = none */
    struct {
        size_t op, next;
    } * uses;          /* from 1 */
    size_t n_uses, op; /* op: the one being looked at */
} Sched;

static void count_dependence(void *cx, const MoeValue *v) {
    (void)v;
    ((Sched *)cx)->n_uses++;
}

static void note_dependence(void *cx, const MoeValue *v) {
    Sched *s = cx;
    size_t def = s->index_of[v->id];
    s->n_uses++;
    s->uses[s->n_uses].op = s->op;
    s->uses[s->n_uses].next = s->first_use[def];
    s->first_use[def] = s->n_uses;
    s->n_missing[s->op]++;
}

bool moe_graph_schedule(MoeGraph *g) {
    MoeArena *scratch = moe_arena_create();
    size_t n = g->n_ops, n_placed = 0;
    size_t *index_of = MOE_NEW_N(scratch, size_t, g->n_values);
    MoeOp **order = MOE_NEW_N(scratch, MoeOp *, n);
    Sched s = {.index_of = index_of,
               .phase = MOE_NEW_N(scratch, MoePhase, n),
               .n_missing = MOE_NEW_N(scratch, size_t, n),
               .first_use = MOE_NEW_N(scratch, size_t, n)};
    for (size_t i = 0; i < n; i++) {
        s.phase[i] = g->ops[i]->phase;
        if (g->ops[i]->opcode == MOE_OP_ACCUMULATE && s.phase[i] < MOE_PHASE_REDUCE)
            s.phase[i] = MOE_PHASE_REDUCE;
        for (int r = 0; r < g->ops[i]->n_results; r++)
            index_of[g->ops[i]->results[r]->id] = i;
        each_dependence(g->ops[i], count_dependence, &s);
    }
    s.uses = moe_arena_alloc(scratch, (s.n_uses + 1) * sizeof *s.uses);
    s.n_uses = 0;
    for (s.op = 0; s.op < n; s.op++)
        each_dependence(g->ops[s.op], note_dependence, &s);

    Heap ready = {.items = MOE_NEW_N(scratch, size_t, n)};
    for (size_t i = 0; i < n; i++)
        if (!s.n_missing[i])
            heap_push(&ready, i);
    while (ready.n) {
        size_t i = heap_pop(&ready);
        order[n_placed++] = g->ops[i];
        for (size_t u = s.first_use[i]; u; u = s.uses[u].next) {
            size_t user = s.uses[u].op;
            if (s.phase[user] < s.phase[i])
                s.phase[user] = s.phase[i];
            if (!--s.n_missing[user])
                heap_push(&ready, user);
        }
    }
    bool acyclic = n_placed == n;
    if (acyclic) {
        for (size_t i = 0; i < n; i++)
            g->ops[i]->phase = s.phase[i];
        if (n)
            memcpy(g->ops, order, n * sizeof *order);
        moe_graph_sort_phases(g);
    }
    moe_arena_destroy(scratch);
    return acyclic;
}
