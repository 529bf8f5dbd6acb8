/* group_run.h */
#include "tests/support/group_run.h"

#include <llvm-c/Core.h>
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/io.h"
#include "base/kernel_abi.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/str.h"
#include "codegen/codegen.h"
#include "runtime/plan_functions.h"
#include "codegen/cpu/cpu.h"
#include "tests/support/gpu.h"
#include "tests/support/group_gpu.h"

/* Bytes of memory that nobody wrote: NaNs as floats; integers get others, for all ones are -1. */
enum { FENCE = 256, PATTERN = 0xff, INT_PATTERN = 0x5a };

typedef struct {
    unsigned char *base;   /* fence, data, slack and fence */
    size_t bytes;          /* of data */
    int alias;             /* value id whose memory this one uses, -1 */
    MoeCuPtr device;       /* of base, on a GPU */
    unsigned char *before; /* copy of the data, to compare */
} Buffer;

typedef struct {
    MoeGroup group;
    MoeLowered lowered;
    Buffer work;
} Step;

struct MoeGroupRun {
    const MoeGraph *g;
    MoeTarget *target;
    MoeArena *arena;
    LLVMOrcLLJITRef jit; /* of `linked` */
    MoeGroupGpu *gpu;    /* instead, on a GPU */
    Step *steps;
    size_t n_steps, n_launches, n_aliases;
    int64_t n_tasks; /* of the last run */
    Buffer *buffers; /* by value id */
    Buffer scratch;
    MoePool *pool;          /* NULL: one thread */
    Buffer *thread_scratch; /* by thread, where there is a pool */
};

/* ---- memory ---- */

/* With its fences. */
static size_t buffer_all(const Buffer *b) {
    return (2 * FENCE + b->bytes + 63) / 64 * 64;
}

static void buffer_make(Buffer *b, size_t bytes) {
    b->bytes = bytes;
    b->alias = -1;
    b->base = aligned_alloc(64, buffer_all(b));
    b->before = malloc(bytes ? bytes : 1);
    MOE_ASSERT(b->base && b->before, "group_run: no memory");
    memset(b->base, PATTERN, buffer_all(b));
}

static unsigned char *buffer_data(const Buffer *b) {
    return b->base + FENCE;
}

static bool buffer_intact(const Buffer *b) {
    for (size_t i = 0; i < FENCE; i++)
        if (b->base[i] != PATTERN || b->base[FENCE + b->bytes + i] != PATTERN)
            return false;
    return true;
}

static void buffer_free(Buffer *b) {
    free(b->base);
    free(b->before);
}

static Buffer *home(MoeGroupRun *r, const MoeValue *v) {
    Buffer *b = &r->buffers[v->id];
    while (b->alias >= 0)
        b = &r->buffers[b->alias];
    return b;
}

/* ---- groups ---- */

static bool contains(MoeValue *const *list, size_t n, const MoeValue *v) {
    for (size_t i = 0; i < n; i++)
        if (list[i] == v)
            return true;
    return false;
}

static bool in_group(const MoeGroup *g, const MoeOp *op) {
    for (size_t i = 0; i < g->n_ops; i++)
        if (g->ops[i] == op)
            return true;
    return false;
}

static void add_input(MoeArena *a, MoeGroup *g, MoeValue ***list, size_t *n, size_t *cap,
                      MoeValue *v) {
    if (!in_group(g, v->def) && !contains(*list, *n, v))
        MOE_PUSH(a, *list, *n, *cap, v);
}

static void add_seg_input(MoeArena *a, MoeGroup *g, MoeValue ***list, size_t *n, size_t *cap,
                          const MoeType *t) {
    if (t->kind == MOE_TYPE_TENSOR && t->rank > 0 && t->dims[0].seg)
        add_input(a, g, list, n, cap, (MoeValue *)(uintptr_t)t->dims[0].seg);
}

static bool used_outside(const MoeGraph *graph, const MoeGroup *g, const MoeValue *v) {
    for (size_t i = 0; i < graph->n_ops; i++) {
        const MoeOp *op = graph->ops[i];
        if (in_group(g, op))
            continue;
        for (int k = 0; k < op->n_operands; k++) {
            const MoeType *t = &op->operands[k]->type;
            if (op->operands[k] == v ||
                (t->kind == MOE_TYPE_TENSOR && t->rank > 0 && t->dims[0].seg == v))
                return true;
        }
    }
    return false;
}

