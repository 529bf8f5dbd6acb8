/* What fails: the cases of the conformance suite that end with a failed communicator. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "tests/support/comm_suite_internal.h"

/* NULL if st is of that code and its message holds the words; else what is wrong. Frees st. */
static char *want_error(MoeStatus st, MoeCode code, const char *where, const char *word,
                        const char *word2) {
    const char *message = moe_status_message(st);
    char *wrong = NULL;
    if (!st)
        wrong = comm_wrong("%s: no failure; wanted one that says \"%s\"", where, word);
    else if (moe_status_code(st) != code)
        wrong = comm_wrong("%s: code %d, not %d: %s", where, (int)moe_status_code(st), (int)code,
                           message);
    else if (!strstr(message, word) || (word2 && !strstr(message, word2)))
        wrong = comm_wrong("%s: \"%s\" does not say \"%s\"%s%s", where, message, word,
                           word2 ? " and " : "", word2 ? word2 : "");
    moe_status_free(st);
    return wrong;
}

/* Every later call fails at once. */
static char *want_over(MoeComm *c) {
    moe_comm_poll(c);
    moe_comm_phase(c, 99, "after the end");
    for (int i = 0; i < 3; i++) {
        MoeStatus st = i == 0   ? moe_comm_exchange(c, NULL, 0, NULL, 0, "late")
                       : i == 1 ? moe_comm_barrier(c, "late barrier")
                                : moe_comm_agree(c, NULL, "late agreement");
        if (!st)
            return comm_wrong("call %d after the failure succeeds", i);
        moe_status_free(st);
    }
    return NULL;
}

/* From rank 0 to the last rank, both of which get it wrong; all others exchange nothing. */
char *comm_case_mismatch(MoeComm *c) {
    char data[64] = {0};
    int last = c->size - 1;
    moe_comm_phase(c, 3, "forward");
    MoeBlock send = {.peer = last, .base = data, .row_bytes = 8, .n = 5};
    MoeBlock recv = {.peer = 0, .base = data, .row_bytes = 4, .n = 9};
    MoeStatus st = moe_comm_exchange(c, &send, c->rank == 0, &recv, c->rank == last, "odd sizes");
    if (!st && c->rank == 0) /* few bytes may be on their way before anybody compares */
        st = moe_comm_exchange(c, NULL, 0,
                               &(MoeBlock){.peer = last, .base = data, .row_bytes = 1, .n = 1}, 1,
                               "after odd sizes");
    if (c->rank == 0 || c->rank == last) {
        char *wrong = want_error(st, MOE_E_INTERNAL, "40 bytes for 36", "odd sizes", "40");
        return wrong ? wrong : want_over(c);
    }
    moe_status_free(st); /* they may have been through before the others met */
    return NULL;
}

/* All but the last wait for it; it gives up. */
char *comm_case_abort(MoeComm *c) {
    int last = c->size - 1;
    moe_comm_phase(c, 7, "backward layers.1");
    double began = moe_now();
    char who[32];
    snprintf(who, sizeof who, "rank %d (step 7", last);
    MoeStatus st;
    if (c->rank == last) {
        usleep(200000); /* the others are waiting by now; if not, they come later: the same */
        moe_comm_abort(c, "the roof is on fire");
        st = moe_comm_barrier(c, "own");
    } else {
        st = moe_comm_barrier(c, "waiting for the last");
    }
    char *wrong = want_error(st, MOE_E_PEER, "abort", who, "the roof is on fire");
    if (!wrong && moe_now() - began > c->silence_limit)
        wrong = comm_wrong("noticed after %.1f s only", moe_now() - began);
    return wrong ? wrong : want_over(c);
}

static int64_t bytes_all(int exchange, int from, int to, int size) {
    (void)size;
    return 1000 + exchange + from + to;
}

