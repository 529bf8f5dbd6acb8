/* What works: the cases of the conformance suite after which the communicator goes on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/pool.h"
#include "tests/support/comm_suite_internal.h"

char *comm_case_empty(MoeComm *c) {
    for (int i = 0; i < 20; i++) {
        MoeStatus st = moe_comm_exchange(c, NULL, 0, NULL, 0, "nothing");
        if (st)
            return comm_unexpected(st, "an exchange of nothing");
        moe_comm_poll(c);
        moe_comm_phase(c, i, "empty");
    }
    /* Blocks of no rows and of no bytes are nothing too. */
    MoeBlock b[2] = {{.peer = c->size - 1, .base = b, .row_bytes = 8, .n = 0},
                     {.peer = c->size - 1, .base = b, .row_bytes = 0, .n = 3}};
    MoeStatus st = moe_comm_exchange(c, b, 2, b, 2, "empty blocks");
    return st ? comm_unexpected(st, "an exchange of empty blocks") : NULL;
}

char *comm_case_uneven(MoeComm *c) {
    char *wrong = NULL;
    for (int x = 0; x < 20 && !wrong; x++)
        wrong = comm_job_run(c, x, comm_bytes_uneven, COMM_LAY_PLAIN, COMM_LAY_PLAIN, 1);
    return wrong;
}

static int64_t bytes_own(int exchange, int from, int to, int size) {
    (void)size;
    return from == to ? 1 + exchange * 100 : 0;
}

/* Rows of one buffer sent to itself: where they are, then in reverse order into another buffer. */
static char *in_place(MoeComm *c) {
    int32_t rows[8], reversed[8], index[8];
    for (int i = 0; i < 8; i++) {
        rows[i] = 100 * c->rank + i;
        index[i] = 7 - i;
    }
    MoeBlock own = {.peer = c->rank, .base = rows, .row_bytes = 4, .n = 8};
    MoeBlock back = {.peer = c->rank, .base = reversed, .row_bytes = 4, .n = 8, .index = index};
    MoeStatus st = moe_comm_exchange(c, &own, 1, &own, 1, "in place");
    if (!st)
        st = moe_comm_exchange(c, &own, 1, &back, 1, "reversed");
    if (st)
        return comm_unexpected(st, "to itself");
    for (int i = 0; i < 8; i++)
        if (rows[i] != 100 * c->rank + i || reversed[7 - i] != rows[i])
            return comm_wrong("row %d is %d in place and %d reversed", i, rows[i], reversed[7 - i]);
    return NULL;
}

char *comm_case_to_itself(MoeComm *c) {
    char *wrong = in_place(c);
    for (int x = 0; x < 5 && !wrong; x++)
        wrong = comm_job_run(c, x, bytes_own, COMM_LAY_PLAIN, COMM_LAY_RANDOM, 2);
    return wrong;
}

static int64_t bytes_rows(int exchange, int from, int to, int size) {
    (void)size;
    return 24 * ((exchange + 3 * from + 5 * to) % 40); /* whole rows, of 2, 3, 4, 6, 8, 12 bytes */
}

char *comm_case_indexed(MoeComm *c) {
    static const CommLay lays[3][2] = {{COMM_LAY_INDEX, COMM_LAY_PLAIN},
                                       {COMM_LAY_PLAIN, COMM_LAY_INDEX},
                                       {COMM_LAY_INDEX, COMM_LAY_INDEX}};
    char *wrong = NULL;
    for (int x = 0; x < 12 && !wrong; x++)
        wrong = comm_job_run(c, x, bytes_rows, lays[x % 3][0], lays[x % 3][1], 3);
    return wrong;
}

char *comm_case_cut_differently(MoeComm *c) {
    char *wrong = NULL;
    for (int x = 0; x < 10 && !wrong; x++)
        wrong = comm_job_run(c, x, bytes_rows, COMM_LAY_INDEX, COMM_LAY_RANDOM, 4);
    for (int x = 10; x < 20 && !wrong; x++)
        wrong = comm_job_run(c, x, bytes_rows, COMM_LAY_RANDOM, COMM_LAY_RANDOM, 5);
    return wrong;
}

static int64_t bytes_pairs(int exchange, int from, int to, int size) {
    (void)size;
    return from / 2 == to / 2 ? 50 + exchange + from : 0;
}

