/* Requests of exchanges between processes: their memory, and the messages that they begin with. See comm_wire.h. */
#include "runtime/comm_wire_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static MoeRequest *take_request(Wire *c) {
    MoeRequest *r = c->unused;
    if (r)
        c->unused = r->next;
    else
        r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->next = NULL;
    r->n_blocks = r->n_arrivals = r->n_ops = r->n_staging = 0;
    r->open = 0;
    return r;
}

void moe_wire_end(Wire *c, MoeRequest *r) {
    for (MoeRequest **p = &c->first; *p; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            if (!*p)
                c->last = p;
            break;
        }
    r->next = c->unused;
    c->unused = r;
}

static bool reserve(void **p, size_t *cap, size_t n, size_t size) {
    if (*cap >= n)
        return true;
    void *bigger = realloc(*p, n * size);
    if (!bigger)
        return false;
    *p = bigger;
    *cap = n;
    return true;
}

static bool reserve_staging(MoeRequest *r, size_t n) {
    if (r->cap_staging >= n)
        return true;
    free(r->staging); /* nothing is kept in it */
    r->staging = malloc(n);
    r->cap_staging = r->staging ? n : 0;
    return r->staging != NULL;
}

static char *stage(MoeRequest *r, size_t n) {
    char *p = r->staging + r->n_staging;
    r->n_staging += (n + 63) / 64 * 64;
    return p;
}

/* The rows for `peer` if they lie together, else NULL. */
static char *together(const MoeBlock *blocks, size_t n, int peer, int64_t bytes) {
    MoeStream s = moe_stream(blocks, n, peer);
    char *run = NULL;
    return moe_stream_next(&s, bytes, &run) == bytes ? run : NULL;
}

static void copy_from_rows(char *to, int64_t n, const MoeBlock *blocks, size_t n_blocks, int peer) {
    MoeStream s = moe_stream(blocks, n_blocks, peer);
    char *run;
    for (int64_t k; n > 0 && (k = moe_stream_next(&s, n, &run)) > 0; to += k, n -= k)
        memcpy(to, run, (size_t)k);
}

static size_t n_messages(int64_t bytes) {
    return bytes > WIRE_INLINE ? (size_t)((bytes + MOE_WIRE_MOST - 1) / MOE_WIRE_MOST) : 0;
}

/* Room for all that the request needs. */
static bool size_request(const Wire *c, MoeRequest *r, const MoeBlock *sends, size_t n_sends,
                         const MoeBlock *recvs, size_t n_recvs) {
    size_t n_ops = 0, n_arrivals = 0, staging = 0;
    for (int p = 0; p < c->base.size; p++) {
        if (p == c->base.rank)
            continue;
        int64_t out = moe_blocks_bytes(sends, n_sends, p), in = moe_blocks_bytes(recvs, n_recvs, p);
        n_ops += (out > 0) + n_messages(out) + n_messages(in);
        n_arrivals += in > 0;
        if (out > 0)
            staging += FRONT_ROOM + 64;
        if (out > WIRE_INLINE && !together(sends, n_sends, p, out))
            staging += (size_t)out + 64;
        if (in > WIRE_INLINE && !together(recvs, n_recvs, p, in))
            staging += (size_t)in + 64;
    }
    return reserve((void **)&r->blocks, &r->cap_blocks, n_recvs, sizeof *r->blocks) &&
           reserve((void **)&r->arrivals, &r->cap_arrivals, n_arrivals, sizeof *r->arrivals) &&
           reserve((void **)&r->ops, &r->cap_ops, n_ops, sizeof *r->ops) &&
           reserve_staging(r, staging);
}

/* Messages. */

static MoeWireOp *new_op(MoeRequest *r, int peer, bool send, MoeWireChannel channel, char *data,
                         int64_t bytes, size_t index) {
    MoeWireOp *op = &r->ops[r->n_ops++];
    *op = (MoeWireOp){.data = data,
                      .bytes = bytes,
                      .peer = peer,
                      .channel = channel,
                      .send = send,
                      .request = r,
                      .index = index};
    return op;
}

