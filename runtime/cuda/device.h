/* A GPU as a device (device.h): what cuda/device.c (opening, errors), cuda/memory.c, cuda/transfer.c, cuda/bind.c (code, and the
 * arguments of launches), cuda/run.c and cuda/graph.c share. All calls go to one stream, in order. */
#ifndef MOE_RUNTIME_CUDA_DEVICE_H
#define MOE_RUNTIME_CUDA_DEVICE_H

#include "base/cuda_abi.h"
#include "base/cuda_driver.h"
#include "runtime/exec_internal.h"

/* Memory: the host's address space for it (the mirror), and where it is. */
typedef struct {
    char *host;
    int64_t bytes; /* of both, slack included */
    MoeCuPtr at;
    bool mapped; /* address space, of which part is mapped: the slab with elastic values */
} MoeCudaRegion;

enum { MOE_CUDA_MAX_REGIONS = 64 };

/* A run of granules of the slab with memory of its own. */
typedef struct {
    int64_t at, bytes;
    MoeCuMem memory;
} MoeCudaChunk;

typedef struct {
    const void *image;
    MoeCuModule module;
} MoeCudaModule;

/* The launch of a step, arguments worked out. */
typedef struct {
    MoeCuFunction function;
    uint64_t *args;       /* stop flag, then buffers */
    MoeCuTensorMap *maps; /* [n_maps] */
    void **params;        /* [1 + n_maps]: what cuLaunchKernel wants */
} MoeCudaLaunch;

/* Steps of a range of phases, captured. */
typedef struct {
    MoePlanPhase lo, hi;
    bool counting, filled; /* filled: without the steps that fill slots of experts' copies */
    MoeCuGraphExec exec; /* NULL: this range cannot be captured */
} MoeCudaGraph;

enum { MOE_CUDA_MAX_GRAPHS = 12 };

typedef struct {
    MoeCudaLaunch *launches; /* [n_steps]; of other steps empty */
    /* Elastic values: rows are looked at before the step that first has the value, or behind the last launch of its group
     * where that makes the table of rows itself (such a value has all its memory from the start). */
    MoeRtElastic *elastic; /* [n_elastic]: what the device has, with limits that may be newer */
    int *value;            /* [n_elastic] */
    size_t n_elastic;
    size_t *before, *after; /* [n_steps + 1] and [n_steps]: step i's are before[i] .. after[i]-1, after[i] .. before[i+1]-1 */
    MoeCuPtr table;         /* of `elastic` */
    bool stale;             /* the device's limits are older */
    MoeCudaGraph graphs[MOE_CUDA_MAX_GRAPHS];
    int n_graphs;
    struct MoeCudaDense *dense; /* [n_steps]: what cuBLASLt runs (cuda/blaslt.h); NULL: nothing */
    struct MoeCudaAttn *attn;   /* [n_steps]: what cuDNN runs (cuda/cudnn.h); NULL: nothing */
} MoeCudaProgram;

enum { MOE_CUDA_SLOTS = 16 };

/* Memory of the host, pinned where that was to be had. */
typedef struct {
    char *at;
    int64_t bytes;
    bool pinned;
} MoeCudaBlock;

typedef struct {
    char *ring;                      /* pinned; NULL: none to be had */
    MoeCuEvent left[MOE_CUDA_SLOTS]; /* of each slot: what it held is in the device's memory */
    uint64_t sent, gone; /* copies in, counted; slot n % SLOTS had copy n. gone: those known to be over */
    MoeCudaBlock *blocks; /* of answers */
    size_t n_blocks, cap_blocks, block; /* block: the next answer's, behind `filled` bytes */
    int64_t filled;
    bool asking;         /* since the last answers something was asked for */
    MoeCuEvent answered; /* recorded by moe_cuda_asked, when copy `marked` was the next */
    uint64_t marked;
} MoeCudaTransfer;

typedef struct MoeCudaNccl MoeCudaNccl;

