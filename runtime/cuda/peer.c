/* Ranks of one process whose devices reach each other's memory: finding out, leaving, waiting. See cuda/peer.h. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/pool.h"
#include "runtime/cuda/peer.h"
#include "runtime/emulate.h"

#define LEAVE_SECONDS 10    /* that a rank which failed waits for the others */
#define SPIN_SECONDS  50e-6 /* of a wait, before it sleeps in between */
#define STREAMS       32    /* of a device that run beside each other whatever they wait for */
#define RELEASED      1     /* each byte of a word that lets everybody pass */

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
}

/* ---- waiting ---- */

MoeStatus moe_cuda_peers_await(MoeDeviceCuda *d, MoeCuEvent e) {
    double began = moe_now();
    MoeCuResult r;
    while ((r = d->cu->event_query(e)) == MOE_CU_NOT_READY) {
        moe_comm_poll(d->comm);
        MOE_TRY(moe_comm_status(d->comm));
        if (moe_now() - began > SPIN_SECONDS)
            usleep(20);
    }
    return moe_cuda_check(d, r, "running program %s up to step %s",
                          d->program ? d->program : "none", d->step ? d->step : "none");
}

/* ---- who can ---- */

typedef struct {
    MoeDeviceCuda *device;
    MoeExec *x;
    const char *why; /* not; static text */
} Offer;

/* Whether streams can wait for values: tried on a word of the device, as no attribute says it. */
static bool can_wait(MoeDeviceCuda *d) {
    MoeCuStreamOp ops[3] = {0};
    for (int k = 0; k < 3; k++) {
        ops[k].on.operation = k == 1 ? MOE_CU_OP_WAIT_VALUE_32 : MOE_CU_OP_WRITE_VALUE_32;
        ops[k].on.address = d->stop;
        ops[k].on.value = k < 2;
    }
    return d->cu->stream_ops(d->stream, 3, ops, 0) == MOE_CU_SUCCESS &&
           d->cu->stream_synchronize(d->stream) == MOE_CU_SUCCESS;
}

static const char *cannot(MoeDeviceCuda *d, const MoeExec *x) {
    if (d->exchange == MOE_EXCHANGE_HOST || d->exchange == MOE_EXCHANGE_NCCL)
        return "";
    if (strcmp(x->comm->ops->name, "threads"))
        return "ranks are not threads of one process";
    const char *why = moe_peer_refuses(x);
    return why ? why : can_wait(d) ? NULL : "this driver has no streams that wait for values";
}

/* Of this rank's device with all others. */
static const char *out_of_reach(const MoeDeviceCuda *d, const Offer *all, int n) {
    int here = 0;
    for (int i = 0; i < n; i++) {
        int can = 0;
        here += 2 * (all[i].device->device == d->device);
        if (all[i].device->device == d->device)
            continue;
        if (d->cu->can_access_peer(&can, d->device, all[i].device->device) != MOE_CU_SUCCESS ||
            !can)
            return "devices do not reach each other's memory";
    }
    return here > STREAMS ? "more than 16 ranks share a device" : NULL;
}

/* Every rank gets every rank's reason; *out: the first, NULL: all can. */
static MoeStatus agree(MoeExec *x, Offer *all, const char *mine, const char **out) {
    Offer me = all[x->rank];
    *out = mine;
    if (strcmp(x->comm->ops->name,
               "threads")) /* all say the same, and texts of other processes are not here */
        return NULL;
    me.why = mine;
    MOE_TRY(moe_comm_all_gather(x->comm, &me, sizeof me, all, "devices"));
    *out = NULL;
    for (int i = 0; i < x->plan->ranks && !*out; i++)
        *out = all[i].why;
    return NULL;
}

/* ---- reaching ---- */

/* The devices of all ranks, each once, get to this one's slab; this one to their memory. */
static MoeStatus give_access(MoeDeviceCuda *d, const Offer *all, int n) {
    MoeCuAccess *list = calloc((size_t)n, sizeof *list);
    if (!list)
        return no_memory();
    free(d->access);
    d->access = list;
    d->n_access = 0;
    for (int i = 0; i < n; i++) {
        MoeDeviceCuda *o = all[i].device;
        size_t k = 0;
        while (k < d->n_access && list[k].location.id != o->device)
            k++;
        if (k < d->n_access)
            continue;
        list[d->n_access++] =
            (MoeCuAccess){{MOE_CU_LOCATION_DEVICE, o->device}, MOE_CU_ACCESS_READWRITE};
        MoeCuResult r = o->device == d->device ? MOE_CU_SUCCESS : d->cu->peer_enable(o->context, 0);
        if (r != MOE_CU_PEER_ACCESS_ALREADY_ENABLED)
            MOE_TRY(moe_cuda_check(d, r, "cuCtxEnablePeerAccess of GPU %d", o->ordinal));
    }
    return d->n_access > 1 ? moe_cuda_share_slab(d) : NULL;
}

