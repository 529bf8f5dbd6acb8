/* Shape rules: what passes between ranks and what each rank computes for that (docs/RANKS.md). T: a rank's token rows, Tg:
 * those of its group, K: experts a token, E: experts, S, U, R: rows to send, received rows, expert rows. How many ranks a
 * group has is not known here: the interpreter and the runtime compare that with the mesh. */
#include "ir/infer_util.h"

#include <inttypes.h>
#include <string.h>

#include "base/mesh.h"

/* Attribute `key` names a group of ranks. */
static const char *need_group(MoeGraph *g, const MoeOp *op, const char *key) {
    const char *names[MOE_N_OWN_GROUPS], *given = moe_attr_s(op, key);
    MoeMeshGroup group;
    if (moe_mesh_group_from_name(given, &group))
        return NULL;
    for (int i = 0; i < MOE_N_OWN_GROUPS; i++)
        names[i] = moe_mesh_group_name((MoeMeshGroup)i);
    const char *near = moe_nearest_name(given, names, MOE_N_OWN_GROUPS);
    MoeStr all = {0};
    for (int i = 0; i < MOE_N_OWN_GROUPS; i++)
        moe_str_printf(&all, "%s%s", i ? ", " : "", names[i]);
    const char *problem = moe_infer_fail(
        g, "attribute %s of %s: no group of ranks is named '%.60s'%s%s%s; groups: %s", key,
        moe_op_info(op->opcode)->name, given, near ? " (did you mean '" : "", near ? near : "",
        near ? "'?)" : "", moe_str_c(&all));
    moe_str_free(&all);
    return problem;
}

/* Elements of dims[from..] of a type. */
static int64_t elements_from(const MoeType *t, int from) {
    int64_t n = 1;
    for (int i = from; i < t->rank; i++)
        n *= t->dims[i].size;
    return n;
}

/* x [cap] -> dims; x [L,cap] -> dims, which begin with L: each row is a slice of dims[1..] */
const char *moe_infer_all_gather(MoeGraph *g, MoeOp *op) {
    CHECK(need_group(g, op, "group"));
    CHECK(moe_need_attr(g, op, "unit", 1, MOE_MAX_ELEMENTS));
    CHECK(moe_need_tensor(g, op, 0, "slice", IS_ANY, 0));
    CHECK(moe_need_static(g, op, 0, "slice"));
    const MoeType *x = operand_type(op, 0);
    if (x->rank > 2)
        return moe_infer_fail(
            g, "operand 0 of all_gather (slice): expected [cap] or [L,cap], found %s",
            moe_type_text(g, x));
    MoeType t = {.kind = MOE_TYPE_TENSOR, .dtype = x->dtype};
    const char *text = moe_attr_s(op, "dims"), *problem = moe_dims_from_text(text, &t);
    if (problem)
        return moe_infer_fail(g, "attribute dims of all_gather, \"%.60s\": %s", text, problem);
    int outer = x->rank - 1;
    if (outer && (t.rank < 2 || t.dims[0].size != x->dims[0].size))
        return moe_infer_fail(g,
                              "all_gather of %s: dims must be \"%" PRId64
                              ",...\", one tensor for each row, found \"%.60s\"",
                              moe_type_text(g, x), x->dims[0].size, text);
    int64_t n = elements_from(&t, outer), cap = moe_type_cols(x);
    if (cap > n)
        return moe_infer_fail(g,
                              "all_gather of %s: a slice of %" PRId64
                              " elements is larger than its tensor of %" PRId64 " (dims \"%.60s\")",
                              moe_type_text(g, x), cap, n, text);
    return set_result(op, 0, t);
}

