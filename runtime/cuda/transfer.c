/* Transfers that the host does not wait for: what goes in leaves from a ring of pinned memory, what comes out lands in pinned memory,
 * and is waited for once for all of it. Where the host has no pinned memory to give, copies go from and to ordinary memory, and the
 * driver waits. See cuda/device.h. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "runtime/cuda/nccl.h"

#define SLOT_BYTES  ((int64_t)512 << 10)
#define BLOCK_BYTES ((int64_t)256 << 10) /* of answers, at least */
#define ALIGN       64

/* ---- opening, closing ---- */

MoeStatus moe_cuda_transfer_open(MoeDeviceCuda *d) {
    MoeCudaTransfer *t = &d->transfer;
    void *p = NULL;
    if (d->cu->host_alloc(&p, (size_t)(MOE_CUDA_SLOTS * SLOT_BYTES), MOE_CU_HOST_PORTABLE) ==
        MOE_CU_SUCCESS)
        t->ring = p;
    for (int i = 0; i < MOE_CUDA_SLOTS && t->ring; i++)
        MOE_TRY(moe_cuda_check(d, d->cu->event_create(&t->left[i], MOE_CU_EVENT_DISABLE_TIMING),
                               "cuEventCreate"));
    return moe_cuda_check(d, d->cu->event_create(&t->answered, MOE_CU_EVENT_DISABLE_TIMING),
                          "cuEventCreate");
}

void moe_cuda_transfer_close(MoeDeviceCuda *d) {
    MoeCudaTransfer *t = &d->transfer;
    for (int i = 0; i < MOE_CUDA_SLOTS; i++)
        if (t->left[i])
            (void)d->cu->event_destroy(t->left[i]);
    if (t->answered)
        (void)d->cu->event_destroy(t->answered);
    if (t->ring)
        (void)d->cu->host_free(t->ring);
    for (size_t i = 0; i < t->n_blocks; i++) {
        if (t->blocks[i].pinned)
            (void)d->cu->host_free(t->blocks[i].at);
        else
            free(t->blocks[i].at);
    }
    free(t->blocks);
}

/* ---- in ---- */

/* The next slot of the ring, once what it had before has left. */
static MoeStatus take_slot(MoeDeviceCuda *d, char **out) {
    MoeCudaTransfer *t = &d->transfer;
    int i = (int)(t->sent % MOE_CUDA_SLOTS);
    if (t->sent >= t->gone + MOE_CUDA_SLOTS) {
        MOE_TRY(moe_cuda_await(d, t->left[i], "copies in"));
        t->gone = t->sent + 1 - MOE_CUDA_SLOTS;
    }
    *out = t->ring + i * SLOT_BYTES;
    return NULL;
}

static MoeStatus copy_in(MoeDeviceCuda *d, MoeCuPtr to, const void *from, int64_t bytes) {
    return moe_cuda_check(d, d->cu->copy_in(to, from, (size_t)bytes, d->stream),
                          "copying %lld bytes in, behind step %s", (long long)bytes,
                          d->step ? d->step : "none");
}

MoeStatus moe_cuda_send(MoeDeviceCuda *d, MoeCuPtr to, const char *from, int64_t bytes) {
    MoeCudaTransfer *t = &d->transfer;
    if (!t->ring) {
        MOE_TRY(copy_in(d, to, from, bytes));
        return moe_cuda_wait(d);
    }
    for (int64_t at = 0, n; at < bytes; at += n) {
        char *slot;
        n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
        MOE_TRY(take_slot(d, &slot));
        memcpy(slot, from + at, (size_t)n);
        MOE_TRY(copy_in(d, to + (MoeCuPtr)at, slot, n));
        MOE_TRY(moe_cuda_check(d, d->cu->event_record(t->left[t->sent % MOE_CUDA_SLOTS], d->stream),
                               "cuEventRecord"));
        t->sent++;
    }
    return NULL;
}

/* ---- out ---- */

static MoeStatus add_block(MoeDeviceCuda *d, int64_t bytes) {
    MoeCudaTransfer *t = &d->transfer;
    MoeCudaBlock b = {.bytes = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES};
    void *p = NULL;
    bool room = MOE_ROOM(t->blocks, t->n_blocks, t->cap_blocks);
    b.pinned = d->cu->host_alloc(&p, (size_t)b.bytes, MOE_CU_HOST_PORTABLE) == MOE_CU_SUCCESS;
    b.at = b.pinned ? p : malloc((size_t)b.bytes);
    if (room && b.at) {
        t->blocks[t->n_blocks++] = b;
        return NULL;
    }
    if (b.pinned)
        (void)d->cu->host_free(b.at);
    else
        free(b.at);
    return moe_error(MOE_E_NOMEM, "no memory for %lld bytes from the device", (long long)bytes);
}

/* Room for an answer, in the first block from the current one on that has as much. */
static MoeStatus make_room(MoeDeviceCuda *d, int64_t bytes, char **out) {
    MoeCudaTransfer *t = &d->transfer;
    while (t->block < t->n_blocks && t->blocks[t->block].bytes - t->filled < bytes) {
        t->block++;
        t->filled = 0;
    }
    if (t->block == t->n_blocks)
        MOE_TRY(add_block(d, bytes));
    *out = t->blocks[t->block].at + t->filled;
    t->filled += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return NULL;
}

MoeStatus moe_cuda_ask(MoeDevice *base, const char *at, int64_t bytes, const void **out) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    char *to;
    MOE_TRY(moe_cuda_enter(d));
    if (!d->transfer.asking)
        d->transfer.block = 0, d->transfer.filled = 0;
    d->transfer.asking = true;
    MOE_TRY(make_room(d, bytes, &to));
    if (d->peers && !d->transfer.blocks[d->transfer.block].pinned)
        MOE_TRY(moe_cuda_wait(d)); /* such a copy waits by itself, and hears of no failure */
    *out = to;
    return moe_cuda_check(d, d->cu->copy_out(to, moe_cuda_address(d, at), (size_t)bytes, d->stream),
                          "copying %lld bytes out, behind step %s", (long long)bytes,
                          d->step ? d->step : "none");
}

MoeStatus moe_cuda_asked(MoeDevice *base) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    d->transfer.marked = d->transfer.sent;
    return moe_cuda_check(d, d->cu->event_record(d->transfer.answered, d->stream), "cuEventRecord");
}

MoeStatus moe_cuda_answers(MoeDevice *base) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    d->transfer.asking = false;
    MOE_TRY(moe_cuda_await(d, d->transfer.answered, "results"));
    if (d->transfer.marked > d->transfer.gone)
        d->transfer.gone = d->transfer.marked;
    return NULL;
}
