/* The library, the plan's products and their launches. See cuda/blaslt.h. */
#include "runtime/cuda/blaslt.h"

#include <stdlib.h>
#include <string.h>

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the plan's products");
}

static int type_of(MoePlanDtype d) {
    return d == MOE_PLAN_BF16 ? MOE_LT_R_16BF : MOE_LT_R_32F;
}

/* ---- descriptors ---- */

/* f32 is f32: TF32 would be another number in every product. */
static MoeStatus describe(MoeCudaBlasLt *b, const MoeDenseProduct *of, MoeCudaProduct *p) {
    const MoePlanDense *s = &of->shape;
    int compute = s->dtype == MOE_PLAN_BF16 ? MOE_LT_COMPUTE_32F : MOE_LT_COMPUTE_32F_PEDANTIC;
    int32_t op = s->transposed ? MOE_LT_OP_T : MOE_LT_OP_N;
    uint64_t rows = (uint64_t)(s->transposed ? s->k : s->n),
             cols = (uint64_t)(s->transposed ? s->n : s->k);
    MOE_TRY(moe_cublaslt_status(b->lt->desc_create(&p->desc, compute, MOE_LT_R_32F),
                                "describing product %s", of->key));
    MOE_TRY(moe_cublaslt_status(b->lt->desc_set(p->desc, MOE_LT_DESC_TRANSA, &op, sizeof op),
                                "describing product %s", of->key));
    return moe_cublaslt_status(
        b->lt->layout_create(&p->b, type_of(s->dtype), rows, cols, (int64_t)rows),
        "describing product %s", of->key);
}

MoeStatus moe_cuda_blaslt_layouts(MoeDeviceCuda *d, const MoeDenseProduct *of, int64_t rows,
                                  MoeLtLayout *a, MoeLtLayout *out) {
    const MoePlanDense *s = &of->shape;
    const MoeCublasLt *lt = d->blaslt->lt;
    *a = *out = NULL;
    MOE_TRY(moe_cublaslt_status(
        lt->layout_create(a, type_of(s->dtype), (uint64_t)s->k, (uint64_t)rows, s->k),
        "describing %lld rows of product %s", (long long)rows, of->key));
    return moe_cublaslt_status(
        lt->layout_create(out, type_of(s->out_dtype), (uint64_t)s->n, (uint64_t)rows, s->n),
        "describing %lld rows of product %s", (long long)rows, of->key);
}

void moe_cuda_blaslt_layout_free(MoeDeviceCuda *d, MoeLtLayout layout) {
    if (layout)
        (void)d->blaslt->lt->layout_destroy(layout);
}

MoeStatus moe_cuda_blaslt_open(MoeDeviceCuda *d) {
    if (d->blaslt)
        return NULL;
    MoeCudaBlasLt *b = calloc(1, sizeof *b);
    if (!b)
        return no_memory();
    MoeStatus st = moe_cublaslt(&b->lt);
    if (st) {
        free(b);
        return st;
    }
    d->blaslt = b;
    b->version = b->lt->version();
    MOE_TRY_GOTO(st, moe_dense_products(d->plan, &b->products, &b->n_products), fail);
    b->run = calloc(b->n_products + 1, sizeof *b->run);
    MOE_TRY_GOTO(st, b->run ? NULL : no_memory(), fail);
    MOE_TRY_GOTO(st,
                 moe_cublaslt_status(b->lt->create(&b->handle), "GPU %d (%s): cublasLtCreate",
                                     d->ordinal, d->name),
                 fail);
    MOE_TRY_GOTO(st, moe_cuda_table(d, MOE_BLASLT_WORKSPACE, "cuBLASLt's workspace", &b->workspace),
                 fail);
    for (size_t i = 0; i < b->n_products; i++)
        MOE_TRY_GOTO(st, describe(b, &b->products[i], &b->run[i]), fail);
    return NULL;
fail:
    moe_cuda_blaslt_close(d);
    return st;
}

void moe_cuda_blaslt_close(MoeDeviceCuda *d) {
    MoeCudaBlasLt *b = d->blaslt;
    if (!b)
        return;
    moe_cuda_blaslt_unbind(d);
    for (size_t i = 0; b->run && i < b->n_products; i++) {
        moe_cuda_blaslt_layout_free(d, b->run[i].b);
        if (b->run[i].desc)
            (void)b->lt->desc_destroy(b->run[i].desc);
    }
    if (b->handle)
        (void)b->lt->destroy(b->handle);
    if (b->workspace)
        (void)d->cu->mem_free(b->workspace);
    free(b->run);
    free(b->products);
    free(b);
    d->blaslt = NULL;
}

/* ---- steps ---- */

static void free_step(MoeDeviceCuda *d, MoeCudaDense *s) {
    moe_cuda_blaslt_layout_free(d, s->a);
    moe_cuda_blaslt_layout_free(d, s->out);
}

