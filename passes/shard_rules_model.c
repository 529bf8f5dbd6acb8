/* State rules of the contractions, the experts' rows, the sequence ops and the loss. See shard.h. T: token rows, R: expert
 * rows, K: experts a token, E: experts. */
#include "passes/shard.h"

#include "base/assert.h"

/* ---- contractions ---- */

/* Grouped: the rows of all experts meet all weights, those of this rank's slots the weights of these. */
static const char *check_grouped(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                 const MoeShardState *weight) {
    if (weight && in[0].rows == MOE_ROWS_EXPERTS && !weight->copies &&
        moe_shard_has_copies(r, in[0].division))
        return moe_shard_needs(r, op, in, 1, "the slots of copies filled (copy_experts)");
    if (in[0].rows == MOE_ROWS_EXPERTS)
        return weight && (weight->slots != MOE_SLOTS_MINE || weight->division != in[0].division)
                   ? moe_shard_needs(r, op, in, 1, "it for this rank's slots, as the rows are")
                   : NULL;
    if (in[0].rows != MOE_ROWS_PAIRS)
        return moe_shard_needs(r, op, in, 0, "rows of experts");
    return weight && weight->slots != MOE_SLOTS_NONE
               ? moe_shard_needs(r, op, in, 1, "it for all experts, as the rows are")
               : NULL;
}

/* a (T, k), b (n, k) if tb, else (k, n) -> (T, n) */
const char *moe_shard_matmul(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                             MoeShardState *out) {
    bool tb = moe_attr_i(op, "tb");
    if (!moe_attr_i(op, "grouped"))
        return moe_shard_factors(r, op, tb ? "tk,nk->tn" : "tk,kn->tn", in, out);
    const char *problem = check_grouped(r, op, in, &in[1]);
    if (problem)
        return problem;
    return moe_shard_factors(r, op, tb ? "tk,gnk->tn" : "tk,gkn->tn", in, out);
}

/* dy (T, n), x (T, k) -> (n, k); grouped (E, n, k), summed over the ranks that hold the same experts */
const char *moe_shard_weight_grad(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                  MoeShardState *out) {
    bool grouped = moe_attr_i(op, "grouped");
    const char *problem = grouped ? check_grouped(r, op, in, NULL) : NULL;
    if (!problem && !grouped && in[0].rows != MOE_ROWS_TOKENS && in[0].rows != MOE_ROWS_NONE)
        problem = moe_shard_needs(r, op, in, 0, "rows of tokens");
    if (!problem)
        problem = moe_shard_factors(r, op, grouped ? "tn,tk->gnk" : "tn,tk->nk", in, out);
    if (problem || !grouped)
        return problem;
    MoeMeshGroup sum = moe_mesh_group_in(MOE_GROUP_EXPERT_DATA, in[0].division);
    if (in[0].rows == MOE_ROWS_EXPERTS && moe_shard_has_copies(r, in[0].division))
        return moe_shard_needs(r, op, in, 0, "rows of experts without copies (root_grad)");
    if (in[0].rows == MOE_ROWS_EXPERTS) {
        out[0].slots = MOE_SLOTS_MINE;
        out[0].division = in[0].division;
    } else if (moe_shard_group_size(r, MOE_GROUP_EP, in[0].division) > 1)
        return moe_shard_needs(r, op, in, 0, "rows of the experts in this rank's slots");
    out[0].partial = moe_mesh_group_size(r->mesh, sum) > 1 ? (int)sum : -1;
    return NULL;
}

/* ---- experts ---- */

static const char *need_rows(MoeShardRules *r, const MoeOp *op, const MoeShardState *in, int i,
                             MoeRowSpace rows, const char *expected) {
    return in[i].rows == rows ? NULL : moe_shard_needs(r, op, in, i, expected);
}

const char *moe_shard_route_plan(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                 MoeShardState *out) {
    const char *problem = need_rows(r, op, in, 0, MOE_ROWS_TOKENS, "the choices of its tokens");
    if (!problem)
        problem = moe_shard_factors(r, op, "tK->1,1,tK", in, out);
    for (int i = 0; i < 3; i++)
        out[i] = moe_shard_whole();
    out[0].rows = MOE_ROWS_PAIRS;
    out[0].division = (int)moe_attr_i_or(op, "mesh", 0);
    if (!problem && (out[0].division < 0 || out[0].division > r->mesh->n_ranges))
        return moe_shard_fail(r, "route_plan: mesh %d, but the mesh has %d ranges of layers",
                              out[0].division, r->mesh->n_ranges);
    return problem;
}

/* Counts of a rank's own rows. */
const char *moe_shard_count_rows(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                 MoeShardState *out) {
    if (in[0].rows != MOE_ROWS_TOKENS && in[0].rows != MOE_ROWS_PAIRS)
        return moe_shard_needs(r, op, in, 0, "its own rows: ranks would count one twice");
    out[0].partial = moe_shard_rows_group(r, in[0].rows, in[0].division);
    return NULL;
}

