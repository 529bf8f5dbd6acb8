/* Shared by the lists of cases (op_cases.c, op_cases_plain.c, op_cases_model.c) only.
 *
 * Tolerances are for a kernel in f32 (bf16 where the dtype says so) against the f64 interpreter, on
 * standard normal data of exactly the same bits: exact      the op moves or compares values: equal
 * bits rounded    correctly rounded f32: half an ulp, 6e-8 of the element (bf16: one ulp of bf16,
 * 2^-7, as a tie may fall to the other side after the rounding to f32) sum of n   n additions of
 * products of variance 1: errors add up like eps * n / 2 at the most likely, 2e-7 * n here,
 *              absolute, because a sum of n signed terms may cancel */
#ifndef MOE_TESTS_OP_CASES_INTERNAL_H
#define MOE_TESTS_OP_CASES_INTERNAL_H

#include "tests/support/op_cases.h"

#define LEN(a) (sizeof(a) / sizeof *(a))

typedef struct {
    MoeOpCase *out;
    size_t cap, n;
} MoeCaseList;

/* Appends a case: sets its id, and a capacity above the live rows. */
void moe_case_add(MoeCaseList *l, MoeOpCase c);

static inline MoeTolerance moe_tol_sum(int64_t n) {
    return (MoeTolerance){2e-7 * (double)n, 0, 2.4e-7};
}

static inline MoeTolerance moe_tol_rounded(void) {
    return (MoeTolerance){0, 0, 1.2e-7};
}

/* op_cases_plain.c: declarations, elementwise, rows, reductions, the update. */
void moe_cases_declaration(MoeCaseList *l, MoeOpcode op);
void moe_cases_elementwise(MoeCaseList *l, MoeOpcode op, int operands, MoeTolerance f32, bool bf16);
void moe_cases_integer_add(MoeCaseList *l);
void moe_cases_convert(MoeCaseList *l);
void moe_cases_broadcast(MoeCaseList *l);
void moe_cases_row_reduce(MoeCaseList *l, MoeOpcode op);
void moe_cases_rmsnorm(MoeCaseList *l);
void moe_cases_count_valid(MoeCaseList *l);
void moe_cases_col_sum(MoeCaseList *l);
void moe_cases_sum_squares(MoeCaseList *l);
void moe_cases_block_squares(MoeCaseList *l);
void moe_cases_block_tree(MoeCaseList *l);
void moe_cases_identity(MoeCaseList *l, MoeOpcode op, MoeDtype d);
void moe_cases_adamw(MoeCaseList *l);
/* op_cases_model.c: contractions, experts, sequence, loss. */
void moe_cases_routed(MoeCaseList *l, MoeOpcode op); /* by tokens and experts alone */
void moe_cases_rank_plan(MoeCaseList *l, MoeOpcode op);
void moe_cases_move(MoeCaseList *l, MoeOpcode op, bool bf16);
void moe_cases_count(MoeCaseList *l, MoeOpcode op);
void moe_cases_matmul(MoeCaseList *l);
void moe_cases_weight_grad(MoeCaseList *l);
void moe_cases_copies(MoeCaseList *l, MoeOpcode op);
void moe_cases_embedding(MoeCaseList *l, MoeOpcode op);
void moe_cases_rope(MoeCaseList *l);
void moe_cases_attention(MoeCaseList *l, MoeOpcode op);
void moe_cases_cross_entropy(MoeCaseList *l, MoeOpcode op);
void moe_cases_cross_entropy_join(MoeCaseList *l);

/* Rows around the leaf of 128 of the trees; token tables with empty shards. */
typedef struct {
    int64_t rows, shards;
    MoeShardLayout layout;
} MoeLeafShape;
enum { MOE_N_LEAF_SHAPES = 10 };
extern const MoeLeafShape moe_leaf_shapes[MOE_N_LEAF_SHAPES];

#endif
