/* Editing graphs in place: the op list, replacement of values, dead code, numbering, lookups by
 * name. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "ir/graph.h"

MoeOp **moe_graph_take_ops(MoeGraph *g, size_t *n) {
    MoeOp **ops = g->ops;
    *n = g->n_ops;
    g->ops = NULL;
    g->n_ops = g->cap_ops = 0;
    return ops;
}

void moe_graph_append(MoeGraph *g, MoeOp *op) {
    MOE_PUSH(g->arena, g->ops, g->n_ops, g->cap_ops, op);
}

/* The end of the chain that starts at v. A map that runs in a circle is our bug. */
static MoeValue *mapped(const MoeGraph *g, MoeValue *const *map, MoeValue *v) {
    for (int steps = 0; v->id < g->n_values && map[v->id] && map[v->id] != v; steps++) {
        MOE_ASSERT(steps <= g->n_values, "moe_graph_replace: the map runs in a circle at value %d",
                   v->id);
        v = map[v->id];
    }
    return v;
}

void moe_graph_replace(MoeGraph *g, MoeValue *const *map) {
    for (size_t i = 0; i < g->n_ops; i++) {
        MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_operands; k++)
            op->operands[k] = mapped(g, map, op->operands[k]);
        for (int r = 0; r < op->n_results; r++) {
            MoeType *t = &op->results[r]->type;
            for (int d = 0; t->kind == MOE_TYPE_TENSOR && d < t->rank; d++) {
                if (t->dims[d]
                        .seg) /* a seg is const in types, a value of this graph all the same */
                    t->dims[d].seg = mapped(g, map, (MoeValue *)t->dims[d].seg);
            }
        }
    }
}

void moe_graph_sort_phases(MoeGraph *g) {
    MoeOp **sorted = MOE_NEW_N(g->arena, MoeOp *, g->n_ops);
    size_t n = 0;
    for (int phase = 0; phase < MOE_N_PHASES; phase++) {
        for (size_t i = 0; i < g->n_ops; i++) {
            if ((int)g->ops[i]->phase == phase)
                sorted[n++] = g->ops[i];
        }
    }
    MOE_ASSERT(n == g->n_ops, "graph %s holds an op without a phase", g->name);
    g->ops = sorted;
    g->cap_ops = n;
}

static bool is_root(const MoeOp *op) {
    return op->opcode == MOE_OP_OUTPUT || op->opcode == MOE_OP_ASSIGN ||
           op->opcode == MOE_OP_INPUT || op->opcode == MOE_OP_PARAM || op->opcode == MOE_OP_STATE;
}

static void mark(bool *used, const MoeValue *v) {
    used[v->id] = true;
    if (v->type.kind == MOE_TYPE_TENSOR && v->type.rank > 0 && v->type.dims[0].seg)
        used[v->type.dims[0].seg->id] = true;
}

size_t moe_graph_dce(MoeGraph *g) {
    MoeArena *scratch = moe_arena_create();
    bool *used = MOE_NEW_N(scratch, bool, g->n_values + 1);
    bool *live = MOE_NEW_N(scratch, bool, g->n_ops);
    /* Uses come after definitions, so one sweep from the end finds all. */
    for (size_t i = g->n_ops; i-- > 0;) {
        const MoeOp *op = g->ops[i];
        live[i] = is_root(op);
        for (int r = 0; r < op->n_results; r++)
            live[i] |= used[op->results[r]->id];
        for (int r = 0; live[i] && r < op->n_results; r++)
            mark(used, op->results[r]);
        for (int k = 0; live[i] && k < op->n_operands; k++)
            mark(used, op->operands[k]);
    }
    size_t n = 0, n_before = g->n_ops;
    for (size_t i = 0; i < n_before; i++) {
        if (live[i])
            g->ops[n++] = g->ops[i];
    }
    g->n_ops = n;
    moe_arena_destroy(scratch);
    return n_before - n;
}

void moe_graph_renumber(MoeGraph *g) {
    int id = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        for (int r = 0; r < g->ops[i]->n_results; r++)
            g->ops[i]->results[r]->id = id++;
    }
    g->n_values = id;
}

int *moe_graph_count_uses(const MoeGraph *g, MoeArena *scratch) {
    int *uses = MOE_NEW_N(scratch, int, g->n_values + 1);
    for (size_t i = 0; i < g->n_ops; i++) {
        for (int k = 0; k < g->ops[i]->n_operands; k++)
            uses[g->ops[i]->operands[k]->id]++;
    }
    return uses;
}

MoeValue *moe_graph_find_input(const MoeGraph *g, const char *name) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if ((op->opcode == MOE_OP_INPUT || op->opcode == MOE_OP_PARAM) &&
            strcmp(moe_attr_s(op, "name"), name) == 0)
            return op->results[0];
    }
    return NULL;
}

MoeValue *moe_graph_find_output(const MoeGraph *g, const char *name) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->opcode == MOE_OP_OUTPUT && strcmp(moe_attr_s(op, "name"), name) == 0)
            return op->operands[0];
    }
    return NULL;
}
