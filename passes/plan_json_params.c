/* Parameters, states and their buffers in plan.json: what all graphs declare, in order of first definition, each once. */
#include <string.h>
#include "base/assert.h"
#include "passes/plan_json_internal.h"

json_t *moe_plan_json_dims(const MoeType *t) {
    json_t *a = json_array();
    if (t->kind == MOE_TYPE_SEGS)
        json_array_append_new(a, json_integer(moe_type_elements(t)));
    for (int i = 0; t->kind == MOE_TYPE_TENSOR && i < t->rank; i++)
        json_array_append_new(a, json_integer(t->dims[i].size));
    return a;
}

const char *moe_plan_shared_name(const MoeOp *op, MoeArena *a) {
    if (op->opcode == MOE_OP_PARAM)
        return moe_attr_s(op, "name");
    return moe_arena_printf(a, "%s.%s", moe_attr_s(op, "of"), moe_attr_s(op, "name"));
}

int moe_plan_find_shared(const MoePlanJson *p, const char *name) {
    for (size_t i = 0; i < p->n_shared; i++)
        if (strcmp(p->shared[i].name, name) == 0)
            return (int)i;
    return -1;
}

MoeStatus moe_plan_collect_shared(MoePlanJson *p) {
    for (size_t i = 0; i < p->cx->module->n_graphs; i++) {
        const MoeGraph *g = p->cx->module->graphs[i];
        for (size_t k = 0; k < g->n_ops; k++) {
            const MoeOp *op = g->ops[k];
            if (op->opcode != MOE_OP_PARAM && op->opcode != MOE_OP_STATE)
                continue;
            const char *name = moe_plan_shared_name(op, p->cx->arena);
            int at = moe_plan_find_shared(p, name);
            if (at < 0) {
                MoePlanShared s = {name, op};
                MOE_PUSH(p->cx->arena, p->shared, p->n_shared, p->cap_shared, s);
            } else if (!moe_type_equal(&p->shared[at].op->results[0]->type,
                                       &op->results[0]->type)) {
                return moe_error(MOE_E_INPUT,
                                 "@%s: \"%s\" has another type than in an earlier graph", g->name,
                                 name);
            }
        }
    }
    return NULL;
}

json_t *moe_plan_json_buffers(const MoePlanJson *p) {
    json_t *a = json_array();
    for (size_t i = 0; i < p->n_shared; i++) {
        const MoeType *t = &p->shared[i].op->results[0]->type;
        json_t *o = json_object();
        set_s(o, "name", p->shared[i].name);
        set_s(o, "dtype", moe_dtype_name(t->dtype));
        set(o, "dims", moe_plan_json_dims(t));
        set_i(o, "bytes", moe_type_bytes(t));
        json_array_append_new(a, o);
    }
    return a;
}

/* Of the whole tensor, of which op declares this rank's part. */
static json_t *json_whole_dims(const MoeOp *op) {
    MoeType t = op->results[0]->type;
    const char *problem =
        moe_attr(op, "whole") ? moe_dims_from_text(moe_attr_s(op, "whole"), &t) : NULL;
    MOE_ASSERT(!problem, "plan: %s: whole: %s", moe_attr_s(op, "name"), problem);
    return moe_plan_json_dims(&t);
}

json_t *moe_plan_json_params(const MoePlanJson *p) {
    json_t *a = json_array();
    for (size_t i = 0; i < p->n_shared; i++) {
        const MoeOp *op = p->shared[i].op;
        if (op->opcode != MOE_OP_PARAM)
            continue;
        json_t *o = json_object(), *states = json_array();
        set_s(o, "name", p->shared[i].name);
        set(o, "dims", json_whole_dims(op));
        set(o, "stacked", json_boolean(moe_attr_i_or(op, "stacked", 0)));
        set(o, "expert", json_boolean(moe_attr_i_or(op, "expert", 0)));
        if (moe_attr_i_or(op, "mesh", 0))
            set_i(o, "mesh", moe_attr_i(op, "mesh"));
        set_i(o, "tp_dim", moe_attr_i_or(op, "tp_dim", -1));
        set_s(o, "init", moe_attr_s(op, "init"));
        set(o, "std", json_real(moe_attr(op, "std") ? moe_attr_f(op, "std") : 0.0));
        set(o, "decay", json_boolean(moe_attr_i(op, "decay")));
        set_i(o, "buffer", (int64_t)i);
        for (size_t k = 0; k < p->n_shared; k++) {
            const MoeOp *st = p->shared[k].op;
            if (st->opcode != MOE_OP_STATE || strcmp(moe_attr_s(st, "of"), p->shared[i].name) != 0)
                continue;
            json_t *s = json_object();
            set_s(s, "name", moe_attr_s(st, "name"));
            set_i(s, "buffer", (int64_t)k);
            json_array_append_new(states, s);
        }
        set(o, "states", states);
        json_array_append_new(a, o);
    }
    return a;
}
