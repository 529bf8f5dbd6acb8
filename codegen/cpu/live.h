/* Kernels of one op whose tasks are blocks of live rows: what route, move, embed and rope share. */
#ifndef MOE_CODEGEN_CPU_LIVE_H
#define MOE_CODEGEN_CPU_LIVE_H

#include "codegen/bufs.h"
#include "codegen/cpu/emit.h"

/* The end of the live rows of a tensor type; seg_buf: its segs table, or -1. */
MoeVal moe_live_rows(MoeEmit *e, const MoeType *t, int seg_buf);
/* The first live row: 0 but where an expert's rows may be given by a window of their table (docs/RANKS.md, "Overlap"), in which
 * rows of other experts are empty and all keep their places. */
MoeVal moe_live_first(MoeEmit *e, const MoeType *t, int seg_buf);
/* The same of a table, the kernel's buffer seg_buf. */
MoeVal moe_segs_first(MoeEmit *e, const MoeType *segs, int seg_buf);
/* Tasks of `per_task` rows; then the loop over this task's rows. */
void moe_live_tasks(MoeEmit *e, MoeVal live, int64_t per_task);
void moe_live_loop(MoeEmit *e, MoeLoop *l, MoeVal live, int64_t per_task);
/* Rows of `cols` elements that make up a task of about 16K elements. */
int64_t moe_live_block(int64_t cols);
/* Appends dims of a type to a kernel key: ragged rows as "r<G>x<V>". */
void moe_live_key(MoeStr *key, const MoeType *t);

#endif
