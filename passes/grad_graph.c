/* Reverse-mode differentiation. In: a graph, its loss, the values to differentiate by. Out: their
 * gradients, appended. The rules are in grad_rules.c and grad_rules_model.c; see grad.h for what is
 * promised. */
#include <string.h>
#include "base/assert.h"
#include "passes/decompose.h"
#include "passes/grad.h"
#include "passes/grad_rules.h"
#include "passes/phases.h"

static const MoeGradFn rules[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = moe_grad_##grad,
#include "ir/ops.def"
#undef OP
};

enum { MOST_RESULTS = 3 };

static bool by_decomposition(const void *cx, MoeOpcode op) {
    (void)cx;
    return rules[op] == moe_grad_decompose;
}

static bool is_float(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR && moe_dtype_is_float(v->type.dtype);
}

/* Which values depend on wrt by floats. Not through row_max: it has no gradient by definition. */
static void find_active(MoeGrad *gr, MoeValue *const *wrt, size_t n_wrt) {
    for (size_t i = 0; i < n_wrt; i++)
        gr->active[wrt[i]->id] = true;
    for (size_t i = 0; i < gr->g->n_ops; i++) {
        const MoeOp *op = gr->g->ops[i];
        bool any = false;
        for (int k = 0; k < op->n_operands; k++)
            any |= gr->active[op->operands[k]->id];
        for (int r = 0; any && op->opcode != MOE_OP_ROW_MAX && r < op->n_results; r++)
            gr->active[op->results[r]->id] |= is_float(op->results[r]);
    }
}

/* Runs the rules from the last op to the first. */
static MoeStatus sweep(MoeGrad *gr, MoeOp *const *ops, size_t n_ops) {
    MoeGraph *g = gr->g;
    for (size_t i = n_ops; i-- > 0;) {
        MoeOp *op = ops[i];
        MoeValue *d[MOST_RESULTS] = {NULL};
        bool any = false;
        MOE_ASSERT(op->n_results <= MOST_RESULTS, "grad: %s has %d results",
                   moe_op_info(op->opcode)->name, op->n_results);
        for (int r = 0; r < op->n_results; r++) {
            d[r] = gr->cot[op->results[r]->id];
            any |= d[r] != NULL;
        }
        if (!any || op->n_operands == 0) /* not on the way, or a leaf */
            continue;
        g->layer = (int)moe_attr_i_or(op, "layer", -1);
        MOE_TRY(moe_status_prefix(rules[op->opcode](gr, op, d), "gradient of graph @%s", g->name));
    }
    return NULL;
}

/* Ops whose result another op defines now (linear_cross_entropy). */
static void drop_replaced(MoeGraph *g) {
    size_t n_ops;
    MoeOp **ops = moe_graph_take_ops(g, &n_ops);
    for (size_t i = 0; i < n_ops; i++)
        if (ops[i]->n_results == 0 || ops[i]->results[0]->def == ops[i])
            moe_graph_append(g, ops[i]);
}

/* Orders the ops again; what the sweep built must have stayed in phase backward. */
static MoeStatus reorder(MoeGraph *g, MoeOp *const *built, size_t n_built) {
    if (!moe_graph_schedule(g))
        return moe_error(
            MOE_E_INPUT,
            "gradient of graph @%s: the cotangent of a linear_cross_entropy depends on "
            "its own result; the loss must be a weighted sum of its rows",
            g->name);
    for (size_t i = 0; i < n_built; i++)
        if (built[i]->phase > MOE_PHASE_BACKWARD)
            return moe_error(MOE_E_INPUT,
                             "gradient of graph @%s: a cotangent (op %s) depends on the result of "
                             "an accumulate; the loss must be linear in accumulated values, with "
                             "coefficients from batch_sum results",
                             g->name, moe_op_info(built[i]->opcode)->name);
    return NULL;
}

MoeStatus moe_grad_graph(MoeGraph *g, MoeValue *loss, MoeValue *const *wrt, size_t n_wrt,
                         MoeValue **out_grads) {
    MOE_ASSERT(loss->type.kind == MOE_TYPE_TENSOR && loss->type.dtype == MOE_F32 &&
                   loss->type.rank == 1 && loss->type.dims[0].size == 1,
               "grad: the loss is f32[1]");
    moe_graph_decompose(g, by_decomposition, NULL);
    /* Which loss arithmetic waits for accumulated values is found anew: a cotangent may read the
     * rest of it. */
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->phase == MOE_PHASE_REDUCE)
            g->ops[i]->phase = MOE_PHASE_FORWARD;

    MoeArena *scratch = moe_arena_create();
    MoeGrad gr = {.g = g, .scratch = scratch, .n_ids = g->n_values};
    gr.cot = MOE_NEW_N(scratch, MoeValue *, g->n_values);
    gr.active = MOE_NEW_N(scratch, bool, g->n_values);
    find_active(&gr, wrt, n_wrt);
    size_t n_ops = g->n_ops;
    MoeOp **ops = moe_arena_copy(scratch, g->ops, n_ops * sizeof *ops);
    MoePhase phase = g->phase;
    int layer = g->layer;
    g->phase = MOE_PHASE_BACKWARD;
    g->layer = -1;
    if (gr.active[loss->id])
        gr.cot[loss->id] = moe_grad_const(&gr, 1.0);
    MoeStatus st = sweep(&gr, ops, n_ops);
    g->phase = phase;
    g->layer = layer;
    if (!st) {
        size_t n_built = g->n_ops - n_ops;
        MoeOp **built = moe_arena_copy(scratch, g->ops + n_ops, n_built * sizeof *built);
        drop_replaced(g);
        for (size_t i = 0; i < n_wrt; i++)
            out_grads[i] = gr.cot[wrt[i]->id];
        st = reorder(g, built, n_built);
    }
    moe_arena_destroy(scratch);
    return st;
}
