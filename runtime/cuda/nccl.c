/* Links between GPUs over NCCL: whether there can be any, opening them, waiting with an eye on the other ranks, closing. See
 * cuda/nccl.h. */
#include "runtime/cuda/nccl.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/pool.h"
#include "runtime/emulate.h"

#define MEET_LIMITS     8 /* silence limits, for all ranks to come into the communicator */
#define VERDICT_SECONDS 3 /* until the host's communicator has named the rank that NCCL misses */
#define FLUSH_SECONDS   5 /* at the end */

/* ---- waiting ---- */

/* The links are over, and with them the device: kernels of NCCL that wait for another rank end. */
static MoeStatus give_up(MoeDeviceCuda *d, MoeStatus st) {
    MoeCudaNccl *c = d->nccl;
    if (c->comm)
        (void)c->nccl->abort(c->comm);
    c->comm = NULL;
    if (!d->failed)
        d->failed = strdup(moe_status_message(st));
    return st;
}

/* An error of NCCL mostly means a lost rank: which one it was, the host's communicator will say. Takes st. */
static MoeStatus explain(MoeDeviceCuda *d, MoeStatus st) {
    double began = moe_now();
    MoeStatus told = NULL;
    while (!(told = moe_comm_status(d->nccl->host)) && moe_now() - began < VERDICT_SECONDS) {
        moe_comm_poll(d->nccl->host);
        usleep(1000);
    }
    if (told)
        moe_status_free(st);
    return give_up(d, told ? told : st);
}

static MoeStatus look_at_ranks(MoeDeviceCuda *d) {
    moe_comm_poll(d->nccl->host);
    MoeStatus told = moe_comm_status(d->nccl->host);
    return told ? give_up(d, told) : NULL;
}

MoeStatus moe_cuda_nccl_check(MoeDeviceCuda *d, int result, const char *what) {
    MoeStatus st = moe_nccl_status(result, d->nccl->comm, "GPU %d (%s): exchange \"%s\"",
                                   d->ordinal, d->name, what);
    return st ? explain(d, st) : NULL;
}

static void pause_a_little(int *idle) {
    if ((*idle)++ < 64)
        sched_yield();
    else
        usleep(*idle < 1024 ? 20 : 100);
}

static MoeStatus ready_within(MoeDeviceCuda *d, double seconds, const char *what) {
    double began = moe_now();
    for (int idle = 0, state;;) {
        int r = d->nccl->nccl->async_error(d->nccl->comm, &state);
        MOE_TRY(moe_cuda_nccl_check(d, r, what));
        if (state != MOE_NCCL_IN_PROGRESS)
            return moe_cuda_nccl_check(d, state, what);
        MOE_TRY(look_at_ranks(d));
        if (moe_now() - began > seconds)
            return give_up(d, moe_error(MOE_E_PEER,
                                        "GPU %d (%s): NCCL does not get on with \"%s\" in %.0f "
                                        "s, though all ranks live; NCCL_DEBUG=INFO in the "
                                        "environment says more, --exchange host does without NCCL",
                                        d->ordinal, d->name, what, seconds));
        pause_a_little(&idle);
    }
}

/* As long as the host's communicators wait for ranks that live and get nowhere. */
static double patience(const MoeCudaNccl *c) {
    return 40 * c->host->silence_limit;
}

MoeStatus moe_cuda_nccl_ready(MoeDeviceCuda *d, const char *what) {
    return ready_within(d, patience(d->nccl), what);
}

/* NCCL's own errors show in the communicator, not in the stream. */
static MoeStatus look(MoeDeviceCuda *d) {
    int state = MOE_NCCL_SUCCESS;
    if (d->nccl->comm) {
        int r = d->nccl->nccl->async_error(d->nccl->comm, &state);
        MOE_TRY(moe_cuda_nccl_check(d, r ? r : state, d->step ? d->step : "the first"));
    }
    return look_at_ranks(d);
}

static MoeStatus wait_until(MoeDeviceCuda *d, MoeCuStream stream, MoeCuEvent event) {
    double began = moe_now();
    if (!d->nccl || !d->nccl->comm)
        return NULL;
    for (int idle = 0;;) {
        MoeCuResult r = event ? d->cu->event_query(event) : d->cu->stream_query(stream);
        if (r != MOE_CU_NOT_READY)
            return moe_cuda_check(d, r, "running program %s up to step %s",
                                  d->program ? d->program : "none", d->step ? d->step : "none");
        MOE_TRY(look(d));
        if (moe_now() - began > patience(d->nccl))
            return give_up(
                d, moe_error(MOE_E_PEER,
                             "GPU %d (%s): nothing has moved for %.0f s up to step "
                             "%s, though all ranks live: a link between GPUs stands still",
                             d->ordinal, d->name, patience(d->nccl), d->step ? d->step : "none"));
        pause_a_little(&idle);
    }
}

MoeStatus moe_cuda_nccl_wait(MoeDeviceCuda *d, MoeCuStream stream) {
    return wait_until(d, stream, NULL);
}