typedef struct {
    MoeDevice base; /* first */
    const MoeCudaDriver *cu;
    const MoePlan *plan;
    int ordinal;
    char name[96];
    MoeCuDevice device;
    MoeCuContext context;
    MoeCuStream stream;
    MoeCuEvent begin, end; /* of a step that is timed */
    bool timed;            /* both are recorded */
    MoeCudaTransfer transfer;
    char *failed;          /* the first error; NULL: none */
    const char *program, *step; /* last launched */
    MoeCudaRegion regions[MOE_CUDA_MAX_REGIONS];
    int n_regions;
    int64_t granule; /* of the slab's mapping */
    unsigned char *has; /* [granules of the slab] */
    int64_t n_granules;
    MoeCudaChunk *chunks;
    size_t n_chunks, cap_chunks;
    bool grew; /* limits of elastic values are to be worked out again */
    MoeCudaModule *modules;
    size_t n_modules;
    MoeCuFunction runtime[MOE_RT_N_KERNELS];
    MoeCuPtr stop; /* int32 */
    MoeExchange exchange; /* asked for */
    bool met;             /* links were opened, or not */
    MoeCudaNccl *nccl;    /* cuda/nccl.h; NULL: no such links */
    bool looked;   /* rows were looked at since the program was settled */
    bool guarded;  /* a guard may have stopped what was launched since */
    bool no_graphs;
    MoeCudaProgram *programs; /* like plan->programs */
    struct MoeCudaBlasLt *blaslt; /* NULL: not open */
    struct MoeCudaCudnn *cudnn;   /* the same */
    struct MoeCudaPeers *peers; /* cuda/peer.h; NULL: exchanges do not go so */
    MoeComm *comm;            /* with peers: the ranks without which this device may wait for ever */
    MoeCuAccess *access;      /* [n_access]: devices that reach the slab; NULL: this one alone */
    size_t n_access;
    bool keep_memory;         /* a rank that did not end may still touch it: it is the process's until its end */
} MoeDeviceCuda;

/* cuda/device.c: before any call; a result as a status, remembered unless it is that memory is short. */
MoeStatus moe_cuda_enter(MoeDeviceCuda *d);
MoeStatus moe_cuda_check(MoeDeviceCuda *d, MoeCuResult r, const char *what, ...) MOE_PRINTF(3, 4);
MoeStatus moe_cuda_wait(MoeDeviceCuda *d); /* for all that was launched */
MoeStatus moe_cuda_await(MoeDeviceCuda *d, MoeCuEvent e, const char *what);

/* cuda/memory.c */
MoeStatus moe_cuda_alloc(MoeDevice *d, int64_t bytes, const char *what, char **out);
MoeStatus moe_cuda_slab(MoeDevice *d, int64_t bytes, int64_t fixed, char **out);
void moe_cuda_release(MoeDevice *d, char *at, int64_t bytes);
MoeStatus moe_cuda_read(MoeDevice *d, const char *at, int64_t bytes);
MoeStatus moe_cuda_write(MoeDevice *d, const char *at, int64_t bytes);
MoeStatus moe_cuda_zero(MoeDevice *d, char *at, int64_t bytes);
void moe_cuda_forget(MoeDevice *d, char *at, int64_t bytes);
MoeCuPtr moe_cuda_address(const MoeDeviceCuda *d, const void *host);
/* Memory of the device alone, without a mirror. */
MoeStatus moe_cuda_table(MoeDeviceCuda *d, int64_t bytes, const char *what, MoeCuPtr *out);
/* Memory behind bytes [at, at + bytes) of the slab, and its slack. */
MoeStatus moe_cuda_map(MoeDeviceCuda *d, int64_t at, int64_t bytes);
/* The same for a host's address, wherever it is. */
MoeStatus moe_cuda_need(MoeDeviceCuda *d, const void *host, int64_t bytes);
/* The slab's memory, now and later, for the devices in d->access. */
MoeStatus moe_cuda_share_slab(MoeDeviceCuda *d);
/* Bytes from `at` on that have memory, less the slack. */
int64_t moe_cuda_mapped(const MoeDeviceCuda *d, int64_t at);
/* What an elastic value of so many rows needs: as many more as a kernel's tile may read beyond them (docs/GPU.md). */
int64_t moe_cuda_elastic_bytes(const MoePlanValue *v, int64_t rows);
/* Rows that `bytes` of memory are enough for. */
int64_t moe_cuda_elastic_rows(const MoePlanValue *v, int64_t bytes);

/* cuda/transfer.c. Close: nothing is under way. */
MoeStatus moe_cuda_transfer_open(MoeDeviceCuda *d);
void moe_cuda_transfer_close(MoeDeviceCuda *d);
/* The bytes at `from`, as they are now, behind what was started so far; does not wait for that, but for copies in long before. */
MoeStatus moe_cuda_send(MoeDeviceCuda *d, MoeCuPtr to, const char *from, int64_t bytes);
MoeStatus moe_cuda_ask(MoeDevice *d, const char *at, int64_t bytes, const void **out);
MoeStatus moe_cuda_asked(MoeDevice *d);
MoeStatus moe_cuda_answers(MoeDevice *d);

