/* gemm.h: tiles by how many of them there are. */
#include "codegen/cuda/gemm.h"

#include <stdio.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cuda/gemm_hopper.h"

enum { MMA_STAGE_K = 64, SIMT_STAGE_K = 16, SIMT_THREADS = 256, MOST_STAGES = 4 };

/* Block tiles of bm x bn, large ones first; bf16: warps of wm x wn. */
typedef struct {
    int bm, bn, wm, wn;
    bool aligned_only; /* no registers are left for rows that are no multiples of 16 bytes */
} Tile;

static const Tile mma_single[] = {
    {128, 256, 2, 4, true}, {128, 128, 2, 4, false}, {64, 64, 2, 2, false}};
static const Tile mma_pair[] = {
    {128, 128, 2, 4, true}, {128, 64, 2, 4, false}, {64, 64, 2, 2, false}};
static const Tile mma_wgrad[] = {{128, 128, 2, 4, false}, {64, 64, 2, 2, false}};
static const Tile simt_single[] = {{128, 128, 0, 0, false}, {64, 64, 0, 0, false}};
static const Tile simt_pair[] = {{128, 64, 0, 0, false}, {64, 64, 0, 0, false}};
#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static const char *word(bool b) {
    return b ? "true" : "false";
}

/* Tiles of a product over so many rows: groups end tiles. */
static int64_t tiles_of(const MoeCudaGemm *g, const Tile *tile, int64_t rows) {
    int64_t row_tiles = least(ceil_div(rows, tile->bm) + g->rows.groups - 1, rows);
    return row_tiles * ceil_div(g->n, tile->bn);
}

/* Whether the product may have such tiles: simt's are fit for all. */
static bool fits(const MoeCudaGemm *g, const Tile *tile, bool aligned) {
    return (aligned || !tile->aligned_only) &&
           (!g->sums || !tile->wn || tile->bn / tile->wn >= MOE_CUDA_SUM_COLS);
}

/* The first tile that gives every multiprocessor one and is not mostly empty. */
static const Tile *choose(const MoeCudaTarget *t, const MoeCudaGemm *g, const Tile *tiles, size_t n,
                          bool aligned) {
    int64_t rows = ceil_div(g->rows.expected, g->rows.groups);
    for (size_t i = 0; i + 1 < n; i++) {
        const Tile *next = &tiles[i + 1];
        if (fits(g, &tiles[i], aligned) && g->n > next->bn &&
            (rows > next->bm || tiles[i].bm == next->bm) &&
            tiles_of(g, &tiles[i], g->rows.expected) >= t->arch->multiprocessors)
            return &tiles[i];
    }
    return &tiles[n - 1];
}

void moe_cuda_gemm_plan(const MoeCudaTarget *t, const MoeCudaGemm *g, MoeCudaProductPlan *out) {
    memset(out, 0, sizeof *out);
    if (moe_cuda_hopper_gemm(t, g, out))
        return;
    bool bf16 = g->dtype == MOE_BF16, pair = g->products == 2;
    int per = 16 / (int)moe_dtype_bytes(g->dtype); /* elements that one copy moves */
    bool aligned_a = g->k % per == 0 && g->lda % per == 0;
    bool aligned_b = (g->tb ? g->k : g->n) % per == 0 && g->ldb % per == 0;
    out->parts = 1u << MOE_CUDA_PART_math | 1u << MOE_CUDA_PART_gemm;
    out->min_blocks = 1;
    const Tile *tile;
    if (bf16) {
        tile = pair ? choose(t, g, mma_pair, COUNT(mma_pair), aligned_a && aligned_b)
                    : choose(t, g, mma_single, COUNT(mma_single), aligned_a && aligned_b);
        int64_t stage = (tile->bm + (int64_t)g->products * tile->bn) * MMA_STAGE_K * 2;
        /* Two blocks that take turns hide each other's tails, where 128 registers are enough or threads are few. */
        bool light = tile->wm * tile->wn <= 4 || (g->plain && aligned_a && aligned_b);
        if (light && (int64_t)tile->bm * tile->bn * g->products <= 128 * 128 &&
            2 * 3 * stage <= t->arch->shared_bytes)
            out->min_blocks = 2;
        int64_t stages = least(t->arch->shared_bytes / out->min_blocks / stage, MOST_STAGES);
        out->threads = tile->wm * tile->wn * 32;
        out->shared_bytes = stages * stage;
        out->parts |= 1u << MOE_CUDA_PART_gemm_mma;
        snprintf(out->call, sizeof out->call, "gemm_mma<%d, %d, %d, %d, %d, %d, %s, %s, %s>",
                 tile->bm, tile->bn, tile->wm, tile->wn, (int)stages, g->products, word(g->tb),
                 word(aligned_a), word(aligned_b));
    } else {
        tile = pair ? choose(t, g, simt_pair, COUNT(simt_pair), true)
                    : choose(t, g, simt_single, COUNT(simt_single), true);
        out->threads = SIMT_THREADS;
        out->shared_bytes =
            2 * SIMT_STAGE_K * 4 * (tile->bm + 4 + (int64_t)g->products * (tile->bn + 4));
        out->parts |= 1u << MOE_CUDA_PART_gemm_simt;
        snprintf(out->call, sizeof out->call, "gemm_simt<%d, %d, %d, %s, %s, %s>", tile->bm,
                 tile->bn, g->products, word(g->tb), word(aligned_a), word(aligned_b));
    }
    out->bm = tile->bm;
    out->bn = tile->bn;
    out->blocks = moe_cuda_blocks(t, tiles_of(g, tile, g->rows.capacity), out->min_blocks);
}

