/* Parts of the loss head's kernels: the table of row chunks, and the rows' softmax. Caller:
 * kind_xent.c. */
#ifndef MOE_CODEGEN_CPU_XENT_H
#define MOE_CODEGEN_CPU_XENT_H

#include "codegen/cpu/wgrad.h"

/* Slots of the tree over chunks of a shard, then over shards; the last is the result's memory. */
int moe_xent_chunk_slots(const MoeRowSpace *rows, int64_t chunk_rows);
int64_t moe_xent_max_chunks(const MoeRowSpace *rows, int64_t chunk_rows);
/* One task: writes the table, [max_chunks][MOE_CHUNK_FIELDS] i32, to buffer 0. rows: over the segs
 * table in buffer rows->buf. */
const char *moe_xent_emit_chunks(MoeCpuTarget *t, const MoeRowSpace *rows, int64_t chunk_rows);

/* Buffers: 0 the chunk's table entry, 1 logits f32 [chunk rows, n], 2 labels, 3 nll; with `grad` 4
 * dnll. grad: dlogits of dtype d replace the logits, rows still n * 4 bytes apart. */
const char *moe_xent_emit_rows(MoeCpuTarget *t, int64_t n, bool grad, MoeDtype d);

#endif
