/* The steps between ranks: exchanges over the communicator, and what this rank does with what it got (docs/RANKS.md).
 *
 * A step's ops go in one exchange. Sums are exchange plus local tree: each rank receives its share of the others' terms
 * into staging memory and adds them up in the group's order (docs/NUMBERS.md 4). Where several ranks own the same slice
 * and it is less traffic, each of them adds up a part of it and a second exchange puts the parts together: the same bits.
 * Staging memory is taken once, for as many exchanges as are under way at a time; that of roots of experts' copies, whose number the
 * rows of each step decide, grows when it must. */
#ifndef MOE_RUNTIME_EXEC_COMM_H
#define MOE_RUNTIME_EXEC_COMM_H

#include "runtime/device_links.h"
#include "runtime/exec_internal.h"

/* Once the programs are bound. With one rank and no exchange in the plan there is nothing to make. */
MoeStatus moe_exec_comm_create(MoeExec *x);
void moe_exec_comm_destroy(MoeExec *x);
/* A program begins, with parameters that may have changed. */
void moe_exec_comm_begin_run(MoeExec *x);
/* Whether the slots of copies that step i fills (copy_experts) are filled already: once a run is enough, as micro-batches change no
 * parameter. */
bool moe_exec_is_filled(const MoeExec *x, const MoeExecProgram *g, size_t i);
void moe_exec_set_filled(MoeExec *x, const MoeExecProgram *g, size_t i, bool filled);
/* Step i of the program, an exchange or a wait. */
MoeStatus moe_exec_comm_step(MoeExec *x, MoeExecProgram *g, size_t i);
int64_t moe_exec_comm_bytes(const MoeExec *x); /* of staging memory, the device's */

/* exec_collect.c: what rank 0 gets from all after a run. Every rank calls. */
MoeStatus moe_exec_collect_load(MoeExec *x); /* x->load, of every shard */
/* Each data rank's logits start its memory; on rank 0 they end up by sequence. */
MoeStatus moe_exec_collect_logits(MoeExec *x, float *logits, int64_t n_seqs);

/* ---- shared by exec_comm.c, exec_comm_blocks.c and exec_comm_sum.c ---- */

/* A group of ranks as this rank sees it. */
typedef struct {
    int n, self; /* self: this rank's place */
    int *ranks;  /* world ranks, in the group's order */
} MoeExecGroup;

/* Who adds up what in a sum over `group` that is scattered over `scatter`. */
typedef struct {
    MoeMeshGroup group, scatter; /* scatter: MOE_N_GROUPS for all_reduce */
    int slices, copies;          /* slices of the tensor, ranks that own each */
    int *slice, *copy; /* [group's n]: the member's slice, its place among that slice's owners */
} MoeExecSum;

typedef struct {
    MoeBlock *items;
    size_t n, cap;
} MoeBlockList;

typedef struct {
    const char *at;
    int64_t bytes;
} MoeExecRange;

/* An exchange under way, and the staging memory it uses. */
typedef struct {
    char *stage;
    int64_t bytes;
    bool on_device; /* the staging memory is the device's */
    bool busy;
    MoeRequest *request;   /* NULL: none of its ranks is another */
    MoeExecRange *results; /* what the exchange writes, where a device must be told */
    size_t n_results, cap_results;
} MoeExecFlight;

/* Ends of the lists of a step; bytes of the last block to receive, which what follows may become part of. */
typedef struct {
    size_t sends, recvs, copies;
    int64_t last_recv;
} MoeExecPlaces;

struct MoeExecComm {
    MoeExecGroup groups[MOE_N_GROUPS];
    MoeExecSum *sums;
    size_t n_sums;
    MoeExecFlight *flights;
    int n_flights;
    int **flight; /* [programs][steps]: of an exchange, and of the wait for it */
    MoeBlockList sends, recvs;
    MoeExecCopy *copies;
    size_t n_copies, cap_copies;
    int *slot_expert; /* [most ep * slots]; -1 = empty */
    bool failed;      /* no memory for a list; looked at before the exchange */
    int64_t run;      /* of a program, counted: parameters stay what they are during one */
    int64_t **filled; /* [programs][steps]: the run in which an exchange last filled slots of copies */
};

/* exec_comm.c: staging memory of an op, now that its tables are there. */
int64_t moe_exec_op_stage(const MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o);

/* What arrived in the flight's staging memory goes into sums and into the gradients of experts' copies. */
MoeStatus moe_exec_fold_terms(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                              const char *stage);

/* exec_comm_device.c: the exchange of step s over the device's links; its end, with sums. */
MoeStatus moe_exec_device_begin(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                                const MoeExecFlight *f);
MoeStatus moe_exec_device_finish(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                                 const MoeExecFlight *f);

/* exec_comm_blocks.c: puts op o's blocks and local copies into the lists. stage: of this op. */
MoeStatus moe_exec_op_blocks(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                             char *stage);
void moe_block_push(MoeExecComm *c, MoeBlockList *l, int peer, void *base, int64_t bytes);

/* exec_comm_copies.c: slots of copies and their roots. */
MoeStatus moe_exec_copies_blocks(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                                 char *stage);
int64_t moe_exec_copies_stage(const MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o);
/* fold_copies: what came and this rank's own roots become the gradients. */
MoeStatus moe_exec_copies_fold(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                               const char *stage);

/* exec_comm_mirror.c: exchanges that are the host's work, over mirrors of a device's memory (runtime/device.h). Before the lists of
 * a step are made its tables are read; with op o's blocks in the lists, from the given places on, what it reads of other values;
 * at its end what it wrote is sent to the device. On a CPU nothing is done. */
MoeStatus moe_exec_mirror_tables(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s);
MoeStatus moe_exec_mirror_rows(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                               const MoeExecPlaces *from, MoeExecFlight *f);
MoeStatus moe_exec_mirror_results(MoeExec *x, MoeExecFlight *f);

/* exec_comm_sum.c */
bool moe_exec_is_sum(const MoePlanComm *o);
MoeStatus moe_exec_sum_prepare(MoeExec *x, const MoePlanComm *o);   /* fills x->between->sums */
int64_t moe_exec_sum_stage(const MoeExec *x, const MoePlanComm *o); /* bytes, whole 64s */
void moe_exec_sum_blocks(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o, char *stage);
/* The tree over the terms, in the staging memory and this rank's own, into the result. */
MoeStatus moe_exec_sum_fold(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o,
                            const char *stage);
/* Whether a second exchange among a slice's owners follows, and its blocks. */
bool moe_exec_sum_twice(const MoeExec *x, const MoePlanComm *o);
void moe_exec_sum_rejoin(MoeExec *x, const MoeExecProgram *g, const MoePlanComm *o);

#endif
