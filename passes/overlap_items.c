/* Items: the steps of a graph as things that can be ordered. In: a graph with waits. Out: what needs what, what each takes,
 * and the memory that lives between them. See overlap.h. */
#include <string.h>

#include "base/assert.h"
#include "passes/overlap.h"

typedef struct {
    Overlap *x;
    int *loop_of; /* by group: its loop; -1 none */
    int n_loops;
    int *item_of; /* by group */
} Build;

static void add_once(MoeArena *a, int **list, size_t *n, size_t *cap, int v) {
    for (size_t i = 0; i < *n; i++)
        if ((*list)[i] == v)
            return;
    MOE_PUSH(a, *list, *n, *cap, v);
}

static const MoeGroup *group_at(const Build *b, int group) {
    return &b->x->whole.groups[group];
}

static MoePhase phase_of(const Build *b, int group) {
    return group_at(b, group)->ops[0]->phase;
}

/* ---- loops ---- */

/* Whether group i needs any group of the set. */
static bool needs_any(const Build *b, int i, const bool *set) {
    const MoeGroup *g = group_at(b, i);
    for (size_t k = 0; k < g->n_inputs; k++) {
        int from = moe_groups_source(&b->x->whole, g->inputs[k]);
        if (from >= 0 && set[from])
            return true;
    }
    return false;
}

/* From the wait for rows that arrive: all that works on rows of the same experts and needs nothing from outside that needs
 * the loop; up to the next such wait. */
static void make_loop(Build *b, int arrive, const MoeOp *plan, bool *inside, bool *behind) {
    int n = (int)b->x->whole.n_groups;
    memset(inside, 0, (size_t)n * sizeof *inside);
    memset(behind, 0, (size_t)n * sizeof *behind);
    for (int i = arrive; i < n && phase_of(b, i) == phase_of(b, arrive); i++) {
        const MoeOp *of;
        MoeChunkRole role = moe_group_chunk_role(group_at(b, i), &of);
        if (i > arrive && role == MOE_CHUNK_ARRIVE && of == plan)
            break;
        bool after = needs_any(b, i, behind);
        if (moe_chunk_role_loops(role) && of == plan && !after) {
            inside[i] = true;
            b->loop_of[i] = b->n_loops;
        } else {
            behind[i] = after || needs_any(b, i, inside);
        }
    }
    b->n_loops++;
}

static void make_loops(Build *b) {
    size_t n = b->x->whole.n_groups;
    bool *inside = MOE_NEW_N(b->x->a, bool, n), *behind = MOE_NEW_N(b->x->a, bool, n);
    for (size_t i = 0; i < n; i++)
        b->loop_of[i] = -1;
    for (size_t i = 0; i < n && b->x->chunks > 1; i++) {
        const MoeOp *plan;
        if (moe_group_chunk_role(group_at(b, (int)i), &plan) == MOE_CHUNK_ARRIVE &&
            b->loop_of[i] < 0)
            make_loop(b, (int)i, plan, inside, behind);
    }
}

/* ---- items, in an order in which they can run ---- */

/* By loop and by single group, what of it still waits: places needs before users, the first in the old order first. */
typedef struct {
    int *unit_of;      /* by group */
    int *head;         /* by unit: its first group */
    size_t n;
    bool *done;
} Units;

static bool unit_ready(const Build *b, const Units *u, int unit) {
    for (size_t i = (size_t)u->head[unit]; i < b->x->whole.n_groups; i++) {
        const MoeGroup *g = group_at(b, (int)i);
        for (size_t k = 0; u->unit_of[i] == unit && k < g->n_inputs; k++) {
            int from = moe_groups_source(&b->x->whole, g->inputs[k]);
            if (from >= 0 && u->unit_of[from] != unit && !u->done[u->unit_of[from]])
                return false;
        }
        if (b->loop_of[i] < 0 && u->unit_of[i] == unit)
            return true;
    }
    return true;
}

static void add_item(Build *b, const Units *u, int unit) {
    Overlap *x = b->x;
    int at = (int)x->n_items++;
    OverlapItem *it = &x->items[at];
    for (size_t i = (size_t)u->head[unit]; i < x->whole.n_groups; i++)
        if (u->unit_of[i] == unit) {
            MOE_PUSH(x->a, it->groups, it->n_groups, it->cap_groups, (int)i);
            b->item_of[i] = at;
            if (b->loop_of[i] < 0)
                break;
        }
    it->phase = phase_of(b, it->groups[0]);
}

