/* State rules of declarations, elementwise and row ops, and reductions over rows. In: an op of a sharded graph and the
 * states of its operands. Out: the states of its results, or what is wrong. See shard.h. */
#include <stdlib.h>
#include <string.h>

#include "passes/shard.h"

static bool is_scalar(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR && v->type.rank == 1 && v->type.dims[0].size == 1 &&
           !v->type.dims[0].seg;
}

/* ---- declarations ---- */

static int group_or_none(const MoeShardRules *r, MoeMeshGroup g) {
    return moe_mesh_group_size(r->mesh, g) > 1 ? (int)g : -1;
}

static MoeShardState param_state(const MoeShardRules *r, const MoeOp *op) {
    MoeShardState s = moe_shard_whole();
    bool expert = moe_attr_i_or(op, "expert", 0);
    int k = (int)moe_attr_i_or(op, "mesh", 0);
    s.slice = group_or_none(r, expert ? moe_mesh_group_in(MOE_GROUP_EXPERT_SHARD, k)
                                      : MOE_GROUP_DENSE_SHARD);
    s.unit = s.slice >= 0 ? MOE_SLICE_BLOCK : 0;
    if (expert && moe_shard_group_size(r, MOE_GROUP_EP, k) > 1) {
        s.slots = MOE_SLOTS_MINE;
        s.division = k;
    }
    int64_t tp_dim = moe_attr_i_or(op, "tp_dim", -1);
    if (tp_dim >= 0 && r->mesh->tp > 1)
        s.tp = (int)tp_dim;
    return s;
}

static const MoeOp *param_of(const MoeShardRules *r, const MoeOp *state) {
    for (size_t i = 0; i < r->g->n_ops; i++)
        if (r->g->ops[i]->opcode == MOE_OP_PARAM &&
            strcmp(moe_attr_s(r->g->ops[i], "name"), moe_attr_s(state, "of")) == 0)
            return r->g->ops[i];
    return NULL;
}

/* Segs that the runtime gives are over this rank's tokens, but tok_ep; over several groups: pairs. */
static MoeRowSpace input_space(const MoeOp *op) {
    int k;
    if (moe_mesh_is_input(moe_attr_s(op, "name"), "tok_ep", &k))
        return MOE_ROWS_GROUP;
    return op->results[0]->type.groups > 1 ? MOE_ROWS_PAIRS : MOE_ROWS_TOKENS;
}

/* tok_ep, ep_rank: as their names say; place.LAYER, copies.LAYER: the layer's. */
static int input_division(const MoeShardRules *r, const char *name) {
    int k;
    if (moe_mesh_is_input(name, "tok_ep", &k) || moe_mesh_is_input(name, "ep_rank", &k))
        return k;
    const char *dot = strchr(name, '.');
    bool map = strncmp(name, "place.", 6) == 0 || strncmp(name, "copies.", 7) == 0;
    return map ? moe_mesh_of_layer(r->mesh, atoi(dot + 1)) : 0;
}

const char *moe_shard_decl(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                           MoeShardState *out) {
    (void)in;
    int64_t k = moe_attr_i_or(op, "mesh", 0);
    if (k < 0 || k > r->mesh->n_ranges)
        return moe_shard_fail(r, "parameter %.80s: mesh %lld, but the mesh has %d ranges of layers",
                              moe_attr_s(op, "name"), (long long)k, r->mesh->n_ranges);
    if (op->opcode == MOE_OP_PARAM)
        out[0] = param_state(r, op);
    if (op->opcode == MOE_OP_STATE) {
        const MoeOp *param = param_of(r, op);
        if (!param)
            return moe_shard_fail(r, "the state %s is of the parameter %s, which is not there",
                                  moe_attr_s(op, "name"), moe_attr_s(op, "of"));
        out[0] = param_state(r, param);
    }
    if (op->opcode == MOE_OP_INPUT) {
        out[0].division = input_division(r, moe_attr_s(op, "name"));
        if (out[0].division > r->mesh->n_ranges)
            return moe_shard_fail(r, "input %.40s: the mesh has %d ranges of layers",
                                  moe_attr_s(op, "name"), r->mesh->n_ranges);
        if (op->results[0]->type.kind == MOE_TYPE_SEGS)
            out[0].rows = input_space(op);
        int unused;
        out[0].own = moe_mesh_is_input(moe_attr_s(op, "name"), "ep_rank", &unused) ||
                     strcmp(moe_attr_s(op, "name"), "tp_rank") == 0;
    }
    return NULL;
}