static void make_group(MoeGroupRun *r, MoeGroup *g, MoeOp *const *ops, size_t n) {
    MoeValue **in = NULL, **outs = NULL;
    size_t n_in = 0, cap_in = 0, n_out = 0, cap_out = 0;
    *g = (MoeGroup){.graph = r->g, .ops = ops, .n_ops = n};
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < ops[i]->n_operands; k++)
            add_input(r->arena, g, &in, &n_in, &cap_in, ops[i]->operands[k]);
    for (size_t i = 0; i < n; i++) {
        for (int k = 0; k < ops[i]->n_operands; k++)
            add_seg_input(r->arena, g, &in, &n_in, &cap_in, &ops[i]->operands[k]->type);
        for (int k = 0; k < ops[i]->n_results; k++) {
            add_seg_input(r->arena, g, &in, &n_in, &cap_in, &ops[i]->results[k]->type);
            if (used_outside(r->g, g, ops[i]->results[k]))
                MOE_PUSH(r->arena, outs, n_out, cap_out, ops[i]->results[k]);
        }
    }
    g->inputs = in;
    g->n_inputs = n_in;
    g->outputs = outs;
    g->n_outputs = n_out;
}

/* Index of the last op that uses v, in any way; n_ops if it is an output of the graph. */
static size_t last_use(const MoeGraph *g, const MoeValue *v) {
    size_t last = 0;
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_operands; k++)
            if (g->ops[i]->operands[k] == v)
                last = moe_op_info(g->ops[i]->opcode)->kind == MOE_KIND_DECL ? g->n_ops : i;
    return last;
}

static void find_aliases(MoeGroupRun *r, Step *s, size_t last_op) {
    const MoeGroup *g = &s->group;
    bool *taken = MOE_NEW_N(r->arena, bool, g->n_inputs);
    for (size_t o = 0; o < g->n_outputs; o++)
        for (size_t i = 0; i < g->n_inputs; i++) {
            const MoeValue *in = g->inputs[i], *out = g->outputs[o];
            if (taken[i] || in->type.kind != MOE_TYPE_TENSOR || in->def->opcode == MOE_OP_CONST ||
                last_use(r->g, in) > last_op ||
                moe_type_bytes(&in->type) != moe_type_bytes(&out->type) ||
                !r->target->can_alias(r->target, g, in, out))
                continue;
            taken[i] = true;
            r->buffers[out->id].alias = in->id;
            r->n_aliases++;
            break;
        }
}

/* Declarations first, outputs and assignments last: what runs stands together. */
static void gather_ops(MoeGraph *g) {
    size_t n;
    MoeOp **ops = moe_graph_take_ops(g, &n);
    for (int pass = 0; pass < 3; pass++)
        for (size_t i = 0; i < n; i++) {
            bool decl = moe_op_info(ops[i]->opcode)->kind == MOE_KIND_DECL;
            bool last = decl && ops[i]->n_operands > 0;
            if (pass == (last ? 2 : decl ? 0 : 1))
                moe_graph_append(g, ops[i]);
        }
}

void moe_group_greedily(MoeGraph *g, const MoeTarget *t) {
    size_t first = 0;
    gather_ops(g);
    int group = -1;
    for (size_t i = 0; i < g->n_ops; i++) {
        MoeOp *op = g->ops[i];
        if (moe_op_info(op->opcode)->kind == MOE_KIND_DECL) {
            first = i + 1;
            continue;
        }
        if (i == first || !t->can_join(t, g->ops + first, i - first, op)) {
            first = i;
            group++;
        }
        op->group = group;
    }
}

/* ---- compile ---- */

static MoeStatus from_llvm(LLVMErrorRef err, const char *what) {
    if (!err)
        return NULL;
    char *text = LLVMGetErrorMessage(err);
    MoeStatus st = moe_error(MOE_E_INTERNAL, "%s: %s", what, text);
    LLVMDisposeErrorMessage(text);
    return st;
}

/* What was compiled before, by the target and the text of the module that its kernels make up: cases that differ in what
 * only memory shows (live rows, routing) cost one compilation. */
