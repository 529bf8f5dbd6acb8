/* Shape rules: experts with copies (docs/PLACEMENT.md). T: a rank's token rows, Tg: those of its EP group, K: experts a token, E: experts,
 * V: virtual shards, G: global slots (ranks*slots), R: expert rows. */
#include "ir/infer_util.h"

#include <inttypes.h>

#include "base/mesh.h"
#include "base/split.h"

/* Operand i: static i32[n]; n < 0: any. */
static const char *need_table(MoeGraph *g, const MoeOp *op, int i, const char *what, int64_t n,
                              const char *why) {
    CHECK(moe_need_tensor(g, op, i, what, IS_I32, 1));
    CHECK(moe_need_static(g, op, i, what));
    return n < 0 ? NULL : moe_need_dim(g, op, i, 0, n, why);
}

/* Operand i: runs i32[G,2], for copies i32[G], operand k. */
static const char *need_runs(MoeGraph *g, const MoeOp *op, int i, int k) {
    CHECK(need_table(g, op, k, "copies", -1, ""));
    CHECK(moe_need_tensor(g, op, i, "runs", IS_I32, 2));
    CHECK(moe_need_static(g, op, i, "runs"));
    CHECK(moe_need_dim(g, op, i, 0, operand_type(op, k)->dims[0].size,
                       "a run for each slot of copies"));
    return moe_need_dim(g, op, i, 1, 2, "first and end");
}

static const char *need_counts(MoeGraph *g, const MoeOp *op, int i, int64_t experts,
                               int64_t shards) {
    CHECK(moe_need_tensor(g, op, i, "counts", IS_I32, 2));
    CHECK(moe_need_static(g, op, i, "counts"));
    if (experts >= 0)
        CHECK(moe_need_dim(g, op, i, 0, experts, "experts"));
    return shards < 0 ? NULL : moe_need_dim(g, op, i, 1, shards, "virtual shards");
}

/* ids i32[T,K], all i32[Tg,K], copies i32[G] -> ids', all', counts i32[E,V], runs i32[G,2] */
const char *moe_infer_copy_plan(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_attr(g, op, "experts", 1, MOE_MAX_SEGS_ENTRIES));
    CHECK(moe_need_attr(g, op, "ranks", 1, MOE_MAX_RANKS));
    CHECK(moe_need_attr(g, op, "slots", 1, MOE_MAX_SEGS_ENTRIES));
    for (int i = 0; i < 2; i++) {
        CHECK(moe_need_tensor(g, op, i, i ? "all" : "ids", IS_I32, 2));
        CHECK(moe_need_ragged(g, op, i, i ? "all" : "ids", 1));
    }
    const MoeType *ids = operand_type(op, 0), *all = operand_type(op, 1);
    int64_t shards = all->dims[0].seg->type.shards,
            slots = moe_attr_i(op, "ranks") * moe_attr_i(op, "slots"),
            experts = moe_attr_i(op, "experts");
    CHECK(moe_need_dim(g, op, 1, 1, moe_type_cols(ids), "columns of ids"));
    if (ids->dims[0].seg->type.shards != shards)
        return moe_infer_fail(g, "copy_plan: ids over %s and all over %s differ in virtual shards",
                              moe_type_text(g, &ids->dims[0].seg->type),
                              moe_type_text(g, &all->dims[0].seg->type));
    CHECK(need_table(g, op, 2, "copies", slots, "ranks*slots"));
    if (experts > slots)
        return moe_infer_fail(
            g, "copy_plan: %" PRId64 " slots have no room for %" PRId64 " experts", slots, experts);
    set_result(op, 0, *ids);
    set_result(op, 1, *all);
    set_result(op, 2, moe_type_2d(MOE_I32, moe_dim(experts), shards));
    return set_result(op, 3, moe_type_2d(MOE_I32, moe_dim(slots), 2));
}

/* seg segs<slots,V>, counts i32[E,V], runs i32[G,2], copies i32[G], ep_rank i32[1] -> roots segs<slots*ROOTS,V>, more segs<slots,1> */
const char *moe_infer_root_plan(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_segs(g, op, 0, "seg"));
    const MoeType *seg = operand_type(op, 0);
    CHECK(need_counts(g, op, 1, -1, seg->shards));
    CHECK(need_runs(g, op, 2, 3));
    int64_t slots = operand_type(op, 3)->dims[0].size;
    if (slots % seg->groups)
        return moe_infer_fail(
            g, "root_plan: %" PRId64 " global slots are no ranks of %" PRId64 " slots", slots,
            (int64_t)seg->groups);
    CHECK(moe_need_part(g, op, 4));
    CHECK(moe_need_attr(g, op, "expect", 0, seg->groups * (MOE_COPY_ROOTS - 1)));
    if (seg->groups * MOE_COPY_ROOTS > MOE_MAX_SEGS_ENTRIES / seg->shards)
        return moe_infer_fail(g, "root_plan: %s has too many slots", moe_type_text(g, seg));
    set_result(op, 0, moe_type_segs(seg->groups * MOE_COPY_ROOTS, seg->shards));
    return set_result(op, 1, moe_type_segs(seg->groups, 1));
}

