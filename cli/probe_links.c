/* Links between ranks, as docs/CLUSTER.md has them: each rank's to its node and to other nodes. In: a communicator. Out: nodes, latency,
 * bandwidth. All ranks exchange with all others of a class at once, as training does. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "cli/probe.h"

enum { NAME_BYTES = 64, SMALL = 8, REPEATS = 200, LARGE_REPEATS = 5 };
#define LARGE ((int64_t)8 << 20) /* bytes that a rank sends, to all peers together */

typedef struct {
    MoeComm *comm;
    char *out, *in;
    MoeBlock *sends, *recvs;
    int *peers; /* of the class that is measured */
    int n_peers;
} Probe;

/* The time of an exchange of `bytes` with each peer: the best of some, the slowest rank's. */
static MoeStatus exchange(Probe *p, int64_t bytes, int repeats, double *out) {
    double best = 1e30, *all = malloc((size_t)p->comm->size * sizeof *all);
    MoeStatus st = all ? NULL : moe_error(MOE_E_NOMEM, "no memory to measure links");
    for (int i = 0; i < p->n_peers; i++) {
        p->sends[i] = (MoeBlock){.peer = p->peers[i], .base = p->out + i * bytes, .row_bytes = bytes, .n = 1};
        p->recvs[i] = (MoeBlock){.peer = p->peers[i], .base = p->in + i * bytes, .row_bytes = bytes, .n = 1};
    }
    for (int k = 0; k < repeats && !st; k++) {
        st = moe_comm_barrier(p->comm, "probe of links");
        double start = moe_now();
        if (!st)
            st = moe_comm_exchange(p->comm, p->sends, (size_t)p->n_peers, p->recvs, (size_t)p->n_peers, "probe of links");
        double mine = moe_now() - start;
        if (!st)
            st = moe_comm_all_gather(p->comm, &mine, sizeof mine, all, "probe of links");
        for (int r = 0; r < p->comm->size && !st; r++)
            mine = all[r] > mine ? all[r] : mine;
        best = mine < best ? mine : best;
    }
    free(all);
    *out = best;
    return st;
}

static MoeStatus measure(Probe *p, MoeLink *out) {
    double small, large;
    int64_t each = LARGE / p->n_peers;
    MOE_TRY(exchange(p, SMALL, REPEATS, &small));
    MOE_TRY(exchange(p, each, LARGE_REPEATS, &large));
    double moved = (double)(each * p->n_peers);
    *out = (MoeLink){.latency = small, .bandwidth = moved / (large > small * 1.01 ? large - small : large)};
    return NULL;
}

/* Hosts by name: as many ranks on each, consecutive. */
static MoeStatus find_nodes(MoeComm *comm, MoeCluster *out) {
    char mine[NAME_BYTES] = {0}, *all = calloc((size_t)comm->size, NAME_BYTES);
    if (!all)
        return moe_error(MOE_E_NOMEM, "no memory to measure links");
    gethostname(mine, sizeof mine - 1);
    MoeStatus st = moe_comm_all_gather(comm, mine, sizeof mine, all, "names of hosts");
    int per = 1;
    while (!st && per < comm->size && memcmp(all, all + per * NAME_BYTES, NAME_BYTES) == 0)
        per++;
    for (int r = 0; r < comm->size && !st; r++)
        if (comm->size % per || memcmp(all + r * NAME_BYTES, all + r / per * per * NAME_BYTES, NAME_BYTES) != 0)
            st = moe_error(MOE_E_INPUT,
                           "rank %d is on host %s: hosts should have equally many ranks, one host after the other "
                           "(rank 0's has %d)",
                           r, all + r * NAME_BYTES, per);
    free(all);
    out->ranks_per_node = per;
    out->nodes = comm->size / per;
    return st;
}

static MoeStatus measure_class(MoeComm *comm, MoeLinkClass k, MoeCluster *c) {
    size_t n = (size_t)comm->size;
    Probe p = {.comm = comm, .out = calloc(1, LARGE + n), .in = calloc(1, LARGE + n), .sends = calloc(n, sizeof *p.sends),
               .recvs = calloc(n, sizeof *p.recvs), .peers = calloc(n, sizeof *p.peers)};
    for (int r = 0; r < comm->size && p.peers; r++)
        if (r != comm->rank && moe_cluster_link(c, r, comm->rank) == k)
            p.peers[p.n_peers++] = r;
    MoeStatus st = p.out && p.in && p.sends && p.recvs && p.peers ? measure(&p, &c->links[k])
                                                                  : moe_error(MOE_E_NOMEM, "no memory to measure links");
    free(p.out);
    free(p.in);
    free(p.sends);
    free(p.recvs);
    free(p.peers);
    return st;
}

MoeStatus moe_probe_links(MoeComm *comm, MoeCluster *out) {
    MOE_TRY(find_nodes(comm, out));
    if (out->ranks_per_node > 1)
        MOE_TRY(measure_class(comm, MOE_LINK_INTRA, out));
    if (out->nodes > 1)
        MOE_TRY(measure_class(comm, MOE_LINK_INTER, out));
    return NULL;
}

MoeStatus moe_probe_memory(MoeComm *comm, double *out) {
    enum { BYTES = 64 << 20, TURNS = 4 };
    char *from = malloc(BYTES), *to = malloc(BYTES);
    double best = 1e30;
    MoeStatus st = from && to ? NULL : moe_error(MOE_E_NOMEM, "no memory to measure memory");
    if (!st)
        memset(from, 1, BYTES);
    for (int i = 0; i < TURNS && !st; i++) {
        st = moe_comm_barrier(comm, "probe of memory");
        double start = moe_now();
        memcpy(to, from, BYTES);
        double took = moe_now() - start;
        best = i && took < best ? took : best;
    }
    *out = 2.0 * BYTES / best;
    free(from);
    free(to);
    return st;
}
