/* The simulated driver (libcuda.so.1): what its files share. Names and values are the driver API's.
 *
 * One lock guards all of it: entry points take it (moe_sim_enter), and work that was asked of a stream runs inside the call
 * that waits for it, so nothing happens in the background, and everything as late as the API allows. Where that work waits for
 * something in memory, other streams go on inside that call; where none can, it lets go of the lock until another thread has
 * asked for something.
 *
 * Environment, read when it counts, so that a test may set it between calls:
 *   MOE_SIM_DEVICES=90,80     compute capabilities of the devices (default 90); "none": no device
 *   MOE_SIM_DRIVER=12040      the version that the driver says it is (default 13000)
 *   MOE_SIM_MEMORY=BYTES      of each device (default 16 GiB): what is beyond is out of memory
 *   MOE_SIM_FAIL_LAUNCH=N     the N-th launch from now fails; or a kernel's name, or how it begins
 *   MOE_SIM_LOST_AFTER=N      after N launches the device is gone: every call says so
 *   MOE_SIM_GRANULARITY=BYTES of mapped memory (a multiple of 4096; default 2 MiB)
 *   MOE_SIM_TRAFFIC=FILE      at the end: how many bytes went in and out, how many kernels and graphs were launched
 *   MOE_SIM_NO_PEER=1         no device reaches another's memory
 *   MOE_SIM_NO_STREAM_VALUES=1  streams cannot wait for values in memory
 *   MOE_SIM_NO_PINNED=1       the host has no pinned memory to give
 *   MOE_SIM_LAUNCH_SECONDS=S   what events say that each kernel took, beside what it did
 *   MOE_SIM_QUIET=1           no words on stderr of kernels that failed, and of misuse
 *   MOE_SIM_ORDER, MOE_SIM_ASYNC: block.h */
#ifndef MOE_TESTS_SIM_DRIVER_H
#define MOE_TESTS_SIM_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tests/sim/kernel_api.h"

#define MOE_SIM_EXPORT __attribute__((visibility("default")))

/* X(value, name, text) */
#define MOE_SIM_RESULTS(X)                                                                         \
    X(0, CUDA_SUCCESS, "no error")                                                                 \
    X(1, CUDA_ERROR_INVALID_VALUE, "invalid argument")                                             \
    X(2, CUDA_ERROR_OUT_OF_MEMORY, "out of memory")                                                \
    X(3, CUDA_ERROR_NOT_INITIALIZED, "initialization error")                                       \
    X(100, CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected")                             \
    X(101, CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal")                                    \
    X(200, CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid")                             \
    X(201, CUDA_ERROR_INVALID_CONTEXT, "invalid device context")                                   \
    X(217, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,                                                     \
      "peer access is not supported between these two devices")                                    \
    X(209, CUDA_ERROR_NO_BINARY_FOR_GPU,                                                           \
      "no kernel image is available for execution on the device")                                  \
    X(400, CUDA_ERROR_INVALID_HANDLE, "invalid resource handle")                                   \
    X(500, CUDA_ERROR_NOT_FOUND, "named symbol not found")                                         \
    X(600, CUDA_ERROR_NOT_READY, "device not ready")                                               \
    X(700, CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")                 \
    X(701, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch")          \
    X(704, CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled")               \
    X(719, CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure")                                 \
    X(801, CUDA_ERROR_NOT_SUPPORTED, "operation not supported")                                    \
    X(900, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,                                                  \
      "operation not permitted when stream is capturing")                                          \
    X(901, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,                                                  \
      "operation failed due to a previous error during capture")                                   \
    X(903, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "end capture was not begun in this stream")        \
    X(904, CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work")               \
    X(906, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,                                                     \
      "operation would make the legacy stream depend on a capturing stream")                       \
    X(999, CUDA_ERROR_UNKNOWN, "unknown error")
typedef enum {
#define X(value, name, text) name = (value),
    MOE_SIM_RESULTS(X)
#undef X
} CUresult;

typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef uint64_t CUmemGenericAllocationHandle;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum { MOE_SIM_MAX_DEVICES = 8 };

/* A device and its primary context. */
struct CUctx_st {
    CUdevice device;
    int capability; /* 90 */
    int retained;
    CUresult error; /* of a kernel: every later call returns it */
    size_t used;    /* bytes of its memory */
    unsigned peers; /* bit of a device: its kernels reach what cuMemAlloc made there */
};

typedef struct {
    int capability, multiprocessors;
    unsigned shared_optin; /* dynamic shared memory of a block, at most */
    const char *name;
} MoeSimDevice;

/* ---- driver.c ---- */

