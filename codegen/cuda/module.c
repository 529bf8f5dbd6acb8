/* The kernels of a target. In: texts from the kinds. Out: units, kernels.cu, kernels.cubin. */
#include "codegen/cuda/module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/cubins.h"
#include "base/pool.h"

/* ---- parts ---- */

const char *moe_cuda_part_name(MoeCudaPart p) {
    static const char *const names[] = {
#define X(name) #name,
        MOE_CUDA_PARTS(X)
#undef X
    };
    return names[p];
}

const char *moe_cuda_part_text(MoeCudaPart p) {
    for (const MoeCudaPartText *t = moe_cuda_part_texts; t->name; t++)
        if (strcmp(t->name, moe_cuda_part_name(p)) == 0)
            return (const char *)t->text;
    return "";
}

static const uint32_t always = 1u << MOE_CUDA_PART_prelude | 1u << MOE_CUDA_PART_ptx;

static void append_parts(uint32_t parts, MoeStr *out) {
    for (int p = 0; p < MOE_CUDA_N_PARTS; p++) {
        const char *text = moe_cuda_part_text((MoeCudaPart)p);
        if ((parts | always) >> p & 1 && *text)
            moe_str_printf(out, "#line 1 \"device/%s.cuh\"\n%s\n",
                           moe_cuda_part_name((MoeCudaPart)p), text);
    }
}

/* ---- kernels ---- */

