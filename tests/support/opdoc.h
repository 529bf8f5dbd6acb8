/* docs/OPS.md, made from ir/ops.def: for tests/tools/opdoc.c (writes it) and tests/unit/ir_docs.c
 * (compares). */
#ifndef MOE_TESTS_SUPPORT_OPDOC_H
#define MOE_TESTS_SUPPORT_OPDOC_H

#include "base/str.h"

void moe_opdoc_print(MoeStr *out);

#endif
