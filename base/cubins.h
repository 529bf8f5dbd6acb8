/* The container of a plan's device code, kernels.cubin (docs/GPU.md): images by the name of the kernel that each holds.
 * Written by codegen/cuda/module.c, read by the runtime's CUDA device.
 *
 *   "MOECUBIN", u32 version 1, u32 n; then n entries, by name: {char name[64]; u64 offset, bytes}; then the images, each at a
 *   multiple of 64. Little-endian. Several names may have one image. */
#ifndef MOE_BASE_CUBINS_H
#define MOE_BASE_CUBINS_H

#include <stddef.h>
#include "base/status.h"

enum { MOE_CUBIN_NAME_BYTES = 64 }; /* with the NUL */

typedef struct {
    const char *name;
    const void *data;
    size_t n;
} MoeCubin;

/* The container of these images, malloc'd; in any order, names distinct and shorter than MOE_CUBIN_NAME_BYTES. */
MoeStatus moe_cubins_pack(const MoeCubin *images, size_t n, void **out, size_t *out_n);

typedef struct {
    MoeCubin *images; /* by name; names and images lie in the data that was read */
    size_t n;
} MoeCubins;

/* Checks everything but the images themselves: MOE_E_CORRUPT names the entry. `data` must outlive *out. */
MoeStatus moe_cubins_read(const void *data, size_t n, MoeCubins *out);
const MoeCubin *moe_cubins_find(const MoeCubins *c, const char *name); /* NULL: not there */
void moe_cubins_free(MoeCubins *c);

#endif