static void make_items(Build *b) {
    Overlap *x = b->x;
    size_t n = x->whole.n_groups;
    Units u = {.unit_of = MOE_NEW_N(x->a, int, n),
               .head = MOE_NEW_N(x->a, int, n),
               .done = MOE_NEW_N(x->a, bool, n)};
    int *loop_unit = MOE_NEW_N(x->a, int, b->n_loops);
    for (size_t i = 0; i < n; i++) {
        int loop = b->loop_of[i];
        bool fresh = loop < 0 || loop_unit[loop] == 0;
        if (fresh) {
            u.head[u.n] = (int)i;
            u.n++;
            if (loop >= 0)
                loop_unit[loop] = (int)u.n; /* from 1 */
        }
        u.unit_of[i] = loop >= 0 ? loop_unit[loop] - 1 : (int)u.n - 1;
    }
    x->items = MOE_NEW_N(x->a, OverlapItem, u.n);
    for (size_t first = 0; first < u.n;) {
        size_t k = first;
        while (k < u.n && (u.done[k] || !unit_ready(b, &u, (int)k)))
            k++;
        MOE_ASSERT(k < u.n, "overlap: @%s: a loop over chunks needs itself", x->g->name);
        add_item(b, &u, (int)k);
        u.done[k] = true;
        while (first < u.n && u.done[first])
            first++;
    }
}

/* ---- what they are ---- */

static const MoeGroup *group_of_item(const Build *b, const OverlapItem *it) {
    return group_at(b, it->groups[0]);
}

static bool is_exchange(const Build *b, const OverlapItem *it) {
    const MoeGroup *g = group_of_item(b, it);
    return moe_group_is_comm(g) && g->ops[0]->opcode != MOE_OP_WAIT;
}

static bool only_gathers(const Build *b, const OverlapItem *it) {
    const MoeGroup *g = group_of_item(b, it);
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i]->opcode != MOE_OP_ALL_GATHER && g->ops[i]->opcode != MOE_OP_COPY_EXPERTS)
            return false;
    return is_exchange(b, it);
}

static void link_items(Build *b) {
    Overlap *x = b->x;
    for (size_t i = 0; i < x->n_items; i++) {
        OverlapItem *it = &x->items[i];
        for (size_t k = 0; k < it->n_groups; k++) {
            const MoeGroup *g = group_at(b, it->groups[k]);
            for (size_t v = 0; v < g->n_inputs; v++) {
                int from = moe_groups_source(&x->whole, g->inputs[v]);
                if (from < 0 || b->item_of[from] == (int)i)
                    continue;
                OverlapItem *need = &x->items[b->item_of[from]];
                add_once(x->a, &it->needs, &it->n_needs, &it->cap_needs, b->item_of[from]);
                add_once(x->a, &need->users, &need->n_users, &need->cap_users, (int)i);
            }
        }
    }
}

/* The wait for a parameter's slots of copies. */
static bool waits_for_copies(const Build *b, const OverlapItem *it) {
    const MoeOp *op = group_of_item(b, it)->ops[0];
    return op->opcode == MOE_OP_WAIT && op->operands[0]->def->opcode == MOE_OP_COPY_EXPERTS;
}

/* Whether the item needs nothing but declarations, feeders and parameters whose copies have come. */
static bool needs_parameters(const Build *b, const OverlapItem *it, bool feeders) {
    for (size_t i = 0; i < it->n_needs; i++) {
        const OverlapItem *need = &b->x->items[it->needs[i]];
        if (!waits_for_copies(b, need) && !(feeders && need->kind == ITEM_FEEDER))
            return false;
    }
    return true;
}

static bool is_feeder(const Build *b, const OverlapItem *it) {
    for (size_t i = 0; i < it->n_users; i++)
        if (!only_gathers(b, &b->x->items[it->users[i]]))
            return false;
    return it->n_users > 0 && needs_parameters(b, it, false) && !moe_group_is_comm(group_of_item(b, it));
}