typedef struct {
    char key[33];
    LLVMOrcLLJITRef jit;
} Linked;
static Linked *linked;
static size_t n_linked, cap_linked;

static MoeStatus compile(MoeGroupRun *r, LLVMOrcLLJITRef *out) {
    void *object = NULL;
    char *text = NULL;
    size_t n = 0;
    MOE_TRY(r->target->finish(r->target, getenv("MOE_DUMP_KERNELS") != NULL, &object, &n, &text));
    if (text)
        fputs(text, stderr);
    MoeStatus st = from_llvm(LLVMOrcCreateLLJIT(out, NULL), "creating the JIT");
    if (!st)
        st = from_llvm(moe_plan_define_functions(*out), "naming this program's functions");
    if (!st) {
        LLVMMemoryBufferRef m = LLVMCreateMemoryBufferWithMemoryRangeCopy(object, n, "kernels");
        st = from_llvm(LLVMOrcLLJITAddObjectFile(*out, LLVMOrcLLJITGetMainJITDylib(*out), m),
                       "adding the object");
    }
    free(object);
    free(text);
    return st;
}

/* ---- on a GPU ---- */

/* Every buffer of the run in turn: values, then workspaces; NULL after the last. */
static Buffer *buffer_at(MoeGroupRun *r, size_t i) {
    size_t n = (size_t)r->g->n_values;
    return i < n ? &r->buffers[i] : i - n < r->n_steps ? &r->steps[i - n].work : NULL;
}

static MoeStatus gpu_open(MoeGroupRun *r) {
    void *object = NULL;
    char *text = NULL;
    size_t n = 0;
    MOE_TRY(r->target->finish(r->target, getenv("MOE_DUMP_KERNELS") != NULL, &object, &n, &text));
    if (text && getenv("MOE_DUMP_KERNELS"))
        fputs(text, stderr);
    free(text);
    MOE_TRY(moe_group_gpu_create(object, n, &r->gpu));
    Buffer *b;
    for (size_t i = 0; (b = buffer_at(r, i)); i++)
        if (b->base)
            MOE_TRY(moe_group_gpu_alloc(r->gpu, buffer_all(b), &b->device));
    return NULL;
}

/* All buffers to the device (in) or back. */
static MoeStatus gpu_copy(MoeGroupRun *r, bool in) {
    Buffer *b;
    for (size_t i = 0; (b = buffer_at(r, i)); i++)
        if (b->base)
            MOE_TRY(in ? moe_group_gpu_write(r->gpu, b->device, b->base, buffer_all(b))
                       : moe_group_gpu_read(r->gpu, b->base, b->device, buffer_all(b)));
    return NULL;
}

static void gpu_bufs(MoeGroupRun *r, const Step *s, const MoeLaunch *l, MoeCuPtr *out) {
    for (size_t i = 0; i < l->n_bufs; i++)
        out[i] = FENCE + (l->bufs[i].value ? home(r, l->bufs[i].value)->device
                                           : s->work.device + (MoeCuPtr)l->bufs[i].offset);
}

static MoeStatus link_kernels(MoeGroupRun *r) {
    if (strncmp(r->target->name, "cuda:", 5) == 0)
        return gpu_open(r);
    char *text = LLVMPrintModuleToString(((MoeCpuTarget *)r->target)->module), key[33];
    MoeStr named = {0};
    moe_str_printf(&named, "%s\n%s", r->target->name, text);
    LLVMDisposeMessage(text);
    moe_hash_hex(moe_str_c(&named), named.len, key);
    moe_str_free(&named);
    for (size_t i = 0; i < n_linked; i++)
        if (!strcmp(linked[i].key, key)) {
            r->jit = linked[i].jit;
            return NULL;
        }
    MOE_TRY(compile(r, &r->jit));
    if (n_linked == cap_linked) {
        cap_linked = cap_linked ? 2 * cap_linked : 64;
        linked = realloc(linked, cap_linked * sizeof *linked);
        MOE_ASSERT(linked, "group_run: no memory");
    }
    linked[n_linked].jit = r->jit;
    memcpy(linked[n_linked++].key, key, sizeof key);
    return NULL;
}

