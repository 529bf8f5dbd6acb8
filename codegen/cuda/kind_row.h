/* Row groups on CUDA: kind_row.c emits what codegen/row_plan.h plans row by row, kind_row_flat.c per element, kind_row_col.c
 * the launch that folds column sums; kind_row_text.c has the words they share.
 *
 * ROWS: a team of threads has a row (row_map.h). Within a loop over columns a value is a register; one that a later stage
 * reads stays in an array of registers, is loaded again (it comes from the cache) or computed again. What row-local ops read
 * by column number or write lies in a row buffer in shared memory. With col_sums a block has a leaf of 128 rows: its teams
 * take neighbouring rows, put their terms into shared memory, and each column is then added up in the rows' order.
 *
 * Values are named by op and number (mul7, in3 for what is read); mul7s is the array over the columns of a thread, mul7_row
 * where its row lies in memory. */
#ifndef MOE_CODEGEN_CUDA_KIND_ROW_H
#define MOE_CODEGEN_CUDA_KIND_ROW_H

#include "codegen/cuda/row_map.h"

/* Text of one kernel. */
typedef struct {
    MoeArena *arena;
    const MoeRowPlan *p;
    const char **name; /* by value; constants: the number */
    MoeStr s;
} MoeCudaRowText;

MoeCudaRowText moe_cuda_row_text(MoeArena *arena, const MoeRowPlan *p);

const char *moe_cuda_row_memory_type(MoeDtype d); /* "float", "bf16", "i32" */
const char *moe_cuda_row_value_type(MoeDtype d);  /* "float", "i32" */

/* A line of C++ that computes op's result from the texts of its operands, rounded as its type says; a comment line before
 * says which op it is. indent: spaces. */
void moe_cuda_row_ew(const MoeCudaRowText *x, MoeStr *out, int indent, const MoeRowOp *o,
                     const char *const *in);
/* The op as the graph has it: "mul7: f32[4096,512] = mul in3 rsqrt5". */
void moe_cuda_row_comment(const MoeCudaRowText *x, MoeStr *out, int indent, const MoeRowOp *o);
/* Lines that declare every UNIFORM value, and store those that are outputs. */
void moe_cuda_row_uniform(MoeCudaRowText *x);
/* Expressions of the first live row and the end of them. */
const char *moe_cuda_row_first(const MoeCudaRowText *x);
const char *moe_cuda_row_end(const MoeCudaRowText *x);
/* Of a kernel's note: the ops, and the rows. */
const char *moe_cuda_row_note(const MoeCudaRowText *x);

void moe_cuda_row_flat(MoeCudaTarget *t, const MoeRowPlan *p, MoeLowered *out);
/* MOE_E_INPUT: rows whose row-local ops need more shared memory than there is. */
MoeStatus moe_cuda_row_rows(MoeCudaTarget *t, const MoeRowPlan *p, MoeLowered *out);
/* The second launch of a col_sum: partial sums by leaf -> f32[cols]. */
void moe_cuda_row_fold(MoeCudaTarget *t, const MoeRowPlan *p, const MoeRowOp *op, MoeLowered *out);

#endif
