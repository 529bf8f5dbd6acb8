/* The library, plans for steps, and their launches. See cuda/cudnn.h.
 *
 * cuDNN's log-sum-exp is the plan's, in natural units, but head by head in a sequence; its gradients are bf16, the plan's f32. Small
 * kernels of the runtime stand between: they heed the stop flag, which cuDNN does not know. Where a guard may have stopped the program
 * (elastic values), o comes out of memory of its own, too: what cuDNN would overwrite may be needed again. */
#include "runtime/cuda/cudnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the plan's attention");
}

/* ---- kinds ---- */

/* Heads may be divided among ranks; what counts is how many share a key head. */
static void kind_key(const MoePlanAttn *a, char out[MOE_ATTN_KEY_BYTES]) {
    snprintf(out, MOE_ATTN_KEY_BYTES, "%s dim %lld share %lld seq %lld window %lld causal bf16",
             a->grad ? "gradient" : "forward", (long long)a->head_dim,
             (long long)(a->heads / a->kv_heads), (long long)a->seq, (long long)a->window);
}

static MoeAttnKind *find_kind(MoeAttnKind *kinds, size_t n, const MoePlanAttn *a) {
    char key[MOE_ATTN_KEY_BYTES];
    kind_key(a, key);
    for (size_t i = 0; i < n; i++)
        if (!strcmp(kinds[i].key, key))
            return &kinds[i];
    return NULL;
}

static void add_batch(MoeAttnKind *k, int64_t batch) {
    int at = 0;
    while (at < k->n_batches && k->batches[at] > batch)
        at++;
    if ((at < k->n_batches && k->batches[at] == batch) || k->n_batches == MOE_ATTN_MAX_BATCHES)
        return;
    memmove(&k->batches[at + 1], &k->batches[at], sizeof *k->batches * (size_t)(k->n_batches - at));
    k->batches[at] = batch;
    k->n_batches++;
}

static MoeStatus add_step(const MoePlanAttn *a, size_t program, size_t step, MoeAttnKind **kinds,
                          size_t *n) {
    MoeAttnKind *k = find_kind(*kinds, *n, a);
    if (!k) {
        MoeAttnKind *more = realloc(*kinds, sizeof *more * (*n + 1));
        if (!more)
            return no_memory();
        *kinds = more;
        k = &more[(*n)++];
        *k = (MoeAttnKind){.of = a, .program = program, .step = step};
        kind_key(a, k->key);
    }
    if (a->rows > k->of->rows) {
        k->of = a;
        k->program = program;
        k->step = step;
    }
    add_batch(k, a->rows / a->seq);
    return NULL;
}

MoeStatus moe_attn_kinds(const MoePlan *p, MoeAttnKind **out, size_t *out_n) {
    MoeStatus st = NULL;
    *out = NULL;
    *out_n = 0;
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_steps && !st; i++)
            if (p->programs[g].steps[i].attn)
                st = add_step(p->programs[g].steps[i].attn, g, i, out, out_n);
    if (!st)
        return NULL;
    free(*out);
    *out = NULL;
    *out_n = 0;
    return st;
}

/* ---- opening, closing ---- */

static MoeStatus open_handle(MoeDeviceCuda *d, MoeCudaCudnn *c) {
    int major = 0, minor = 0;
    MOE_TRY(moe_cuda_check(d, d->cu->device_attribute(&major, MOE_CU_ATTR_MAJOR, d->device),
                           "cuDeviceGetAttribute"));
    MOE_TRY(moe_cuda_check(d, d->cu->device_attribute(&minor, MOE_CU_ATTR_MINOR, d->device),
                           "cuDeviceGetAttribute"));
    c->capability = 10 * major + minor;
    MOE_TRY(moe_cudnn_status(c->c->create(&c->handle), "GPU %d (%s): cudnnCreate", d->ordinal,
                             d->name));
    return moe_cudnn_status(c->c->set_stream(c->handle, d->stream), "GPU %d (%s): cudnnSetStream",
                            d->ordinal, d->name);
}

MoeStatus moe_cuda_cudnn_open(MoeDeviceCuda *d) {
    if (d->cudnn)
        return NULL;
    MoeCudaCudnn *c = calloc(1, sizeof *c);
    if (!c)
        return no_memory();
    d->cudnn = c;
    MoeStatus st = moe_cudnn(&c->c);
    if (!st) {
        c->version = c->c->version();
        st = open_handle(d, c);
    }
    if (!st)
        st = moe_attn_kinds(d->plan, &c->kinds, &c->n_kinds);
    if (st)
        moe_cuda_cudnn_close(d);
    return st;
}

