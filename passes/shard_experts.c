/* Ops that become several on a rank with ep > 1: those that plan and move the experts' rows. In: an op of the old graph. Out: its ops at the end of the new one (docs/RANKS.md has the table).
 *
 *   %s, %src, %inv = route_plan %ids     home plan; everybody's choices; what to send; what arrives and for which slot
 *   %r = dispatch %x, %src, %inv         %u = a2a_dispatch %x, %idx, %inv_e; %r = dispatch %u, %src_e, %inv_e
 *   %y = gather_sum %z, %src, %inv       %h = a2a_combine %z, %place, %src_h; %y = gather_sum %h, %src_h, %inv_h
 * Where experts have copies (shard_copies.c), plans and rows at home go by global slots instead of experts and place. */
#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "passes/shard_build.h"

/* ---- plans ---- */

/* Rows that one rank sends, or receives on average, when routing is balanced: each token goes to every rank that holds one of its k
 * experts, once. They are k different ones of E, so a rank with n of them is wanted by none with the odds of a draw without
 * replacement, C(E-n, k) / C(E, k). Experts as the usual map has them: ceil(E/ep) a rank, the last ones fewer. */
static int64_t expected_rows(int64_t tokens, int64_t k, int64_t experts, int64_t ep) {
    int64_t per = (experts + ep - 1) / ep;
    double rows = 0;
    for (int64_t first = 0; first < experts; first += per) {
        int64_t n = experts - first < per ? experts - first : per;
        double none = 1;
        for (int64_t i = 0; i < k; i++)
            none *= n + i < experts ? (double)(experts - n - i) / (double)(experts - i) : 0;
        rows += (double)tokens * (1.0 - none);
    }
    int64_t most = tokens * (k < ep ? k : ep), up = (int64_t)ceil(rows - 1e-6);
    return up < most ? up : most;
}

static const char *ep_group(const MoeShardRoute *r) {
    return moe_mesh_group_name(moe_mesh_group_in(MOE_GROUP_EP, r->division));
}

/* The plan of this rank's own pairs; `groups` experts, or global slots. */
static MoeStatus home_plan(MoeShard *s, MoeValue *ids, int64_t groups, const MoeShardRoute *r,
                           MoeOp **out) {
    MoeAttr attrs[] = {moe_ai("experts", groups), moe_ai("mesh", r->division)};
    *out = moe_op_build_v(s->g, MOE_OP_ROUTE_PLAN, &ids, 1, attrs, r->division ? 2 : 1, NULL, NULL);
    return moe_shard_note(s, *out);
}

/* Everybody's choices; with copies of experts everything from here on goes by them. */
static MoeStatus gather_choices(MoeShard *s, MoeValue *ids, int64_t experts, MoeShardRoute *r) {
    MoeOp *all = moe_op_build(s->g, MOE_OP_ALL_GATHER_ROWS,
                              (MoeValue *[]){ids, s->tok_ep[r->division]}, 2,
                              moe_as("group", ep_group(r)), moe_ai("ranks", r->ep), MOE_END);
    MOE_TRY(moe_shard_note(s, all));
    r->choices = ids;
    r->all_choices = all->results[0];
    return r->copies ? moe_shard_copy_plan_of(s, ids, all->results[0], experts, r) : NULL;
}

static MoeStatus send_and_expert_plan(MoeShard *s, int64_t experts, int64_t slots, int64_t k,
                                      MoeShardRoute *r, MoeOp **out) {
    int64_t tokens = r->choices->type.dims[0].size, expect = expected_rows(tokens, k, experts, r->ep);
    MoeValue *sent[] = {r->choices, r->place};
    MoeOp *send = moe_op_build(s->g, MOE_OP_SEND_PLAN, sent, r->copies ? 1 : 2,
                               moe_ai("slots", slots), moe_ai("ranks", r->ep), moe_ai("chunks", 1),
                               moe_ai("expect", expect), MOE_END);
    MOE_TRY(moe_shard_note(s, send));
    r->idx = send->results[1];
    MoeValue *chosen[3] = {r->all_choices};
    int n = 1;
    if (!r->copies)
        chosen[n++] = r->place;
    chosen[n++] = s->ep_rank[r->division];
    *out = moe_op_build(s->g, MOE_OP_EXPERT_PLAN, chosen, n, moe_ai("slots", slots),
                        moe_ai("chunks", 1), moe_ai("expect_recv", expect),
                        moe_ai("expect_rows", tokens * k), MOE_END);
    return moe_shard_note(s, *out);
}

static MoeStatus route_plan(MoeShard *s, const MoeOp *op, MoeShardRoute *r) {
    MoeValue *ids;
    MOE_TRY(moe_shard_operand(s, op, 0, &ids));
    int64_t experts = moe_attr_i(op, "experts"),
            slots = moe_shard_slots(&s->rules, r->division, experts), k = moe_type_cols(&ids->type);
    MoeOp *home, *mine;
    MOE_TRY(home_plan(s, ids, experts, r, &home));
    r->home_seg = home->results[0];
    MOE_TRY(gather_choices(s, ids, experts, r));
    MOE_TRY(send_and_expert_plan(s, experts, slots, k, r, &mine));
    if (r->copies)
        MOE_TRY(home_plan(s, r->choices, r->ep * slots, r, &home));
    r->home_src = home->results[1];
    r->home_inv = home->results[2];
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
    MoeValue *y, *operands[3];
    int n = 0;
    MOE_TRY(moe_shard_operand(s, op, 0, &y));
    operands[n++] = y;
    if (!r->copies)
        operands[n++] = r->place;
    operands[n++] = r->home_src;
    MoeValue *home = moe_build(s->g, MOE_OP_A2A_COMBINE, operands, n, moe_as("group", ep_group(r)),
                               moe_ai("slots", r->seg->type.groups), MOE_END);
    MOE_TRY(moe_shard_note(s, home->def));
    return moe_shard_same_op(s, op, (MoeValue *[]){home, r->home_src, r->home_inv});
}

/* ---- */

MoeShardRoute *moe_shard_route_of_layer(const MoeShard *s, int layer) {
    for (size_t i = 0; i < s->n_routes; i++)
        if (s->routes[i].layer == layer)
            return &s->routes[i];
    return NULL;
}

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
    const MoeValue *rows =
        op->opcode == MOE_OP_WEIGHT_GRAD ? op->operands[0]->type.dims[0].seg : NULL;
    MoeShardRoute *of_rows = rows ? s->map[rows->id].route : NULL;
    if (of_rows && of_rows->copies)
        return moe_shard_copies_grad(s, op, of_rows);
    const MoeShardRoute *r = op->n_operands == 3 ? s->map[op->operands[1]->id].route : NULL;
    if (r && (op->opcode == MOE_OP_DISPATCH || op->opcode == MOE_OP_DISPATCH_WEIGHT))
        return dispatch(s, op, r);
    if (r && (op->opcode == MOE_OP_GATHER_SUM || op->opcode == MOE_OP_COLLECT_WEIGHT))
        return collect(s, op, r);
    *done = false;
    return NULL;
}
