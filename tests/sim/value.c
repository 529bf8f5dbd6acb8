/* driver.h: streams that wait for values in memory and write them, and memory that several devices reach. */
#include <stdlib.h>
#include <string.h>
#include "tests/sim/stream_internal.h"

/* ---- stream memory operations ---- */

enum { WAIT_32 = 1, WRITE_32 = 2, GEQ = 0, EQ = 1, AND = 2, NOR = 3, MOST_VALUES = 256 };

typedef union { /* CUstreamBatchMemOpParams, as far as it is read */
    int operation;
    struct {
        int operation;
        CUdeviceptr at;
        uint64_t value;
        unsigned flags;
        CUdeviceptr alias;
    } value;
    uint64_t pad[6];
} BatchParams;

static bool satisfied(uint32_t now, const MoeSimValue *v) {
    switch (v->flags) {
    case GEQ:
        return (int32_t)(now - v->value) >= 0;
    case EQ:
        return now == v->value;
    case AND:
        return (now & v->value) != 0;
    case NOR:
        return ~(now | v->value) != 0;
    }
    return true;
}

/* A wait, or a write, on its word. */
static bool take(const MoeSimValue *v) {
    uint32_t *at = (uint32_t *)(uintptr_t)v->at;
    bool over = true;
    moe_sim_memory_range(at, sizeof *at, true);
    if (v->wait)
        over = satisfied(*at, v);
    else
        *at = v->value;
    moe_sim_memory_range(at, sizeof *at, false);
    return over;
}

bool moe_sim_values_go_on(MoeSimOp *op, bool *out_moved) {
    while (op->n_done < op->n_values && take(&op->values[op->n_done])) {
        op->n_done++;
        *out_moved = true;
    }
    return op->n_done == op->n_values;
}

static CUresult read_one(CUcontext c, const BatchParams *p, MoeSimValue *out) {
    bool wait = p->operation == WAIT_32;
    *out = (MoeSimValue){wait, p->value.at, (uint32_t)p->value.value, p->value.flags};
    if ((!wait && p->operation != WRITE_32) || p->value.flags > (wait ? NOR : 1) || out->at % 4)
        return moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                "cuStreamBatchMemOp: operation %d on %#llx, flags %u", p->operation,
                                (unsigned long long)out->at, p->value.flags);
    if (!moe_sim_memory_reached(c, out->at, sizeof(uint32_t)))
        return moe_sim_complain(CUDA_ERROR_INVALID_VALUE,
                                "cuStreamBatchMemOp: %#llx is no memory that this device reaches",
                                (unsigned long long)out->at);
    return CUDA_SUCCESS;
}

MOE_SIM_EXPORT CUresult cuStreamBatchMemOp_v2(CUstream s, unsigned n, const BatchParams *p,
                                              unsigned flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuStreamBatchMemOp", &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r && getenv("MOE_SIM_NO_STREAM_VALUES"))
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r && (n == 0 || n > MOST_VALUES || flags))
        r = CUDA_ERROR_INVALID_VALUE;
    MoeSimOp op = {.kind = OP_VALUES, .context = c, .n_values = n};
    if (!r && !(op.values = calloc(n, sizeof *op.values)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < n && !r; i++)
        r = read_one(c, &p[i], &op.values[i]);
    if (r)
        free(op.values);
    return moe_sim_leave(r ? r : moe_sim_issue(s, &op));
}

CUresult moe_sim_stream_poll(CUstream s, bool (*poll)(void *ctx), void *ctx) {
    CUcontext c;
    CUresult r = moe_sim_enter("a simulated library's call", &c);
    if (!r)
        r = moe_sim_check_stream(s);
    if (!r)
        r = moe_sim_issue(s, &(MoeSimOp){.kind = OP_POLL, .context = c, .poll = poll, .ctx = ctx});
    return moe_sim_leave(r);
}

/* ---- several devices ---- */

static bool can_access(CUcontext from, CUcontext to) {
    return from && to && from != to && !getenv("MOE_SIM_NO_PEER");
}

MOE_SIM_EXPORT CUresult cuDeviceCanAccessPeer(int *out, CUdevice from, CUdevice to) {
    CUresult r = moe_sim_enter_bare("cuDeviceCanAccessPeer");
    CUcontext a = moe_sim_context_of(from), b = moe_sim_context_of(to);
    *out = can_access(a, b);
    return moe_sim_leave(r || (a && b) ? r : CUDA_ERROR_INVALID_DEVICE);
}

MOE_SIM_EXPORT CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    CUcontext c;
    CUresult r = moe_sim_enter("cuCtxEnablePeerAccess", &c);
    if (!r)
        r = flags || !peer || peer == c    ? CUDA_ERROR_INVALID_VALUE
            : !can_access(c, peer)         ? CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
            : c->peers >> peer->device & 1 ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
                                           : CUDA_SUCCESS;
    if (!r)
        c->peers |= 1u << peer->device;
    return moe_sim_leave(r);
}
