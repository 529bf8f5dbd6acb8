/* The verifier: the invariants of ir/graph.h, arity, attributes, types against infer, equal @seg where operands must agree. */
#ifndef MOE_IR_VERIFY_H
#define MOE_IR_VERIFY_H

#include "ir/graph.h"

/* Reports into d with each op's location (or the printed op where there is none). Returns true if all is well. */
bool moe_verify_graph(const MoeGraph *g, MoeDiag *d);
bool moe_verify(const MoeModule *m, MoeDiag *d);
/* After a pass: a violation is our bug; the message names the pass and shows the op. NULL if all is well. */
MoeStatus moe_verify_after(const MoeModule *m, const char *pass);

#endif
