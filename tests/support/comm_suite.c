/* The conformance suite of communicators: the list of cases and their runners. The cases are in comm_suite_cases.c (what
 * works) and comm_suite_faults.c (what fails). */
#include "tests/support/comm_suite.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/support/comm_suite_internal.h"

static const MoeCommCase cases[] = {
#define CASE(name, min_ranks, fatal, where)                                                        \
    {#name, min_ranks, fatal, MOE_COMM_##where, comm_case_##name},
    MOE_COMM_CASES(CASE)
#undef CASE
};
enum { N_CASES = sizeof cases / sizeof *cases };

const MoeCommCase *moe_comm_cases(size_t *out_n) {
    *out_n = N_CASES;
    return cases;
}

const MoeCommCase *moe_comm_case(const char *name) {
    for (size_t i = 0; i < N_CASES; i++)
        if (!strcmp(cases[i].name, name))
            return &cases[i];
    return NULL;
}

char *comm_wrong(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    char *text = NULL;
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    MOE_ASSERT(n >= 0, "out of memory in a test");
    return text;
}

char *comm_unexpected(MoeStatus st, const char *where) {
    char *text = comm_wrong("%s: unexpected failure: %s", where, moe_status_message(st));
    moe_status_free(st);
    return text;
}

char *moe_comm_case_run(const MoeCommCase *k, MoeComm *c) {
    char *wrong = k->run(c);
    if (wrong)
        moe_comm_abort(c, wrong);
    return wrong;
}

typedef struct {
    const MoeCommCase *k;
    MoeComm *c;
    char *wrong;
} Thread;

static void *thread_main(void *arg) {
    Thread *t = arg;
    t->wrong = moe_comm_case_run(t->k, t->c);
    return NULL;
}

char *moe_comm_case_threads(const MoeCommCase *k, MoeComm *const *comms, int n) {
    pthread_t *handles = calloc((size_t)n, sizeof *handles);
    Thread *threads = calloc((size_t)n, sizeof *threads);
    MOE_ASSERT(handles && threads, "out of memory in a test");
    for (int i = 0; i < n; i++) {
        threads[i] = (Thread){k, comms[i], NULL};
        int err = pthread_create(&handles[i], NULL, thread_main, &threads[i]);
        MOE_ASSERT(!err, "cannot start thread %d", i);
    }
    char *all = NULL;
    for (int i = 0; i < n; i++) {
        pthread_join(handles[i], NULL);
        if (!threads[i].wrong)
            continue;
        char *longer = comm_wrong("%srank %d: %s\n", all ? all : "", i, threads[i].wrong);
        free(threads[i].wrong);
        free(all);
        all = longer;
    }
    free(handles);
    free(threads);
    return all;
}

/* A case after which the communicator goes on: rank 0 speaks for all. */
static bool run_together(const MoeCommCase *k, MoeComm *c, FILE *out) {
    char *wrong = moe_comm_case_run(k, c);
    MoeStatus st =
        moe_comm_agree(c, wrong ? moe_error(MOE_E_INTERNAL, "%s", wrong) : NULL, k->name);
    if (st && (c->rank == 0 || wrong))
        fprintf(out, "not ok %s\n  rank %d: %s\n", k->name, c->rank, moe_status_message(st));
    else if (c->rank == 0)
        fprintf(out, "ok %s\n", k->name);
    fflush(out);
    bool good = !st;
    moe_status_free(st);
    free(wrong);
    return good;
}

/* A case after which the communicator is of no more use: each rank speaks for itself. */
static bool run_apart(const MoeCommCase *k, MoeComm *c, FILE *out) {
    char *wrong = moe_comm_case_run(k, c);
    if (wrong)
        fprintf(out, "not ok %s on rank %d\n  %s\n", k->name, c->rank, wrong);
    else
        fprintf(out, "ok %s on rank %d\n", k->name, c->rank);
    fflush(out);
    bool good = !wrong;
    free(wrong);
    return good;
}

int moe_comm_suite_process(MoeComm *c, const char *which, FILE *out) {
    const MoeCommCase *k = which ? moe_comm_case(which) : NULL;
    if (which && !k) {
        fprintf(out, "no case \"%s\"\n", which);
        return 2;
    }
    if (k && (k->min_ranks > c->size || k->where == MOE_COMM_BY_THREAD)) {
        if (c->rank == 0)
            fprintf(out, "skip %s: needs %d ranks%s\n", k->name, k->min_ranks,
                    k->where == MOE_COMM_BY_THREAD ? " in one process" : "");
        return 0;
    }
    if (k)
        return !(k->fatal ? run_apart(k, c, out) : run_together(k, c, out));
    for (size_t i = 0; i < N_CASES; i++)
        if (!cases[i].fatal && cases[i].min_ranks <= c->size && !run_together(&cases[i], c, out))
            return 1;
    return 0;
}
