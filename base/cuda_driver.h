/* NVIDIA's driver API: the functions and constants that moec uses, declared here, so that no header of CUDA is needed, and
 * opened at the first need (base/dynlib.h). Interface of CUDA 12.0 and newer; names and values are those of cuda.h, where
 * "_v2" stands behind names here that have it in the library alone.
 *
 * Used by codegen/cuda (the native architecture, whether code runs here) and by the runtime's CUDA device. */
#ifndef MOE_BASE_CUDA_DRIVER_H
#define MOE_BASE_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

typedef int MoeCuResult; /* CUresult */
typedef int MoeCuDevice;
typedef uint64_t MoeCuPtr; /* CUdeviceptr */
typedef uint64_t MoeCuMem; /* CUmemGenericAllocationHandle */
typedef struct MoeCuContextRep *MoeCuContext;
typedef struct MoeCuModuleRep *MoeCuModule;
typedef struct MoeCuFunctionRep *MoeCuFunction;
typedef struct MoeCuStreamRep *MoeCuStream;
typedef struct MoeCuEventRep *MoeCuEvent;
typedef struct MoeCuGraphRep *MoeCuGraph;
typedef struct MoeCuGraphExecRep *MoeCuGraphExec;

enum { /* CUresult */
       MOE_CU_SUCCESS = 0,
       MOE_CU_INVALID_VALUE = 1,
       MOE_CU_OUT_OF_MEMORY = 2,
       MOE_CU_NO_DEVICE = 100,
       MOE_CU_INVALID_IMAGE = 200,
       MOE_CU_NO_BINARY_FOR_GPU = 209,
       MOE_CU_NOT_FOUND = 500,
       MOE_CU_NOT_READY = 600,
       MOE_CU_ILLEGAL_ADDRESS = 700,
       MOE_CU_PEER_ACCESS_ALREADY_ENABLED = 704,
       MOE_CU_LAUNCH_OUT_OF_RESOURCES = 701,
       MOE_CU_LAUNCH_TIMEOUT = 702,
       MOE_CU_ILLEGAL_INSTRUCTION = 715,
       MOE_CU_MISALIGNED_ADDRESS = 716,
       MOE_CU_LAUNCH_FAILED = 719
};

enum { /* CUdevice_attribute */
       MOE_CU_ATTR_MULTIPROCESSORS = 16,
       MOE_CU_ATTR_MAJOR = 75,
       MOE_CU_ATTR_MINOR = 76,
       MOE_CU_ATTR_SHARED_BYTES_OPTIN = 97, /* of a block */
       MOE_CU_ATTR_VIRTUAL_MEMORY = 102,    /* cuMemAddressReserve and its like */
       MOE_CU_ATTR_TENSOR_MAP = 127
};

enum { /* CUfunction_attribute */
       MOE_CU_FUNC_SHARED_BYTES = 1,
       MOE_CU_FUNC_LOCAL_BYTES = 3,
       MOE_CU_FUNC_REGISTERS = 4,
       MOE_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES = 8
};

enum {
    MOE_CU_STREAM_NON_BLOCKING = 1,
    MOE_CU_EVENT_DEFAULT = 0,
    MOE_CU_EVENT_BLOCKING_SYNC = 1,
    MOE_CU_EVENT_DISABLE_TIMING = 2,
    MOE_CU_HOST_PORTABLE = 1, /* cuMemHostAlloc */
    MOE_CU_CAPTURE_GLOBAL = 0,
    MOE_CU_CAPTURE_THREAD_LOCAL = 1,
    MOE_CU_CAPTURE_RELAXED = 2,
    MOE_CU_LOCATION_DEVICE = 1,
    MOE_CU_ALLOCATION_PINNED = 1,
    MOE_CU_ACCESS_READWRITE = 3,
    MOE_CU_GRANULARITY_MINIMUM = 0,
    MOE_CU_GRANULARITY_RECOMMENDED = 1,
    MOE_CU_OP_WAIT_VALUE_32 = 1, /* CUstreamBatchMemOpType */
    MOE_CU_OP_WRITE_VALUE_32 = 2,
    MOE_CU_WAIT_VALUE_GEQ = 0
};

enum { /* CUtensorMap...: of cuTensorMapEncodeTiled */
       MOE_CU_TENSOR_FLOAT32 = 7,
       MOE_CU_TENSOR_BFLOAT16 = 9,
       MOE_CU_INTERLEAVE_NONE = 0,
       MOE_CU_SWIZZLE_NONE = 0,
       MOE_CU_SWIZZLE_32B = 1,
       MOE_CU_SWIZZLE_64B = 2,
       MOE_CU_SWIZZLE_128B = 3,
       MOE_CU_L2_PROMOTION_NONE = 0,
       MOE_CU_L2_PROMOTION_128B = 2,
       MOE_CU_L2_PROMOTION_256B = 3,
       MOE_CU_FILL_ZEROS = 0
};

