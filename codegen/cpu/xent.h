/* Parts of the loss head's kernels: the table of row chunks, the rows' softmax, and what joins the
 * sums over parts of the vocabulary. Caller: kind_xent.c. */
#ifndef MOE_CODEGEN_CPU_XENT_H
#define MOE_CODEGEN_CPU_XENT_H

#include "codegen/cpu/wgrad.h"

/* Slots of the tree over chunks of a shard, then over shards; the last is the result's memory. */
int moe_xent_chunk_slots(const MoeRowSpace *rows, int64_t chunk_rows);
int64_t moe_xent_max_chunks(const MoeRowSpace *rows, int64_t chunk_rows);
/* One task: writes the table, [max_chunks][MOE_CHUNK_FIELDS] i32, to buffer 0. rows: over the segs
 * table in buffer rows->buf. */
const char *moe_xent_emit_chunks(MoeCpuTarget *t, const MoeRowSpace *rows, int64_t chunk_rows);

/* What is made of a chunk's rows. Buffers: 0 the chunk's table entry, 1 logits f32 [chunk rows, n],
 * 2 labels, then: */
typedef enum {
    MOE_XENT_LOSS,     /* 3 nll, written */
    MOE_XENT_GRAD,     /* 3 nll, written, 4 dnll */
    MOE_XENT_PART,     /* 3 sums f32 [T, 3 * parts], written, 4 part */
    MOE_XENT_PART_GRAD /* 3 lse, 4 dnll, 5 part */
} MoeXentRows;

/* GRAD, PART_GRAD: dlogits of dtype d replace the logits, rows still n * 4 bytes apart. parts: of PART. */
const char *moe_xent_emit_rows(MoeCpuTarget *t, int64_t n, MoeXentRows what, int64_t parts,
                               MoeDtype d);

/* A group of one cross_entropy_join: rows of sums -> nll and lse. xent_join.c */
void moe_xent_lower_join(MoeCpuTarget *t, const MoeGroup *g, MoeLowered *out);

#endif
