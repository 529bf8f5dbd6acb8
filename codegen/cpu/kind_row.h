/* Row groups on the CPU: kind_row.c emits what codegen/row_plan.h plans row by row, kind_row_flat.c per element,
 * kind_row_col.c column sums.
 *
 * A value lives in a vector register within its loop, a kept one in a row buffer of the scratch memory (or it is read
 * back from its output). Row reductions sum vectors by position modulo 4, then fold those four, then the lanes. */
#ifndef MOE_CODEGEN_CPU_KIND_ROW_H
#define MOE_CODEGEN_CPU_KIND_ROW_H

#include "codegen/cpu/emit.h"
#include "codegen/row_plan.h"

/* How this target plans row groups. */
MoeRowRules moe_cpu_row_rules(const MoeCpuTarget *t);

/* Memory in its own dtype: floats come as f32, i32 as i32 (emit.h's loads convert). Scalars:
 * element `index`; vectors: lanes from there. */
MoeVal moe_row_sload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index);
void moe_row_sstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index);
MoeVal moe_row_vload(MoeEmit *e, MoeDtype d, MoeVal base, MoeVal index, MoeVal mask);
void moe_row_vstore(MoeEmit *e, MoeDtype d, MoeVal v, MoeVal base, MoeVal index, MoeVal mask);
/* Live rows of the group: the last entry of the rows' segs, or the static count; the first of them. */
MoeVal moe_row_live_rows(MoeEmit *e, const MoeRowPlan *p);
MoeVal moe_row_live_first(MoeEmit *e, const MoeRowPlan *p);
/* Computes every UNIFORM value into vals[value index]; task 0 stores those that are outputs.
 * Scratch copies are written where `kept`. */
void moe_row_emit_uniform(MoeEmit *e, const MoeRowPlan *p, MoeVal *vals);

/* Emission. */
void moe_row_emit_flat(MoeCpuTarget *t, const MoeRowPlan *p, MoeLowered *out);
void moe_row_emit_rows(MoeCpuTarget *t, const MoeRowPlan *p, MoeLowered *out);
/* The second launch of a col_sum: partial sums by leaf -> f32[cols] by the tree of docs/NUMBERS.md. */
void moe_row_emit_fold(MoeCpuTarget *t, const MoeRowPlan *p, const MoeRowOp *op, MoeLowered *out);

#endif