/* x [n,...] -> [ranks*n,...]; x [T,...] ragged, segs<1,V> -> [Tg,...] */
const char *moe_infer_all_gather_rows(MoeGraph *g, MoeOp *op) {
    CHECK(need_group(g, op, "group"));
    CHECK(moe_need_attr(g, op, "ranks", 1, MOE_MAX_RANKS));
    CHECK(moe_need_tensor(g, op, 0, "x", IS_ANY, 0));
    MoeType t = *operand_type(op, 0);
    t.dims[0].size *= moe_attr_i(op, "ranks");
    if (op->n_operands == 1) {
        CHECK(moe_need_static(g, op, 0, "x, without operand 1"));
        return set_result(op, 0, t);
    }
    CHECK(moe_need_ragged(g, op, 0, "x, with operand 1", 1));
    CHECK(moe_need_segs(g, op, 1, "segs of all rows"));
    const MoeType *all = operand_type(op, 1);
    int64_t shards = t.dims[0].seg->type.shards;
    if (all->groups != 1 || all->shards != shards)
        return moe_infer_fail(
            g,
            "operand 1 of all_gather_rows (segs of all rows): expected segs<1,%" PRId64
            ">, found %s",
            shards, moe_type_text(g, all));
    t.dims[0].seg = op->operands[1];
    return set_result(op, 0, t);
}

/* f32[...] -> f32[cap]; outer: f32[L,...] -> f32[L,cap]; parts = 1: the same type */
const char *moe_infer_reduce_scatter(MoeGraph *g, MoeOp *op) {
    CHECK(need_group(g, op, "sum"));
    CHECK(need_group(g, op, "scatter"));
    CHECK(moe_need_attr(g, op, "unit", 1, MOE_MAX_ELEMENTS));
    CHECK(moe_need_attr(g, op, "parts", 1, MOE_MAX_RANKS));
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 0));
    CHECK(moe_need_static(g, op, 0, "x"));
    const MoeType *x = operand_type(op, 0);
    int outer = moe_attr_i(op, "outer") ? 1 : 0;
    if (outer && x->rank < 2)
        return moe_infer_fail(g,
                              "reduce_scatter with outer = 1 needs a dim besides dim 0, found %s",
                              moe_type_text(g, x));
    int parts = (int)moe_attr_i(op, "parts");
    if (parts == 1)
        return set_result(op, 0, *x);
    int64_t cap = moe_slice(elements_from(x, outer), moe_attr_i(op, "unit"), parts, 0).cap;
    return set_result(op, 0,
                      outer ? moe_type_2d(MOE_F32, x->dims[0], cap) : moe_type_1d(MOE_F32, cap));
}

/* f32 or i32 -> the same; ragged: over a table that all ranks of the group have alike (TP ranks have the same tokens) */
const char *moe_infer_all_reduce(MoeGraph *g, MoeOp *op) {
    CHECK(need_group(g, op, "group"));
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32 | IS_I32, 0));
    if (strcmp(moe_attr_s(op, "group"), moe_mesh_group_name(MOE_GROUP_TP)) != 0)
        CHECK(moe_need_static(g, op, 0, "x"));
    return set_result(op, 0, *operand_type(op, 0));
}

/* any tensor -> the same */
const char *moe_infer_wait(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_ANY, 0));
    return set_result(op, 0, *operand_type(op, 0));
}

/* what an offload made, once it is waited for -> the same */
const char *moe_infer_load(MoeGraph *g, MoeOp *op) {
    const MoeOp *wait = op->operands[0]->def;
    if (wait->opcode != MOE_OP_WAIT || wait->operands[0]->def->opcode != MOE_OP_OFFLOAD)
        return moe_infer_fail(g, "operand 0 of load: expected a wait on an offload, found the result of %s",
                              moe_op_info(wait->opcode)->name);
    return set_result(op, 0, *operand_type(op, 0));
}