static void forget_plans(MoeCudaCudnn *c) {
    for (size_t i = 0; i < c->n_plans; i++) {
        moe_cudnn_attn_free(&c->plans[i]->attn);
        free(c->plans[i]);
    }
    free(c->plans);
    c->plans = NULL;
    c->n_plans = c->cap_plans = 0;
}

static void unbind(MoeDeviceCuda *d) {
    for (size_t g = 0; d->programs && g < d->plan->n_programs; g++) {
        MoeCudaProgram *p = &d->programs[g];
        for (size_t i = 0; p->attn && i < d->plan->programs[g].n_steps; i++)
            moe_cudnn_step_release(&p->attn[i]);
        if (p->attn)
            moe_cuda_forget_graphs(d, p);
        free(p->attn);
        p->attn = NULL;
    }
}

void moe_cuda_cudnn_close(MoeDeviceCuda *d) {
    MoeCudaCudnn *c = d->cudnn;
    if (!c)
        return;
    unbind(d);
    forget_plans(c);
    if (c->handle)
        (void)c->c->destroy(c->handle);
    if (c->staging)
        (void)d->cu->mem_free(c->staging);
    free(c->kinds);
    free(c);
    d->cudnn = NULL;
}

/* ---- plans ---- */

static bool same_shape(const MoeAttnShape *a, const MoeAttnShape *b) {
    return a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim &&
           a->seq == b->seq && a->window == b->window && a->scale == b->scale;
}

/* Sequences at once, of the workspace's bound: all, or a part of equal size. 0: one takes too much. dS of every head of a sequence, in
 * tiles of 128. */
static int64_t part_of(const MoePlanAttn *a, MoeCudnnForm form, int64_t batch) {
    int64_t side = (a->seq + 127) / 128 * 128, one = 2 * a->heads * side * side, part = batch;
    if (form != MOE_CUDNN_GRAD_WHOLE)
        return batch;
    while (part > 0 && (batch % part || part * one > MOE_CUDNN_WORKSPACE))
        part--;
    return part;
}

static MoeStatus make_plan(MoeDeviceCuda *d, const MoeAttnShape *shape, MoeCudnnForm form,
                           int64_t batch, const MoeCudaAttnPlan **out) {
    MoeCudaCudnn *c = d->cudnn;
    for (size_t i = 0; i < c->n_plans; i++)
        if (c->plans[i]->batch == batch && c->plans[i]->attn.form == form &&
            same_shape(&c->plans[i]->attn.shape, shape)) {
            *out = c->plans[i];
            return NULL;
        }
    MoeCudaAttnPlan *p = calloc(1, sizeof *p);
    if (!p || !MOE_ROOM(c->plans, c->n_plans, c->cap_plans)) {
        free(p);
        return no_memory();
    }
    p->batch = batch;
    MoeStatus st = moe_cudnn_attn_plan(c->c, shape, form, batch, c->capability,
                                       (MoeCudnnPlace){.handle = c->handle}, &p->attn);
    if (st) {
        moe_cudnn_attn_free(&p->attn);
        free(p);
        return st;
    }
    c->plans[c->n_plans++] = p;
    *out = p;
    return NULL;
}

static int64_t take(int64_t *bytes, int64_t n) {
    int64_t at = *bytes;
    *bytes += (n + 255) / 256 * 256;
    return at;
}

static MoeCudaAttnRoom room_of(const MoePlanAttn *a, const MoeCudaAttn *s) {
    const int64_t rows = s->batch * a->seq, part = s->plan->batch * a->seq,
                  q = a->heads * a->head_dim, k = a->kv_heads * a->head_dim;
    const bool grad = a->grad;
    MoeCudaAttnRoom r = {0};
    r.stats = take(&r.bytes, 4 * rows * a->heads);
    r.o = take(&r.bytes, s->staged && !grad ? 2 * rows * q : 0);
    r.sums = take(&r.bytes, grad ? 4 * part * a->heads : 0);
    r.dq_sums = take(&r.bytes, s->plan->attn.dq_sums ? 4 * part * q : 0);
    r.dq = take(&r.bytes, grad ? 2 * rows * q : 0);
    r.dk = take(&r.bytes, grad ? 2 * rows * k : 0);
    r.dv = take(&r.bytes, grad ? 2 * rows * k : 0);
    r.workspace =
        take(&r.bytes, s->plan->attn.plan.workspace > 0 ? s->plan->attn.plan.workspace : 1);
    return r;
}

static MoeCuPtr address_of(const MoeDeviceCuda *d, const MoeExecProgram *g, int value) {
    return value < 0 ? 0 : moe_cuda_address(d, g->values[value]);
}

