/* The binary tree of docs/NUMBERS.md over items that arrive in order, for partial results too large for registers.
 *
 * An item that is done climbs: at each level it is either a right child, and what is stored of its left sibling, if anything,
 * is to be added to it on the left; or a left child whose right sibling will never come, and it stands for both; or a left
 * child that waits: it is stored in the slot of that level. So an item's way is a list of slots to add, in order, and
 * a level to store at. Callers: wgrad.c (leaves, shards), kind_xent.c (chunks). */
#ifndef MOE_CODEGEN_CPU_TREE_H
#define MOE_CODEGEN_CPU_TREE_H

#include "codegen/cpu/emit.h"

/* The state of one tree in a kernel: `present` is i64[levels]. */
typedef struct {
    MoeVal present;
    int levels; /* the tree has 2^levels places */
} MoeTree;

/* Slots to add, in order: i64 handle + level * unit (addresses or numbers). */
typedef struct {
    MoeVal items, count; /* i64[cap], i64[1] */
} MoeTreeList;

int moe_tree_levels(int64_t n_items); /* smallest L with 2^L >= n_items */
MoeTree moe_tree_create(MoeEmit *e, int64_t n_items);
void moe_tree_reset(MoeEmit *e, const MoeTree *t);
MoeTreeList moe_tree_list_create(MoeEmit *e, int cap);
void moe_tree_list_clear(MoeEmit *e, const MoeTreeList *l);
MoeVal moe_tree_list_count(MoeEmit *e, const MoeTreeList *l);
/* The item at place `pos`, whose next present neighbour is at `next` (2^levels if none will come), climbs: appends to the list and
 * returns the level it is stored at; `levels` means that it is the root. The slot of level i is `handle` + i * unit. */
MoeVal moe_tree_climb(MoeEmit *e, const MoeTree *t, MoeVal pos, MoeVal next, MoeVal handle, int64_t unit,
                      const MoeTreeList *l);
/* The first place after `pos` of a segs table's places first .. first + n_places - 1 that has rows; 2^levels if none has. */
MoeVal moe_tree_next_run(MoeEmit *e, MoeVal segs, MoeVal first, MoeVal pos, int64_t n_places, int levels);

#endif