/* Users before needs; feeders are known already. needed: by item, whether a kernel of its phase needs it. */
static void classify(Build *b) {
    Overlap *x = b->x;
    bool *needed = MOE_NEW_N(x->a, bool, x->n_items);
    for (size_t i = 0; i < x->n_items; i++)
        x->items[i].kind = is_feeder(b, &x->items[i]) ? ITEM_FEEDER : ITEM_STEP;
    for (size_t i = x->n_items; i-- > 0;) {
        OverlapItem *it = &x->items[i];
        bool comm = moe_group_is_comm(group_of_item(b, it)) && it->n_groups == 1;
        for (size_t k = 0; k < it->n_users; k++) {
            const OverlapItem *u = &x->items[it->users[k]];
            bool kernel = u->kind == ITEM_STEP || u->kind == ITEM_FILLER;
            needed[i] |= u->phase == it->phase && (kernel || needed[it->users[k]]);
        }
        if (it->kind == ITEM_FEEDER)
            continue;
        if (!comm)
            it->kind = needed[i] || it->n_groups > 1 || it->phase == MOE_PHASE_UPDATE ? ITEM_STEP
                                                                                       : ITEM_FILLER;
        else if (!is_exchange(b, it))
            it->kind = ITEM_WAIT;
        else if (only_gathers(b, it) && needs_parameters(b, it, true))
            it->kind = ITEM_GATHER;
        else
            it->kind = needed[i] ? ITEM_COMM : ITEM_LATE;
    }
}

/* ---- what they take ---- */

static void make_steps(Build *b, const MoeTarget *t, const MoeCommModel *m) {
    Overlap *x = b->x;
    int *order = MOE_NEW_N(x->a, int, x->whole.n_groups);
    size_t n = 0;
    for (size_t i = 0; i < x->n_items; i++)
        for (size_t k = 0; k < x->items[i].n_groups; k++)
            order[n++] = x->items[i].groups[k];
    MoeGroupStep *steps;
    size_t n_steps = moe_groups_steps(&x->whole, order, n, x->chunks, x->a, &steps);
    x->problem = moe_predict_problem(t, &x->whole, steps, n_steps, m, x->a);
    bool *counted = moe_groups_counted(x->g, &x->whole, x->micro_batches, x->a);
    x->counted = MOE_NEW_N(x->a, bool, n_steps);
    for (size_t s = 0; s < n_steps; s++) {
        OverlapItem *it = &x->items[b->item_of[steps[s].group]];
        MOE_PUSH(x->a, it->steps, it->n_steps, it->cap_steps, (int)s);
        x->counted[s] = counted[steps[s].group];
        it->seconds += x->problem.steps[s].seconds;
        double alone = it->kind == ITEM_COMM ? moe_sim_alone(&x->problem, &x->problem.steps[s]) : 0;
        x->longest_comm = alone > x->longest_comm ? alone : x->longest_comm;
    }
}

/* ---- memory ---- */

/* The value whose memory v is. */
static const MoeValue *root_of(const MoeValue *v) {
    while (moe_op_info(v->def->opcode)->kind == MOE_KIND_SYNC || moe_op_is_in_place(v->def))
        v = v->def->operands[0];
    return v;
}

/* Item i reads all inputs of the group, as far as they have memory. */
static void add_reads(Build *b, const int *value_of, int i, const MoeGroup *g) {
    OverlapItem *it = &b->x->items[i];
    for (size_t k = 0; k < g->n_inputs; k++) {
        int v = value_of[root_of(g->inputs[k])->id];
        if (v >= 0)
            add_once(b->x->a, &it->reads, &it->n_reads, &it->cap_reads, v);
    }
}

/* Results of a group that may take over the memory of what it reads, as memplan does it. */
static void add_aliases(Build *b, const int *value_of, OverlapItem *it, const MoeTarget *t,
                        const MoeGroup *g) {
    for (size_t i = 0; i < g->n_outputs && !moe_group_is_comm(g); i++)
        for (size_t k = 0; k < g->n_inputs; k++) {
            const MoeValue *u = root_of(g->inputs[k]), *v = g->outputs[i];
            struct OverlapAlias pair = {value_of[u->id], value_of[v->id]};
            if (pair.from >= 0 && moe_type_bytes(&u->type) == moe_type_bytes(&v->type) &&
                (it->n_groups == 1 || u->type.dims[0].seg == v->type.dims[0].seg) &&
                t->can_alias(t, g, g->inputs[k], v))
                MOE_PUSH(b->x->a, it->aliases, it->n_aliases, it->cap_aliases, pair);
        }
}

