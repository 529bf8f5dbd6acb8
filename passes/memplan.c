/* memplan: gives every value that lives between kernels its place in the slab.
 *
 * In: grouped graphs. Out: cx->programs[i].memory. Steps are the groups in order.
 * - A value used only inside its group, a declaration, a constant: no memory.
 * - assign(p, v): v is written straight into p's buffer. Needs: v made in the update phase, no reader of p after that step,
 *   and the target's word where that step reads p itself.
 * - accumulate, batch_sum: the result is its source when there is one micro-batch. With M > 1, accumulate's result is
 *   still the source's buffer (the last fold ends there), and log2(M) slots live through all of forward and backward;
 *   batch_sum's result, summed up by the counting pass before them, lives through them too, and its source until the
 *   counting pass is over.
 * - An output of the program lives to its end.
 * - A result takes over the buffer of an operand that dies in its step where the target allows it (in place).
 * - wait: the result is the memory of its operand, which its collective writes; what that collective reads lives until then.
 * - copy_experts and fold_copies work in the memory of their first operand: a parameter, or a gradient that nothing else reads.
 * - A group that goes chunk by chunk (passes/group.h) uses and makes what it does in each of its steps.
 * - offload: the result is outside the slab; its operand lives until the wait for it, a load's result from the load on.
 * - Rows between ranks, whose number routing decides at run time (elastic), lie in lanes at the slab's end (memplan_slab.c).
 *   They count with the size that balanced routing gives them.
 * No other value crosses from one micro-batch to the next, so all others share memory by their lifetime within one.
 * Sizes are rounded up to MOE_BUFFER_ALIGN. Kernels may read MOE_BUFFER_SLACK bytes past an end: reading a neighbour is
 * harmless, so only the slab's own end gets slack. */
#include "passes/memplan.h"

#include <string.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "passes/comm_cost.h"
#include "passes/group.h"

typedef enum { CAT_ACTIVATION, CAT_GRADIENT, CAT_WORKSPACE, CAT_OTHER } Category;

typedef struct {
    MoeSlabBuffer at;
    const MoeValue *root; /* the value that owns it; NULL: a slot or a workspace */
    Category category;
    bool dead; /* merged into another buffer, or moved to a parameter's */
    bool persistent;
} Buffer;

typedef struct {
    MoeTarget *target;
    const MoeGraph *g;
    MoeMesh mesh;
    int micro_batches;
    MoeArena *a;
    MoeGroups gs;
    const MoeOp **gradients; /* by value id */
    int n_steps, last_forward,
        last_micro; /* last steps of the forward and of the backward phase; -1 = none */
    Buffer *bufs;
    size_t n_bufs, cap_bufs;
    int *buf_of;             /* by value id; -1 = none */
    const MoeValue **shared; /* by value id: the declaration whose memory it uses, or NULL */
    MoeMemoryPlan *out;
    size_t cap_acc;
} Plan;

static int64_t round_up(int64_t n) {
    int64_t a = MOE_BUFFER_ALIGN;
    return n <= 0 ? a : (n + a - 1) / a * a;
}

static int add_buffer(Plan *p, const MoeValue *root, int64_t n_bytes, int start, int end,
                      Category c) {
    Buffer b = {.at = {.bytes = round_up(n_bytes), .expect = -1, .start = start, .end = end},
                .root = root,
                .category = c};
    MOE_PUSH(p->a, p->bufs, p->n_bufs, p->cap_bufs, b);
    return (int)p->n_bufs - 1;
}

/* Marks buffer b as elastic if fewer bytes are expected to be used. */
static void set_expected(Plan *p, int b, int64_t n_bytes) {
    int64_t n = round_up(n_bytes);
    if (n < p->bufs[b].at.bytes)
        p->bufs[b].at.expect = n;
}

static void live_until(Plan *p, const MoeValue *v, int step) {
    int b = p->buf_of[v->id];
    if (b >= 0 && p->bufs[b].at.end < step)
        p->bufs[b].at.end = step;
}

