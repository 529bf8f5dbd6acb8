/* overlap: orders steps so that communication runs beside compute (docs/RANKS.md, "Overlap").
 *
 * In: grouped graphs of several ranks. Out: the same groups in another order, with a `wait` for each exchange before its first
 * reader, and chunks in the plans of expert rows where that pays.
 *
 *   dispatch 0, wait, experts 0, combine 0, wait, gradient of a weight, dispatch 1, wait, ...
 *   dispatch 0, gradient of a weight, wait, experts 0, combine 0, dispatch 1, wait, ...
 *
 * A list scheduler (overlap_schedule.c) makes orders for a few policies and numbers of chunks; the simulator says what each
 * takes with the cost model's seconds. The fastest within the memory allowed is kept; the order given, each exchange waited for
 * at once, if none is faster. Nothing is changed on one rank. */
#include "passes/overlap.h"

#include "passes/memplan.h"

/* Memory that lives between steps may grow by this part of what the given order has (and by so little in any case), apart from
 * gathers ahead of their use and sums under way. */
#define GROWTH       0.1
#define GROWTH_LEAST ((int64_t)16 << 10)
/* An order is worth it if it saves this part of the step; more chunks, if they save that much more: of their launches and their
 * short products the cost model knows nothing. */
#define WORTH        1e-3
#define WORTH_CHUNKS 1e-2

typedef struct {
    int chunks;
    int *groups; /* NULL: as given */
    size_t n;
    double seconds;
} Best;

static bool has_exchange(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (moe_op_info(g->ops[i]->opcode)->kind == MOE_KIND_COMM)
            return true;
    return false;
}

/* Parameters and states of a rank. */
static int64_t constant_bytes(const MoeModule *m) {
    int64_t most = 0;
    for (size_t i = 0; i < m->n_graphs; i++) {
        int64_t n = 0;
        for (size_t k = 0; k < m->graphs[i]->n_ops; k++) {
            const MoeOp *op = m->graphs[i]->ops[k];
            if (op->opcode == MOE_OP_PARAM || op->opcode == MOE_OP_STATE)
                n += moe_type_bytes(&op->results[0]->type);
        }
        most = n > most ? n : most;
    }
    return most;
}

static int64_t allowed(int64_t given) {
    int64_t more = (int64_t)(GROWTH * (double)given);
    return given + (more > GROWTH_LEAST ? more : GROWTH_LEAST);
}

static void keep(Best *best, const Overlap *x, const OverlapOrder *o, MoeArena *a) {
    best->chunks = x->chunks;
    best->seconds = o->seconds;
    best->n = 0;
    best->groups = MOE_NEW_N(a, int, x->whole.n_groups);
    for (size_t i = 0; i < x->n_items; i++)
        for (size_t k = 0; k < x->items[o->order[i]].n_groups; k++)
            best->groups[best->n++] = x->items[o->order[i]].groups[k];
}

/* Policies for one number of chunks, those with the least memory first. memory: what may live. asked: the user wants so many. */
static void try_policies(const MoePassContext *cx, const Overlap *x, int64_t memory, bool asked,
                         Best *best, MoeArena *a) {
    static const struct {
        double reserve; /* times the longest exchange */
        int ahead;
        bool eager;
        int under_way; /* sums; layers' gathers */
    } ways[] = {{0, 0, true, 1},    {0, 32, false, 1},   {2, 32, false, 1}, {1e9, 32, false, 1},
                {0, 0, true, 2},    {0, 32, false, 2},   {1, 32, false, 2}, {2, 32, true, 2},
                {2, 32, false, 2},  {4, 32, false, 2},   {8, 32, false, 2}, {1e9, 32, false, 2}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        OverlapPolicy p = {.reserve = ways[i].reserve * x->longest_comm,
                           .ahead = ways[i].ahead,
                           .eager = ways[i].eager,
                           .sums = (size_t)ways[i].under_way,
                           .memory = memory,
                           .gather_bytes = cx->options.gather_bytes};
        if (p.gather_bytes == 0)
            p.gather_bytes = ways[i].under_way * x->layer_gathers;
        OverlapOrder o = moe_overlap_schedule(x, &p);
        double worth = x->chunks > best->chunks ? WORTH_CHUNKS : WORTH;
        bool better = o.seconds < best->seconds * (1 - worth) && o.peak <= memory;
        if (better || (asked && !best->groups))
            keep(best, x, &o, a);
    }
}

