/* Exchanges between ranks in plan.json (docs/PLAN.md): what the runtime needs to carry out each COMM op, with sizes as numbers. */
#include "base/assert.h"
#include "passes/comm_cost.h"
#include "passes/group.h"
#include "passes/plan_json_internal.h"
#include "passes/predict.h"

static const MoeType *type_of(const MoeOp *op, int operand) {
    return &op->operands[operand]->type;
}

static int64_t row_bytes(const MoeType *t) {
    int64_t n = moe_dtype_bytes(t->dtype);
    for (int i = 1; i < t->rank; i++)
        n *= t->dims[i].size;
    return n;
}

/* unit, outer, elements: of a tensor of n elements in all, `outer` of them sliced each by itself. */
static void set_sliced(json_t *o, const MoeOp *op, int64_t n, int64_t outer) {
    set_i(o, "unit", moe_attr_i(op, "unit"));
    set_i(o, "outer", outer);
    set_i(o, "elements", outer ? n / outer : 0);
}

static void all_gather(json_t *o, const MoeOp *op) {
    const MoeType *x = type_of(op, 0);
    set_s(o, "dtype", moe_dtype_name(x->dtype));
    set_s(o, "group", moe_attr_s(op, "group"));
    set_sliced(o, op, moe_type_elements(&op->results[0]->type), x->rank == 2 ? x->dims[0].size : 1);
}

static void all_gather_rows(json_t *o, const MoeOp *op) {
    const MoeType *x = type_of(op, 0);
    set_s(o, "group", moe_attr_s(op, "group"));
    set_i(o, "row_bytes", row_bytes(x));
    set_i(o, "rows", x->dims[0].seg ? 0 : x->dims[0].size);
}

static void reduce_scatter(json_t *o, const MoeOp *op) {
    const MoeType *x = type_of(op, 0);
    set_s(o, "sum", moe_attr_s(op, "sum"));
    set_s(o, "scatter", moe_attr_s(op, "scatter"));
    set_sliced(o, op, moe_type_elements(x), moe_attr_i(op, "outer") ? x->dims[0].size : 1);
}

static void all_reduce(json_t *o, const MoeOp *op) {
    set_s(o, "dtype", moe_dtype_name(type_of(op, 0)->dtype));
    set_s(o, "group", moe_attr_s(op, "group"));
    set_i(o, "elements", moe_type_elements(type_of(op, 0)));
}

static void a2a_dispatch(json_t *o, const MoeOp *op) {
    set_s(o, "group", moe_attr_s(op, "group"));
    set_i(o, "row_bytes", row_bytes(type_of(op, 0)));
    set_i(o, "chunks", type_of(op, 1)->dims[0].seg->type.shards);
    set_i(o, "capacity", op->results[0]->type.dims[0].size);
}

static void a2a_combine(json_t *o, const MoeOp *op) {
    set_s(o, "group", moe_attr_s(op, "group"));
    set_i(o, "row_bytes", row_bytes(type_of(op, 0)));
    set_i(o, "slots", moe_attr_i(op, "slots"));
    set_i(o, "experts", type_of(op, op->n_operands - 1)->dims[0].seg->type.groups);
}

/* place and copies are operands p and c. */
static void set_map(json_t *o, const MoeOp *op, int p, int c) {
    set_s(o, "group", moe_attr_s(op, "group"));
    set_i(o, "row_bytes", row_bytes(type_of(op, 0)));
    set_i(o, "slots", type_of(op, 0)->dims[0].size);
    set_i(o, "experts", type_of(op, p)->dims[0].size);
    MOE_ASSERT(type_of(op, c)->dims[0].size % type_of(op, 0)->dims[0].size == 0, "plan: slots of %s",
               moe_op_info(op->opcode)->name);
}

static void copy_experts(json_t *o, const MoeOp *op) {
    set_map(o, op, 1, 2);
}

static void fold_copies(json_t *o, const MoeOp *op) {
    set_map(o, op, 5, 4);
}

static const MoeValue *seg(const MoeOp *op, int operand) {
    return type_of(op, operand)->dims[0].seg;
}

/* What the runtime reads of an op, in the order of docs/PLAN.md: plans speak through their tables. */
static int inputs_of(const MoeOp *op, const MoeValue *in[8]) {
    in[0] = op->operands[0];
    if (op->opcode == MOE_OP_A2A_DISPATCH) {
        in[1] = seg(op, 1);
        in[2] = op->operands[1];
        in[3] = seg(op, 2);
        return 4;
    }
    if (op->opcode == MOE_OP_A2A_COMBINE) {
        int n = 1;
        in[n++] = seg(op, 0);
        if (op->n_operands == 3)
            in[n++] = op->operands[1];
        in[n++] = seg(op, op->n_operands - 1);
        return n;
    }
    int n = 1;
    for (int i = 1; i < op->n_operands; i++) {
        in[n++] = op->operands[i];
        if (op->opcode == MOE_OP_FOLD_COPIES && i == 1)
            in[n++] = seg(op, 1);
    }
    return n;
}

