/* The communicator that keeps emulated clocks. With each exchange goes a second one over `inner`, in which every rank tells
 * all others its clock and what it sends to whom; before a wait ends, the rank lays all exchanges up to that one on its copy
 * of everybody's links (placement/links.h), in the order in which they were started. See emulate.h and docs/CLUSTER.md. */
#include "runtime/emulate.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "placement/links.h"

/* What a rank tells the others of an exchange: its clock, then bytes to each rank. */
typedef union {
    double clock;
    int64_t bytes;
} Word;

struct MoeRequest {
    MoeRequest *next;        /* later exchanges; or unused ones */
    MoeRequest *told, *data; /* of inner; told is NULL once it has ended */
    bool laid, ended;        /* on the links; waited for */
    double started, real_started;
    MoeLinkTimes times;
    Word words[]; /* [size][1 + size], by rank */
};

typedef struct {
    MoeComm base;
    MoeComm *inner;
    MoeCluster cluster;
    MoeLinks *links;
    MoePool *pool;
    MoeEmulateStats stats; /* communication is kept in under_way */
    MoeTimeline under_way;
    MoeRequest *first, *unused; /* not laid on the links yet, or not waited for */
    bool mark;                  /* waits count as marked */
    bool marked;                /* cpu is of `thread`, when the last call ended */
    pthread_t thread;
    double cpu;
    double latest; /* clock of all ranks when the last step ended */
    MoeEmulateStats at_step;
    MoeBlock *blocks; /* scratch of start: what is told */
    double *starts;   /* scratch of lay */
    int64_t *bytes;
    MoeLinkTimes *times;
} Emulated;

static const MoeCommOps emulated_ops;

static Emulated *emulated(MoeComm *c) {
    MOE_ASSERT(c->ops == &emulated_ops, "a communicator of kind %s is not emulated", c->ops->name);
    return (Emulated *)c;
}

bool moe_comm_emulated(const MoeComm *c) {
    return c->ops == &emulated_ops;
}

/* ---- the clock of compute ---- */

/* CPU seconds of this rank, as if its pool's threads worked side by side. */
static double cpu_of(const Emulated *e) {
    double cpu = moe_thread_cpu();
    if (e->pool) {
        MoePoolCpu p = moe_pool_cpu(e->pool);
        cpu += p.tasks / moe_pool_threads(e->pool) - p.caller;
    }
    return cpu;
}

static void compute(Emulated *e, double seconds) {
    e->stats.clock += seconds;
    e->stats.compute += seconds;
}

/* A call begins: what was computed since the last one counts. */
static void enter(Emulated *e) {
    e->inner->silence_limit = e->base.silence_limit;
    if (moe_cluster_predicts(&e->cluster) || !e->marked ||
        !pthread_equal(e->thread, pthread_self()))
        return;
    double cpu = cpu_of(e);
    if (cpu > e->cpu)
        compute(e, cpu - e->cpu);
}

/* A call ends. What it cost itself is the emulated network's business. */
static void leave(Emulated *e) {
    if (moe_cluster_predicts(&e->cluster))
        return;
    e->thread = pthread_self();
    e->marked = true;
    e->cpu = cpu_of(e);
}

void moe_emulate_pool(MoeComm *c, MoePool *pool) {
    if (!moe_comm_emulated(c))
        return;
    Emulated *e = emulated(c);
    enter(e);
    e->pool = pool;
    if (pool)
        moe_pool_count_cpu(pool);
    leave(e);
}

void moe_emulate_work(MoeComm *c, double flops, double bytes) {
    if (moe_comm_emulated(c) && moe_cluster_predicts(&emulated(c)->cluster))
        compute(emulated(c), moe_cluster_seconds(&emulated(c)->cluster, flops, bytes));
}

void moe_emulate_mark(MoeComm *c, bool on) {
    if (moe_comm_emulated(c))
        emulated(c)->mark = on;
}

void moe_emulate_compute(MoeComm *c, double seconds) {
    if (moe_comm_emulated(c))
        compute(emulated(c), seconds);
}

/* ---- exchanges ---- */

static MoeStatus no_memory(const Emulated *e) {
    return moe_error(MOE_E_NOMEM, "out of memory for the emulated links of %d ranks", e->base.size);
}

static Word *told_by(MoeRequest *r, int rank, int size) {
    return r->words + (size_t)rank * (size_t)(1 + size);
}

