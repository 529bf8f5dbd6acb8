/* cuDNN's backend interface: the functions and constants that moec uses, declared here, so that no header of cuDNN is needed,
 * and opened at the first need (base/dynlib.h). Interface of cuDNN 9.11 and newer; names and values are those of
 * cudnn_graph.h, which says of each descriptor and attribute what it takes.
 *
 * The lowest version is 9.11: the first in which a reduction can be asked to be repeatable, after the ones (9.6, 9.10) that
 * changed who clears the sums of dq and where masks stand in the gradient's graph.
 *
 * Used by runtime/cuda/cudnn*.c (attention) and by moec doctor. */
#ifndef MOE_BASE_CUDNN_H
#define MOE_BASE_CUDNN_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

#define MOE_CUDNN_LEAST 91100 /* version: major * 10000 + minor * 100 + patch */

typedef int MoeCudnnResult;   /* cudnnStatus_t */
typedef void *MoeCudnnHandle; /* cudnnHandle_t */
typedef void *MoeCudnnDesc;   /* cudnnBackendDescriptor_t */

enum { /* cudnnStatus_t: the thousands are the class */
       MOE_CUDNN_SUCCESS = 0,
       MOE_CUDNN_NOT_INITIALIZED = 1001,
       MOE_CUDNN_BAD_PARAM = 2000,
       MOE_CUDNN_NOT_SUPPORTED = 3000,
       MOE_CUDNN_INTERNAL_ERROR = 4000,
       MOE_CUDNN_EXECUTION_FAILED = 5000
};

enum { /* cudnnBackendDescriptorType_t */
       MOE_CUDNN_POINTWISE = 0,
       MOE_CUDNN_ENGINE = 2,
       MOE_CUDNN_ENGINECFG = 3,
       MOE_CUDNN_ENGINEHEUR = 4,
       MOE_CUDNN_EXECUTION_PLAN = 5,
       MOE_CUDNN_KNOB_CHOICE = 7,
       MOE_CUDNN_OPERATION_POINTWISE = 13,
       MOE_CUDNN_OPERATIONGRAPH = 15,
       MOE_CUDNN_VARIANT_PACK = 16,
       MOE_CUDNN_TENSOR = 17,
       MOE_CUDNN_MATMUL = 18,
       MOE_CUDNN_OPERATION_MATMUL = 19,
       MOE_CUDNN_REDUCTION = 21,
       MOE_CUDNN_OPERATION_REDUCTION = 22,
       MOE_CUDNN_OPERATION_RESHAPE = 31,
       MOE_CUDNN_DEVICEPROP = 38
};

enum { /* cudnnBackendAttributeType_t */
       MOE_CUDNN_TYPE_HANDLE = 0,
       MOE_CUDNN_TYPE_DATA_TYPE = 1,
       MOE_CUDNN_TYPE_BOOLEAN = 2,
       MOE_CUDNN_TYPE_INT64 = 3,
       MOE_CUDNN_TYPE_FLOAT = 4,
       MOE_CUDNN_TYPE_VOID_PTR = 6,
       MOE_CUDNN_TYPE_HEUR_MODE = 8,
       MOE_CUDNN_TYPE_KNOB_TYPE = 9,
       MOE_CUDNN_TYPE_NUMERICAL_NOTE = 11,
       MOE_CUDNN_TYPE_POINTWISE_MODE = 14,
       MOE_CUDNN_TYPE_BACKEND_DESCRIPTOR = 15,
       MOE_CUDNN_TYPE_REDUCTION_OPERATOR = 18,
       MOE_CUDNN_TYPE_BEHAVIOR_NOTE = 19,
       MOE_CUDNN_TYPE_CHAR = 24
};

