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
    int32_t *layer;  /* [layers]: the decoder layer that each is, as the trace numbers it */
    int32_t *counts; /* [steps][layers][sources][experts] */
} MoeLoad;

/* What a trace may hold at most. */
enum { MOE_LOAD_EXPERTS = 1 << 16, MOE_LOAD_SOURCES = 1 << 16 };

/* Reads a trace, known by its content:
 * - CSV `step,layer,rank,e0,...`: rows in any order, steps without a gap;
 * - an EPLB-style matrix: a line a layer (or [[...], [...]]), a column an expert: one step, one source. Decimals are rounded;
 * - Megatron-Core's router trace (--moe-routing-trace-path; megatron/core/transformer/moe/router_trace.py): JSON lines with step, block,
 *   layer, rank, topk and top_indices, [tokens][topk] expert ids. Records of one step, layer and rank (micro-batches) are
 *   added up; the ranks that wrote a layer are its sources, in order; layers of multi-token prediction (block "mtp") follow the
 *   decoder's. There are as many experts as the largest id says (moe_load_widen);
 * - a directory: a run's (its trace.csv, of which a last step that is being written is left out), or router_trace_rank*.jsonl.
 * MOE_E_INPUT naming file and line: missing steps, ragged rows, negative or huge counts, a layer with other ranks. */
MoeStatus moe_load_read(const char *path, MoeArena *a, MoeLoad *out);
/* As CSV, which moe_load_read reads back. */
MoeStatus moe_load_write(const char *path, const MoeLoad *l);
/* Adds experts without load up to n of them, for traces that do not say how many there are. */
MoeStatus moe_load_widen(MoeLoad *l, int n, MoeArena *a);
/* The same load from n sources: consecutive ones merged, or each divided by largest remainder (*divided says so). */
MoeStatus moe_load_sources(const MoeLoad *in, int n, MoeArena *a, MoeLoad *out, bool *divided);
/* The same of one step's layer: in [sources][experts] to out [n][experts]. */
void moe_load_divide(const int32_t *in, int sources, int experts, int n, int32_t *out);
/* [sources][experts] of a step (counted from 0) and layer. */
const int32_t *moe_load_at(const MoeLoad *l, int step, int layer);

#endif