typedef struct { /* CUmemLocation */
    int type, id;
} MoeCuLocation;

typedef struct { /* CUmemAllocationProp */
    int type, handle_types;
    MoeCuLocation location;
    void *windows_only;
    struct {
        unsigned char compression, rdma;
        unsigned short usage;
        unsigned char reserved[4];
    } flags;
} MoeCuAllocationProp;

typedef struct { /* CUmemAccessDesc */
    MoeCuLocation location;
    int flags;
} MoeCuAccess;

typedef struct { /* CUtensorMap */
    _Alignas(64) uint64_t opaque[16];
} MoeCuTensorMap;

typedef union { /* CUstreamBatchMemOpParams: of its members those on 32-bit values */
    struct {
        int operation;
        MoeCuPtr address;
        uint64_t value;
        unsigned flags;
        MoeCuPtr alias;
    } on;
    uint64_t pad[6];
} MoeCuStreamOp;

/* X(member, name in the library, parameters): a CUresult each. */
#define MOE_CUDA_DRIVER_FUNCTIONS(X)                                                               \
    X(init, "cuInit", (unsigned flags))                                                            \
    X(driver_version, "cuDriverGetVersion", (int *version))                                        \
    X(error_name, "cuGetErrorName", (MoeCuResult r, const char **name))                            \
    X(error_string, "cuGetErrorString", (MoeCuResult r, const char **text))                        \
    X(device_count, "cuDeviceGetCount", (int *n))                                                  \
    X(device_get, "cuDeviceGet", (MoeCuDevice * device, int ordinal))                              \
    X(device_name, "cuDeviceGetName", (char *name, int bytes, MoeCuDevice device))                 \
    X(device_uuid, "cuDeviceGetUuid_v2", (char *uuid, MoeCuDevice device))                         \
    X(device_memory, "cuDeviceTotalMem_v2", (size_t * bytes, MoeCuDevice device))                  \
    X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, MoeCuDevice device))   \
    X(context_retain, "cuDevicePrimaryCtxRetain", (MoeCuContext * context, MoeCuDevice device))    \
    X(context_release, "cuDevicePrimaryCtxRelease_v2", (MoeCuDevice device))                       \
    X(context_set, "cuCtxSetCurrent", (MoeCuContext context))                                      \
    X(mem_alloc, "cuMemAlloc_v2", (MoeCuPtr * p, size_t bytes))                                    \
    X(mem_free, "cuMemFree_v2", (MoeCuPtr p))                                                      \
    X(mem_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t * total_bytes))                    \
    X(host_alloc, "cuMemHostAlloc", (void **p, size_t bytes, unsigned flags))                      \
    X(host_free, "cuMemFreeHost", (void *p))                                                       \
    X(copy_in, "cuMemcpyHtoDAsync_v2",                                                             \
      (MoeCuPtr to, const void *from, size_t bytes, MoeCuStream stream))                           \
    X(copy_out, "cuMemcpyDtoHAsync_v2",                                                            \
      (void *to, MoeCuPtr from, size_t bytes, MoeCuStream stream))                                 \
    X(copy, "cuMemcpyDtoDAsync_v2",                                                                \
      (MoeCuPtr to, MoeCuPtr from, size_t bytes, MoeCuStream stream))                              \
    X(set_bytes, "cuMemsetD8Async",                                                                \
      (MoeCuPtr to, unsigned char value, size_t bytes, MoeCuStream stream))                        \
    X(stream_create, "cuStreamCreate", (MoeCuStream * stream, unsigned flags))                     \
    X(stream_destroy, "cuStreamDestroy_v2", (MoeCuStream stream))                                  \
    X(stream_synchronize, "cuStreamSynchronize", (MoeCuStream stream))                             \
    X(stream_query, "cuStreamQuery", (MoeCuStream stream))                                         \
    X(stream_wait, "cuStreamWaitEvent", (MoeCuStream stream, MoeCuEvent event, unsigned flags))    \
    X(stream_ops, "cuStreamBatchMemOp_v2",                                                         \
      (MoeCuStream stream, unsigned n, MoeCuStreamOp *ops, unsigned flags))                        \
    X(can_access_peer, "cuDeviceCanAccessPeer",                                                    \
      (int *can, MoeCuDevice device, MoeCuDevice peer))                                            \
    X(peer_enable, "cuCtxEnablePeerAccess", (MoeCuContext peer, unsigned flags))                   \
    X(event_create, "cuEventCreate", (MoeCuEvent * event, unsigned flags))                         \
    X(event_destroy, "cuEventDestroy_v2", (MoeCuEvent event))                                      \
    X(event_record, "cuEventRecord", (MoeCuEvent event, MoeCuStream stream))                       \
    X(event_synchronize, "cuEventSynchronize", (MoeCuEvent event))                                 \
    X(event_query, "cuEventQuery", (MoeCuEvent event))                                             \
    X(event_ms, "cuEventElapsedTime", (float *ms, MoeCuEvent from, MoeCuEvent to))                 \
    X(module_load, "cuModuleLoadDataEx",                                                           \
      (MoeCuModule * module, const void *image, unsigned n, int *options, void **values))          \
    X(module_unload, "cuModuleUnload", (MoeCuModule module))                                       \
    X(module_function, "cuModuleGetFunction",                                                      \
      (MoeCuFunction * f, MoeCuModule module, const char *name))                                   \
    X(function_set, "cuFuncSetAttribute", (MoeCuFunction f, int attribute, int value))             \
    X(function_get, "cuFuncGetAttribute", (int *value, int attribute, MoeCuFunction f))            \
    X(launch, "cuLaunchKernel",                                                                    \
      (MoeCuFunction f, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,       \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, MoeCuStream stream,              \
       void **params, void **extra))                                                               \
    X(address_reserve, "cuMemAddressReserve",                                                      \
      (MoeCuPtr * p, size_t bytes, size_t alignment, MoeCuPtr at, unsigned long long flags))       \
    X(address_free, "cuMemAddressFree", (MoeCuPtr p, size_t bytes))                                \
    X(mem_create, "cuMemCreate",                                                                   \
      (MoeCuMem * mem, size_t bytes, const MoeCuAllocationProp *prop, unsigned long long flags))   \
    X(mem_release, "cuMemRelease", (MoeCuMem mem))                                                 \
    X(mem_map, "cuMemMap",                                                                         \
      (MoeCuPtr at, size_t bytes, size_t offset, MoeCuMem mem, unsigned long long flags))          \
    X(mem_unmap, "cuMemUnmap", (MoeCuPtr at, size_t bytes))                                        \
    X(mem_access, "cuMemSetAccess",                                                                \
      (MoeCuPtr at, size_t bytes, const MoeCuAccess *access, size_t n))                            \
    X(mem_granularity, "cuMemGetAllocationGranularity",                                            \
      (size_t * bytes, const MoeCuAllocationProp *prop, int which))                                \
    X(tensor_map_encode, "cuTensorMapEncodeTiled",                                                 \
      (MoeCuTensorMap * map, int type, uint32_t rank, void *address, const uint64_t *dims,         \
       const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides,              \
       int interleave, int swizzle, int l2_promotion, int fill))                                   \
    X(capture_begin, "cuStreamBeginCapture_v2", (MoeCuStream stream, int mode))                    \
    X(capture_end, "cuStreamEndCapture", (MoeCuStream stream, MoeCuGraph * graph))                 \
    X(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (MoeCuGraphExec * exec, MoeCuGraph graph, unsigned long long flags))                         \
    X(graph_launch, "cuGraphLaunch", (MoeCuGraphExec exec, MoeCuStream stream))                    \
    X(graph_exec_destroy, "cuGraphExecDestroy", (MoeCuGraphExec exec))                             \
    X(graph_destroy, "cuGraphDestroy", (MoeCuGraph graph))

typedef struct {
#define X(member, symbol, params) MoeCuResult(*member) params;
    MOE_CUDA_DRIVER_FUNCTIONS(X)
#undef X
} MoeCudaDriver;

/* The driver, opened and initialised (cuInit). MOE_E_IO: no driver here, one that is too old, or no device; says what to do.
 * Any thread. */
MoeStatus moe_cuda_driver(const MoeCudaDriver **out);
/* The file that was opened; "" before. */
const char *moe_cuda_driver_path(void);

/* NULL for MOE_CU_SUCCESS. Else an error that says what was done (the call, and its sizes: "cuMemAlloc of 3 GiB for the
 * slab"), what the driver calls it, and what to do. Out of memory is MOE_E_NOMEM and says how much the device has and has
 * left; all others are MOE_E_IO. */
MoeStatus moe_cuda_status(MoeCuResult r, const char *what, ...) MOE_PRINTF(2, 3);

/* The device with that number: MOE_E_MISUSE where there are fewer. */
MoeStatus moe_cuda_device(int ordinal, MoeCuDevice *out);

#endif