static MoeStatus lower_all(MoeGroupRun *r, bool alias) {
    const MoeGraph *g = r->g;
    r->steps = MOE_NEW_N(r->arena, Step, g->n_ops);
    int64_t scratch = 0;
    for (size_t i = 0; i < g->n_ops;) {
        size_t n = 1;
        if (moe_op_info(g->ops[i]->opcode)->kind == MOE_KIND_DECL) {
            i++;
            continue;
        }
        while (i + n < g->n_ops && g->ops[i]->group >= 0 &&
               g->ops[i + n]->group == g->ops[i]->group)
            n++;
        Step *s = &r->steps[r->n_steps++];
        make_group(r, &s->group, g->ops + i, n);
        if (alias)
            find_aliases(r, s, i + n - 1);
        buffer_make(&s->work, (size_t)r->target->workspace_bytes(r->target, &s->group));
        s->lowered.arena = r->arena;
        MOE_TRY(r->target->lower(r->target, &s->group, &s->lowered));
        scratch = s->lowered.scratch_bytes > scratch ? s->lowered.scratch_bytes : scratch;
        r->n_launches += s->lowered.n_launches;
        i += n;
    }
    buffer_make(&r->scratch, (size_t)scratch);
    return NULL;
}

MoeStatus moe_group_run_create(const MoeGraph *g, const MoeGroupRunOptions *o, MoeGroupRun **out) {
    MoeGroupRun *r = calloc(1, sizeof *r);
    MOE_ASSERT(r, "group_run: no memory");
    *out = NULL;
    r->g = g;
    r->arena = moe_arena_create();
    r->buffers = MOE_NEW_N(r->arena, Buffer, g->n_values);
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_results; k++)
            buffer_make(&r->buffers[g->ops[i]->results[k]->id],
                        (size_t)moe_type_bytes(&g->ops[i]->results[k]->type));
    MoeStatus st = moe_target_create(moe_test_target(o->target), &r->target);
    if (!st)
        st = lower_all(r, o->alias);
    if (!st)
        st = link_kernels(r);
    if (!st && o->threads > 1) {
        st = moe_pool_create(o->threads, &r->pool);
        r->thread_scratch = MOE_NEW_N(r->arena, Buffer, o->threads);
        for (int i = 0; i < o->threads; i++)
            buffer_make(&r->thread_scratch[i], r->scratch.bytes);
    }
    if (st)
        moe_group_run_destroy(r);
    else
        *out = r;
    return st;
}

/* ---- run ---- */

static MoeStatus find_symbol(MoeGroupRun *r, const char *name, LLVMOrcExecutorAddress *out) {
    return from_llvm(LLVMOrcLLJITLookup(r->jit, out, name), name);
}

static MoeStatus find_kernel(MoeGroupRun *r, const char *name, MoeKernelTasksFn *tasks,
                             MoeKernelFn *run) {
    char both[256];
    LLVMOrcExecutorAddress a = 0, b = 0;
    snprintf(both, sizeof both, "%s_tasks", name);
    MOE_TRY(find_symbol(r, both, &a));
    MOE_TRY(find_symbol(r, name, &b));
    *tasks = (MoeKernelTasksFn)(uintptr_t)a;
    *run = (MoeKernelFn)(uintptr_t)b;
    return NULL;
}

/* Bytes of v that the live rows take; everything where rows are static or the table is not there
 * yet. */
static size_t live_bytes(MoeGroupRun *r, const MoeValue *v) {
    const MoeType *t = &v->type;
    if (t->kind == MOE_TYPE_SEGS || t->rank == 0 || !t->dims[0].seg || t->dims[0].size == 0)
        return (size_t)moe_type_bytes(t);
    const MoeValue *seg = t->dims[0].seg;
    int32_t n;
    memcpy(&n, buffer_data(home(r, seg)) + seg->type.groups * seg->type.shards * 4, 4);
    if (n < 0 || n > t->dims[0].size)
        return (size_t)moe_type_bytes(t);
    return (size_t)(moe_type_bytes(t) / t->dims[0].size * n);
}

static bool writes(const MoeGroup *g, const MoeValue *v) {
    return contains(g->outputs, g->n_outputs, v);
}

