/* Chunks of slots as steps (docs/RANKS.md, "Overlap"). In: whole groups in an order, chunks of each expert_plan. Out: steps.
 *
 *   send          send 0, send 1
 *   arrive   #    arrive 0, work 0, home 0,
 *   work     #    arrive 1, work 1, home 1      # one loop
 *   home     #
 *   return        return 0, return 1
 *
 * Whatever the order, this computes the same: rows of one chunk's experts need the rows that arrived for it and for those
 * before it, and rows of the same experts. */
#include <string.h>

#include "passes/group.h"

/* The expert_plan that made the table which rows of v are ragged over; NULL: another table, or none. */
static const MoeOp *plan_of_rows(const MoeValue *v, int result) {
    const MoeValue *seg = v->type.kind == MOE_TYPE_TENSOR ? v->type.dims[0].seg : NULL;
    return seg && seg->def->opcode == MOE_OP_EXPERT_PLAN && seg->result == result ? seg->def : NULL;
}

enum { RECEIVED = 0, EXPERT_ROWS = 1 }; /* results of expert_plan: tables of the two kinds of rows */

/* All ops of an exchange move rows by one plan. */
static const MoeOp *plan_of_exchange(MoeOp *const *ops, size_t n, MoeChunkRole *out) {
    const MoeOp *plan = NULL;
    *out = MOE_CHUNK_NONE;
    for (size_t i = 0; i < n; i++) {
        bool sends = ops[i]->opcode == MOE_OP_A2A_DISPATCH;
        if (!sends && ops[i]->opcode != MOE_OP_A2A_COMBINE)
            return NULL;
        const MoeOp *p = sends ? plan_of_rows(ops[i]->results[0], RECEIVED)
                               : plan_of_rows(ops[i]->operands[0], EXPERT_ROWS);
        MoeChunkRole role = sends ? MOE_CHUNK_SEND : MOE_CHUNK_HOME;
        if (!p || (i && (p != plan || role != *out)))
            return NULL;
        plan = p;
        *out = role;
    }
    return plan;
}

/* The ops of the exchange that op belongs to. */
static const MoeOp *plan_waited_for(const MoeGroup *g, MoeChunkRole *out) {
    const MoeGraph *graph = g->graph;
    int exchange = g->ops[0]->operands[0]->def->group;
    size_t first = 0, n = 0;
    while (graph->ops[first]->group != exchange)
        first++;
    while (first + n < graph->n_ops && graph->ops[first + n]->group == exchange)
        n++;
    const MoeOp *plan = plan_of_exchange(graph->ops + first, n, out);
    *out = *out == MOE_CHUNK_SEND ? MOE_CHUNK_ARRIVE : MOE_CHUNK_RETURN;
    return plan;
}

/* Whether each row that the op makes needs nothing but itself of other expert rows. */
static bool is_row_by_row(const MoeOp *op) {
    switch (moe_op_info(op->opcode)->kind) {
    case MOE_KIND_EW:
    case MOE_KIND_ROW:
    case MOE_KIND_GEMM:
        return true;
    case MOE_KIND_MOVE: /* from rows that arrived */
        return op->opcode == MOE_OP_DISPATCH || op->opcode == MOE_OP_DISPATCH_WEIGHT;
    case MOE_KIND_DECL:
    case MOE_KIND_REDUCE:
    case MOE_KIND_SYNC:
    case MOE_KIND_WGRAD:
    case MOE_KIND_ROUTE:
    case MOE_KIND_EMBED:
    case MOE_KIND_EMBED_GRAD:
    case MOE_KIND_ROPE:
    case MOE_KIND_ATTN:
    case MOE_KIND_ATTN_GRAD:
    case MOE_KIND_XENT:
    case MOE_KIND_COMM:
    case MOE_KIND_STORE:
    case MOE_KIND_COMPOSITE:
    case MOE_N_KINDS:
        break;
    }
    return false;
}

