/* The CUDA target: its state, its table of kinds, and how a kind hands over kernels and launches (docs/GPU.md). */
#ifndef MOE_CODEGEN_CUDA_CUDA_H
#define MOE_CODEGEN_CUDA_CUDA_H

#include "codegen/bufs.h"
#include "codegen/cuda/arch.h"
#include "codegen/kinds.h"
#include "codegen/row_plan.h"

/* Rows of a leaf of weight gradients where nothing says otherwise: docs/GPU.md has the arithmetic. */
enum { MOE_CUDA_LEAF_ROWS = 512 };

typedef struct MoeCudaTarget {
    MoeTarget base; /* first */
    const MoeCudaArch *arch;
    MoeArena *arena;
    struct MoeCudaKernel *kernels; /* module.h */
    size_t n_kernels, cap_kernels;
} MoeCudaTarget;

/* Groups of each kind are lowered by moe_cuda_<name>_lower, their workspace asked by moe_cuda_<name>_workspace
 * (kind_<name>.c). */
#define X(name)                                                                                    \
    int64_t moe_cuda_##name##_workspace(MoeCudaTarget *t, const MoeGroup *g);                      \
    MoeStatus moe_cuda_##name##_lower(MoeCudaTarget *t, const MoeGroup *g, MoeLowered *out);
MOE_GROUP_KINDS(X)
#undef X

/* How row groups are planned for this target (codegen/row_plan.h). kind_row.c */
MoeRowRules moe_cuda_row_rules(const MoeCudaTarget *t);
/* Adds the kernels moe_rt_* that the runtime itself launches. runtime_kernels.c */
void moe_cuda_add_runtime(MoeCudaTarget *t);

/* arch: a name of arch.c's table ("sm_90a") or "native". */
MoeStatus moe_cuda_target_create(const char *arch, MoeTarget **out);
/* Whether a driver and a device that runs code of that architecture are here. */
bool moe_cuda_runs_here(const char *arch);

/* Parts of the device library, codegen/cuda/device/NAME.cuh, in the order in which a unit includes them; prelude and ptx
 * come with every kernel. A part may use those before it. */
#define MOE_CUDA_PARTS(X)                                                                          \
    X(prelude)                                                                                     \
    X(ptx) X(math) X(row) X(tree) X(rope) X(segs) X(sort) X(move) X(gemm) X(gemm_simt) X(gemm_mma) \
        X(gemm_hopper) X(wgrad) X(wgrad_hopper) X(attn) X(attn_simt) X(attn_mma) X(xent) X(route)  \
            X(split) X(embed) X(runtime) X(peer)
typedef enum {
#define X(name) MOE_CUDA_PART_##name,
    MOE_CUDA_PARTS(X)
#undef X
        MOE_CUDA_N_PARTS
} MoeCudaPart;

enum { MOE_CUDA_MAX_MAPS = 4 };

/* A kernel: text and attributes. Two that are equal in everything are one. */
typedef struct {
    const char *prefix;   /* of the name: "row", "gemm"; a number is added */
    bool exact;           /* no number is: prefix is the name */
    const char *note;     /* a line for people: what it computes, shapes; may be NULL */
    int n_bufs;           /* buffers, a.p[0] .. */
    int n_maps;           /* tensor maps that follow, m0, m1, ..: at most MOE_CUDA_MAX_MAPS */
    int threads;          /* of a block: a multiple of 32 */
    int min_blocks;       /* a multiprocessor, for __launch_bounds__; 0: not said */
    int64_t shared_bytes; /* dynamic shared memory */
    uint32_t parts;       /* bits 1u << MOE_CUDA_PART_x */
    const char *body;     /* C++ statements; a: the arguments */
} MoeCudaKernelText;

/* Adds the kernel, or finds it; its name (arena's). */
const char *moe_cuda_kernel(MoeCudaTarget *t, const MoeCudaKernelText *k);

/* A launch of `blocks` blocks (at least 1) of a kernel of this target; n: as many as its buffers. */
void moe_cuda_launch(MoeCudaTarget *t, MoeLowered *out, const char *kernel, int64_t blocks,
                     const MoeBufRef *refs, size_t n);
/* The same with tensor maps, as many as the kernel's. */
void moe_cuda_launch_maps(MoeCudaTarget *t, MoeLowered *out, const char *kernel, int64_t blocks,
                          const MoeBufRef *refs, size_t n, const MoeTensorMap *maps, size_t n_maps);
/* Blocks for a kernel that walks `tasks` tasks with stride gridDim.x: all of them, at most `waves` for each multiprocessor. */
int64_t moe_cuda_blocks(const MoeCudaTarget *t, int64_t tasks, int waves);

/* Writes out a dispatch that a product's group holds where its rows are read elsewhere, too (dispatch may be NULL). kind_move.c */
MoeStatus moe_cuda_dispatch_lower(MoeCudaTarget *t, const MoeGroup *g, const MoeOp *dispatch,
                                  MoeLowered *out);

#endif