static MoeStatus check_memory(MoeGroupRun *r, const Step *s, const char *kernel) {
    const MoeGraph *g = r->g;
    if (!buffer_intact(&s->work))
        return moe_error(MOE_E_INTERNAL, "%s writes outside its workspace", kernel);
    if (!buffer_intact(&r->scratch))
        return moe_error(MOE_E_INTERNAL, "%s writes outside its scratch", kernel);
    for (size_t i = 0; i < g->n_ops; i++)
        for (int k = 0; k < g->ops[i]->n_results; k++) {
            const MoeValue *v = g->ops[i]->results[k];
            const Buffer *b = home(r, v);
            if (!buffer_intact(b))
                return moe_error(MOE_E_INTERNAL, "%s writes outside value %d", kernel, v->id);
            bool written = false; /* this memory, by this group */
            for (size_t o = 0; o < s->group.n_outputs; o++)
                written |= home(r, s->group.outputs[o]) == b;
            size_t from = written ? live_bytes(r, v) : 0;
            if (written && !writes(&s->group, v))
                continue;
            if (memcmp(b->before + from, buffer_data(b) + from, b->bytes - from) != 0)
                return moe_error(MOE_E_INTERNAL, "%s writes %s value %d", kernel,
                                 written ? "beyond the live rows of" : "into", v->id);
        }
    return NULL;
}

static void copy_before(MoeGroupRun *r) {
    for (int i = 0; i < r->g->n_values; i++)
        if (r->buffers[i].base)
            memcpy(r->buffers[i].before, buffer_data(&r->buffers[i]), r->buffers[i].bytes);
}

static void launch_bufs(MoeGroupRun *r, const Step *s, const MoeLaunch *l, void **bufs) {
    for (size_t i = 0; i < l->n_bufs; i++)
        bufs[i] = l->bufs[i].value ? buffer_data(home(r, l->bufs[i].value))
                                   : buffer_data(&s->work) + l->bufs[i].offset;
}

typedef struct {
    MoeGroupRun *r;
    void *const *bufs;
    MoeKernelFn run;
} PoolLaunch;

static void pool_task(void *ctx, int64_t task, int thread) {
    PoolLaunch *p = ctx;
    p->run(p->bufs, task, buffer_data(&p->r->thread_scratch[thread]));
}

static MoeStatus run_on_pool(MoeGroupRun *r, void *const *bufs, int64_t n, MoeKernelFn run,
                             const char *kernel) {
    PoolLaunch p = {r, bufs, run};
    moe_pool_run(r->pool, n, pool_task, &p);
    for (int i = 0; i < moe_pool_threads(r->pool); i++)
        if (!buffer_intact(&r->thread_scratch[i]))
            return moe_error(MOE_E_INTERNAL, "%s writes outside its scratch", kernel);
    return NULL;
}

static MoeStatus run_on_gpu(MoeGroupRun *r, const Step *s, const MoeLaunch *l) {
    MoeCuPtr bufs[64];
    MOE_ASSERT(l->n_bufs <= 64, "group_run: a launch of %zu buffers", l->n_bufs);
    gpu_bufs(r, s, l, bufs);
    copy_before(r);
    r->n_tasks += l->shape.grid;
    MOE_TRY(moe_group_gpu_launch(r->gpu, l, bufs));
    MOE_TRY(gpu_copy(r, false));
    return check_memory(r, s, l->kernel);
}

static MoeStatus run_launch(MoeGroupRun *r, const Step *s, const MoeLaunch *l) {
    if (r->gpu)
        return run_on_gpu(r, s, l);
    void *bufs[64];
    MoeKernelTasksFn tasks;
    MoeKernelFn run;
    MOE_TRY(find_kernel(r, l->kernel, &tasks, &run));
    MOE_ASSERT(l->n_bufs <= 64, "group_run: a launch of %zu buffers", l->n_bufs);
    launch_bufs(r, s, l, bufs);
    copy_before(r);
    int64_t n_tasks = tasks(bufs);
    r->n_tasks += n_tasks;
    if (r->pool) {
        MOE_TRY(run_on_pool(r, bufs, n_tasks, run, l->kernel));
        return check_memory(r, s, l->kernel);
    }
    for (int64_t t = n_tasks - 1; t >= 0; t--) {
        memset(buffer_data(&r->scratch), PATTERN, r->scratch.bytes);
        run(bufs, t, buffer_data(&r->scratch));
    }
    return check_memory(r, s, l->kernel);
}

