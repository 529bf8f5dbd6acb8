/* See predict.h. In: groups of a graph. Out: steps for the simulator, seconds of an optimiser step. */
#include "passes/predict.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "passes/predict_ranks.h"

/* ---- steps ---- */

/* The part of all choices that is for this rank: E / ep of E experts, or slots, which all have their share of rows, of so many ranks. */
static double chosen_here(const MoeOp *plan) {
    if (plan->n_operands == 2)
        return 1.0 / (double)moe_attr_i(plan->operands[0]->def, "ranks");
    return fmin(1, (double)moe_attr_i(plan, "slots") / (double)plan->operands[1]->type.dims[0].size);
}

/* Tokens choose k experts: the part of those that come here at all whose first choice is in chunk `part` of `parts`. */
static double share_of_sent(const MoeOp *plan, int part, int parts) {
    double k = (double)moe_type_cols(&plan->operands[0]->type), here = chosen_here(plan);
    double before = 1 - pow(1 - here * part / parts, k), after = 1 - pow(1 - here * (part + 1) / parts, k);
    return (after - before) / (1 - pow(1 - here, k));
}

double moe_predict_share(const MoeGroup *g, int part, int parts) {
    const MoeOp *plan;
    if (parts < 2)
        return 1;
    return moe_group_chunk_role(g, &plan) == MOE_CHUNK_SEND ? share_of_sent(plan, part, parts)
                                                            : 1.0 / parts;
}

static int stretch_of(MoePhase ph) {
    return ph <= MOE_PHASE_BACKWARD ? 0 : (int)ph;
}

typedef struct {
    const MoeGroups *whole;
    const MoeGroupStep *steps;
    size_t n;
    int *first; /* by group: the first of its entries in at[] */
    int *parts; /* by group: how many */
    int *at;    /* steps */
    MoeChunkRole *role;
    bool *waited; /* by group: an exchange that a later step waits for */
    MoeArena *a;
} Steps;

static void index_steps(Steps *s) {
    size_t n = s->whole->n_groups;
    s->first = MOE_NEW_N(s->a, int, n + 1);
    s->parts = MOE_NEW_N(s->a, int, n);
    s->at = MOE_NEW_N(s->a, int, s->n);
    s->role = MOE_NEW_N(s->a, MoeChunkRole, n);
    s->waited = moe_groups_waited(s->whole, s->a);
    for (size_t i = 0; i < s->n; i++)
        s->parts[s->steps[i].group]++;
    for (size_t g = 0; g < n; g++) {
        const MoeOp *plan;
        s->first[g + 1] = s->first[g] + s->parts[g];
        s->role[g] = moe_group_chunk_role(&s->whole->groups[g], &plan);
    }
    for (size_t i = 0; i < s->n; i++)
        s->at[s->first[s->steps[i].group] + s->steps[i].part] = (int)i;
}

/* The steps of group `from` that part `part` of a group needs: its own chunk's, and of rows that arrive all before it too. */
static void need(const Steps *s, MoeSimStep *out, size_t *cap, int from, const MoeGroupStep *me) {
    bool mine = s->parts[from] > 1 && me->parts > 1;
    int lo = mine && s->role[from] != MOE_CHUNK_ARRIVE ? me->part : 0,
        hi = mine ? me->part : s->parts[from] - 1;
    for (int k = lo; k <= hi; k++)
        MOE_PUSH(s->a, out->needs, out->n_needs, *cap, s->at[s->first[from] + k]);
}

static MoeSimStep step_of(const Steps *s, size_t i, const MoeTarget *t, const MoeCommModel *m) {
    const MoeGroupStep *me = &s->steps[i];
    const MoeGroup *g = &s->whole->groups[me->group];
    MoeOpcode op = g->ops[0]->opcode;
    MoeSimStep out = {.kind = MOE_SIM_COMPUTE,
                      .phase = (int)g->ops[0]->phase,
                      .stretch = stretch_of(g->ops[0]->phase)};
    double share = moe_predict_share(g, me->part, me->parts);
    size_t cap = 0;
    if (!moe_group_is_comm(g)) {
        out.seconds = moe_step_cost(t, g, m).seconds * share;
    } else if (op != MOE_OP_WAIT) {
        bool a2a = op == MOE_OP_A2A_DISPATCH || op == MOE_OP_A2A_COMBINE;
        out.kind = a2a ? MOE_SIM_A2A : MOE_SIM_OTHER_COMM;
        out.links = moe_comm_links(g, m);
        out.cores = moe_comm_cores(g, m);
        out.at_once = !s->waited[me->group];
        for (int k = 0; k < MOE_N_LINKS; k++)
            out.links.first[k] *= share;
        out.cores.own *= share;
        out.cores.copy[0] *= share;
    }
    for (size_t k = 0; k < g->n_inputs; k++) {
        int from = moe_groups_source(s->whole, g->inputs[k]);
        if (from >= 0)
            need(s, &out, &cap, from, me);
    }
    return out;
}

