/* gemm_hopper.h. Sizes are those of device/gemm_hopper.cuh. */
#include "codegen/cuda/gemm_hopper.h"

#include <stdio.h>
#include <string.h>

enum {
    TILE_ROWS = 128,
    STAGE_K = 64,
    THREADS = 384,
    OUT_BYTES = 8 * 8 * (64 + 8) * 4, /* of the eight consumer warps */
    MOST_STAGES = 8
};

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t tiles_of(const MoeCudaGemm *g, int bn, int64_t rows) {
    return least(ceil_div(rows, TILE_ROWS) + g->rows.groups - 1, rows) * ceil_div(g->n, bn);
}

/* Columns of a tile, of each product: as many as give every multiprocessor a tile, and the last tile is not mostly empty. */
static int choose(const MoeCudaTarget *t, const MoeCudaGemm *g) {
    for (int bn = 256 / g->products; bn > 64; bn /= 2)
        if (g->n > bn / 2 && tiles_of(g, bn, g->rows.expected) >= t->arch->multiprocessors)
            return bn;
    return 64;
}

static const char *word(bool b) {
    return b ? "true" : "false";
}

bool moe_cuda_hopper_gemm(const MoeCudaTarget *t, const MoeCudaGemm *g, MoeCudaProductPlan *out) {
    if (!g->maps || !t->arch->wgmma || g->dtype != MOE_BF16 || g->k % 8 || g->n % 8 || g->lda % 8 ||
        g->ldb % 8)
        return false;
    int bn = choose(t, g);
    int64_t stage = (TILE_ROWS + (int64_t)g->products * bn) * STAGE_K * 2;
    int64_t room = t->arch->shared_bytes - 1024 - OUT_BYTES;
    int64_t stages = least(room / (stage + 16), MOST_STAGES);
    *out = (MoeCudaProductPlan){
        .bm = TILE_ROWS,
        .bn = bn,
        .threads = THREADS,
        .min_blocks = 1,
        .shared_bytes = stages * (stage + 16) + OUT_BYTES + 1024,
        .blocks = moe_cuda_blocks(t, tiles_of(g, bn, g->rows.capacity), 1),
        .n_maps = g->products + (g->gather ? 0 : 1),
        .parts =
            1u << MOE_CUDA_PART_math | 1u << MOE_CUDA_PART_gemm | 1u << MOE_CUDA_PART_gemm_hopper,
    };
    /* The kernel has a place for each map; what it does not use is any other one. */
    snprintf(out->maps, sizeof out->maps, "m0, m%d, m%d, ", g->gather ? 0 : 1, out->n_maps - 1);
    snprintf(out->call, sizeof out->call, "gemm_hopper<%d, %d, %d, %s, %s>", bn, (int)stages,
             g->products, word(g->tb), word(g->gather));
    return true;
}

void moe_cuda_hopper_maps(const MoeCudaGemm *g, const MoeCudaProductPlan *plan, int a, const int *b,
                          MoeTensorMap out[MOE_CUDA_MAX_MAPS]) {
    const MoeTensorMap base = {.dtype = MOE_BF16, .swizzle = 128, .box = {64, 64, 1}};
    int n = 0;
    if (!g->gather) {
        out[n] = base;
        out[n].buf = a;
        out[n].rank = 2;
        out[n].dims[0] = g->k;
        out[n].dims[1] = g->rows.capacity;
        out[n].strides[0] = g->lda * 2;
        out[n++].box[1] = TILE_ROWS;
    }
    for (int p = 0; p < g->products; p++) {
        out[n] = base;
        out[n].buf = b[p];
        out[n].rank = 3;
        out[n].dims[0] = g->tb ? g->k : g->n;
        out[n].dims[1] = g->tb ? g->n : g->k;
        out[n].dims[2] = g->rows.groups;
        out[n].strides[0] = g->ldb * 2;
        out[n].strides[1] = g->n * g->k * 2;
        out[n++].box[1] = g->tb ? plan->bn : STAGE_K;
    }
}

/* ---- weight gradients ---- */

/* Where tiles of the trees wait in shared memory; without trees stages have all of it. */
enum { WGRAD_STAGES = 4 };

bool moe_cuda_hopper_wgrad(const MoeCudaTarget *t, const MoeCudaWgrad *w, MoeCudaProductPlan *out) {
    if (!w->maps || !t->arch->wgmma || w->dtype != MOE_BF16 || w->k % 8 || w->n % 8 ||
        w->ld_dy % 8 || w->ld_x % 8)
        return false;
    int64_t row_tiles = ceil_div(w->n, TILE_ROWS);
    int bn = w->k > 64 && w->results * row_tiles * ceil_div(w->k, 128) >= t->arch->multiprocessors
                 ? 128
                 : 64;
    int64_t stage = (TILE_ROWS + (int64_t)bn) * STAGE_K * 2 + 16, room = t->arch->shared_bytes - 1024 - OUT_BYTES;
    int64_t stages = w->leaf_rows ? WGRAD_STAGES : least(room / stage, MOST_STAGES);
    int64_t stages_bytes = stages * stage + OUT_BYTES + 1024;
    *out = (MoeCudaProductPlan){
        .bm = TILE_ROWS,
        .bn = bn,
        .threads = THREADS,
        .min_blocks = 1,
        .n_maps = !w->gather_dy + !w->gather_x,
        .parts = 1u << MOE_CUDA_PART_tree | 1u << MOE_CUDA_PART_gemm |
                 1u << MOE_CUDA_PART_gemm_simt | 1u << MOE_CUDA_PART_gemm_mma |
                 1u << MOE_CUDA_PART_gemm_hopper | 1u << MOE_CUDA_PART_wgrad |
                 1u << MOE_CUDA_PART_wgrad_hopper,
    };
    moe_cuda_wgrad_stack(t, w, (int64_t)TILE_ROWS * bn * 4, stages_bytes,
                         moe_cuda_blocks(t, w->rows.groups * row_tiles * ceil_div(w->k, bn), 1),
                         out);
    if (out->n_maps)
        snprintf(out->maps, sizeof out->maps, "m0, m%d, ", out->n_maps - 1);
    else
        snprintf(out->maps, sizeof out->maps, "MoeMap{}, MoeMap{}, ");
    snprintf(out->call, sizeof out->call, "wgrad_hopper<%d, %d, %d, %d, %s, %s>", bn, (int)stages,
             out->shared_slots, (int)w->leaf_rows, word(!w->gather_dy), word(!w->gather_x));
    return true;
}

static MoeTensorMap rows_map(int buf, int64_t columns, int64_t rows, int64_t ld) {
    return (MoeTensorMap){.buf = buf,
                          .dtype = MOE_BF16,
                          .rank = 2,
                          .dims = {columns, rows},
                          .strides = {ld * 2},
                          .box = {64, STAGE_K},
                          .swizzle = 128};
}

void moe_cuda_hopper_wgrad_maps(const MoeCudaWgrad *w, int dy, int x,
                                MoeTensorMap out[MOE_CUDA_MAX_MAPS]) {
    int n = 0;
    if (!w->gather_dy)
        out[n++] = rows_map(dy, w->n, w->rows.capacity, w->ld_dy);
    if (!w->gather_x)
        out[n] = rows_map(x, w->k, w->rows.capacity, w->ld_x);
}
