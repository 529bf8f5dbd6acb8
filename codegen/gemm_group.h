/* What a matmul group holds, for every target: {[dispatch,] matmul [, a second matmul of the same rows], elementwise tail,
 * row sums of the tail}. Row sums are only put where the target's rules say so (MoeFuseRules), and nothing in the group reads
 * them.
 *
 *   %xs = dispatch %x, %src, %inv          the row pointers come from src
 *   %g = matmul %xs, %w1                   one block of rows and columns at a time,
 *   %u = matmul %xs, %w3                   both products of it,
 *   %y = mul (mul %g, sigmoid %g), %u      then the tail on it while it is near
 *
 * Tail values are tiles [T,n], row scalars [T,1], column vectors [n], or uniform [1]; each is computed at its own level. The
 * bits are those of the ops run one by one: every op of the tail is one rounding per element either way. */
#ifndef MOE_CODEGEN_GEMM_GROUP_H
#define MOE_CODEGEN_GEMM_GROUP_H

#include "codegen/row_space.h"
#include "ir/target.h"

enum { MOE_GEMM_MAX_OPS = 64, MOE_GEMM_MAX_VALUES = 128, MOE_GEMM_MAX_SUMS = 4 };

typedef enum {
    MOE_LEVEL_UNIFORM,
    MOE_LEVEL_ROW,
    MOE_LEVEL_COLUMN,
    MOE_LEVEL_TILE,
    MOE_LEVEL_NONE
} MoeGemmLevel;

/* A value of the tail, in order: the products, then as the ops name them. */
typedef struct {
    const MoeValue *v;
    MoeGemmLevel level;
    bool is_input;       /* read from memory: made outside, and no constant */
    bool is_output;      /* the group writes it */
    int product;         /* which matmul makes it, or -1 */
    int buf_in, buf_out; /* kernel buffers, given by the target; -1 */
} MoeGemmValue;

typedef struct {
    const MoeOp *dispatch, *product[2], *tail[MOE_GEMM_MAX_OPS], *sum[MOE_GEMM_MAX_SUMS];
    int n_products, n_tail, n_sums;
    MoeGemmValue values[MOE_GEMM_MAX_VALUES]; /* moe_gemm_group_values */
    int n_values;
} MoeGemmGroup;

/* Sorts ops, and `more` (may be NULL) behind them, into gg; false if they are no matmul group (a dispatch alone may become one:
 * n_products 0). */
bool moe_gemm_group(MoeOp *const *ops, size_t n_ops, const MoeOp *more, MoeGemmGroup *gg);
/* Whether op may join a group that has a matmul, or that op (a matmul) turns into one. */
bool moe_gemm_group_joins(MoeOp *const *ops, size_t n_ops, const MoeOp *op);
/* Whether the output of a matmul's tail may take over a dying input of the tail. */
bool moe_gemm_group_can_alias(const MoeGroup *g, const MoeValue *input, const MoeValue *output);
/* Whether the product goes out as it is: nothing to do behind it. */
bool moe_gemm_group_plain(const MoeGemmGroup *gg);

/* Fills in gg->values, of a group g that moe_gemm_group accepted. */
void moe_gemm_group_values(MoeGemmGroup *gg, const MoeGroup *g);
/* The index of v among the values; -1. */
int moe_gemm_group_find(const MoeGemmGroup *gg, const MoeValue *v);
/* Operands of a tail op that are values: broadcast's second, which only shapes, is left out. */
int moe_gemm_tail_inputs(const MoeOp *op);
/* The op if v is a constant, else NULL. */
const MoeOp *moe_constant_of(const MoeValue *v);
bool moe_group_writes(const MoeGroup *g, const MoeValue *v);
/* A dispatch whose rows are read elsewhere, too, is written out by its own kernel: the group of it alone, into *out; false: no
 * need (or dispatch is NULL). *out refers to out_op and out_value. */
bool moe_group_dispatch_alone(const MoeGroup *g, const MoeOp *dispatch, MoeGroup *out,
                              MoeOp **out_op, MoeValue **out_value);

#endif