/* x [T,C], idx i32[S @send segs<ranks,chunks>], inv i32[U,K @recv segs<chunks,V>] -> [U,C] */
const char *moe_infer_a2a_dispatch(MoeGraph *g, MoeOp *op) {
    CHECK(need_group(g, op, "group"));
    CHECK(moe_need_tensor(g, op, 0, "x", IS_FLOAT, 2));
    CHECK(moe_need_tensor(g, op, 1, "idx", IS_I32, 1));
    CHECK(moe_need_ragged(g, op, 1, "idx", 0));
    CHECK(moe_need_tensor(g, op, 2, "inv", IS_I32, 2));
    const MoeType *send = &operand_type(op, 1)->dims[0].seg->type;
    CHECK(moe_need_ragged(g, op, 2, "inv", send->shards)); /* as many chunks */
    const MoeType *x = operand_type(op, 0);
    return set_result(op, 0, moe_type_2d(x->dtype, operand_type(op, 2)->dims[0], moe_type_cols(x)));
}

/* y [R,C @seg segs<slots,V>] (, place i32[E]), src i32[Rh @home segs<E,V>] -> [Rh,C] */
const char *moe_infer_a2a_combine(MoeGraph *g, MoeOp *op) {
    CHECK(need_group(g, op, "group"));
    CHECK(moe_need_attr(g, op, "slots", 1, MOE_MAX_SEGS_ENTRIES));
    CHECK(moe_need_tensor(g, op, 0, "y", IS_FLOAT, 2));
    CHECK(moe_need_ragged(g, op, 0, "y", moe_attr_i(op, "slots")));
    int last = op->n_operands - 1;
    if (last == 2) {
        CHECK(moe_need_tensor(g, op, 1, "place", IS_I32, 1));
        CHECK(moe_need_static(g, op, 1, "place"));
    }
    CHECK(moe_need_tensor(g, op, last, "src", IS_I32, 1));
    CHECK(moe_need_ragged(g, op, last, "src", last == 2 ? operand_type(op, 1)->dims[0].size : 0));
    const MoeType *y = operand_type(op, 0), *src = operand_type(op, last);
    const MoeType *seg = &y->dims[0].seg->type, *home = &src->dims[0].seg->type;
    if (last == 1 && home->groups % moe_attr_i(op, "slots"))
        return moe_infer_fail(g, "a2a_combine: src over %s, which are no ranks of %" PRId64 " slots",
                              moe_type_text(g, home), moe_attr_i(op, "slots"));
    if (seg->shards != home->shards)
        return moe_infer_fail(g, "a2a_combine: y over %s and src over %s differ in virtual shards",
                              moe_type_text(g, seg), moe_type_text(g, home));
    return set_result(op, 0, moe_type_2d(y->dtype, src->dims[0], moe_type_cols(y)));
}

/* Operands 0 and 1 of a plan: ids i32[T,K] over segs<1,V>, place i32[E] if it has one; its slots and chunks. */
static const char *check_plan(MoeGraph *g, const MoeOp *op, bool has_place) {
    CHECK(moe_need_attr(g, op, "slots", 1, MOE_MAX_SEGS_ENTRIES));
    CHECK(moe_need_attr(g, op, "chunks", 1, MOE_MAX_SEGS_SHARDS));
    CHECK(moe_need_tensor(g, op, 0, "ids", IS_I32, 2));
    CHECK(moe_need_ragged(g, op, 0, "ids", 1));
    if (has_place) {
        CHECK(moe_need_tensor(g, op, 1, "place", IS_I32, 1));
        CHECK(moe_need_static(g, op, 1, "place"));
    }
    int64_t slots = moe_attr_i(op, "slots"), chunks = moe_attr_i(op, "chunks");
    if ((slots + chunks - 1) / chunks * (chunks - 1) >= slots)
        return moe_infer_fail(g,
                              "%s: %" PRId64 " slots in %" PRId64
                              " chunks, of equal size but for the last: some would have none",
                              moe_op_info(op->opcode)->name, slots, chunks);
    return NULL;
}

