/* What all communicators share: the calls, and the host's small agreements made of exchanges. See comm.h. */
#include "runtime/comm.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

static void check_blocks(const MoeComm *c, const MoeBlock *blocks, size_t n, const char *side,
                         const char *what) {
    for (size_t i = 0; i < n; i++) {
        const MoeBlock *b = &blocks[i];
        MOE_ASSERT(b->peer >= 0 && b->peer < c->size,
                   "exchange \"%s\", %s %zu: rank %d of a communicator of %d", what, side, i,
                   b->peer, c->size);
        MOE_ASSERT(b->n >= 0 && b->row_bytes >= 0 &&
                       (!b->n || b->row_bytes <= INT64_MAX / 4 / b->n),
                   "exchange \"%s\", %s %zu: %lld rows of %lld bytes", what, side, i,
                   (long long)b->n, (long long)b->row_bytes);
    }
}

MoeStatus moe_comm_start(MoeComm *c, const MoeBlock *sends, size_t n_sends, const MoeBlock *recvs,
                         size_t n_recvs, const char *what, MoeRequest **out) {
    check_blocks(c, sends, n_sends, "send", what);
    check_blocks(c, recvs, n_recvs, "receive", what);
    *out = NULL;
    return c->ops->start(c, sends, n_sends, recvs, n_recvs, what, out);
}

MoeStatus moe_comm_wait(MoeComm *c, MoeRequest *r) {
    return c->ops->wait(c, r);
}

MoeStatus moe_comm_exchange(MoeComm *c, const MoeBlock *sends, size_t n_sends,
                            const MoeBlock *recvs, size_t n_recvs, const char *what) {
    MoeRequest *r;
    MOE_TRY(moe_comm_start(c, sends, n_sends, recvs, n_recvs, what, &r));
    return moe_comm_wait(c, r);
}

void moe_comm_poll(MoeComm *c) {
    c->ops->poll(c);
}

MoeStatus moe_comm_status(MoeComm *c) {
    return c->ops->status(c);
}

void moe_comm_phase(MoeComm *c, int64_t step, const char *phase) {
    c->ops->phase(c, step, phase);
}

void moe_comm_abort(MoeComm *c, const char *why) {
    c->ops->abort(c, why);
}

void moe_comm_destroy(MoeComm *c) {
    if (c)
        c->ops->destroy(c);
}

static MoeBlock plain(int peer, void *base, int64_t n_bytes) {
    return (MoeBlock){.peer = peer, .base = base, .row_bytes = 1, .n = n_bytes};
}

/* mine to all other ranks, theirs into out. */
static MoeStatus gather(MoeComm *c, const void *mine, int64_t n_bytes, char *out,
                        const char *what) {
    size_t n = (size_t)c->size - 1, at = 0;
    MoeBlock *blocks = malloc(2 * n * sizeof *blocks);
    if (!blocks)
        return moe_error(MOE_E_NOMEM, "out of memory for an exchange with %d ranks", c->size);
    for (int k = 1; k < c->size; k++, at++) {
        int to = (c->rank + k) % c->size, from = (c->rank + c->size - k) % c->size;
        blocks[at] = plain(to, (void *)(uintptr_t)mine, n_bytes);
        blocks[n + at] = plain(from, out + from * n_bytes, n_bytes);
    }
    MoeStatus st = moe_comm_exchange(c, blocks, n, blocks + n, n, what);
    free(blocks);
    return st;
}

MoeStatus moe_comm_all_gather(MoeComm *c, const void *mine, int64_t n_bytes, void *out,
                              const char *what) {
    char *own = (char *)out + c->rank * n_bytes;
    if (own != mine && n_bytes)
        memcpy(own, mine, (size_t)n_bytes);
    if (c->size == 1) /* an exchange all the same: it fails after a failure */
        return moe_comm_exchange(c, NULL, 0, NULL, 0, what);
    return gather(c, own, n_bytes, out, what);
}

MoeStatus moe_comm_barrier(MoeComm *c, const char *what) {
    char mine = 0;
    char *all = malloc((size_t)c->size);
    if (!all)
        return moe_error(MOE_E_NOMEM, "out of memory for a barrier of %d ranks", c->size);
    MoeStatus st = moe_comm_all_gather(c, &mine, 1, all, what);
    free(all);
    return st;
}

typedef struct {
    int64_t code, n_message; /* code 0: no failure */
    int64_t told;            /* it is another's, agreed on before */
} Verdict;

/* The failing rank's message to all others; `text` has room for it. */
static MoeStatus spread(MoeComm *c, int from, char *text, int64_t n, const char *what) {
    if (c->rank != from) {
        MoeBlock recv = plain(from, text, n);
        return moe_comm_exchange(c, NULL, 0, &recv, 1, what);
    }
    MoeBlock *sends = malloc((size_t)c->size * sizeof *sends);
    if (!sends)
        return moe_error(MOE_E_NOMEM, "out of memory for a message to %d ranks", c->size);
    size_t n_sends = 0;
    for (int q = 0; q < c->size; q++)
        if (q != from)
            sends[n_sends++] = plain(q, text, n);
    MoeStatus st = moe_comm_exchange(c, sends, n_sends, NULL, 0, what);
    free(sends);
    return st;
}

/* What all ranks end with, given their verdicts: the error of the lowest rank whose own it is. */
static MoeStatus settle(MoeComm *c, const Verdict *all, const char *message, const char *what) {
    int failing = -1;
    for (int r = c->size - 1; r >= 0; r--)
        if (all[r].code && (failing < 0 || !all[r].told || all[failing].told))
            failing = r;
    if (failing < 0)
        return NULL;
    int64_t n = all[failing].n_message;
    char *text = calloc((size_t)n + 1, 1);
    if (!text)
        return moe_error(MOE_E_NOMEM, "out of memory for the failure of rank %d", failing);
    if (c->rank == failing)
        memcpy(text, message, (size_t)n);
    MoeStatus st = spread(c, failing, text, n, what);
    if (!st && c->rank != failing) {
        st = moe_error((MoeCode)all[failing].code, "rank %d: %s", failing, text);
        moe_status_set_told(st, true);
    }
    free(text);
    return st;
}

MoeStatus moe_comm_agree(MoeComm *c, MoeStatus mine, const char *what) {
    Verdict own = {0};
    const char *message = moe_status_message(mine);
    if (mine)
        own = (Verdict){moe_status_code(mine), (int64_t)strlen(message),
                        moe_status_is_told(mine)};
    Verdict *all = malloc((size_t)c->size * sizeof *all);
    MoeStatus st = all ? moe_comm_all_gather(c, &own, sizeof own, all, what)
                       : moe_error(MOE_E_NOMEM, "out of memory for %d verdicts", c->size);
    bool told = !st;
    if (!st)
        st = settle(c, all, message, what);
    free(all);
    if (mine && (!told || !st)) { /* this rank is the one, or the others cannot be told */
        moe_status_free(st);
        return mine;
    }
    moe_status_free(mine);
    return st;
}
