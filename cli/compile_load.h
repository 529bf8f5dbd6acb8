/* The load that a plan is made for: a trace, or one made by rule. Called by the driver once the model and the mesh are known. */
#ifndef MOE_CLI_COMPILE_LOAD_H
#define MOE_CLI_COMPILE_LOAD_H

#include "cli/driver.h"

/* --trace, --load. MOE_E_MISUSE with both, or for an unknown kind. */
MoeStatus moe_compile_load_options(const MoeOptions *o, MoeDriverOptions *d);
/* Sets c->cx.options.load: from the trace, or by the kind: "uniform", "zipf:S" and what else moe_synthetic_make knows, "gate:CF",
 * "topology" (placement/gate.h). Nothing without either, or without experts. MOE_E_INPUT if the trace is of another model. */
MoeStatus moe_compile_load(const MoeDriverOptions *o, MoeCompiled *c);

#endif
