/* The binary tree of docs/NUMBERS.md over items that arrive in order, for partial results too large
 * for registers.
 *
 * An item that is done climbs: at each level it is either a right child, and what is stored of its
 * left sibling, if anything, is to be added to it on the left; or a left child whose right sibling
 * will never come, and it stands for both; or a left child that waits: it is stored in the slot of
 * that level. So an item's way is a list of slots to add, in order, and a level to store at.
 * Callers: wgrad.c (leaves, shards), kind_xent.c (chunks). */
#ifndef MOE_CODEGEN_CPU_TREE_H
#define MOE_CODEGEN_CPU_TREE_H

#include "codegen/cpu/emit.h"

/* Slots: numbers 0 .. n-1 given to levels of one tree or of several that continue each other. Which
 * memory a number means may be exchanged, so that a sum takes the place of what was added to it
 * last. */
typedef struct {
    MoeVal items,
        count;     /* the way: handles of the memory of slots to add, in order: i64[n], i64[1] */
    MoeVal last;   /* number of the slot added last; -1 */
    MoeVal memory; /* by number: which memory; i64[n] */
    MoeVal base;   /* memory m has the handle base + m * unit: an address, or 0 and 1 for plain
                      numbers */
    int64_t unit;
    int n;
} MoeTreeSlots;

/* The state of one tree in a kernel. */
typedef struct {
    MoeVal present; /* by level: whether its slot holds something; i64[levels + 1] */
    int levels;     /* the tree has 2^levels places */
    int first;      /* the slot number of level 0 */
} MoeTree;

int moe_tree_levels(int64_t n_items); /* smallest L with 2^L >= n_items */
MoeTree moe_tree_create(MoeEmit *e, int64_t n_items, int first);
void moe_tree_reset(MoeEmit *e, const MoeTree *t);
MoeTreeSlots moe_tree_slots_create(MoeEmit *e, int n, MoeVal base, int64_t unit);
void moe_tree_way_clear(MoeEmit *e, const MoeTreeSlots *s);
MoeVal moe_tree_way_count(MoeEmit *e, const MoeTreeSlots *s);
/* The item at place `pos`, whose next present neighbour is at `next` (2^levels if none will come),
 * climbs: the slots on its way are appended. Returns the number of the slot it is stored in; first
 * + levels means that it is the root. */
MoeVal moe_tree_climb(MoeEmit *e, const MoeTree *t, MoeVal pos, MoeVal next, const MoeTreeSlots *s);
/* The handle of slot `number`; moe_tree_take first gives it the memory of the slot added last, if
 * there is one. */
MoeVal moe_tree_handle(MoeEmit *e, const MoeTreeSlots *s, MoeVal number);
MoeVal moe_tree_take(MoeEmit *e, const MoeTreeSlots *s, MoeVal number);
/* The first place after `pos` of a segs table's places first .. first + n_places - 1 that has rows;
 * 2^levels if none has. */
MoeVal moe_tree_next_run(MoeEmit *e, MoeVal segs, MoeVal first, MoeVal pos, int64_t n_places,
                         int levels);

#endif
