/* Activation offload, as functions: offload.c runs it for a module, recompute asks what it would save. */
#ifndef MOE_PASSES_OFFLOAD_H
#define MOE_PASSES_OFFLOAD_H

#include "passes/pass.h"

/* Rows of fewer bytes (as expected) stay: there is no gain in moving them. */
#define MOE_OFFLOAD_LEAST 4096

/* Rewrites a grouped graph; horizon: layers ahead, >= 0. Returns how many values leave. */
size_t moe_offload_graph(MoeGraph *g, int horizon);
/* The value that a wait on a load brings back; any other value: itself. */
const MoeValue *moe_offload_origin(const MoeValue *v);

#endif