MoeStatus moe_cuda_nccl_await(MoeDeviceCuda *d, MoeCuEvent event) {
    return wait_until(d, NULL, event);
}

static MoeStatus settle(MoeDevice *base) {
    MoeDeviceCuda *d = (MoeDeviceCuda *)base;
    MOE_TRY(moe_cuda_enter(d));
    return moe_cuda_wait(d);
}

MoeStatus moe_cuda_nccl_grow(MoeDeviceCuda *d, MoeNcclMemory *m, int64_t bytes, const char *what) {
    if (bytes <= m->bytes)
        return NULL;
    bytes += bytes / 4;
    MOE_TRY(moe_cuda_nccl_wait(d, d->nccl->stream));
    MOE_TRY(moe_cuda_wait(d));
    if (m->at)
        MOE_TRY(moe_cuda_check(d, d->cu->mem_free(m->at), "cuMemFree"));
    *m = (MoeNcclMemory){0};
    MOE_TRY(moe_cuda_table(d, bytes, what, &m->at));
    m->bytes = bytes;
    return NULL;
}

int64_t moe_cuda_nccl_bytes(const MoeDeviceCuda *d) {
    const MoeCudaNccl *c = d->nccl;
    int64_t n = c ? c->stage.bytes + c->sums.bytes : 0;
    for (int i = 0; c && i < c->n_flights; i++)
        n += c->flights[i].table.bytes;
    return n;
}

/* ---- whether there can be links ---- */

/* What each rank tells all others. */
typedef struct {
    char gpu[16]; /* its UUID */
    int version;  /* NCCL's; 0: it has none */
    int ordinal;
    char why[384]; /* it has none */
} Card;

static MoeStatus fill_card(MoeDeviceCuda *d, Card *out) {
    const MoeNccl *nccl;
    memset(out, 0, sizeof *out);
    out->ordinal = d->ordinal;
    MOE_TRY(moe_cuda_check(d, d->cu->device_uuid(out->gpu, d->device), "cuDeviceGetUuid"));
    MoeStatus st = moe_nccl(&nccl);
    if (st)
        snprintf(out->why, sizeof out->why, "%s", moe_status_message(st));
    else
        (void)nccl->get_version(&out->version);
    moe_status_free(st);
    return NULL;
}

/* Why ranks with these cards have no links; NULL: they can. *surprise: nobody would expect it. */
static MoeStatus refusal(const Card *cards, int n, bool *surprise) {
    *surprise = true;
    for (int r = 0; r < n; r++)
        for (int q = 0; q < r; q++)
            if (!memcmp(cards[q].gpu, cards[r].gpu, sizeof cards[r].gpu)) {
                *surprise = false;
                return moe_error(MOE_E_INPUT,
                                 "ranks %d and %d share GPU %d, and NCCL wants one for each", q, r,
                                 cards[r].ordinal);
            }
    for (int r = 0; r < n; r++)
        if (!cards[r].version)
            return moe_error(MOE_E_INPUT, "rank %d: %s", r, cards[r].why);
    for (int r = 1; r < n; r++)
        if (cards[r].version != cards[0].version)
            return moe_error(MOE_E_INPUT,
                             "rank 0 has NCCL %d and rank %d has NCCL %d: install one version",
                             cards[0].version, r, cards[r].version);
    return NULL;
}

/* The same verdict on all ranks. */
static MoeStatus can_open(MoeDeviceCuda *d, MoeComm *host, MoeExchange asked, bool *out) {
    Card mine, *all = calloc((size_t)host->size, sizeof *all);
    bool surprise = false;
    *out = false;
    MoeStatus st =
        all ? fill_card(d, &mine) : moe_error(MOE_E_NOMEM, "no memory for %d ranks", host->size);
    if (!st)
        st = moe_comm_all_gather(host, &mine, sizeof mine, all, "which GPUs there are");
    MoeStatus no = st ? NULL : refusal(all, host->size, &surprise);
    free(all);
    *out = !st && !no;
    if (no && asked == MOE_EXCHANGE_NCCL)
        return moe_status_prefix(no, "--exchange nccl");
    if (no && host->rank == 0 && (surprise || strcmp(host->ops->name, "threads") != 0))
        moe_note("exchanges between GPUs go through the host's memory: %s", moe_status_message(no));
    moe_status_free(no);
    return st;
}

/* ---- opening ---- */

typedef struct {
    MoeNcclId id;
    int result;
} Invitation;

/* Rank 0's id on every rank. */
static MoeStatus share_id(MoeDeviceCuda *d, MoeNcclId *out) {
    MoeComm *host = d->nccl->host;
    Invitation mine = {0}, *all = calloc((size_t)host->size, sizeof *all);
    if (!all)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", host->size);
    if (host->rank == 0)
        mine.result = d->nccl->nccl->get_id(&mine.id);
    MoeStatus st = moe_comm_all_gather(host, &mine, sizeof mine, all, "NCCL's communicator");
    if (!st)
        st = moe_nccl_status(all[0].result, NULL, "rank 0 makes the id of a communicator");
    *out = all[0].id;
    free(all);
    return st;
}

