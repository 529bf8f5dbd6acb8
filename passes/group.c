/* Builds MoeGroup views from the group numbers of a graph.
 * In: a graph after fuse. Out: its steps, each with inputs (segs last) and outputs. */
#include "passes/group.h"

#include <string.h>
#include "base/assert.h"

bool moe_op_has_kernel(const MoeOp *op) {
    MoeKind k = moe_op_info(op->opcode)->kind;
    return k != MOE_KIND_DECL && k != MOE_KIND_SYNC && k != MOE_KIND_COMM && k != MOE_KIND_STORE;
}

bool moe_op_is_store(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_STORE;
}

bool moe_op_is_comm(const MoeOp *op) {
    return moe_op_info(op->opcode)->kind == MOE_KIND_COMM || op->opcode == MOE_OP_WAIT;
}

bool moe_op_is_in_place(const MoeOp *op) {
    return op->opcode == MOE_OP_WAIT || op->opcode == MOE_OP_COPY_EXPERTS ||
           op->opcode == MOE_OP_FOLD_COPIES;
}

bool moe_op_has_step(const MoeOp *op) {
    return moe_op_has_kernel(op) || moe_op_is_comm(op) || moe_op_is_store(op);
}

bool moe_group_has_kernel(const MoeGroup *g) {
    return moe_op_has_kernel(g->ops[0]);
}

bool moe_group_is_comm(const MoeGroup *g) {
    return moe_op_is_comm(g->ops[0]);
}

static bool holds(MoeValue *const *vs, size_t n, const MoeValue *v) {
    for (size_t i = 0; i < n; i++)
        if (vs[i] == v)
            return true;
    return false;
}

bool moe_group_has_input(const MoeGroup *g, const MoeValue *v) {
    return holds(g->inputs, g->n_inputs, v);
}

bool moe_group_has_output(const MoeGroup *g, const MoeValue *v) {
    return holds(g->outputs, g->n_outputs, v);
}

/* The segs value that rows of a type are ragged over, or NULL. */
static MoeValue *seg_of(const MoeType *t) {
    if (t->kind != MOE_TYPE_TENSOR || t->rank == 0)
        return NULL;
    return (MoeValue *)t->dims[0].seg;
}

typedef struct {
    int *step_of;  /* by value id */
    bool *outside; /* read outside its group */
    bool *read;    /* read at all */
} Uses;

static void mark(Uses *u, const MoeOp *user, const MoeValue *v) {
    if (!v)
        return;
    u->read[v->id] = true;
    if (user->group < 0 || v->def->group != user->group)
        u->outside[v->id] = true;
}

static void mark_uses(const MoeGraph *g, Uses *u) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_operands; k++) {
            mark(u, op, op->operands[k]);
            mark(u, op, seg_of(&op->operands[k]->type));
        }
        for (int k = 0; k < op->n_results; k++)
            mark(u, op, seg_of(&op->results[k]->type));
    }
}

typedef struct {
    MoeValue **items;
    size_t n, cap;
} List;

static void list_add(MoeArena *a, List *l, MoeValue *v) {
    if (v && !holds(l->items, l->n, v))
        MOE_PUSH(a, l->items, l->n, l->cap, v);
}

static void fill(MoeGroup *g, const Uses *u, int step, MoeArena *a) {
    List in = {0}, segs = {0}, out = {0};
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        for (int k = 0; k < op->n_operands; k++) {
            MoeValue *v = op->operands[k];
            if (u->step_of[v->id] != step)
                list_add(a, &in, v);
            list_add(a, &segs, seg_of(&v->type));
        }
        for (int k = 0; k < op->n_results; k++) {
            MoeValue *v = op->results[k];
            if (u->outside[v->id] || (op->n_results > 1 && !u->read[v->id]))
                MOE_PUSH(a, out.items, out.n, out.cap, v);
            list_add(a, &segs, seg_of(&v->type));
        }
    }
    for (size_t i = 0; i < segs.n; i++)
        if (u->step_of[segs.items[i]->id] != step)
            list_add(a, &in, segs.items[i]);
    g->inputs = in.items;
    g->n_inputs = in.n;
    g->outputs = out.items;
    g->n_outputs = out.n;
}

MoeGroups moe_groups_whole(const MoeGraph *g, MoeArena *a) {
    MoeGroups gs = {.n_values = g->n_values};
    size_t cap = 0;
    Uses u = {.step_of = MOE_NEW_N(a, int, g->n_values),
              .outside = MOE_NEW_N(a, bool, g->n_values),
              .read = MOE_NEW_N(a, bool, g->n_values)};
    for (int i = 0; i < g->n_values; i++)
        u.step_of[i] = -1;
    gs.step_of = u.step_of;
    int largest = -1;
    for (size_t i = 0; i < g->n_ops; i++) {
        MoeOp *op = g->ops[i];
        if (!moe_op_has_step(op))
            continue;
        const char *name = moe_op_info(op->opcode)->name;
        MOE_ASSERT(op->group >= 0, "@%s: op %s has no group: run the fuse pass first", g->name,
                   name);
        if (op->group > largest) {
            MoeGroup fresh = {.graph = g, .ops = &g->ops[i]};
            MOE_PUSH(a, gs.groups, gs.n_groups, cap, fresh);
            largest = op->group;
        }
        MoeGroup *last = &gs.groups[gs.n_groups - 1];
        MOE_ASSERT(last->ops[0]->group == op->group && &g->ops[i] == last->ops + last->n_ops,
                   "@%s: the ops of group %d are not consecutive (at %s)", g->name, op->group,
                   name);
        MOE_ASSERT(last->ops[0]->phase == op->phase, "@%s: group %d spans two phases", g->name,
                   op->group);
        last->n_ops++;
        for (int k = 0; k < op->n_results; k++)
            u.step_of[op->results[k]->id] = (int)gs.n_groups - 1;
    }
    mark_uses(g, &u);
    for (size_t i = 0; i < gs.n_groups; i++)
        fill(&gs.groups[i], &u, (int)i, a);
    return gs;
}

