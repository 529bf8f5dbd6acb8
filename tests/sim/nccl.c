/* nccl.h: the interface. */
#include "tests/sim/nccl.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct { /* as of NCCL 2.18; what came later is behind */
    size_t size;
    unsigned magic, version;
    int blocking, cluster_size, min_blocks, max_blocks;
    const char *net;
    int split_share;
} Config;

CUresult cuCtxGetCurrent(CUcontext *out);
CUresult cuCtxGetDevice(CUdevice *out);
CUresult cuDeviceGetUuid_v2(char *out, CUdevice d);

static _Thread_local int depth; /* of groups */
static _Thread_local MoeSimGroup *open_group;
static _Atomic long n_groups;

/* ---- errors ---- */

ncclResult_t moe_sim_nccl_fail(ncclComm_t c, ncclResult_t r, const char *fmt, ...) {
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!getenv("MOE_SIM_QUIET"))
        fprintf(stderr, "simulated NCCL: %s\n", text);
    if (c) {
        memcpy(c->last, text, sizeof text);
        c->state = r;
    }
    return r;
}

long moe_sim_nccl_fault(const char *name) {
    const char *s = getenv("MOE_SIM_NCCL_FAULT");
    size_t n = strlen(name);
    if (!s || strncmp(s, name, n) != 0)
        return -1;
    return s[n] == ':' ? atol(s + n + 1) : s[n] ? -1 : 0;
}

MOE_SIM_EXPORT const char *ncclGetErrorString(ncclResult_t r) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return r >= ncclSuccess && r <= ncclInProgress ? texts[r] : "unknown result code";
}

MOE_SIM_EXPORT const char *ncclGetLastError(ncclComm_t c) {
    return c ? c->last : "";
}

MOE_SIM_EXPORT ncclResult_t ncclGetVersion(int *out) {
    const char *s = getenv("MOE_SIM_NCCL_VERSION");
    *out = s && *s ? atoi(s) : 22809;
    return ncclSuccess;
}

/* ---- communicators ---- */

MOE_SIM_EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *out) {
    static _Atomic unsigned counter;
    struct timespec t;
    if (moe_sim_nccl_fault("id") >= 0)
        return moe_sim_nccl_fail(NULL, ncclSystemError, "no id (MOE_SIM_NCCL_FAULT)");
    clock_gettime(CLOCK_REALTIME, &t);
    memset(out, 0, sizeof *out);
    snprintf(out->internal, sizeof out->internal, "/moe-sim-nccl-%ld-%lx%lx-%u", (long)getpid(),
             (long)t.tv_sec, (long)t.tv_nsec, counter++);
    return ncclSuccess;
}

static bool usual(const Config *o) {
    return o && o->size >= sizeof *o && o->magic == 0xcafebeefu && o->version >= 21800 &&
           o->blocking == 0;
}

MOE_SIM_EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n, ncclUniqueId id,
                                                   int rank, const Config *config) {
    CUcontext context = NULL;
    CUdevice device = 0;
    char gpu[16];
    *out = NULL;
    if (!usual(config))
        return moe_sim_nccl_fail(NULL, ncclInvalidArgument,
                                 "a configuration that is not simulated: blocking = 0 alone is");
    if (n < 1 || n > MOE_SIM_NCCL_MOST || rank < 0 || rank >= n ||
        memchr(id.internal, 0, sizeof id.internal) == NULL || id.internal[0] != '/')
        return moe_sim_nccl_fail(NULL, ncclInvalidArgument, "rank %d of %d", rank, n);
    if (cuCtxGetCurrent(&context) || !context || cuCtxGetDevice(&device) ||
        cuDeviceGetUuid_v2(gpu, device))
        return moe_sim_nccl_fail(NULL, ncclUnhandledCudaError, "no device is current");
    ncclComm_t c = calloc(1, sizeof *c);
    if (!c)
        return ncclSystemError;
    *c = (struct ncclComm){.rank = rank, .n = n, .context = context, .state = ncclInProgress};
    snprintf(c->name, sizeof c->name, "%s", id.internal);
    *out = c;
    if (moe_sim_nccl_fault("init") == rank)
        return moe_sim_nccl_fail(c, ncclInternalError, "rank %d cannot join (MOE_SIM_NCCL_FAULT)",
                                 rank);
    if (moe_sim_nccl_fault("never") == rank)
        return ncclInProgress;
    if (!moe_sim_nccl_enter(c, gpu))
        return moe_sim_nccl_fail(c, ncclSystemError, "no shared memory %s", c->name);
    return ncclInProgress;
}

/* All are there: two of them on one GPU are not taken. */
static void begin(ncclComm_t c) {
    c->joined = true;
    c->state = ncclSuccess;
    for (int r = 0; r < c->n; r++)
        for (int q = 0; q < r; q++)
            if (!memcmp(c->room->seats[q].gpu, c->room->seats[r].gpu, 16))
                moe_sim_nccl_fail(c, ncclInvalidUsage,
                                  "Duplicate GPU detected: rank %d and rank %d are on one", q, r);
}

