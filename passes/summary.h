/* What the offline planner needs to know of a model (placement/planner.h), read off graphs that one rank would run: passes up to
 * memplan have run over them, once for each level of recomputation. Called by cli/auto_strategy.c. */
#ifndef MOE_PASSES_SUMMARY_H
#define MOE_PASSES_SUMMARY_H

#include "passes/pass.h"
#include "placement/planner.h"

/* Sizes of the model, and its numbers with cx's level of recomputation. cx: one rank and one micro-batch, for the cluster that is
 * planned for. Sizes are the same at all levels. */
void moe_summary_add(const MoePassContext *cx, MoePlanLevel level, MoeModelSummary *out);

#endif
