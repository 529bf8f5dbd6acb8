/* Kinds of groups that the CUDA target cannot run yet: their file is not there, and the build says so by MOE_CUDA_NO_<kind>. A
 * plan that needs one is an error while compiling. */
#include "codegen/cuda/cuda.h"

#define MISSING(kind)                                                                              \
    int64_t moe_cuda_##kind##_workspace(MoeCudaTarget *t, const MoeGroup *g) {                     \
        (void)t, (void)g;                                                                          \
        return 0;                                                                                  \
    }                                                                                              \
    MoeStatus moe_cuda_##kind##_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out) {      \
        (void)g, (void)out;                                                                        \
        return moe_error(MOE_E_INPUT,                                                              \
                         "%s has no kernels for groups of kind " #kind " yet; compile for cpu",    \
                         t->base.name);                                                            \
    }

#ifdef MOE_CUDA_NO_row
MISSING(row)
MoeRowRules moe_cuda_row_rules(const MoeCudaTarget *t) {
    (void)t;
    return (MoeRowRules){.lanes = 1};
}
#endif
#ifdef MOE_CUDA_NO_reduce
MISSING(reduce)
#endif
#ifdef MOE_CUDA_NO_gemm
MISSING(gemm)
#endif
#ifdef MOE_CUDA_NO_wgrad
MISSING(wgrad)
#endif
#ifdef MOE_CUDA_NO_route
MISSING(route)
#endif
#ifdef MOE_CUDA_NO_move
MISSING(move)
#endif
#ifdef MOE_CUDA_NO_embed
MISSING(embed)
#endif
#ifdef MOE_CUDA_NO_rope
MISSING(rope)
#endif
#ifdef MOE_CUDA_NO_attn
MISSING(attn)
#endif
#ifdef MOE_CUDA_NO_attn_grad
MISSING(attn_grad)
#endif
#ifdef MOE_CUDA_NO_xent
MISSING(xent)
#endif
#ifdef MOE_CUDA_NO_runtime
void moe_cuda_add_runtime(MoeCudaTarget *t) {
    (void)t;
}
#endif