/* Pairs go their own way: a pair does not wait for the others, who are late in turn. */
char *comm_case_groups(MoeComm *c) {
    char *wrong = NULL;
    for (int x = 0; x < 12 && !wrong; x++) {
        if (c->rank / 2 == x % ((c->size + 1) / 2))
            usleep(3000);
        wrong = comm_job_run(c, x, bytes_pairs, COMM_LAY_PLAIN, COMM_LAY_PLAIN, 6);
    }
    return wrong;
}

/* n exchanges started, then waited for in an order of this rank's own. Takes the jobs. */
static char *run_window(MoeComm *c, CommJob **jobs, int n, uint64_t seed) {
    char *wrong = NULL;
    int started = 0;
    MoeStatus st = NULL;
    for (; started < n && !st; started++)
        st = comm_job_start(jobs[started], c);
    if (st) {
        wrong = comm_unexpected(st, "start");
        started--; /* the last one was not */
    }
    for (int i = started; i < n; i++)
        free(comm_job_check(jobs[i], NULL)); /* holds nothing yet: only to free it */
    for (int left = started; left; left--) {
        int k = (int)moe_rng_below(seed, (uint64_t)c->rank, (uint64_t)left, (uint64_t)left);
        char *what = comm_job_check(jobs[k], comm_job_wait(jobs[k], c));
        jobs[k] = jobs[left - 1];
        if (wrong)
            free(what);
        else
            wrong = what;
    }
    return wrong;
}

char *comm_case_many_in_flight(MoeComm *c) {
    enum { N = 40 };
    CommJob *jobs[N];
    for (int x = 0; x < N; x++)
        jobs[x] = comm_job(c, x, comm_bytes_uneven, COMM_LAY_PLAIN, COMM_LAY_INDEX, 7);
    return run_window(c, jobs, N, 8);
}

char *comm_case_skewed(MoeComm *c) {
    char *wrong = NULL;
    for (int x = 0; x < 25 && !wrong; x++) {
        CommJob *j = comm_job(c, x, comm_bytes_uneven, COMM_LAY_PLAIN, COMM_LAY_PLAIN, 9);
        uint64_t late = moe_rng_below(10, (uint64_t)c->rank, (uint64_t)x, 4);
        usleep((useconds_t)(late * 1500));
        MoeStatus st = comm_job_start(j, c);
        for (uint64_t i = 0; i < 4 - late && !st; i++) {
            usleep(1000);
            moe_comm_poll(c);
        }
        wrong = comm_job_check(j, st ? st : comm_job_wait(j, c));
    }
    return wrong;
}

/* Sizes at random: most small, some none, a few of many kilobytes. */
static int64_t bytes_random(int exchange, int from, int to, int size) {
    uint64_t pair = (uint64_t)(from * size + to), kind;
    kind = moe_rng_below(11, pair, (uint64_t)exchange, 8);
    int64_t most = kind < 3 ? 0 : kind < 7 ? 300 : 40000;
    return most ? (int64_t)moe_rng_below(12, pair, (uint64_t)exchange, (uint64_t)most) : 0;
}

char *comm_case_fuzz(MoeComm *c) {
    char *wrong = NULL;
    int x = 0;
    for (int round = 0; round < 25 && !wrong; round++) {
        CommJob *jobs[6];
        int n = 1 + (int)moe_rng_below(13, 0, (uint64_t)round, 6);
        for (int i = 0; i < n; i++, x++)
            jobs[i] = comm_job(c, x, bytes_random, (CommLay)((x + c->rank) % COMM_LAY_N),
                               (CommLay)((x / 3 + c->rank) % COMM_LAY_N), 14);
        wrong = run_window(c, jobs, n, 15 + (uint64_t)round);
    }
    return wrong;
}

static int64_t bytes_large(int exchange, int from, int to, int size) {
    (void)exchange;
    return from < 2 && to == (from + 1) % size ? (int64_t)16 << 20 : 0;
}

char *comm_case_large(MoeComm *c) {
    char *wrong = comm_job_run(c, 0, bytes_large, COMM_LAY_PLAIN, COMM_LAY_PLAIN, 16);
    return wrong ? wrong : comm_job_run(c, 1, bytes_large, COMM_LAY_INDEX, COMM_LAY_RANDOM, 17);
}