enum { /* cudnnBackendAttributeName_t */
       MOE_CUDNN_ATTR_POINTWISE_MODE = 0,
       MOE_CUDNN_ATTR_POINTWISE_MATH_PREC = 1,
       MOE_CUDNN_ATTR_POINTWISE_AXIS = 9,
       MOE_CUDNN_ATTR_ENGINEHEUR_MODE = 200,
       MOE_CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH = 201,
       MOE_CUDNN_ATTR_ENGINEHEUR_RESULTS = 202,
       MOE_CUDNN_ATTR_ENGINEHEUR_DEVICEPROP = 204,
       MOE_CUDNN_ATTR_ENGINECFG_ENGINE = 300,
       MOE_CUDNN_ATTR_ENGINECFG_KNOB_CHOICES = 302,
       MOE_CUDNN_ATTR_EXECUTION_PLAN_HANDLE = 400,
       MOE_CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG = 401,
       MOE_CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE = 402,
       MOE_CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP = 407,
       MOE_CUDNN_ATTR_KNOB_CHOICE_TYPE = 600,
       MOE_CUDNN_ATTR_KNOB_CHOICE_VALUE = 601,
       MOE_CUDNN_ATTR_OPERATION_POINTWISE_DESC = 750,
       MOE_CUDNN_ATTR_OPERATION_POINTWISE_X = 751,
       MOE_CUDNN_ATTR_OPERATION_POINTWISE_B = 752,
       MOE_CUDNN_ATTR_OPERATION_POINTWISE_Y = 753,
       MOE_CUDNN_ATTR_OPERATION_POINTWISE_T = 758,
       MOE_CUDNN_ATTR_OPERATIONGRAPH_HANDLE = 800,
       MOE_CUDNN_ATTR_OPERATIONGRAPH_OPS = 801,
       MOE_CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT = 900,
       MOE_CUDNN_ATTR_TENSOR_DATA_TYPE = 901,
       MOE_CUDNN_ATTR_TENSOR_DIMENSIONS = 902,
       MOE_CUDNN_ATTR_TENSOR_STRIDES = 903,
       MOE_CUDNN_ATTR_TENSOR_UNIQUE_ID = 906,
       MOE_CUDNN_ATTR_TENSOR_IS_VIRTUAL = 907,
       MOE_CUDNN_ATTR_TENSOR_IS_BY_VALUE = 908,
       MOE_CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS = 1000,
       MOE_CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS = 1001,
       MOE_CUDNN_ATTR_VARIANT_PACK_WORKSPACE = 1003,
       MOE_CUDNN_ATTR_ENGINE_OPERATION_GRAPH = 1300,
       MOE_CUDNN_ATTR_ENGINE_GLOBAL_INDEX = 1301,
       MOE_CUDNN_ATTR_ENGINE_NUMERICAL_NOTE = 1303,
       MOE_CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE = 1305,
       MOE_CUDNN_ATTR_ENGINE_DEVICEPROP = 1307,
       MOE_CUDNN_ATTR_MATMUL_COMP_TYPE = 1500,
       MOE_CUDNN_ATTR_OPERATION_MATMUL_A = 1520,
       MOE_CUDNN_ATTR_OPERATION_MATMUL_B = 1521,
       MOE_CUDNN_ATTR_OPERATION_MATMUL_C = 1522,
       MOE_CUDNN_ATTR_OPERATION_MATMUL_DESC = 1523,
       MOE_CUDNN_ATTR_REDUCTION_OPERATOR = 1600,
       MOE_CUDNN_ATTR_REDUCTION_COMP_TYPE = 1601,
       MOE_CUDNN_ATTR_REDUCTION_IS_DETERMINISTIC = 1602,
       MOE_CUDNN_ATTR_OPERATION_REDUCTION_X = 1610,
       MOE_CUDNN_ATTR_OPERATION_REDUCTION_Y = 1611,
       MOE_CUDNN_ATTR_OPERATION_REDUCTION_DESC = 1612,
       MOE_CUDNN_ATTR_OPERATION_RESHAPE_X = 2200,
       MOE_CUDNN_ATTR_OPERATION_RESHAPE_Y = 2201,
       MOE_CUDNN_ATTR_DEVICEPROP_JSON = 2702
};

enum { /* cudnnDataType_t */
       MOE_CUDNN_FLOAT = 0,
       MOE_CUDNN_INT32 = 4,
       MOE_CUDNN_BFLOAT16 = 9,
       MOE_CUDNN_BOOLEAN = 11
};

