/* driver.h: copies, fills and launches, checked and handed to a stream. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/stream_internal.h"

/* ---- copies ---- */

static CUresult copy(CUcontext c, char *to, const char *from, size_t n, bool stage, CUstream s) {
    MoeSimOp op = {.kind = OP_COPY, .context = c, .to = to, .from = from, .bytes = n};
    if (stage && !(s && s->graph)) {
        op.staged = malloc(n);
        if (!op.staged)
            return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(op.staged, from, n);
    }
    return moe_sim_issue(s, &op);
}

static CUresult outside(const char *call, CUdeviceptr p, size_t n) {
    return moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                            "%s: %zu bytes at %#llx are not all device memory", call, n,
                            (unsigned long long)p);
}

static CUresult copy_in(const char *call, CUdeviceptr to, const void *from, size_t n, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && !moe_sim_memory_holds(to, n))
        r = outside(call, to, n);
    if (!r && moe_sim_memory_touches(from, n))
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "%s: its source is device memory", call);
    if (!s || !moe_sim_memory_pinned(from, n))
        moe_sim_count_wait();
    if (!r)
        moe_sim_count(COUNT_BYTES_IN, n);
    if (!r && n)
        r = copy(c, (char *)(uintptr_t)to, from, n, !moe_sim_memory_pinned(from, n), s);
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n,
                                             CUstream s) {
    return copy_in("cuMemcpyHtoDAsync", to, from, n, s);
}
MOE_SIM_EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
    return copy_in("cuMemcpyHtoD", to, from, n, NULL);
}

static CUresult copy_out(const char *call, void *to, CUdeviceptr from, size_t n, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && !moe_sim_memory_holds(from, n))
        r = outside(call, from, n);
    if (!r && moe_sim_memory_touches(to, n))
        r = moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "%s: its target is device memory", call);
    if (!s || !moe_sim_memory_pinned(to, n))
        moe_sim_count_wait();
    if (!r)
        moe_sim_count(COUNT_BYTES_OUT, n);
    if (!r && n)
        r = copy(c, to, (const char *)(uintptr_t)from, n, false, s);
    if (!r && n && s && !s->graph && !moe_sim_memory_pinned(to, n))
        r = moe_sim_run_until(s, s->issued); /* such a copy is waited for */
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) {
    return copy_out("cuMemcpyDtoHAsync", to, from, n, s);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
    return copy_out("cuMemcpyDtoH", to, from, n, NULL);
}

static CUresult copy_within(const char *call, CUdeviceptr to, CUdeviceptr from, size_t n,
                            CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && !moe_sim_memory_holds(to, n))
        r = outside(call, to, n);
    if (!r && !moe_sim_memory_holds(from, n))
        r = outside(call, from, n);
    if (!r && n)
        r = copy(c, (char *)(uintptr_t)to, (const char *)(uintptr_t)from, n, false, s);
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n,
                                             CUstream s) {
    return copy_within("cuMemcpyDtoDAsync", to, from, n, s);
}
MOE_SIM_EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {
    return copy_within("cuMemcpyDtoD", to, from, n, NULL);
}

static CUresult set(const char *call, CUdeviceptr to, unsigned char value, size_t n, CUstream s) {
    CUcontext c;
    CUresult r = moe_sim_enter(call, &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && !moe_sim_memory_holds(to, n))
        r = outside(call, to, n);
    if (!r && n)
        r = moe_sim_issue(s, &(MoeSimOp){.kind = OP_SET,
                                         .context = c,
                                         .to = (char *)(uintptr_t)to,
                                         .value = value,
                                         .bytes = n});
    return moe_sim_leave(r);
}
MOE_SIM_EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream s) {
    return set("cuMemsetD8Async", to, value, n, s);
}
MOE_SIM_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n) {
    return set("cuMemsetD8", to, value, n, NULL);
}

/* ---- launches ---- */

MOE_SIM_EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz,
                                       unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                                       CUstream s, void **params, void **extra) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuLaunchKernel", &c);
    MoeSimOp op = {.kind = OP_LAUNCH, .context = c};
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && extra)
        r = moe_sim_complain(CUDA_ERROR_NOT_SUPPORTED,
                             "cuLaunchKernel with extra is not simulated");
    if (!r)
        r = moe_sim_call_make(c, f, (MoeSimDim){gx, gy, gz}, (MoeSimDim){bx, by, bz}, shared_bytes,
                              params, &op.call);
    if (!r)
        r = moe_sim_issue(s, &op);
    return moe_sim_leave(r);
}
