/* The block that runs: what the files of the simulator's threads share. wait.c: order and waiting; later.c: what lands later,
 * shared memory; block.c: blocks, faults. */
#ifndef MOE_TESTS_SIM_BLOCK_INTERNAL_H
#define MOE_TESTS_SIM_BLOCK_INTERNAL_H

#include <setjmp.h>
#include <stdint.h>
#include "tests/sim/block.h"
#include "tests/sim/switch.h"

enum {
    MAX_THREADS = 1024,
    MAX_WORDS = MAX_THREADS / 64,
    MAX_WARPS = MAX_THREADS / 32,
    BARRIERS = 16,
};

typedef enum { READY, AT_WARP, AT_WARPGROUP, AT_BARRIER, AT_WAIT, RELAXED, ENDED } State;

typedef struct {
    MoeSimLater act;
    unsigned group;
    char data[MOE_SIM_DATA] __attribute__((aligned(16)));
} Later;

typedef struct {
    Later *items;
    size_t n, cap;
    unsigned groups; /* committed */
} Queue;

typedef struct {
    MoeSimSelf self; /* first */
    MoeSimContext context;
    State state;
    const char *what; /* it waits for */
    unsigned mask;    /* AT_WARP */
    void *arg;        /* AT_WARP, AT_WARPGROUP, AT_WAIT */
    int (*ready)(void *);
    unsigned barrier; /* AT_BARRIER */
    Queue queues[MOE_SIM_N_QUEUES];
} Thread;

typedef struct {
    unsigned want, arrived, generation;
    MoeSimBarrier kind;
    int value[2]; /* by generation: of this one and the last */
    uint64_t waiting[MAX_WORDS];
} Barrier;

/* One at a time: the driver's lock. */
typedef struct {
    const MoeSimLaunch *launch;
    MoeSimDim at;
    unsigned n, alive, words;
    bool down; /* threads in descending order */
    enum { EARLY, LATE, MIXED } async;
    uint64_t dice;
    uint64_t ready[MAX_WORDS];
    unsigned at_group[MAX_WARPS / 4]; /* threads that wait for their warpgroup */
    Barrier barriers[BARRIERS];
    Queue later; /* of the whole block */
    Thread *current;
    MoeSimContext main;
    bool failed, illegal;
    unsigned spins;
    char why[1024];
    sigjmp_buf out;
} Block;

extern Block moe_sim_now;
extern Thread moe_sim_threads[MAX_THREADS];
extern const MoeSimApi moe_sim_api;

static inline unsigned index_of(const Thread *t) {
    return (unsigned)(t - moe_sim_threads);
}

static inline void set_ready(Thread *t) {
    unsigned i = index_of(t);
    t->state = READY;
    moe_sim_now.ready[i / 64] |= (uint64_t)1 << i % 64;
}

/* ---- wait.c ---- */

/* Ends the kernel with these words behind its name, block and thread. */
void moe_sim_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
/* "kernel NAME, block B, thread T: "; how long it is. */
int moe_sim_place(char *out, size_t n, const Thread *t);
uint64_t moe_sim_roll(void); /* the block's dice */
/* The current thread is not ready: another goes on; returns when it is its turn again. */
void moe_sim_let_others_run(void);
void moe_sim_warp(unsigned mask, const char *what, MoeSimTogether act, void *arg);
void moe_sim_warpgroup(const char *what, MoeSimTogether act, void *arg);
int moe_sim_barrier(unsigned id, unsigned n, MoeSimBarrier kind, int value);
void moe_sim_wait(const char *what, int (*ready)(void *), void *arg);
void moe_sim_relax(const char *what);

/* ---- later.c ---- */

/* Entry i of the queue lands now. */
void moe_sim_land(Queue *q, size_t i);

#endif
