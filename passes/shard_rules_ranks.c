/* State rules of the ops between ranks. See shard.h and the table in docs/RANKS.md. */
#include "base/assert.h"
#include "passes/shard.h"

static MoeMeshGroup group_of(const MoeOp *op, const char *key) {
    MoeMeshGroup g = MOE_GROUP_WORLD;
    bool known = moe_mesh_group_from_name(moe_attr_s(op, key), &g);
    MOE_ASSERT(known, "%s: group %s", moe_op_info(op->opcode)->name, moe_attr_s(op, key));
    return g;
}

static const char *need_group(MoeShardRules *r, const MoeOp *op, MoeMeshGroup expected) {
    MoeMeshGroup g = group_of(op, "group");
    if (g == expected)
        return NULL;
    return moe_shard_fail(r, "%s runs in group %s, but what it gets needs group %s",
                          moe_op_info(op->opcode)->name, moe_mesh_group_name(g),
                          moe_mesh_group_name(expected));
}

static const char *need_ranks(MoeShardRules *r, const MoeOp *op, const char *key, MoeMeshGroup g) {
    int64_t n = moe_attr_i(op, key);
    if (n == moe_mesh_group_size(r->mesh, g))
        return NULL;
    return moe_shard_fail(r, "%s: %s = %lld, but group %s has %d ranks",
                          moe_op_info(op->opcode)->name, key, (long long)n, moe_mesh_group_name(g),
                          moe_mesh_group_size(r->mesh, g));
}

static const char *need_unit(MoeShardRules *r, const MoeOp *op, int64_t unit) {
    if (moe_attr_i(op, "unit") == unit)
        return NULL;
    return moe_shard_fail(
        r, "%s: unit = %lld, but these slices are cut at multiples of %lld elements",
        moe_op_info(op->opcode)->name, (long long)moe_attr_i(op, "unit"), (long long)unit);
}

const char *moe_shard_all_gather(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                 MoeShardState *out) {
    if (in[0].slice < 0 || in[0].partial >= 0)
        return moe_shard_needs(r, op, in, 0, "a slice");
    const char *problem = need_group(r, op, (MoeMeshGroup)in[0].slice);
    out[0] = in[0];
    out[0].slice = -1;
    out[0].unit = 0;
    return problem ? problem : need_unit(r, op, in[0].unit);
}

/* Rows of tokens to those of the group, or what this rank's slots have to what all slots have, or rows divided over tp. */
const char *moe_shard_all_gather_rows(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                      MoeShardState *out) {
    if (group_of(op, "group") == MOE_GROUP_TP) {
        if (in[0].tp != 0 || in[0].slice >= 0 || in[0].partial >= 0 || in[0].slots)
            return moe_shard_needs(r, op, in, 0, "rows divided over group tp");
        return need_ranks(r, op, "ranks", MOE_GROUP_TP);
    }
    MoeShardState x = in[0];
    MoeMeshGroup ep = moe_mesh_group_in(MOE_GROUP_EP, in[op->n_operands - 1].division);
    const char *problem = need_group(r, op, ep);
    if (!problem)
        problem = need_ranks(r, op, "ranks", ep);
    if (problem)
        return problem;
    if (op->n_operands == 2) {
        if (x.rows != MOE_ROWS_TOKENS || !moe_shard_is_whole(&x))
            return moe_shard_needs(r, op, in, 0, "rows of this rank's tokens");
        if (in[1].rows != MOE_ROWS_GROUP)
            return moe_shard_needs(r, op, in, 1, "the rows of the EP group's tokens");
        return NULL;
    }
    if (x.slots != MOE_SLOTS_MINE || x.slice >= 0 || x.partial >= 0)
        return moe_shard_needs(r, op, in, 0, "what this rank's slots have");
    out[0] = x;
    out[0].slots = MOE_SLOTS_ALL;
    return NULL;
}

