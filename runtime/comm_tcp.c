/* Ranks as processes over TCP, for launchers that are not MPI's (torchrun) and hosts without MPI: a connection between each
 * pair of ranks, messages with a head of 16 bytes on it. The ranks meet at $MASTER_ADDR:$MASTER_PORT. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"
#include "base/str.h"
#include "runtime/comm_wire.h"
#include "runtime/launch.h"

typedef struct {
    uint32_t magic, channel;
    int64_t bytes;
} Head;
#define HEAD_MAGIC 0x3170636du

typedef struct {
    MoeWireOp *first, **last;
} Queue;

typedef struct {
    int fd; /* -1: this rank itself */
    Queue sends, receives[MOE_N_WIRE_CHANNELS];
    Head out, in;        /* of the first send; of the message that is coming */
    int64_t n_out, n_in; /* bytes of head and data that went and came */
} Link;

typedef struct {
    MoeTransport base;
    int rank, size;
    Link *links; /* by rank */
    struct pollfd *polls;
    Queue done;
} TcpTransport;

static void put(Queue *q, MoeWireOp *op) {
    op->next = NULL;
    *q->last = op;
    q->last = &op->next;
}

static MoeWireOp *take(Queue *q) {
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
static MoeStatus send_some(TcpTransport *t, int peer, int *out_peer) {
    Link *l = &t->links[peer];
    while (l->sends.first) {
        MoeWireOp *op = l->sends.first;
        int64_t head = (int64_t)sizeof l->out, at = l->n_out < head ? 0 : l->n_out - head;
        l->out = (Head){HEAD_MAGIC, (uint32_t)op->channel, op->bytes};
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
static MoeWireOp *receiver(Link *l) {
    if (l->n_in < (int64_t)sizeof l->in)
        return NULL;
    return l->receives[l->in.channel].first;
}

static bool wants_input(Link *l) {
    if (l->n_in < (int64_t)sizeof l->in) {
        for (int i = 0; i < MOE_N_WIRE_CHANNELS; i++)
            if (l->receives[i].first)
                return true;
        return false;
    }
    return receiver(l) != NULL;
}

/* The next place for input. Bytes that there is no room for are dropped. */
static char *place_for_input(Link *l, int64_t *out_room) {
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

static void finish_receive(TcpTransport *t, Link *l) {
    MoeWireOp *op = take(&l->receives[l->in.channel]);
    op->bad = op->channel == MOE_WIRE_BODY ? l->in.bytes != op->bytes : l->in.bytes > op->bytes;
    op->bytes = l->in.bytes;
    l->n_in = 0;
    put(&t->done, op);
}

static MoeStatus receive_some(TcpTransport *t, int peer, int *out_peer) {
    Link *l = &t->links[peer];
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
        if (l->in.magic != HEAD_MAGIC || l->in.channel >= MOE_N_WIRE_CHANNELS || l->in.bytes < 0)
            return lost(peer, out_peer, "it brought bytes that are no message");
        if (l->n_in == (int64_t)sizeof l->in + l->in.bytes && receiver(l))
            finish_receive(t, l);
    }
    return NULL;
}

/* The transport. */

static MoeStatus tcp_post(MoeTransport *base, MoeWireOp *op, int *out_peer) {
    TcpTransport *t = (TcpTransport *)base;
    Link *l = &t->links[op->peer];
    if (!op->send) {
        put(&l->receives[op->channel], op);
        return NULL;
    }
    bool idle = !l->sends.first;
    put(&l->sends, op);
    return idle ? send_some(t, op->peer, out_peer) : NULL;
}

/* Waits until a connection can do something; false if none can. */
static bool look(TcpTransport *t, int wait_us) {
    for (int p = 0; p < t->size; p++) {
        Link *l = &t->links[p];
        short events = (short)((wants_input(l) ? POLLIN : 0) | (l->sends.first ? POLLOUT : 0));
        t->polls[p] = (struct pollfd){.fd = events ? l->fd : -1, .events = events};
    }
    struct timespec wait = {0, t->done.first ? 0 : wait_us * 1000l};
    return ppoll(t->polls, (nfds_t)t->size, &wait, NULL) > 0;
}

static MoeStatus tcp_progress(MoeTransport *base, int wait_us, MoeWireOp **out_done,
                              int *out_peer) {
    TcpTransport *t = (TcpTransport *)base;
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
    t->done = (Queue){NULL, &t->done.first};
    t->done.last = &t->done.first;
    return st;
}

static bool tcp_destroy(MoeTransport *base, bool good) {
    (void)good;
    TcpTransport *t = (TcpTransport *)base;
    for (int p = 0; t->links && p < t->size; p++)
        if (t->links[p].fd >= 0)
            close(t->links[p].fd);
    free(t->links);
    free(t->polls);
    free(t);
    return true;
}

static const MoeTransportOps tcp_ops = {tcp_post, tcp_progress, tcp_destroy};

static MoeStatus make_transport(int rank, int size, TcpTransport **out) {
    TcpTransport *t = calloc(1, sizeof *t);
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
        Link *l = &t->links[p];
        l->fd = -1;
        l->sends.last = &l->sends.first;
        for (int i = 0; i < MOE_N_WIRE_CHANNELS; i++)
            l->receives[i].last = &l->receives[i].first;
    }
    *out = t;
    return NULL;
}

/* The mesh of connections, after the ranks have met. */

enum { MESH_SECONDS = 30 };

typedef struct {
    unsigned char token[MOE_WATCH_TOKEN];
    int64_t rank;
} MeshHello;

/* Where rank p listens. One that met rank 0 over loopback is on rank 0's host, whose address others know. */
static MoeAddress address_of(const MoeWatchPeer *peers, int p, const MoeAddress *first) {
    MoeAddress a =
        p == 0 || (moe_address_is_loopback(&peers[p].address) && !moe_address_is_loopback(first))
            ? *first
            : peers[p].address;
    int32_t port;
    memcpy(&port, peers[p].card, sizeof port);
    moe_address_set_port(&a, port);
    return a;
}

static MoeStatus connect_lower(TcpTransport *t, const MoeWatchInit *init, const MoeWatchPeer *peers,
                               const MoeAddress *first) {
    MeshHello h = {.rank = t->rank};
    memcpy(h.token, init->token, sizeof h.token);
    for (int p = 0; p < t->rank; p++) {
        MoeAddress to = address_of(peers, p, first);
        int fd = moe_socket_connect(&to, MESH_SECONDS);
        t->links[p].fd = fd;
        if (fd < 0 || !moe_socket_send(fd, &h, sizeof h, MESH_SECONDS)) {
            char text[80];
            moe_address_text(&to, text);
            return moe_error_errno("rank %d cannot reach rank %d at %s", t->rank, p, text);
        }
    }
    return NULL;
}

static MoeStatus accept_higher(TcpTransport *t, const MoeWatchInit *init, int listener,
                               MoeWatch *w) {
    double deadline = moe_now() + MESH_SECONDS;
    for (int missing = t->size - 1 - t->rank; missing > 0;) {
        if (moe_watch_failed(w))
            return moe_watch_status(w);
        if (moe_now() > deadline)
            return moe_error(MOE_E_PEER, "rank %d: %d other ranks did not connect within %d s",
                             t->rank, missing, MESH_SECONDS);
        MoeAddress from;
        MeshHello h;
        int fd = moe_socket_accept(listener, 0.1, &from);
        if (fd < 0)
            continue;
        if (!moe_socket_receive(fd, &h, sizeof h, 3) ||
            memcmp(h.token, init->token, sizeof h.token) != 0 || h.rank <= t->rank ||
            h.rank >= t->size || t->links[h.rank].fd >= 0) {
            close(fd); /* a stranger */
            continue;
        }
        t->links[h.rank].fd = fd;
        missing--;
    }
    return NULL;
}

/* The rendezvous. */

enum { N_PORTS = 16 };

typedef struct {
    char host[256], text[300];
    bool local; /* the host is this one, by its number */
    MoeAddress places[4 * N_PORTS];
    size_t n_places;
    int ports[N_PORTS];
    size_t n_ports;
} Master;

/* torchrun's agent may keep MASTER_PORT for itself; the ranks then meet at one of the next. */
static MoeStatus find_master(Master *m) {
    const char *host = getenv("MASTER_ADDR"), *port_text = getenv("MASTER_PORT"),
               *agent = getenv("TORCHELASTIC_USE_AGENT_STORE");
    int64_t port = 29400;
    if (port_text && *port_text && (!moe_parse_i64(port_text, &port) || port < 1 || port > 65535))
        return moe_error(MOE_E_INPUT, "MASTER_PORT is \"%.40s\", expected 1 to 65535", port_text);
    snprintf(m->host, sizeof m->host, "%s", host && *host ? host : "127.0.0.1");
    snprintf(m->text, sizeof m->text, "%s:%d", m->host, (int)port);
    MoeAddress found[4];
    size_t n = moe_address_find(m->host, found, 4);
    if (!n)
        return moe_error(MOE_E_INPUT, "MASTER_ADDR is \"%s\", which is no known host", m->host);
    m->local = strncmp(m->host, "127.", 4) == 0 || strcmp(m->host, "::1") == 0 ||
               strcmp(m->host, "localhost") == 0;
    bool taken = agent && (strcmp(agent, "True") == 0 || strcmp(agent, "1") == 0);
    for (int i = taken; i < N_PORTS && port + i <= 65535; i++) {
        m->ports[m->n_ports++] = (int)port + i;
        for (size_t k = 0; k < n; k++) {
            m->places[m->n_places] = found[k];
            moe_address_set_port(&m->places[m->n_places++], (int)port + i);
        }
    }
    return NULL;
}

/* The same on all ranks of a job, and hardly on those of another. */
static void make_token(const Master *m, int size, unsigned char out[MOE_WATCH_TOKEN]) {
    const char *run = getenv("TORCHELASTIC_RUN_ID");
    char text[512];
    int n = snprintf(text, sizeof text, "moec %d %d %s", m->n_ports ? m->ports[0] : 0, size,
                     run ? run : "");
    uint64_t h[2] = {1469598103934665603ull, 88172645463325252ull};
    for (int i = 0; i < n && i < (int)sizeof text; i++)
        for (int k = 0; k < 2; k++)
            h[k] = (h[k] ^ (unsigned char)text[i]) * 1099511628211ull;
    memcpy(out, h, MOE_WATCH_TOKEN);
}

static MoeStatus listen_for_ranks(const Master *m, int *out_fd) {
    int port;
    for (size_t i = 0; i < m->n_ports; i++) {
        *out_fd = moe_socket_listen(m->local ? &m->places[0] : NULL, m->ports[i], &port);
        if (*out_fd >= 0)
            return NULL;
    }
    return moe_error_errno("rank 0 cannot listen at %s (nor the next %zu ports)", m->text,
                           m->n_ports - 1);
}

/* Where others connect to this rank; the port is on the rank's card. */
static MoeStatus listen_for_mesh(const Master *m, MoeWatchInit *init, int *out_fd) {
    int port = 0;
    *out_fd = moe_socket_listen(m->local ? &m->places[0] : NULL, 0, &port);
    if (*out_fd < 0)
        return moe_error_errno("rank %d cannot listen for other ranks", init->rank);
    int32_t card = port;
    memcpy(init->card, &card, sizeof card);
    return NULL;
}

static MoeStatus meet(const Master *m, MoeWatchInit *init, TcpTransport *t, int mesh,
                      MoeWatch **out) {
    MoeWatchPeer *peers = NULL;
    MoeAddress local, first = {.any = {.sa_family = AF_INET}};
    if (init->rank == 0)
        MOE_TRY(listen_for_ranks(m, &init->listener));
    MOE_TRY(moe_watch_open(init, out, &peers, &local, &first));
    MoeStatus st = connect_lower(t, init, peers, &first);
    if (!st)
        st = accept_higher(t, init, mesh, *out);
    free(peers);
    if (st) {
        moe_watch_abort(*out, moe_status_message(st));
        moe_watch_close(*out);
    }
    return st;
}

MoeStatus moe_comm_tcp(int rank, int size, double silence_limit, MoeComm **out) {
    Master m = {.n_places = 0};
    TcpTransport *t = NULL;
    MoeWatch *w = NULL;
    int mesh = -1;
    MOE_TRY(find_master(&m));
    MOE_TRY(make_transport(rank, size, &t));
    MoeWatchInit init = {.rank = rank,
                         .size = size,
                         .silence_limit = silence_limit,
                         .join_seconds = 4 * silence_limit > 10 ? 4 * silence_limit : 10,
                         .listener = -1,
                         .places = m.places,
                         .n_places = m.n_places,
                         .meeting = m.text,
                         .table = true};
    make_token(&m, size, init.token);
    MoeStatus st = listen_for_mesh(&m, &init, &mesh);
    if (!st)
        st = meet(&m, &init, t, mesh, &w);
    if (mesh >= 0)
        close(mesh);
    if (st) {
        tcp_destroy(&t->base, false);
        return st;
    }
    return moe_comm_wire("tcp", rank, size, &t->base, w, silence_limit, out);
}
