/* bench_gemm [TARGET]: the rate of the matrix kernels on one thread, beside the measured peak of
 * fused multiply-adds.
 *
 * In: a target's name (default cpu:native). Out: one line a shape: GFLOP/s and percent of the peak,
 * packing of the weights included; best of several runs, by the thread's own time. Shapes are those
 * of training: dense, grouped by expert with gathered rows, SwiGLU pairs, weight gradients, the
 * loss head. */
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/assert.h"
#include "base/kernel_abi.h"
#include "codegen/codegen.h"
#include "codegen/cpu/emit.h"
#include "codegen/cpu/tile.h"
#include "tests/support/group_run.h"

#define REPEATS    9
#define PEAK_STEPS 2000000

static void die(MoeStatus st) {
    fprintf(stderr, "bench_gemm: %s\n", moe_status_message(st));
    moe_status_free(st);
    exit(1);
}

/* ---- the peak: independent chains of multiply-adds in registers ---- */

static const char *emit_peak(MoeCpuTarget *t, bool dot, int chains) {
    MoeEmit emit, *e = &emit;
    const char *name;
    if (!moe_emit_begin(t, dot ? "peak dot" : "peak", "peak", e, &name))
        return name;
    moe_emit_tasks_body(e);
    moe_emit_return(e, moe_k64(e, 1));
    moe_emit_kernel_body(e);
    MoeVal acc[32], out = moe_emit_buf(e, 0);
    MoeVal a = moe_vload(e, MOE_F32, out, moe_k64(e, 0), NULL),
           b = moe_vload(e, MOE_F32, out, moe_k64(e, 16), NULL);
    for (int i = 0; i < chains; i++)
        acc[i] = LLVMConstNull(e->v32);
    MoeCarryLoop l;
    moe_carry_begin(e, &l, moe_k64(e, 0), moe_k64(e, PEAK_STEPS), moe_k64(e, 1), acc, chains);
    for (int i = 0; i < chains; i++) {
        if (!dot) {
            acc[i] = moe_fma(e, a, b, acc[i]);
            continue;
        }
        static const char intrinsic[] = "llvm.x86.avx512bf16.dpbf16ps.512";
        unsigned id = LLVMLookupIntrinsicID(intrinsic, sizeof intrinsic - 1);
        MoeVal fn = LLVMGetIntrinsicDeclaration(e->m, id, NULL, 0);
        LLVMTypeRef pairs = LLVMTypeOf(LLVMGetParam(fn, 1));
        MoeVal args[] = {acc[i], LLVMBuildBitCast(e->b, a, pairs, ""),
                         LLVMBuildBitCast(e->b, b, pairs, "")};
        acc[i] = LLVMBuildCall2(e->b, LLVMIntrinsicGetType(e->c, id, NULL, 0), fn, args, 3, "");
    }
    moe_carry_end(e, &l, acc);
    for (int i = 0; i < chains; i++)
        moe_vstore(e, MOE_F32, acc[i], out, moe_k64(e, (int64_t)(i + 2) * e->lanes), NULL);
    moe_emit_end(e);
    return name;
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* FLOP/s of one thread. */
static double measure_peak(const char *target, bool dot) {
    MoeTarget *t;
    MoeStatus st = moe_target_create(target, &t);
    if (st)
        die(st);
    MoeCpuTarget *cpu = (MoeCpuTarget *)t;
    int chains = cpu->isa.lanes == 16 ? 24 : 12;
    char name[64];
    snprintf(name, sizeof name, "%s", emit_peak(cpu, dot, chains));
    void *object;
    size_t n;
    char *text;
    st = t->finish(t, false, &object, &n, &text);
    if (st)
        die(st);
    LLVMOrcLLJITRef jit;
    LLVMErrorRef err = LLVMOrcCreateLLJIT(&jit, NULL);
    LLVMMemoryBufferRef buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(object, n, "peak");
    if (!err)
        err = LLVMOrcLLJITAddObjectFile(jit, LLVMOrcLLJITGetMainJITDylib(jit), buffer);
    LLVMOrcExecutorAddress at = 0;
    if (!err)
        err = LLVMOrcLLJITLookup(jit, &at, name);
    MOE_ASSERT(!err, "%s", LLVMGetErrorMessage(err));
    MoeKernelFn fn = (MoeKernelFn)(uintptr_t)at;
    _Alignas(64) static float memory[16 * 40];
    void *bufs[] = {memory};
    double best = 1e30;
    for (int i = 0; i < REPEATS; i++) {
        double start = cpu_seconds();
        fn(bufs, 0, NULL);
        double s = cpu_seconds() - start;
        best = s < best ? s : best;
    }
    double flops = 2.0 * PEAK_STEPS * chains * cpu->isa.lanes * (dot ? 2 : 1);
    free(object);
    LLVMConsumeError(LLVMOrcDisposeLLJIT(jit));
    t->destroy(t);
    return flops / best;
}

/* ---- graphs ---- */

typedef enum { DENSE, DENSE_KN, EXPERTS, SWIGLU, WGRAD, WGRAD_EXPERTS, HEAD, HEAD_GRAD } What;

typedef struct {
    const char *name;
    What what;
    int64_t rows, k, n, experts, topk; /* rows: tokens */
} Shape;

static const Shape shapes[] = {
    {"matmul 4096x512x512", DENSE, 4096, 512, 512, 1, 1},
    {"matmul 1024x512x1024", DENSE, 1024, 512, 1024, 1, 1},
    {"matmul 1024x1024x512 [k,n]", DENSE_KN, 1024, 1024, 512, 1, 1},
    {"matmul 512x4096x1024", DENSE, 512, 4096, 1024, 1, 1},
    {"experts 8 x (1024x512x1024)", EXPERTS, 4096, 512, 1024, 8, 2},
    {"experts 8 x (64x512x1024)", EXPERTS, 256, 512, 1024, 8, 2},
    {"experts swiglu 8 x (1024x512x1024)", SWIGLU, 4096, 512, 1024, 8, 2},
    {"weight_grad 4096: 512x512", WGRAD, 4096, 512, 512, 1, 1},
    {"weight_grad 8 x 1024: 1024x512", WGRAD_EXPERTS, 4096, 512, 1024, 8, 2},
    {"loss head 4096x512x8192", HEAD, 4096, 512, 8192, 1, 1},
    {"loss head grad 4096x512x8192", HEAD_GRAD, 4096, 512, 8192, 1, 1},
};

/* One group; *flops of it. */
static MoeGraph *build(MoeModule *m, const Shape *s, MoeDtype d, double *flops) {
    MoeGraph *g = moe_module_add_graph(m, "bench");
    MoeValue *tok = moe_build_input(g, "tok", moe_type_segs(1, 8));
    MoeDim rows = moe_dim_ragged(s->rows, tok);
    MoeValue *x = moe_build_input(g, "x", moe_type_2d(d, rows, s->k)), *y = NULL;
    double work = 2.0 * (double)s->rows * (double)s->topk * (double)s->k * (double)s->n;
    *flops = work;
    MoeValue *src = NULL, *inv = NULL;
    if (s->experts > 1) {
        MoeValue *ids = moe_build_input(g, "ids", moe_type_2d(MOE_I32, rows, s->topk));
        MoeOp *plan =
            moe_op_build(g, MOE_OP_ROUTE_PLAN, &ids, 1, moe_ai("experts", s->experts), MOE_END);
        plan->group = 0;
        src = plan->results[1];
        inv = plan->results[2];
    }
    MoeValue *xs = x;
    MoeOp *first = NULL;
    if (s->experts > 1) {
        first = moe_op_build(g, MOE_OP_DISPATCH, (MoeValue *[]){x, src, inv}, 3, MOE_END);
        xs = first->results[0];
    }
    MoeAttr grouped = moe_ai("grouped", s->experts > 1);
    if (s->what == WGRAD || s->what == WGRAD_EXPERTS) {
        MoeDim r = s->experts > 1 ? xs->type.dims[0] : rows;
        MoeValue *dy;
        if (s->experts > 1) { /* made before the group */
            MoeValue *w = moe_build_input(g, "dyt", moe_type_2d(d, rows, s->n));
            MoeOp *op = moe_op_build(g, MOE_OP_DISPATCH, (MoeValue *[]){w, src, inv}, 3, MOE_END);
            dy = op->results[0];
            op->group = first->group = 1;
        } else {
            dy = moe_build_input(g, "dy", moe_type_2d(d, r, s->n));
        }
        MoeOp *op =
            moe_op_build(g, MOE_OP_WEIGHT_GRAD, (MoeValue *[]){dy, xs}, 2, grouped, MOE_END);
        op->group = 1;
        y = op->results[0];
    } else if (s->what == HEAD || s->what == HEAD_GRAD) {
        MoeValue *w = moe_build_input(g, "w", moe_type_2d(d, moe_dim(s->n), s->k));
        MoeValue *labels =
            moe_build_input(g, "labels", (MoeType){.dtype = MOE_I32, .rank = 1, .dims = {rows}});
        if (s->what == HEAD) {
            y = moe_build(g, MOE_OP_LINEAR_CROSS_ENTROPY, (MoeValue *[]){x, w, labels}, 3, MOE_END);
        } else {
            MoeValue *dnll = moe_build_input(g, "dnll", moe_type_2d(MOE_F32, rows, 1));
            y = moe_build(g, MOE_OP_LINEAR_CROSS_ENTROPY_GRAD, (MoeValue *[]){x, w, labels, dnll},
                          4, MOE_END);
            *flops = 3 * work;
        }
        y->def->group = 1;
    } else {
        bool tb = s->what != DENSE_KN;
        int64_t a = tb ? s->n : s->k, b = tb ? s->k : s->n;
        MoeType wt =
            s->experts > 1 ? moe_type_3d(d, s->experts, a, b) : moe_type_2d(d, moe_dim(a), b);
        MoeValue *w = moe_build_input(g, "w", wt), *w3 = NULL;
        if (s->what == SWIGLU)
            w3 = moe_build_input(g, "w3", wt);
        if (first) { /* the dispatch again, next to its matmul */
            first->group = -1;
            first = moe_op_build(g, MOE_OP_DISPATCH, (MoeValue *[]){x, src, inv}, 3, MOE_END);
            first->group = 1;
            xs = first->results[0];
        }
        y = moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){xs, w}, 2, moe_ai("tb", tb), grouped,
                      MOE_END);
        y->def->group = 1;
        if (w3) {
            MoeValue *up = moe_build(g, MOE_OP_MATMUL, (MoeValue *[]){xs, w3}, 2, moe_ai("tb", tb),
                                     grouped, MOE_END);
            MoeValue *gate = moe_build1(g, MOE_OP_SIGMOID, y);
            MoeValue *silu = moe_build2(g, MOE_OP_MUL, y, gate);
            MoeValue *act = moe_build2(g, MOE_OP_MUL, silu, up);
            up->def->group = gate->def->group = silu->def->group = act->def->group = 1;
            y = d == MOE_BF16 ? moe_build_convert(g, act, MOE_BF16) : act;
            y->def->group = 1;
            *flops = 2 * work;
        }
    }
    for (int i = 0; i < y->def->n_results; i++) {
        static const char *const names[] = {"y0", "y1", "y2"};
        moe_build_output(g, names[i], y->def->results[i]);
    }
    return g;
}