static MoeStatus join(MoeDeviceCuda *d) {
    MoeCudaNccl *c = d->nccl;
    MoeNcclId id;
    MoeNcclConfig config = {.size = sizeof config,
                            .magic = MOE_NCCL_CONFIG_MAGIC,
                            .version = MOE_NCCL_CONFIG_VERSION,
                            .blocking = 0,
                            .cluster_size = MOE_NCCL_UNDEFINED,
                            .min_blocks = MOE_NCCL_UNDEFINED,
                            .max_blocks = MOE_NCCL_UNDEFINED,
                            .split_share = MOE_NCCL_UNDEFINED};
    MOE_TRY(share_id(d, &id));
    MOE_TRY(moe_cuda_nccl_check(
        d, c->nccl->init_config(&c->comm, c->host->size, id, c->host->rank, &config), "joining"));
    return ready_within(d, MEET_LIMITS * c->host->silence_limit, "joining");
}

static MoeStatus make(MoeDeviceCuda *d, MoeExec *x) {
    MoeCudaNccl *c = d->nccl = calloc(1, sizeof *c);
    if (c)
        c->peers = calloc((size_t)x->comm->size, sizeof *c->peers);
    if (!c || !c->peers)
        return moe_error(MOE_E_NOMEM, "no memory for links between GPUs");
    c->host = x->comm;
    MOE_TRY(moe_nccl(&c->nccl));
    MOE_TRY(moe_cuda_check(d, d->cu->stream_create(&c->stream, MOE_CU_STREAM_NON_BLOCKING),
                           "cuStreamCreate"));
    return moe_cuda_check(d, d->cu->event_create(&c->fork, MOE_CU_EVENT_DISABLE_TIMING),
                          "cuEventCreate");
}

static const MoeDeviceLinks links = {
    .add = moe_cuda_nccl_add,
    .start = moe_cuda_nccl_start,
    .finish = moe_cuda_nccl_finish,
    .sum = moe_cuda_nccl_sum,
    .fold = moe_cuda_nccl_fold,
    .clear = moe_cuda_nccl_clear,
    .settle = settle,
};

MoeStatus moe_cuda_nccl_open(MoeDeviceCuda *d, MoeExec *x, MoeExchange asked) {
    bool can;
    char version[24];
    if (x->comm->size == 1 || (asked != MOE_EXCHANGE_AUTO && asked != MOE_EXCHANGE_NCCL) ||
        moe_comm_emulated(x->comm))
        return NULL;
    MOE_TRY(moe_cuda_enter(d));
    MOE_TRY(can_open(d, x->comm, asked, &can));
    if (!can)
        return NULL;
    MOE_TRY(make(d, x));
    MOE_TRY(join(d));
    d->base.links = &links;
    if (x->rank == 0)
        moe_note("exchanges between GPUs go over NCCL %s", moe_nccl_version(version));
    return NULL;
}

/* ---- closing ---- */

/* All that was sent has left; false: give up instead. */
static bool flush(MoeDeviceCuda *d) {
    MoeCudaNccl *c = d->nccl;
    MoeStatus st = moe_cuda_nccl_wait(d, c->stream);
    if (!st)
        st = moe_cuda_nccl_wait(d, d->stream);
    if (!st && c->comm)
        st = moe_cuda_nccl_check(d, c->nccl->finalize(c->comm), "the end");
    if (!st && c->comm)
        st = ready_within(d, FLUSH_SECONDS, "the end");
    bool good = !st && c->comm;
    moe_status_free(st);
    return good;
}

void moe_cuda_nccl_close(MoeDeviceCuda *d) {
    MoeCudaNccl *c = d->nccl;
    if (!c)
        return;
    (void)d->cu->context_set(d->context);
    if (c->comm && !d->failed && flush(d))
        (void)c->nccl->destroy(c->comm);
    else if (c->comm)
        (void)c->nccl->abort(c->comm);
    c->comm = NULL;
    if (c->stream) {
        (void)d->cu->stream_synchronize(c->stream);
        (void)d->cu->stream_destroy(c->stream);
    }
    if (c->fork)
        (void)d->cu->event_destroy(c->fork);
    for (int i = 0; i < c->n_flights; i++) {
        if (c->flights[i].done)
            (void)d->cu->event_destroy(c->flights[i].done);
        if (c->flights[i].table.at)
            (void)d->cu->mem_free(c->flights[i].table.at);
    }
    if (c->stage.at)
        (void)d->cu->mem_free(c->stage.at);
    if (c->sums.at)
        (void)d->cu->mem_free(c->sums.at);
    free(c->flights);
    free(c->sends.items);
    free(c->recvs.items);
    free(c->before.items);
    free(c->after.items);
    free(c->peers);
    free(c->table);
    free(c);
    d->nccl = NULL;
    d->base.links = NULL;
}