/* Starts telling all ranks the clock and the bytes. */
static MoeStatus tell(Emulated *e, MoeRequest *r, const MoeBlock *sends, size_t n_sends) {
    int n = e->base.size, own = e->base.rank;
    Word *mine = told_by(r, own, n);
    memset(mine, 0, (size_t)(1 + n) * sizeof *mine);
    mine[0].clock = e->stats.clock;
    for (size_t i = 0; i < n_sends; i++)
        mine[1 + sends[i].peer].bytes += sends[i].n * sends[i].row_bytes;
    size_t k = 0, others = (size_t)n - 1;
    for (int q = 0; q < n; q++)
        if (q != own) {
            MoeBlock b = {.peer = q, .row_bytes = sizeof *mine, .n = 1 + n};
            b.base = mine;
            e->blocks[k] = b;
            b.base = told_by(r, q, n);
            e->blocks[others + k++] = b;
        }
    return moe_comm_start(e->inner, e->blocks, others, e->blocks + others, others,
                          "clocks of the emulated links", &r->told);
}

static MoeRequest *new_request(Emulated *e) {
    size_t n = (size_t)e->base.size, n_words = n * (1 + n);
    MoeRequest *r = e->unused;
    if (r)
        e->unused = r->next;
    else
        r = malloc(sizeof *r + n_words * sizeof *r->words);
    if (r) {
        r->next = r->told = r->data = NULL;
        r->laid = r->ended = false;
        r->times = (MoeLinkTimes){0, 0};
    }
    return r;
}

static void append(Emulated *e, MoeRequest *r) {
    MoeRequest **last = &e->first;
    while (*last)
        last = &(*last)->next;
    *last = r;
}

/* Of the requests in front, those that are of no more use go. */
static void drop_done(Emulated *e) {
    for (MoeRequest **at = &e->first; *at;) {
        MoeRequest *r = *at;
        if (r->laid && r->ended) {
            *at = r->next;
            r->next = e->unused;
            e->unused = r;
        } else {
            at = &r->next;
        }
    }
}

static MoeStatus emulated_start(MoeComm *c, const MoeBlock *sends, size_t n_sends,
                                const MoeBlock *recvs, size_t n_recvs, const char *what,
                                MoeRequest **out) {
    Emulated *e = emulated(c);
    enter(e);
    MoeRequest *r = new_request(e);
    MoeStatus st = r ? tell(e, r, sends, n_sends) : no_memory(e);
    if (!st) {
        st = moe_comm_start(e->inner, sends, n_sends, recvs, n_recvs, what, &r->data);
        if (st) /* inner has failed: this ends at once */
            moe_status_free(moe_comm_wait(e->inner, r->told));
    }
    if (!st) {
        r->started = e->stats.clock;
        r->real_started = moe_now();
        append(e, r);
        *out = r;
    } else if (r) {
        r->next = e->unused;
        e->unused = r;
    }
    leave(e);
    return st;
}

/* All ranks' clocks and bytes of r are known, and all exchanges before it are on the links: r's turn. */
static MoeStatus lay(Emulated *e, MoeRequest *r) {
    int n = e->base.size;
    for (int p = 0; p < n; p++) {
        const Word *w = told_by(r, p, n);
        e->starts[p] = w[0].clock;
        for (int q = 0; q < n; q++)
            e->bytes[p * n + q] = w[1 + q].bytes;
    }
    MOE_TRY(
        moe_links_exchange(e->links, e->starts, e->bytes, e->base.rank, e->times, &e->under_way));
    r->times = e->times[e->base.rank];
    return NULL;
}

/* Lays exchanges on the links up to r. */
static MoeStatus lay_up_to(Emulated *e, const MoeRequest *r) {
    for (MoeRequest *at = e->first; at; at = at->next) {
        if (!at->laid) {
            MoeRequest *told = at->told;
            at->told = NULL;
            at->laid = true;
            MOE_TRY(moe_comm_wait(e->inner, told));
            MOE_TRY(lay(e, at));
        }
        if (at == r)
            return NULL;
    }
    return NULL;
}

static double later(double a, double b) {
    return a > b ? a : b;
}

/* Until the real clock has advanced since r's start by as much as the emulated one, awake for the others. */
static void take_time(Emulated *e, const MoeRequest *r) {
    double until = r->real_started + (r->times.end - r->started);
    for (double left; (left = until - moe_now()) > 0;) {
        double nap = left < 0.05 ? left : 0.05;
        struct timespec t = {0, (long)(nap * 1e9)};
        nanosleep(&t, NULL);
        moe_comm_poll(e->inner);
    }
}

static MoeStatus emulated_wait(MoeComm *c, MoeRequest *r) {
    Emulated *e = emulated(c);
    enter(e);
    MoeStatus st = lay_up_to(e, r);
    MoeStatus data = moe_comm_wait(e->inner, r->data);
    if (st)
        moe_status_free(data);
    else
        st = data;
    if (!st) {
        double now = e->stats.clock, end = r->times.end;
        double ready = r->times.ready < end ? r->times.ready : end;
        e->stats.exposed += later(end - now, 0);
        e->stats.marked += e->mark ? later(end - now, 0) : 0;
        e->stats.late += later(ready - now, 0);
        e->stats.clock = later(now, end);
        if (e->cluster.real_time)
            take_time(e, r);
    }
    r->ended = true;
    drop_done(e);
    leave(e);
    return st;
}

