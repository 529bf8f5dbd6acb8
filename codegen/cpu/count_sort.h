/* A stable counting sort, as emitted code: items with a cell number each are dealt out to rows ordered
 * by cell, then by arrival. table is i32[cells + 1] and ends as the first row of each cell and the
 * total: a segs table. One task does all of it:
 *
 *   moe_count_clear, for each item moe_count_add, moe_count_scan, for each item again moe_count_deal
 *
 * Callers: kind_route.c, kind_expert_plan.c, kind_embed.c. */
#ifndef MOE_CODEGEN_CPU_COUNT_SORT_H
#define MOE_CODEGEN_CPU_COUNT_SORT_H

#include "codegen/cpu/emit.h"

void moe_count_clear(MoeEmit *e, MoeVal table, int64_t cells);
void moe_count_add(MoeEmit *e, MoeVal table, MoeVal cell);
/* Counts -> first rows, in table and in next, i32[cells]. */
void moe_count_scan(MoeEmit *e, MoeVal table, MoeVal next, int64_t cells);
/* The row of the cell's next item. */
MoeVal moe_count_deal(MoeEmit *e, MoeVal next, MoeVal cell);

#endif
