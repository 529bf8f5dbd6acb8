/* Names of exchanges between ranks, for people: what the parameters that pass have in common, else the layer and what it is. */
#include <string.h>
#include "base/str.h"
#include "passes/group.h"
#include "passes/offload.h"
#include "passes/plan_json.h"

/* The parameter that x is, is a slice or copy of, or whose gradient (or block sums of it) x is; NULL: none. */
static const MoeOp *param_of(const MoeValue *x, const MoeOp *const *gradients) {
    while (!gradients[x->id] && x->def->n_operands &&
           (x->def->opcode == MOE_OP_CONVERT || x->def->opcode == MOE_OP_BLOCK_SQUARES ||
            x->def->opcode == MOE_OP_ALL_GATHER || x->def->opcode == MOE_OP_COPY_EXPERTS))
        x = x->def->operands[0];
    return gradients[x->id] ? gradients[x->id] : x->def->opcode == MOE_OP_PARAM ? x->def : NULL;
}

/* Cuts `common` to what it shares with name, at a dot. */
static void cut(char *common, const char *name) {
    size_t n = 0, dot = 0;
    while (common[n] && common[n] == name[n]) {
        if (common[n] == '.')
            dot = n;
        n++;
    }
    bool ends = (!common[n] || common[n] == '.') && (!name[n] || name[n] == '.');
    common[ends ? n : dot] = 0;
}

/* "layers.3": what the names of all parameters in the exchange begin with; "": nothing, or there are none. */
static char *common_name(const MoeGroup *g, const MoeOp *const *gradients, MoeArena *a) {
    char *common = NULL;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *p = param_of(g->ops[i]->operands[0], gradients);
        if (!p)
            continue;
        MoeStr s = {0};
        moe_plan_short_name(p, &s);
        if (common)
            cut(common, moe_str_c(&s));
        else
            common = moe_arena_strdup(a, moe_str_c(&s));
        moe_str_free(&s);
    }
    return common ? common : moe_arena_strdup(a, "");
}

/* Whether y, of the backward phase, is x computed again: the same op on the same operands, as far as one looks. */
static bool mirrors(const MoeValue *y, const MoeValue *x, int depth) {
    if (x == y || depth == 0)
        return true;
    if (y->def->opcode != x->def->opcode || y->result != x->result ||
        y->def->n_operands != x->def->n_operands || y->def->phase == MOE_PHASE_FORWARD)
        return false;
    for (int i = 0; i < x->def->n_operands; i++)
        if (!mirrors(moe_offload_origin(y->def->operands[i]), x->def->operands[i], depth - 1))
            return false;
    return true;
}

static bool is_again(const MoeGraph *g, const MoeOp *op) {
    int64_t layer = moe_attr_i_or(op, "layer", -1);
    for (size_t i = 0; i < g->n_ops && g->ops[i]->phase == MOE_PHASE_FORWARD; i++)
        if (g->ops[i]->opcode == op->opcode && moe_attr_i_or(g->ops[i], "layer", -1) == layer &&
            mirrors(op->results[0], g->ops[i]->results[0], 6))
            return true;
    return false;
}

/* What rows do on their way: "dispatch.send"; in the backward phase they are gradients, or go again. */
static void append_rows(const MoeGroup *g, const char *what, MoeStr *out) {
    moe_str_append(out, what);
    if (g->ops[0]->phase == MOE_PHASE_BACKWARD)
        moe_str_append(out, is_again(g->graph, g->ops[0]) ? ".again" : ".grad");
}

/* Block sums of gradients on their way to the norm. */
static bool is_norm(const MoeOp *op) {
    return op->phase == MOE_PHASE_REDUCE &&
           (op->opcode == MOE_OP_ALL_GATHER || op->opcode == MOE_OP_ALL_GATHER_ROWS);
}

const char *moe_plan_comm_name(const MoeGroup *g, const MoeOp *const *gradients, MoeArena *a) {
    const MoeOp *op = g->ops[0];
    MoeStr s = {0};
    if (op->opcode == MOE_OP_WAIT) {
        const MoeOp *c = op->operands[0]->def;
        size_t first = 0, n = 0;
        while (g->graph->ops[first]->group != c->group)
            first++;
        while (first + n < g->graph->n_ops && g->graph->ops[first + n]->group == c->group)
            n++;
        MoeGroup exchange = {.graph = g->graph, .ops = &g->graph->ops[first], .n_ops = n};
        return moe_arena_printf(a, "%s.wait", moe_plan_comm_name(&exchange, gradients, a));
    }
    if (is_norm(op))
        return "norm.gather";
    const char *common = common_name(g, gradients, a);
    int64_t layer = moe_plan_step_layer(g);
    if (moe_op_is_store(op))
        return moe_arena_printf(a, "layers.%lld.%s", (long long)layer,
                                moe_op_info(op->opcode)->name);
    if (*common)
        moe_str_printf(&s, "%s.", common);
    else if (layer >= 0)
        moe_str_printf(&s, "layers.%lld.", (long long)layer);
    if (op->opcode == MOE_OP_A2A_DISPATCH)
        append_rows(g, "dispatch.send", &s);
    else if (op->opcode == MOE_OP_A2A_COMBINE)
        append_rows(g, "combine.home", &s);
    else if (op->opcode == MOE_OP_ALL_REDUCE)
        moe_str_append(&s, "all_reduce");
    else if (op->opcode == MOE_OP_COPY_EXPERTS)
        moe_str_append(&s, "copy");
    else if (op->opcode == MOE_OP_FOLD_COPIES)
        moe_str_append(&s, "fold");
    else if (op->opcode == MOE_OP_ALL_GATHER_ROWS)
        moe_str_append(&s, "route.gather");
    else
        moe_str_append(&s, op->opcode == MOE_OP_REDUCE_SCATTER ? "reduce" : "gather");
    const char *name = moe_arena_strdup(a, moe_str_c(&s));
    moe_str_free(&s);
    return name;
}
