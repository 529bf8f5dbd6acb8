/* See runtime_kernels.h; what they do is in device/runtime.cuh. */
#include "codegen/cuda/runtime_kernels.h"

#include "base/arena.h"
#include "base/cuda_abi.h"

/* X(name, body) */
#define BODIES(X)                                                                                  \
    X(moe_rt_transpose, "moe::rt_transpose(a);")                                                   \
    X(moe_rt_widen, "moe::rt_widen(a);")                                                           \
    X(moe_rt_fold, "moe::rt_fold(a);")                                                             \
    X(moe_rt_add_i32, "moe::rt_add_i32(a);")                                                       \
    X(moe_rt_peer_word, "moe::rt_peer_word(a);")                                                   \
    X(moe_rt_peer_pull, "moe::rt_peer_pull(a);")                                                   \
    X(moe_rt_peer_fold, "moe::rt_peer_fold<256>(a);")                                              \
    X(moe_rt_window, "moe::rt_window(a);")                                                         \
    X(moe_rt_guard_rows, "moe::rt_guard_rows(a);")                                                 \
    X(moe_rt_guard_finite, "moe::rt_guard_finite(a, %d);")                                         \
    X(moe_rt_gather, "moe::rt_gather(a);")                                                         \
    X(moe_rt_rank_sum, "moe::rt_rank_sum(a);")                                                     \
    X(moe_rt_copy, "moe::rt_copy(a);")                                                             \
    X(moe_rt_rows_fill, "moe::rt_rows_fill(a);")                                                   \
    X(moe_rt_rows_differ, "moe::rt_rows_differ(a);")

static uint32_t parts_of(int kernel) {
    const uint32_t plain = 1u << MOE_CUDA_PART_runtime;
    switch (kernel) {
    case MOE_RT_ID_moe_rt_peer_word:
    case MOE_RT_ID_moe_rt_peer_pull:
    case MOE_RT_ID_moe_rt_peer_fold:
        return plain | 1u << MOE_CUDA_PART_segs | 1u << MOE_CUDA_PART_sort |
               1u << MOE_CUDA_PART_split | 1u << MOE_CUDA_PART_peer;
    }
    return plain;
}

void moe_cuda_add_runtime(MoeCudaTarget *t) {
    static const struct {
        const char *name;
        int n_bufs;
    } kernels[] = {
#define X(name, bufs) {#name, bufs},
        MOE_RT_KERNELS(X)
#undef X
    };
    static const char *const bodies[] = {
#define X(name, body) [MOE_RT_ID_##name] = body,
        BODIES(X)
#undef X
    };
    for (int i = 0; i < MOE_RT_N_KERNELS; i++)
        moe_cuda_kernel(t, &(MoeCudaKernelText){
                               .prefix = kernels[i].name,
                               .exact = true,
                               .n_bufs = kernels[i].n_bufs,
                               .threads = MOE_RT_THREADS,
                               .parts = parts_of(i),
                               .body = i == MOE_RT_ID_moe_rt_guard_finite
                                           ? moe_arena_printf(t->arena, bodies[i], MOE_RT_NOT_FINITE)
                                           : bodies[i]});
}
