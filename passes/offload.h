/* Activation offload, as functions: offload.c runs it for a module; the plan writer asks what a loaded value is. */
#ifndef MOE_PASSES_OFFLOAD_H
#define MOE_PASSES_OFFLOAD_H

#include "passes/pass.h"

/* Rows of fewer bytes (as expected) stay: there is no gain in moving them. */
#define MOE_OFFLOAD_LEAST 4096

/* Rewrites a grouped graph, if that lowers its peak. Fails only where the memory plan does. */
MoeStatus moe_offload_graph(MoeTarget *t, MoeGraph *g, const MoePassOptions *options);
/* The value that a wait on a load brings back; any other value: itself. */
const MoeValue *moe_offload_origin(const MoeValue *v);

#endif
