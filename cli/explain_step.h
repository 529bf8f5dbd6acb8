/* Inside `moec explain --against`: the step that a plan predicts for the load that a run really had. Called by cmd_explain.c. */
#ifndef MOE_CLI_EXPLAIN_STEP_H
#define MOE_CLI_EXPLAIN_STEP_H

#include "placement/load.h"
#include "runtime/plan.h"

/* Seconds of an optimiser step: of each MoE layer what its busiest rank and links take with the load (placement/cost.h, by the plan's
 * "placement"), and the rest of the step as predicted. The mean over steps of the load, of up to 64 evenly spaced, each with its own
 * maps (run_maps.h) and rows of copies divided as training does; without what moves between steps take. NAN if the plan does not say,
 * or if its layers are others. */
MoeStatus moe_explain_loaded_seconds(const MoePlan *p, const MoeLoad *l, const char *run, double *out);

#endif