/* The bytes in messages that are not too long; how many. */
static int post_body(Wire *c, MoeRequest *r, int peer, bool send, char *data, int64_t bytes,
                     size_t index) {
    int n = 0;
    for (int64_t at = 0; at < bytes; at += MOE_WIRE_MOST, n++) {
        int64_t most = bytes - at < MOE_WIRE_MOST ? bytes - at : MOE_WIRE_MOST;
        moe_wire_post(c, new_op(r, peer, send, MOE_WIRE_BODY, data + at, most, index));
    }
    return n;
}

static void post_receives(Wire *c, MoeRequest *r) {
    for (int k = 1; k < c->base.size; k++) {
        int peer = (c->base.rank + c->base.size - k) % c->base.size;
        int64_t bytes = moe_blocks_bytes(r->blocks, r->n_blocks, peer);
        if (!bytes)
            continue;
        size_t index = r->n_arrivals++;
        Arrival *a = &r->arrivals[index];
        *a = (Arrival){.peer = peer, .bytes = bytes};
        r->open++;
        if (bytes <= WIRE_INLINE)
            continue;
        char *data = together(r->blocks, r->n_blocks, peer, bytes);
        if (!data)
            data = a->staged = stage(r, (size_t)bytes);
        a->open = post_body(c, r, peer, false, data, bytes, index);
    }
}

void moe_wire_fill_front(const Wire *c, Front *f, FrontKind kind, int64_t number, int64_t bytes,
                         const char *what) {
    memset(f, 0, sizeof *f);
    f->magic = FRONT_MAGIC;
    f->kind = kind;
    f->number = number;
    f->bytes = bytes;
    f->place = c->place;
    snprintf(f->what, sizeof f->what, "%s", what);
}

static void post_sends(Wire *c, MoeRequest *r, const MoeBlock *sends, size_t n_sends) {
    for (int k = 1; k < c->base.size; k++) { /* each rank begins with another peer */
        int peer = (c->base.rank + k) % c->base.size;
        int64_t bytes = moe_blocks_bytes(sends, n_sends, peer);
        if (!bytes)
            continue;
        bool few = bytes <= WIRE_INLINE;
        char *front = stage(r, FRONT_ROOM);
        moe_wire_fill_front(c, (Front *)(void *)front, FRONT_DATA, r->number, bytes, r->what);
        if (few)
            copy_from_rows(front + sizeof(Front), bytes, sends, n_sends, peer);
        r->open++;
        moe_wire_post(c, new_op(r, peer, true, MOE_WIRE_FRONT, front,
                                (int64_t)sizeof(Front) + (few ? bytes : 0), 0));
        if (few)
            continue;
        char *data = together(sends, n_sends, peer, bytes);
        if (!data) {
            data = stage(r, (size_t)bytes);
            copy_from_rows(data, bytes, sends, n_sends, peer);
        }
        r->open += post_body(c, r, peer, true, data, bytes, 0);
    }
}

MoeRequest *moe_wire_request(Wire *c, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                             size_t n_recvs, const char *what) {
    MoeRequest *r = take_request(c);
    if (r && !size_request(c, r, sends, n_sends, recvs, n_recvs)) {
        r->next = c->unused;
        c->unused = r;
        r = NULL;
    }
    if (!r)
        return NULL;
    snprintf(r->what, sizeof r->what, "%s", what);
    if (n_recvs)
        memcpy(r->blocks, recvs, n_recvs * sizeof *recvs);
    r->n_blocks = n_recvs;
    return r;
}

void moe_wire_begin(Wire *c, MoeRequest *r, const MoeBlock *sends, size_t n_sends) {
    r->number = c->next++;
    *c->last = r;
    c->last = &r->next;
    post_receives(c, r);
    post_sends(c, r, sends, n_sends);
}

void moe_wire_free_requests(MoeRequest *r) {
    while (r) {
        MoeRequest *next = r->next;
        free(r->blocks);
        free(r->arrivals);
        free(r->ops);
        free(r->staging);
        free(r);
        r = next;
    }
}
