/* Shared by the two halves of the product over rows: wgrad.c (blocks, tiles, the tree) and
 * wgrad_pack.c (the rows of a slice). */
#ifndef MOE_CODEGEN_CPU_WGRAD_INTERNAL_H
#define MOE_CODEGEN_CPU_WGRAD_INTERNAL_H

#include "codegen/cpu/tree.h"
#include "codegen/cpu/wgrad.h"

typedef struct {
    const MoeWgrad *w;
    MoeEmit *e;
    MoePanels panels;
    int tile_rows, unit; /* block_n is a multiple of unit: whole tiles and whole vectors */
    int strip; /* columns of a strip of dy: a tile's, or a unit's where vectors do not divide into
                  tiles */
    int64_t block_n, block_panels, n_blocks, k_blocks;
    int64_t slice, steps; /* rows that are made ready at once, a leaf or part of one; their steps */
    bool chains;          /* a leaf may have several slices: its sum goes on from one to the next in `open` */
    int64_t c_stride, slot_bytes, pack_dy, pack_x, slots, open, scratch; /* bytes; offsets in scratch */
    MoeTree leaves, shards;
    MoeTreeSlots tree_slots;
    MoeVal fn[2];                                   /* full and tail panels */
    MoeVal n0, n_live, p0, p1, col0, k_live, group; /* of the task */
    MoeVal group_end;                               /* row behind the group's last */
    MoeVal fetched;                                 /* slot: the next row to ask for */
    bool direct; /* blocks are whole tiles: the last leaf's go straight to the result */
    MoeVal root_out, root_row; /* of roots: where the task's group goes, first row there */
    MoeVal chunk_folds, n_chunk_folds; /* RANGE and direct: slots of earlier chunks to add, ptr[] */
} MoeWgradPlan;

/* One operand's rows. */
typedef struct {
    MoeVal base, src, local; /* local: row number of the buffer's first row */
    int64_t stride, gather;
} MoeWgradSide;

/* Makes rows row0 .. row0 + n_rows of both operands readable for tiles, in the scratch at pack_dy
 * and pack_x. Returns the number of steps. */
MoeVal moe_wgrad_load_rows(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs,
                           MoeVal row0, MoeVal n_rows);
/* A tile's share of the next slice's rows, asked for ahead of time. */
void moe_wgrad_prefetch(MoeWgradPlan *x, const MoeWgradSide *dy, const MoeWgradSide *xs);

#endif