static void mark_read(const Overlap *x, bool *read) {
    for (size_t i = 0; i < x->whole.n_groups; i++)
        for (size_t k = 0; k < x->whole.groups[i].n_inputs; k++)
            read[root_of(x->whole.groups[i].inputs[k])->id] = true;
    for (size_t i = 0; i < x->g->n_ops; i++)
        if (x->g->ops[i]->opcode == MOE_OP_OUTPUT)
            read[root_of(x->g->ops[i]->operands[0])->id] = true;
}

static void make_values(Build *b, const MoeTarget *t, const MoeMesh *mesh) {
    Overlap *x = b->x;
    int *value_of = MOE_NEW_N(x->a, int, x->g->n_values);
    bool *read = MOE_NEW_N(x->a, bool, x->g->n_values);
    for (int i = 0; i < x->g->n_values; i++)
        value_of[i] = -1;
    mark_read(x, read);
    for (size_t i = 0; i < x->whole.n_groups; i++) {
        const MoeGroup *g = &x->whole.groups[i];
        for (size_t k = 0; k < g->n_outputs && !moe_op_is_in_place(g->ops[0]); k++) {
            OverlapValue v = {moe_value_expected_bytes(g->outputs[k]), b->item_of[i], 0};
            if (!read[g->outputs[k]->id])
                continue; /* made, but wanted by nobody */
            value_of[g->outputs[k]->id] = (int)x->n_values;
            MOE_PUSH(x->a, x->values, x->n_values, x->cap_values, v);
            x->items[b->item_of[i]].makes += v.bytes;
        }
        if (moe_group_is_comm(g) && g->ops[0]->opcode != MOE_OP_WAIT)
            x->items[b->item_of[i]].staging += moe_comm_staging(g, mesh);
    }
    for (size_t i = 0; i < x->whole.n_groups; i++) {
        const MoeGroup *g = &x->whole.groups[i];
        add_reads(b, value_of, b->item_of[i], g);
        add_aliases(b, value_of, &x->items[b->item_of[i]], t, g);
        if (g->ops[0]->opcode == MOE_OP_WAIT) /* what the exchange reads stays until then */
            add_reads(b, value_of, b->item_of[i],
                      &x->whole.groups[x->whole.step_of[g->ops[0]->operands[0]->id]]);
    }
    for (size_t i = 0; i < x->n_items; i++)
        for (size_t k = 0; k < x->items[i].n_reads; k++)
            x->values[x->items[i].reads[k]].readers++;
    for (size_t i = 0; i < x->g->n_ops; i++)
        if (x->g->ops[i]->opcode == MOE_OP_OUTPUT) {
            int v = value_of[root_of(x->g->ops[i]->operands[0])->id];
            if (v >= 0)
                x->values[v].readers = 0;
        }
}

static void sum_gathers(Build *b) {
    Overlap *x = b->x;
    for (size_t i = 0; i < x->n_items; i++) {
        const MoeOp *op = group_of_item(b, &x->items[i])->ops[0];
        int64_t layer = moe_attr_i_or(op, "layer", -1), sum = 0;
        if (x->items[i].kind != ITEM_GATHER)
            continue;
        for (size_t k = 0; k < x->n_items; k++)
            if (x->items[k].kind == ITEM_GATHER && x->items[k].phase == x->items[i].phase &&
                moe_attr_i_or(group_of_item(b, &x->items[k])->ops[0], "layer", -1) == layer)
                sum += x->items[k].makes;
        x->layer_gathers = sum > x->layer_gathers ? sum : x->layer_gathers;
    }
}

Overlap *moe_overlap_items(const MoeGraph *g, const MoeTarget *t, const MoeCommModel *m, int chunks,
                           int micro_batches, MoeArena *a) {
    Overlap *x = MOE_NEW_N(a, Overlap, 1);
    *x = (Overlap){.a = a, .g = g, .chunks = chunks, .micro_batches = micro_batches};
    x->whole = moe_groups_whole(g, a);
    size_t n = x->whole.n_groups;
    Build b = {.x = x, .loop_of = MOE_NEW_N(a, int, n), .item_of = MOE_NEW_N(a, int, n)};
    make_loops(&b);
    make_items(&b);
    link_items(&b);
    classify(&b);
    make_steps(&b, t, m);
    make_values(&b, t, &m->mesh);
    sum_gathers(&b);
    return x;
}