MoeSimProblem moe_predict_problem(const MoeTarget *t, const MoeGroups *whole,
                                  const MoeGroupStep *steps, size_t n, const MoeCommModel *m,
                                  MoeArena *a) {
    Steps s = {.whole = whole, .steps = steps, .n = n, .a = a};
    index_steps(&s);
    MoeSimStep *out = MOE_NEW_N(a, MoeSimStep, n);
    for (size_t i = 0; i < n; i++)
        out[i] = step_of(&s, i, t, m);
    MoeSimProblem p = {.steps = out, .n_steps = n};
    for (int k = 0; k < MOE_N_LINKS; k++)
        p.latency[k] = m->cluster.links[k].latency;
    return p;
}

/* ---- an optimiser step ---- */

static void add(MoePrediction *to, MoeSimResult r, double times) {
    to->seconds += times * r.seconds;
    to->compute += times * r.compute;
    to->a2a += times * r.communication[MOE_SIM_A2A];
    to->other += times * r.communication[MOE_SIM_OTHER_COMM];
    to->a2a_exposed += times * r.exposed[MOE_SIM_A2A];
    to->other_exposed += times * r.exposed[MOE_SIM_OTHER_COMM];
}

static void add_bound(MoePrediction *to, MoeSimBound b, double times) {
    to->a2a_bound += times * b.exposed[MOE_SIM_A2A];
    to->bound += times * b.total;
}

/* Runs of the steps: what is run how often. only: by step. */
static void add_runs(const MoeSimProblem *p, const int *order, const bool *only, double times,
                     bool bound, MoePrediction *to) {
    MoeArena *a = moe_arena_create();
    int *some = MOE_NEW_N(a, int, p->n_steps);
    size_t n = 0;
    for (size_t i = 0; i < p->n_steps; i++)
        if (only[order[i]])
            some[n++] = order[i];
    if (n) {
        add(to, moe_simulate(p, some, n), times);
        if (bound)
            add_bound(to, moe_sim_bound(p, only), times);
    }
    moe_arena_destroy(a);
}

static MoePrediction predict(const MoeSimProblem *p, const int *order, const bool *counted,
                             int micro_batches, bool bound) {
    MoePrediction out = {0};
    MoeArena *a = moe_arena_create();
    bool *micro = MOE_NEW_N(a, bool, p->n_steps), *rest = MOE_NEW_N(a, bool, p->n_steps);
    for (size_t i = 0; i < p->n_steps; i++) {
        micro[i] = p->steps[i].stretch == 0;
        rest[i] = !micro[i];
    }
    add_runs(p, order, micro, micro_batches, bound, &out);
    add_runs(p, order, rest, 1, bound, &out);
    if (micro_batches > 1)
        add_runs(p, order, counted, micro_batches, bound, &out);
    moe_arena_destroy(a);
    return out;
}

MoePrediction moe_predict(const MoeSimProblem *p, const int *order, const bool *counted,
                          int micro_batches) {
    return predict(p, order, counted, micro_batches, true);
}

double moe_predict_seconds(const MoeSimProblem *p, const int *order, const bool *counted,
                           int micro_batches) {
    return predict(p, order, counted, micro_batches, false).seconds;
}

MoePrediction moe_predict_graph(const MoePassContext *cx, const MoeGraph *g, const MoeCommModel *m) {
    MoeArena *a = moe_arena_create();
    MoeGroups gs = moe_groups_of(g, a), whole = moe_groups_whole(g, a);
    int micro = cx->options.micro_batches > 1 ? cx->options.micro_batches : 1;
    bool *counted = moe_groups_counted(g, &gs, micro, a);
    int *order = MOE_NEW_N(a, int, gs.n_groups);
    MoeGroupStep *steps;
    for (size_t i = 0; i < gs.n_groups; i++)
        order[i] = (int)i;
    size_t n = moe_groups_steps(&whole, order, whole.n_groups, 0, a, &steps);
    MOE_ASSERT(n == gs.n_groups, "predict: @%s: %zu steps, not %zu", g->name, n, gs.n_groups);
    MoeSimProblem problem = moe_predict_problem(cx->target, &whole, steps, n, m, a);
    MoePrediction out = moe_predict(&problem, order, counted, micro);
    if (cx->skew && strcmp(g->name, "train") == 0 && moe_mesh_size(&m->mesh) <= MOE_PREDICT_MOST_RANKS)
        moe_predict_ranks(cx, &whole, steps, &problem, m, counted, &out);
    moe_arena_destroy(a);
    return out;
}
