/* group_gpu.h */
#include "tests/support/group_gpu.h"

#include <stdlib.h>
#include <string.h>
#include "base/assert.h"
#include "base/cubins.h"

enum { MAX_BUFS = 64, MAX_MAPS = 4 };

typedef struct {
    MoeCuModule module;
    MoeCuFunction f;
} Kernel; /* of a container's image; NULL: not loaded yet */

struct MoeGroupGpu {
    const MoeCudaDriver *cu;
    MoeCuDevice device;
    MoeCuContext context;
    MoeCuStream stream;
    MoeCuEvent before, after;
    void *object;
    MoeCubins cubins;
    Kernel *kernels;
    MoeCuPtr *allocs;
    size_t n_allocs, cap_allocs;
    MoeCuPtr stop;
};

static MoeStatus use(MoeGroupGpu *g) {
    return moe_cuda_status(g->cu->context_set(g->context), "cuCtxSetCurrent");
}

static MoeStatus open_device(MoeGroupGpu *g) {
    const int none = 0;
    MOE_TRY(moe_cuda_driver(&g->cu));
    MOE_TRY(moe_cuda_device(0, &g->device));
    MOE_TRY(
        moe_cuda_status(g->cu->context_retain(&g->context, g->device), "cuDevicePrimaryCtxRetain"));
    MOE_TRY(use(g));
    MOE_TRY(moe_cuda_status(g->cu->stream_create(&g->stream, MOE_CU_STREAM_NON_BLOCKING),
                            "cuStreamCreate"));
    MOE_TRY(
        moe_cuda_status(g->cu->event_create(&g->before, MOE_CU_EVENT_DEFAULT), "cuEventCreate"));
    MOE_TRY(moe_cuda_status(g->cu->event_create(&g->after, MOE_CU_EVENT_DEFAULT), "cuEventCreate"));
    MOE_TRY(moe_group_gpu_alloc(g, sizeof none, &g->stop));
    return moe_group_gpu_write(g, g->stop, &none, sizeof none);
}

MoeStatus moe_group_gpu_create(void *object, size_t n, MoeGroupGpu **out) {
    MoeGroupGpu *g = calloc(1, sizeof *g);
    MOE_ASSERT(g, "group_gpu: no memory");
    *out = NULL;
    g->object = object;
    MoeStatus st = moe_cubins_read(object, n, &g->cubins);
    if (!st) {
        g->kernels = calloc(g->cubins.n + 1, sizeof *g->kernels);
        MOE_ASSERT(g->kernels, "group_gpu: no memory");
        st = open_device(g);
    }
    if (st)
        moe_group_gpu_destroy(g);
    else
        *out = g;
    return st;
}

MoeStatus moe_group_gpu_alloc(MoeGroupGpu *g, size_t bytes, MoeCuPtr *out) {
    if (g->n_allocs == g->cap_allocs) {
        g->cap_allocs = g->cap_allocs ? 2 * g->cap_allocs : 32;
        g->allocs = realloc(g->allocs, g->cap_allocs * sizeof *g->allocs);
        MOE_ASSERT(g->allocs, "group_gpu: no memory");
    }
    MOE_TRY(moe_cuda_status(g->cu->mem_alloc(out, bytes), "cuMemAlloc of %zu bytes", bytes));
    g->allocs[g->n_allocs++] = *out;
    return NULL;
}

static MoeStatus wait(MoeGroupGpu *g, const char *what) {
    return moe_cuda_status(g->cu->stream_synchronize(g->stream), "%s", what);
}

MoeStatus moe_group_gpu_write(MoeGroupGpu *g, MoeCuPtr to, const void *from, size_t bytes) {
    MOE_TRY(moe_cuda_status(g->cu->copy_in(to, from, bytes, g->stream),
                            "copy of %zu bytes to the device", bytes));
    return wait(g, "copy to the device");
}

MoeStatus moe_group_gpu_read(MoeGroupGpu *g, void *to, MoeCuPtr from, size_t bytes) {
    MOE_TRY(moe_cuda_status(g->cu->copy_out(to, from, bytes, g->stream),
                            "copy of %zu bytes from the device", bytes));
    return wait(g, "copy from the device");
}

/* ---- launches ---- */

static MoeStatus load(MoeGroupGpu *g, const char *name, MoeCuFunction *out) {
    const MoeCubin *c = moe_cubins_find(&g->cubins, name);
    if (!c)
        return moe_error(MOE_E_INTERNAL, "kernel %s is not in the container", name);
    Kernel *k = &g->kernels[c - g->cubins.images];
    if (!k->f) {
        MOE_TRY(moe_cuda_status(g->cu->module_load(&k->module, c->data, 0, NULL, NULL),
                                "cuModuleLoadDataEx of %s", name));
        MOE_TRY(moe_cuda_status(g->cu->module_function(&k->f, k->module, name),
                                "cuModuleGetFunction of %s", name));
    }
    *out = k->f;
    return NULL;
}