static const char *type_name(MoeDtype d) {
    return d == MOE_BF16 ? "bf16" : "float";
}

static void rows_text(const MoeRowSpace *rows, const char *name, const char *table, MoeStr *out) {
    MOE_ASSERT(rows->capacity < INT32_MAX, "gemm: %lld rows", (long long)rows->capacity);
    if (table)
        moe_str_printf(out, "%s.table = %s, ", name, table);
    moe_str_printf(out, "%s.groups = %lld, %s.shards = %lld, %s.rows = %lld;\n", name,
                   (long long)rows->groups, name, (long long)rows->shards, name,
                   (long long)rows->capacity);
}

void moe_cuda_gemm_text(const MoeCudaGemm *g, const MoeCudaGemmOperands *o, MoeStr *out) {
    MOE_ASSERT(g->n < INT32_MAX && g->k < INT32_MAX, "gemm: %lld x %lld", (long long)g->n,
               (long long)g->k);
    moe_str_printf(out, "Gemm<%s> g = {};\n", type_name(g->dtype));
    moe_str_printf(out, "g.n = %lld, g.k = %lld;\n", (long long)g->n, (long long)g->k);
    moe_str_printf(out, "g.a = %s, g.lda = %lld;\n", o->a, (long long)g->lda);
    if (o->gather > 0)
        moe_str_printf(out, "g.src = %s, g.gather = %lld;\n", o->src, (long long)o->gather);
    for (int i = 0; i < g->products; i++)
        moe_str_printf(out, "g.b[%d] = %s;\n", i, o->b[i]);
    moe_str_printf(out, "g.ldb = %lld, g.b_group = %lldLL;\n", (long long)g->ldb,
                   (long long)(g->n * g->k));
    rows_text(&g->rows, "g", o->table, out);
}

/* ---- weight gradients ---- */

/* Smallest L with 2^L >= n. */
static int levels_of(int64_t n) {
    int levels = 0;
    while (((int64_t)1 << levels) < n)
        levels++;
    return levels;
}

void moe_cuda_wgrad_stack(const MoeCudaTarget *t, const MoeCudaWgrad *w, int64_t tile_bytes,
                          int64_t stages_bytes, int64_t blocks, MoeCudaProductPlan *out) {
    /* Slot 0 is in registers. Without leaves there are no trees. */
    int64_t slots = 0;
    if (w->leaf_rows) {
        out->leaf_levels = levels_of(ceil_div(w->rows.capacity, w->leaf_rows));
        slots = out->leaf_levels + levels_of(w->rows.shards) - 1;
    }
    MOE_ASSERT(slots < 32, "wgrad: trees of %lld levels", (long long)slots + 1);
    slots = slots > 0 ? slots : 0;
    int64_t in_shared = least((t->arch->shared_bytes - stages_bytes) / tile_bytes, 2);
    in_shared = least(in_shared, slots);
    out->shared_slots = (int)in_shared;
    out->shared_bytes = stages_bytes + in_shared * tile_bytes;
    out->blocks = blocks;
    out->stack_slots = slots - in_shared;
    out->stack_bytes = blocks * out->stack_slots * tile_bytes;
}

