/* State shared by the ranks of one process. See comm_hub.h. */
#include "runtime/comm_hub.h"

#include <stdlib.h>
#include <string.h>

#include "base/pool.h"

void moe_hub_lock(MoeHub *h) {
    pthread_mutex_lock(&h->lock);
}

void moe_hub_unlock(MoeHub *h) {
    pthread_mutex_unlock(&h->lock);
}

static MoeHubRank *create_rank(MoeHub *h, int rank) {
    MoeHubRank *r = aligned_alloc(64, (sizeof *r + 63) / 64 * 64);
    if (!r)
        return NULL;
    memset(r, 0, sizeof *r);
    r->base = (MoeComm){NULL, rank, h->n, 15};
    r->hub = h;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &attr);
    pthread_condattr_destroy(&attr);
    return r;
}

MoeStatus moe_hub_create(int n, MoeHub **out) {
    MoeHub *h = calloc(1, sizeof *h);
    if (!h)
        return moe_error(MOE_E_NOMEM, "out of memory for %d ranks", n);
    h->n = n;
    h->spin = n <= moe_cpu_count();
    h->cap_rounds = 16;
    pthread_mutex_init(&h->lock, NULL);
    h->ranks = calloc((size_t)n, sizeof *h->ranks);
    h->rounds = calloc(h->cap_rounds, sizeof *h->rounds);
    bool good = h->ranks && h->rounds;
    for (int i = 0; good && i < n; i++)
        good = (h->ranks[i] = create_rank(h, i)) != NULL;
    if (!good) {
        moe_hub_destroy(h);
        return moe_error(MOE_E_NOMEM, "out of memory for %d ranks", n);
    }
    *out = h;
    return NULL;
}

static void free_request(MoeRequest *r) {
    if (r) {
        free(r->blocks);
        free(r->peers);
        free(r);
    }
}

static void free_round(MoeHub *h, MoeHubRound *round) {
    for (int i = 0; round && i < h->n; i++)
        free_request(round->of[i]);
    free(round);
}

void moe_hub_destroy(MoeHub *h) {
    for (size_t i = 0; h->rounds && i < h->cap_rounds; i++)
        free_round(h, h->rounds[i]);
    while (h->unused) {
        MoeRequest *r = h->unused;
        h->unused = r->next;
        free_request(r);
    }
    for (int i = 0; h->ranks && i < h->n; i++)
        if (h->ranks[i]) {
            pthread_cond_destroy(&h->ranks[i]->wake);
            free(h->ranks[i]);
        }
    pthread_mutex_destroy(&h->lock);
    moe_str_free(&h->failure);
    free(h->ranks);
    free(h->rounds);
    free(h);
}

static void give_back(MoeHub *h, MoeRequest *r) {
    r->next = h->unused;
    h->unused = r;
}

MoeRequest *moe_hub_request(MoeHub *h, size_t n_blocks) {
    MoeRequest *r = h->unused;
    size_t peers_bytes = (size_t)h->n * sizeof *r->peers;
    if (r) {
        h->unused = r->next;
    } else if (!(r = calloc(1, sizeof *r)) || !(r->peers = malloc(peers_bytes))) {
        free(r);
        return NULL;
    }
    if (n_blocks > r->cap_blocks) {
        MoeBlock *blocks = malloc(n_blocks * sizeof *blocks);
        if (!blocks) {
            give_back(h, r);
            return NULL;
        }
        free(r->blocks);
        r->blocks = blocks;
        r->cap_blocks = n_blocks;
    }
    r->next = NULL;
    r->round = NULL;
    r->n_sends = r->n_recvs = 0;
    r->open = r->readers = 0;
    memset(r->peers, 0, peers_bytes);
    return r;
}

static MoeHubRound **slot_of(MoeHub *h, int64_t number) {
    return &h->rounds[(size_t)number & (h->cap_rounds - 1)];
}

static bool grow(MoeHub *h) {
    size_t cap = h->cap_rounds * 2;
    MoeHubRound **rounds = calloc(cap, sizeof *rounds);
    if (!rounds)
        return false;
    for (int64_t i = h->oldest; i < h->newest; i++)
        rounds[(size_t)i & (cap - 1)] = *slot_of(h, i);
    free(h->rounds);
    h->rounds = rounds;
    h->cap_rounds = cap;
    return true;
}

/* The exchange of that number, made if this rank is the first to start it. */
static MoeHubRound *round_of(MoeHub *h, int64_t number) {
    if (number < h->newest)
        return *slot_of(h, number);
    if ((size_t)(h->newest - h->oldest) == h->cap_rounds && !grow(h))
        return NULL;
    MoeHubRound *round = calloc(1, sizeof *round + (size_t)h->n * sizeof round->of[0]);
    if (!round)
        return NULL;
    round->number = number;
    *slot_of(h, number) = round;
    h->newest = number + 1;
    return round;
}

bool moe_hub_post(MoeHubRank *me, MoeRequest *r) {
    MoeHubRound *round = round_of(me->hub, me->next);
    if (!round) {
        give_back(me->hub, r);
        return false;
    }
    r->round = round;
    round->of[me->base.rank] = r;
    me->next++;
    MoeRequest **last = &me->first;
    while (*last)
        last = &(*last)->next;
    *last = r;
    return true;
}

void moe_hub_end(MoeHubRank *me, MoeRequest *r) {
    MoeHub *h = me->hub;
    MoeHubRound *round = r->round;
    MoeRequest **at = &me->first;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    if (++round->ended < h->n)
        return;
    for (int i = 0; i < h->n; i++)
        give_back(h, round->of[i]);
    *slot_of(h, round->number) = NULL;
    free(round);
    while (h->oldest < h->newest && !*slot_of(h, h->oldest))
        h->oldest++;
}

void moe_hub_notify(MoeHub *h, int rank) {
    MoeHubRank *r = h->ranks[rank];
    atomic_fetch_add(&r->events, 1);
    if (r->sleeping)
        pthread_cond_signal(&r->wake);
}

void moe_hub_fail(MoeHub *h, MoeCode code, int a, int b, const char *fmt, ...) {
    if (h->failed)
        return;
    va_list args;
    va_start(args, fmt);
    moe_str_vprintf(&h->failure, fmt, args);
    va_end(args);
    h->code = code;
    h->party[0] = a;
    h->party[1] = b;
    atomic_store(&h->failed, true);
    for (int i = 0; i < h->n; i++)
        moe_hub_notify(h, i);
}

MoeStatus moe_hub_status(const MoeHubRank *me) {
    const MoeHub *h = me->hub;
    if (!h->failed)
        return NULL;
    bool party = me->base.rank == h->party[0] || me->base.rank == h->party[1];
    return moe_error(party ? h->code : MOE_E_PEER, "%s", moe_str_c(&h->failure));
}
