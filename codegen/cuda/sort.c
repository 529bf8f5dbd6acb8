/* See sort.h. */
#include "codegen/cuda/sort.h"

#include "base/assert.h"

/* As in device/sort.cuh. */
enum { THREADS = 256, WARPS = THREADS / 32, TILE = 2048, TILES = 1024, PASS_BITS = 10 };

typedef struct {
    int passes;
    int64_t digits;
} Shape;

static Shape shape_of(int64_t n_keys) {
    int bits = 1;
    MOE_ASSERT(n_keys >= 1 && n_keys <= INT32_MAX, "sort: %lld keys", (long long)n_keys);
    while (bits < 31 && ((int64_t)1 << bits) < n_keys)
        bits++;
    int passes = (bits + PASS_BITS - 1) / PASS_BITS;
    return (Shape){passes, passes == 1 ? n_keys : (int64_t)1 << ((bits + passes - 1) / passes)};
}

static int64_t tiles_of(int64_t capacity) {
    int64_t tiles = (capacity + TILE - 1) / TILE;
    return tiles < TILES ? tiles : TILES;
}

int64_t moe_cuda_list_bytes(int64_t n) {
    return (n + 63) / 64 * 64 * 4;
}

int64_t moe_cuda_sort_bytes(int64_t n_keys, int64_t capacity) {
    Shape s = shape_of(n_keys);
    int64_t lists = s.passes > 1 ? 2 * moe_cuda_list_bytes(capacity) : 0;
    return 64 * 4 + lists + moe_cuda_list_bytes(s.digits) +
           moe_cuda_list_bytes(s.digits * tiles_of(capacity));
}

void moe_cuda_step(const MoeCudaSteps *s, const char *name, int threads, int64_t blocks,
                   const char *body) {
    MoeStr text = {0}, prefix = {0};
    moe_str_printf(&text, "using namespace moe;\n%s%s", s->begin, body);
    moe_str_printf(&prefix, "%s%s", s->prefix, name);
    MoeCudaKernelText k = {.prefix = moe_str_c(&prefix),
                           .n_bufs = s->bufs->n,
                           .threads = threads,
                           .min_blocks = s->min_blocks   ? s->min_blocks
                                         : threads > 256 ? 1
                                                         : 4,
                           .shared_bytes = s->shared,
                           .parts = s->parts | 1u << MOE_CUDA_PART_segs | 1u << MOE_CUDA_PART_sort,
                           .body = moe_str_c(&text)};
    moe_cuda_launch(s->t, s->out, moe_cuda_kernel(s->t, &k), blocks, s->bufs->refs,
                    (size_t)s->bufs->n);
    moe_str_free(&text);
    moe_str_free(&prefix);
}

void moe_cuda_sort(const MoeCudaSteps *s, const MoeCudaSort *sort) {
    Shape shape = shape_of(sort->n_keys);
    int64_t tiles = tiles_of(sort->capacity);
    tiles = tiles < 1 ? 1 : tiles;
    MoeStr body = {0};
    for (int pass = 0; pass < shape.passes; pass++) {
        moe_str_clear(&body);
        moe_str_printf(&body, "sort_count<SortShape<%lld>, %d>(%s, %s, %s);\n",
                       (long long)sort->n_keys, pass, sort->keys, sort->n, sort->work);
        moe_cuda_step(s, "_count", THREADS, tiles, moe_str_c(&body));
        moe_str_clear(&body);
        moe_str_printf(&body, "sort_scan<SortShape<%lld>, %d>(%s, %s);\n", (long long)sort->n_keys,
                       pass, sort->n, sort->work);
        moe_cuda_step(s, "_scan", THREADS, (shape.digits + WARPS - 1) / WARPS, moe_str_c(&body));
        moe_str_clear(&body);
        moe_str_printf(&body, "sort_deal<SortShape<%lld>, %d>(%s, %s, %s, %s);\n",
                       (long long)sort->n_keys, pass, sort->keys, sort->sink, sort->n, sort->work);
        moe_cuda_step(s, "_deal", THREADS, tiles, moe_str_c(&body));
    }
    moe_str_free(&body);
}

void moe_cuda_sort_table(const MoeCudaSteps *s, const char *name, int64_t cells, const char *before,
                         const char *rows, const char *to) {
    MoeStr body = {0};
    moe_str_printf(&body, "sort_table(%s, %s, %lld, %s);\n", before, rows, (long long)cells, to);
    moe_cuda_step(s, name, 128, moe_cuda_blocks(s->t, (cells + 1 + 127) / 128, 8),
                  moe_str_c(&body));
    moe_str_free(&body);
}

void moe_cuda_live_rows(MoeStr *text, const char *name, const MoeType *t, int buf) {
    const MoeValue *seg = moe_rows_seg(t);
    if (seg)
        moe_str_printf(text, "i64 %s = buf<i32>(a, %d)[%lld];\n", name, buf,
                       (long long)(seg->type.groups * seg->type.shards));
    else
        moe_str_printf(text, "i64 %s = %lldll;\n", name, (long long)t->dims[0].size);
}