void moe_cuda_wgrad_plan(const MoeCudaTarget *t, const MoeCudaWgrad *w, MoeCudaProductPlan *out) {
    memset(out, 0, sizeof *out);
    if (moe_cuda_hopper_wgrad(t, w, out))
        return;
    bool bf16 = w->dtype == MOE_BF16;
    int per = 16 / (int)moe_dtype_bytes(w->dtype);
    bool aligned_dy = w->n % per == 0 && w->ld_dy % per == 0;
    bool aligned_x = w->k % per == 0 && w->ld_x % per == 0;
    const Tile *tiles = bf16 ? mma_wgrad : simt_single, *tile = &tiles[0];
    if (w->results * ceil_div(w->n, tile->bm) * ceil_div(w->k, tile->bn) < t->arch->multiprocessors)
        tile = &tiles[1];
    int64_t stage = bf16 ? (int64_t)(tile->bm + tile->bn) * MMA_STAGE_K * 2
                         : (int64_t)(tile->bm + 4 + tile->bn + 4) * SIMT_STAGE_K * 4;
    int64_t tile_bytes = (int64_t)tile->bm * tile->bn * 4;
    int stages = bf16 ? 3 : 2;
    out->threads = bf16 ? tile->wm * tile->wn * 32 : SIMT_THREADS;
    out->min_blocks = 1;
    out->bm = tile->bm;
    out->bn = tile->bn;
    moe_cuda_wgrad_stack(
        t, w, tile_bytes, stages * stage,
        moe_cuda_blocks(t, w->rows.groups * ceil_div(w->n, tile->bm) * ceil_div(w->k, tile->bn), 1),
        out);
    out->parts = 1u << MOE_CUDA_PART_tree | 1u << MOE_CUDA_PART_gemm | 1u << MOE_CUDA_PART_wgrad |
                 1u << MOE_CUDA_PART_gemm_simt | 1u << MOE_CUDA_PART_gemm_mma;
    if (bf16)
        snprintf(out->call, sizeof out->call, "wgrad_mma<%d, %d, %d, %d, %d, %d, %d, %s, %s>", tile->bm,
                 tile->bn, tile->wm, tile->wn, stages, out->shared_slots, (int)w->leaf_rows, word(aligned_dy),
                 word(aligned_x));
    else
        snprintf(out->call, sizeof out->call, "wgrad_simt<%d, %d, %d, %d, %s, %s, %s>", tile->bm,
                 tile->bn, out->shared_slots, (int)w->leaf_rows, word(aligned_dy), word(aligned_x),
                 word(w->k % 8 == 0));
}

static void side_text(const char *name, const char *p, int64_t ld, int64_t gather, const char *src,
                      MoeStr *out) {
    moe_str_printf(out, "w.%s = {%s, %lld, %lld, %s};\n", name, p, (long long)ld, (long long)gather,
                   gather > 0 ? src : "nullptr");
}

void moe_cuda_wgrad_text(const MoeCudaWgrad *w, const MoeCudaProductPlan *plan,
                         const MoeCudaWgradOperands *o, MoeStr *out) {
    MOE_ASSERT(w->n < INT32_MAX && w->k < INT32_MAX, "wgrad: %lld x %lld", (long long)w->n,
               (long long)w->k);
    moe_str_printf(out, "Wgrad<%s> w = {};\n", type_name(w->dtype));
    moe_str_printf(out, "w.n = %lld, w.k = %lld;\n", (long long)w->n, (long long)w->k);
    side_text("dy", o->dy, w->ld_dy, o->gather_dy, o->src_dy, out);
    side_text("x", o->x, w->ld_x, o->gather_x, o->src_x, out);
    moe_str_printf(out, "w.leaf_levels = %d, w.stack = %s, w.stack_slots = %lld;\n",
                   plan->leaf_levels, o->stack, (long long)plan->stack_slots);
    rows_text(&w->rows, "w", o->table, out);
}

int moe_cuda_add_ref(MoeCudaRefs *r, MoeBufRef ref) {
    MOE_ASSERT(r->n < MOE_CUDA_MAX_REFS, "codegen: a kernel of more than %d buffers",
               MOE_CUDA_MAX_REFS);
    r->refs[r->n] = ref;
    return r->n++;
}

void moe_cuda_product_launch(MoeCudaTarget *t, const MoeCudaProductPlan *plan,
                             const MoeCudaProductKernel *k, MoeLowered *out) {
    const char *name = moe_cuda_kernel(t, &(MoeCudaKernelText){.prefix = k->prefix,
                                                               .note = k->note,
                                                               .n_bufs = k->refs->n,
                                                               .n_maps = plan->n_maps,
                                                               .threads = plan->threads,
                                                               .min_blocks = plan->min_blocks,
                                                               .shared_bytes = plan->shared_bytes,
                                                               .parts = k->parts | plan->parts,
                                                               .body = moe_str_c(k->body)});
    moe_cuda_launch_maps(t, out, name, plan->blocks, k->refs->refs, (size_t)k->refs->n, k->maps,
                         (size_t)plan->n_maps);
    moe_str_free(k->body);
}

void moe_cuda_shape_note(const MoeType *t, MoeStr *out) {
    moe_str_printf(out, "%s[", moe_dtype_name(t->dtype));
    for (int d = 0; d < t->rank; d++) {
        const MoeValue *seg = t->dims[d].seg;
        moe_str_printf(out, "%s%s%lld", d ? ", " : "", seg ? "r<=" : "",
                       (long long)t->dims[d].size);
        if (seg)
            moe_str_printf(out, " of %lldx%lld", (long long)seg->type.groups,
                           (long long)seg->type.shards);
    }
    moe_str_append(out, "]");
}
