/* Embedding and loss with a vocabulary divided over TP ranks (docs/RANKS.md). In: an op of the old graph that reads a table.
 * Out: its ops at the end of the new one.
 *
 *   %x = embedding %t, %ids                   %0 = embedding %t, %ids, %tp_rank; %x = all_reduce %0 {group = "tp"}
 *   %n = linear_cross_entropy %h, %w, %l      %0 = linear_cross_entropy_part %h, %w, %l, %tp_rank {parts = 2}
 *                                             %1 = all_reduce %0 {group = "tp"}; %n, %2 = cross_entropy_join %1, %l */
#include "passes/shard_build.h"

bool moe_shard_is_table(const MoeShard *s, const MoeValue *old) {
    while (old->def->opcode == MOE_OP_CONVERT)
        old = old->def->operands[0];
    const MoeShardParam *p = old->def->opcode == MOE_OP_PARAM
                                 ? moe_shard_param(s->params, moe_attr_s(old->def, "name"))
                                 : NULL;
    return p && p->table;
}

MoeStatus moe_shard_join_table(MoeShard *s, const MoeValue *old, MoeValue *part, MoePhase phase,
                               MoeValue **out) {
    MoeShardMapped *m = &s->map[old->id];
    if (!m->joined[phase]) {
        m->joined[phase] = moe_build(s->g, MOE_OP_ALL_GATHER_ROWS, &part, 1,
                                     moe_as("group", moe_mesh_group_name(MOE_GROUP_TP)),
                                     moe_ai("ranks", s->mesh->tp), MOE_END);
        MOE_TRY(moe_shard_note(s, m->joined[phase]->def));
    }
    *out = m->joined[phase];
    return NULL;
}

static MoeStatus embedding(MoeShard *s, const MoeOp *op) {
    MoeValue *table, *ids;
    MOE_TRY(moe_shard_operand(s, op, 0, &table));
    MOE_TRY(moe_shard_operand(s, op, 1, &ids));
    MoeValue *x =
        moe_build(s->g, MOE_OP_EMBEDDING, (MoeValue *[]){table, ids, s->tp_rank}, 3, MOE_END);
    s->map[op->results[0]->id].now = x;
    return moe_shard_note(s, x->def);
}

static MoeStatus embedding_grad(MoeShard *s, const MoeOp *op) {
    MoeValue *dy, *ids;
    MOE_TRY(moe_shard_operand(s, op, 0, &dy));
    MOE_TRY(moe_shard_operand(s, op, 1, &ids));
    MoeValue *dt = moe_build(s->g, MOE_OP_EMBEDDING_GRAD, (MoeValue *[]){dy, ids, s->tp_rank}, 3,
                             moe_ai("vocab", moe_attr_i(op, "vocab") / s->mesh->tp), MOE_END);
    s->map[op->results[0]->id].now = dt;
    MOE_TRY(moe_shard_note(s, dt->def));
    return moe_shard_reduce_gradient(s, op->results[0]);
}

/* nll and lse of all rows of the table. */
static MoeStatus join(MoeShard *s, MoeValue *h, MoeValue *w, MoeValue *labels, MoeOp **out) {
    MoeValue *sums =
        moe_build(s->g, MOE_OP_LINEAR_CROSS_ENTROPY_PART, (MoeValue *[]){h, w, labels, s->tp_rank},
                  4, moe_ai("parts", s->mesh->tp), MOE_END);
    MOE_TRY(moe_shard_note(s, sums->def));
    MoeValue *all = moe_build(s->g, MOE_OP_ALL_REDUCE, &sums, 1,
                              moe_as("group", moe_mesh_group_name(MOE_GROUP_TP)), MOE_END);
    MOE_TRY(moe_shard_note(s, all->def));
    *out = moe_op_build(s->g, MOE_OP_CROSS_ENTROPY_JOIN, (MoeValue *[]){all, labels}, 2, MOE_END);
    return moe_shard_note(s, *out);
}

static MoeStatus loss(MoeShard *s, const MoeOp *op) {
    MoeValue *in[4];
    MoeOp *joined;
    for (int i = 0; i < op->n_operands; i++)
        MOE_TRY(moe_shard_operand(s, op, i, &in[i]));
    MOE_TRY(join(s, in[0], in[1], in[2], &joined));
    s->map[op->results[0]->id].now = joined->results[0];
    if (op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY)
        return NULL;
    MoeValue *operands[] = {in[0], in[1], in[2], s->tp_rank, joined->results[1], in[3]};
    MoeOp *back = moe_op_build(s->g, MOE_OP_LINEAR_CROSS_ENTROPY_PART_GRAD, operands, 6, MOE_END);
    for (int i = 0; i < 2; i++)
        s->map[op->results[i + 1]->id].now = back->results[i];
    MOE_TRY(moe_shard_note(s, back));
    return moe_shard_reduce_gradient(s, op->results[2]);
}

MoeStatus moe_shard_vocab_op(MoeShard *s, const MoeOp *op, bool *done) {
    *done = true;
    if (op->opcode == MOE_OP_EMBEDDING && moe_shard_is_table(s, op->operands[0]))
        return embedding(s, op);
    const MoeShardParam *p =
        op->opcode == MOE_OP_EMBEDDING_GRAD ? s->gradient[op->results[0]->id] : NULL;
    if (p && p->table)
        return embedding_grad(s, op);
    bool loss_op =
        op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY || op->opcode == MOE_OP_LINEAR_CROSS_ENTROPY_GRAD;
    if (loss_op && moe_shard_is_table(s, op->operands[1]))
        return loss(s, op);
    *done = false;
    return NULL;
}
