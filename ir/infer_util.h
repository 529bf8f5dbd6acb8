/* For the shape rules (ir/infer*.c): the checks they share. Each returns a message or NULL; CHECK
 * passes one on. */
#ifndef MOE_IR_INFER_UTIL_H
#define MOE_IR_INFER_UTIL_H

#include "ir/infer.h"

#define OP(id, name, min_in, max_in, n_out, kind, attrs, infer, grad, decomp, shard, cost, doc)    \
    const char *moe_infer_##infer(MoeGraph *g, MoeOp *op);
#include "ir/ops.def"
#undef OP

#define CHECK(expr)                                                                                \
    do {                                                                                           \
        const char *problem_ = (expr);                                                             \
        if (problem_)                                                                              \
            return problem_;                                                                       \
    } while (0)

/* Sets of dtypes that an operand may have. */
enum { IS_F32 = 1 << MOE_F32, IS_BF16 = 1 << MOE_BF16, IS_I32 = 1 << MOE_I32 };
enum { IS_FLOAT = IS_F32 | IS_BF16, IS_ANY = IS_FLOAT | IS_I32 };

const char *moe_infer_fail(MoeGraph *g, const char *fmt, ...) MOE_PRINTF(2, 3);
/* A type as text, in the arena. */
const char *moe_type_text(MoeGraph *g, const MoeType *t);
/* Operand i is a tensor of one of these dtypes; rank 0 = any. `what` names it: "x", "weights". */
const char *moe_need_tensor(MoeGraph *g, const MoeOp *op, int i, const char *what, int dtypes,
                            int rank);
const char *moe_need_segs(MoeGraph *g, const MoeOp *op, int i, const char *what);
/* Dim 0 of operand i is ragged; groups > 0: over segs of that many groups. */
const char *moe_need_ragged(MoeGraph *g, const MoeOp *op, int i, const char *what, int64_t groups);
/* No dim of operand i is ragged. */
const char *moe_need_static(MoeGraph *g, const MoeOp *op, int i, const char *what);
/* Operands i and j have the same dim 0 (size and seg). */
const char *moe_need_same_rows(MoeGraph *g, const MoeOp *op, int i, int j);
const char *moe_need_same_dtype(MoeGraph *g, const MoeOp *op, int i, int j);
const char *moe_need_same_type(MoeGraph *g, const MoeOp *op, int i, int j);
/* Operand i is the number of a part: i32[1]. */
const char *moe_need_part(MoeGraph *g, const MoeOp *op, int i);
/* Dim d of operand i is n; `why` says where n comes from. */
const char *moe_need_dim(MoeGraph *g, const MoeOp *op, int i, int d, int64_t n, const char *why);
/* Attribute key lies in lo..hi. */
const char *moe_need_attr(MoeGraph *g, const MoeOp *op, const char *key, int64_t lo, int64_t hi);

static inline const MoeType *operand_type(const MoeOp *op, int i) {
    return &op->operands[i]->type;
}

static inline const char *set_result(MoeOp *op, int i, MoeType t) {
    op->results[i]->type = t;
    return NULL;
}

#endif
