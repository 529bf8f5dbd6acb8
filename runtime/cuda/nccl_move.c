/* Exchanges over NCCL: blocks become messages and copies, these become one group between two events. See cuda/nccl.h. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "runtime/cuda/nccl.h"

#define STAGE_ALIGN 256 /* of a message in the staging memory */

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
}

static MoeStatus push_message(MoeNcclMessages *l, MoeNcclMessage m) {
    if (!MOE_ROOM(l->items, l->n, l->cap))
        return no_memory();
    l->items[l->n++] = m;
    return NULL;
}

static MoeStatus push_copy(MoeNcclCopies *l, MoeNcclCopy c) {
    if (c.copy.n <= 0 || c.copy.row_bytes <= 0)
        return NULL;
    if (!MOE_ROOM(l->items, l->n, l->cap))
        return no_memory();
    l->items[l->n++] = c;
    return NULL;
}

/* ---- an op's blocks ---- */

/* What there is for each rank; one block of rows that lie together goes without staging. */
static void count(MoeDeviceCuda *d, const MoeBlock *blocks, size_t n, int ranks, int self) {
    MoeNcclPeer *peers = d->nccl->peers;
    memset(peers, 0, sizeof *peers * (size_t)ranks);
    for (size_t i = 0; i < n; i++) {
        MoeNcclPeer *p = &peers[blocks[i].peer];
        int64_t bytes = blocks[i].n * blocks[i].row_bytes;
        if (!bytes)
            continue;
        p->direct = p->blocks++ == 0 && !blocks[i].index && blocks[i].peer != self;
        p->at = p->direct ? moe_cuda_address(d, blocks[i].base) : 0;
        p->bytes += bytes;
    }
}

/* A message for each rank that has bytes; those that are staged get their place, that to oneself (`own`: where it lies) none. */
static MoeStatus make_messages(MoeCudaNccl *c, MoeNcclMessages *l, int ranks, int self,
                               int64_t *own) {
    for (int r = 0; r < ranks; r++) {
        MoeNcclPeer *p = &c->peers[r];
        if (!p->bytes)
            continue;
        if (r == self && *own >= 0) {
            p->at = (uint64_t)*own;
            continue;
        }
        if (!p->direct) {
            p->at = (uint64_t)c->staged;
            c->staged += (p->bytes + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
        }
        if (r == self)
            *own = (int64_t)p->at;
        else
            MOE_TRY(push_message(l, (MoeNcclMessage){r, !p->direct, p->at, p->bytes}));
    }
    return NULL;
}

static MoeStatus add_sends(MoeDeviceCuda *d, const MoeBlock *blocks, size_t n, int ranks, int self,
                           int64_t *own) {
    MoeCudaNccl *c = d->nccl;
    count(d, blocks, n, ranks, self);
    MOE_TRY(make_messages(c, &c->sends, ranks, self, own));
    for (size_t i = 0; i < n; i++) {
        const MoeBlock *b = &blocks[i];
        MoeNcclPeer *p = &c->peers[b->peer];
        if (!b->index)
            MOE_TRY(moe_cuda_need(d, b->base, b->n * b->row_bytes));
        if (p->direct)
            continue;
        MOE_TRY(
            push_copy(&c->before,
                      (MoeNcclCopy){.copy = {.to = p->at,
                                             .from = moe_cuda_address(d, b->base),
                                             .index = b->index ? moe_cuda_address(d, b->index) : 0,
                                             .row_bytes = b->row_bytes,
                                             .n = b->n},
                                    .to_stage = true}));
        p->at += (uint64_t)(b->n * b->row_bytes);
    }
    return NULL;
}

static MoeStatus add_receives(MoeDeviceCuda *d, const MoeBlock *blocks, size_t n, int ranks,
                              int self, int64_t *own) {
    MoeCudaNccl *c = d->nccl;
    count(d, blocks, n, ranks, self);
    MOE_TRY(make_messages(c, &c->recvs, ranks, self, own));
    for (size_t i = 0; i < n; i++) {
        const MoeBlock *b = &blocks[i];
        MoeNcclPeer *p = &c->peers[b->peer];
        MOE_ASSERT(!b->index, "rows that arrive by index, from rank %d", b->peer);
        MOE_TRY(moe_cuda_need(d, b->base, b->n * b->row_bytes));
        if (p->direct)
            continue;
        MOE_TRY(push_copy(&c->after, (MoeNcclCopy){.copy = {.to = moe_cuda_address(d, b->base),
                                                            .from = p->at,
                                                            .row_bytes = b->row_bytes,
                                                            .n = b->n},
                                                   .from_stage = true}));
        p->at += (uint64_t)(b->n * b->row_bytes);
    }
    return NULL;
}

static MoeStatus add_copies(MoeDeviceCuda *d, const MoeExecCopy *copies, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const MoeExecCopy *k = &copies[i];
        MOE_TRY(moe_cuda_need(d, k->to, k->n * k->row_bytes));
        MOE_TRY(
            push_copy(&d->nccl->before,
                      (MoeNcclCopy){.copy = {.to = moe_cuda_address(d, k->to),
                                             .from = moe_cuda_address(d, k->from),
                                             .index = k->index ? moe_cuda_address(d, k->index) : 0,
                                             .row_bytes = k->row_bytes,
                                             .n = k->n}}));
    }
    return NULL;
}

