/* The table of passes and the order they may run in, both from passes.def. Called by
 * passes/pipeline.c and by cli/ (help texts). */
#ifndef MOE_PASSES_PASS_ORDER_H
#define MOE_PASSES_PASS_ORDER_H

#include "passes/pass.h"

typedef struct {
    const char *name, *doc;
    MoePassFn run;
} MoePassInfo;

/* The rows of passes.def, in order. */
const MoePassInfo *moe_pass_table(size_t *out_n);
/* The row named `name`; unknown names are MOE_E_MISUSE with the nearest known one. `what` says
 * where the name stands, e.g. "--stop-after". */
MoeStatus moe_pass_find(const char *name, const char *what, const MoePassInfo **out);
/* Asserts that the rows of passes.def stand in an order that its ORDER rows allow. */
void moe_pass_check_table(void);
/* "a,b,c" -> rows, in the order given, which must respect the ORDER rows (MOE_E_MISUSE says which,
 * and why); NULL: all. The array is in `arena`. */
MoeStatus moe_pass_select(const char *list, MoeArena *arena, const MoePassInfo ***out,
                          size_t *out_n);

#endif