/* ids (, place) -> send segs<ranks,chunks>, idx i32[S @send] */
const char *moe_infer_send_plan(MoeGraph *g, MoeOp *op) {
    CHECK(check_plan(g, op, op->n_operands == 2));
    CHECK(moe_need_attr(g, op, "ranks", 1, MOE_MAX_RANKS));
    const MoeType *ids = operand_type(op, 0);
    int64_t ranks = moe_attr_i(op, "ranks"), slots = moe_attr_i(op, "slots");
    int64_t k = moe_type_cols(ids),
            experts = op->n_operands == 2 ? operand_type(op, 1)->dims[0].size : 0;
    if (ranks * slots < experts)
        return moe_infer_fail(g,
                              "send_plan: %" PRId64 " ranks of %" PRId64
                              " slots have no room for %" PRId64 " experts",
                              ranks, slots, experts);
    int64_t cap = ids->dims[0].size * (k < ranks ? k : ranks);
    CHECK(moe_need_attr(g, op, "expect", 0, cap));
    MoeType idx = moe_type_1d(MOE_I32, cap);
    idx.dims[0].seg = op->results[0];
    set_result(op, 0, moe_type_segs(ranks, moe_attr_i(op, "chunks")));
    return set_result(op, 1, idx);
}

/* ids (, place), ep_rank i32[1] -> recv segs<chunks,V>, seg segs<slots,V>, src i32[R @seg], inv i32[U @recv,K] */
const char *moe_infer_expert_plan(MoeGraph *g, MoeOp *op) {
    int last = op->n_operands - 1;
    CHECK(check_plan(g, op, last == 2));
    CHECK(moe_need_tensor(g, op, last, "ep_rank", IS_I32, 1));
    CHECK(moe_need_dim(g, op, last, 0, 1, "one number"));
    const MoeType *ids = operand_type(op, 0);
    int64_t shards = ids->dims[0].seg->type.shards;
    CHECK(moe_need_attr(g, op, "expect_recv", 0, ids->dims[0].size));
    CHECK(moe_need_attr(g, op, "expect_rows", 0, moe_type_elements(ids)));
    MoeType src = moe_type_1d(MOE_I32, moe_type_elements(ids)), inv = *ids;
    src.dims[0].seg = op->results[1];
    inv.dims[0].seg = op->results[0];
    set_result(op, 0, moe_type_segs(moe_attr_i(op, "chunks"), shards));
    set_result(op, 1, moe_type_segs(moe_attr_i(op, "slots"), shards));
    set_result(op, 2, src);
    return set_result(op, 3, inv);
}

/* f32[cap] -> f32[blocks]; f32[L,cap] or f32[L,n,k] -> f32[L,blocks] */
const char *moe_infer_block_squares(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "x", IS_F32, 0));
    CHECK(moe_need_static(g, op, 0, "x"));
    const MoeType *x = operand_type(op, 0);
    if (x->rank == 1)
        return set_result(
            op, 0, moe_type_1d(MOE_F32, (x->dims[0].size + MOE_SLICE_BLOCK - 1) / MOE_SLICE_BLOCK));
    int64_t blocks = (elements_from(x, 1) + MOE_SLICE_BLOCK - 1) / MOE_SLICE_BLOCK;
    return set_result(op, 0, moe_type_2d(MOE_F32, x->dims[0], blocks));
}

/* b f32[B] or f32[G,B] (, place i32[E]) -> f32[1] */
const char *moe_infer_block_tree(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "block sums", IS_F32, op->n_operands == 2 ? 2 : 0));
    CHECK(moe_need_static(g, op, 0, "block sums"));
    const MoeType *b = operand_type(op, 0);
    if (b->rank > 2)
        return moe_infer_fail(
            g, "operand 0 of block_tree (block sums): expected [B] or [G,B], found %s",
            moe_type_text(g, b));
    if (op->n_operands == 2) {
        CHECK(moe_need_tensor(g, op, 1, "place", IS_I32, 1));
        CHECK(moe_need_static(g, op, 1, "place"));
        int64_t experts = operand_type(op, 1)->dims[0].size;
        if (experts > b->dims[0].size)
            return moe_infer_fail(
                g, "block_tree: place of %" PRId64 " experts, but only %" PRId64 " rows in %s",
                experts, b->dims[0].size, moe_type_text(g, b));
    }
    return set_result(op, 0, moe_type_1d(MOE_F32, 1));
}