/* dy [R,n], x [R,k], roots segs<slots*ROOTS,V>, more segs<slots,1> -> first f32[slots,n,k], rest f32[M,n,k] */
const char *moe_infer_root_grad(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "dy", IS_FLOAT, 2));
    CHECK(moe_need_tensor(g, op, 1, "x", IS_FLOAT, 2));
    CHECK(moe_need_same_dtype(g, op, 0, 1));
    CHECK(moe_need_same_rows(g, op, 0, 1));
    CHECK(moe_need_ragged(g, op, 0, "dy", 0));
    CHECK(moe_need_segs(g, op, 2, "roots"));
    CHECK(moe_need_segs(g, op, 3, "more"));
    const MoeType *dy = operand_type(op, 0), *roots = operand_type(op, 2),
                  *more = operand_type(op, 3);
    const MoeType *seg = &dy->dims[0].seg->type;
    if (more->shards != 1 || more->groups != seg->groups ||
        roots->groups != seg->groups * MOE_COPY_ROOTS || roots->shards != seg->shards)
        return moe_infer_fail(g,
                              "root_grad: rows over %s go with roots segs<%" PRId64 ",%" PRId64
                              "> and more segs<%" PRId64 ",1>, found %s and %s",
                              moe_type_text(g, seg), (int64_t)seg->groups * MOE_COPY_ROOTS,
                              (int64_t)seg->shards, (int64_t)seg->groups, moe_type_text(g, roots),
                              moe_type_text(g, more));
    int64_t n = moe_type_cols(dy), k = moe_type_cols(operand_type(op, 1));
    MoeType rest = moe_type_3d(MOE_F32, (int64_t)seg->groups * (MOE_COPY_ROOTS - 1), n, k);
    rest.dims[0].seg = op->operands[3];
    set_result(op, 0, moe_type_3d(MOE_F32, seg->groups, n, k));
    return set_result(op, 1, rest);
}

/* w [slots,...], place i32[E], copies i32[G] -> w's type */
const char *moe_infer_copy_experts(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "w", IS_FLOAT, 0));
    CHECK(moe_need_static(g, op, 0, "w"));
    const MoeType *w = operand_type(op, 0);
    CHECK(need_table(g, op, 1, "place", -1, ""));
    CHECK(need_table(g, op, 2, "copies", -1, ""));
    int64_t slots = operand_type(op, 2)->dims[0].size;
    if (w->rank < 2 || w->dims[0].size < 1 || slots % w->dims[0].size ||
        operand_type(op, 1)->dims[0].size > slots)
        return moe_infer_fail(
            g, "copy_experts: w %s, place %s and copies %s are not of the same slots and experts",
            moe_type_text(g, w), moe_type_text(g, operand_type(op, 1)),
            moe_type_text(g, operand_type(op, 2)));
    return set_result(op, 0, *w);
}

/* first f32[slots,n,k], rest f32[M,n,k], counts i32[E,V], runs i32[G,2], copies i32[G], place i32[E] -> f32[slots,n,k] */
const char *moe_infer_fold_copies(MoeGraph *g, MoeOp *op) {
    CHECK(moe_need_tensor(g, op, 0, "first", IS_F32, 3));
    CHECK(moe_need_static(g, op, 0, "first"));
    CHECK(moe_need_tensor(g, op, 1, "rest", IS_F32, 3));
    const MoeType *first = operand_type(op, 0);
    int64_t slots = first->dims[0].size;
    CHECK(moe_need_ragged(g, op, 1, "rest", slots));
    for (int d = 1; d < 3; d++)
        CHECK(moe_need_dim(g, op, 1, d, first->dims[d].size, "first's"));
    CHECK(need_table(g, op, 5, "place", -1, ""));
    CHECK(need_counts(g, op, 2, operand_type(op, 5)->dims[0].size, -1));
    CHECK(need_runs(g, op, 3, 4));
    if (slots < 1 || operand_type(op, 4)->dims[0].size % slots)
        return moe_infer_fail(g, "fold_copies: first %s and copies %s are not of the same slots",
                              moe_type_text(g, first), moe_type_text(g, operand_type(op, 4)));
    return set_result(op, 0, *first);
}
