/* The gradient norm of what ranks share out (docs/RANKS.md). In: a sum_squares of the old graph. Out: its ops in the new one.
 *
 *   %n = sum_squares %g      %b = block_squares %g : f32[1]                       the slice's blocks
 *                            %a = all_gather %b {group = "dense_shard", unit = 1, dims = "2"} : f32[2]
 *                            %n = block_tree %a : f32[1]
 * Experts: one row of blocks a slot, all slots by all_gather_rows, the tree in the order of experts by place. */
#include "base/assert.h"
#include "passes/shard_build.h"

/* Blocks of a whole: [B], or [L,B] for L slots. */
static const char *blocks_text(MoeShard *s, const MoeShardParam *p) {
    int64_t n = 1;
    for (int i = p->expert; i < p->part.rank; i++)
        n *= p->part.dims[i].size;
    n = (n + MOE_SLICE_BLOCK - 1) / MOE_SLICE_BLOCK;
    return p->expert
               ? moe_arena_printf(s->a, "%lld,%lld", (long long)p->part.dims[0].size, (long long)n)
               : moe_arena_printf(s->a, "%lld", (long long)n);
}

/* Sums of blocks come together from all slices, and of all experts, before the trees over them. */
static MoeStatus sum_squares(MoeShard *s, const MoeOp *op, const MoeShardParam *p) {
    MoeGraph *g = s->g;
    MoeValue *now = s->map[op->operands[0]->id].now;
    MoeShardState st = *moe_shard_now(s, now);
    MoeValue *b = moe_build1(g, MOE_OP_BLOCK_SQUARES, now), *place = NULL;
    MOE_TRY(moe_shard_note(s, b->def));
    if (st.slice >= 0) {
        b = moe_build(g, MOE_OP_ALL_GATHER, &b, 1,
                      moe_as("group", moe_mesh_group_name((MoeMeshGroup)st.slice)),
                      moe_ai("unit", 1), moe_as("dims", blocks_text(s, p)), MOE_END);
        MOE_TRY(moe_shard_note(s, b->def));
    }
    if (st.slots == MOE_SLOTS_MINE) {
        const MoeShardRoute *r = moe_shard_route_of_layer(s, p->layer);
        if (!r)
            return moe_error(
                MOE_E_INPUT,
                "shard: graph @%s trains the experts of %s, but has no route_plan that "
                "says which layer's they are",
                g->name, p->name);
        place = r->place;
        b = moe_build(g, MOE_OP_ALL_GATHER_ROWS, &b, 1, moe_as("group", moe_mesh_group_name(moe_mesh_group_in(
                                          MOE_GROUP_EP, r->division))),
                      moe_ai("ranks", r->ep), MOE_END);
        MOE_TRY(moe_shard_note(s, b->def));
    }
    MoeValue *sum =
        moe_build(g, MOE_OP_BLOCK_TREE, (MoeValue *[]){b, place}, place ? 2 : 1, MOE_END);
    s->map[op->results[0]->id].now = sum;
    return moe_shard_note(s, sum->def);
}

MoeStatus moe_shard_norm_op(MoeShard *s, const MoeOp *op, bool *done) {
    *done = false;
    if (op->opcode != MOE_OP_SUM_SQUARES)
        return NULL;
    const MoeValue *g = op->operands[0];
    const MoeShardParam *p = s->gradient[g->id];
    const MoeShardState st = *moe_shard_now(s, s->map[g->id].now);
    if (!p || st.partial >= 0 || st.tp == MOE_TP_PARTIAL)
        return NULL; /* no gradient: like any other op */
    *done = true;
    if (st.slice >= 0 || st.slots == MOE_SLOTS_MINE)
        MOE_TRY(sum_squares(s, op, p));
    else
        MOE_TRY(moe_shard_same_op(s, op, &s->map[g->id].now));
    /* The parts over tp by the tree over TP ranks, each parameter by itself. */
    return moe_shard_now(s, s->map[op->results[0]->id].now)->tp == MOE_TP_PARTIAL
               ? moe_shard_reduce(s, op->results[0])
               : NULL;
}