void moe_cuda_blaslt_unbind(MoeDeviceCuda *d) {
    MoeCudaBlasLt *b = d->blaslt;
    for (size_t g = 0; b && d->programs && g < d->plan->n_programs; g++) {
        MoeCudaProgram *c = &d->programs[g];
        for (size_t i = 0; c->dense && i < d->plan->programs[g].n_steps; i++)
            free_step(d, &c->dense[i]);
        if (c->dense)
            moe_cuda_forget_graphs(d, c);
        free(c->dense);
        c->dense = NULL;
    }
    if (b && b->staging)
        (void)d->cu->mem_free(b->staging);
    if (b)
        b->staging = 0, b->staging_bytes = 0;
}

int64_t moe_cuda_blaslt_bytes(const MoeDeviceCuda *d) {
    return d->blaslt ? MOE_BLASLT_WORKSPACE + d->blaslt->staging_bytes : 0;
}

static MoeStatus bind_step(MoeDeviceCuda *d, MoeCudaProgram *c, const MoePlanStep *s, size_t i,
                           int64_t *staging) {
    MoeCudaBlasLt *b = d->blaslt;
    size_t at = moe_dense_find(b->products, b->n_products, s);
    const MoePlanDense *p = s->dense;
    const uint64_t *args = c->launches[i].args + 1;
    if (at == b->n_products || !b->run[at].choice.library)
        return NULL;
    MoeCudaDense *out = &c->dense[i];
    *out = (MoeCudaDense){.product = &b->run[at],
                          .at_a = args[p->a],
                          .at_b = args[p->b],
                          .at_c = p->c >= 0 ? args[p->c] : 0,
                          .at_out = args[p->out],
                          .bytes = p->rows * p->n * (p->out_dtype == MOE_PLAN_BF16 ? 2 : 4)};
    if (c->n_elastic && out->bytes > *staging)
        *staging = out->bytes;
    return moe_cuda_blaslt_layouts(d, &b->products[at], p->rows, &out->a, &out->out);
}

MoeStatus moe_cuda_blaslt_bind(MoeDeviceCuda *d, MoeExec *x) {
    int64_t staging = 0;
    moe_cuda_blaslt_unbind(d);
    for (size_t g = 0; g < x->plan->n_programs; g++) {
        const MoePlanProgram *p = &x->plan->programs[g];
        MoeCudaProgram *c = &d->programs[g];
        moe_cuda_forget_graphs(d, c);
        c->dense = calloc(p->n_steps + 1, sizeof *c->dense);
        if (!c->dense)
            return no_memory();
        for (size_t i = 0; i < p->n_steps; i++)
            if (p->steps[i].dense)
                MOE_TRY(bind_step(d, c, &p->steps[i], i, &staging));
    }
    if (staging)
        MOE_TRY(moe_cuda_table(d, staging, "products by cuBLASLt", &d->blaslt->staging));
    d->blaslt->staging_bytes = staging;
    return NULL;
}

MoeLtResult moe_cuda_blaslt_matmul(MoeDeviceCuda *d, const MoeCudaDense *s, const MoeLtAlgo *algo,
                                   bool add, MoeCuPtr out) {
    const MoeCudaBlasLt *b = d->blaslt;
    const float one = 1, beta = add ? 1 : 0;
    return b->lt->matmul(b->handle, s->product->desc, &one, s->at_b, s->product->b, s->at_a, s->a,
                         &beta, add ? s->at_c : out, s->out, out, s->out, algo, b->workspace,
                         (size_t)MOE_BLASLT_WORKSPACE, (MoeLtStream)d->stream);
}

bool moe_cuda_blaslt_has(const MoeCudaProgram *c, size_t i) {
    return c->dense && c->dense[i].product;
}

MoeStatus moe_cuda_blaslt_run(MoeDeviceCuda *d, const MoeCudaProgram *c, const MoePlanStep *s,
                              size_t i) {
    const MoeCudaDense *p = &c->dense[i];
    bool staged = c->n_elastic > 0;
    MoeCuPtr to = staged ? d->blaslt->staging : p->at_out;
    MoeLtResult r = moe_cuda_blaslt_matmul(d, p, &p->product->choice.algo, p->at_c != 0, to);
    MOE_TRY(moe_cublaslt_status(r,
                                "GPU %d (%s): launching step %s of program %s (%lld x %lld x %lld)",
                                d->ordinal, d->name, s->name, d->program, (long long)s->dense->rows,
                                (long long)s->dense->n, (long long)s->dense->k));
    uint64_t copy[] = {p->at_out, to, (uint64_t)p->bytes};
    return staged
               ? moe_cuda_runtime(d, MOE_RT_ID_moe_rt_copy, d->stream, p->bytes / 16 + 1, copy, 3)
               : NULL;
}
