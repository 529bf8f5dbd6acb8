/* The matrix product that matmul groups and the loss head emit: packed B panels, A rows read in
 * place through row pointers (so a gather of rows costs nothing), register tiles, an epilogue over
 * each finished block.
 *
 * Packed B, one image a group: panels in order (moe_panels), each [steps][width] elements of 4
 * bytes (tile.h), zero where k or n end. Callers: kind_gemm.c, kind_xent.c. */
#ifndef MOE_CODEGEN_CPU_GEMM_H
#define MOE_CODEGEN_CPU_GEMM_H

#include "codegen/cpu/tile.h"
#include "codegen/row_space.h"

/* The rows of a group. */
void moe_row_space_range(MoeEmit *e, const MoeRowSpace *s, MoeVal group, MoeVal *lo, MoeVal *hi);

typedef struct MoeGemm {
    MoeRowSpace rows;
    MoeTileElem elem;
    MoeDtype a_dtype;
    int64_t k, n;
    int n_products;          /* 1, or 2 that share A */
    int64_t a_stride;        /* bytes between rows of A */
    int64_t gather;          /* > 0: row r of A is row src[r] / gather of its buffer */
    bool a_local, out_local; /* RANGE: buffers hold row lo at their start */
    int buf_a, buf_src, buf_b[2];
    int buf_out;     /* >= 0: the product itself goes there, f32 [rows, n]; no callbacks then */
    const char *key; /* what the callbacks' code depends on; "" without */
    /* Epilogue; values are vectors, scalars splatted. task: once; row: for each row of a panel;
     * vector: for `lanes` columns at `col`, mask NULL = all live. */
    void (*task)(MoeEmit *e, void *ctx);
    void (*row)(MoeEmit *e, void *ctx, MoeVal row, MoeVal panel_col);
    void (*vector)(MoeEmit *e, void *ctx, MoeVal row, MoeVal col, const MoeVal *products,
                   MoeVal mask);
    void *ctx;
    bool streams;           /* the callbacks store past the caches; the key says so */
    bool one_task_at_least; /* the callbacks have work without rows, too */
} MoeGemm;

/* The product's kernel (its name); adds to the scratch need. */
const char *moe_gemm_emit(MoeCpuTarget *t, const MoeGemm *g, MoeLowered *out);
int64_t moe_gemm_packed_bytes(const MoeCpuTarget *t, MoeTileElem elem, int64_t groups, int64_t k,
                              int64_t n);
/* Packs buffer 0, [groups][n][k] (tb) or [groups][k][n] of dtype d, into buffer 1. shards > 0: buffer 2 is segs<groups,shards>,
 * and groups without rows are left out. */
const char *moe_gemm_emit_pack(MoeCpuTarget *t, MoeTileElem elem, MoeDtype d, bool tb,
                               int64_t groups, int64_t shards, int64_t k, int64_t n);

#endif