static bool same_text(const char *a, const char *b) {
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool same_kernel(const MoeCudaKernelText *a, const MoeCudaKernelText *b) {
    return same_text(a->prefix, b->prefix) && same_text(a->note, b->note) && a->exact == b->exact &&
           a->n_bufs == b->n_bufs && a->n_maps == b->n_maps && a->threads == b->threads &&
           a->min_blocks == b->min_blocks && a->shared_bytes == b->shared_bytes &&
           a->parts == b->parts && same_text(a->body, b->body);
}

static void check_kernel(const MoeCudaTarget *t, const MoeCudaKernelText *k) {
    MOE_ASSERT(k->threads > 0 && k->threads % 32 == 0 && k->threads <= 1024,
               "kernel %s: %d threads", k->prefix, k->threads);
    MOE_ASSERT(k->shared_bytes >= 0 && k->shared_bytes <= t->arch->shared_bytes,
               "kernel %s: %lld bytes of shared memory, %s has %lld", k->prefix,
               (long long)k->shared_bytes, t->arch->name, (long long)t->arch->shared_bytes);
    MOE_ASSERT(k->n_bufs >= 0 && k->n_maps >= 0 && k->n_maps <= MOE_CUDA_MAX_MAPS &&
                   (!k->n_maps || t->arch->tensor_maps),
               "kernel %s: %d buffers, %d tensor maps on %s", k->prefix, k->n_bufs, k->n_maps,
               t->arch->name);
}

/* The number counts kernels of the same prefix, so that a kernel's name, and with it its entry in the cache, depends little on
 * the other kernels. */
static const char *new_name(const MoeCudaTarget *t, const MoeCudaKernelText *k) {
    int n = 0;
    if (k->exact)
        return moe_arena_strdup(t->arena, k->prefix);
    for (size_t i = 0; i < t->n_kernels; i++)
        n += strcmp(t->kernels[i].text.prefix, k->prefix) == 0;
    return moe_arena_printf(t->arena, "%s_%d", k->prefix, n);
}

const char *moe_cuda_kernel(MoeCudaTarget *t, const MoeCudaKernelText *k) {
    for (size_t i = 0; i < t->n_kernels; i++)
        if (same_kernel(&t->kernels[i].text, k))
            return t->kernels[i].name;
    check_kernel(t, k);
    MoeCudaKernel added = {.name = new_name(t, k), .text = *k};
    MOE_ASSERT(strlen(added.name) < MOE_CUBIN_NAME_BYTES, "kernel %s: a long name", added.name);
    MOE_ASSERT(!moe_cuda_find_kernel(t, added.name), "kernel %s is there already, another one",
               added.name);
    added.text.prefix = moe_arena_strdup(t->arena, k->prefix);
    added.text.note = k->note ? moe_arena_strdup(t->arena, k->note) : NULL;
    added.text.body = moe_arena_strdup(t->arena, k->body);
    MOE_PUSH(t->arena, t->kernels, t->n_kernels, t->cap_kernels, added);
    return added.name;
}

const MoeCudaKernel *moe_cuda_find_kernel(const MoeCudaTarget *t, const char *name) {
    for (size_t i = 0; i < t->n_kernels; i++)
        if (strcmp(t->kernels[i].name, name) == 0)
            return &t->kernels[i];
    return NULL;
}

/* ---- text ---- */

static void append_kernel(const MoeCudaKernel *k, MoeStr *out) {
    const MoeCudaKernelText *t = &k->text;
    if (t->note)
        moe_str_printf(out, "/* %s */\n", t->note);
    moe_str_append(out, "MOE_KERNEL");
    if (t->n_maps)
        moe_str_printf(out, "_%d", t->n_maps);
    moe_str_printf(out, "(%s, %d, %d, %d) {\n%s%s}\n", k->name, t->n_bufs, t->threads,
                   t->min_blocks, t->body,
                   *t->body && t->body[strlen(t->body) - 1] != '\n' ? "\n" : "");
}

void moe_cuda_unit_text(const MoeCudaKernel *k, MoeStr *out) {
    append_parts(k->text.parts, out);
    moe_str_printf(out, "#line 1 \"%s\"\n", k->name);
    append_kernel(k, out);
}

static void append_resources(const MoeCudaKernel *k, MoeStr *out) {
    const MoeCudaResources *r = &k->resources;
    moe_str_printf(out, "\n/* %s: %d registers, %lld bytes of shared memory", k->name, r->registers,
                   (long long)(k->text.shared_bytes + r->shared_bytes));
    if (r->stack_bytes)
        moe_str_printf(out, ", %d bytes of stack", r->stack_bytes);
    if (r->spill_bytes)
        moe_str_printf(out, ", %d bytes spilled", r->spill_bytes);
    if (r->warnings)
        moe_str_printf(out, ", %d warnings", r->warnings);
    moe_str_append(out, " */\n");
}

void moe_cuda_module_text(const MoeCudaTarget *t, MoeStr *out) {
    uint32_t parts = 0;
    for (size_t i = 0; i < t->n_kernels; i++)
        parts |= t->kernels[i].text.parts;
    moe_str_printf(out,
                   "/* The kernels of this plan, for %s: first the parts of moec's device library "
                   "that they use, then each "
                   "kernel. */\n",
                   t->arch->name);
    append_parts(parts, out);
    moe_str_append(out, "#line 1 \"kernels\"\n");
    for (size_t i = 0; i < t->n_kernels; i++) {
        if (t->kernels[i].compiled)
            append_resources(&t->kernels[i], out);
        append_kernel(&t->kernels[i], out);
    }
}

/* ---- code ---- */

typedef struct {
    MoeCudaTarget *t;
    MoeCudaCode *code;
    MoeStatus *status;
    double *cpu;    /* seconds of each */
    int64_t *order; /* kernels as they are begun */
} Compile;

static void compile_one(void *ctx, int64_t task, int thread) {
    Compile *c = ctx;
    int64_t i = c->order[task];
    MoeStr text = {0};
    double began = moe_thread_cpu();
    (void)thread;
    moe_cuda_unit_text(&c->t->kernels[i], &text);
    c->status[i] =
        moe_nvrtc_compile(c->t->arch->name, c->t->kernels[i].name, moe_str_c(&text), &c->code[i]);
    moe_str_free(&text);
    c->cpu[i] = moe_thread_cpu() - began;
}

/* What takes long is begun first, so that no core is left alone with it at the end: products, the loss head and attention
 * take a second, all others a fifth of one and less. */
static void make_order(Compile *c) {
    const uint32_t dear = 1u << MOE_CUDA_PART_gemm | 1u << MOE_CUDA_PART_attn;
    int64_t n = 0;
    for (int late = 0; late < 2; late++)
        for (size_t i = 0; i < c->t->n_kernels; i++)
            if ((c->t->kernels[i].text.parts & dear ? 0 : 1) == late)
                c->order[n++] = (int64_t)i;
}

static MoeStatus run_all(Compile *c) {
    int64_t n = (int64_t)c->t->n_kernels;
    MoePool *pool;
    make_order(c);
    MOE_TRY(moe_pool_create((int)(n < moe_cpu_count() ? n : moe_cpu_count()), &pool));
    moe_pool_run(pool, n, compile_one, c);
    moe_pool_destroy(pool);
    MoeStatus st = NULL; /* of the first kernel that failed */
    for (int64_t i = 0; i < n; i++) {
        if (st)
            moe_status_free(c->status[i]);
        else
            st = c->status[i];
        c->t->kernels[i].resources = c->code[i].resources;
        c->t->kernels[i].compiled = !c->status[i];
    }
    return st;
}

/* Where the time of all cores went. Of the clock's figures, which grow where others use the cores, the proportion counts. */
static void say_time(const Compile *c, MoeStr *out) {
    double cpu = 0, seconds = 0, ptxas = 0;
    for (size_t i = 0; i < c->t->n_kernels; i++) {
        cpu += c->code[i].cached ? 0 : c->cpu[i];
        seconds += c->code[i].seconds;
        ptxas += c->code[i].ptxas_seconds;
    }
    if (seconds > 0)
        moe_str_printf(out, "; %.1f s of CPU time, %.0f %% of it ptxas", cpu,
                       100 * ptxas / seconds);
}

/* What the user is told: how much was compiled, and what limits how many blocks fit a multiprocessor. */
static void say(const Compile *c) {
    size_t n = c->t->n_kernels, cached = 0, spilling = 0;
    int registers = 0;
    int64_t shared = 0, spilled = 0;
    for (size_t i = 0; i < n; i++) {
        const MoeCudaKernel *k = &c->t->kernels[i];
        int64_t block = k->text.shared_bytes + k->resources.shared_bytes;
        cached += c->code[i].cached;
        spilling += k->resources.spill_bytes > 0;
        registers = k->resources.registers > registers ? k->resources.registers : registers;
        shared = block > shared ? block : shared;
        spilled = k->resources.spill_bytes > spilled ? k->resources.spill_bytes : spilled;
    }
    MoeStr note = {0};
    moe_str_printf(&note,
                   "%zu kernels: %zu compiled, %zu from the cache; at most %d registers a "
                   "thread and %lld bytes of shared memory a block; ",
                   n, n - cached, cached, registers, (long long)shared);
    if (spilling)
        moe_str_printf(&note, "%zu spill registers, at most %lld bytes", spilling,
                       (long long)spilled);
    else
        moe_str_append(&note, "none spills registers");
    say_time(c, &note);
    snprintf(c->t->base.code_note, sizeof c->t->base.code_note, "%s", moe_str_c(&note));
    moe_str_free(&note);
}

static MoeStatus pack(const Compile *c, void **out, size_t *out_n) {
    size_t n = c->t->n_kernels;
    MoeCubin *images = calloc(n ? n : 1, sizeof *images);
    if (!images)
        return moe_error(MOE_E_NOMEM, "no memory for the names of %zu kernels", n);
    for (size_t i = 0; i < n; i++)
        images[i] = (MoeCubin){c->t->kernels[i].name, c->code[i].data, c->code[i].n};
    MoeStatus st = moe_cubins_pack(images, n, out, out_n);
    free(images);
    return st;
}

MoeStatus moe_cuda_module_compile(MoeCudaTarget *t, void **out, size_t *out_n) {
    size_t n = t->n_kernels ? t->n_kernels : 1;
    Compile c = {t, calloc(n, sizeof *c.code), calloc(n, sizeof *c.status),
                 calloc(n, sizeof *c.cpu), calloc(n, sizeof *c.order)};
    MoeStatus st = NULL;
    *out = NULL;
    if (!c.code || !c.status || !c.cpu || !c.order)
        st = moe_error(MOE_E_NOMEM, "no memory for the code of %zu kernels", t->n_kernels);
    else if (t->n_kernels)
        st = run_all(&c);
    if (!st) {
        say(&c);
        st = pack(&c, out, out_n);
    }
    for (size_t i = 0; c.code && i < t->n_kernels; i++)
        free(c.code[i].data);
    free(c.code);
    free(c.status);
    free(c.cpu);
    free(c.order);
    return st;
}