static const struct {
    MoeOpcode op;
    void (*write)(json_t *o, const MoeOp *op);
} writers[] = {{MOE_OP_ALL_GATHER, all_gather},         {MOE_OP_ALL_GATHER_ROWS, all_gather_rows},
               {MOE_OP_REDUCE_SCATTER, reduce_scatter}, {MOE_OP_ALL_REDUCE, all_reduce},
               {MOE_OP_A2A_DISPATCH, a2a_dispatch},     {MOE_OP_A2A_COMBINE, a2a_combine},
               {MOE_OP_COPY_EXPERTS, copy_experts},     {MOE_OP_FOLD_COPIES, fold_copies}};

/* ---- chunks ---- */

static json_t *json_slots(const MoeOp *plan, const MoeGroup *g) {
    int64_t lo, hi;
    moe_chunk_slots(plan, g->part, g->parts, &lo, &hi);
    return json_pack("[I, I]", (json_int_t)lo, (json_int_t)hi);
}

/* Slots of a layer that is divided as the plan's mesh says. */
static int slots_of_plan(const MoePlanWriter *w, const MoeOp *plan) {
    MoeMesh mesh = moe_pass_mesh(&w->plan->cx->options);
    int64_t experts = plan->n_operands == 3 ? plan->operands[1]->type.dims[0].size
                                            : moe_attr_i(plan->operands[0]->def, "experts");
    return moe_mesh_slots(&mesh, (int)experts);
}

void moe_plan_json_slots(MoePlanWriter *w, const MoeGroup *g, json_t *o) {
    const MoeOp *plan;
    MoeChunkRole role = moe_group_chunk_role(g, &plan);
    MOE_ASSERT(role == MOE_CHUNK_WORK, "plan: a kernel for a chunk of slots that has no slots");
    set(o, "slots", json_slots(plan, g));
    if (moe_attr_i(plan, "slots") != slots_of_plan(w, plan))
        set_i(o, "of", moe_attr_i(plan, "slots"));
    set_i(o, "segs", moe_plan_value_entry(w, plan->results[1]));
}

static void set_part(json_t *o, const MoeGroup *g) {
    const MoeOp *plan;
    if (!g->parts)
        return;
    if (moe_group_chunk_role(g, &plan) == MOE_CHUNK_SEND)
        set_i(o, "chunk", g->part);
    else
        set(o, "range", json_slots(plan, g));
}

static json_t *json_collective(MoePlanWriter *w, const MoeGroup *g, const MoeOp *op,
                               const MoeMesh *mesh) {
    json_t *o = json_object(), *list = json_array();
    const MoeValue *in[8];
    int n = inputs_of(op, in);
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer(moe_plan_value_entry(w, in[i])));
    set_s(o, "op", moe_op_info(op->opcode)->name);
    set(o, "in", list);
    set_i(o, "out", moe_plan_value_entry(w, op->results[0]));
    size_t k = 0, n_writers = sizeof writers / sizeof *writers;
    while (k < n_writers && writers[k].op != op->opcode)
        k++;
    MOE_ASSERT(k < n_writers, "plan: no form for collective %s", moe_op_info(op->opcode)->name);
    writers[k].write(o, op);
    if (op->opcode == MOE_OP_FOLD_COPIES)
        set_i(o, "leaf", moe_graph_leaf_rows(w->p->graph));
    set_part(o, g);
    double share = moe_predict_share(g, g->part, g->parts);
    set(o, "bytes", json_real(moe_comm_sent_bytes(op, mesh) * share));
    return o;
}

/* Whether step `wait` waits for step `s`: the same exchange, the same chunk. */
static bool waits_for(const MoeGroup *wait, const MoeGroup *s) {
    const MoeOp *op = wait->ops[0];
    return op->opcode == MOE_OP_WAIT && op->operands[0]->def->group == s->ops[0]->group &&
           wait->part == s->part;
}

/* Whether a later step waits for the exchange. */
static bool is_started(const MoeProgram *p, size_t step) {
    for (size_t s = step + 1; s < p->n_steps; s++)
        if (waits_for(&p->steps[s].group, &p->steps[step].group))
            return true;
    return false;
}

void moe_plan_json_comm(MoePlanWriter *w, size_t step, const int *json_step, json_t *o) {
    const MoeGroup *g = &w->p->steps[step].group;
    if (g->ops[0]->opcode == MOE_OP_WAIT) {
        int exchange = g->ops[0]->operands[0]->def->group;
        for (size_t i = 1; i < g->n_ops; i++)
            MOE_ASSERT(g->ops[i]->operands[0]->def->group == exchange,
                       "plan: one step waits for two exchanges");
        size_t s = 0;
        while (!waits_for(g, &w->p->steps[s].group))
            s++;
        set_i(o, "wait", json_step[s]);
        return;
    }
    json_t *comm = json_array();
    MoeMesh mesh = moe_pass_mesh(&w->plan->cx->options);
    for (size_t i = 0; i < g->n_ops; i++)
        json_array_append_new(comm, json_collective(w, g, g->ops[i], &mesh));
    set(o, "comm", comm);
    set(o, "start", json_boolean(is_started(w->p, step)));
}