MoeStatus moe_group_run(MoeGroupRun *r, const MoeInputs *in) {
    for (size_t i = 0; i < r->g->n_ops; i++)
        for (int k = 0; k < r->g->ops[i]->n_results; k++) {
            const MoeValue *v = r->g->ops[i]->results[k];
            Buffer *b = &r->buffers[v->id];
            memset(buffer_data(b), v->type.dtype == MOE_I32 ? INT_PATTERN : PATTERN, b->bytes);
        }
    for (size_t i = 0; i < in->n; i++)
        moe_tensor_pack(&in->items[i].t, buffer_data(home(r, in->items[i].value)));
    for (size_t i = 0; i < r->n_steps; i++)
        memset(buffer_data(&r->steps[i].work), PATTERN, r->steps[i].work.bytes);
    r->n_tasks = 0;
    if (r->gpu)
        MOE_TRY(gpu_copy(r, true));
    for (size_t i = 0; i < r->n_steps; i++)
        for (size_t k = 0; k < r->steps[i].lowered.n_launches; k++)
            MOE_TRY(run_launch(r, &r->steps[i], &r->steps[i].lowered.launches[k]));
    return NULL;
}

static double launch_time(MoeGroupRun *r, const Step *s, const MoeLaunch *l) {
    MoeKernelTasksFn tasks;
    MoeKernelFn run;
    if (r->gpu) {
        MoeCuPtr at[64];
        double seconds = 0;
        gpu_bufs(r, s, l, at);
        MoeStatus st = moe_group_gpu_time(r->gpu, l, at, &seconds);
        MOE_ASSERT(!st, "group_run: %s", moe_status_message(st));
        return seconds;
    }
    void *bufs[64];
    MoeStatus st = find_kernel(r, l->kernel, &tasks, &run);
    MOE_ASSERT(!st, "group_run: %s", moe_status_message(st));
    launch_bufs(r, s, l, bufs);
    double start = moe_thread_cpu();
    int64_t count = tasks(bufs);
    for (int64_t t = 0; t < count; t++)
        run(bufs, t, buffer_data(&r->scratch));
    return moe_thread_cpu() - start;
}

/* By the thread's own time: what others do on a shared machine counts as little as can be. */
double moe_group_run_time(MoeGroupRun *r, int n) {
    double best = 1e30;
    for (int rep = 0; rep < n; rep++) {
        double sum = 0;
        for (size_t i = 0; i < r->n_steps; i++)
            for (size_t k = 0; k < r->steps[i].lowered.n_launches; k++)
                sum += launch_time(r, &r->steps[i], &r->steps[i].lowered.launches[k]);
        best = sum < best ? sum : best;
    }
    return best;
}

const void *moe_group_run_data(const MoeGroupRun *r, const MoeValue *v) {
    return buffer_data(home((MoeGroupRun *)(uintptr_t)r, v));
}

size_t moe_group_run_launches(const MoeGroupRun *r) {
    return r->n_launches;
}
size_t moe_group_run_aliases(const MoeGroupRun *r) {
    return r->n_aliases;
}

int64_t moe_group_run_tasks(const MoeGroupRun *r) {
    return r->n_tasks;
}

size_t moe_group_run_work_used(const MoeGroupRun *r) {
    size_t sum = 0;
    for (size_t i = 0; i < r->n_steps; i++) {
        size_t n = r->steps[i].work.bytes;
        while (n > 0 && buffer_data(&r->steps[i].work)[n - 1] == PATTERN)
            n--;
        sum += n;
    }
    return sum;
}

void moe_group_run_destroy(MoeGroupRun *r) {
    if (!r)
        return;
    if (r->target)
        r->target->destroy(r->target);
    moe_group_gpu_destroy(r->gpu);
    for (int i = 0; i < r->g->n_values; i++)
        buffer_free(&r->buffers[i]);
    for (size_t i = 0; i < r->n_steps; i++)
        buffer_free(&r->steps[i].work);
    buffer_free(&r->scratch);
    for (int i = 0; r->pool && i < moe_pool_threads(r->pool); i++)
        buffer_free(&r->thread_scratch[i]);
    if (r->pool)
        moe_pool_destroy(r->pool);
    moe_arena_destroy(r->arena);
    free(r);
}
