/* How ranks over TCP find each other: they meet at $MASTER_ADDR:$MASTER_PORT (comm_watch.h), then each connects to all of
 * lower rank. For launchers that are not MPI's (torchrun) and hosts without MPI. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "base/str.h"
#include "runtime/comm_tcp.h"
#include "runtime/launch.h"

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

static MoeStatus connect_lower(MoeTcp *t, const MoeWatchInit *init, const MoeWatchPeer *peers,
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

static MoeStatus accept_higher(MoeTcp *t, const MoeWatchInit *init, int listener, MoeWatch *w) {
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
    const char *run = getenv("TORCHELASTIC_RUN_ID"), *again = getenv("TORCHELASTIC_RESTART_COUNT");
    char text[512];
    int n = snprintf(text, sizeof text, "moec %d %d %s %s", m->n_ports ? m->ports[0] : 0, size,
                     run ? run : "", again ? again : "");
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

static MoeStatus meet(const Master *m, MoeWatchInit *init, MoeTcp *t, int mesh, MoeWatch **out) {
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
    MoeTcp *t = NULL;
    MoeWatch *w = NULL;
    int mesh = -1;
    MOE_TRY(find_master(&m));
    MOE_TRY(moe_tcp_transport(rank, size, &t));
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
        t->base.ops->destroy(&t->base, false);
        return st;
    }
    return moe_comm_wire("tcp", rank, size, &t->base, w, silence_limit, out);
}
