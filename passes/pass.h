/* Passes: one file each, one row each in passes.def. A pass edits the module in place.
 * One name everywhere: pass fuse = passes/fuse.c = moe_pass_fuse = --print-after=fuse = tests/golden/passes/fuse/. */
#ifndef MOE_PASSES_PASS_H
#define MOE_PASSES_PASS_H

#include "base/mesh.h"
#include "ir/graph.h"
#include "ir/target.h"
#include "placement/cluster.h"
#include "placement/load.h"
#include "placement/map.h"

typedef enum {
    MOE_RECOMPUTE_NONE,
    MOE_RECOMPUTE_CHEAP,
    MOE_RECOMPUTE_LAYER,
    MOE_RECOMPUTE_AUTO
} MoeRecompute;

typedef struct {
    int64_t batch, seq; /* global batch in sequences; tokens a sequence */
    int micro_batches;  /* a power of two, at most virtual_shards */
    int virtual_shards;
    bool mixed_bf16;
    MoeRecompute recompute; /* AUTO: the cheapest that fits memory_limit (CHEAP without a limit) */
    int64_t memory_limit;   /* bytes for the training slab, parameters and states; 0 = none */
    bool keep_weights;    /* CHEAP and LAYER: bf16 copies of weights are kept for the backward phase. recompute writes here what
                             AUTO came to */
    int recompute_layers; /* LAYER: only the first so many layers; 0 = all. recompute writes here, and to
                                    `recompute`, what AUTO came to */
    MoeMesh mesh;         /* the ranks (docs/RANKS.md); all zero: one rank */
    MoeCluster cluster;   /* what the ranks run on; all zero: one host */
    const MoeLoad *load;  /* rows by MoE layer, virtual shard and expert that predictions count on; NULL: balanced routing */
    const char *first_placement; /* the policy that places experts by the load; NULL: they stay where they are without one */
    bool overlap;         /* order steps so that communication runs beside compute (pass overlap) */
    int overlap_chunks;   /* parts that expert rows travel in; 0: what is predicted to be fastest */
    int64_t gather_bytes; /* parameters gathered ahead of their use, at most; 0: two layers' */
    bool offload;         /* rows that the backward phase reads leave the slab meanwhile */
    int loading_horizon;  /* how many layers before their use they come back */
    bool emit_grads;      /* grad: every gradient is an output "grad.PARAM" too (tests) */
} MoePassOptions;

/* The mesh of the options; one rank if they name none. */
MoeMesh moe_pass_mesh(const MoePassOptions *o);
/* The cluster of the options; if they name none, one host with all ranks. */
MoeCluster moe_pass_cluster(const MoePassOptions *o);

/* Memory of one program, filled by memplan. */
typedef struct {
    int64_t
        offset; /* of each value in the slab; -1: no slab buffer (param, state, input, internal, alias) */
    int64_t bytes;
    const MoeValue *
        alias; /* shares this value's buffer (assigned params and states, in-place results), or NULL */
    int64_t expect; /* elastic (docs/PLAN.md): bytes used when routing is balanced; else -1 */
    bool
        persistent; /* lives across micro-batches: accumulate and batch_sum results, gradients kept for update */
} MoeValueMemory;

/* An accumulate with several micro-batches: partial sums wait in the slots; `op`'s result shares its source's buffer. */
typedef struct {
    const MoeOp *op;
    int n_slots; /* log2(micro_batches) */
    int64_t *slot_offset, slot_bytes;
} MoeAccumulateMemory;

typedef struct {
    MoeValueMemory *values;                      /* by value id */
    int64_t *workspace_offset, *workspace_bytes; /* by step (group) index; -1/0 = none */
    int64_t *workspace_expect;                   /* elastic workspaces; -1: not elastic */
    int64_t slab_bytes;                          /* of the planned slab, its elastic part included */
    int64_t elastic_bytes, elastic_expect;       /* the slab's end: address space, bytes counted on */
    int64_t comm_bytes;                          /* staging memory of exchanges, beside the slab */
    int64_t offloaded;                           /* bytes of what leaves the slab, as expected */
    int64_t lower_bound;              /* the largest sum of live (expected) bytes at any step */
    MoeAccumulateMemory *accumulates; /* empty with one micro-batch */
    size_t n_accumulates;
    int64_t activations, gradients, workspace, other; /* what the slab holds (docs/PLAN.md) */
} MoeMemoryPlan;

/* One kernel group in program order, filled by kernels. */
typedef struct {
    MoeGroup group;
    MoeLowered lowered;
    MoePhase phase;
    bool count_pass; /* needed to know the batch_sum results: runs in the counting pass too */
    double flops, bytes, seconds; /* predicted */
} MoeStep;

/* Seconds of an optimiser step (of a run, for eval and logits), as the cost model and the simulator have them
 * (passes/predict.h). */
typedef struct {
    double seconds, compute;
    double a2a, other;                 /* exchanges, each by itself: of expert rows, all others */
    double a2a_exposed, other_exposed; /* by how much waits for them lengthen the step */
    double a2a_bound, bound; /* what no order could hide: of expert rows, if they were all there is to hide; of all */
} MoePrediction;

typedef struct {
    const MoeGraph *graph;
    MoeStep *steps;
    size_t n_steps;
    MoeMemoryPlan memory;
    int64_t scratch_bytes;
    MoePrediction predicted; /* of these steps */
} MoeProgram;

typedef struct MoePassContext {
    MoeModule *module;
    MoePassOptions options;
    bool sharded; /* the graphs are what one rank of options.mesh runs; set by shard */
    MoeTarget *target;
    MoeProgram *programs; /* one a graph, by graph index; made by memplan and kernels */
    const struct MoeSkewRoute *routes; /* the MoE layers, noted by place before they are divided over ranks */
    size_t n_routes;
    const MoePlaceMap *maps; /* [n_routes], made by place; NULL: the usual ones */
    const struct MoeSkew *skew; /* what options.load makes of predictions (passes/skew.h), made by place */
    MoeArena *arena;
} MoePassContext;

typedef MoeStatus (*MoePassFn)(MoePassContext *cx);

#define PASS(name, doc) MoeStatus moe_pass_##name(MoePassContext *cx);
#define ORDER(before, after, reason)
#include "passes/passes.def"
#undef PASS
#undef ORDER

#endif
