/* The table of NVIDIA architectures, and the one of this machine. */
#include "codegen/cuda/arch.h"

#include <string.h>
#include "base/cuda_driver.h"
#include "base/str.h"
#include "codegen/cuda/cuda.h"

/* Devices: A100 80 GB, H100 SXM, B200. Shared memory: what a block may ask for. Rates are those of the data sheets, dense. */
static const MoeCudaArch archs[] = {
    {.name = "sm_90a",
     .major = 9,
     .minor = 0,
     .exact = true,
     .multiprocessors = 132,
     .shared_bytes = 227 * 1024,
     .tensor_maps = true,
     .wgmma = true,
     .flops_f32 = 67e12,
     .flops_bf16 = 989e12,
     .bandwidth = 3.35e12},
    {.name = "sm_80",
     .major = 8,
     .minor = 0,
     .multiprocessors = 108,
     .shared_bytes = 163 * 1024,
     .flops_f32 = 19.5e12,
     .flops_bf16 = 312e12,
     .bandwidth = 2.0e12},
    {.name = "sm_100",
     .major = 10,
     .minor = 0,
     .multiprocessors = 148,
     .shared_bytes = 227 * 1024,
     .tensor_maps = true,
     .flops_f32 = 75e12,
     .flops_bf16 = 2250e12,
     .bandwidth = 8.0e12},
};
#define N_ARCHS (sizeof archs / sizeof *archs)

/* What the first device can do. */
typedef struct {
    int major, minor, shared_bytes;
    char name[256];
} Device;

static MoeStatus first_device(Device *out) {
    const MoeCudaDriver *cu;
    MoeCuDevice device;
    *out = (Device){0};
    MOE_TRY(moe_cuda_driver(&cu));
    MOE_TRY(moe_cuda_device(0, &device));
    const struct {
        int attribute, *value;
    } rows[] = {{MOE_CU_ATTR_MAJOR, &out->major},
                {MOE_CU_ATTR_MINOR, &out->minor},
                {MOE_CU_ATTR_SHARED_BYTES_OPTIN, &out->shared_bytes}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        MOE_TRY(moe_cuda_status(cu->device_attribute(rows[i].value, rows[i].attribute, device),
                                "cuDeviceGetAttribute %d", rows[i].attribute));
    return moe_cuda_status(cu->device_name(out->name, sizeof out->name, device), "cuDeviceGetName");
}

/* Devices of a later minor run the code, but some (8.6, 8.9) have less shared memory than it may ask for. */
static bool runs(const MoeCudaArch *a, const Device *d) {
    return a->major == d->major && (a->exact ? a->minor == d->minor : a->minor <= d->minor) &&
           a->shared_bytes <= d->shared_bytes;
}

static MoeStatus native(const MoeCudaArch **out) {
    Device d;
    MoeStatus st = first_device(&d);
    if (st)
        return moe_status_prefix(st, "cuda:native is the architecture of this machine's GPU");
    for (size_t i = 0; i < N_ARCHS; i++)
        if (runs(&archs[i], &d)) {
            *out = &archs[i];
            return NULL;
        }
    return moe_error(MOE_E_MISUSE,
                     "this machine's GPU, %s, has compute capability %d.%d and %d KiB of shared "
                     "memory for a block; "
                     "moec has kernels for 8.0 (163 KiB), 9.0 and 10.x (227 KiB)",
                     d.name, d.major, d.minor, d.shared_bytes / 1024);
}

MoeStatus moe_cuda_arch_get(const char *name, const MoeCudaArch **out) {
    const char *names[N_ARCHS + 1];
    *out = NULL;
    if (strcmp(name, "native") == 0)
        return native(out);
    for (size_t i = 0; i < N_ARCHS; i++) {
        names[i] = archs[i].name;
        if (strcmp(name, names[i]) == 0) {
            *out = &archs[i];
            return NULL;
        }
    }
    names[N_ARCHS] = "native";
    const char *near = moe_nearest_name(name, names, N_ARCHS + 1);
    return moe_error(MOE_E_MISUSE,
                     "unknown architecture '%s' in the target's name%s%s%s; use cuda:sm_80, "
                     "cuda:sm_90a, cuda:sm_100 or "
                     "cuda:native",
                     name, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
}

bool moe_cuda_runs_here(const char *name) {
    const MoeCudaArch *arch;
    Device d;
    MoeStatus st = moe_cuda_arch_get(name, &arch);
    if (!st)
        st = first_device(&d);
    bool yes = !st && runs(arch, &d);
    moe_status_free(st);
    return yes;
}
