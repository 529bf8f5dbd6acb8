/* Ops that become several on a rank with ep > 1: those that plan and move the experts' rows. In: an op of the old graph. Out: its ops at the end of the new one (docs/RANKS.md has the table).
 *
 *   %s, %src, %inv = route_plan %ids     home plan; everybody's choices; what to send; what arrives and for which slot
 *   %r = dispatch %x, %src, %inv         %u = a2a_dispatch %x, %idx, %inv_e; %r = dispatch %u, %src_e, %inv_e
 *   %y = gather_sum %z, %src, %inv       %h = a2a_combine %z, %place, %src_h; %y = gather_sum %h, %src_h, %inv_h */
#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "passes/shard_build.h"

/* ---- plans ---- */

/* Rows that one rank sends, or receives, when routing is balanced: each token goes to every rank that holds one of its k
 * experts, once. */
static int64_t expected_rows(int64_t tokens, int64_t k, int64_t ep) {
    double rows = (double)tokens * (double)ep * (1.0 - pow(1.0 - 1.0 / (double)ep, (double)k));
    int64_t most = tokens * (k < ep ? k : ep), n = (int64_t)ceil(rows - 1e-9);
    return n < most ? n : most;
}

static const char *ep_group(const MoeShardRoute *r) {
    return moe_mesh_group_name(moe_mesh_group_in(MOE_GROUP_EP, r->division));
}

static MoeStatus route_plan(MoeShard *s, const MoeOp *op, MoeShardRoute *r) {
    MoeGraph *g = s->g;
    MoeValue *ids;
    MOE_TRY(moe_shard_operand(s, op, 0, &ids));
    int64_t experts = moe_attr_i(op, "experts"), ep = r->ep;
    int64_t slots = moe_shard_slots(&s->rules, r->division, experts), tokens = ids->type.dims[0].size,
            k = moe_type_cols(&ids->type), expect = expected_rows(tokens, k, ep);
    MoeAttr attrs[] = {moe_ai("experts", experts), moe_ai("mesh", r->division)};
    MoeOp *home = moe_op_build_v(g, MOE_OP_ROUTE_PLAN, &ids, 1, attrs, r->division ? 2 : 1, NULL,
                                 NULL);
    MOE_TRY(moe_shard_note(s, home));
    MoeOp *all = moe_op_build(g, MOE_OP_ALL_GATHER_ROWS, (MoeValue *[]){ids, s->tok_ep[r->division]},
                              2, moe_as("group", ep_group(r)), moe_ai("ranks", ep), MOE_END);
    MOE_TRY(moe_shard_note(s, all));
    MoeOp *send =
        moe_op_build(g, MOE_OP_SEND_PLAN, (MoeValue *[]){ids, r->place}, 2, moe_ai("slots", slots),
                     moe_ai("ranks", ep), moe_ai("chunks", 1), moe_ai("expect", expect), MOE_END);
    MOE_TRY(moe_shard_note(s, send));
    MoeValue *chosen[] = {all->results[0], r->place, s->ep_rank[r->division]};
    MoeOp *mine =
        moe_op_build(g, MOE_OP_EXPERT_PLAN, chosen, 3, moe_ai("slots", slots), moe_ai("chunks", 1), moe_ai("expect_recv", expect),
                     moe_ai("expect_rows", tokens * k), MOE_END);
    MOE_TRY(moe_shard_note(s, mine));
    r->home_seg = home->results[0];
    r->home_src = home->results[1];
    r->home_inv = home->results[2];
    r->idx = send->results[1];
    r->seg = mine->results[1];
    r->src = mine->results[2];
    r->inv = mine->results[3];
    MoeValue *now[] = {r->seg, r->src, r->inv};
    for (int i = 0; i < 3; i++) {
        s->map[op->results[i]->id].now = now[i];
        s->map[op->results[i]->id].route = r;
        now[i]->name = op->results[i]->name;
    }
    return NULL;
}

/* ---- moves ---- */

/* Token rows at the ranks of their experts. */
static MoeStatus travel(MoeShard *s, MoeValue *x, const MoeShardRoute *r, MoeValue **out) {
    for (size_t i = 0; i < s->n_sent; i++)
        if (s->sent[i].x == x && s->sent[i].route == r) {
            *out = s->sent[i].arrived;
            return NULL;
        }
    *out = moe_build(s->g, MOE_OP_A2A_DISPATCH, (MoeValue *[]){x, r->idx, r->inv}, 3,
                     moe_as("group", ep_group(r)), MOE_END);
    MoeShardSent done = {x, r, *out};
    MOE_PUSH(s->a, s->sent, s->n_sent, s->cap_sent, done);
    return moe_shard_note(s, (*out)->def);
}

/* The weights of the same rows go with them, in one exchange, if they are known already. */
static MoeStatus weights_too(MoeShard *s, const MoeOp *op, const MoeShardRoute *r) {
    for (size_t i = 0; i < s->n_old; i++) {
        const MoeOp *w = s->old[i];
        MoeValue *x, *arrived;
        if (w->opcode != MOE_OP_DISPATCH_WEIGHT || w->operands[1] != op->operands[1] ||
            w->phase != op->phase || !s->map[w->operands[0]->id].now)
            continue;
        MOE_TRY(moe_shard_operand(s, w, 0, &x));
        MOE_TRY(travel(s, x, r, &arrived));
    }
    return NULL;
}

static MoeStatus dispatch(MoeShard *s, const MoeOp *op, const MoeShardRoute *r) {
    MoeValue *x, *arrived;
    MOE_TRY(moe_shard_operand(s, op, 0, &x));
    MOE_TRY(travel(s, x, r, &arrived));
    if (op->opcode == MOE_OP_DISPATCH)
        MOE_TRY(weights_too(s, op, r));
    return moe_shard_same_op(s, op, (MoeValue *[]){arrived, r->src, r->inv});
}

static MoeStatus collect(MoeShard *s, const MoeOp *op, const MoeShardRoute *r) {
    MoeValue *y;
    MOE_TRY(moe_shard_operand(s, op, 0, &y));
    MoeValue *home =
        moe_build(s->g, MOE_OP_A2A_COMBINE, (MoeValue *[]){y, r->place, r->home_src}, 3,
                  moe_as("group", ep_group(r)), moe_ai("slots", r->seg->type.groups), MOE_END);
    MOE_TRY(moe_shard_note(s, home->def));
    return moe_shard_same_op(s, op, (MoeValue *[]){home, r->home_src, r->home_inv});
}

/* ---- */

static MoeShardRoute *find_route(const MoeShard *s, const MoeOp *plan) {
    for (size_t i = 0; i < s->n_routes; i++)
        if (s->routes[i].logical == plan)
            return &s->routes[i];
    return NULL;
}

MoeStatus moe_shard_expert_op(MoeShard *s, const MoeOp *op, bool *done) {
    *done = true;
    if (op->opcode == MOE_OP_ROUTE_PLAN && find_route(s, op))
        return route_plan(s, op, find_route(s, op));
    const MoeShardRoute *r = op->n_operands == 3 ? s->map[op->operands[1]->id].route : NULL;
    if (r && (op->opcode == MOE_OP_DISPATCH || op->opcode == MOE_OP_DISPATCH_WEIGHT))
        return dispatch(s, op, r);
    if (r && (op->opcode == MOE_OP_GATHER_SUM || op->opcode == MOE_OP_COLLECT_WEIGHT))
        return collect(s, op, r);
    *done = false;
    return NULL;
}
