/* Memory planning, as functions: memplan.c runs them for a module, recompute asks them what a choice would cost, tests
 * check the placement alone. */
#ifndef MOE_PASSES_MEMPLAN_H
#define MOE_PASSES_MEMPLAN_H

#include "passes/pass.h"

/* The plan of one grouped graph. Fails only when an assign cannot be done in place. Result in `a`. */
MoeStatus moe_memplan_graph(MoeTarget *t, const MoeGraph *g, int micro_batches, MoeArena *a,
                            MoeMemoryPlan *out);

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

#endif