/* Takes the lock and looks at what every call needs: initialised, a context (returned), no error before. */
CUresult moe_sim_enter(const char *call, CUcontext *out);
/* The same without a context. */
CUresult moe_sim_enter_bare(const char *call);
CUresult moe_sim_leave(CUresult r);
const MoeSimDevice *moe_sim_device(CUcontext c);
CUcontext moe_sim_context_of(CUdevice d); /* NULL: no such device */
size_t moe_sim_total_memory(void);
/* Says on stderr what the API's caller, or a kernel, did wrong; returns r. */
MOE_SIM_EXPORT CUresult moe_sim_complain(CUresult r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Kernels that went wrong: the last words on one, for tests. */
MOE_SIM_EXPORT const char *moe_sim_last_words(void);
/* Calls so far in which the host waited for a device, or may have to on a real one: for a stream, for an event, for a copy from
 * or to memory that is not pinned, or since memory is freed. */
MOE_SIM_EXPORT long moe_sim_waits(void);
void moe_sim_count_wait(void);
typedef enum { COUNT_BYTES_IN, COUNT_BYTES_OUT, COUNT_KERNELS, COUNT_GRAPHS, N_COUNTS } MoeSimCount;
void moe_sim_count(MoeSimCount what, size_t n);
/* Counts a launch; whether it is one that fails, by the environment. */
CUresult moe_sim_launch_fault(CUcontext c, const char *kernel);
/* Something was asked for, or has run: who waits looks again. */
void moe_sim_changed(void);
/* Lets go of the lock until that happens, or for so long. False: nothing did. */
bool moe_sim_wait_change(double seconds);

/* ---- memory.c ---- */

/* Device memory that this context reaches can be touched between these (kernels, copies); outside of them it cannot. */
void moe_sim_memory_open(CUcontext c);
void moe_sim_memory_close(void);
/* Stays open for c, until leave or another context's kernel. */
void moe_sim_memory_stay(CUcontext c);
void moe_sim_memory_leave(void);
/* The same for what device memory a copy touches. */
MOE_SIM_EXPORT void moe_sim_memory_range(const void *p, size_t n, bool open);
/* Whether all of it is device memory that is mapped. */
MOE_SIM_EXPORT bool moe_sim_memory_holds(CUdeviceptr p, size_t n);
/* Whether c reaches all of it, too. */
bool moe_sim_memory_reached(CUcontext c, CUdeviceptr p, size_t n);
/* Whether some of it is device memory; whether all of it is pinned memory of the host. */
bool moe_sim_memory_touches(const void *p, size_t n);
bool moe_sim_memory_pinned(const void *p, size_t n);

/* ---- stream.c ---- */

typedef enum { OP_LAUNCH, OP_COPY, OP_SET, OP_RECORD, OP_WAIT, OP_VALUES, OP_POLL, OP_CALL } MoeSimOpKind;

/* Of a batch of stream memory operations: a wait for a value (by MOE_SIM_GEQ ..), or a write. */
typedef struct {
    bool wait;
    CUdeviceptr at;
    uint32_t value;
    unsigned flags;
} MoeSimValue;

/* A kernel and its arguments, ready to run. */
typedef struct {
    CUfunction f;
    MoeSimDim grid, block;
    unsigned shared_bytes;
    void *params; /* aligned to 64; begins with its size, a size_t (module.c); owned by the op */
} MoeSimCall;

typedef struct {
    MoeSimOpKind kind;
    CUcontext context;
    MoeSimCall call;
    char *to;
    const char *from;
    void *staged; /* a copy of what `from` had when the call was made; owned */
    size_t bytes;
    unsigned char value;
    CUevent event;
    CUstream stream; /* WAIT: the one that recorded, and at which number */
    uint64_t number;
    MoeSimValue *values; /* [n_values]; owned; the first n_done are over */
    size_t n_values, n_done;
    bool (*poll)(void *ctx); /* POLL: tries; false: not yet */
    void *ctx;
    CUresult (*run)(void *ctx); /* CALL: of `staged` */
} MoeSimOp;

/* Adds op (whose memory it takes over) to a stream or the graph that the stream is captured into. */
CUresult moe_sim_issue(CUstream s, MoeSimOp *op);
/* For simulated libraries. poll: what comes behind it in the stream waits until poll(ctx), which is called from whatever thread looks,
 * under the lock, is true; somebody must look (cuStreamQuery, or a wait). call: a function of the host as a launch of that stream, with a copy of ctx; device memory can be
 * touched meanwhile, and moe_sim_memory_holds asked. Its error is the context's. name: what MOE_SIM_FAIL_LAUNCH says. */
MOE_SIM_EXPORT CUresult moe_sim_stream_poll(CUstream s, bool (*poll)(void *ctx), void *ctx);
MOE_SIM_EXPORT CUresult moe_sim_stream_call(CUstream s, const char *name,
                                            CUresult (*run)(void *ctx), const void *ctx,
                                            size_t bytes);
/* In such a call: it took so much longer than the clock says (or less), for events. */
MOE_SIM_EXPORT void moe_sim_clock_add(double seconds);
/* Everything that was asked of this context's streams. */
CUresult moe_sim_flush(CUcontext c);
CUresult moe_sim_no_capture(
    void); /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED while a stream is captured globally */

/* ---- module.c ---- */

/* Checks a launch's shape against the device's limits; copies the arguments. */
CUresult moe_sim_call_make(CUcontext c, CUfunction f, MoeSimDim grid, MoeSimDim block,
                           unsigned shared_bytes, void **params, MoeSimCall *out);
CUresult moe_sim_call_run(CUcontext c, const MoeSimCall *call);

#endif
