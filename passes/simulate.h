/* How long a rank's steps take in a given order, and how much of the communication nothing hides. Pure arithmetic over
 * numbers: passes/overlap_items.c makes them from a graph, tests by hand.
 *
 * All ranks run the same order on the same amount of work, so one rank stands for all, and links do to it what docs/CLUSTER.md
 * says: a rank's links inside the node and to other nodes each carry one exchange at a time, in the order in which they were
 * started; what a class of links carries arrives its latency after the last byte left. Steps that compute run one after
 * another. A step that reads the result of an exchange first waits for it. What the rank's own cores do for an exchange takes
 * its time like a step. */
#ifndef MOE_PASSES_SIMULATE_H
#define MOE_PASSES_SIMULATE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/arena.h"
#include "placement/cluster.h"

/* Seconds that each class of links carries an exchange. Sums in two turns have a second exchange, at the wait. */
typedef struct {
    double first[MOE_N_LINKS], second[MOE_N_LINKS];
} MoeLinkSeconds;

/* Seconds that the rank's own cores work for an exchange: nothing runs beside them. */
typedef struct {
    double own;     /* when it starts: rows that stay on the rank */
    double copy[2]; /* when it is waited for, in each turn: what comes over links that are by cores (MoeCluster) */
    double fold;    /* behind the first turn: adding up */
} MoeCoreSeconds;

typedef enum { MOE_SIM_COMPUTE, MOE_SIM_A2A, MOE_SIM_OTHER_COMM, MOE_N_SIM_KINDS } MoeSimKind;

/* A step. */
typedef struct {
    MoeSimKind kind;
    double seconds;       /* COMPUTE */
    MoeLinkSeconds links; /* of an exchange */
    MoeCoreSeconds cores; /* of an exchange */
    bool at_once;         /* an exchange that is waited for as soon as it has started */
    int *needs;           /* steps whose results it reads; all run before it */
    size_t n_needs;
    int phase;   /* phases run one after another */
    int stretch; /* phases of one stretch run in one go; what an exchange is still doing at the end is waited for */
} MoeSimStep;

typedef struct {
    const MoeSimStep *steps;
    size_t n_steps;
    double latency[MOE_N_LINKS];
} MoeSimProblem;

typedef struct {
    double seconds; /* of all */
    double compute;
    double communication[MOE_N_SIM_KINDS]; /* of exchanges of a kind, each by itself */
    double exposed[MOE_N_SIM_KINDS];       /* by how much waits for them advanced the clock */
} MoeSimResult;

/* The exchange by itself, from its start to the end of the wait. */
double moe_sim_alone(const MoeSimProblem *p, const MoeSimStep *s);

/* The part of it that the rank's own cores do. */
double moe_sim_by_cores(const MoeSimStep *s);

/* Runs all steps in the order given (a permutation of 0..n_steps-1; phases in order), or the first n of it. */
MoeSimResult moe_simulate(const MoeSimProblem *p, const int *order, size_t n);

/* What would be exposed if every exchange could run beside all compute that it neither feeds nor needs, of its phase and up to
 * that in which it is waited for: no order of the phases' steps has less. An exchange cannot hide behind more than that, and those
 * that keep a class of links busy cannot together hide behind more than all the compute that any of them may run beside. Of a
 * kind: if it alone were hidden; so the kinds do not add up to `total`. What cores do hides behind nothing. only: the steps that count (by step; NULL: all). */
typedef struct {
    double exposed[MOE_N_SIM_KINDS], total;
} MoeSimBound;
MoeSimBound moe_sim_bound(const MoeSimProblem *p, const bool *only);

/* ---- step by step, for schedulers ---- */

typedef struct MoeSim MoeSim;
MoeSim *moe_sim_create(const MoeSimProblem *p, MoeArena *a);
double moe_sim_clock(const MoeSim *s);
/* When the link that would carry most of exchange `step` has nothing more to do. */
double moe_sim_link_free(const MoeSim *s, int step);
/* The earliest clock at which `step` can run: now, or when the last exchange that it reads has ended. */
double moe_sim_ready(const MoeSim *s, int step);
void moe_sim_run(MoeSim *s, int step);
MoeSimResult moe_sim_finish(MoeSim *s); /* waits for what is under way */

#endif
