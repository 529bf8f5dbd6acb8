/* cuBLASLt: the functions and constants that moec uses, declared here, so that no header of CUDA is needed, and opened at the first
 * need (base/dynlib.h). Interface of CUDA 12.0 and newer; names and values are those of cublasLt.h (13.1), which says of each attribute
 * what it holds. Matrices are by columns there: a row-major [rows][n] is its n x rows of leading dimension n.
 *
 * Used by runtime/cuda/blaslt*.c (dense products) and by moec doctor. */
#ifndef MOE_BASE_CUBLASLT_H
#define MOE_BASE_CUBLASLT_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

#define MOE_LT_LEAST                                                                               \
    120000 /* version: major * 10000 + minor * 100 + patch; of 13 and later, as of 12.0 */

typedef int MoeLtResult;                    /* cublasStatus_t */
typedef struct MoeLtContext *MoeLtHandle;   /* cublasLtHandle_t */
typedef struct MoeLtDescRep *MoeLtDesc;     /* cublasLtMatmulDesc_t */
typedef struct MoeLtLayoutRep *MoeLtLayout; /* cublasLtMatrixLayout_t */
typedef struct MoeLtPreferRep *MoeLtPrefer; /* cublasLtMatmulPreference_t */
typedef struct MoeCuStreamRep *MoeLtStream; /* cudaStream_t: the driver's */

typedef struct { /* cublasLtMatmulAlgo_t: may be stored, for the same version of the library */
    uint64_t data[8];
} MoeLtAlgo;

typedef struct { /* cublasLtMatmulHeuristicResult_t */
    MoeLtAlgo algo;
    size_t workspace_bytes;
    MoeLtResult state;
    float waves;
    int reserved[4];
} MoeLtFound;

enum { /* cublasStatus_t */
       MOE_LT_SUCCESS = 0,
       MOE_LT_NOT_INITIALIZED = 1,
       MOE_LT_ALLOC_FAILED = 3,
       MOE_LT_INVALID_VALUE = 7,
       MOE_LT_ARCH_MISMATCH = 8,
       MOE_LT_EXECUTION_FAILED = 13,
       MOE_LT_NOT_SUPPORTED = 15
};

enum { /* cudaDataType_t, cublasComputeType_t */
       MOE_LT_R_32F = 0,
       MOE_LT_R_16BF = 14,
       MOE_LT_COMPUTE_32F = 68,
       MOE_LT_COMPUTE_32F_PEDANTIC = 69 /* no TF32, whatever the environment asks for */
};

enum { /* cublasLtMatmulDescAttributes_t; cublasOperation_t */
       MOE_LT_DESC_TRANSA = 3,
       MOE_LT_OP_N = 0,
       MOE_LT_OP_T = 1
};

enum {                                    /* cublasLtMatmulPreferenceAttributes_t */
       MOE_LT_PREFER_WORKSPACE_BYTES = 1, /* uint64_t */
       MOE_LT_PREFER_REDUCTION_MASK = 3,  /* uint32_t: 0: none */
       MOE_LT_PREFER_ALIGN_A = 5,         /* uint32_t, and B, C, D behind */
       MOE_LT_PREFER_ALIGN_D = 8
};

enum { /* cublasLtMatmulAlgoCapAttributes_t, and of cublasLtNumericalImplFlags_t */
       MOE_LT_CAP_NUMERICS = 15, /* uint64_t */
       MOE_LT_NUMERICS_ACCUMULATORS = 0xff00,
       MOE_LT_NUMERICS_ACCUMULATOR_32F = 0x0200,
       MOE_LT_NUMERICS_INPUTS = 0xff0000,
       MOE_LT_NUMERICS_INPUT_16BF = 0x020000,
       MOE_LT_NUMERICS_INPUT_32F = 0x080000
};

/* cublasLtMatmulAlgoConfigAttributes_t: X(member, value, type). */
#define MOE_LT_CONFIG(X)                                                                           \
    X(id, 0, int32_t)                                                                              \
    X(tile, 1, uint32_t)                                                                           \
    X(split_k, 2, int32_t)                                                                         \
    X(reduction, 3, uint32_t)                                                                      \
    X(swizzle, 4, uint32_t)                                                                        \
    X(custom, 5, uint32_t)                                                                         \
    X(stages, 6, uint32_t)                                                                         \
    X(inner, 7, uint16_t)                                                                          \
    X(cluster, 8, uint16_t)
enum {
#define X(member, value, type) MOE_LT_CONFIG_##member = value,
    MOE_LT_CONFIG(X)
#undef X
};

