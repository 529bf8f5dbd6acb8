/* The constants of the numbers contract (docs/NUMBERS.md), shared by backends and tests. */
#ifndef MOE_IR_NUMBERS_H
#define MOE_IR_NUMBERS_H

#define MOE_LEAF_ROWS      128  /* rows of a leaf of the column sums' trees; of the weight gradients' where a graph says nothing else */
#define MOE_MIN_LEAF_ROWS  64   /* what a graph may say, in powers of two (MoeGraph.leaf_rows) */
#define MOE_MAX_LEAF_ROWS  4096
#define MOE_NORM_BLOCK     4096 /* elements of a leaf of the gradient-norm tree */
#define MOE_DEFAULT_SHARDS 8    /* virtual shards of a batch */
#define MOE_MAX_SHARDS     64

#endif