enum { /* cudnnPointwiseMode_t */
       MOE_CUDNN_ADD = 0,
       MOE_CUDNN_MUL = 1,
       MOE_CUDNN_DIV = 6,
       MOE_CUDNN_SUB = 9,
       MOE_CUDNN_EXP = 13,
       MOE_CUDNN_LOG = 15,
       MOE_CUDNN_IDENTITY = 21,
       MOE_CUDNN_CMP_GT = 302,
       MOE_CUDNN_CMP_GE = 303,
       MOE_CUDNN_GEN_INDEX = 501,
       MOE_CUDNN_BINARY_SELECT = 601
};

enum { MOE_CUDNN_REDUCE_ADD = 0, MOE_CUDNN_REDUCE_MAX = 3 }; /* cudnnReduceTensorOp_t */
enum { MOE_CUDNN_HEUR_FALLBACK = 2, MOE_CUDNN_HEUR_A = 3 };  /* cudnnBackendHeurMode_t */
enum { MOE_CUDNN_NOTE_NONDETERMINISTIC = 4 };                /* cudnnBackendNumericalNote_t */
enum {                                                       /* cudnnBackendKnobType_t */
       MOE_CUDNN_KNOB_STAGES = 14,
       MOE_CUDNN_KNOB_KERNEL_CFG = 24,
       MOE_CUDNN_KNOB_TILE_CGA_M = 27,
       MOE_CUDNN_KNOB_STREAM_K = 38,
       MOE_CUDNN_KNOB_TILE_M = 40,
       MOE_CUDNN_KNOB_TILE_N = 41
};

/* X(result, member, name in the library, parameters) */
#define MOE_CUDNN_FUNCTIONS(X)                                                                     \
    X(size_t, version, "cudnnGetVersion", (void))                                                  \
    X(const char *, error_string, "cudnnGetErrorString", (MoeCudnnResult r))                       \
    X(void, last_error, "cudnnGetLastErrorString", (char *message, size_t bytes))                  \
    X(MoeCudnnResult, create, "cudnnCreate", (MoeCudnnHandle * handle))                            \
    X(MoeCudnnResult, destroy, "cudnnDestroy", (MoeCudnnHandle handle))                            \
    X(MoeCudnnResult, set_stream, "cudnnSetStream", (MoeCudnnHandle handle, void *stream))         \
    X(MoeCudnnResult, desc_create, "cudnnBackendCreateDescriptor", (int type, MoeCudnnDesc *desc)) \
    X(MoeCudnnResult, desc_destroy, "cudnnBackendDestroyDescriptor", (MoeCudnnDesc desc))          \
    X(MoeCudnnResult, desc_set, "cudnnBackendSetAttribute",                                        \
      (MoeCudnnDesc desc, int name, int type, int64_t n, const void *elements))                    \
    X(MoeCudnnResult, desc_get, "cudnnBackendGetAttribute",                                        \
      (MoeCudnnDesc desc, int name, int type, int64_t room, int64_t *n, void *elements))           \
    X(MoeCudnnResult, desc_finalize, "cudnnBackendFinalize", (MoeCudnnDesc desc))                  \
    X(MoeCudnnResult, execute, "cudnnBackendExecute",                                              \
      (MoeCudnnHandle handle, MoeCudnnDesc plan, MoeCudnnDesc pack))

typedef struct {
#define X(ret, member, symbol, params) ret(*member) params;
    MOE_CUDNN_FUNCTIONS(X)
#undef X
} MoeCudnn;

/* The library, opened. MOE_E_IO: it is not here, or older than MOE_CUDNN_LEAST; says what to do. Any thread. */
MoeStatus moe_cudnn(const MoeCudnn **out);
/* The file that was opened; "" before. */
const char *moe_cudnn_path(void);

/* NULL for MOE_CUDNN_SUCCESS. Else an error that says what was done, what cuDNN calls it, and its own words on the call.
 * MOE_E_INPUT where cuDNN does not support what was asked (the 3000s), MOE_E_NOMEM where memory is short, else MOE_E_IO. */
MoeStatus moe_cudnn_status(MoeCudnnResult r, const char *what, ...) MOE_PRINTF(2, 3);

#endif
