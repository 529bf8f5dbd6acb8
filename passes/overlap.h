/* Inside the overlap pass: the steps of one graph as things to order ("items"), shared by overlap.c (which orders are tried),
 * overlap_items.c (items of a graph), overlap_schedule.c (the list scheduler; overlap_memory.c its memory) and overlap_graph.c (edits of the graph). */
#ifndef MOE_PASSES_OVERLAP_H
#define MOE_PASSES_OVERLAP_H

#include "passes/predict.h"

typedef enum {
    ITEM_STEP,   /* a kernel that others of its phase need, or a loop over chunks */
    ITEM_FILLER, /* a kernel that no other of its phase needs, directly or through exchanges: weight gradients */
    ITEM_COMM,   /* an exchange that kernels of its phase need */
    ITEM_LATE,   /* an exchange that no kernel of its phase needs: sums of gradients, of losses */
    ITEM_GATHER, /* an exchange that brings parameters together, or fills their slots of copies: needs nothing but declarations, feeders
                  * and waits for such slots */
    ITEM_FEEDER, /* a kernel that needs declarations alone (and waits for slots of copies), and that only gathers need: bf16 copies of slices */
    ITEM_WAIT
} OverlapClass;

typedef struct {
    OverlapClass kind;
    MoePhase phase;
    int *groups; /* in order; several: a loop over chunks */
    size_t n_groups, cap_groups;
    int *steps; /* of the problem, in the order in which they run */
    size_t n_steps, cap_steps;
    int *needs, *users; /* items, each once */
    size_t n_needs, cap_needs, n_users, cap_users;
    int *reads; /* values (of Overlap.values) that must stay until it has run */
    size_t n_reads, cap_reads;
    struct OverlapAlias {
        int from, to;
    } *aliases; /* values that can change places if `from` dies here */
    size_t n_aliases, cap_aliases;
    int64_t makes;   /* bytes that begin to live here */
    int64_t staging; /* of an exchange: bytes until its wait */
    double seconds;  /* of its kernels */
} OverlapItem;

/* Memory that lives between items. */
typedef struct {
    int64_t bytes;
    int item;    /* that makes it */
    int readers; /* items; none: lives to the end */
} OverlapValue;

typedef struct {
    MoeArena *a;
    const MoeGraph *g;
    MoeGroups whole;
    int chunks;
    MoeSimProblem problem;
    bool *counted; /* by step of the problem */
    int micro_batches;
    OverlapItem *items; /* in an order in which they can run, the given one as far as loops allow */
    size_t n_items;
    OverlapValue *values;
    size_t n_values, cap_values;
    double longest_comm; /* seconds of the longest ITEM_COMM */
    int64_t layer_gathers; /* bytes that the gathers of a layer make, the most of any layer */
} Overlap;

/* How the scheduler goes about it. */
typedef struct {
    double reserve;      /* seconds of fillers that are held back for times when all else has to wait */
    int ahead;           /* steps looked at beyond the next one, at such times */
    bool eager;          /* sums queue for a link that is busy, rather than hold what they add up */
    size_t sums;         /* under way at a time */
    int64_t gather_bytes; /* gathers that nobody has read yet, at most */
    int64_t memory; /* bytes that live, but for such gathers and sums under way, at most, where there is a choice */
} OverlapPolicy;

typedef struct {
    int *order; /* items */
    double seconds;
    int64_t peak; /* bytes that live, but for gathers that nobody has read yet and sums under way */
} OverlapOrder;

/* ---- overlap_items.c ---- */

/* Items of a graph in which every exchange has a wait, with so many chunks in every plan. */
Overlap *moe_overlap_items(const MoeGraph *g, const MoeTarget *t, const MoeCommModel *m, int chunks,
                           int micro_batches, MoeArena *a);

/* ---- overlap_schedule.c ---- */

OverlapOrder moe_overlap_schedule(const Overlap *x, const OverlapPolicy *policy);
/* The items as they stand, each exchange waited for at once. */
OverlapOrder moe_overlap_as_given(const Overlap *x);

/* ---- overlap_graph.c ---- */

/* A `wait` for the results of each exchange, before their first reader. */
void moe_overlap_add_waits(MoeGraph *g);
/* Takes all waits out again, or those that follow their exchange at once. */
void moe_overlap_drop_waits(MoeGraph *g, bool all);
/* Groups in the given order (numbers as they are now); they are numbered anew. */
void moe_overlap_reorder(MoeGraph *g, const int *groups, size_t n);
/* Whether all plans' slots can be divided so: evenly; with slots for copies, which are rarely even, the last chunk may be smaller. */
bool moe_overlap_can_chunk(const MoeGraph *g, int chunks);
void moe_overlap_set_chunks(MoeGraph *g, int chunks);

#endif
