/* gpu_kernel.h */
#include "tests/support/gpu_kernel.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "codegen/cuda/module.h"
#include "tests/support/gpu.h"

MoeStatus moe_gpu_begin(const char *devices, const MoeCudaDriver **out) {
    MoeCuDevice d;
    MoeCuContext c;
    if (!moe_test_simulate(devices))
        return moe_error(MOE_E_IO, "the simulator was not built");
    setenv("MOE_SIM_QUIET", "1", 1);
    MOE_TRY(moe_cuda_driver(out));
    MOE_TRY(moe_cuda_device(0, &d));
    MOE_TRY(moe_cuda_status((*out)->context_retain(&c, d), "cuDevicePrimaryCtxRetain"));
    return moe_cuda_status((*out)->context_set(c), "cuCtxSetCurrent");
}

MoeStatus moe_gpu_kernel_make(const char *arch, const char *before, const char *body, int threads,
                              int maps, MoeGpuKernel *out) {
    MoeStr text = {0};
    MoeCudaCode code;
    const int none = 0;
    *out = (MoeGpuKernel){0};
    moe_str_printf(&text, "%s%s%s\nMOE_KERNEL%s(test, %d, %d, 1) {\nusing namespace moe;\n%s\n}\n",
                   moe_cuda_part_text(MOE_CUDA_PART_prelude), moe_cuda_part_text(MOE_CUDA_PART_ptx),
                   before,
                   maps == 2   ? "_2"
                   : maps == 1 ? "_1"
                               : "",
                   MOE_GPU_KERNEL_BUFS, threads, body);
    MoeStatus st = moe_nvrtc_compile(arch, "test", moe_str_c(&text), &code);
    moe_str_free(&text);
    if (st)
        return st;
    st = moe_cuda_driver(&out->cu);
    if (!st)
        st = moe_cuda_status(out->cu->module_load(&out->module, code.data, 0, NULL, NULL),
                             "cuModuleLoadDataEx");
    free(code.data);
    if (st)
        return st;
    MOE_TRY(moe_cuda_status(out->cu->module_function(&out->f, out->module, "test"),
                            "cuModuleGetFunction"));
    MOE_TRY(moe_cuda_status(out->cu->stream_create(&out->stream, MOE_CU_STREAM_NON_BLOCKING),
                            "cuStreamCreate"));
    MOE_TRY(moe_cuda_status(out->cu->mem_alloc(&out->stop, sizeof none), "cuMemAlloc"));
    return moe_cuda_status(out->cu->copy_in(out->stop, &none, sizeof none, out->stream),
                           "cuMemcpyHtoDAsync");
}

MoeStatus moe_gpu_kernel_buf(MoeGpuKernel *k, int i, const void *from, size_t bytes) {
    MOE_ASSERT(i < MOE_GPU_KERNEL_BUFS && !k->bufs[i], "gpu_kernel: buffer %d", i);
    k->bytes[i] = bytes;
    MOE_TRY(
        moe_cuda_status(k->cu->mem_alloc(&k->bufs[i], bytes), "cuMemAlloc of %zu bytes", bytes));
    return from ? moe_cuda_status(k->cu->copy_in(k->bufs[i], from, bytes, k->stream),
                                  "cuMemcpyHtoDAsync")
                : NULL;
}

MoeCuResult moe_gpu_kernel_run(MoeGpuKernel *k, unsigned blocks, unsigned threads,
                               unsigned shared_bytes, const MoeCuTensorMap *maps, int n_maps) {
    struct {
        MoeCuPtr stop, p[MOE_GPU_KERNEL_BUFS];
    } args = {k->stop, {k->bufs[0], k->bufs[1], k->bufs[2], k->bufs[3]}};
    void *params[3] = {&args};
    for (int i = 0; i < n_maps; i++)
        params[1 + i] = (void *)(uintptr_t)&maps[i];
    MoeCuResult r =
        k->cu->function_set(k->f, MOE_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, (int)shared_bytes);
    if (!r)
        r = k->cu->launch(k->f, blocks, 1, 1, threads, 1, 1, shared_bytes, k->stream, params, NULL);
    return r ? r : k->cu->stream_synchronize(k->stream);
}

MoeStatus moe_gpu_kernel_read(MoeGpuKernel *k, int i, void *to) {
    MOE_TRY(moe_cuda_status(k->cu->copy_out(to, k->bufs[i], k->bytes[i], k->stream),
                            "cuMemcpyDtoHAsync"));
    return moe_cuda_status(k->cu->stream_synchronize(k->stream), "cuStreamSynchronize");
}

void moe_gpu_kernel_free(MoeGpuKernel *k) {
    (void)k->cu->module_unload(k->module);
    for (int i = 0; i < MOE_GPU_KERNEL_BUFS; i++)
        if (k->bufs[i])
            (void)k->cu->mem_free(k->bufs[i]);
    (void)k->cu->mem_free(k->stop);
    (void)k->cu->stream_destroy(k->stream);
}

const char *moe_gpu_last_words(void) {
    const char *(*words)(void);
    void *at = dlsym(RTLD_DEFAULT, "moe_sim_last_words");
    MOE_ASSERT(at, "gpu_kernel: the simulator is not open");
    memcpy(&words, &at, sizeof words);
    return words();
}
