/* Register tiles: the inner loops of every matrix product of the CPU target, as internal functions
 * that all kernels share.
 *
 * A tile is `rows` rows x `vectors` vectors of f32 accumulators that live in registers over the
 * whole inner extent; each is one chain of fused multiply-adds in ascending order (docs/NUMBERS.md,
 * 2), so neither the tile's shape nor the other rows change a row's bits. B comes packed:
 * [steps][vectors * lanes] elements of 4 bytes. Callers: kind_gemm.c, kind_wgrad.c, kind_xent*.c.
 */
#ifndef MOE_CODEGEN_CPU_TILE_H
#define MOE_CODEGEN_CPU_TILE_H

#include "codegen/cpu/emit.h"

typedef enum {
    MOE_TILE_F32,  /* A f32, B f32 */
    MOE_TILE_WIDE, /* A bf16 widened on the fly, B f32 (widened when packed): targets without bf16
                      dot products */
    MOE_TILE_DOT   /* A bf16, B pairs of bf16 (k, k+1): vdpbf16ps */
} MoeTileElem;

/* For operands of dtype d (F32, BF16) on this target. */
MoeTileElem moe_tile_elem(const MoeCpuTarget *t, MoeDtype d);
/* Values of k that one step of the inner loop takes (2 for DOT), and the steps that k values take.
 */
int moe_tile_k_per_step(MoeTileElem elem);
int64_t moe_tile_steps(MoeTileElem elem, int64_t k);

/* void tile(ptr a_rows, i64 a_offset, i64 k, ptr b, ptr c, i64 c_stride, i64 more)
 * a_rows: `rows` pointers; k elements are read a_offset bytes behind each, nothing beyond. c: f32,
 * rows c_stride bytes apart. more = 0: C = A B, else C += A B, continuing each element's chain. */
MoeVal moe_tile_gemm(MoeCpuTarget *t, MoeTileElem elem, int rows, int vectors);

/* void tile(ptr a, i64 a_at, ptr b, i64 b_at, i64 steps, ptr folds, i64 n_folds, i64 offset, i64
 * stride, ptr dest, i64 dest_stride, ptr more, i64 n_more, i64 more_offset[, ptr start, i64 starts])
 * acc = A^T B, over `steps` rows of A and B, from zero; with `chains` and starts = 1 each element's
 * chain goes on from start[offset] (rows stride bytes apart). Then acc = folds[i][offset] + acc for i
 * ascending (rows stride bytes apart), and the same for more[i][more_offset] (rows dest_stride
 * bytes apart); then dest = acc. F32, WIDE: a and b are tables of
 * row pointers, the tile's first columns lie a_at and b_at bytes behind them; up to a tile's width
 * is read. DOT: pairs of rows are packed, A as runs of `rows` elements a_at bytes apart, B densely,
 * b_at bytes behind b. */
MoeVal moe_tile_wgrad(MoeCpuTarget *t, MoeTileElem elem, int rows, int vectors, bool chains);

/* How n columns are cut into panels of tile_vectors vectors; the last panel (or the last two) may
 * be narrower: 4 vectors are 2 + 2 rather than 3 + 1. */
typedef struct {
    int lanes, full; /* lanes of a vector; vectors of a full panel */
    int64_t cols, n_full, n_tail;
    int tail; /* vectors of each of the n_tail narrower panels */
} MoePanels;
MoePanels moe_panels(const MoeCpuTarget *t, int64_t cols);
int64_t moe_panels_count(const MoePanels *p);
int64_t moe_panels_cols(const MoePanels *p); /* columns, padding included */
/* First column of panel i (emitted; i may be any index expression). */
MoeVal moe_panels_first(MoeEmit *e, const MoePanels *p, MoeVal panel);
int64_t moe_panels_first_const(const MoePanels *p, int64_t panel);

#endif
