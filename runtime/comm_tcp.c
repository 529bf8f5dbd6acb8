/* Ranks as processes over TCP: the transport, a connection between each pair of ranks with messages on it that begin with a
 * head of 16 bytes. How the ranks meet: comm_tcp_meet.c. */
#include "runtime/comm_tcp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void put(MoeTcpQueue *q, MoeWireOp *op) {
    op->next = NULL;
    *q->last = op;
    q->last = &op->next;
}

static MoeWireOp *take(MoeTcpQueue *q) {
    MoeWireOp *op = q->first;
    q->first = op->next;
    if (!q->first)
        q->last = &q->first;
    return op;
}

/* Sending and receiving. */

static MoeStatus lost(int peer, int *out_peer, const char *why) {
    *out_peer = peer;
    return moe_error(MOE_E_PEER, "%s", why);
}

/* As much of the queue as the connection takes. */
static MoeStatus send_some(MoeTcp *t, int peer, int *out_peer) {
    MoeTcpLink *l = &t->links[peer];
    while (l->sends.first) {
        MoeWireOp *op = l->sends.first;
        int64_t head = (int64_t)sizeof l->out, at = l->n_out < head ? 0 : l->n_out - head;
        l->out = (MoeTcpHead){MOE_TCP_MAGIC, (uint32_t)op->channel, op->bytes};
        struct iovec parts[2];
        int n = 0;
        if (l->n_out < head)
            parts[n++] = (struct iovec){(char *)&l->out + l->n_out, (size_t)(head - l->n_out)};
        if (op->bytes > at)
            parts[n++] = (struct iovec){op->data + at, (size_t)(op->bytes - at)};
        struct msghdr m = {.msg_iov = parts, .msg_iovlen = (size_t)n};
        ssize_t k = sendmsg(l->fd, &m, MSG_NOSIGNAL);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && errno == EAGAIN)
            return NULL;
        if (k < 0)
            return lost(peer, out_peer, strerror(errno));
        l->n_out += k;
        if (l->n_out == head + op->bytes) {
            l->n_out = 0;
            put(&t->done, take(&l->sends));
        }
    }
    return NULL;
}

/* The receive that the coming bytes belong to; NULL: none yet. */
static MoeWireOp *receiver(MoeTcpLink *l) {
    if (l->n_in < (int64_t)sizeof l->in)
        return NULL;
    return l->receives[l->in.channel].first;
}

static bool wants_input(MoeTcpLink *l) {
    if (l->n_in < (int64_t)sizeof l->in) {
        for (int i = 0; i < MOE_N_WIRE_CHANNELS; i++)
            if (l->receives[i].first)
                return true;
        return false;
    }
    return receiver(l) != NULL;
}

/* The next place for input. Bytes that there is no room for are dropped. */
static char *place_for_input(MoeTcpLink *l, int64_t *out_room) {
    static char dropped[4096];
    int64_t head = (int64_t)sizeof l->in;
    if (l->n_in < head) {
        *out_room = head - l->n_in;
        return (char *)&l->in + l->n_in;
    }
    const MoeWireOp *op = receiver(l);
    int64_t at = l->n_in - head, left = l->in.bytes - at;
    if (at < op->bytes) {
        *out_room = left < op->bytes - at ? left : op->bytes - at;
        return op->data + at;
    }
    *out_room = left < (int64_t)sizeof dropped ? left : (int64_t)sizeof dropped;
    return dropped;
}

static void finish_receive(MoeTcp *t, MoeTcpLink *l) {
    MoeWireOp *op = take(&l->receives[l->in.channel]);
    op->bad = op->channel == MOE_WIRE_BODY ? l->in.bytes != op->bytes : l->in.bytes > op->bytes;
    op->bytes = l->in.bytes;
    l->n_in = 0;
    put(&t->done, op);
}

