/* FLAT row groups: one pass over the live elements. Threads take runs of `vec` elements, several of them at once where few
 * buffers are read, so that enough bytes are under way; every element is read before its place may be written.
 *
 * Example, AdamW on f32[8,1024,512]: the step size and 1 - beta are uniform, computed by every thread at its start; then p,
 * m, v, g are loaded, 16 bytes each, and p', m', v' stored, in place where memplan says so. */
#include "codegen/cuda/kind_row.h"

enum {
    FLAT_THREADS = 256,
    FLAT_WAVES = 8,      /* blocks a multiprocessor */
    BYTES_UNDER_WAY = 64 /* that a thread reads before it computes */
};

static bool is_lane_value(const MoeRowValue *x) {
    return (x->cls == MOE_ROW_VECTOR || x->cls == MOE_ROW_SCALAR) && !x->is_const;
}

/* Elements of an access: 16 bytes of the narrowest type. */
static int elements_at_once(const MoeRowPlan *p) {
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].dtype == MOE_BF16 &&
            (p->values[i].buf_in >= 0 || p->values[i].buf_out >= 0))
            return 8;
    return 4;
}

static int runs_at_once(const MoeRowPlan *p, int vec) {
    int bytes = 0, n = 1;
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].buf_in >= 0)
            bytes += vec * moe_dtype_bytes(p->values[i].dtype);
    while (n < 4 && bytes * n < BYTES_UNDER_WAY && p->flat_elements > 2LL * n * vec * FLAT_THREADS)
        n *= 2;
    return n;
}

static void emit_loads(MoeCudaRowText *x) {
    const MoeRowPlan *p = x->p;
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].def < 0)
            moe_str_printf(&x->s, "        %s %ss[U][N];\n",
                           moe_cuda_row_value_type(p->values[i].dtype), x->name[i]);
    moe_str_append(&x->s, "#pragma unroll\n        for (int k = 0; k < U; k++) {\n");
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].def < 0)
            moe_str_printf(&x->s, "            load_n(buf<const %s>(a, %d) + at + k * step, %ss[k]);\n",
                           moe_cuda_row_memory_type(p->values[i].dtype), p->values[i].buf_in,
                           x->name[i]);
    moe_str_append(&x->s, "        }\n");
}

static void emit_ops(MoeCudaRowText *x) {
    const MoeRowPlan *p = x->p;
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].buf_out >= 0)
            moe_str_printf(&x->s, "            %s %ss[N];\n",
                           moe_cuda_row_value_type(p->values[i].dtype), x->name[i]);
    moe_str_append(&x->s, "#pragma unroll\n            for (int i = 0; i < N; i++) {\n");
    for (int i = 0; i < p->n_ops; i++) {
        const MoeRowOp *o = &p->ops[i];
        if (p->values[o->out].cls == MOE_ROW_UNIFORM)
            continue;
        const char *in[3] = {NULL, NULL, NULL};
        for (int n = 0; n < o->n_in; n++) {
            const MoeRowValue *v = &p->values[o->in[n]];
            in[n] = is_lane_value(v) && v->def < 0
                        ? moe_arena_printf(x->arena, "%ss[k][i]", x->name[o->in[n]])
                        : x->name[o->in[n]];
        }
        moe_cuda_row_ew(x, &x->s, 16, o, in);
        if (p->values[o->out].buf_out >= 0)
            moe_str_printf(&x->s, "                %ss[i] = %s;\n", x->name[o->out],
                           x->name[o->out]);
    }
    moe_str_append(&x->s, "            }\n");
    for (int i = 0; i < p->n_values; i++)
        if (is_lane_value(&p->values[i]) && p->values[i].buf_out >= 0)
            moe_str_printf(&x->s, "            store_n(buf<%s>(a, %d) + at + k * step, %ss);\n",
                           moe_cuda_row_memory_type(p->values[i].dtype), p->values[i].buf_out,
                           x->name[i]);
}

static void emit(MoeCudaRowText *x, int vec, int runs) {
    const MoeRowPlan *p = x->p;
    moe_str_append(&x->s, "    using namespace moe;\n");
    moe_cuda_row_uniform(x);
    if (p->flat_elements == 0)
        return;
    moe_str_append(&x->s,
                   "    // U runs of N elements, `step` apart, from element `at` on\n"
                   "    auto run = [&](auto n, auto u, i64 at, i64 step) {\n"
                   "        constexpr int N = decltype(n)::value, U = decltype(u)::value;\n");
    emit_loads(x);
    moe_str_append(&x->s, "#pragma unroll\n        for (int k = 0; k < U; k++) {\n");
    emit_ops(x);
    moe_str_append(&x->s, "        }\n    };\n");
    if (p->seg < 0)
        moe_str_printf(&x->s, "    const i64 first = 0, end = %lld;\n", (long long)p->flat_elements);
    else
        moe_str_printf(&x->s, "    const i64 first = %s * %lld, end = %s * %lld;\n",
                       moe_cuda_row_first(x), (long long)p->flat_cols, moe_cuda_row_end(x),
                       (long long)p->flat_cols);
    moe_str_printf(
        &x->s,
        "    const i64 step = (i64)gridDim.x * %d;\n"
        "    i64 at = first / %d * %d + ((i64)blockIdx.x * %d + threadIdx.x) * %d;\n"
        "    for (; at < end; at += %d * step) {\n"
        "        if (at >= first && at + %d * step + %d <= end)\n"
        "            run(Int<%d>(), Int<%d>(), at, step);\n"
        "        else\n"
        "            for (int k = 0; k < %d; k++)\n"
        "                for (i64 one = at + k * step; one < least(at + k * step + %d, end); one++)\n"
        "                    if (one >= first)\n"
        "                        run(Int<1>(), Int<1>(), one, step);\n"
        "    }\n",
        FLAT_THREADS * vec, vec, vec, FLAT_THREADS, vec, runs, runs - 1, vec, vec, runs, runs, vec);
}

void moe_cuda_row_flat(MoeCudaTarget *t, const MoeRowPlan *p, MoeLowered *out) {
    MoeArena *a = moe_arena_create();
    MoeCudaRowText x = moe_cuda_row_text(a, p);
    int vec = elements_at_once(p), runs = runs_at_once(p, vec);
    emit(&x, vec, runs);
    MoeCudaKernelText k = {.prefix = "flat",
                           .note = moe_cuda_row_note(&x),
                           .n_bufs = p->n_bufs,
                           .threads = FLAT_THREADS,
                           .min_blocks = 1,
                           .parts = 1u << MOE_CUDA_PART_math,
                           .body = moe_str_c(&x.s)};
    int64_t per_block = (int64_t)FLAT_THREADS * vec * runs;
    int64_t blocks =
        moe_cuda_blocks(t, (p->flat_elements + per_block - 1) / per_block, FLAT_WAVES);
    moe_cuda_launch(t, out, moe_cuda_kernel(t, &k), blocks, p->refs, (size_t)p->n_bufs);
    moe_str_free(&x.s);
    moe_arena_destroy(a);
}