static int64_t bytes_for(const MoeBlock *blocks, size_t n, int peer) {
    int64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += blocks[i].peer == peer ? blocks[i].n * blocks[i].row_bytes : 0;
    return bytes;
}

MoeStatus moe_cuda_nccl_add(MoeDevice *base, MoeExec *x, const MoeDeviceBlocks *b) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    int64_t own = -1;
    MOE_TRY(moe_cuda_enter(d));
    MOE_ASSERT(bytes_for(b->sends, b->n_sends, x->rank) == bytes_for(b->recvs, b->n_recvs, x->rank),
               "rank %d sends itself other bytes than it receives", x->rank);
    MOE_TRY(add_sends(d, b->sends, b->n_sends, x->comm->size, x->rank, &own));
    MOE_TRY(add_receives(d, b->recvs, b->n_recvs, x->comm->size, x->rank, &own));
    return add_copies(d, b->copies, b->n_copies);
}

/* ---- starting ---- */

static MoeStatus find_flight(MoeDeviceCuda *d, int flight, MoeNcclFlight **out) {
    MoeCudaNccl *c = d->nccl;
    if (flight >= c->n_flights) {
        MoeNcclFlight *more = realloc(c->flights, sizeof *more * ((size_t)flight + 1));
        if (!more)
            return no_memory();
        memset(more + c->n_flights, 0, sizeof *more * (size_t)(flight + 1 - c->n_flights));
        c->flights = more;
        c->n_flights = flight + 1;
    }
    *out = &c->flights[flight];
    if ((*out)->done)
        return NULL;
    return moe_cuda_check(d, d->cu->event_create(&(*out)->done, MOE_CU_EVENT_DISABLE_TIMING),
                          "cuEventCreate");
}

/* Copies of a list as moe_rt_gather wants them; returns the pieces of all. */
static int64_t write_copies(const MoeCudaNccl *c, const MoeNcclCopies *l, MoeRtCopy *out) {
    int64_t pieces = 0;
    for (size_t i = 0; i < l->n; i++) {
        out[i] = l->items[i].copy;
        out[i].to += l->items[i].to_stage ? c->stage.at : 0;
        out[i].from += l->items[i].from_stage ? c->stage.at : 0;
        out[i].first = pieces;
        pieces += moe_rt_pieces(&out[i]);
    }
    return pieces;
}

typedef struct {
    int64_t before, after; /* pieces */
} Pieces;

/* The flight's table: copies before the messages, then those behind. */
static MoeStatus send_table(MoeDeviceCuda *d, MoeNcclFlight *f, Pieces *out) {
    MoeCudaNccl *c = d->nccl;
    size_t n = c->before.n + c->after.n;
    *out = (Pieces){0};
    if (!n)
        return NULL;
    if (n > c->cap_table) {
        MoeRtCopy *more = realloc(c->table, 2 * n * sizeof *more);
        if (!more)
            return no_memory();
        c->table = more;
        c->cap_table = 2 * n;
    }
    out->before = write_copies(c, &c->before, c->table);
    out->after = write_copies(c, &c->after, c->table + c->before.n);
    MOE_TRY(moe_cuda_nccl_grow(d, &f->table, (int64_t)(n * sizeof *c->table),
                               "the tables of exchanges between ranks"));
    return moe_cuda_send(d, f->table.at, (const char *)c->table, (int64_t)(n * sizeof *c->table));
}