static MoeStatus make_words(MoeDeviceCuda *d, const MoeExec *x, MoeCuPtr *out) {
    int64_t n = MOE_PEER_WORDS + MOE_PEER_SAYINGS * x->plan->ranks;
    for (size_t g = 0; g < x->plan->n_programs; g++)
        n += (int64_t)x->plan->programs[g].n_steps;
    MOE_TRY(moe_cuda_table(d, n * (int64_t)sizeof(int32_t), "words between ranks", out));
    return moe_cuda_wait(d);
}

static MoeStatus make_streams(MoeDeviceCuda *d, struct MoeCudaPeers *p) {
    MoeCuStream *streams[] = {&p->stream, &p->rescue};
    MoeCuEvent *events[] = {&p->fork, &p->idle};
    for (int i = 0; i < 2; i++) {
        MOE_TRY(moe_cuda_check(d, d->cu->stream_create(streams[i], MOE_CU_STREAM_NON_BLOCKING),
                               "cuStreamCreate"));
        MOE_TRY(moe_cuda_check(d, d->cu->event_create(events[i], MOE_CU_EVENT_DISABLE_TIMING),
                               "cuEventCreate"));
    }
    return NULL;
}

static MoeStatus make_own(MoeDeviceCuda *d, MoeExec *x, const Offer *all, struct MoeCudaPeers *p,
                          MoePeerRank *me) {
    MoeCuContext context;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(give_access(d, all, x->plan->ranks));
    MOE_TRY(make_streams(d, p));
    *me = (MoePeerRank){d, x, NULL, d->device, 0, false};
    MOE_TRY(
        moe_cuda_check(d, d->cu->context_retain(&context, d->device), "cuDevicePrimaryCtxRetain"));
    me->context = context;
    return make_words(d, x, &me->words);
}

/* ---- what they share ---- */

static MoePeerHub *make_hub(int n) {
    MoePeerHub *h = calloc(1, sizeof *h + sizeof *h->ranks * (size_t)n);
    if (!h)
        return NULL;
    h->n = n;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->change, NULL);
    return h;
}

static void free_hub(const MoeCudaDriver *cu, MoePeerHub *h, bool keep_memory) {
    for (int i = 0; i < h->n; i++) {
        MoePeerRank *r = &h->ranks[i];
        if (!r->context)
            continue;
        (void)cu->context_set(r->context);
        if (r->words && !keep_memory)
            (void)cu->mem_free(r->words);
        (void)cu->context_release(r->number);
    }
    pthread_mutex_destroy(&h->lock);
    pthread_cond_destroy(&h->change);
    free(h);
}

/* Rank 0 makes it. From here on every rank has it, and leaves it. */
static MoeStatus share_hub(MoeExec *x, MoePeerHub **out) {
    MoePeerHub *mine = x->rank ? NULL : make_hub(x->plan->ranks);
    MoePeerHub **all = calloc((size_t)x->plan->ranks, sizeof(MoePeerHub *));
    MoeStatus st =
        all ? moe_comm_all_gather(x->comm, &mine, sizeof(MoePeerHub *), all, "peers") : no_memory();
    if (!st && !all[0])
        st = no_memory();
    if (!st)
        *out = all[0];
    else
        free(mine);
    free(all);
    return st;
}

/* Every step's outcome is agreed on, so that no rank goes on alone with addresses of one that is not there. */
static MoeStatus open_all(MoeDeviceCuda *d, MoeExec *x, const Offer *all, struct MoeCudaPeers *p) {
    MOE_TRY(share_hub(x, &p->hub));
    p->micro = p->micros = -1;
    MoeStatus st = make_own(d, x, all, p, &p->hub->ranks[x->rank]);
    MOE_TRY(moe_comm_agree(x->comm, st, "devices' memory"));
    MOE_TRY(moe_comm_agree(x->comm, moe_peer_tables(d, x, p), "tables of exchanges"));
    return NULL;
}

static MoeStatus refuse(const MoeDeviceCuda *d, const MoeExec *x, const char *why) {
    if (d->exchange == MOE_EXCHANGE_PEER)
        return moe_error(MOE_E_INPUT,
                         "--exchange peer: ranks cannot read each other's memory: %s; --exchange "
                         "auto takes another way",
                         why);
    if (*why && x->rank == 0 && !strcmp(x->comm->ops->name, "threads"))
        moe_note("exchanges between GPUs do not go from memory to memory: %s", why);
    return NULL;
}

