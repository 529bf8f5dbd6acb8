/* Links between ranks, as docs/CLUSTER.md has them: each rank's to its node and to other nodes. In: a communicator. Out: nodes, latency,
 * bandwidth, whether a rank's cores have to do it. All ranks exchange with all others of a class at once, as training does. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "cli/probe.h"

enum { NAME_BYTES = 64, SMALL = 8, REPEATS = 200, LARGE_REPEATS = 8 };
#define LARGE  ((int64_t)8 << 20)  /* bytes that a rank sends, to all peers together */
#define TURNS  16 /* a host's large ones go through so many times this memory: what training sends is in no cache any more */

typedef struct {
    MoeComm *comm;
    char *out, *in;
    MoeBlock *sends, *recvs;
    int *peers; /* of the class that is measured */
    int n_peers;
    int64_t room; /* bytes of out and in */
} Probe;

static double minimum(double a, double b) {
    return a < b ? a : b;
}

/* Work that touches no memory, so many rounds of it, and polls between them as between the steps of a plan. */
static void work(Probe *p, int64_t rounds) {
    volatile uint64_t sink; /* so that there is work */
    uint64_t x = 1;
    for (int64_t i = 0; i < rounds; i++) {
        for (int k = 0; k < 20000; k++)
            x = x * 6364136223846793005u + 1442695040888963407u;
        moe_comm_poll(p->comm);
    }
    sink = x;
    (void)sink;
}

/* The slowest rank's seconds. */
static MoeStatus slowest(Probe *p, double *seconds, double *all) {
    MOE_TRY(moe_comm_all_gather(p->comm, seconds, sizeof *seconds, all, "probe of links"));
    for (int r = 0; r < p->comm->size; r++)
        *seconds = all[r] > *seconds ? all[r] : *seconds;
    return NULL;
}

/* An exchange of `bytes` with each peer, its rows `at` bytes from the start of the memory, and beside it rounds of work. */
static MoeStatus once(Probe *p, int64_t bytes, int64_t at, int64_t rounds, double *seconds) {
    MoeRequest *request = NULL;
    for (int i = 0; i < p->n_peers; i++) {
        p->sends[i] = (MoeBlock){.peer = p->peers[i], .base = p->out + at + i * bytes, .row_bytes = bytes, .n = 1};
        p->recvs[i] = (MoeBlock){.peer = p->peers[i], .base = p->in + at + i * bytes, .row_bytes = bytes, .n = 1};
    }
    MOE_TRY(moe_comm_barrier(p->comm, "probe of links"));
    double start = moe_now();
    if (bytes)
        MOE_TRY(moe_comm_start(p->comm, p->sends, (size_t)p->n_peers, p->recvs, (size_t)p->n_peers, "probe of links", &request));
    work(p, rounds);
    MOE_TRY(bytes ? moe_comm_wait(p->comm, request) : NULL);
    *seconds = moe_now() - start;
    return NULL;
}

/* The time of it: the best of some, the slowest rank's. */
static MoeStatus exchange(Probe *p, int64_t bytes, int repeats, int64_t rounds, double *out) {
    double *all = malloc((size_t)p->comm->size * sizeof *all);
    MoeStatus st = all ? NULL : moe_error(MOE_E_NOMEM, "no memory to measure links");
    *out = INFINITY;
    for (int k = 0; k < repeats && !st; k++) {
        double mine = 0;
        st = once(p, bytes, bytes * p->n_peers < LARGE / 2 ? 0 : k * LARGE % p->room, rounds, &mine);
        if (!st)
            st = slowest(p, &mine, all);
        *out = minimum(*out, mine);
    }
    free(all);
    return st;
}

/* Whether ranks' own cores carry: an exchange and work that takes as long, one beside the other, take more like their sum than
 * like the longer of them. `large`: seconds of the exchange. */
static MoeStatus measure_cores(Probe *p, int64_t each, double large, bool *out) {
    double round = 0, alone = 0, both = 0;
    MOE_TRY(exchange(p, 0, LARGE_REPEATS, 16, &round));
    int64_t rounds = (int64_t)(16 * large / round) + 1;
    MOE_TRY(exchange(p, 0, LARGE_REPEATS, rounds, &alone));
    MOE_TRY(exchange(p, each, LARGE_REPEATS, rounds, &both));
    double hidden = alone + large - both;
    *out = hidden < minimum(alone, large) / 2;
    return NULL;
}

static MoeStatus measure(Probe *p, MoeLink *out, bool *by_cores) {
    double small, large;
    int64_t each = LARGE / p->n_peers;
    MOE_TRY(exchange(p, SMALL, REPEATS, 0, &small));
    MOE_TRY(exchange(p, each, LARGE_REPEATS, 0, &large));
    double moved = (double)(each * p->n_peers);
    *out = (MoeLink){.latency = small, .bandwidth = moved / (large > small * 1.01 ? large - small : large)};
    return by_cores ? measure_cores(p, each, large, by_cores) : NULL;
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

/* Memory whose pages are there. */
static char *touched(int64_t bytes) {
    char *p = malloc((size_t)bytes);
    return p ? memset(p, 1, (size_t)bytes) : NULL;
}

static MoeStatus measure_class(MoeComm *comm, MoeLinkClass k, MoeCluster *c) {
    size_t n = (size_t)comm->size;
    int turns = TURNS / c->ranks_per_node;
    Probe p = {.comm = comm, .room = LARGE * (turns > 1 ? turns : 1), .sends = calloc(n, sizeof *p.sends),
               .recvs = calloc(n, sizeof *p.recvs), .peers = calloc(n, sizeof *p.peers)};
    p.out = touched(p.room + (int64_t)n * SMALL);
    p.in = touched(p.room + (int64_t)n * SMALL);
    for (int r = 0; r < comm->size && p.peers; r++)
        if (r != comm->rank && moe_cluster_link(c, r, comm->rank) == k)
            p.peers[p.n_peers++] = r;
    MoeStatus st = p.out && p.in && p.sends && p.recvs && p.peers ? measure(&p, &c->links[k], k == MOE_LINK_INTRA ? &c->by_cores : NULL)
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
    enum { BYTES = 64 << 20, PIECE = 1 << 20, TIMES = 6 }; /* large copies at once would go past the caches: those of training are not */
    char *from = touched(BYTES), *to = touched(BYTES);
    double best = 1e30;
    MoeStatus st = from && to ? NULL : moe_error(MOE_E_NOMEM, "no memory to measure memory");
    for (int i = 0; i < TIMES && !st; i++) {
        st = moe_comm_barrier(comm, "probe of memory");
        double start = moe_now();
        for (int at = 0; at < BYTES; at += PIECE)
            memcpy(to + at, from + at, PIECE);
        best = minimum(best, moe_now() - start);
    }
    *out = 2.0 * BYTES / best;
    free(from);
    free(to);
    return st;
}