MoeGroups moe_groups_of(const MoeGraph *g, MoeArena *a) {
    MoeGroups whole = moe_groups_whole(g, a), gs = whole;
    int *order = MOE_NEW_N(a, int, whole.n_groups), *first = MOE_NEW_N(a, int, whole.n_groups);
    MoeGroupStep *steps;
    for (size_t i = 0; i < whole.n_groups; i++)
        order[i] = (int)i;
    gs.n_groups = moe_groups_steps(&whole, order, whole.n_groups, 0, a, &steps);
    gs.groups = MOE_NEW_N(a, MoeGroup, gs.n_groups);
    for (size_t s = gs.n_groups; s-- > 0;) {
        gs.groups[s] = whole.groups[steps[s].group];
        gs.groups[s].part = steps[s].part;
        gs.groups[s].parts = steps[s].parts;
        first[steps[s].group] = (int)s;
    }
    for (int i = 0; i < gs.n_values; i++)
        if (gs.step_of[i] >= 0)
            gs.step_of[i] = first[gs.step_of[i]];
    return gs;
}

int moe_groups_source(const MoeGroups *gs, const MoeValue *v) {
    while (gs->step_of[v->id] < 0 && v->def->n_operands &&
           moe_op_info(v->def->opcode)->kind == MOE_KIND_SYNC)
        v = v->def->operands[0];
    return gs->step_of[v->id];
}

/* ---- the counting pass ---- */

static void mark_value(const MoeGroups *gs, bool *need, const MoeValue *v) {
    int s = gs->step_of[v->id];
    if (s >= 0)
        need[s] = true;
}

bool *moe_groups_counted(const MoeGraph *g, const MoeGroups *gs, int micro_batches, MoeArena *a) {
    bool *need = MOE_NEW_N(a, bool, gs->n_groups);
    if (micro_batches <= 1)
        return need;
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_BATCH_SUM)
            mark_value(gs, need, g->ops[i]->operands[0]);
    for (size_t s = gs->n_groups; s-- > 0;) {
        if (!need[s])
            continue;
        const MoeGroup *grp = &gs->groups[s];
        MOE_ASSERT(grp->ops[0]->phase == MOE_PHASE_FORWARD,
                   "@%s: batch_sum depends on a step of phase %s", g->name,
                   moe_phase_name(grp->ops[0]->phase));
        for (size_t i = 0; i < grp->n_inputs; i++)
            mark_value(gs, need, grp->inputs[i]);
    }
    for (size_t s = 0; s < gs->n_groups; s++) /* all parts like the first */
        for (size_t k = s; k-- > 0 && gs->groups[s].part > 0;)
            if (gs->groups[k].ops == gs->groups[s].ops) {
                need[s] = need[k];
                break;
            }
    return need;
}

/* ---- gradients ---- */

/* v and what it was made from by summing up over micro-batches and ranks: of param. */
static void mark_gradient(const MoeOp **of, const MoeValue *v, const MoeOp *param) {
    for (;;) {
        of[v->id] = param;
        MoeOpcode c = v->def->opcode;
        if (c != MOE_OP_ACCUMULATE && c != MOE_OP_WAIT && c != MOE_OP_REDUCE_SCATTER &&
            c != MOE_OP_FOLD_COPIES)
            return;
        v = v->def->operands[0];
    }
}

const MoeOp **moe_groups_gradients(const MoeGraph *g, const MoeGroups *gs, MoeArena *a) {
    const MoeOp **of = MOE_NEW_N(a, const MoeOp *, g->n_values);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *assign = g->ops[i];
        if (assign->opcode != MOE_OP_ASSIGN || assign->operands[0]->def->opcode != MOE_OP_PARAM)
            continue;
        const MoeValue *param = assign->operands[0];
        int s = gs->step_of[assign->operands[1]->id];
        for (size_t k = 0; s >= 0 && k < gs->groups[s].n_inputs; k++) {
            const MoeValue *v = gs->groups[s].inputs[k];
            if (moe_op_info(v->def->opcode)->kind == MOE_KIND_DECL ||
                moe_type_elements(&v->type) < 2 || !moe_type_same_shape(&v->type, &param->type) ||
                of[v->id])
                continue;
            mark_gradient(of, v, param->def);
        }
    }
    return of;
}
