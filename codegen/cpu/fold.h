/* The binary tree of docs/NUMBERS.md over items that come one by one, as emitted code: a stack of
 * partial results. Pushing the n-th item folds the two on top once for each trailing zero bit of n;
 * at the end the rest folds from the top down. An absent item takes its place in the tree and adds
 * nothing: a node with one child present is that child. Items are f32 scalars or vectors. */
#ifndef MOE_CODEGEN_CPU_FOLD_H
#define MOE_CODEGEN_CPU_FOLD_H

#include "codegen/cpu/emit.h"

typedef struct {
    LLVMTypeRef type;
    MoeVal items, present, depth, count; /* stack slots of the function */
} MoeFold;

/* Makes the stack; once per function and fold. */
void moe_fold_create(MoeEmit *e, MoeFold *f, LLVMTypeRef type);
void moe_fold_reset(MoeEmit *e, MoeFold *f);
/* present: i1, or NULL for an item that is there. */
void moe_fold_push(MoeEmit *e, MoeFold *f, MoeVal item, MoeVal present);
/* The root; +0 if no item was present. out_present (may be NULL): i1. */
MoeVal moe_fold_finish(MoeEmit *e, MoeFold *f, MoeVal *out_present);

#endif
