/* See ranks.h. */
#include "runtime/ranks.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    MoeRankFn fn;
    void *ctx;
    MoeComm *comm;
    MoeStatus st;
    pthread_t thread;
} Rank;

static void *rank_main(void *arg) {
    Rank *r = arg;
    r->st = r->fn(r->ctx, r->comm);
    if (r->st && moe_status_code(r->st) != MOE_E_PEER)
        moe_comm_abort(r->comm, moe_status_message(r->st));
    return NULL;
}

static bool was_told(const Rank *r) {
    return r->st && (moe_status_code(r->st) == MOE_E_PEER || moe_status_is_told(r->st));
}

/* The cause: the lowest rank's own error, else what ranks were told. Frees the others. The number of a rank that is not
 * alone with its error stands in front where it says something: other ranks gave up, or agreed on that of rank 1 or higher. */
static MoeStatus verdict(Rank *ranks, int n) {
    int cause = -1, told = 0, agreed = 0;
    for (int r = n - 1; r >= 0; r--) {
        agreed += moe_status_is_told(ranks[r].st);
        told += was_told(&ranks[r]);
        if (ranks[r].st && (cause < 0 || !was_told(&ranks[r]) || was_told(&ranks[cause])))
            cause = r;
    }
    for (int r = 0; r < n; r++)
        if (r != cause)
            moe_status_free(ranks[r].st);
    if (cause < 0)
        return NULL;
    bool number = !was_told(&ranks[cause]) && (told > agreed || (agreed && cause > 0));
    moe_status_set_told(ranks[cause].st, false);
    return number ? moe_status_prefix(ranks[cause].st, "rank %d", cause) : ranks[cause].st;
}

MoeStatus moe_ranks_run_on(MoeComm **comms, int n, MoeRankFn fn, void *ctx) {
    if (n == 1)
        return fn(ctx, comms[0]);
    Rank *ranks = calloc((size_t)n, sizeof *ranks);
    if (!ranks)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", n);
    int started = 0, err = 0;
    while (started < n && !err) {
        Rank *r = &ranks[started];
        *r = (Rank){.fn = fn, .ctx = ctx, .comm = comms[started]};
        err = pthread_create(&r->thread, NULL, rank_main, r);
        started += !err;
    }
    if (err)
        for (int r = started; r < n; r++) {
            ranks[r].comm = comms[r];
            ranks[r].st = moe_error(MOE_E_IO, "cannot start the thread of rank %d of %d: %s", r, n,
                                    strerror(err));
            moe_comm_abort(comms[r], moe_status_message(ranks[r].st));
        }
    for (int r = 0; r < started; r++)
        pthread_join(ranks[r].thread, NULL);
    MoeStatus st = verdict(ranks, n);
    free(ranks);
    return st;
}

MoeStatus moe_ranks_run(int n, double silence_limit, MoeRankFn fn, void *ctx) {
    MoeComm **comms = calloc((size_t)n, sizeof *comms);
    if (!comms)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", n);
    MoeStatus st = n == 1 ? moe_comm_self(&comms[0]) : moe_comm_threads(n, comms);
    for (int r = 0; r < n && !st && silence_limit > 0; r++)
        comms[r]->silence_limit = silence_limit;
    if (!st)
        st = moe_ranks_run_on(comms, n, fn, ctx);
    for (int r = 0; r < n; r++)
        moe_comm_destroy(comms[r]);
    free(comms);
    return st;
}
