/* A libcuda without a device, for the real cuDNN on a machine that has no GPU: the functions that it looks for while it compiles an
 * engine's kernels for a device that is described to it. Code is "loaded"; there is nothing to run it on (tests/unit/cudnn_real.c). */
#define EXPORT __attribute__((visibility("default")))

/* Work without a result, and what hands out a handle that nobody follows. */
#define DONE(name)                                                                                 \
    EXPORT int name(void);                                                                         \
    int name(void) {                                                                               \
        return 0;                                                                                  \
    }
#define HANDLE(name)                                                                               \
    EXPORT int name(void **out);                                                                   \
    int name(void **out) {                                                                         \
        static char it;                                                                            \
        *out = &it;                                                                                \
        return 0;                                                                                  \
    }
#define NUMBER(name, value)                                                                        \
    EXPORT int name(int *out);                                                                     \
    int name(int *out) {                                                                           \
        *out = value;                                                                              \
        return 0;                                                                                  \
    }
/* CUDA_ERROR_NO_DEVICE. */
#define REFUSED(name)                                                                              \
    EXPORT int name(void);                                                                         \
    int name(void) {                                                                               \
        return 100;                                                                                \
    }

HANDLE(cuLibraryLoadData)
HANDLE(cuLibraryGetKernel)
HANDLE(cuKernelGetFunction)
DONE(cuKernelSetAttribute)
DONE(cuLibraryUnload)
NUMBER(cuKernelGetAttribute, 0)
NUMBER(cuDriverGetVersion, 13000)
REFUSED(cuInit)
REFUSED(cuCtxGetCurrent)
REFUSED(cuCtxGetLimit)
REFUSED(cuCtxPopCurrent)
REFUSED(cuCtxPushCurrent)
REFUSED(cuDeviceGet)
REFUSED(cuDeviceGetCount)
REFUSED(cuGetErrorName)
REFUSED(cuGetErrorString)
REFUSED(cuLaunchCooperativeKernel)
REFUSED(cuLaunchKernel)
REFUSED(cuLaunchKernelEx)
REFUSED(cuLibraryLoadFromFile)
REFUSED(cuLinkAddData)
REFUSED(cuLinkComplete)
REFUSED(cuLinkCreate)
REFUSED(cuLinkDestroy)
REFUSED(cuOccupancyMaxPotentialClusterSize)
REFUSED(cuStreamGetCtx)