MoeStatus moe_cudnn_step_prepare(MoeDeviceCuda *d, const MoeExecProgram *g, size_t i,
                                 MoeCudnnForm form, int64_t batch, bool staged, MoeCudaAttn *out) {
    const MoePlanAttn *a = g->plan->steps[i].attn;
    const MoeAttnShape shape = {a->heads, a->kv_heads, a->head_dim,
                                a->seq,   a->window,   (float)a->scale};
    const int64_t part = part_of(a, form, batch);
    *out = (MoeCudaAttn){.of = a, .staged = staged, .batch = batch};
    if (!part)
        return moe_error(MOE_E_INPUT, "a sequence of %lld takes more than %lld bytes of workspace",
                         (long long)a->seq, (long long)MOE_CUDNN_WORKSPACE);
    MOE_TRY(make_plan(d, &shape, form, part, &out->plan));
    out->packs = calloc((size_t)(batch / part), sizeof *out->packs);
    if (!out->packs)
        return no_memory();
    out->q = address_of(d, g, a->values.q);
    out->k = address_of(d, g, a->values.k);
    out->v = address_of(d, g, a->values.v);
    out->o = address_of(d, g, a->values.o);
    out->lse = address_of(d, g, a->values.lse);
    out->d_o = address_of(d, g, a->values.d_o);
    out->dq = address_of(d, g, a->values.dq);
    out->dk = address_of(d, g, a->values.dk);
    out->dv = address_of(d, g, a->values.dv);
    out->room = room_of(a, out);
    return NULL;
}

void moe_cudnn_step_release(MoeCudaAttn *a) {
    free(a->packs);
    *a = (MoeCudaAttn){0};
}

MoeStatus moe_cudnn_step_staging(MoeDeviceCuda *d, int64_t bytes) {
    MoeCudaCudnn *c = d->cudnn;
    if (bytes <= c->staging_bytes)
        return NULL;
    if (c->staging) {
        MOE_TRY(moe_cuda_wait(d));
        MOE_TRY(moe_cuda_check(d, d->cu->mem_free(c->staging), "cuMemFree"));
    }
    c->staging = 0;
    c->staging_bytes = 0;
    MOE_TRY(moe_cuda_table(d, bytes, "attention by cuDNN", &c->staging));
    c->staging_bytes = bytes;
    return NULL;
}

int64_t moe_cuda_cudnn_bytes(const MoeDeviceCuda *d) {
    return d->cudnn ? d->cudnn->staging_bytes : 0;
}

static void *at(MoeCuPtr p, int64_t bytes) {
    return (void *)(uintptr_t)(p + (MoeCuPtr)bytes);
}

MoeStatus moe_cudnn_step_bind(MoeDeviceCuda *d, MoeCudaAttn *s) {
    const MoePlanAttn *a = s->of;
    const MoeCudaAttnRoom *r = &s->room;
    MoeCudnnAttn *plan = (MoeCudnnAttn *)&s->plan->attn; /* its descriptors are added to */
    const int64_t part = s->plan->batch * a->seq, q = 2 * part * a->heads * a->head_dim,
                  k = 2 * part * a->kv_heads * a->head_dim, n = 4 * part * a->heads;
    const MoeCuPtr base = d->cudnn->staging;
    MOE_ASSERT(r->bytes <= d->cudnn->staging_bytes, "%lld bytes", (long long)r->bytes);
    for (int64_t i = 0; i < s->batch / s->plan->batch; i++) {
        MoeCudnnAttnBufs b = {.q = at(s->q, i * q),
                              .k = at(s->k, i * k),
                              .v = at(s->v, i * k),
                              .o = s->staged && !a->grad ? at(base, r->o + i * q) : at(s->o, i * q),
                              .stats = at(base, r->stats + i * n),
                              .workspace = at(base, r->workspace)};
        if (a->grad) {
            b.d_o = at(s->d_o, i * q);
            b.dq = at(base, r->dq + i * q);
            b.dk = at(base, r->dk + i * k);
            b.dv = at(base, r->dv + i * k);
            b.sums = at(base, r->sums);
            b.dq_sums = at(base, r->dq_sums);
        }
        MOE_TRY(moe_cudnn_attn_bind(plan, &b, &s->packs[i]));
    }
    return NULL;
}

/* ---- launches ---- */

static MoeStatus runtime_kernel(MoeDeviceCuda *d, MoeRtKernel k, int64_t n, const uint64_t *bufs,
                                size_t n_bufs) {
    return moe_cuda_runtime(d, k, d->stream, n, bufs, n_bufs);
}