const char *moe_shard_reduce_scatter(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                     MoeShardState *out) {
    MoeMeshGroup sum = group_of(op, "sum"), scatter = group_of(op, "scatter");
    bool has_term = in[0].partial >= 0;
    if (has_term ? (int)sum != in[0].partial : moe_mesh_group_size(r->mesh, sum) > 1)
        return moe_shard_needs(
            r, op, in, 0,
            moe_arena_printf(r->a, "a term of a sum over group %s", moe_mesh_group_name(sum)));
    if (in[0].slice >= 0)
        return moe_shard_needs(r, op, in, 0, "the whole tensor");
    MoeMeshGroup whose =
        moe_mesh_group_kind(sum) == MOE_GROUP_EXPERT_DATA
            ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, moe_mesh_group_division(sum))
            : MOE_GROUP_DENSE_SHARD;
    if (scatter != whose)
        return moe_shard_fail(
            r, "reduce_scatter: a sum over group %s is shared out in group %s, not %s",
            moe_mesh_group_name(sum), moe_mesh_group_name(whose), moe_mesh_group_name(scatter));
    const char *problem = need_ranks(r, op, "parts", scatter);
    out[0] = in[0];
    out[0].partial = -1;
    out[0].slice = moe_mesh_group_size(r->mesh, scatter) > 1 ? (int)scatter : -1;
    out[0].unit = out[0].slice >= 0 ? MOE_SLICE_BLOCK : 0;
    return problem ? problem : need_unit(r, op, MOE_SLICE_BLOCK);
}

const char *moe_shard_all_reduce(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                 MoeShardState *out) {
    MoeMeshGroup g = group_of(op, "group");
    out[0] = in[0];
    if (g == MOE_GROUP_TP && in[0].tp == MOE_TP_PARTIAL && in[0].partial < 0) {
        out[0].tp = MOE_TP_WHOLE;
        return NULL;
    }
    if ((int)g != in[0].partial)
        return moe_shard_needs(
            r, op, in, 0,
            moe_arena_printf(r->a, "a term of a sum over group %s", moe_mesh_group_name(g)));
    out[0].partial = -1;
    return NULL;
}

/* x (T, C), idx (S), inv (U, K) -> (U, C) */
const char *moe_shard_a2a_dispatch(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                   MoeShardState *out) {
    const char *problem = need_group(r, op, moe_mesh_group_in(MOE_GROUP_EP, in[1].division));
    if (problem)
        return problem;
    if (in[0].rows != MOE_ROWS_TOKENS)
        return moe_shard_needs(r, op, in, 0, "rows of this rank's tokens");
    if (in[1].rows != MOE_ROWS_SENT)
        return moe_shard_needs(r, op, in, 1, "send_plan's rows to send");
    if (in[2].rows != MOE_ROWS_RECEIVED || in[2].division != in[1].division)
        return moe_shard_needs(r, op, in, 2, "expert_plan's received rows");
    return moe_shard_factors(r, op, "*c+,*,*K->*c+", in, out);
}

/* A plan, or rows that come home, by experts (with place, operand 1) or by global slots: as the layer's experts have copies or not. */
static const char *need_place(MoeShardRules *r, const MoeOp *op, bool place, int division) {
    if (place != moe_shard_has_copies(r, division))
        return NULL;
    return moe_shard_fail(r, place ? "%s goes by experts (place), but these have copies"
                                   : "%s goes by global slots, but experts have no copies here",
                          moe_op_info(op->opcode)->name);
}

/* y (R, C) (, place (E)), src (R at home) -> (R at home, C) */
const char *moe_shard_a2a_combine(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                  MoeShardState *out) {
    const char *problem = need_group(r, op, moe_mesh_group_in(MOE_GROUP_EP, in[0].division));
    bool place = op->n_operands == 3;
    if (!problem)
        problem = need_place(r, op, place, in[0].division);
    if (problem)
        return problem;
    if (place && in[1].division != in[0].division)
        return moe_shard_needs(r, op, in, 1, "the map of the rows' layer");
    if (in[0].rows != MOE_ROWS_EXPERTS)
        return moe_shard_needs(r, op, in, 0, "rows of the experts in this rank's slots");
    if (in[op->n_operands - 1].rows != MOE_ROWS_PAIRS)
        return moe_shard_needs(r, op, in, op->n_operands - 1, "this rank's own pairs");
    return moe_shard_factors(r, op, place ? "*c+,E,*->*c+" : "*c+,*->*c+", in, out);
}

/* The copy_plan that made the choices by global slot; NULL: not such. */
static const MoeOp *copy_plan_of(const MoeOp *op, int result) {
    const MoeValue *ids = op->operands[0];
    return ids->def->opcode == MOE_OP_COPY_PLAN && ids->result == result ? ids->def : NULL;
}