static MoeStatus gather(MoeDeviceCuda *d, MoeCuPtr table, size_t n, int64_t pieces) {
    uint64_t bufs[] = {table, n, (uint64_t)pieces};
    if (!n)
        return NULL;
    return moe_cuda_runtime(d, MOE_RT_ID_moe_rt_gather, d->nccl->stream, pieces * MOE_RT_THREADS,
                            bufs, 3);
}

static uint64_t address_of(const MoeCudaNccl *c, const MoeNcclMessage *m) {
    return m->at + (m->staged ? c->stage.at : 0);
}

static MoeStatus messages(MoeDeviceCuda *d, const char *what) {
    MoeCudaNccl *c = d->nccl;
    int r = MOE_NCCL_SUCCESS;
    if (!c->sends.n && !c->recvs.n)
        return NULL;
    MOE_TRY(moe_cuda_nccl_check(d, c->nccl->group_start(), what));
    for (size_t i = 0; i < c->recvs.n && (r == MOE_NCCL_SUCCESS || r == MOE_NCCL_IN_PROGRESS); i++)
        r = c->nccl->recv((void *)(uintptr_t)address_of(c, &c->recvs.items[i]),
                          (size_t)c->recvs.items[i].bytes, MOE_NCCL_INT8, c->recvs.items[i].peer,
                          c->comm, c->stream);
    for (size_t i = 0; i < c->sends.n && (r == MOE_NCCL_SUCCESS || r == MOE_NCCL_IN_PROGRESS); i++)
        r = c->nccl->send((const void *)(uintptr_t)address_of(c, &c->sends.items[i]),
                          (size_t)c->sends.items[i].bytes, MOE_NCCL_INT8, c->sends.items[i].peer,
                          c->comm, c->stream);
    int ended = c->nccl->group_end();
    MOE_TRY(moe_cuda_nccl_check(d, r, what));
    MOE_TRY(moe_cuda_nccl_check(d, ended, what));
    return moe_cuda_nccl_ready(d, what);
}

static MoeStatus wait_for(MoeDeviceCuda *d, MoeCuStream waits, MoeCuEvent event) {
    return moe_cuda_check(d, d->cu->stream_wait(waits, event, 0), "cuStreamWaitEvent");
}

MoeStatus moe_cuda_nccl_start(MoeDevice *base, MoeExec *x, int flight, const char *what) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MoeCudaNccl *c = d->nccl;
    MoeNcclFlight *f = NULL;
    Pieces pieces;
    (void)x;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(find_flight(d, flight, &f));
    MOE_TRY(moe_cuda_nccl_grow(d, &c->stage, c->staged, "rows on their way to other ranks"));
    MOE_TRY(send_table(d, f, &pieces));
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(c->fork, d->stream), "cuEventRecord"));
    MOE_TRY(wait_for(d, c->stream, c->fork));
    MOE_TRY(gather(d, f->table.at, c->before.n, pieces.before));
    MOE_TRY(messages(d, what));
    MOE_TRY(gather(d, f->table.at + c->before.n * sizeof *c->table, c->after.n, pieces.after));
    MOE_TRY(moe_cuda_check(d, d->cu->event_record(f->done, c->stream), "cuEventRecord"));
    c->sends.n = c->recvs.n = 0;
    c->before.n = c->after.n = 0;
    c->staged = 0;
    return NULL;
}

MoeStatus moe_cuda_nccl_finish(MoeDevice *base, MoeExec *x, int flight) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    (void)x;
    MOE_TRY(moe_cuda_enter(d));
    MOE_ASSERT(flight < d->nccl->n_flights && d->nccl->flights[flight].done,
               "flight %d was not started", flight);
    return wait_for(d, d->stream, d->nccl->flights[flight].done);
}
