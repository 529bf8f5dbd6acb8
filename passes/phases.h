/* The order of a graph's ops: by phase, and within a phase as they stand, operands first. */
#ifndef MOE_PASSES_PHASES_H
#define MOE_PASSES_PHASES_H

#include "ir/graph.h"

/* Raises each op's phase to the latest of its operands' (and of the segs their types name),
 * accumulate to reduce, as its result exists only then; then sorts the ops by phase, stably but for
 * ops that stand before an operand's definition: they follow it. False, with the graph unchanged,
 * if values depend on each other in a circle. */
bool moe_graph_schedule(MoeGraph *g);

#endif
