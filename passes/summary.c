/* See summary.h. */
#include "passes/summary.h"

#include <string.h>

#include "base/assert.h"
#include "passes/comm_cost.h"
#include "passes/group.h"
#include "passes/skew.h"

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static bool is_expert_row(const MoeValue *v) {
    const MoeValue *seg = v->type.kind == MOE_TYPE_TENSOR ? v->type.dims[0].seg : NULL;
    return seg && seg->def->opcode == MOE_OP_ROUTE_PLAN;
}

static bool works_on_experts(const MoeGroup *g) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_results; k++)
            if (is_expert_row(op->results[k]))
                return true;
        for (int k = 0; k < op->n_operands; k++)
            if (is_expert_row(op->operands[k]))
                return true;
    }
    return false;
}

/* ---- sizes ---- */

static void add_param(const MoeOp *op, double states, MoeModelSummary *out) {
    double n = (double)moe_type_elements(&op->results[0]->type);
    *(moe_attr_i_or(op, "stacked", 0) ? &out->expert_params : &out->dense_params) += n;
    out->state_bytes = 4 * (1 + states);
}

static void add_sizes(const MoePassContext *cx, const MoeGraph *g, MoeModelSummary *out) {
    const MoePassOptions *o = &cx->options;
    double params = 0, states = 0;
    int last = -1;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        const MoeType *t = op->n_results ? &op->results[0]->type : NULL;
        int layer = (int)moe_attr_i_or(op, "layer", -1);
        last = layer > last ? layer : last;
        params += op->opcode == MOE_OP_PARAM ? (double)moe_type_elements(t) : 0;
        states += op->opcode == MOE_OP_STATE ? (double)moe_type_elements(t) : 0;
        if (op->opcode == MOE_OP_ATTENTION)
            out->tp_divides = gcd(gcd(out->tp_divides, moe_attr_i(op, "heads")), moe_attr_i(op, "kv_heads"));
        if (op->opcode == MOE_OP_MATMUL && op->phase == MOE_PHASE_FORWARD && moe_attr_i(op, "grouped")) {
            int64_t from = moe_type_cols(&op->operands[0]->type), to = moe_type_cols(t);
            out->tp_divides = gcd(out->tp_divides, from == out->hidden ? to : from);
        }
        if (op->opcode == MOE_OP_EMBEDDING)
            out->hidden = moe_type_cols(t);
    }
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM)
            add_param(g->ops[i], params > 0 ? states / params : 0, out);
    out->batch = o->batch;
    out->seq = o->seq;
    out->virtual_shards = o->virtual_shards;
    out->layers = last + 1;
    out->element_bytes = o->mixed_bf16 ? 2 : 4;
    out->moe_layers = (int)cx->n_routes;
    if (cx->n_routes) {
        out->experts = cx->routes[0].experts;
        out->top_k = cx->routes[0].top_k;
    }
    out->tp_divides = out->tp_divides ? out->tp_divides : 1;
}

/* ---- work ---- */

void moe_summary_add(const MoePassContext *cx, MoePlanLevel level, MoeModelSummary *out) {
    const MoeProgram *p = NULL;
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        if (strcmp(cx->module->graphs[i]->name, "train") == 0)
            p = &cx->programs[i];
    MOE_ASSERT(p && cx->target, "summary: no program @train");
    const MoeGraph *g = p->graph ? p->graph : moe_module_find(cx->module, "train");
    if (!out->seq)
        add_sizes(cx, g, out);
    MoeArena *a = moe_arena_create();
    MoeCommModel model;
    moe_comm_model(cx, &model);
    MoeGroups gs = moe_groups_of(g, a);
    MoePlanWork *w = &out->work[level];
    *w = (MoePlanWork){.activations = (double)(p->memory.activations + p->memory.other)};
    out->update = 0;
    for (size_t i = 0; i < gs.n_groups; i++) {
        const MoeGroup *group = &gs.groups[i];
        if (!moe_group_has_kernel(group))
            continue;
        double s = moe_kernel_seconds(cx->target, group, &model, 1);
        if (group->ops[0]->phase > MOE_PHASE_BACKWARD)
            out->update += s;
        else
            *(works_on_experts(group) ? &w->expert : &w->dense) += s;
    }
    out->workspace = (double)p->memory.workspace;
    moe_arena_destroy(a);
}