static void emulated_poll(MoeComm *c) {
    Emulated *e = emulated(c);
    enter(e);
    moe_comm_poll(e->inner);
    leave(e);
}

static void emulated_phase(MoeComm *c, int64_t step, const char *phase) {
    Emulated *e = emulated(c);
    enter(e);
    moe_comm_phase(e->inner, step, phase);
    leave(e);
}

static void emulated_abort(MoeComm *c, const char *why) {
    moe_comm_abort(emulated(c)->inner, why);
}

static void free_requests(MoeRequest *r) {
    while (r) {
        MoeRequest *next = r->next;
        free(r);
        r = next;
    }
}

static void emulated_destroy(MoeComm *c) {
    Emulated *e = emulated(c);
    moe_comm_destroy(e->inner);
    moe_links_destroy(e->links);
    moe_timeline_free_all(&e->under_way);
    free_requests(e->first);
    free_requests(e->unused);
    free(e->blocks);
    free(e->starts);
    free(e->bytes);
    free(e->times);
    free(e);
}

static MoeStatus emulated_status(MoeComm *c) {
    return moe_comm_status(emulated(c)->inner);
}

static const MoeCommOps emulated_ops = {"emulated",      emulated_start,  emulated_wait,
                                        emulated_poll,   emulated_status, emulated_phase,
                                        emulated_abort,  emulated_destroy};

static MoeStatus create(MoeComm *inner, const MoeCluster *cluster, Emulated **out) {
    MOE_TRY(moe_cluster_check_ranks(cluster, inner->size));
    size_t n = (size_t)inner->size;
    Emulated *e = calloc(1, sizeof *e);
    if (!e)
        return moe_error(MOE_E_NOMEM, "out of memory for an emulated communicator");
    *out = e;
    e->base = *inner;
    e->base.ops = &emulated_ops;
    e->cluster = *cluster;
    e->blocks = malloc(2 * n * sizeof *e->blocks);
    e->starts = malloc(n * sizeof *e->starts);
    e->bytes = malloc(n * n * sizeof *e->bytes);
    e->times = malloc(n * sizeof *e->times);
    if (!e->blocks || !e->starts || !e->bytes || !e->times)
        return no_memory(e);
    return moe_links_create(cluster, &e->links);
}

MoeStatus moe_comm_emulate(MoeComm *inner, const MoeCluster *cluster, MoeComm **out) {
    Emulated *e = NULL;
    MoeStatus st = create(inner, cluster, &e);
    if (e)
        e->inner = inner;
    if (!st)
        *out = &e->base;
    else if (e)
        emulated_destroy(&e->base);
    else
        moe_comm_destroy(inner);
    return st;
}

MoeStatus moe_comm_threads_emulated(int n, const MoeCluster *cluster, MoeComm **out) {
    MOE_TRY(moe_cluster_check_ranks(cluster, n));
    MOE_TRY(moe_comm_threads(n, out));
    MoeStatus st = NULL;
    for (int i = 0; i < n; i++) {
        MoeComm *inner = out[i];
        out[i] = NULL;
        if (st)
            moe_comm_destroy(inner);
        else
            st = moe_comm_emulate(inner, cluster, &out[i]);
    }
    for (int i = 0; st && i < n; i++) {
        moe_comm_destroy(out[i]);
        out[i] = NULL; /* the caller may destroy what it got */
    }
    return st;
}

/* ---- what came out ---- */

MoeEmulateStats moe_emulate_stats(MoeComm *c) {
    Emulated *e = emulated(c);
    enter(e);
    MoeEmulateStats s = e->stats;
    s.communication = moe_timeline_busy(&e->under_way);
    leave(e);
    return s;
}

static MoeEmulateStats since(MoeEmulateStats now, const MoeEmulateStats *then) {
    now.compute -= then->compute;
    now.communication -= then->communication;
    now.exposed -= then->exposed;
    now.marked -= then->marked;
    now.late -= then->late;
    return now;
}

MoeStatus moe_emulate_step(MoeComm *c, double *out_seconds, MoeEmulateStats *out_ranks) {
    Emulated *e = emulated(c);
    MoeEmulateStats now = moe_emulate_stats(c), mine = since(now, &e->at_step);
    MoeEmulateStats *all = malloc((size_t)c->size * sizeof *all);
    MoeStatus st = all ? moe_comm_all_gather(e->inner, &mine, sizeof mine, all, "emulated clocks")
                       : no_memory(e);
    if (!st) {
        double latest = e->latest;
        for (int r = 0; r < c->size; r++)
            latest = later(latest, all[r].clock);
        *out_seconds = latest - e->latest;
        e->latest = latest;
        e->at_step = now;
        if (out_ranks)
            memcpy(out_ranks, all, (size_t)c->size * sizeof *all);
    }
    free(all);
    leave(e);
    return st;
}
