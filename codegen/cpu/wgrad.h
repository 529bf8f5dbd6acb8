/* The product over rows, dw [n,k] = dy^T x, by the tree over leaves and shards of docs/NUMBERS.md.
 * Callers: kind_wgrad.c, kind_xent.c (chunk by chunk). */
#ifndef MOE_CODEGEN_CPU_WGRAD_H
#define MOE_CODEGEN_CPU_WGRAD_H

#include "codegen/cpu/gemm.h"

/* The table entry of a chunk (rows.mode RANGE): i32 fields. */
enum {
    MOE_CHUNK_LO,
    MOE_CHUNK_HI,     /* rows lo .. hi: a whole subtree of a shard's leaves */
    MOE_CHUNK_ACTIVE, /* 0: no such chunk */
    MOE_CHUNK_DEST,   /* number of the slot that gets this chunk's sum; -1: the result (which is a
                         slot, too) */
    MOE_CHUNK_N_FOLDS,
    MOE_CHUNK_FOLDS, /* numbers of the slots to add on the left, in order; -1 as above */
    MOE_CHUNK_FIELDS = 64
};

typedef struct {
    MoeRowSpace rows; /* shards: entries of a group in the table */
    MoeTileElem elem;
    MoeDtype dtype; /* of dy and x */
    int64_t n, k;
    int64_t dy_stride, x_stride; /* bytes between rows */
    int64_t gather_dy, gather_x; /* > 0: row r is row src[r] / gather of the buffer */
    int64_t leaf_rows;           /* of the tree; 0: one chain over all of a group's rows (--fast-reduce) */
    bool dy_local;               /* RANGE: dy holds row lo at its start */
    int buf_dy, buf_src_dy, buf_x, buf_src_x, buf_out;
    int buf_slots; /* RANGE: [slot][n][k] f32 */
    /* > 0: groups are roots of so many slots (base/split_rows.h). The first of each slot goes to buf_out, the others to buf_rest, in order;
     * buf_more has the table that counts these. */
    int64_t root_slots;
    int buf_rest, buf_more;
} MoeWgrad;

const char *moe_wgrad_emit(MoeCpuTarget *t, const MoeWgrad *w, MoeLowered *out);

#endif