/* src and inv of one plan: of pairs and tokens, or of expert rows and received ones. */
static const char *check_route(MoeShardRules *r, const MoeOp *op, const MoeShardState *in) {
    if (in[1].rows == MOE_ROWS_PAIRS)
        return need_rows(r, op, in, 2, MOE_ROWS_TOKENS, "the places of its tokens' pairs");
    if (in[1].rows == MOE_ROWS_EXPERTS && in[1].division != in[2].division)
        return moe_shard_needs(r, op, in, 2, "the places of the same division's rows");
    if (in[1].rows == MOE_ROWS_EXPERTS)
        return need_rows(r, op, in, 2, MOE_ROWS_RECEIVED, "the places of received rows");
    return moe_shard_needs(r, op, in, 1, "a plan's sources");
}

/* x (T, C), src (R), inv (T, K) -> (R, C) */
const char *moe_shard_dispatch(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                               MoeShardState *out) {
    const char *problem = check_route(r, op, in);
    return problem ? problem : moe_shard_factors(r, op, "*c+,*,*K->*c+", in, out);
}

/* y (R, C), src (R), inv (T, K) -> (T, C): all k rows of a token must have come home */
const char *moe_shard_collect(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                              MoeShardState *out) {
    const char *problem = check_route(r, op, in);
    if (!problem && in[1].rows != MOE_ROWS_PAIRS)
        problem = moe_shard_needs(r, op, in, 1, "the rows at home (a2a_combine)");
    return problem ? problem : moe_shard_factors(r, op, "*c+,*,*K->*c+", in, out);
}

/* ---- sequence: a sequence is whole on its rank ---- */

/* The factor rule of an op whose operand `part` is this TP rank's number. */
static const char *in_parts(MoeShardRules *r, const MoeOp *op, const char *rule, int part,
                            const MoeShardState *in, MoeShardState *out) {
    MoeShardState as_whole[MOE_SHARD_MAX_IN];
    for (int i = 0; i < op->n_operands; i++)
        as_whole[i] = in[i];
    if (!in[part].own)
        return moe_shard_needs(r, op, in, part, "the input tp_rank");
    as_whole[part] = moe_shard_whole();
    return moe_shard_factors(r, op, rule, as_whole, out);
}

/* Rows of the table in parts: a part is a term. */
const char *moe_shard_embedding(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    if (op->n_operands == 2)
        return moe_shard_factors(r, op, "Nc,t->tc", in, out);
    if (in[0].tp != 0)
        return moe_shard_needs(r, op, in, 0, "rows divided over group tp");
    return in_parts(r, op, "nc,t,1->tc", 2, in, out);
}

const char *moe_shard_embedding_grad(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                     MoeShardState *out) {
    if (op->n_operands == 2)
        return moe_shard_factors(r, op, "tc,t->nc", in, out);
    const char *problem = in_parts(r, op, "tC,t,1->nC", 2, in, out);
    out[0].tp = 0;
    return problem;
}

const char *moe_shard_rope(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                           MoeShardState *out) {
    return moe_shard_factors(r, op, "th->th", in, out);
}

const char *moe_shard_attention(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    return moe_shard_factors(r, op, "th,th,th->th,th", in, out);
}

const char *moe_shard_attention_grad(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                     MoeShardState *out) {
    return moe_shard_factors(r, op, "th,th,th,th,th,th->th,th,th", in, out);
}

/* ---- head and loss ---- */

const char *moe_shard_xent(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                           MoeShardState *out) {
    return moe_shard_factors(r, op, "tC,NC,t->t1", in, out);
}

const char *moe_shard_xent_grad(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    return moe_shard_factors(r, op, "tC,NC,t,t1->t1,tC,NC", in, out);
}

/* Parts of w's rows over TP: the sums of each part stand in columns of their own, so that the sum over TP has them all. */
const char *moe_shard_xent_part(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    if (in[1].tp != 0 || moe_attr_i(op, "parts") != r->mesh->tp)
        return moe_shard_needs(r, op, in, 1, "as many parts of its rows as group tp has ranks");
    return in_parts(r, op, "tC,nC,t,1->ts", 3, in, out);
}

const char *moe_shard_xent_join(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    return moe_shard_factors(r, op, "tS,t->t1,t1", in, out);
}

const char *moe_shard_xent_part_grad(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                     MoeShardState *out) {
    if (in[1].tp != 0)
        return moe_shard_needs(r, op, in, 1, "rows divided over group tp");
    return in_parts(r, op, "tC,nC,t,1,t1,t1->tC,nC", 3, in, out);
}
