/* Experts with copies on other ranks (docs/PLACEMENT.md). In: an op of the old graph, in a layer whose map has slots for copies. Out: its
 * ops at the end of the new one.
 *
 *   %s, %src, %inv = route_plan %ids     %ids', %all', %counts, %runs = copy_plan %ids, %all, %copies; the plans go by %ids', %all'
 *   %y = matmul %x, %w {grouped = 1}     %c = copy_experts %w, %place, %copies; %y = matmul %x, %c       (%w: the parameter)
 *   %d = weight_grad %dy, %x             %roots, %more = root_plan %seg, %counts, %runs, %copies, %ep_rank
 *                                        %first, %rest = root_grad %dy, %x, %roots, %more
 *                                        %d = fold_copies %first, %rest, %counts, %runs, %copies, %place */
#include "base/split.h"
#include "passes/shard_build.h"

static const char *ep_group(const MoeShardRoute *r) {
    return moe_mesh_group_name(moe_mesh_group_in(MOE_GROUP_EP, r->division));
}

MoeStatus moe_shard_copy_plan_of(MoeShard *s, MoeValue *ids, MoeValue *all, int64_t experts,
                                 MoeShardRoute *r) {
    MoeOp *plan = moe_op_build(s->g, MOE_OP_COPY_PLAN, (MoeValue *[]){ids, all, r->copies}, 3,
                               moe_ai("experts", experts), moe_ai("ranks", r->ep),
                               moe_ai("slots", r->copies->type.dims[0].size / r->ep), MOE_END);
    r->choices = plan->results[0];
    r->all_choices = plan->results[1];
    r->counts = plan->results[2];
    r->runs = plan->results[3];
    return moe_shard_note(s, plan);
}

/* ---- weights ---- */

/* Filled once a run of the graph, in the parameter's own memory, before anything reads it. */
MoeStatus moe_shard_copied(MoeShard *s, const MoeValue *old, MoeValue **out) {
    MoeShardMapped *m = &s->map[old->id];
    const MoeShardParam *p = old->def->opcode == MOE_OP_PARAM
                                 ? moe_shard_param(s->params, moe_attr_s(old->def, "name"))
                                 : NULL;
    const MoeShardRoute *r = p && p->expert ? moe_shard_route_of_layer(s, p->layer) : NULL;
    *out = m->now;
    if (!r || !r->copies)
        return NULL;
    if (!m->copied) {
        MoePhase phase = s->g->phase;
        int layer = s->g->layer;
        s->g->phase = MOE_PHASE_FORWARD;
        s->g->layer = p->layer;
        m->copied =
            moe_build(s->g, MOE_OP_COPY_EXPERTS, (MoeValue *[]){m->now, r->place, r->copies}, 3,
                      moe_as("group", ep_group(r)), MOE_END);
        s->g->phase = phase;
        s->g->layer = layer;
        MOE_TRY(moe_shard_note(s, m->copied->def));
    }
    *out = m->copied;
    return NULL;
}

/* ---- gradients ---- */

/* Roots beyond the first of their slot that are expected: a copy shares its expert's rows with one other slot, and each of the two cuts
 * makes a root more or so. */
static int64_t expected_roots(const MoeShard *s, const MoeShardRoute *r) {
    int64_t slots = r->seg->type.groups, most = slots * (MOE_COPY_ROOTS - 1),
            n = 2 * (int64_t)s->mesh->extra_slots;
    return n < most ? n : most;
}

static MoeStatus root_plan(MoeShard *s, MoeShardRoute *r) {
    if (r->roots)
        return NULL;
    MoePhase phase = s->g->phase;
    MoeValue *operands[] = {r->seg, r->counts, r->runs, r->copies, s->ep_rank[r->division]};
    s->g->phase = MOE_PHASE_FORWARD; /* with the other plans: none of them is made again */
    MoeOp *plan = moe_op_build(s->g, MOE_OP_ROOT_PLAN, operands, 5,
                               moe_ai("expect", expected_roots(s, r)), MOE_END);
    s->g->phase = phase;
    r->roots = plan->results[0];
    r->more = plan->results[1];
    return moe_shard_note(s, plan);
}

MoeStatus moe_shard_copies_grad(MoeShard *s, const MoeOp *op, MoeShardRoute *r) {
    MoeValue *dy, *x;
    MOE_TRY(moe_shard_operand(s, op, 0, &dy));
    MOE_TRY(moe_shard_operand(s, op, 1, &x));
    MOE_TRY(root_plan(s, r));
    MoeOp *grad =
        moe_op_build(s->g, MOE_OP_ROOT_GRAD, (MoeValue *[]){dy, x, r->roots, r->more}, 4, MOE_END);
    grad->loc = op->loc;
    MOE_TRY(moe_shard_note(s, grad));
    MoeValue *operands[] = {grad->results[0], grad->results[1], r->counts,
                            r->runs,          r->copies,        r->place};
    MoeValue *sum =
        moe_build(s->g, MOE_OP_FOLD_COPIES, operands, 6, moe_as("group", ep_group(r)), MOE_END);
    sum->name = op->results[0]->name;
    s->map[op->results[0]->id].now = sum;
    MOE_TRY(moe_shard_note(s, sum->def));
    return moe_shard_reduce_gradient(s, op->results[0]);
}