static void issue(ncclComm_t c) {
    MoeSimGroup *g = c->waiting;
    c->waiting = NULL;
    c->state = ncclSuccess;
    if (!g)
        return;
    c->under_way++;
    if (moe_sim_nccl_fault("group") == ++n_groups)
        moe_sim_nccl_fail(c, ncclInternalError, "group %ld fails (MOE_SIM_NCCL_FAULT)",
                          (long)n_groups);
    if (moe_sim_stream_poll(g->stream, moe_sim_nccl_move, g)) {
        c->under_way--;
        moe_sim_nccl_fail(c, ncclUnhandledCudaError, "the stream takes no more");
        return;
    }
    moe_sim_nccl_drive(g);
}

/* Where a communicator that does not block gets further. */
static void go_on(ncclComm_t c) {
    if (c->state != ncclInProgress)
        return;
    if (!c->joined) {
        if (c->room && moe_sim_nccl_complete(c))
            begin(c);
    } else if (c->waits > 0) {
        c->waits--;
    } else if (c->waiting || c->under_way == 0) {
        issue(c);
    }
}

MOE_SIM_EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *out) {
    go_on(c);
    *out = c->state;
    return ncclSuccess;
}

static ncclResult_t usable(ncclComm_t c, const char *call) {
    if (!c || c->aborted || !c->joined)
        return moe_sim_nccl_fail(NULL, ncclInvalidArgument, "%s with no communicator", call);
    if (c->state == ncclInProgress)
        return moe_sim_nccl_fail(c, ncclInvalidUsage, "%s while the last call is in progress",
                                 call);
    return c->state;
}

/* Flushes: in progress until no group is under way. */
MOE_SIM_EXPORT ncclResult_t ncclCommFinalize(ncclComm_t c) {
    ncclResult_t r = usable(c, "ncclCommFinalize");
    if (r)
        return r;
    c->waits = 1;
    return c->state = ncclInProgress;
}

/* The struct stays where a group may still look at it. */
static void leave(ncclComm_t c) {
    if (c->under_way == 0) {
        moe_sim_nccl_leave(c);
        free(c);
    }
}

MOE_SIM_EXPORT ncclResult_t ncclCommDestroy(ncclComm_t c) {
    if (!c || c->state == ncclInProgress || c->under_way)
        return moe_sim_nccl_fail(c, ncclInvalidUsage, "ncclCommDestroy of a communicator at work");
    leave(c);
    return ncclSuccess;
}

MOE_SIM_EXPORT ncclResult_t ncclCommAbort(ncclComm_t c) {
    c->aborted = true;
    leave(c);
    return ncclSuccess;
}

/* ---- groups ---- */

MOE_SIM_EXPORT ncclResult_t ncclGroupStart(void) {
    depth++;
    return ncclSuccess;
}

static ncclResult_t add(ncclComm_t c, CUstream stream, MoeSimMessage m) {
    MoeSimGroup *g = open_group;
    if (g && (g->comm != c || g->stream != stream))
        return moe_sim_nccl_fail(c, ncclInvalidUsage,
                                 "a group of several communicators or streams is not simulated");
    if (!g && !(g = open_group = calloc(1, sizeof *g)))
        return ncclSystemError;
    g->comm = c;
    g->stream = stream;
    if (g->n == g->cap) {
        g->cap = g->cap ? 2 * g->cap : 16;
        g->messages = realloc(g->messages, g->cap * sizeof *g->messages);
        if (!g->messages)
            abort();
    }
    g->messages[g->n++] = m;
    return ncclSuccess;
}

static ncclResult_t message(bool send, void *at, size_t n, int type, int peer, ncclComm_t c,
                            CUstream stream) {
    const char *call = send ? "ncclSend" : "ncclRecv";
    ncclResult_t r = usable(c, call);
    if (r)
        return r;
    if (type != 0 || peer < 0 || peer >= c->n || peer == c->rank || !depth)
        return moe_sim_nccl_fail(c, ncclInvalidArgument,
                                 "%s of type %d to rank %d of %d%s: not simulated", call, type,
                                 peer, c->n, depth ? "" : ", outside of a group");
    return add(c, stream, (MoeSimMessage){send, peer, at, n, 0});
}

MOE_SIM_EXPORT ncclResult_t ncclSend(const void *at, size_t n, int type, int peer, ncclComm_t c,
                                     CUstream stream) {
    return message(true, (void *)(uintptr_t)at, n, type, peer, c, stream);
}

MOE_SIM_EXPORT ncclResult_t ncclRecv(void *at, size_t n, int type, int peer, ncclComm_t c,
                                     CUstream stream) {
    return message(false, at, n, type, peer, c, stream);
}

MOE_SIM_EXPORT ncclResult_t ncclGroupEnd(void) {
    MoeSimGroup *g = open_group;
    if (depth < 1)
        return moe_sim_nccl_fail(NULL, ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--depth || !g)
        return ncclSuccess;
    open_group = NULL;
    g->comm->waiting = g;
    g->comm->waits = 1;
    return g->comm->state = ncclInProgress;
}