/* Every group output gets a buffer that starts at its step; where a group is several steps, at the first. */
static void make_buffers(Plan *p) {
    for (int s = 0; s < p->n_steps; s++) {
        const MoeGroup *grp = &p->gs.groups[s];
        MoePhase ph = grp->ops[0]->phase;
        MoeOpcode first = grp->ops[0]->opcode;
        bool elsewhere = moe_op_is_in_place(grp->ops[0]) || first == MOE_OP_OFFLOAD;
        for (size_t i = 0; i < grp->n_ops && first == MOE_OP_OFFLOAD; i++)
            p->out->offloaded += moe_value_expected_bytes(grp->ops[i]->results[0]);
        for (size_t i = 0; i < grp->n_outputs && !elsewhere; i++) {
            const MoeValue *v = grp->outputs[i];
            if (grp->part > 0) {
                live_until(p, v, s);
                continue;
            }
            int b = add_buffer(p, v, moe_type_bytes(&v->type), s, s,
                               p->gradients[v->id] ? CAT_GRADIENT
                               : ph == MOE_PHASE_FORWARD || first == MOE_OP_LOAD ? CAT_ACTIVATION
                                                                                 : CAT_OTHER);
            set_expected(p, b, moe_value_expected_bytes(v));
            p->buf_of[v->id] = b;
        }
        if (ph == MOE_PHASE_FORWARD)
            p->last_forward = s;
        if (ph <= MOE_PHASE_BACKWARD)
            p->last_micro = s;
    }
}

static bool is_decl(const MoeValue *v) {
    return moe_op_info(v->def->opcode)->kind == MOE_KIND_DECL;
}

static int log2_int(int n) {
    int b = 0;
    while ((1 << b) < n)
        b++;
    return b;
}

static void plan_accumulate(Plan *p, const MoeOp *op) {
    const MoeValue *src = op->operands[0], *res = op->results[0];
    int b = p->buf_of[src->id];
    p->buf_of[res->id] = b;
    p->shared[res->id] = p->shared[src->id] ? p->shared[src->id] : is_decl(src) ? src : NULL;
    if (p->micro_batches == 1)
        return;
    MOE_ASSERT(b >= 0 && src->def->opcode != MOE_OP_ACCUMULATE,
               "@%s: accumulate of a value that no step of the micro-batch makes", p->g->name);
    live_until(p, src, p->last_micro);
    p->bufs[b].persistent = true;
    for (size_t i = 0; i < p->out->n_accumulates; i++)
        if (p->out->accumulates[i].op->operands[0] == src)
            return; /* summed up once, read twice */
    MoeAccumulateMemory m = {
        .op = op, .n_slots = log2_int(p->micro_batches), .slot_bytes = moe_type_bytes(&src->type)};
    m.slot_offset = MOE_NEW_N(p->a, int64_t, m.n_slots);
    for (int i = 0; i < m.n_slots; i++) {
        int slot = add_buffer(p, NULL, m.slot_bytes, 0, p->last_micro,
                              p->gradients[src->id] ? CAT_GRADIENT : CAT_OTHER);
        m.slot_offset[i] = slot; /* the index of the buffer, until offsets are known */
        p->bufs[slot].persistent = true;
    }
    MOE_PUSH(p->a, p->out->accumulates, p->out->n_accumulates, p->cap_acc, m);
}

static void plan_batch_sum(Plan *p, const MoeOp *op) {
    const MoeValue *src = op->operands[0], *res = op->results[0];
    if (p->micro_batches == 1) {
        p->buf_of[res->id] = p->buf_of[src->id];
        p->shared[res->id] = p->shared[src->id] ? p->shared[src->id] : is_decl(src) ? src : NULL;
        return;
    }
    live_until(p, src, p->last_forward);
    int b = add_buffer(p, res, moe_type_bytes(&res->type), 0, p->last_micro, CAT_OTHER);
    p->bufs[b].persistent = true;
    p->buf_of[res->id] = b;
}

static void plan_same_memory(Plan *p, const MoeOp *op) {
    const MoeValue *src = op->operands[0], *res = op->results[0];
    p->buf_of[res->id] = p->buf_of[src->id];
    p->shared[res->id] = p->shared[src->id] ? p->shared[src->id] : is_decl(src) ? src : NULL;
    MOE_ASSERT(op->opcode != MOE_OP_WAIT || moe_op_info(src->def->opcode)->kind == MOE_KIND_COMM ||
                   moe_op_is_store(src->def),
               "@%s: wait for the result of %s, which is no collective", p->g->name,
               moe_op_info(src->def->opcode)->name);
}

static void plan_sync(Plan *p) {
    for (size_t i = 0; i < p->g->n_ops; i++) {
        const MoeOp *op = p->g->ops[i];
        if (moe_op_is_in_place(op))
            plan_same_memory(p, op);
        if (op->opcode == MOE_OP_ACCUMULATE)
            plan_accumulate(p, op);
        if (op->opcode == MOE_OP_BATCH_SUM)
            plan_batch_sum(p, op);
    }
}

