/* Sums of what came over NCCL: the trees over ranks and over the roots of experts' copies, by kernels. See cuda/nccl.h. */
#include "base/assert.h"
#include "base/split_rows.h"
#include "runtime/cuda/nccl.h"

MoeStatus moe_cuda_nccl_sum(MoeDevice *base, const MoeDeviceTerms *t) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    int64_t own = (t->rows - 1) * t->own_stride + 4 * t->columns,
            out = (t->rows - 1) * t->out_stride + 4 * t->columns;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(moe_cuda_need(d, t->own,
                          own)); /* beyond the live rows it is added up, and never looked at */
    MOE_TRY(moe_cuda_need(d, t->out, out));
    uint64_t bufs[] = {moe_cuda_address(d, t->own), moe_cuda_address(d, t->others),
                       moe_cuda_address(d, t->out), (uint64_t)t->n,
                       (uint64_t)t->self,           (uint64_t)t->rows,
                       (uint64_t)t->columns,        (uint64_t)t->own_stride / 4,
                       (uint64_t)t->out_stride / 4, t->integers};
    return moe_cuda_runtime(d, MOE_RT_ID_moe_rt_rank_sum, d->stream, t->rows * t->columns, bufs,
                            sizeof bufs / sizeof *bufs);
}

enum { MOST_LEVELS = 48 };

/* out = a + b, a the older; any of them may be the same memory. */
static MoeStatus add_pair(MoeDeviceCuda *d, MoeCuPtr a, MoeCuPtr b, MoeCuPtr out, int64_t n) {
    uint64_t bufs[] = {b, out, (uint64_t)n, 1, a};
    return moe_cuda_runtime(d, MOE_RT_ID_moe_rt_fold, d->stream, n, bufs, 5);
}

/* Sum k of those that wait for their right neighbour. */
static MoeCuPtr waiting(const MoeDeviceCuda *d, int k, int64_t n) {
    return d->nccl->sums.at + (MoeCuPtr)k * (MoeCuPtr)((n * 4 + 255) / 256 * 256);
}

MoeStatus moe_cuda_nccl_fold(MoeDevice *base, const float *const *roots, const uint8_t *program,
                             int n_program, float *out, int64_t n) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCuPtr stack[MOST_LEVELS], result = moe_cuda_address(d, out);
    int depth = 0, root = 0, most = 0;
    MOE_TRY(moe_cuda_enter(d));
    for (int k = 0; k < n_program; k++) {
        depth += program[k] == MOE_SPLIT_PUSH ? 1 : -1;
        most = depth > most ? depth : most;
    }
    MOE_ASSERT(most <= MOST_LEVELS && depth == 1, "a gradient's tree of %d levels", most);
    MOE_TRY(moe_cuda_nccl_grow(d, &d->nccl->sums, (int64_t)(waiting(d, most, n) - d->nccl->sums.at),
                               "gradients of experts' copies"));
    depth = 0;
    for (int k = 0; k < n_program; k++) {
        if (program[k] == MOE_SPLIT_PUSH) {
            stack[depth++] = moe_cuda_address(d, roots[root++]);
            continue;
        }
        depth--;
        MoeCuPtr to = k == n_program - 1 ? result : waiting(d, depth - 1, n);
        MOE_TRY(add_pair(d, stack[depth - 1], stack[depth], to, n));
        stack[depth - 1] = to;
    }
    if (stack[0] == result)
        return NULL;
    return moe_cuda_check(d, d->cu->copy(result, stack[0], (size_t)n * sizeof *out, d->stream),
                          "copying the gradient of an expert's copy");
}

MoeStatus moe_cuda_nccl_clear(MoeDevice *base, char *at, int64_t bytes) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(moe_cuda_need(d, at, bytes));
    return moe_cuda_check(d, d->cu->set_bytes(moe_cuda_address(d, at), 0, (size_t)bytes, d->stream),
                          "cuMemsetD8Async of %lld bytes", (long long)bytes);
}