/* cuda/bind.c */
MoeStatus moe_cuda_bind(MoeDevice *d, MoeExec *x);
void moe_cuda_unbind(MoeDeviceCuda *d);
/* Whether the rows of elastic value v of program g are known before step i, the first that has it. */
bool moe_cuda_rows_known(const MoePlanProgram *g, int v, size_t i);

/* cuda/run.c */
/* A kernel of the runtime (base/cuda_abi.h) on a stream, over n elements. */
MoeStatus moe_cuda_runtime(MoeDeviceCuda *d, MoeRtKernel k, MoeCuStream stream, int64_t n,
                           const uint64_t *bufs, size_t n_bufs);
/* A kernel of the runtime (base/cuda_abi.h) on a stream, over n elements, unless the word at `stop` is set. */
MoeStatus moe_cuda_runtime_under(MoeDeviceCuda *d, MoeRtKernel k, MoeCuPtr stop, MoeCuStream stream,
                                 int64_t n, const uint64_t *bufs, size_t n_bufs);
/* The guards of elastic values that step i begins. The device's limits are those of now: look_at does it itself, at the price of
 * a wait. */
MoeStatus moe_cuda_look_before(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c, size_t i);
MoeStatus moe_cuda_limits(MoeDeviceCuda *d, const MoeExecProgram *g, MoeCudaProgram *c);
MoeStatus moe_cuda_run(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i);
/* Its kernel, whatever was chosen to run it. */
MoeStatus moe_cuda_launch_step(MoeDeviceCuda *d, const MoeExecProgram *g, const MoeCudaProgram *c,
                               size_t i);
MoeStatus moe_cuda_fold(MoeDevice *d, MoeExec *x, MoeExecProgram *g, int m);
MoeStatus moe_cuda_clear_sums(MoeDevice *d, MoeExec *x, MoeExecProgram *g);
MoeStatus moe_cuda_add_sums(MoeDevice *d, MoeExec *x, MoeExecProgram *g);
MoeStatus moe_cuda_stepped(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i);
MoeStatus moe_cuda_timed(MoeDevice *d, double *out_seconds);
MoeStatus moe_cuda_settle(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t *out_again);
MoeStatus moe_cuda_guard(MoeDevice *d, MoeExec *x, MoeExecProgram *g);

/* cuda/blaslt.c: step i by the library, where c->dense says so. Close: nothing is under way. */
MoeStatus moe_cuda_blaslt_run(MoeDeviceCuda *d, const MoeCudaProgram *c, const MoePlanStep *s,
                              size_t i);
bool moe_cuda_blaslt_has(const MoeCudaProgram *c, size_t i);
void moe_cuda_blaslt_close(MoeDeviceCuda *d);
int64_t moe_cuda_blaslt_bytes(const MoeDeviceCuda *d); /* that it takes of the device's memory */
/* cuda/cudnn.c: step i by cuDNN, where c->attn says so, or as a part of one before it. Close: nothing is under way. */
bool moe_cuda_cudnn_has(const MoeCudaProgram *c, size_t i);
MoeStatus moe_cuda_cudnn_run(MoeDeviceCuda *d, const MoeCudaProgram *c, size_t i);
void moe_cuda_cudnn_close(MoeDeviceCuda *d);
int64_t moe_cuda_cudnn_bytes(const MoeDeviceCuda *d); /* that it takes of the device's memory */
/* cuda/cudnn_choose.c: behind moe_cuda_decide. Collective. */
MoeStatus moe_cuda_cudnn_decide(MoeDeviceCuda *d, MoeExec *x);
/* cuda/blaslt_choose.c */
MoeStatus moe_cuda_decide(MoeDevice *d, MoeExec *x);

/* cuda/graph.c */
MoeStatus moe_cuda_replay(MoeDevice *d, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                          MoePlanPhase hi, bool counting, bool *out_done);
/* Graphs that were captured hold what ran then: they are captured again. */
void moe_cuda_forget_graphs(MoeDeviceCuda *d, MoeCudaProgram *c);

static inline MoeCudaProgram *moe_cuda_program(MoeDeviceCuda *d, const MoeExec *x,
                                               const MoeExecProgram *g) {
    return &d->programs[g - x->programs];
}

#endif