static void plan_uses(Plan *p) {
    for (int s = 0; s < p->n_steps; s++) {
        const MoeGroup *grp = &p->gs.groups[s];
        for (size_t i = 0; i < grp->n_inputs; i++)
            live_until(p, grp->inputs[i], s);
        for (size_t i = 0; i < grp->n_ops && grp->ops[0]->opcode == MOE_OP_WAIT; i++) {
            const MoeGroup *exchange = &p->gs.groups[p->gs.step_of[grp->ops[i]->operands[0]->id]];
            for (size_t k = 0; k < exchange->n_inputs; k++)
                live_until(p, exchange->inputs[k], s);
        }
    }
    for (size_t i = 0; i < p->g->n_ops; i++)
        if (p->g->ops[i]->opcode == MOE_OP_OUTPUT)
            live_until(p, p->g->ops[i]->operands[0], p->n_steps - 1);
}

/* The last step that reads the memory of declaration d, directly or through a sync result; -1: none. n_steps: an output. */
static int last_reader(const Plan *p, const MoeValue *d) {
    int last = -1;
    for (size_t i = 0; i < p->g->n_ops; i++) {
        const MoeOp *op = p->g->ops[i];
        for (int k = 0; k < op->n_operands; k++) {
            const MoeValue *v = op->operands[k];
            if (v != d && p->shared[v->id] != d)
                continue;
            if (op->opcode == MOE_OP_OUTPUT)
                return p->n_steps;
            if (op->group >= 0) {
                int s = p->gs.step_of[op->results[0]->id];
                last = s > last ? s : last;
            }
        }
    }
    return last;
}

static const char *shown(const MoeValue *v) {
    const char *n =
        v->def ? moe_attr(v->def, "name") ? moe_attr_s(v->def, "name") : v->name : v->name;
    return n ? n : "(unnamed)";
}

static MoeStatus plan_assign(Plan *p, const MoeOp *op) {
    const MoeValue *d = op->operands[0], *v = op->operands[1];
    if (v == d)
        return NULL;
    const char *why = NULL;
    int b = p->buf_of[v->id], s = p->gs.step_of[v->id];
    if (p->shared[v->id])
        why = "the new value is the memory of another declaration";
    else if (b < 0 || s < 0 || p->bufs[b].root != v)
        why = "the new value is not made by a step of its own";
    else if (p->gs.groups[s].ops[0]->phase != MOE_PHASE_UPDATE)
        why = "the new value is made before the update phase";
    else if (last_reader(p, d) > s)
        why = "the old value is read after the new one is made";
    else if (moe_group_has_input(&p->gs.groups[s], d) &&
             !p->target->can_alias(p->target, &p->gs.groups[s], d, v))
        why = "the step that makes the new value reads the old one in another order";
    if (why)
        return moe_error(MOE_E_INTERNAL, "memplan: @%s: %s cannot be updated in place: %s",
                         p->g->name, shown(d), why);
    p->bufs[b].dead = true;
    p->buf_of[v->id] = -1;
    p->shared[v->id] = d;
    return NULL;
}

/* Chunk by chunk, each step takes over the rows of its chunk: all that runs meanwhile keeps to its own rows, too. */
static bool may_share(const Plan *p, const MoeGroup *grp, const MoeValue *u, const MoeValue *v) {
    const MoeType *from = &u->type, *to = &v->type;
    bool same_rows = from->kind == MOE_TYPE_TENSOR && from->dims[0].seg == to->dims[0].seg;
    return (!grp->parts || same_rows) && p->target->can_alias(p->target, grp, u, v);
}

/* Results take over the buffers of operands that die. */
static void plan_in_place(Plan *p) {
    for (int s = 0; s < p->n_steps; s++) {
        const MoeGroup *grp = &p->gs.groups[s];
        if (!moe_group_has_kernel(grp) || (grp->parts && grp->part < grp->parts - 1))
            continue;
        for (size_t i = 0; i < grp->n_outputs; i++) {
            const MoeValue *v = grp->outputs[i];
            int b = p->buf_of[v->id], first = p->gs.step_of[v->id];
            if (b < 0 || p->bufs[b].at.start != first || p->bufs[b].at.end == s ||
                p->bufs[b].root != v)
                continue;
            for (size_t k = 0; k < grp->n_inputs; k++) {
                const MoeValue *u = grp->inputs[k];
                int c = p->buf_of[u->id];
                if (c < 0 || p->bufs[c].at.end != s || p->bufs[c].at.start >= first ||
                    moe_type_bytes(&u->type) != moe_type_bytes(&v->type) ||
                    p->bufs[c].at.expect != p->bufs[b].at.expect || !may_share(p, grp, u, v))
                    continue;
                p->bufs[c].at.end = p->bufs[b].at.end;
                p->bufs[c].persistent |= p->bufs[b].persistent;
                if (p->bufs[b].category == CAT_GRADIENT)
                    p->bufs[c].category = CAT_GRADIENT;
                p->bufs[b].dead = true;
                for (int id = 0; id < p->g->n_values; id++)
                    if (p->buf_of[id] == b)
                        p->buf_of[id] = c;
                break;
            }
        }
    }
}