/* X(type of the result, member, name in the library, parameters). */
#define MOE_LT_FUNCTIONS(X)                                                                        \
    X(size_t, version, "cublasLtGetVersion", (void))                                               \
    X(const char *, status_text, "cublasLtGetStatusString", (MoeLtResult r))                       \
    X(MoeLtResult, create, "cublasLtCreate", (MoeLtHandle * handle))                               \
    X(MoeLtResult, destroy, "cublasLtDestroy", (MoeLtHandle handle))                               \
    X(MoeLtResult, desc_create, "cublasLtMatmulDescCreate",                                        \
      (MoeLtDesc * desc, int compute, int scale_type))                                             \
    X(MoeLtResult, desc_destroy, "cublasLtMatmulDescDestroy", (MoeLtDesc desc))                    \
    X(MoeLtResult, desc_set, "cublasLtMatmulDescSetAttribute",                                     \
      (MoeLtDesc desc, int attribute, const void *value, size_t bytes))                            \
    X(MoeLtResult, layout_create, "cublasLtMatrixLayoutCreate",                                    \
      (MoeLtLayout * layout, int type, uint64_t rows, uint64_t cols, int64_t ld))                  \
    X(MoeLtResult, layout_destroy, "cublasLtMatrixLayoutDestroy", (MoeLtLayout layout))            \
    X(MoeLtResult, prefer_create, "cublasLtMatmulPreferenceCreate", (MoeLtPrefer * p))             \
    X(MoeLtResult, prefer_destroy, "cublasLtMatmulPreferenceDestroy", (MoeLtPrefer p))             \
    X(MoeLtResult, prefer_set, "cublasLtMatmulPreferenceSetAttribute",                             \
      (MoeLtPrefer p, int attribute, const void *value, size_t bytes))                             \
    X(MoeLtResult, heuristic, "cublasLtMatmulAlgoGetHeuristic",                                    \
      (MoeLtHandle handle, MoeLtDesc desc, MoeLtLayout a, MoeLtLayout b, MoeLtLayout c,            \
       MoeLtLayout d, MoeLtPrefer p, int most, MoeLtFound *out, int *out_n))                       \
    X(MoeLtResult, algo_init, "cublasLtMatmulAlgoInit",                                            \
      (MoeLtHandle handle, int compute, int scale_type, int a, int b, int c, int d, int id,        \
       MoeLtAlgo *out))                                                                            \
    X(MoeLtResult, algo_check, "cublasLtMatmulAlgoCheck",                                          \
      (MoeLtHandle handle, MoeLtDesc desc, MoeLtLayout a, MoeLtLayout b, MoeLtLayout c,            \
       MoeLtLayout d, const MoeLtAlgo *algo, MoeLtFound *out))                                     \
    X(MoeLtResult, cap_get, "cublasLtMatmulAlgoCapGetAttribute",                                   \
      (const MoeLtAlgo *algo, int attribute, void *out, size_t bytes, size_t *written))            \
    X(MoeLtResult, config_get, "cublasLtMatmulAlgoConfigGetAttribute",                             \
      (const MoeLtAlgo *algo, int attribute, void *out, size_t bytes, size_t *written))            \
    X(MoeLtResult, config_set, "cublasLtMatmulAlgoConfigSetAttribute",                             \
      (MoeLtAlgo * algo, int attribute, const void *value, size_t bytes))                          \
    X(MoeLtResult, matmul, "cublasLtMatmul",                                                       \
      (MoeLtHandle handle, MoeLtDesc desc, const void *alpha, uint64_t a, MoeLtLayout la,          \
       uint64_t b, MoeLtLayout lb, const void *beta, uint64_t c, MoeLtLayout lc, uint64_t d,       \
       MoeLtLayout ld, const MoeLtAlgo *algo, uint64_t workspace, size_t workspace_bytes,          \
       MoeLtStream stream)) /* device addresses as numbers */

typedef struct {
#define X(type, member, symbol, params) type(*member) params;
    MOE_LT_FUNCTIONS(X)
#undef X
} MoeCublasLt;

/* The library, opened. MOE_E_IO: it is not here, or too old; says what to do. Any thread. */
MoeStatus moe_cublaslt(const MoeCublasLt **out);
/* The file that was opened; "" before. */
const char *moe_cublaslt_path(void);
/* "13.1.0" */
const char *moe_cublaslt_version_text(size_t version, char out[24]);
/* NULL for MOE_LT_SUCCESS, else MOE_E_IO: what was done, and what the library calls the failure. */
MoeStatus moe_cublaslt_status(MoeLtResult r, const char *what, ...) MOE_PRINTF(2, 3);

#endif
