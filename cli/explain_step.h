/* Inside `moec explain --against`: the step that a plan predicts for the load that a run really had. Called by cmd_explain.c. */
#ifndef MOE_CLI_EXPLAIN_STEP_H
#define MOE_CLI_EXPLAIN_STEP_H

#include "placement/load.h"
#include "runtime/plan.h"

/* Seconds of an optimiser step: of each MoE layer what its busiest rank and links take with the load (placement/cost.h, by the plan's
 * "placement"), and the rest of the step as predicted. The usual maps. NAN if the plan does not say, or if its layers are
 * others. */
double moe_explain_loaded_seconds(const MoePlan *p, const MoeLoad *l);

#endif
