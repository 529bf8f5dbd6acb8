/* The conformance suite of communicators with a process a rank, and loops to be disturbed from outside:
 *
 *   mpirun -n 4 comm_process [CHOICE] [CASE]   all cases that leave the communicator usable, or the one named
 *   mpirun -n 4 comm_process CHOICE loop DIR   exchanges for ever; each rank writes its pid to DIR/RANK
 *   mpirun -n 4 comm_process CHOICE busy DIR   the same, but rank 1 computes and makes no call
 *   mpirun -n 4 comm_process CHOICE fail       rank 1 gives up
 *   mpirun -n 4 comm_process CHOICE speed      microseconds and GB/s of exchanges between all
 *
 * CHOICE as in moec run --comm; MOEC_SILENCE_LIMIT in seconds. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/pool.h"
#include "base/str.h"
#include "runtime/launch.h"
#include "tests/support/comm_suite.h"

static void write_pid(const char *dir, int rank) {
    char path[4096], whole[4200];
    snprintf(path, sizeof path, "%s/.%d", dir, rank);
    snprintf(whole, sizeof whole, "%s/%d", dir, rank);
    FILE *f = fopen(path, "w");
    if (!f)
        return;
    fprintf(f, "%d\n", (int)getpid());
    fclose(f);
    rename(path, whole);
}

static MoeStatus loop(MoeComm *c, const char *dir, bool busy) {
    int32_t *all = calloc((size_t)c->size, sizeof *all);
    if (!all)
        return moe_error(MOE_E_NOMEM, "out of memory");
    MoeStatus st = NULL;
    for (int64_t step = 1; !st; step++) {
        moe_comm_phase(c, step, "forward layers.3");
        int32_t mine = c->rank;
        st = moe_comm_all_gather(c, &mine, sizeof mine, all, "loop");
        if (step == 50)
            write_pid(dir, c->rank);
        while (busy && step == 50 && c->rank == 1)
            ;
    }
    free(all);
    return st;
}

static MoeStatus fail(MoeComm *c) {
    moe_comm_phase(c, 7, "update");
    if (c->rank == 1) {
        moe_comm_abort(c, "cannot read the data");
        return moe_error(MOE_E_IO, "cannot read the data");
    }
    return moe_comm_barrier(c, "a barrier");
}

/* Each rank sends each other n bytes. */
static MoeStatus speed_at(MoeComm *c, int64_t n, int rounds, char *sends, char *recvs) {
    MoeBlock *b = calloc(2 * (size_t)c->size, sizeof *b);
    if (!b)
        return moe_error(MOE_E_NOMEM, "out of memory");
    size_t k = 0;
    for (int p = 0; p < c->size; p++)
        if (p != c->rank) {
            b[k] = (MoeBlock){.peer = p, .base = sends + p * n, .row_bytes = n, .n = 1};
            b[(size_t)c->size + k++] =
                (MoeBlock){.peer = p, .base = recvs + p * n, .row_bytes = n, .n = 1};
        }
    MoeStatus st = NULL;
    double start = moe_now();
    for (int i = 0; i < rounds && !st; i++)
        st = moe_comm_exchange(c, b, k, b + c->size, k, "speed");
    double each = (moe_now() - start) / rounds;
    if (!st && c->rank == 0)
        printf("%9lld bytes to each of %zu: %9.1f us, %6.2f GB/s out of each rank\n", (long long)n,
               k, each * 1e6, (double)n * (double)k / each * 1e-9);
    free(b);
    return st;
}

static MoeStatus speed(MoeComm *c) {
    const int64_t most = 16 << 20;
    void *sends = NULL, *recvs = NULL;
    MoeStatus st = moe_alloc_big((size_t)most * (size_t)c->size, "sends", &sends);
    if (!st)
        st = moe_alloc_big((size_t)most * (size_t)c->size, "receives", &recvs);
    if (!st)
        memset(sends, 1, (size_t)most * (size_t)c->size);
    for (int64_t n = 8; n <= most && !st; n *= 8)
        for (int again = 0; again < 2 && !st; again++) /* the first touches the memory */
            st = speed_at(c, n, n < 1 << 16 ? 500 : 10, sends, recvs);
    moe_free_big(sends, (size_t)most * (size_t)c->size);
    moe_free_big(recvs, (size_t)most * (size_t)c->size);
    return st;
}

static MoeStatus open_comm(const char *choice, MoeComm **out) {
    MoeLaunchInfo launch = moe_launch_detect();
    MoeCommKind kind;
    MOE_TRY(moe_comm_choose(choice, launch.size, &launch, &kind));
    if (launch.kind == MOE_LAUNCH_MPIRUN && (!choice || strcmp(choice, "auto") == 0))
        kind = MOE_COMM_MPI; /* also for one rank */
    double limit = 15;
    const char *text = getenv("MOEC_SILENCE_LIMIT");
    if (text && (!moe_parse_double(text, &limit) || limit <= 0))
        return moe_error(MOE_E_MISUSE, "MOEC_SILENCE_LIMIT=%s: expected seconds", text);
    return moe_comm_open(kind, &launch, limit, out);
}

int main(int argc, char **argv) {
    signal(SIGTERM, SIG_IGN); /* mpirun ends the others when a rank died: a second is left to speak */
    const char *choice = argc > 1 ? argv[1] : "auto", *what = argc > 2 ? argv[2] : NULL,
               *dir = argc > 3 ? argv[3] : ".";
    MoeComm *c = NULL;
    MoeStatus st = open_comm(choice, &c);
    int code = 0;
    if (!st && what && (strcmp(what, "loop") == 0 || strcmp(what, "busy") == 0))
        st = loop(c, dir, strcmp(what, "busy") == 0);
    else if (!st && what && strcmp(what, "fail") == 0)
        st = fail(c);
    else if (!st && what && strcmp(what, "speed") == 0)
        st = speed(c);
    else if (!st)
        code = moe_comm_suite_process(c, what, stdout);
    if (st)
        /* One that had not met all others yet has no communicator. */
        fprintf(stderr, "comm_process: rank %d: %s\n", c ? c->rank : moe_launch_detect().rank,
                moe_status_message(st));
    if (st)
        code = moe_status_exit_code(st);
    moe_status_free(st);
    moe_comm_destroy(c);
    return code;
}