/* The numbers of rows and heads from one order to the other: [seq][heads] of every sequence, or [heads][seq]. */
static MoeStatus turn(MoeDeviceCuda *d, const MoeCudaAttn *s, MoeCuPtr from, MoeCuPtr to,
                      int64_t rows, int64_t cols) {
    const uint64_t bufs[] = {from, to, (uint64_t)s->batch, (uint64_t)rows, (uint64_t)cols};
    return runtime_kernel(d, MOE_RT_ID_moe_rt_transpose, s->batch * rows * cols, bufs, 5);
}

static MoeStatus widen(MoeDeviceCuda *d, const MoeCudaAttn *s, int64_t from, MoeCuPtr to,
                       int64_t cols) {
    int64_t n = s->batch * s->of->seq * cols;
    const uint64_t bufs[] = {d->cudnn->staging + (MoeCuPtr)from, to, (uint64_t)n};
    return runtime_kernel(d, MOE_RT_ID_moe_rt_widen, n / 8 + 1, bufs, 3);
}

static MoeStatus execute(MoeDeviceCuda *d, const MoeCudaAttn *s) {
    for (int64_t i = 0; i < s->batch / s->plan->batch; i++)
        MOE_TRY(moe_status_prefix(moe_cudnn_attn_run(&s->plan->attn, d->cudnn->handle, s->packs[i]),
                                  "GPU %d (%s)", d->ordinal, d->name));
    return NULL;
}

MoeStatus moe_cudnn_step_launch(MoeDeviceCuda *d, const MoeCudaAttn *s) {
    const MoePlanAttn *a = s->of;
    const MoeCuPtr stats = d->cudnn->staging + (MoeCuPtr)s->room.stats;
    const int64_t q = a->heads * a->head_dim, k = a->kv_heads * a->head_dim;
    if (a->grad) {
        MOE_TRY(turn(d, s, s->lse, stats, a->seq, a->heads));
        MOE_TRY(execute(d, s));
        MOE_TRY(widen(d, s, s->room.dq, s->dq, q));
        MOE_TRY(widen(d, s, s->room.dk, s->dk, k));
        return widen(d, s, s->room.dv, s->dv, k);
    }
    MOE_TRY(execute(d, s));
    MOE_TRY(turn(d, s, stats, s->lse, a->heads, a->seq));
    int64_t bytes = 2 * s->batch * a->seq * q;
    const uint64_t copy[] = {s->o, d->cudnn->staging + (MoeCuPtr)s->room.o, (uint64_t)bytes};
    return s->staged ? runtime_kernel(d, MOE_RT_ID_moe_rt_copy, bytes / 16 + 1, copy, 3) : NULL;
}

/* ---- steps ---- */

/* The steps of program g whose kind's choice is the library: plans, and how much staging memory they want. */
static MoeStatus prepare_program(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *p,
                                 int64_t *bytes) {
    p->attn = calloc(g->plan->n_steps + 1, sizeof *p->attn);
    if (!p->attn)
        return no_memory();
    for (size_t i = 0; i < g->plan->n_steps; i++) {
        const MoePlanAttn *a = g->plan->steps[i].attn;
        const MoeAttnKind *k = a ? find_kind(d->cudnn->kinds, d->cudnn->n_kinds, a) : NULL;
        if (!k || !k->choice.library)
            continue;
        MOE_TRY(moe_cudnn_step_prepare(d, g, i, k->choice.form, a->rows / a->seq, p->n_elastic > 0,
                                       &p->attn[i]));
        for (int n = 1; n < a->steps; n++)
            p->attn[i + (size_t)n].passed = true;
        if (p->attn[i].room.bytes > *bytes)
            *bytes = p->attn[i].room.bytes;
    }
    return NULL;
}

MoeStatus moe_cuda_cudnn_bind(MoeDeviceCuda *d, MoeExec *x) {
    int64_t bytes = 0;
    unbind(d);
    for (size_t g = 0; g < x->plan->n_programs; g++) {
        moe_cuda_forget_graphs(d, &d->programs[g]);
        MOE_TRY(prepare_program(d, &x->programs[g], &d->programs[g], &bytes));
    }
    MOE_TRY(moe_cudnn_step_staging(d, bytes));
    for (size_t g = 0; g < x->plan->n_programs; g++)
        for (size_t i = 0; i < x->plan->programs[g].n_steps; i++)
            if (d->programs[g].attn[i].of)
                MOE_TRY(moe_cudnn_step_bind(d, &d->programs[g].attn[i]));
    return NULL;
}

bool moe_cuda_cudnn_has(const MoeCudaProgram *p, size_t i) {
    return p->attn && (p->attn[i].of || p->attn[i].passed);
}

MoeStatus moe_cuda_cudnn_run(MoeDeviceCuda *d, const MoeCudaProgram *p, size_t i) {
    return p->attn[i].passed ? NULL : moe_cudnn_step_launch(d, &p->attn[i]);
}
