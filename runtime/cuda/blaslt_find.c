/* The library's algorithms for a product: what it proposes, which of that may be tried, attributes. See cuda/blaslt.h. */
#include <string.h>

#include "runtime/cuda/blaslt.h"

enum { ASKED = 12 };

static MoeLtResult set_preferences(const MoeCublasLt *lt, MoeLtPrefer prefer) {
    uint64_t workspace = (uint64_t)MOE_BLASLT_WORKSPACE;
    uint32_t none = 0, align = MOE_BLASLT_ALIGN;
    MoeLtResult r =
        lt->prefer_set(prefer, MOE_LT_PREFER_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (!r)
        r = lt->prefer_set(prefer, MOE_LT_PREFER_REDUCTION_MASK, &none, sizeof none);
    for (int a = MOE_LT_PREFER_ALIGN_A; a <= MOE_LT_PREFER_ALIGN_D && !r; a++)
        r = lt->prefer_set(prefer, a, &align, sizeof align);
    return r;
}

static void add(const MoeLtFound *found, MoeLtAlgo *out, int most, int *n) {
    bool known = found->state != MOE_LT_SUCCESS || *n == most;
    for (int j = 0; j < *n && !known; j++)
        known = !memcmp(&out[j], &found->algo, sizeof *out);
    if (!known)
        out[(*n)++] = found->algo;
}

MoeStatus moe_cuda_blaslt_find(MoeDeviceCuda *d, size_t i, const MoeCudaDense *s, MoeLtAlgo *out,
                               int most, int *n) {
    const MoeCudaBlasLt *b = d->blaslt;
    const MoeCudaProduct *p = &b->run[i];
    MoeLtPrefer prefer = NULL;
    MoeLtFound found[ASKED];
    int have = 0;
    memset(found, 0, sizeof found);
    MOE_TRY(moe_cublaslt_status(b->lt->prefer_create(&prefer), "product %s", b->products[i].key));
    MoeLtResult r = set_preferences(b->lt, prefer);
    /* An error here: it has nothing for so many rows. */
    if (!r && b->lt->heuristic(b->handle, p->desc, p->b, s->a, s->out, s->out, prefer, ASKED, found,
                               &have) == MOE_LT_SUCCESS)
        for (int k = 0; k < have; k++)
            add(&found[k], out, most, n);
    (void)b->lt->prefer_destroy(prefer);
    return moe_cublaslt_status(r, "preferences for product %s", b->products[i].key);
}

/* What an algorithm does not say of its numbers is not held against it: its results are compared. */
bool moe_cuda_blaslt_allowed(MoeDeviceCuda *d, size_t i, const MoeLtAlgo *algo) {
    const MoeCublasLt *lt = d->blaslt->lt;
    int32_t split = 1;
    uint32_t reduction = 0;
    uint64_t numerics = 0;
    size_t n;
    if (lt->config_get(algo, MOE_LT_CONFIG_split_k, &split, sizeof split, &n) ||
        lt->config_get(algo, MOE_LT_CONFIG_reduction, &reduction, sizeof reduction, &n) ||
        split > 1 || split < 0 || reduction)
        return false;
    if (lt->cap_get(algo, MOE_LT_CAP_NUMERICS, &numerics, sizeof numerics, &n))
        numerics = 0;
    uint64_t inputs = numerics & MOE_LT_NUMERICS_INPUTS,
             sums = numerics & MOE_LT_NUMERICS_ACCUMULATORS,
             own = d->blaslt->products[i].shape.dtype == MOE_PLAN_BF16 ? MOE_LT_NUMERICS_INPUT_16BF
                                                                       : MOE_LT_NUMERICS_INPUT_32F;
    return (!inputs || inputs == own) && (!sums || sums == MOE_LT_NUMERICS_ACCUMULATOR_32F);
}

void moe_cuda_blaslt_config(MoeDeviceCuda *d, const MoeLtAlgo *algo, MoeLtConfig *out) {
    size_t n;
    memset(out, 0, sizeof *out);
#define X(member, value, type)                                                                     \
    if (d->blaslt->lt->config_get(algo, value, &out->member, sizeof out->member, &n))              \
        out->member = 0;
    MOE_LT_CONFIG(X)
#undef X
}

bool moe_cuda_blaslt_rebuild(MoeDeviceCuda *d, size_t i, const MoeLtConfig *config,
                             MoeLtAlgo *out) {
    const MoeCudaBlasLt *b = d->blaslt;
    const MoePlanDense *p = &b->products[i].shape;
    bool half = p->dtype == MOE_PLAN_BF16;
    int in = half ? MOE_LT_R_16BF : MOE_LT_R_32F,
        result = p->out_dtype == MOE_PLAN_BF16 ? MOE_LT_R_16BF : MOE_LT_R_32F;
    memset(out, 0, sizeof *out);
    MoeLtResult r =
        b->lt->algo_init(b->handle, half ? MOE_LT_COMPUTE_32F : MOE_LT_COMPUTE_32F_PEDANTIC,
                         MOE_LT_R_32F, in, in, result, result, config->id, out);
#define X(member, value, type)                                                                     \
    if (!r && value != MOE_LT_CONFIG_id)                                                           \
        r = b->lt->config_set(out, value, &config->member, sizeof config->member);
    MOE_LT_CONFIG(X)
#undef X
    return r == MOE_LT_SUCCESS;
}