/* What a plan goes by (place, or choices that copy_plan made: its result), and the division. */
static const char *need_map(MoeShardRules *r, const MoeOp *op, bool place, int result,
                            const MoeShardState *in, int *division) {
    const MoeOp *plan = copy_plan_of(op, result);
    if (place && !moe_shard_is_whole(&in[1]))
        return moe_shard_needs(r, op, in, 1, "it whole");
    if (!place && !plan)
        return moe_shard_needs(r, op, in, 0, "choices by global slot (copy_plan)");
    *division = place ? in[1].division : moe_shard_state(r, plan->operands[2])->division;
    return need_place(r, op, place, *division);
}

/* Slots of a rank, of the experts that place (operand 1) maps or copy_plan found copies of. */
static const char *need_slots(MoeShardRules *r, const MoeOp *op, bool place, int division) {
    int experts = place ? (int)op->operands[1]->type.dims[0].size
                        : (int)moe_attr_i(op->operands[0]->def, "experts"),
        slots = moe_shard_slots(r, division, experts);
    if (moe_attr_i(op, "slots") == slots)
        return NULL;
    return moe_shard_fail(r, "%s: slots = %lld, but %d experts over %d ranks take %d each",
                          moe_op_info(op->opcode)->name, (long long)moe_attr_i(op, "slots"),
                          experts, moe_shard_group_size(r, MOE_GROUP_EP, division), slots);
}

const char *moe_shard_send_plan(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    bool place = op->n_operands == 2;
    int division = 0;
    if (in[0].rows != MOE_ROWS_TOKENS || !moe_shard_is_whole(&in[0]))
        return moe_shard_needs(r, op, in, 0, "the choices of this rank's tokens");
    const char *problem = need_map(r, op, place, 0, in, &division);
    if (!problem)
        problem = need_slots(r, op, place, division);
    out[0].rows = MOE_ROWS_SENT;
    out[0].division = division;
    return problem ? problem
                   : need_ranks(r, op, "ranks", moe_mesh_group_in(MOE_GROUP_EP, division));
}

const char *moe_shard_expert_plan(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                  MoeShardState *out) {
    bool place = op->n_operands == 3;
    int division = 0, last = op->n_operands - 1;
    if (in[0].rows != MOE_ROWS_GROUP)
        return moe_shard_needs(r, op, in, 0, "the choices of the EP group's tokens");
    const char *problem = need_map(r, op, place, 1, in, &division);
    if (problem)
        return problem;
    if (!in[last].own)
        return moe_shard_needs(r, op, in, last, "the input ep_rank");
    for (int i = 0; i <= last; i += last)
        if (in[i].division != division)
            return moe_shard_needs(r, op, in, i, "it in the division of the layer's experts");
    out[0].rows = MOE_ROWS_RECEIVED;
    out[1].rows = MOE_ROWS_EXPERTS;
    out[0].division = out[1].division = division;
    return need_slots(r, op, place, division);
}

/* ---- the gradient norm ---- */

/* A slice's blocks are a slice of the blocks. */
const char *moe_shard_block_squares(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                    MoeShardState *out) {
    if (in[0].partial >= 0 || in[0].tp == MOE_TP_PARTIAL || in[0].rows != MOE_ROWS_NONE ||
        in[0].own)
        return moe_shard_needs(r, op, in, 0, "a gradient summed over ranks");
    out[0] = in[0];
    out[0].unit = in[0].slice >= 0 ? 1 : 0;
    if (out[0].tp >= 0)
        out[0].tp = MOE_TP_PART;
    return NULL;
}

const char *moe_shard_block_tree(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                 MoeShardState *out) {
    MoeSlots slots = op->n_operands == 2 ? MOE_SLOTS_ALL : MOE_SLOTS_NONE;
    if (in[0].partial >= 0 || in[0].slice >= 0 || in[0].tp == MOE_TP_PARTIAL || in[0].own)
        return moe_shard_needs(r, op, in, 0, "all blocks");
    if (in[0].slots != slots)
        return moe_shard_needs(r, op, in, 0,
                               slots ? "what all slots have"
                                     : "the blocks in order (place orders slots)");
    if (slots && (!moe_shard_is_whole(&in[1]) || in[1].division != in[0].division))
        return moe_shard_needs(r, op, in, 1, "it whole, of the same layer");
    if (in[0].tp != MOE_TP_WHOLE)
        out[0].tp = MOE_TP_PARTIAL;
    return NULL;
}
