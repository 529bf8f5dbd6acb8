/* Memory planning, as functions: memplan.c runs them for a module, recompute asks them what a choice would cost, tests
 * check the placement alone. */
#ifndef MOE_PASSES_MEMPLAN_H
#define MOE_PASSES_MEMPLAN_H

#include "passes/pass.h"

/* The plan of one grouped graph, for the options' micro-batches and mesh. Fails only when an assign cannot be done in place.
 * Result in `a`. */
MoeStatus moe_memplan_graph(MoeTarget *t, const MoeGraph *g, const MoePassOptions *o, MoeArena *a,
                            MoeMemoryPlan *out);
/* Bytes that a program is expected to touch: its slab with balanced routing, and the staging memory of its exchanges. */
int64_t moe_memplan_expected_bytes(const MoeMemoryPlan *m);

/* A buffer live in steps start..end (both included). bytes: a multiple of MOE_BUFFER_ALIGN. */
typedef struct {
    int64_t bytes;
    int start, end;
    int64_t offset; /* out */
} MoeInterval;

/* The largest sum of live bytes at any step; *out_step (may be NULL): the first step where it is reached. */
int64_t moe_place_lower_bound(const MoeInterval *v, size_t n, int n_steps, int *out_step);
/* Gives every interval its offset; returns the peak. Deterministic; effort is capped by work, not by time. */
int64_t moe_place(MoeInterval *v, size_t n, int64_t lower_bound, MoeArena *a);

/* An elastic buffer: live in steps start..end, at most `bytes`, usually `expect`. All of a lane start at its base. */
typedef struct {
    int64_t bytes, expect;
    int start, end;
    size_t lane; /* out */
} MoeElastic;

typedef struct {
    int64_t offset, bytes; /* address space: its largest buffer's */
    int64_t expect;        /* the largest that is expected to be used */
} MoeLane;

/* Gives every buffer a lane that no other uses at the same time, with a small sum of `expect` over lanes (the largest first,
 * each into the first lane that is free). Returns how many; the lanes, one after the other from offset 0, are in `a`. */
size_t moe_place_lanes(MoeElastic *v, size_t n, MoeLane **out, MoeArena *a);

#endif
