/* kernels: asks the target for the launches of every group, and predicts what each costs.
 *
 * In: grouped graphs with memory plans. Out: cx->programs[i].steps, one a group in program order. Exchanges between ranks, and
 * the waits for them, have no launches.
 * count_pass marks the steps that the counting pass of several micro-batches repeats. */
#include <string.h>
#include "base/assert.h"
#include "passes/group.h"
#include "passes/pass.h"
#include "passes/predict.h"

/* A launch may only name what the plan can give it. */
static void check_launches(const MoeGroup *g, const MoeLowered *low, int64_t workspace) {
    for (size_t i = 0; i < low->n_launches; i++) {
        const MoeLaunch *l = &low->launches[i];
        for (size_t k = 0; k < l->n_bufs; k++) {
            const MoeBufRef *b = &l->bufs[k];
            if (!b->value) {
                MOE_ASSERT(b->offset >= 0 && b->offset <= workspace,
                           "kernel %s: workspace offset %lld of %lld", l->kernel,
                           (long long)b->offset, (long long)workspace);
                continue;
            }
            MOE_ASSERT(moe_group_has_input(g, b->value) || moe_group_has_output(g, b->value),
                       "kernel %s (%s): buffer %zu is neither input nor output of its group",
                       l->kernel, moe_op_info(g->ops[0]->opcode)->name, k);
            MOE_ASSERT(b->value->def->opcode != MOE_OP_CONST,
                       "kernel %s: buffer %zu is a constant, which has no memory", l->kernel, k);
        }
    }
}

static void set_cost(MoeStep *st, MoeCost c) {
    double share = moe_predict_share(&st->group, st->group.part, st->group.parts);
    st->flops = c.flops * share;
    st->bytes = c.bytes * share;
    st->seconds = c.seconds * share;
}

static MoeStatus lower_graph(MoePassContext *cx, size_t index, const MoeCommModel *model) {
    const MoeGraph *g = cx->module->graphs[index];
    MoeProgram *p = &cx->programs[index];
    MoeGroups gs = moe_groups_of(g, cx->arena);
    bool *count = moe_groups_counted(g, &gs, cx->options.micro_batches, cx->arena);
    p->graph = g;
    p->steps = MOE_NEW_N(cx->arena, MoeStep, gs.n_groups);
    p->n_steps = gs.n_groups;
    p->scratch_bytes = 0;
    for (size_t s = 0; s < gs.n_groups; s++) {
        MoeStep *st = &p->steps[s];
        st->group = gs.groups[s];
        st->phase = st->group.ops[0]->phase;
        st->count_pass = count[s];
        st->lowered.arena = cx->arena;
        if (!moe_group_has_kernel(&st->group)) { /* the runtime does it */
            set_cost(st, moe_step_cost(cx->target, &st->group, model));
            continue;
        }
        MoeStatus e = cx->target->lower(cx->target, &st->group, &st->lowered);
        if (e)
            return moe_status_prefix(e, "@%s: %s", g->name,
                                     moe_op_info(st->group.ops[0]->opcode)->name);
        check_launches(&st->group, &st->lowered, p->memory.workspace_bytes[s]);
        if (st->lowered.scratch_bytes > p->scratch_bytes)
            p->scratch_bytes = st->lowered.scratch_bytes;
        set_cost(st, moe_step_cost(cx->target, &st->group, model));
    }
    p->predicted = moe_predict_graph(cx, g, model);
    return NULL;
}

MoeStatus moe_pass_kernels(MoePassContext *cx) {
    if (!cx->target)
        return moe_error(MOE_E_INTERNAL, "the kernels pass needs a target");
    MOE_ASSERT(cx->programs, "kernels: memplan must run first");
    MoeCommModel model;
    moe_comm_model(cx, &model);
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        MOE_TRY(lower_graph(cx, i, &model));
    return NULL;
}
