/* Offloads and loads in plan.json (docs/PLAN.md): which memory, which slot outside of it, how many rows. */
#include "base/assert.h"
#include "passes/group.h"
#include "passes/plan_json_internal.h"

/* Slots are numbered by their offloads, in program order. */
static int slot_of(const MoeGraph *g, const MoeOp *offload) {
    int slot = 0;
    for (size_t i = 0; i < g->n_ops && g->ops[i] != offload; i++)
        slot += g->ops[i]->opcode == MOE_OP_OFFLOAD;
    return slot;
}

static json_t *json_move(MoePlanWriter *w, const MoeOp *op) {
    bool load = op->opcode == MOE_OP_LOAD;
    const MoeOp *offload = load ? op->operands[0]->def->operands[0]->def : op;
    const MoeValue *v = load ? op->results[0] : op->operands[0];
    json_t *o = json_pack("{s:s, s:i, s:i, s:I}", "op", moe_op_info(op->opcode)->name, "value",
                          moe_plan_value_entry(w, v), "slot", slot_of(w->p->graph, offload),
                          "bytes", (json_int_t)moe_type_bytes(&v->type));
    const MoeDim *rows = &v->type.dims[0];
    if (!rows->seg)
        return o;
    json_object_set_new(o, "rows", json_integer(moe_plan_value_entry(w, rows->seg)));
    json_object_set_new(o, "row_bytes",
                        json_integer(rows->size ? moe_type_bytes(&v->type) / rows->size : 0));
    return o;
}

json_t *moe_plan_json_offloaded(const MoeGraph *g) {
    json_t *a = json_array();
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_OFFLOAD)
            json_array_append_new(a, json_integer(moe_type_bytes(&g->ops[i]->results[0]->type)));
    return a;
}

void moe_plan_json_store(MoePlanWriter *w, size_t step, json_t *o) {
    const MoeGroup *g = &w->p->steps[step].group;
    json_t *moves = json_array();
    for (size_t i = 0; i < g->n_ops; i++)
        json_array_append_new(moves, json_move(w, g->ops[i]));
    json_object_set_new(o, "store", moves);
    json_object_set_new(o, "start", json_true());
}
