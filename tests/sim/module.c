/* driver.h: modules are shared objects with a header (cubin.h); their kernels, and launches of them. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tests/sim/block.h"
#include "tests/sim/cubin.h"
#include "tests/sim/driver.h"

struct CUfunc_st {
    CUmodule module;
    char *name;
    const MoeSimEntry *entry;
    unsigned dynamic_limit; /* bytes of shared memory that launches may ask for */
    CUfunction after;
};

struct CUmod_st {
    CUcontext context;
    void *handle;
    MoeSimModule *sim;
    CUfunction functions;
};

enum { SHARED_PLAIN = 48 << 10 };

/* Bytes of static shared memory. Of the whole unit: it holds one kernel. */
static unsigned static_bytes(const struct CUmod_st *m) {
    return m->sim->shared ? (unsigned)(m->sim->shared_end - m->sim->shared) : 0;
}

/* ---- loading ---- */

/* A file of its own for each: the loader takes equal names for one library. */
static void *open_code(const char *code, size_t n, char *why, size_t why_bytes) {
    static void *math;
    if (!math)
        math = dlopen("libm.so.6", RTLD_NOW | RTLD_GLOBAL);
    const char *dir = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/simulated-gpu-XXXXXX", dir && *dir ? dir : "/tmp");
    int fd = mkstemp(path);
    size_t done = 0;
    while (fd >= 0 && done < n) {
        ssize_t k = write(fd, code + done, n - done);
        if (k <= 0)
            break;
        done += (size_t)k;
    }
    if (fd >= 0)
        close(fd);
    void *h = fd >= 0 && done == n ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!h)
        snprintf(why, why_bytes, "%s",
                 fd < 0 || done < n ? "its file cannot be written" : dlerror());
    if (fd >= 0)
        unlink(path);
    return h;
}

static CUresult check_image(CUcontext c, const MoeSimCubin *h) {
    if (memcmp(h->magic, "\177ELF", 4) == 0)
        return moe_sim_complain(
            CUDA_ERROR_NO_BINARY_FOR_GPU,
            "this is code for a real GPU: compile with the simulator's libnvrtc");
    if (memcmp(h->magic, MOE_SIM_CUBIN_MAGIC, sizeof h->magic) || h->version != MOE_SIM_VERSION)
        return moe_sim_complain(CUDA_ERROR_INVALID_IMAGE,
                                "an image that the simulator's libnvrtc did not make");
    int has = moe_sim_device(c)->capability;
    bool runs =
        h->exact ? has == h->capability : has / 10 == h->capability / 10 && has >= h->capability;
    return runs ? CUDA_SUCCESS
                : moe_sim_complain(CUDA_ERROR_NO_BINARY_FOR_GPU,
                                   "code for sm_%d%s on a device of capability %d", h->capability,
                                   h->exact ? "a" : "", has);
}

static CUresult load(CUmodule *out, const void *image) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuModuleLoadData", &c);
    const MoeSimCubin *h = image;
    char why[512];
    *out = NULL;
    if (!r)
        r = image ? check_image(c, h) : CUDA_ERROR_INVALID_VALUE;
    if (r)
        return moe_sim_leave(r);
    void *handle = open_code((const char *)image + sizeof *h, h->bytes, why, sizeof why);
    MoeSimModule *sim = handle ? dlsym(handle, "moe_sim_module") : NULL;
    if (!sim || sim->version != MOE_SIM_VERSION)
        return moe_sim_leave(moe_sim_complain(CUDA_ERROR_INVALID_IMAGE, "code cannot be loaded: %s",
                                              handle ? "it has no door" : why));
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_sim_leave(CUDA_ERROR_OUT_OF_MEMORY);
    **out = (struct CUmod_st){c, handle, sim, NULL};
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuModuleLoadData(CUmodule *out, const void *image) {
    return load(out, image);
}
MOE_SIM_EXPORT CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned n,
                                           int *options, void **values) {
    (void)n, (void)options, (void)values;
    return load(out, image);
}

MOE_SIM_EXPORT CUresult cuModuleUnload(CUmodule m) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuModuleUnload", &c);
    if (!m)
        return moe_sim_leave(CUDA_ERROR_INVALID_HANDLE);
    moe_sim_flush(m->context);
    while (m->functions) {
        CUfunction f = m->functions;
        m->functions = f->after;
        free(f->name);
        free(f);
    }
    dlclose(m->handle);
    free(m);
    return moe_sim_leave(r);
}

MOE_SIM_EXPORT CUresult cuModuleGetFunction(CUfunction *out, CUmodule m, const char *name) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuModuleGetFunction", &c);
    char symbol[256];
    *out = NULL;
    if (r || !m || !name)
        return moe_sim_leave(r ? r : CUDA_ERROR_INVALID_VALUE);
    for (CUfunction f = m->functions; f; f = f->after)
        if (!strcmp(f->name, name)) {
            *out = f;
            return moe_sim_leave(r);
        }
    snprintf(symbol, sizeof symbol, "moe_sim_entry_%s", name);
    const MoeSimEntry *entry = dlsym(m->handle, symbol);
    if (!entry)
        return moe_sim_leave(CUDA_ERROR_NOT_FOUND);
    *out = calloc(1, sizeof **out);
    if (!*out)
        return moe_sim_leave(CUDA_ERROR_OUT_OF_MEMORY);
    **out =
        (struct CUfunc_st){m, strdup(name), entry, SHARED_PLAIN - static_bytes(m), m->functions};
    m->functions = *out;
    return moe_sim_leave(r);
}