/* Rows and slices are outputs of each rank; everything else is the same on all. */
const char *moe_shard_output(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                             MoeShardState *out) {
    (void)out;
    bool part_of_row = in[0].rows != MOE_ROWS_NONE && in[0].tp != MOE_TP_WHOLE;
    if (in[0].partial >= 0 || in[0].own || in[0].tp == MOE_TP_PARTIAL || part_of_row)
        return moe_shard_needs(r, op, in, 0, "it whole, or whole rows, or a slice");
    return NULL;
}

const char *moe_shard_assign(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                             MoeShardState *out) {
    (void)op, (void)out;
    if (moe_shard_state_equal(&in[0], &in[1]))
        return NULL;
    return moe_shard_fail(r, "assign: the new value is %s, what it is assigned to is %s",
                          moe_shard_state_text(&in[1], r->a), moe_shard_state_text(&in[0], r->a));
}

/* ---- elementwise ---- */

/* Every operand is the same slice, or one number. */
static const char *slices(MoeShardRules *r, const MoeOp *op, const MoeShardState *in, int slice,
                          MoeShardState *out) {
    for (int i = 0; i < op->n_operands; i++) {
        bool same = moe_shard_state_equal(&in[i], &in[slice]);
        if (!same && !(moe_shard_is_whole(&in[i]) && is_scalar(op->operands[i])))
            return moe_shard_needs(
                r, op, in, i, moe_arena_printf(r->a, "%s", moe_shard_state_text(&in[slice], r->a)));
    }
    for (int k = 0; k < op->n_results; k++)
        out[k] = in[slice];
    return NULL;
}

/* Terms of one sum may be added before it is summed: integers exactly, and over TP by its own rule of numbers. */
static bool adds_terms(const MoeOp *op, const MoeShardState *in) {
    if (op->opcode != MOE_OP_ADD && op->opcode != MOE_OP_SUB)
        return false;
    bool integers = op->results[0]->type.dtype == MOE_I32;
    return moe_shard_state_equal(&in[0], &in[1]) &&
           ((in[0].partial >= 0 && integers) || (in[0].partial < 0 && in[0].tp == MOE_TP_PARTIAL));
}

/* Dims aligned at the right; those that are repeated are 1. So is a dim of size 1 that is not divided: it may be what one rank
 * has of a wider one, elsewhere. Text of moe_shard_factors. */
static void broadcast_rule(const MoeOp *op, const MoeShardState *in, char *text) {
    const MoeType *result = &op->results[0]->type;
    for (int i = 0; i <= op->n_operands; i++) {
        bool is_result = i == op->n_operands;
        const MoeType *t = is_result ? result : &op->operands[i]->type;
        if (is_result) {
            *text++ = '-';
            *text++ = '>';
        } else if (i)
            *text++ = ',';
        for (int d = 0; d < t->rank; d++) {
            int at = result->rank - t->rank + d;
            bool divided = is_result || in[i].tp == d || (d == 0 && in[i].slots == MOE_SLOTS_MINE);
            bool one = t->dims[d].size == 1 && !t->dims[d].seg && !divided;
            *text++ = t->dims[d].size != result->dims[at].size || one ? '1' : (char)('a' + at);
        }
        if (op->opcode == MOE_OP_NEG)
            *text++ = '+';
    }
    *text = 0;
}

const char *moe_shard_ew(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                         MoeShardState *out) {
    for (int i = 0; i < op->n_operands; i++)
        if (in[i].slice >= 0)
            return slices(r, op, in, i, out);
    if (adds_terms(op, in)) {
        out[0] = in[0];
        return NULL;
    }
    char text[(MOE_MAX_RANK + 2) * (MOE_SHARD_MAX_IN + 1) + 4];
    broadcast_rule(op, in, text);
    return moe_shard_factors(r, op, text, in, out);
}

