/* State rules of experts with copies (docs/PLACEMENT.md). See shard.h. */
#include "passes/shard.h"

#include "base/assert.h"

/* The op's group is the EP group of this division, whose experts have copies. */
static const char *need_copies(MoeShardRules *r, const MoeOp *op, int division) {
    if (!moe_shard_has_copies(r, division))
        return moe_shard_fail(r, "%s: the experts have no copies here",
                              moe_op_info(op->opcode)->name);
    MoeMeshGroup ep = moe_mesh_group_in(MOE_GROUP_EP, division), g = ep;
    if (moe_attr(op, "group") && moe_mesh_group_from_name(moe_attr_s(op, "group"), &g) && g != ep)
        return moe_shard_fail(r, "%s runs in group %s, but what it gets needs group %s",
                              moe_op_info(op->opcode)->name, moe_mesh_group_name(g),
                              moe_mesh_group_name(ep));
    return NULL;
}

/* Operand i is a map of the division's experts. */
static const char *need_map(MoeShardRules *r, const MoeOp *op, const MoeShardState *in, int i,
                            int division) {
    return moe_shard_is_whole(&in[i]) && in[i].division == division && in[i].rows == MOE_ROWS_NONE
               ? NULL
               : moe_shard_needs(r, op, in, i, "the map of the layer's experts");
}

/* Operand i is what copy_plan says of a group: the same on its ranks alone. */
static const char *need_own(MoeShardRules *r, const MoeOp *op, const MoeShardState *in, int i,
                            int division) {
    return in[i].own && in[i].division == division
               ? NULL
               : moe_shard_needs(r, op, in, i, "a table of copy_plan, or ep_rank, of the layer");
}

/* ids (T, K), all (Tg, K), copies (G) -> ids', all', counts (E, V), runs (G, 2) */
const char *moe_shard_copy_plan(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    int division = in[2].division;
    int64_t ep = moe_shard_group_size(r, MOE_GROUP_EP, division);
    if (in[0].rows != MOE_ROWS_TOKENS || !moe_shard_is_whole(&in[0]))
        return moe_shard_needs(r, op, in, 0, "the choices of this rank's tokens");
    if (in[1].rows != MOE_ROWS_GROUP || in[1].division != division)
        return moe_shard_needs(r, op, in, 1, "the choices of the EP group's tokens");
    const char *problem = need_copies(r, op, division);
    if (!problem)
        problem = need_map(r, op, in, 2, division);
    if (problem)
        return problem;
    if (moe_attr_i(op, "ranks") != ep ||
        moe_attr_i(op, "slots") != moe_shard_slots(r, division, moe_attr_i(op, "experts")))
        return moe_shard_fail(
            r, "copy_plan: %lld ranks of %lld slots, but %lld experts over %lld ranks take %d each",
            (long long)moe_attr_i(op, "ranks"), (long long)moe_attr_i(op, "slots"),
            (long long)moe_attr_i(op, "experts"), (long long)ep,
            moe_shard_slots(r, division, moe_attr_i(op, "experts")));
    for (int i = 2; i < 4; i++) {
        out[i].own = true;
        out[i].division = division;
    }
    return NULL;
}

/* seg, counts, runs, copies, ep_rank -> roots, more */
const char *moe_shard_root_plan(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    int division = in[0].division;
    if (in[0].rows != MOE_ROWS_EXPERTS)
        return moe_shard_needs(r, op, in, 0, "rows of the experts in this rank's slots");
    const char *problem = need_copies(r, op, division);
    for (int i = 1; i < 5 && !problem; i++)
        problem = i == 3 ? need_map(r, op, in, i, division) : need_own(r, op, in, i, division);
    out[0].rows = MOE_ROWS_EXPERTS;
    out[1].rows = MOE_ROWS_ROOTS;
    out[0].division = out[1].division = division;
    return problem;
}

/* dy (R, n), x (R, k), roots, more -> (slots, n, k), (M, n, k): what fold_copies adds up over the EP group */
const char *moe_shard_root_grad(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    int division = in[0].division;
    if (in[0].rows != MOE_ROWS_EXPERTS || in[1].rows != MOE_ROWS_EXPERTS)
        return moe_shard_needs(r, op, in, 0, "rows of the experts in this rank's slots");
    if (in[2].rows != MOE_ROWS_EXPERTS || in[2].division != division)
        return moe_shard_needs(r, op, in, 2, "the roots of these rows");
    if (in[3].rows != MOE_ROWS_ROOTS || in[3].division != division)
        return moe_shard_needs(r, op, in, 3, "the roots of these rows");
    const char *problem = need_copies(r, op, division);
    if (problem)
        return problem;
    MoeShardState tp[2] = {moe_shard_whole(), moe_shard_whole()};
    problem = moe_shard_factors(r, op, "tn,tk,*,*->gnk,gnk", in, tp);
    for (int i = 0; i < 2 && !problem; i++) {
        out[i].partial = (int)moe_mesh_group_in(MOE_GROUP_EP, division);
        out[i].division = division;
        out[i].tp = tp[i].tp;
    }
    out[0].slots = MOE_SLOTS_MINE;
    return problem;
}

/* w, place, copies -> w with the slots of copies filled */
const char *moe_shard_copy_experts(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                   MoeShardState *out) {
    if (in[0].slots != MOE_SLOTS_MINE || in[0].partial >= 0 || in[0].tp == MOE_TP_PARTIAL)
        return moe_shard_needs(r, op, in, 0, "a parameter of this rank's slots");
    const char *problem = need_copies(r, op, in[0].division);
    for (int i = 1; i < 3 && !problem; i++)
        problem = need_map(r, op, in, i, in[0].division);
    out[0] = in[0];
    out[0].copies = true;
    return problem;
}

/* first, rest, counts, runs, copies, place -> (slots, n, k), a term of the sum over the ranks that hold the same experts */
const char *moe_shard_fold_copies(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                  MoeShardState *out) {
    int division = in[0].division, ep = (int)moe_mesh_group_in(MOE_GROUP_EP, division);
    if (in[0].slots != MOE_SLOTS_MINE || in[0].partial != ep)
        return moe_shard_needs(r, op, in, 0, "the roots of this rank's slots (root_grad)");
    if (in[1].rows != MOE_ROWS_ROOTS || in[1].partial != ep || in[1].tp != in[0].tp)
        return moe_shard_needs(r, op, in, 1, "the other roots of the same slots (root_grad)");
    const char *problem = need_copies(r, op, division);
    for (int i = 2; i < 6 && !problem; i++)
        problem = i < 4 ? need_own(r, op, in, i, division) : need_map(r, op, in, i, division);
    MoeMeshGroup sum = moe_mesh_group_in(MOE_GROUP_EXPERT_DATA, division);
    out[0] = in[0];
    out[0].partial = moe_mesh_group_size(r->mesh, sum) > 1 ? (int)sum : -1;
    return problem;
}
