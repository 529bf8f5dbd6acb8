/* What every communicator must do (runtime/comm.h), as cases that all ranks run together: with a thread a rank
 * (tests/unit/comm.c) or with a process a rank (moe_comm_suite_process). Data are small integers that follow from rank,
 * peer, exchange and position, so each byte that arrives is checked, and nothing but the communicator is needed. */
#ifndef MOE_TESTS_COMM_SUITE_H
#define MOE_TESTS_COMM_SUITE_H

#include <stdio.h>
#include "runtime/comm.h"

/* What stands behind the ranks that a case makes sense for. */
typedef enum { MOE_COMM_ANY, MOE_COMM_BY_THREAD, MOE_COMM_BY_PROCESS } MoeCommWhere;

typedef struct {
    const char *name;
    int min_ranks;
    bool fatal; /* leaves the communicator failed: run it on one of its own */
    MoeCommWhere where;
    char *(*run)(MoeComm *c);
} MoeCommCase;

const MoeCommCase *moe_comm_cases(size_t *out_n);
const MoeCommCase *moe_comm_case(const char *name); /* NULL: none */
/* One case, on this rank; all ranks call it. NULL if good, else what is wrong (malloc'd). A rank that finds something wrong
 * tells the others (abort), so that none waits for ever. */
char *moe_comm_case_run(const MoeCommCase *k, MoeComm *c);

/* The same with a thread for each of the n comms. What is wrong on the lowest rank that found anything, with its number. */
char *moe_comm_case_threads(const MoeCommCase *k, MoeComm *const *comms, int n);

/* For a program that is started once a rank. which NULL: all cases that leave the communicator usable; else the case of that
 * name. Prints "ok NAME", "not ok NAME", "skip NAME" from rank 0 (of a fatal case: from each rank, "ok NAME on rank R").
 * Returns the exit status. Does not destroy c. */
int moe_comm_suite_process(MoeComm *c, const char *which, FILE *out);

#endif
