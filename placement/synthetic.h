/* Load made by rule: what routers do to experts, one trait at a time, for experiments with placement at any size. */
#ifndef MOE_PLACEMENT_SYNTHETIC_H
#define MOE_PLACEMENT_SYNTHETIC_H

#include "base/str.h"
#include "placement/load.h"

typedef struct {
    int experts, layers, steps, sources, top_k;
    int64_t tokens; /* in a step, of all sources together: each chooses top_k experts */
    uint64_t seed;
} MoeSyntheticSizes;

/* The load of a kind, "zipf" or, with its parameter, "zipf:1.2" (moe_synthetic_kinds says which there are). Every layer has its own
 * popularity of experts, every source leans a little (a standard deviation of a fifth) its own way, counts scatter as those of
 * independent tokens do. Deterministic. MOE_E_MISUSE naming what is wrong. */
MoeStatus moe_synthetic_make(const char *kind, const MoeSyntheticSizes *sizes, MoeArena *a,
                             MoeLoad *out);
/* "uniform, zipf[:1], ...": the kinds with the parameter that each has by default. */
void moe_synthetic_kinds(MoeStr *out);

#endif