static MoeStatus encode(MoeGroupGpu *g, const MoeTensorMap *m, MoeCuPtr at, MoeCuTensorMap *out) {
    uint64_t dims[5], strides[4];
    uint32_t box[5], steps[5];
    int swizzle = m->swizzle == 128  ? MOE_CU_SWIZZLE_128B
                  : m->swizzle == 64 ? MOE_CU_SWIZZLE_64B
                  : m->swizzle == 32 ? MOE_CU_SWIZZLE_32B
                                     : MOE_CU_SWIZZLE_NONE;
    for (int i = 0; i < m->rank; i++) {
        dims[i] = (uint64_t)m->dims[i];
        box[i] = (uint32_t)m->box[i];
        steps[i] = 1;
        if (i > 0)
            strides[i - 1] = (uint64_t)m->strides[i - 1];
    }
    return moe_cuda_status(
        g->cu->tensor_map_encode(
            out, m->dtype == MOE_BF16 ? MOE_CU_TENSOR_BFLOAT16 : MOE_CU_TENSOR_FLOAT32,
            (uint32_t)m->rank, (void *)(uintptr_t)at, dims, strides, box, steps,
            MOE_CU_INTERLEAVE_NONE, swizzle, MOE_CU_L2_PROMOTION_128B, MOE_CU_FILL_ZEROS),
        "cuTensorMapEncodeTiled");
}

static MoeStatus start(MoeGroupGpu *g, const MoeLaunch *l, const MoeCuPtr *bufs) {
    struct {
        MoeCuPtr stop, p[MAX_BUFS];
    } args;
    MoeCuTensorMap maps[MAX_MAPS];
    void *params[1 + MAX_MAPS] = {&args};
    MoeCuFunction f = NULL;
    const MoeLaunchShape *s = &l->shape;
    MOE_ASSERT(l->n_bufs <= MAX_BUFS && s->n_maps <= MAX_MAPS, "group_gpu: a launch of %zu buffers",
               l->n_bufs);
    args.stop = g->stop;
    memcpy(args.p, bufs, l->n_bufs * sizeof *bufs);
    for (size_t i = 0; i < s->n_maps; i++) {
        MOE_TRY(encode(g, &s->maps[i], bufs[s->maps[i].buf], &maps[i]));
        params[1 + i] = &maps[i];
    }
    MOE_TRY(load(g, l->kernel, &f));
    MOE_TRY(moe_cuda_status(
        g->cu->function_set(f, MOE_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, (int)s->shared_bytes),
        "%lld bytes of shared memory for kernel %s", (long long)s->shared_bytes, l->kernel));
    return moe_cuda_status(g->cu->launch(f, (unsigned)s->grid, 1, 1, (unsigned)s->block, 1, 1,
                                         (unsigned)s->shared_bytes, g->stream, params, NULL),
                           "launch of kernel %s (%lld blocks of %d threads)", l->kernel,
                           (long long)s->grid, s->block);
}

MoeStatus moe_group_gpu_launch(MoeGroupGpu *g, const MoeLaunch *l, const MoeCuPtr *bufs) {
    int stopped = 0;
    MOE_TRY(start(g, l, bufs));
    MOE_TRY(wait(g, l->kernel));
    MOE_TRY(moe_group_gpu_read(g, &stopped, g->stop, sizeof stopped));
    return stopped ? moe_error(MOE_E_INTERNAL, "%s writes into the stop flag", l->kernel) : NULL;
}

MoeStatus moe_group_gpu_time(MoeGroupGpu *g, const MoeLaunch *l, const MoeCuPtr *bufs,
                             double *out_s) {
    float ms = 0;
    MOE_TRY(moe_cuda_status(g->cu->event_record(g->before, g->stream), "cuEventRecord"));
    MOE_TRY(start(g, l, bufs));
    MOE_TRY(moe_cuda_status(g->cu->event_record(g->after, g->stream), "cuEventRecord"));
    MOE_TRY(wait(g, l->kernel));
    MOE_TRY(moe_cuda_status(g->cu->event_ms(&ms, g->before, g->after), "cuEventElapsedTime"));
    *out_s = 1e-3 * (double)ms;
    return NULL;
}

void moe_group_gpu_destroy(MoeGroupGpu *g) {
    if (!g)
        return;
    for (size_t i = 0; g->kernels && i < g->cubins.n; i++)
        if (g->kernels[i].module)
            (void)g->cu->module_unload(g->kernels[i].module);
    for (size_t i = 0; i < g->n_allocs; i++)
        (void)g->cu->mem_free(g->allocs[i]);
    if (g->before)
        (void)g->cu->event_destroy(g->before);
    if (g->after)
        (void)g->cu->event_destroy(g->after);
    if (g->stream)
        (void)g->cu->stream_destroy(g->stream);
    if (g->context)
        (void)g->cu->context_release(g->device);
    moe_cubins_free(&g->cubins);
    free(g->kernels);
    free(g->allocs);
    free(g->object);
    free(g);
}
