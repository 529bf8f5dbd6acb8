/* A layer whose experts have copies (docs/PLACEMENT.md): which copy each choice of a token goes to, the roots of the weight gradients'
 * trees that each slot computes, and how the roots of an expert's copies fold into its gradient. Tables of integers, the same on every
 * rank of an EP group.
 *
 * Compiled programs call moe_split_copy_plan and moe_split_root_plan by name (MOE_SPLIT_KERNEL_FUNCTIONS): both have plain C signatures,
 * and whoever links a plan defines these symbols. */
#ifndef MOE_BASE_SPLIT_ROWS_H
#define MOE_BASE_SPLIT_ROWS_H

#include "base/split.h"

/* Scratch memory that moe_split_copy_plan wants, in bytes, aligned to 8. */
int64_t moe_split_plan_scratch(int64_t experts, int64_t ranks, int64_t slots, int64_t shards);

/* ids [tokens][k] of the EP group's tokens, tok [shards+1] their rows by virtual shard, copies [ranks*slots]. Writes to [tokens][k], the
 * global slot of the copy that each choice goes to; counts [experts][shards], the rows of each expert; runs [ranks*slots][2], first and
 * end row of each slot. Every expert that is chosen has a copy. */
void moe_split_copy_plan(const int32_t *ids, const int32_t *tok, const int32_t *copies, int32_t *to,
                         int32_t *counts, int32_t *runs, int64_t experts, int64_t ranks,
                         int64_t slots, int64_t shards, int64_t k, int64_t leaf, void *scratch);

/* The roots of the slots of EP rank `rank`, of rows that lie slot after slot. roots: a table of slots*MOE_COPY_ROOTS groups by `shards`
 * ([groups*shards+1]): each group has the rows of one root by virtual shard. A slot has one group at least, empty where it has no rows;
 * slot after slot, what is left at the end is empty. more [slots+1]: how many groups the slots before have beyond their first, so slot
 * s's groups begin at s + more[s]. */
void moe_split_root_plan(const int32_t *counts, const int32_t *runs, const int32_t *copies,
                         int64_t rank, int32_t *roots, int32_t *more, int64_t slots, int64_t shards,
                         int64_t leaf);

/* FUNCTION(name) */
#define MOE_SPLIT_KERNEL_FUNCTIONS(X) X(moe_split_copy_plan) X(moe_split_root_plan)

/* How an expert's gradient comes from the roots of all its copies, ascending by row: a program for a stack, in the order of docs/NUMBERS.md
 * rule 4. Each entry pushes root 0, 1, ... (MOE_SPLIT_PUSH) or replaces the two on top by their sum, the lower one left (MOE_SPLIT_ADD).
 * counts [shards] of the expert, ends [n]: end rows of the roots, which tile its rows. program has room for 2n - 1 entries. */
enum { MOE_SPLIT_PUSH, MOE_SPLIT_ADD };
/* Returns how many entries: 2n - 1; -1: these are no roots of that tree. */
int moe_split_fold(const int32_t *counts, int shards, int leaf, const int32_t *ends, int n,
                   uint8_t *program);

#endif
