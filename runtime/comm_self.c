/* The communicator of one rank: what it sends to itself is copied when the exchange starts (senders leave their buffers
 * alone until wait, receivers look at theirs after it). See comm.h. */
#include <stdlib.h>

#include "runtime/comm_place.h"
#include "runtime/comm_stream.h"

typedef struct {
    MoeComm base;
    MoeCommPlace place;
    MoeStatus failure; /* what each call ends with; NULL: none */
} Self;

struct MoeRequest {
    char unused;
};

static MoeRequest ended; /* nothing is under way after start */

static MoeStatus again(const Self *s) {
    return s->failure ? moe_error(moe_status_code(s->failure), "%s", moe_status_message(s->failure))
                      : NULL;
}

/* Keeps the first failure; takes st. */
static void keep(Self *s, MoeStatus st) {
    if (s->failure)
        moe_status_free(st);
    else
        s->failure = st;
}

static MoeStatus self_start(MoeComm *c, const MoeBlock *sends, size_t n_sends,
                            const MoeBlock *recvs, size_t n_recvs, const char *what,
                            MoeRequest **out) {
    Self *s = (Self *)c;
    int64_t sent = moe_blocks_bytes(sends, n_sends, 0),
            wanted = moe_blocks_bytes(recvs, n_recvs, 0);
    if (!s->failure && sent != wanted)
        keep(s, moe_error(MOE_E_INTERNAL,
                          "exchange \"%s\": rank 0 sends %lld bytes to itself and receives %lld",
                          what, (long long)sent, (long long)wanted));
    MOE_TRY(again(s));
    MoeStream from = moe_stream(sends, n_sends, 0), to = moe_stream(recvs, n_recvs, 0);
    moe_stream_copy(&from, &to);
    *out = &ended;
    return NULL;
}

static MoeStatus self_wait(MoeComm *c, MoeRequest *r) {
    (void)r;
    return again((Self *)c);
}

static void self_poll(MoeComm *c) {
    (void)c;
}

static MoeStatus self_status(MoeComm *c) {
    return again((Self *)c);
}

static void self_phase(MoeComm *c, int64_t step, const char *phase) {
    moe_comm_place_set(&((Self *)c)->place, step, phase);
}

static void self_abort(MoeComm *c, const char *why) {
    Self *s = (Self *)c;
    char at[MOE_COMM_PLACE_TEXT];
    keep(s, moe_error(MOE_E_PEER, "%s: %s", moe_comm_place_text(0, &s->place, at), why));
}

static void self_destroy(MoeComm *c) {
    moe_status_free(((Self *)c)->failure);
    free(c);
}

static const MoeCommOps self_ops = {"self",      self_start, self_wait,  self_poll,
                                    self_status, self_phase, self_abort, self_destroy};

MoeStatus moe_comm_self(MoeComm **out) {
    Self *s = calloc(1, sizeof *s);
    if (!s)
        return moe_error(MOE_E_NOMEM, "out of memory for a communicator");
    s->base = (MoeComm){&self_ops, 0, 1, 15};
    *out = &s->base;
    return NULL;
}
