/* Load traces: rows routed to each expert of each layer, from each source, at each step. */
#ifndef MOE_PLACEMENT_LOAD_H
#define MOE_PLACEMENT_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include "base/arena.h"
#include "base/status.h"

typedef struct {
    int64_t first_step;
    int steps, layers, sources, experts;
    int32_t *counts; /* [steps][layers][sources][experts] */
} MoeLoad;

/* Reads a trace: CSV `step,layer,rank,e0,...`; an EPLB-style matrix (a line a layer, a column an expert: one step, one source);
 * Megatron's router trace (JSON lines); a run's directory. Known by content. MOE_E_INPUT naming file and line: missing steps,
 * ragged rows, negative or huge counts. */
MoeStatus moe_load_read(const char *path, MoeArena *a, MoeLoad *out);
/* The same load from n sources: consecutive ones merged, or each divided by largest remainder (*divided says so). */
MoeStatus moe_load_sources(const MoeLoad *in, int n, MoeArena *a, MoeLoad *out, bool *divided);
/* [sources][experts] of a step (counted from 0) and layer. */
const int32_t *moe_load_at(const MoeLoad *l, int step, int layer);

#endif