static void plan_workspaces(Plan *p) {
    p->out->workspace_offset = MOE_NEW_N(p->a, int64_t, p->n_steps);
    p->out->workspace_bytes = MOE_NEW_N(p->a, int64_t, p->n_steps);
    p->out->workspace_expect = MOE_NEW_N(p->a, int64_t, p->n_steps);
    for (int s = 0; s < p->n_steps; s++) {
        const MoeGroup *grp = &p->gs.groups[s];
        bool kernel = moe_group_has_kernel(grp);
        int64_t n = kernel ? p->target->workspace_bytes(p->target, grp) : 0;
        MOE_ASSERT(n >= 0, "target %s: negative workspace", p->target->name);
        p->out->workspace_bytes[s] = n;
        p->out->workspace_expect[s] = -1;
        p->out->workspace_offset[s] = n ? add_buffer(p, NULL, n, s, s, CAT_WORKSPACE) : -1;
        if (n && p->target->workspace_expected) {
            Buffer *b = &p->bufs[p->out->workspace_offset[s]];
            set_expected(p, (int)p->out->workspace_offset[s],
                         p->target->workspace_expected(p->target, grp));
            p->out->workspace_expect[s] = b->at.expect;
        }
    }
}

/* The step that ends the exchange of step s: a later `wait`, or s itself. */
static int end_of_exchange(const Plan *p, int s) {
    for (int k = s + 1; k < p->n_steps; k++) {
        const MoeOp *op = p->gs.groups[k].ops[0];
        if (op->opcode == MOE_OP_WAIT && p->gs.step_of[op->operands[0]->id] == s)
            return k;
    }
    return s;
}

/* Staging memory of exchanges. An exchange takes the first place that none under way has; a place is as large as its largest. */
static void plan_staging(Plan *p) {
    int *until = MOE_NEW_N(p->a, int, p->n_steps),
        n_places = 0; /* by place: the step that ends it */
    int64_t *bytes = MOE_NEW_N(p->a, int64_t, p->n_steps);
    for (int s = 0; s < p->n_steps; s++) {
        const MoeGroup *grp = &p->gs.groups[s];
        if (!moe_group_is_comm(grp) || grp->ops[0]->opcode == MOE_OP_WAIT)
            continue;
        int64_t n = moe_comm_staging(grp, &p->mesh);
        int i = 0;
        while (i < n_places && until[i] > s)
            i++;
        n_places += i == n_places;
        until[i] = end_of_exchange(p, s);
        bytes[i] = n > bytes[i] ? n : bytes[i];
    }
    for (int i = 0; i < n_places; i++)
        p->out->comm_bytes += bytes[i];
}

/* Places all buffers; sums them up by category where they are largest. */
static void place(Plan *p) {
    MoeSlabBuffer *v = MOE_NEW_N(p->a, MoeSlabBuffer, p->n_bufs);
    MoeMemoryPlan *out = p->out;
    size_t n = 0;
    for (size_t i = 0; i < p->n_bufs; i++)
        if (!p->bufs[i].dead)
            v[n++] = p->bufs[i].at;
    MoeSlab slab = moe_slab_place(v, n, p->n_steps, p->a);
    out->slab_bytes = slab.slab_bytes;
    out->elastic_bytes = slab.elastic_bytes;
    out->elastic_expect = slab.elastic_expect;
    out->lower_bound = slab.lower_bound;
    int64_t *sums[] = {&out->activations, &out->gradients, &out->workspace, &out->other};
    n = 0;
    for (size_t i = 0; i < p->n_bufs; i++) {
        Buffer *b = &p->bufs[i];
        if (b->dead)
            continue;
        b->at.offset = v[n++].offset;
        if (b->at.start <= slab.peak && slab.peak <= b->at.end)
            *sums[b->category] += b->at.expect >= 0 ? b->at.expect : b->at.bytes;
    }
}