static char *check_all_gather(MoeComm *c) {
    enum { MOST = 3 };
    int32_t *all = malloc((size_t)c->size * MOST * sizeof *all), mine[MOST];
    MOE_ASSERT(all, "out of memory in a test");
    char *wrong = NULL;
    for (int n = 0; n <= MOST && !wrong; n++) {
        for (int i = 0; i < n; i++)
            mine[i] = 10 * c->rank + i;
        MoeStatus st = moe_comm_all_gather(c, mine, n * 4, all, "all_gather");
        if (st)
            wrong = comm_unexpected(st, "all_gather");
        for (int i = 0; i < n * c->size && !wrong; i++)
            if (all[i] != 10 * (i / n) + i % n)
                wrong = comm_wrong("all_gather of %d: element %d is %d", n, i, all[i]);
    }
    free(all);
    return wrong;
}

/* None is through before the last one comes. Clocks of all ranks are one machine's. */
static char *check_barrier(MoeComm *c) {
    double *came = malloc((size_t)c->size * sizeof *came);
    MOE_ASSERT(came, "out of memory in a test");
    char *wrong = NULL;
    for (int late = 0; late < c->size && !wrong; late++) {
        if (c->rank == late)
            usleep(10000);
        double mine = moe_now();
        MoeStatus st = moe_comm_barrier(c, "barrier");
        double through = moe_now();
        if (!st)
            st = moe_comm_all_gather(c, &mine, sizeof mine, came, "times");
        if (st)
            wrong = comm_unexpected(st, "barrier");
        for (int q = 0; q < c->size && !wrong; q++)
            if (came[q] > through)
                wrong = comm_wrong("through the barrier %g s before rank %d came",
                                   came[q] - through, q);
    }
    free(came);
    return wrong;
}

/* Ranks `first` and (if there are as many) first + 2 fail; and once more with what came of it: whose own error it is stays. */
static char *check_failing(MoeComm *c, int first) {
    bool mine = c->rank == first || c->rank == first + 2;
    MoeStatus st = mine ? moe_error(MOE_E_MISUSE, "no luck on %d", c->rank) : NULL;
    st = moe_comm_agree(c, st, "luck");
    st = moe_comm_agree(c, st, "luck, again");
    char want[64];
    snprintf(want, sizeof want, c->rank == first ? "no luck on %d" : "rank %d: no luck on %d",
             first, first);
    char *wrong = NULL;
    if (!st || moe_status_code(st) != MOE_E_MISUSE || strcmp(moe_status_message(st), want))
        wrong = comm_wrong("agree: \"%s\", not \"%s\"", moe_status_message(st), want);
    else if (moe_status_is_told(st) != (c->rank != first))
        wrong = comm_wrong("agree: rank %d %s", c->rank, c->rank == first ? "is silent" : "says it, too");
    moe_status_free(st);
    return wrong;
}

static char *check_agree(MoeComm *c) {
    MoeStatus st = moe_comm_agree(c, NULL, "agree");
    if (st)
        return comm_unexpected(st, "agree");
    char *wrong = check_failing(c, 0);
    return wrong ? wrong : check_failing(c, c->size - 1);
}

char *comm_case_agreements(MoeComm *c) {
    char *wrong = check_all_gather(c);
    if (!wrong)
        wrong = check_barrier(c);
    return wrong ? wrong : check_agree(c);
}

char *comm_case_slow_but_alive(MoeComm *c) {
    double limit = c->silence_limit;
    c->silence_limit = 1;
    double until = moe_now() + 1.6;
    while (c->rank == c->size - 1 && moe_now() < until) {
        usleep(20000);
        moe_comm_poll(c);
    }
    MoeStatus st = moe_comm_barrier(c, "a slow one");
    c->silence_limit = limit;
    return st ? comm_unexpected(st, "a rank that polls") : NULL;
}

/* Longer than the limit at work, without a call. */
char *comm_case_busy_but_alive(MoeComm *c) {
    double limit = c->silence_limit;
    c->silence_limit = 1;
    moe_comm_phase(c, 1, "deep in a kernel");
    double until = moe_now() + 2.2;
    while (c->rank == c->size - 1 && moe_now() < until)
        ;
    MoeStatus st = moe_comm_barrier(c, "a busy one");
    c->silence_limit = limit;
    return st ? comm_unexpected(st, "a rank that computes") : NULL;
}