/* ---- the memory limit ---- */

static MoeStatus memory_of(const MoePassContext *cx, const MoeGraph *g, int64_t *out) {
    MoeArena *a = moe_arena_create();
    MoeMemoryPlan plan;
    MoeStatus st = moe_memplan_graph(cx->target, g, &cx->options, a, &plan);
    *out = st ? 0 : moe_memplan_expected_bytes(&plan) + constant_bytes(cx->module);
    moe_arena_destroy(a);
    return st;
}

/* Back to the order that `best` came from: group best->groups[i] is i now. */
static void undo(MoeGraph *g, const Best *best, MoeArena *a) {
    int *was = MOE_NEW_N(a, int, best->n);
    for (size_t i = 0; i < best->n; i++)
        was[best->groups[i]] = (int)i;
    moe_overlap_reorder(g, was, best->n);
    moe_overlap_set_chunks(g, 1);
}

/* Takes the new order if the plan keeps to the memory limit with it, or did not before, with as much. */
static MoeStatus apply(const MoePassContext *cx, MoeGraph *g, Best *best, int64_t before,
                       MoeArena *a) {
    int64_t limit = cx->options.memory_limit, after = 0;
    moe_overlap_reorder(g, best->groups, best->n);
    moe_overlap_set_chunks(g, best->chunks);
    if (limit > 0)
        MOE_TRY(memory_of(cx, g, &after));
    if (after > limit && after > before) {
        undo(g, best, a);
        best->groups = NULL;
    }
    return NULL;
}

/* Numbers of chunks to try: one, and those that divide all plans' slots. */
static int choose_chunks(const MoePassContext *cx, const MoeGraph *g, int out[3]) {
    int asked = cx->options.overlap_chunks, n = 1;
    out[0] = 1;
    for (int chunks = asked ? asked : 2; chunks <= (asked ? asked : 4) && chunks > 1; chunks *= 2)
        if (moe_overlap_can_chunk(g, chunks))
            out[n++] = chunks;
    return n;
}

static MoeStatus overlap_graph(const MoePassContext *cx, MoeGraph *g, const MoeCommModel *m) {
    MoeArena *a = moe_arena_create();
    int micro = cx->options.micro_batches, tries[3], n = choose_chunks(cx, g, tries);
    int64_t memory = 0, before = 0;
    Best best = {.chunks = 1};
    MoeStatus st = cx->options.memory_limit > 0 ? memory_of(cx, g, &before) : NULL;
    moe_overlap_add_waits(g);
    for (int i = 0; i < n; i++) {
        bool asked = tries[i] > 1 && tries[i] == cx->options.overlap_chunks;
        MoeArena *scratch = moe_arena_create();
        const Overlap *x =
            moe_overlap_items(g, cx->target, m, tries[i], micro > 1 ? micro : 1, scratch);
        if (i == 0) {
            OverlapOrder given = moe_overlap_as_given(x);
            best.seconds = given.seconds;
            memory = allowed(given.peak);
        }
        if (asked)
            best.groups = NULL; /* whatever is predicted for the whole */
        try_policies(cx, x, memory, asked, &best, a);
        moe_arena_destroy(scratch);
    }
    if (!st && best.groups)
        st = apply(cx, g, &best, before, a);
    moe_overlap_drop_waits(g, !best.groups);
    moe_arena_destroy(a);
    return st;
}

MoeStatus moe_pass_overlap(MoePassContext *cx) {
    if (!cx->options.overlap)
        return NULL;
    if (!cx->target)
        return moe_error(MOE_E_INTERNAL, "the overlap pass needs a target");
    MoeCommModel m;
    moe_comm_model(cx, &m);
    m.skew = NULL; /* the load drifts, and each layer's busiest rank is another: an order for one of them is no good */
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        if (has_exchange(cx->module->graphs[i]))
            MOE_TRY(overlap_graph(cx, cx->module->graphs[i], &m));
    return NULL;
}
