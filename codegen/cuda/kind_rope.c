/* rope: rotary positions in the rotate-half form (device/rope.cuh).
 *
 * Angles follow transformers step by step in f32: inv_freq_i = 1 / theta^(2i/d), here, then angle = pos * inv_freq_i. They are
 * therefore off the exact angle by up to about pos * 1e-7 radians. */
#include <math.h>
#include "base/assert.h"
#include "codegen/cuda/cuda.h"

enum { ROPE_THREADS = 128, ROPE_WAVES = 16 };

static void append_frequencies(MoeStr *s, double theta, int64_t dim) {
    moe_str_append(s, "    static const float inv_freq[] = {");
    for (int64_t i = 0; i < dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)dim;
        float f = 1.0f / (float)pow((double)(float)theta, (double)exponent);
        moe_str_printf(s, "%s%af", i == 0 ? "" : i % 4 ? ", " : ",\n        ", (double)f);
    }
    moe_str_append(s, "};\n");
}

int64_t moe_cuda_rope_workspace(MoeCudaTarget *t, const MoeGroup *g) {
    (void)t, (void)g;
    return 0;
}

MoeStatus moe_cuda_rope_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {
    const MoeOp *op = g->ops[0];
    MOE_ASSERT(g->n_ops == 1, "rope: a group of %zu ops", g->n_ops);
    const MoeType *type = &op->operands[0]->type;
    int64_t heads = moe_attr_i(op, "heads"), dim = moe_attr_i(op, "head_dim"), half = dim / 2;
    int64_t rows = type->dims[0].size;
    int vec = 4;
    while (half % vec)
        vec /= 2;
    MoeBufs bufs = {.n = 0};
    int x = moe_bufs_add(&bufs, op->operands[0]), y = moe_bufs_add(&bufs, op->results[0]);
    int seg = moe_bufs_add_seg(&bufs, type);
    const char *elements = type->dtype == MOE_BF16 ? "bf16" : "float";
    MoeStr s = {0};
    moe_str_append(&s, "    using namespace moe;\n");
    append_frequencies(&s, moe_attr_f(op, "theta"), dim);
    if (seg < 0) {
        moe_str_printf(&s, "    const i64 first = 0, end = %lld;\n", (long long)rows);
    } else {
        const MoeType *table = &moe_rows_seg(type)->type;
        moe_str_printf(&s, "    const i64 first = buf<const i32>(a, %d)[0], end = buf<const i32>(a, %d)[%lld];\n",
                       seg, seg, (long long)(table->groups * table->shards));
    }
    moe_str_printf(&s,
                   "    rope<%lld, %lld, %d, %s>(buf<const %s>(a, %d), buf<%s>(a, %d), inv_freq, "
                   "first, end, %lld);\n",
                   (long long)heads, (long long)half, vec,
                   moe_attr_i_or(op, "inverse", 0) ? "true" : "false", elements, x, elements, y,
                   (long long)moe_attr_i(op, "seq"));
    MoeCudaKernelText k = {.prefix = "rope",
                           .n_bufs = bufs.n,
                           .threads = ROPE_THREADS,
                           .min_blocks = 1,
                           .parts = 1u << MOE_CUDA_PART_rope,
                           .body = moe_str_c(&s)};
    int64_t tasks = (rows * (half / vec) + ROPE_THREADS - 1) / ROPE_THREADS;
    moe_cuda_launch(t, out, moe_cuda_kernel(t, &k), moe_cuda_blocks(t, tasks, ROPE_WAVES),
                    bufs.refs, (size_t)bufs.n);
    moe_str_free(&s);
    return NULL;
}
