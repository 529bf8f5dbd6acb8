/* Inside recompute: what to keep, as a minimum cut. Called by recompute.c and by tests. */
#ifndef MOE_PASSES_RECOMPUTE_H
#define MOE_PASSES_RECOMPUTE_H

#include "ir/graph.h"

typedef struct {
    bool *again; /* by value id: computed again in the backward phase */
    int64_t kept_before,
        kept_after; /* bytes of forward values that live on into the backward phase */
} MoeRecomputeChoice;

/* n_layers: of how many layers, from 0, everything but the layer's inputs may be computed again; 0: only cheap ops anywhere.
 * keep_weights: a parameter is not rounded again. */
MoeRecomputeChoice moe_recompute_choose(const MoeGraph *g, int64_t n_layers, bool keep_weights,
                                        MoeArena *a);
/* Whether the op gathers a parameter, or its bf16 copy, from the ranks. */
bool moe_recompute_is_param(const MoeOp *gather);
/* The op among `ops` that gathers the same parameter in the same dtype in the backward phase; NULL: none. */
MoeOp *moe_recompute_twin(MoeOp *const *ops, size_t n, const MoeOp *gather);

#endif