/* All three results are like the parameter. */
const char *moe_shard_adamw(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                            MoeShardState *out) {
    for (int i = 0; i < 12; i++) {
        bool fits = i < 4 ? moe_shard_state_equal(&in[i], &in[0]) : moe_shard_is_whole(&in[i]);
        if (!fits)
            return moe_shard_needs(r, op, in, i,
                                   i < 4 ? moe_shard_state_text(&in[0], r->a)
                                         : "the same number on every rank");
    }
    if (in[0].partial >= 0 || in[0].tp == MOE_TP_PARTIAL)
        return moe_shard_needs(r, op, in, 0, "a parameter");
    for (int k = 0; k < 3; k++)
        out[k] = in[0];
    return NULL;
}

/* x: [1], [cols] or [rows,1]; the segs operand says which rows. */
const char *moe_shard_broadcast(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                MoeShardState *out) {
    const MoeType *x = &op->operands[0]->type, *y = &op->results[0]->type;
    char from[MOE_MAX_RANK + 1] = "", text[32];
    for (int d = 0; d < x->rank; d++) {
        int at = y->rank - x->rank + d;
        bool rows = at == 0 && y->rank == 2;
        from[d] = x->dims[d].size != y->dims[at].size ? '1' : rows ? 't' : 'c';
    }
    if (op->n_operands == 2 && in[1].rows == MOE_ROWS_NONE)
        return moe_shard_needs(r, op, in, 1, "segs");
    strcpy(text, from);
    strcat(text, op->n_operands == 2 ? ",*->" : "->");
    strcat(text, y->rank == 2 ? "tc" : "c");
    return moe_shard_factors(r, op, text, in, out);
}

/* ---- rows ---- */

const char *moe_shard_row_sum(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                              MoeShardState *out) {
    bool rows = op->operands[0]->type.rank == 2;
    return moe_shard_factors(r, op, rows ? "tc->t1" : "c->1", in, out);
}

/* (T, C) -> (T, n), from each whole row */
const char *moe_shard_row_max(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                              MoeShardState *out) {
    bool rows = op->operands[0]->type.rank == 2;
    return moe_shard_factors(r, op, rows ? "tC->tN" : "C->N", in, out);
}

const char *moe_shard_softmax(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                              MoeShardState *out) {
    static const char *const texts[MOE_MAX_RANK + 1] = {
        [1] = "C->C", [2] = "tC->tC", [3] = "abC->abC", [4] = "abcD->abcD"};
    return moe_shard_factors(r, op, texts[op->operands[0]->type.rank], in, out);
}

const char *moe_shard_take(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                           MoeShardState *out) {
    return moe_shard_factors(r, op, "tC,tK->tK", in, out);
}

const char *moe_shard_rmsnorm(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                              MoeShardState *out) {
    return moe_shard_factors(r, op, "tC,C->tC", in, out);
}

/* ---- reductions ---- */

/* Over pairs or expert rows the tree goes over shards first and experts after: no subtree of it is on one rank. */
const char *moe_shard_col_sum(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                              MoeShardState *out) {
    bool pairs = in[0].rows == MOE_ROWS_PAIRS || in[0].rows == MOE_ROWS_EXPERTS;
    if (pairs && moe_mesh_data_ranks(r->mesh) > 1)
        return moe_shard_needs(r, op, in, 0, "rows of tokens: their sums are subtrees");
    return moe_shard_factors(r, op, "tc->c", in, out);
}

const char *moe_shard_sum_squares(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                                  MoeShardState *out) {
    MoeShardState x = in[0];
    if (x.tp >= 0 || x.tp == MOE_TP_PART) {
        out[0].tp = MOE_TP_PARTIAL;
        x.tp = MOE_TP_WHOLE;
    }
    if (!moe_shard_is_whole(&x) || x.rows != MOE_ROWS_NONE)
        return moe_shard_needs(r, op, in, 0, "it whole (a slice: block_squares)");
    return NULL;
}

/* Sums over micro-batches, of what is summed over ranks already. */
const char *moe_shard_sync(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                           MoeShardState *out) {
    if (in[0].partial >= 0 || in[0].tp == MOE_TP_PARTIAL || in[0].own)
        return moe_shard_needs(r, op, in, 0, "it summed over ranks (all_reduce, reduce_scatter)");
    out[0] = in[0];
    return NULL;
}

const char *moe_shard_wait(MoeShardRules *r, const MoeOp *op, const MoeShardState *in,
                           MoeShardState *out) {
    (void)r, (void)op;
    out[0] = in[0];
    return NULL;
}
