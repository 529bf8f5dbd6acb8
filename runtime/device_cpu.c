/* The process as a device: its memory, and kernels as functions that the thread pool runs (base/kernel_abi.h). Mirrors are
 * the memory itself. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/pool.h"
#include "runtime/exec_internal.h"

/* ---- memory ---- */

static void cpu_close(MoeDevice *d) {
    free(d);
}

static MoeStatus cpu_alloc(MoeDevice *d, int64_t bytes, const char *what, char **out) {
    void *data;
    (void)d;
    MOE_TRY(moe_alloc_big((size_t)bytes, what, &data));
    *out = data;
    return NULL;
}

/* Address space for the worst case. The end, for elastic values, is touched by live rows alone: there a huge page
 * would be memory that nobody asked for. */
static MoeStatus cpu_slab(MoeDevice *d, int64_t bytes, int64_t fixed, char **out) {
    int64_t page = sysconf(_SC_PAGESIZE), from = (fixed + MOE_BUFFER_SLACK + page - 1) / page * page;
    MOE_TRY(cpu_alloc(d, bytes, "activations and gradients", out));
    if (bytes > from)
        (void)madvise(*out + from, (size_t)(bytes - from), MADV_NOHUGEPAGE);
    return NULL;
}

static void cpu_release(MoeDevice *d, char *at, int64_t bytes) {
    (void)d;
    moe_free_big(at, (size_t)bytes);
}

static MoeStatus cpu_bind(MoeDevice *d, MoeExec *x) {
    (void)d, (void)x;
    return NULL;
}

/* ---- kernels ---- */

typedef struct {
    MoeKernelFn run;
    void *const *bufs;
    char *scratch;
    int64_t stride;
} Launch;

static void run_task(void *ctx, int64_t task, int thread) {
    const Launch *l = ctx;
    l->run(l->bufs, task, l->scratch + l->stride * thread);
}

static MoeStatus cpu_run(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    (void)d;
    if (!s->run || !s->tasks)
        return moe_error(MOE_E_INTERNAL,
                         "step %s of program %s has no code: the plan is not linked", s->name,
                         g->plan->name);
    if (s->slot_hi)
        moe_exec_window_fill(x, g, i);
    Launch l = {s->run, g->step_bufs[i], x->scratch, x->scratch_stride};
    int64_t n = s->tasks(g->step_bufs[i]);
    if (n < 0)
        return moe_error(MOE_E_INTERNAL, "step %s (%s) of program %s asks for %lld tasks", s->name,
                         s->kernel, g->plan->name, (long long)n);
    moe_pool_run(x->pool, n, run_task, &l);
    return NULL;
}

static MoeStatus cpu_stepped(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i) {
    (void)d;
    moe_exec_elastic_step(x, g, i);
    return NULL;
}

/* ---- the tree over micro-batches ---- */

#define FOLD_CHUNK 32768 /* elements a task */
#define FOLD_BLOCK 512

typedef struct {
    const float *source;
    const float *slots[32];
    int n_slots;
    float *out; /* may be one of the others */
    int64_t n;
} Fold;

/* out = slots[b-1] + ( ... (slots[0] + source)): older operands on the left. */
static void fold_task(void *ctx, int64_t task, int thread) {
    (void)thread;
    const Fold *f = ctx;
    int64_t end = (task + 1) * FOLD_CHUNK < f->n ? (task + 1) * FOLD_CHUNK : f->n;
    float acc[FOLD_BLOCK];
    for (int64_t i = task * FOLD_CHUNK; i < end; i += FOLD_BLOCK) {
        int64_t n = end - i < FOLD_BLOCK ? end - i : FOLD_BLOCK;
        memcpy(acc, f->source + i, sizeof *acc * (size_t)n);
        for (int s = 0; s < f->n_slots; s++)
            for (int64_t k = 0; k < n; k++)
                acc[k] = f->slots[s][i + k] + acc[k];
        memcpy(f->out + i, acc, sizeof *acc * (size_t)n);
    }
}

static MoeStatus cpu_fold(MoeDevice *d, MoeExec *x, MoeExecProgram *g, int m) {
    (void)d;
    for (size_t i = 0; i < g->plan->n_accumulates; i++) {
        const MoePlanAccumulate *a = &g->plan->accumulates[i];
        Fold f = {.source = (const float *)(const void *)g->values[a->source],
                  .n = a->elements,
                  .n_slots = moe_exec_fold_depth(m)};
        for (int s = 0; s < f.n_slots; s++)
            f.slots[s] = (const float *)(const void *)g->values[a->slots[s]];
        bool last = m == x->plan->micro_batches - 1;
        f.out = (float *)(void *)g->values[last ? a->value : a->slots[f.n_slots]];
        moe_pool_run(x->pool, (f.n + FOLD_CHUNK - 1) / FOLD_CHUNK, fold_task, &f);
    }
    return NULL;
}

/* ---- the counting pass ---- */

static MoeStatus cpu_clear_sums(MoeDevice *d, MoeExec *x, MoeExecProgram *g) {
    const MoePlanProgram *p = g->plan;
    (void)d, (void)x;
    for (size_t i = 0; i < p->n_batch_sums; i++)
        memset(g->values[p->batch_sums[i].value], 0,
               sizeof(int32_t) * (size_t)p->batch_sums[i].elements);
    return NULL;
}

static MoeStatus cpu_add_sums(MoeDevice *d, MoeExec *x, MoeExecProgram *g) {
    const MoePlanProgram *p = g->plan;
    (void)d, (void)x;
    for (size_t i = 0; i < p->n_batch_sums; i++) {
        int32_t *sum = (int32_t *)(void *)g->values[p->batch_sums[i].value];
        const int32_t *v = (const int32_t *)(const void *)g->values[p->batch_sums[i].source];
        for (int64_t k = 0; k < p->batch_sums[i].elements; k++)
            sum[k] += v[k];
    }
    return NULL;
}

static const MoeDeviceOps ops = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .slab = cpu_slab,
    .release = cpu_release,
    .bind = cpu_bind,
    .run = cpu_run,
    .fold = cpu_fold,
    .clear_sums = cpu_clear_sums,
    .add_sums = cpu_add_sums,
    .stepped = cpu_stepped,
};

MoeStatus moe_device_cpu(MoeDevice **out) {
    MoeDevice *d = calloc(1, sizeof *d);
    if (!d)
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    *d = (MoeDevice){&ops, -1, NULL};
    *out = d;
    return NULL;
}
