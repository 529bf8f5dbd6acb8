/* Memory planning, as functions: memplan.c runs them for a module, recompute asks them what a choice would cost, tests
 * check the placement alone. */
#ifndef MOE_PASSES_MEMPLAN_H
#define MOE_PASSES_MEMPLAN_H

#include "passes/pass.h"

/* The plan of one grouped graph, for the options' micro-batches and mesh. Fails only when an assign cannot be done in place.
 * Result in `a`. */
MoeStatus moe_memplan_graph(MoeTarget *t, const MoeGraph *g, const MoePassOptions *o, MoeArena *a,
                            MoeMemoryPlan *out);
/* Bytes of the slab that live in each step (elastic values as expected); the entry behind the last is 0. In `a`. */
MoeStatus moe_memplan_live(MoeTarget *t, const MoeGraph *g, const MoePassOptions *o, MoeArena *a,
                           int64_t **out);
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

/* A buffer of a program. */
typedef struct {
    int64_t bytes;  /* a multiple of MOE_BUFFER_ALIGN; of an elastic one at worst */
    int64_t expect; /* elastic: what balanced routing needs of it; -1: its size is known */
    int start, end; /* live in these steps, both included */
    int64_t offset; /* out */
} MoeSlabBuffer;

typedef struct {
    int64_t slab_bytes; /* with slack at the end of both parts */
    int64_t elastic_bytes, elastic_expect;
    int64_t lower_bound; /* the largest sum of live bytes, elastic ones as expected */
    int peak;            /* the first step where it is reached */
} MoeSlab;

/* memplan_slab.c: places buffers of both kinds in one slab. Deterministic. */
MoeSlab moe_slab_place(MoeSlabBuffer *v, size_t n, int n_steps, MoeArena *a);

#endif