static void bench_shape(const char *target, const Shape *s, MoeDtype d, double peak) {
    MoeModule *m = moe_module_create();
    double flops;
    MoeGraph *g = build(m, s, d, &flops);
    moe_graph_dce(g);
    MoeArena *a = moe_arena_create();
    MoeInputs in;
    MoeRandomOptions random = {.seed = 1, .rows = -1};
    MoeGroupRunOptions options = {.target = target};
    MoeGroupRun *run = NULL;
    MoeStatus st = moe_random_inputs(g, &random, a, &in);
    if (!st)
        st = moe_group_run_create(g, &options, &run);
    if (!st)
        st = moe_group_run(run, &in);
    if (st)
        die(st);
    double rate = flops / moe_group_run_time(run, REPEATS);
    printf("%-36s %-5s %8.1f GFLOP/s %6.1f %%\n", s->name, moe_dtype_name(d), rate / 1e9,
           100 * rate / peak);
    moe_group_run_destroy(run);
    moe_arena_destroy(a);
    moe_module_destroy(m);
}

int main(int argc, char **argv) {
    const char *target = argc > 1 ? argv[1] : "cpu:native";
    MoeTarget *t;
    MoeStatus st = moe_target_create(target, &t);
    if (st)
        die(st);
    bool dot = ((MoeCpuTarget *)t)->isa.bf16_dot;
    printf("target %s\n", t->name);
    t->destroy(t);
    double peak[2] = {measure_peak(target, false), 0};
    peak[1] = dot ? measure_peak(target, true) : peak[0];
    printf("%-36s f32   %8.1f GFLOP/s\n%-36s bf16  %8.1f GFLOP/s\n", "peak", peak[0] / 1e9, "peak",
           peak[1] / 1e9);
    const char *only = argc > 2 ? argv[2] : "";
    for (int b = 0; b < 2; b++)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            if (strstr(shapes[i].name, only))
                bench_shape(target, &shapes[i], b ? MOE_BF16 : MOE_F32, peak[b]);
    return 0;
}
