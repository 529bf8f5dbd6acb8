/* Dense products of a GPU by cuBLASLt (docs/GPU.md, "Dense products"): what cuda/blaslt.c (the library, products and their
 * launches), cuda/blaslt_find.c (algorithms: which there are), cuda/blaslt_try.c (whether a row's bits depend on its
 * neighbours, how fast) and cuda/blaslt_choose.c (which runs a product, on all ranks) share. */
#ifndef MOE_RUNTIME_CUDA_BLASLT_H
#define MOE_RUNTIME_CUDA_BLASLT_H

#include "runtime/dense.h"
#include "runtime/cuda/device.h"

#define MOE_BLASLT_WORKSPACE                                                                       \
    ((int64_t)32 << 20)     /* bytes that an algorithm may ask for, of each rank */
#define MOE_BLASLT_ALIGN 64 /* of buffers: the slab's and the parameters' */

/* A product as the library sees it. Row-major there is by columns: out^T [n x rows] = b' [n x k] a^T [k x rows]. */
typedef struct {
    MoeLtDesc desc;
    MoeLtLayout b;
    MoeDenseChoice choice;
} MoeCudaProduct;

/* A step that the library runs. */
typedef struct MoeCudaDense {
    const MoeCudaProduct *product; /* NULL: the plan's kernel does */
    MoeLtLayout a, out;
    MoeCuPtr at_a, at_b, at_c, at_out; /* c: 0 none */
    int64_t bytes;                     /* of out */
} MoeCudaDense;

typedef struct MoeCudaBlasLt {
    const MoeCublasLt *lt;
    size_t version;
    MoeLtHandle handle;
    MoeCuPtr workspace;
    /* In programs with elastic values results go here first, and from here by a kernel that does nothing once a guard has stopped the
     * program: the library knows no stop flag, and what it would overwrite may be needed again. */
    MoeCuPtr staging;
    int64_t staging_bytes;
    MoeDenseProduct *products;
    MoeCudaProduct *run; /* like products */
    size_t n_products;
} MoeCudaBlasLt;

/* ---- cuda/blaslt.c ---- */

/* The library, with a handle and workspace of this device, and descriptors of the plan's products (d->blaslt->products). */
MoeStatus moe_cuda_blaslt_open(MoeDeviceCuda *d);
/* The layouts of so many rows; to be destroyed. */
MoeStatus moe_cuda_blaslt_layouts(MoeDeviceCuda *d, const MoeDenseProduct *of, int64_t rows,
                                  MoeLtLayout *a, MoeLtLayout *out);
void moe_cuda_blaslt_layout_free(MoeDeviceCuda *d, MoeLtLayout layout); /* NULL is fine */
/* The product's launch into `out`. The library's result. */
MoeLtResult moe_cuda_blaslt_matmul(MoeDeviceCuda *d, const MoeCudaDense *s, const MoeLtAlgo *algo,
                                   bool add, MoeCuPtr out);
/* From now on steps whose product's choice is the library go by it; in place of what was so before. */
MoeStatus moe_cuda_blaslt_bind(MoeDeviceCuda *d, MoeExec *x);
void moe_cuda_blaslt_unbind(MoeDeviceCuda *d);

/* ---- cuda/blaslt_find.c ---- */

/* Adds what the library proposes for product i with the rows of these layouts: out[0 .. *n), each once, `most` in all. */
MoeStatus moe_cuda_blaslt_find(MoeDeviceCuda *d, size_t i, const MoeCudaDense *layouts,
                               MoeLtAlgo *out, int most, int *n);
/* Whether an algorithm may be tried at all: no split-K, no reduction, sums in f32 of the product's own dtype. */
bool moe_cuda_blaslt_allowed(MoeDeviceCuda *d, size_t i, const MoeLtAlgo *algo);
void moe_cuda_blaslt_config(MoeDeviceCuda *d, const MoeLtAlgo *algo, MoeLtConfig *out);
/* The algorithm of these attributes in this version of the library; false: there is none. */
bool moe_cuda_blaslt_rebuild(MoeDeviceCuda *d, size_t i, const MoeLtConfig *config, MoeLtAlgo *out);

/* ---- cuda/blaslt_try.c ---- */

/* Whether the choice's algorithm runs product i at all its rows with the same bits for a row wherever it stands: *out_good. */
MoeStatus moe_cuda_blaslt_verify(MoeDeviceCuda *d, MoeExec *x, size_t i, const MoeDenseChoice *c,
                                 bool *out_good);
/* The fastest algorithm of product i that does, with rates; library false where none does. */
MoeStatus moe_cuda_blaslt_measure(MoeDeviceCuda *d, MoeExec *x, size_t i, MoeDenseChoice *out);
#endif