static MoeStatus receive_some(MoeTcp *t, int peer, int *out_peer) {
    MoeTcpLink *l = &t->links[peer];
    for (int rounds = 0; rounds < 64 && wants_input(l); rounds++) {
        int64_t room;
        char *to = place_for_input(l, &room);
        if (room > 0) {
            ssize_t k = recv(l->fd, to, (size_t)room, 0);
            if (k < 0 && errno == EINTR)
                continue;
            if (k < 0 && errno == EAGAIN)
                return NULL;
            if (k <= 0)
                return lost(peer, out_peer, k ? strerror(errno) : "it was closed");
            l->n_in += k;
        }
        if (l->n_in < (int64_t)sizeof l->in)
            continue;
        if (l->in.magic != MOE_TCP_MAGIC || l->in.channel >= MOE_N_WIRE_CHANNELS || l->in.bytes < 0)
            return lost(peer, out_peer, "it brought bytes that are no message");
        if (l->n_in == (int64_t)sizeof l->in + l->in.bytes && receiver(l))
            finish_receive(t, l);
    }
    return NULL;
}

/* The transport. */

static MoeStatus tcp_post(MoeTransport *base, MoeWireOp *op, int *out_peer) {
    MoeTcp *t = (MoeTcp *)base;
    MoeTcpLink *l = &t->links[op->peer];
    if (!op->send) {
        put(&l->receives[op->channel], op);
        return NULL;
    }
    bool idle = !l->sends.first;
    put(&l->sends, op);
    return idle ? send_some(t, op->peer, out_peer) : NULL;
}

/* Waits until a connection can do something; false if none can. */
static bool look(MoeTcp *t, int wait_us) {
    for (int p = 0; p < t->size; p++) {
        MoeTcpLink *l = &t->links[p];
        short events = (short)((wants_input(l) ? POLLIN : 0) | (l->sends.first ? POLLOUT : 0));
        t->polls[p] = (struct pollfd){.fd = events ? l->fd : -1, .events = events};
    }
    struct timespec wait = {0, t->done.first ? 0 : wait_us * 1000l};
    return ppoll(t->polls, (nfds_t)t->size, &wait, NULL) > 0;
}

static MoeStatus tcp_progress(MoeTransport *base, int wait_us, MoeWireOp **out_done,
                              int *out_peer) {
    MoeTcp *t = (MoeTcp *)base;
    MoeStatus st = NULL;
    bool any = look(t, wait_us);
    for (int p = 0; any && p < t->size && !st; p++) {
        short can = t->polls[p].revents;
        if (can & ~POLLIN)
            st = send_some(t, p, out_peer);
        if (can & ~POLLOUT && !st)
            st = receive_some(t, p, out_peer);
    }
    *out_done = t->done.first;
    t->done = (MoeTcpQueue){NULL, &t->done.first};
    t->done.last = &t->done.first;
    return st;
}

static bool tcp_destroy(MoeTransport *base, bool good) {
    (void)good;
    MoeTcp *t = (MoeTcp *)base;
    for (int p = 0; t->links && p < t->size; p++)
        if (t->links[p].fd >= 0)
            close(t->links[p].fd);
    free(t->links);
    free(t->polls);
    free(t);
    return true;
}

static const MoeTransportOps tcp_ops = {tcp_post, tcp_progress, tcp_destroy};

MoeStatus moe_tcp_transport(int rank, int size, MoeTcp **out) {
    MoeTcp *t = calloc(1, sizeof *t);
    if (t) {
        t->base.ops = &tcp_ops;
        t->rank = rank;
        t->size = size;
        t->done.last = &t->done.first;
        t->links = calloc((size_t)size, sizeof *t->links);
        t->polls = calloc((size_t)size, sizeof *t->polls);
    }
    if (!t || !t->links || !t->polls) {
        if (t)
            tcp_destroy(&t->base, false);
        return moe_error(MOE_E_NOMEM, "out of memory for the connections of %d ranks", size);
    }
    for (int p = 0; p < size; p++) {
        MoeTcpLink *l = &t->links[p];
        l->fd = -1;
        l->sends.last = &l->sends.first;
        for (int i = 0; i < MOE_N_WIRE_CHANNELS; i++)
            l->receives[i].last = &l->receives[i].first;
    }
    *out = t;
    return NULL;
}
