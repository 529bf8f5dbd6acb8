/* Shared by the files of the communicators' conformance suite: the list of cases and exchanges whose bytes are known. */
#ifndef MOE_TESTS_COMM_SUITE_INTERNAL_H
#define MOE_TESTS_COMM_SUITE_INTERNAL_H

#include "base/rng.h"
#include "base/status.h"
#include "runtime/comm.h"

/* CASE(name, least ranks, fatal, where) */
#define MOE_COMM_CASES(CASE)                                                                       \
    CASE(empty, 1, false, ANY)           /* exchanges of nothing */                                \
    CASE(uneven, 1, false, ANY)          /* counts of zero and all others */                       \
    CASE(to_itself, 1, false, ANY)       /* from another place, and in place */                    \
    CASE(indexed, 1, false, ANY)         /* rows through an index, on either side, on both */      \
    CASE(cut_differently, 1, false, ANY) /* blocks and rows of other sizes on the two sides */     \
    CASE(groups, 1, false, ANY)          /* pairs of ranks by themselves */                        \
    CASE(many_in_flight, 1, false, ANY)  /* waited for in another order on each rank */            \
    CASE(skewed, 1, false, ANY)          /* ranks that come late */                                \
    CASE(fuzz, 1, false, ANY)            /* random all-to-all, some under way at once */           \
    CASE(large, 1, false, ANY)           /* 16 MB blocks */                                        \
    CASE(agreements, 1, false, ANY)      /* all_gather, barrier, agree */                          \
    CASE(slow_but_alive, 2, false, ANY)  /* computes longer than the limit, but polls */           \
    CASE(busy_but_alive, 2, false, ANY)  /* the same without a call */                             \
    CASE(mismatch, 2, true, ANY)         /* byte counts that differ */                             \
    CASE(abort, 1, true, ANY)            /* one gives up, the others wait or come later */         \
    CASE(after_failure, 1, true, ANY)    /* requests under way, then calls of each kind */         \
    CASE(silent, 2, true, BY_THREAD)     /* one sleeps without a call for longer than the limit */ \
    CASE(stopped, 2, true, BY_PROCESS)   /* a process is stopped */                                \
    CASE(killed, 2, true, BY_PROCESS)    /* a process dies */
#define CASE(name, min_ranks, fatal, where) char *comm_case_##name(MoeComm *c);
MOE_COMM_CASES(CASE)
#undef CASE

/* malloc'd text: what is wrong. */
char *comm_wrong(const char *fmt, ...) MOE_PRINTF(1, 2);
/* The same, of a status that should have been NULL; frees it. */
char *comm_unexpected(MoeStatus st, const char *where);

/* How a rank lays out what it sends or receives. */
typedef enum {
    COMM_LAY_PLAIN,  /* one block a peer */
    COMM_LAY_INDEX,  /* one block of indexed rows a peer */
    COMM_LAY_RANDOM, /* blocks, rows and indices at random, peers mixed */
    COMM_LAY_N
} CommLay;

/* How many bytes `from` sends to `to` in an exchange: the same on both. */
typedef int64_t (*CommBytes)(int exchange, int from, int to, int size);
int64_t comm_bytes_uneven(int exchange, int from, int to, int size);

/* One exchange of this rank: its blocks, each in memory of its own. */
typedef struct CommJob CommJob;
/* seed: for the layout of this rank's blocks. */
CommJob *comm_job(const MoeComm *c, int exchange, CommBytes bytes, CommLay sends, CommLay recvs,
                  uint64_t seed);
MoeStatus comm_job_start(CommJob *j, MoeComm *c);
MoeStatus comm_job_wait(CommJob *j, MoeComm *c);
/* Frees it. NULL if st is NULL, each byte is there and nothing else was touched. */
char *comm_job_check(CommJob *j, MoeStatus st);
/* Start, wait, check. */
char *comm_job_run(MoeComm *c, int exchange, CommBytes bytes, CommLay sends, CommLay recvs,
                   uint64_t seed);

#endif
