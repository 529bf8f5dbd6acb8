/* Shape inference: the checks that every op gets (arity, attributes, sane types) around the op's
 * own rule, and the checks that the rules share. In: an op with operands and attributes. Out: the
 * types of its results, or a message. */
#include "ir/infer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ir/infer_util.h"

static const MoeInferFn rules[MOE_N_OPS] = {
#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    [MOE_OP_##id] = moe_infer_##infer,
#include "ir/ops.def"
#undef OP
};

const char *moe_infer_fail(MoeGraph *g, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    const char *text = moe_arena_vprintf(g->arena, fmt, ap);
    va_end(ap);
    return text;
}

const char *moe_type_text(MoeGraph *g, const MoeType *t) {
    MoeStr s = {0};
    moe_type_print(t, &s);
    const char *text = moe_arena_strdup(g->arena, moe_str_c(&s));
    moe_str_free(&s);
    return text;
}

static const char *attr_type_name(char type) {
    return type == 'i'   ? "an integer"
           : type == 'f' ? "a number"
           : type == 's' ? "a string"
                         : "0 or 1";
}

static const char *check_attr(MoeGraph *g, const MoeOp *op, int at) {
    const MoeAttr *a = &op->attrs[at];
    const char *name = moe_op_info(op->opcode)->name;
    char type = moe_op_attr_type(op->opcode, a->key, NULL);
    if (!type)
        return moe_infer_fail(g, "op %s has no attribute '%.60s'", name, a->key);
    if (type != a->type)
        return moe_infer_fail(g, "attribute %s of %s is %s, not %s", a->key, name,
                              attr_type_name(type), attr_type_name(a->type));
    if (type == 'b' && a->i != 0 && a->i != 1)
        return moe_infer_fail(g, "attribute %s of %s is 0 or 1, not %" PRId64, a->key, name, a->i);
    for (int i = 0; i < at; i++) {
        if (strcmp(op->attrs[i].key, a->key) == 0)
            return moe_infer_fail(g, "attribute %s is given twice", a->key);
    }
    return NULL;
}

static const char *check_attrs(MoeGraph *g, const MoeOp *op) {
    for (int i = 0; i < op->n_attrs; i++)
        CHECK(check_attr(g, op, i));
    MoeAttrDecl decls[MOE_MAX_ATTRS];
    int n = moe_op_attr_decls(op->opcode, decls);
    for (int i = 0; i < n; i++) {
        if (!decls[i].optional && !moe_attr(op, decls[i].key))
            return moe_infer_fail(g, "op %s needs the attribute %s (%s)",
                                  moe_op_info(op->opcode)->name, decls[i].key,
                                  attr_type_name(decls[i].type));
    }
    if (moe_attr(op, "layer"))
        return moe_need_attr(g, op, "layer", 0, INT32_MAX);
    return NULL;
}

const char *moe_infer(MoeGraph *g, MoeOp *op) {
    const MoeOpInfo *info = moe_op_info(op->opcode);
    if (op->n_operands < info->min_in || (info->max_in >= 0 && op->n_operands > info->max_in)) {
        char want[48];
        if (info->max_in < 0)
            snprintf(want, sizeof want, "%d or more", info->min_in);
        else if (info->min_in != info->max_in)
            snprintf(want, sizeof want, "%d to %d", info->min_in, info->max_in);
        else
            snprintf(want, sizeof want, "%d", info->min_in);
        return moe_infer_fail(g, "op %s takes %s operands, not %d", info->name, want,
                              op->n_operands);
    }
    CHECK(check_attrs(g, op));
    CHECK(rules[op->opcode](g, op));
    for (int i = 0; i < op->n_results; i++) {
        const char *problem = moe_type_check(&op->results[i]->type);
        if (problem)
            return moe_infer_fail(g, "result %d of %s would be %s: %s", i, info->name,
                                  op->results[i]->type.rank > MOE_MAX_RANK
                                      ? "a tensor"
                                      : moe_type_text(g, &op->results[i]->type),
                                  problem);
    }
    return NULL;
}

static void dtypes_text(int dtypes, char *buf, size_t n) {
    buf[0] = 0;
    for (int i = 0; i < MOE_N_DTYPES; i++) {
        if (!(dtypes & 1 << i))
            continue;
        size_t at = strlen(buf);
        snprintf(buf + at, n - at, "%s%s", at ? " or " : "", moe_dtype_name((MoeDtype)i));
    }
}