MoeStatus moe_cuda_peers_open(MoeDeviceCuda *d, MoeExec *x) {
    const char *why = NULL;
    if (x->plan->ranks == 1 || moe_comm_emulated(x->comm))
        return NULL;
    MOE_TRY(moe_cuda_enter(d));
    Offer *all = calloc((size_t)x->plan->ranks, sizeof *all);
    struct MoeCudaPeers *p = calloc(1, sizeof *p);
    MoeStatus st = all && p ? NULL : no_memory();
    if (!st)
        all[x->rank] = (Offer){d, x, NULL};
    if (!st)
        st = agree(x, all, cannot(d, x), &why);
    if (!st && !why)
        st = agree(x, all, out_of_reach(d, all, x->plan->ranks), &why);
    if (!st && why)
        st = refuse(d, x, why);
    if (st || why) {
        free(p);
        free(all);
        return st;
    }
    d->peers = p;
    d->comm = x->comm;
    st = open_all(d, x, all, p);
    free(all);
    if (!st && x->rank == 0)
        moe_note("exchanges between GPUs go from memory to memory");
    return st;
}

/* ---- leaving ---- */

static bool idle(const MoeDeviceCuda *d, MoeCuStream s) {
    return !s || d->cu->stream_query(s) != MOE_CU_NOT_READY;
}

/* Nothing of an exchange may be under way any more that a rank which failed should still take part in: this rank is stopped for good, so
 * its kernels do nothing, and its words let its streams pass. */
static void release_streams(MoeDeviceCuda *d, const MoeExec *x, struct MoeCudaPeers *p) {
    const size_t n = MOE_PEER_SAYINGS * (size_t)x->plan->ranks * sizeof(int32_t);
    double end = moe_now() + LEAVE_SECONDS;
    (void)d->cu->set_bytes(d->stop, RELEASED, sizeof(int32_t), p->rescue);
    while ((!idle(d, d->stream) || !idle(d, p->stream)) && moe_now() < end) {
        (void)d->cu->set_bytes(moe_peer_word(p->hub, x->rank, MOE_PEER_WORDS), RELEASED, n,
                               p->rescue);
        (void)d->cu->stream_synchronize(p->rescue);
        usleep(500);
    }
}

/* Returns whether all ranks are out, now or soon. */
static bool all_out(MoePeerHub *h) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += LEAVE_SECONDS;
    bool out = false, waits = true;
    pthread_mutex_lock(&h->lock);
    while (!out && waits) {
        out = true;
        for (int i = 0; i < h->n; i++)
            out = out && h->ranks[i].out;
        if (!out)
            waits = !pthread_cond_timedwait(&h->change, &h->lock, &t);
    }
    pthread_mutex_unlock(&h->lock);
    return out;
}

static bool say_out(MoePeerHub *h, int rank, bool left) {
    pthread_mutex_lock(&h->lock);
    h->ranks[rank].out = true;
    h->left += left;
    bool last = h->left == h->n;
    pthread_cond_broadcast(&h->change);
    pthread_mutex_unlock(&h->lock);
    return last;
}

/* Waits for what was started, as long as all ranks do their part; whether it ended. */
static bool ends_well(MoeDeviceCuda *d, const struct MoeCudaPeers *p) {
    MoeStatus st = d->failed ? moe_error(MOE_E_IO, "%s", d->failed) : NULL;
    while (!st && (!idle(d, d->stream) || !idle(d, p->stream))) {
        moe_comm_poll(d->comm);
        st = moe_comm_status(d->comm);
        usleep(100);
    }
    bool well = !st && !d->failed;
    moe_status_free(st);
    return well;
}

static void free_own(MoeDeviceCuda *d, struct MoeCudaPeers *p) {
    MoeCuStream streams[] = {p->stream, p->rescue};
    MoeCuEvent events[] = {p->fork, p->idle};
    moe_peer_free_tables(d, p);
    for (int i = 0; i < 2; i++) {
        if (streams[i] && !d->keep_memory)
            (void)d->cu->stream_destroy(streams[i]);
        if (events[i])
            (void)d->cu->event_destroy(events[i]);
    }
    free(p);
}

void moe_cuda_peers_close(MoeDeviceCuda *d, MoeExec *x) {
    struct MoeCudaPeers *p = d->peers;
    if (!p)
        return;
    (void)d->cu->context_set(d->context);
    bool well = !p->hub || ends_well(d, p);
    if (!well)
        release_streams(d, x, p);
    if (p->hub) {
        (void)say_out(p->hub, x->rank, false);
        d->keep_memory = !well && !all_out(p->hub);
    }
    d->peers = NULL; /* nobody to wait for any more */
    d->comm = NULL;
    if (p->hub && say_out(p->hub, x->rank, true))
        free_hub(d->cu, p->hub, d->keep_memory);
    (void)d->cu->context_set(d->context);
    free_own(d, p);
}