static void write_plan(Plan *p) {
    MoeMemoryPlan *m = p->out;
    m->values = MOE_NEW_N(p->a, MoeValueMemory, p->g->n_values);
    for (int i = 0; i < p->g->n_values; i++)
        m->values[i].offset = m->values[i].expect = -1;
    for (size_t i = 0; i < p->g->n_ops; i++) {
        const MoeOp *op = p->g->ops[i];
        for (int k = 0; k < op->n_results; k++) {
            const MoeValue *v = op->results[k];
            MoeValueMemory *o = &m->values[v->id];
            o->bytes = moe_type_bytes(&v->type);
            o->alias = p->shared[v->id];
            int b = p->buf_of[v->id];
            if (b < 0)
                continue;
            o->persistent = p->bufs[b].persistent;
            if (p->bufs[b].at.expect >= 0)
                o->expect = moe_value_expected_bytes(v);
            if (p->bufs[b].root == v)
                o->offset = p->bufs[b].at.offset;
            else
                o->alias = p->bufs[b].root;
        }
    }
    for (int s = 0; s < p->n_steps; s++)
        if (m->workspace_bytes[s])
            m->workspace_offset[s] = p->bufs[m->workspace_offset[s]].at.offset;
    for (size_t i = 0; i < m->n_accumulates; i++)
        for (int k = 0; k < m->accumulates[i].n_slots; k++)
            m->accumulates[i].slot_offset[k] = p->bufs[m->accumulates[i].slot_offset[k]].at.offset;
}

/* What lives when; not yet where. */
static MoeStatus make_plan(MoeTarget *t, const MoeGraph *g, const MoePassOptions *o, MoeArena *a,
                           MoeMemoryPlan *out, Plan *result) {
    memset(out, 0, sizeof *out);
    Plan p = {.target = t,
              .g = g,
              .mesh = moe_pass_mesh(o),
              .micro_batches = o->micro_batches < 1 ? 1 : o->micro_batches,
              .a = a,
              .out = out,
              .last_forward = -1,
              .last_micro = -1};
    p.gs = moe_groups_of(g, a);
    p.gradients = moe_groups_gradients(g, &p.gs, a);
    p.n_steps = (int)p.gs.n_groups;
    p.buf_of = MOE_NEW_N(a, int, g->n_values);
    p.shared = MOE_NEW_N(a, const MoeValue *, g->n_values);
    for (int i = 0; i < g->n_values; i++)
        p.buf_of[i] = -1;
    make_buffers(&p);
    plan_sync(&p);
    plan_uses(&p);
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_ASSIGN)
            MOE_TRY(plan_assign(&p, g->ops[i]));
    plan_in_place(&p);
    plan_workspaces(&p);
    plan_staging(&p);
    *result = p;
    return NULL;
}

MoeStatus moe_memplan_graph(MoeTarget *t, const MoeGraph *g, const MoePassOptions *o, MoeArena *a,
                            MoeMemoryPlan *out) {
    Plan p;
    MOE_TRY(make_plan(t, g, o, a, out, &p));
    place(&p);
    write_plan(&p);
    return NULL;
}

MoeStatus moe_memplan_live(MoeTarget *t, const MoeGraph *g, const MoePassOptions *o, MoeArena *a,
                           int64_t **out) {
    Plan p;
    MoeMemoryPlan plan;
    MOE_TRY(make_plan(t, g, o, a, &plan, &p));
    *out = MOE_NEW_N(a, int64_t, p.n_steps + 1);
    for (size_t i = 0; i < p.n_bufs; i++) {
        const MoeSlabBuffer *b = &p.bufs[i].at;
        if (p.bufs[i].dead)
            continue;
        (*out)[b->start] += b->expect >= 0 ? b->expect : b->bytes;
        (*out)[b->end + 1] -= b->expect >= 0 ? b->expect : b->bytes;
    }
    for (int s = 0; s < p.n_steps; s++)
        (*out)[s + 1] += (*out)[s];
    return NULL;
}

int64_t moe_memplan_expected_bytes(const MoeMemoryPlan *m) {
    return m->slab_bytes - m->elastic_bytes + m->elastic_expect + m->comm_bytes;
}

MoeStatus moe_pass_memplan(MoePassContext *cx) {
    if (!cx->target)
        return moe_error(MOE_E_INTERNAL, "the memplan pass needs a target");
    cx->programs = MOE_NEW_N(cx->arena, MoeProgram, cx->module->n_graphs);
    for (size_t i = 0; i < cx->module->n_graphs; i++) {
        cx->programs[i].graph = cx->module->graphs[i];
        MOE_TRY(moe_memplan_graph(cx->target, cx->module->graphs[i], &cx->options, cx->arena,
                                  &cx->programs[i].memory));
    }
    return NULL;
}