/* Several exchanges under way that the last rank never starts; then it gives up. */
char *comm_case_after_failure(MoeComm *c) {
    enum { N = 5 };
    CommJob *jobs[N] = {0};
    bool last = c->rank == c->size - 1;
    MoeStatus st = moe_comm_barrier(c, "together");
    bool early = st != NULL; /* the last one was through before this one, and quick */
    char *wrong = early && last ? comm_unexpected(st, "barrier") : NULL;
    if (early && !last)
        wrong = want_error(st, MOE_E_PEER, "barrier", "enough", NULL);
    int started = 0;
    for (; started < N && !last && !early; started++) {
        jobs[started] = comm_job(c, started, bytes_all, COMM_LAY_PLAIN, COMM_LAY_INDEX, 18);
        st = comm_job_start(jobs[started], c);
        if (st) { /* as before */
            free(comm_job_check(jobs[started], st));
            break;
        }
    }
    if (last && !wrong) {
        usleep(100000); /* so that most of the time the others are not early */
        moe_comm_abort(c, "enough");
    }
    for (int i = started - 1; i >= 0; i--) {
        st = comm_job_wait(jobs[i], c);
        if (!st && !wrong)
            wrong = comm_wrong("exchange %d ends though a rank never started it", i);
        free(comm_job_check(jobs[i], st));
    }
    if (!wrong)
        wrong = want_error(moe_comm_barrier(c, "after"), MOE_E_PEER, "after", "enough", NULL);
    if (!wrong) /* the first failure stays */
        moe_comm_abort(c, "something else");
    if (!wrong)
        wrong = want_error(moe_comm_barrier(c, "again"), MOE_E_PEER, "again", "enough", NULL);
    return wrong ? wrong : want_over(c);
}

/* The last rank sleeps for much longer than the limit. */
char *comm_case_silent(MoeComm *c) {
    int last = c->size - 1;
    c->silence_limit = 0.3;
    moe_comm_phase(c, 11, c->rank == last ? "lost in thought" : "forward");
    MoeStatus st = moe_comm_barrier(c, "all there");
    if (st)
        return comm_unexpected(st, "barrier");
    if (c->rank == last)
        usleep(1800000);
    st = moe_comm_barrier(c, "meeting");
    char who[32];
    snprintf(who, sizeof who, "rank %d", last);
    if (c->rank == last) { /* told by the others, or finds them gone */
        char *wrong = want_error(st, MOE_E_PEER, "silent", "rank", NULL);
        return wrong ? wrong : want_over(c);
    }
    char *wrong = want_error(st, MOE_E_PEER, "silent", who, "lost in thought");
    return wrong ? wrong : want_over(c);
}

/* The others notice within `seconds` that the last rank's process is no more what it was. */
static char *lose_process(MoeComm *c, int signal_number, double seconds) {
    int last = c->size - 1;
    moe_comm_phase(c, 5, "backward");
    MoeStatus st = moe_comm_barrier(c, "all there");
    if (c->rank == last && st)
        return comm_unexpected(st, "barrier");
    if (c->rank == last) {
        raise(signal_number);
        return NULL; /* the launcher let it go on, so as to end it */
    }
    double began = moe_now();
    if (!st) /* else it was lost before this rank was through */
        st = moe_comm_barrier(c, "one is lost");
    char who[32];
    snprintf(who, sizeof who, "rank %d", last);
    char *wrong = want_error(st, MOE_E_PEER, "lost", who, NULL);
    if (!wrong && moe_now() - began > seconds)
        wrong = comm_wrong("noticed after %.1f s only", moe_now() - began);
    return wrong ? wrong : want_over(c);
}

/* The last rank's process dies without a word. */
char *comm_case_killed(MoeComm *c) {
    return lose_process(c, SIGKILL, 5);
}

/* It is stopped. Somebody has to kill it in the end. */
char *comm_case_stopped(MoeComm *c) {
    c->silence_limit = 2;
    return lose_process(c, SIGSTOP, 7);
}
