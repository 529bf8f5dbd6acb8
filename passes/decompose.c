/* Pass decompose: composites become primitives, except those that the target runs whole; with one
 * micro-batch, accumulate and batch_sum, identities then, disappear. In: any graph. Out: the same
 * results from ops that the target implements.
 *
 *   %h = rmsnorm %x, %w {eps = 1e-05}       %0 = mul %x, %x
 *                                           %1 = row_sum %0
 *                                           ...
 *                                           %h = mul %7, %w
 */
#include <string.h>
#include "base/assert.h"
#include "passes/decompose.h"
#include "passes/pass.h"

enum { MOST_RESULTS = 3 };

static const MoeDecomposeFn rules[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = moe_decompose_##decomp,
#include "ir/ops.def"
#undef OP
};

bool moe_op_is_composite(MoeOpcode op) {
    return rules[op] != moe_decompose_none;
}

/* Makes `old` the result that `made` is now: users of old need no change. */
static void take_over(MoeValue *old, MoeValue *made) {
    MOE_ASSERT(moe_type_equal(&old->type, &made->type),
               "decompose: the decomposition of %s has another type",
               moe_op_info(old->def->opcode)->name);
    made->def->results[made->result] = old;
    for (int i = 0; i < made->def->n_operands; i++)
        MOE_ASSERT(made->def->operands[i] != made, "decompose: a value reads itself");
    old->def = made->def;
    old->result = made->result;
}

/* A rule's result may be read by the rule's later ops (new_m of adamw): they must read the old
 * object too. */
static void redirect(MoeGraph *g, size_t from, const MoeValue *made, MoeValue *old) {
    for (size_t i = from; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_operands; k++)
            if (g->ops[i]->operands[k] == made)
                g->ops[i]->operands[k] = old;
}

size_t moe_graph_decompose(MoeGraph *g, bool (*wanted)(const void *cx, MoeOpcode op),
                           const void *cx) {
    size_t n_ops, n_done = 0;
    MoePhase phase = g->phase;
    int layer = g->layer;
    MoeOp **ops = moe_graph_take_ops(g, &n_ops);
    for (size_t i = 0; i < n_ops; i++) {
        MoeOp *op = ops[i];
        if (!moe_op_is_composite(op->opcode) || !wanted(cx, op->opcode)) {
            moe_graph_append(g, op);
            continue;
        }
        MoeValue *made[MOST_RESULTS];
        size_t from = g->n_ops;
        g->phase = op->phase;
        g->layer = (int)moe_attr_i_or(op, "layer", -1);
        rules[op->opcode](g, op, made);
        for (int r = 0; r < op->n_results; r++) {
            redirect(g, from, made[r], op->results[r]);
            take_over(op->results[r], made[r]);
        }
        n_done++;
    }
    g->phase = phase;
    g->layer = layer;
    return n_done;
}

/* Users of an identity read its operand. */
static void drop_identities(MoeGraph *g, MoeArena *scratch) {
    MoeValue **map = MOE_NEW_N(scratch, MoeValue *, g->n_values);
    size_t n_ops;
    MoeOp **ops = moe_graph_take_ops(g, &n_ops);
    for (size_t i = 0; i < n_ops; i++) {
        MoeOp *op = ops[i];
        for (int k = 0; k < op->n_operands; k++)
            if (map[op->operands[k]->id])
                op->operands[k] = map[op->operands[k]->id];
        if (op->opcode == MOE_OP_ACCUMULATE || op->opcode == MOE_OP_BATCH_SUM)
            map[op->results[0]->id] = op->operands[0];
        else
            moe_graph_append(g, op);
    }
}

/* What the target does not run whole; everything when there is no target. */
static bool not_whole(const void *cx, MoeOpcode op) {
    const MoeTarget *t = cx;
    return !t || !t->implements(t, op);
}

MoeStatus moe_pass_decompose(MoePassContext *cx) {
    for (size_t i = 0; i < cx->module->n_graphs; i++) {
        MoeGraph *g = cx->module->graphs[i];
        moe_graph_decompose(g, not_whole, cx->target);
        if (cx->options.micro_batches <= 1)
            drop_identities(g, cx->arena);
        moe_graph_renumber(g);
    }
    return NULL;
}