/* ---- attributes ---- */

MOE_SIM_EXPORT CUresult cuFuncSetAttribute(CUfunction f, int attribute, int value) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuFuncSetAttribute", &c);
    if (r || !f)
        return moe_sim_leave(r ? r : CUDA_ERROR_INVALID_HANDLE);
    if (attribute == 9) /* the part of the cache that is shared memory: a wish */
        return moe_sim_leave(CUDA_SUCCESS);
    unsigned all = moe_sim_device(c)->shared_optin;
    if (attribute != 8 || value < 0 || (unsigned)value + static_bytes(f->module) > all)
        return moe_sim_leave(
            moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                             "cuFuncSetAttribute: kernel %s, attribute %d = %d; a block has %u "
                             "bytes of shared memory, and %u are static",
                             f->name, attribute, value, all, static_bytes(f->module)));
    f->dynamic_limit = (unsigned)value;
    return moe_sim_leave(CUDA_SUCCESS);
}

MOE_SIM_EXPORT CUresult cuFuncGetAttribute(int *out, int attribute, CUfunction f) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuFuncGetAttribute", &c);
    if (r || !f)
        return moe_sim_leave(r ? r : CUDA_ERROR_INVALID_HANDLE);
    switch (attribute) {
    case 0:
        *out = (int)f->entry->threads;
        break;
    case 1:
        *out = (int)static_bytes(f->module);
        break;
    case 2:
    case 3:
        *out = 0;
        break; /* constants; local memory */
    case 4:
        *out = 32;
        break; /* registers */
    case 8:
        *out = (int)f->dynamic_limit;
        break;
    default:
        r = CUDA_ERROR_INVALID_VALUE;
    }
    return moe_sim_leave(r);
}

/* ---- launches ---- */

/* Arguments: the size of it all, then pointers to the arguments, then these, each at a multiple of 64. */
static size_t params_layout(const MoeSimEntry *e, size_t *at) {
    size_t n = 64 + sizeof(void *) * MOE_SIM_PARAMS;
    for (unsigned i = 0; i < e->n_params; i++) {
        n = (n + 63) / 64 * 64;
        at[i] = n;
        n += e->param_bytes[i];
    }
    return (n + 63) / 64 * 64;
}

static CUresult check_shape(const struct CUfunc_st *f, CUcontext c, MoeSimDim grid, MoeSimDim block,
                            unsigned shared_bytes) {
    unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
    if (f->module->context != c)
        return moe_sim_complain(CUDA_ERROR_INVALID_HANDLE,
                                "kernel %s is launched in another context than it was loaded in",
                                f->name);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535)
        return moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "kernel %s: a grid of %u x %u x %u",
                                f->name, grid.x, grid.y, grid.z);
    if (threads == 0 || threads > 1024)
        return moe_sim_complain(CUDA_ERROR_INVALID_VALUE, "kernel %s: a block of %llu threads",
                                f->name, threads);
    if (threads > f->entry->threads)
        return moe_sim_complain(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                                "kernel %s: a block of %llu threads, compiled for %u", f->name,
                                threads, f->entry->threads);
    if (shared_bytes > f->dynamic_limit)
        return moe_sim_complain(
            CUDA_ERROR_INVALID_VALUE,
            "kernel %s: %u bytes of shared memory, allowed are %u (cuFuncSetAttribute)", f->name,
            shared_bytes, f->dynamic_limit);
    return CUDA_SUCCESS;
}

CUresult moe_sim_call_make(CUcontext c, CUfunction f, MoeSimDim grid, MoeSimDim block,
                           unsigned shared_bytes, void **params, MoeSimCall *out) {
    if (!f || !params)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = check_shape(f, c, grid, block, shared_bytes);
    if (!r)
        r = moe_sim_launch_fault(c, f->name);
    if (r)
        return r;
    size_t at[MOE_SIM_PARAMS], n = params_layout(f->entry, at);
    char *p = aligned_alloc(64, n);
    if (!p)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(p, &n, sizeof n);
    for (unsigned i = 0; i < f->entry->n_params; i++)
        memcpy(p + at[i], params[i], f->entry->param_bytes[i]);
    *out = (MoeSimCall){f, grid, block, shared_bytes, p};
    return CUDA_SUCCESS;
}

CUresult moe_sim_call_run(CUcontext c, const MoeSimCall *call) {
    CUfunction f = call->f;
    size_t at[MOE_SIM_PARAMS];
    void *params[MOE_SIM_PARAMS];
    char why[1024];
    (void)params_layout(f->entry, at);
    for (unsigned i = 0; i < f->entry->n_params; i++)
        params[i] = (char *)call->params + at[i];
    const MoeSimLaunch l = {f->name,    f->entry,    f->module->sim,    params,
                            call->grid, call->block, call->shared_bytes};
    moe_sim_memory_open(c);
    MoeSimResult r = moe_sim_run(&l, why, sizeof why);
    moe_sim_memory_close();
    if (r != MOE_SIM_RAN)
        c->error = moe_sim_complain(r == MOE_SIM_ILLEGAL ? CUDA_ERROR_ILLEGAL_ADDRESS
                                                         : CUDA_ERROR_LAUNCH_FAILED,
                                    "%s", why);
    return c->error;
}
