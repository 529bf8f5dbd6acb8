/* Products as calls of the device's templates (device/gemm.cuh and the files it names): which template, with which tiles, and how
 * it is launched. Callers: kind_gemm.c, kind_wgrad.c, kind_xent.c. */
#ifndef MOE_CODEGEN_CUDA_GEMM_H
#define MOE_CODEGEN_CUDA_GEMM_H

#include "base/str.h"
#include "codegen/cuda/cuda.h"
#include "codegen/row_space.h"

/* How a product over a row space is run. */
typedef struct {
    char call[96]; /* "gemm_mma<128, 256, 2, 4, 3, 1, true, true, true>": then (g, <maps>tail) */
    char maps[24]; /* "m0, m1, m2, ": the kernel's tensor maps, n_maps of them; empty */
    int n_maps;
    int bm, bn;    /* rows, columns of a block's tile, of each product */
    int threads, min_blocks;
    int64_t shared_bytes;
    int64_t blocks;    /* of the grid */
    int64_t stack_slots; /* wgrad: tiles of workspace for each block */
    int64_t stack_bytes; /* wgrad: of all blocks */
    int leaf_levels, shared_slots; /* wgrad */
    uint32_t parts;    /* of the device library */
} MoeCudaProductPlan;

enum { MOE_CUDA_SUM_COLS = 32 }; /* SUM_COLS in device/gemm.cuh */

/* c [rows][n] = a [rows][k] b, of dtype f32 or bf16; with two products of the same a, each of n columns. */
typedef struct {
    MoeDtype dtype;
    MoeRowSpace rows;
    int64_t n, k;
    int64_t lda, ldb; /* elements between rows of a, of b */
    int products;     /* 1 or 2 */
    bool tb;          /* b is [n][k], else [k][n] */
    bool gather;      /* rows of a are gathered */
    bool plain;       /* the tail only stores, and needs few registers */
    bool sums;        /* the tail has row sums: of pieces of MOE_CUDA_SUM_COLS columns, which a warp has whole */
    bool maps;        /* the launch may have tensor maps (gemm_hopper.h) */
} MoeCudaGemm;
void moe_cuda_gemm_plan(const MoeCudaTarget *t, const MoeCudaGemm *g, MoeCudaProductPlan *out);
/* Appends `Gemm<T> g = {..};` with all of it but pointers, which come as a, b0, b1, src (gather > 0) and table, C++ expressions; NULL:
 * there is none. groups of b lie n * k elements apart. */
typedef struct {
    const char *a, *b[2], *src, *table;
    int64_t gather;
} MoeCudaGemmOperands;
void moe_cuda_gemm_text(const MoeCudaGemm *g, const MoeCudaGemmOperands *operands, MoeStr *out);

/* dw [n][k] = dy^T x for each group of rows. */
typedef struct {
    MoeDtype dtype;
    MoeRowSpace rows;
    int64_t results;   /* groups that are expected to have rows, for the division of work */
    int64_t leaf_rows; /* of the trees; 0: none, a group's rows are one chain */
    int64_t n, k, ld_dy, ld_x;
    bool gather_dy, gather_x; /* their rows are gathered */
    bool maps;                /* the launch may have tensor maps (gemm_hopper.h) */
} MoeCudaWgrad;
/* call: then (w, groups, <maps>where). */
void moe_cuda_wgrad_plan(const MoeCudaTarget *t, const MoeCudaWgrad *w, MoeCudaProductPlan *out);
/* What every plan of a weight gradient says of the trees' tiles: in shared memory behind stages_bytes, and in the workspace. */
void moe_cuda_wgrad_stack(const MoeCudaTarget *t, const MoeCudaWgrad *w, int64_t tile_bytes,
                          int64_t stages_bytes, int64_t blocks, MoeCudaProductPlan *out);
/* Appends `Wgrad<T> w = {..};`: dy, x, their src (gather > 0), table and stack as C++ expressions. */
typedef struct {
    const char *dy, *x, *src_dy, *src_x, *table, *stack;
    int64_t gather_dy, gather_x;
} MoeCudaWgradOperands;
void moe_cuda_wgrad_text(const MoeCudaWgrad *w, const MoeCudaProductPlan *plan,
                         const MoeCudaWgradOperands *operands, MoeStr *out);

/* Buffers of a launch that grows. */
enum { MOE_CUDA_MAX_REFS = 160 };
typedef struct {
    MoeBufRef refs[MOE_CUDA_MAX_REFS];
    int n;
} MoeCudaRefs;
int moe_cuda_add_ref(MoeCudaRefs *r, MoeBufRef ref);

/* A product's kernel: its text (freed), the parts of the device library beside those of the plan, and what it is launched on. */
typedef struct {
    const char *prefix, *note; /* as a MoeCudaKernelText's */
    uint32_t parts;
    MoeStr *body;
    const MoeCudaRefs *refs;
    const MoeTensorMap *maps; /* the plan's n_maps */
} MoeCudaProductKernel;
/* Adds the kernel and a launch of it, as the plan says. */
void moe_cuda_product_launch(MoeCudaTarget *t, const MoeCudaProductPlan *plan,
                             const MoeCudaProductKernel *k, MoeLowered *out);

/* MoeTarget.workspace_expected of product groups: pieces of row sums. kind_gemm.c */
int64_t moe_cuda_gemm_workspace_expected(const MoeGroup *g);
/* Appends a tensor's dtype and extents for a kernel's note: no names, which would keep layers from sharing kernels. */
void moe_cuda_shape_note(const MoeType *t, MoeStr *out);

#endif