static const MoeOp *plan_of_work(const MoeGroup *g) {
    const MoeOp *plan = g->n_outputs ? plan_of_rows(g->outputs[0], EXPERT_ROWS) : NULL;
    for (size_t i = 0; i < g->n_outputs && plan; i++)
        if (plan_of_rows(g->outputs[i], EXPERT_ROWS) != plan)
            return NULL;
    for (size_t i = 0; i < g->n_ops && plan; i++)
        if (!is_row_by_row(g->ops[i]))
            return NULL;
    return plan;
}

MoeChunkRole moe_group_chunk_role(const MoeGroup *g, const MoeOp **out_plan) {
    MoeChunkRole role = MOE_CHUNK_WORK;
    const MoeOp *plan;
    if (g->ops[0]->opcode == MOE_OP_WAIT)
        plan = plan_waited_for(g, &role);
    else if (moe_group_is_comm(g))
        plan = plan_of_exchange(g->ops, g->n_ops, &role);
    else
        plan = plan_of_work(g);
    *out_plan = plan;
    return plan ? role : MOE_CHUNK_NONE;
}

void moe_chunk_slots(const MoeOp *plan, int part, int parts, int64_t *out_lo, int64_t *out_hi) {
    int64_t slots = moe_attr_i(plan, "slots"), each = (slots + parts - 1) / parts;
    *out_lo = each * part;
    *out_hi = each * (part + 1) < slots ? each * (part + 1) : slots;
}

bool moe_chunk_role_loops(MoeChunkRole r) {
    return r == MOE_CHUNK_ARRIVE || r == MOE_CHUNK_WORK || r == MOE_CHUNK_HOME;
}

/* ---- steps ---- */

typedef struct {
    const MoeOp *plan;
    MoeChunkRole role;
    int chunks; /* of its steps; 1: all at once */
} Chunked;

static void push(MoeArena *a, MoeGroupStep **steps, size_t *n, size_t *cap, int group, int part,
                 int parts) {
    MoeGroupStep s = {group, parts > 1 ? part : 0, parts > 1 ? parts : 0};
    MOE_PUSH(a, *steps, *n, *cap, s);
}

bool *moe_groups_waited(const MoeGroups *whole, MoeArena *a) {
    bool *waited = MOE_NEW_N(a, bool, whole->n_groups);
    for (size_t i = 0; i < whole->n_groups; i++) {
        const MoeOp *op = whole->groups[i].ops[0];
        if (op->opcode == MOE_OP_WAIT)
            waited[whole->step_of[op->operands[0]->id]] = true;
    }
    return waited;
}

size_t moe_groups_steps(const MoeGroups *whole, const int *order, size_t n, int chunks, MoeArena *a,
                        MoeGroupStep **out) {
    Chunked *c = MOE_NEW_N(a, Chunked, n);
    bool *waited = moe_groups_waited(whole, a);
    size_t n_steps = 0, cap = 0;
    *out = NULL;
    for (size_t i = 0; i < n; i++) {
        c[i].role = moe_group_chunk_role(&whole->groups[order[i]], &c[i].plan);
        c[i].chunks = !c[i].plan ? 1 : chunks ? chunks : (int)moe_attr_i(c[i].plan, "chunks");
        /* an exchange that nobody waits for later is one step */
        if ((c[i].role == MOE_CHUNK_SEND || c[i].role == MOE_CHUNK_HOME) && !waited[order[i]])
            c[i] = (Chunked){NULL, MOE_CHUNK_NONE, 1};
    }
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && moe_chunk_role_loops(c[i].role) &&
                          moe_chunk_role_loops(c[end].role) && c[end].plan == c[i].plan;)
            end++;
        for (int part = 0; part < c[i].chunks; part++)
            for (size_t k = i; k < end; k++)
                push(a, out, &n_steps, &cap, order[k], part, c[i].chunks);
    }
    return n_steps;
}