const char *moe_need_tensor(MoeGraph *g, const MoeOp *op, int i, const char *what, int dtypes,
                            int rank) {
    const MoeType *t = operand_type(op, i);
    if (t->kind == MOE_TYPE_TENSOR && (dtypes & 1 << t->dtype) && (rank == 0 || t->rank == rank))
        return NULL;
    char names[64], ranks[24] = "";
    dtypes_text(dtypes, names, sizeof names);
    if (rank)
        snprintf(ranks, sizeof ranks, " of rank %d", rank);
    return moe_infer_fail(g, "operand %d of %s (%s): expected %s%s, found %s", i,
                          moe_op_info(op->opcode)->name, what, names, ranks, moe_type_text(g, t));
}

const char *moe_need_segs(MoeGraph *g, const MoeOp *op, int i, const char *what) {
    const MoeType *t = operand_type(op, i);
    if (t->kind == MOE_TYPE_SEGS)
        return NULL;
    return moe_infer_fail(g, "operand %d of %s (%s): expected a segs value, found %s", i,
                          moe_op_info(op->opcode)->name, what, moe_type_text(g, t));
}

const char *moe_need_ragged(MoeGraph *g, const MoeOp *op, int i, const char *what, int64_t groups) {
    const MoeType *t = operand_type(op, i);
    const MoeValue *seg = t->dims[0].seg;
    if (seg && (groups == 0 || seg->type.groups == groups))
        return NULL;
    if (!seg)
        return moe_infer_fail(g, "operand %d of %s (%s): expected ragged rows, found %s", i,
                              moe_op_info(op->opcode)->name, what, moe_type_text(g, t));
    return moe_infer_fail(
        g, "operand %d of %s (%s): expected rows over segs<%" PRId64 ",V>, found %s over %s", i,
        moe_op_info(op->opcode)->name, what, groups, moe_type_text(g, t),
        moe_type_text(g, &seg->type));
}

const char *moe_need_static(MoeGraph *g, const MoeOp *op, int i, const char *what) {
    const MoeType *t = operand_type(op, i);
    if (!t->dims[0].seg)
        return NULL;
    return moe_infer_fail(g, "operand %d of %s (%s): expected no ragged dim, found %s", i,
                          moe_op_info(op->opcode)->name, what, moe_type_text(g, t));
}

const char *moe_need_same_rows(MoeGraph *g, const MoeOp *op, int i, int j) {
    const MoeType *a = operand_type(op, i), *b = operand_type(op, j);
    if (moe_dim_equal(a->dims[0], b->dims[0]))
        return NULL;
    return moe_infer_fail(g, "operands %d and %d of %s must have the same rows, found %s and %s", i,
                          j, moe_op_info(op->opcode)->name, moe_type_text(g, a),
                          moe_type_text(g, b));
}

const char *moe_need_same_dtype(MoeGraph *g, const MoeOp *op, int i, int j) {
    const MoeType *a = operand_type(op, i), *b = operand_type(op, j);
    if (a->dtype == b->dtype)
        return NULL;
    return moe_infer_fail(g, "operands %d and %d of %s must have the same dtype, found %s and %s",
                          i, j, moe_op_info(op->opcode)->name, moe_type_text(g, a),
                          moe_type_text(g, b));
}

const char *moe_need_same_type(MoeGraph *g, const MoeOp *op, int i, int j) {
    const MoeType *a = operand_type(op, i), *b = operand_type(op, j);
    if (moe_type_equal(a, b))
        return NULL;
    return moe_infer_fail(g, "operands %d and %d of %s must have the same type, found %s and %s", i,
                          j, moe_op_info(op->opcode)->name, moe_type_text(g, a),
                          moe_type_text(g, b));
}

const char *moe_need_part(MoeGraph *g, const MoeOp *op, int i) {
    CHECK(moe_need_tensor(g, op, i, "part", IS_I32, 1));
    return moe_need_dim(g, op, i, 0, 1, "the number of a part");
}

const char *moe_need_dim(MoeGraph *g, const MoeOp *op, int i, int d, int64_t n, const char *why) {
    const MoeType *t = operand_type(op, i);
    if (!t->dims[d].seg && t->dims[d].size == n)
        return NULL;
    return moe_infer_fail(g, "operand %d of %s: dim %d must be %" PRId64 " (%s), found %s", i,
                          moe_op_info(op->opcode)->name, d, n, why, moe_type_text(g, t));
}

const char *moe_need_attr(MoeGraph *g, const MoeOp *op, const char *key, int64_t lo, int64_t hi) {
    int64_t v = moe_attr_i(op, key);
    if (v >= lo && v <= hi)
        return NULL;
    return moe_infer_fail(g,
                          "attribute %s of %s must lie in %" PRId64 "..%" PRId64 ", found %" PRId64,
                          key, moe_op_info(op->opcode)->name, lo, hi, v);
}
