/* moec compile --strategy auto: the offline planner (placement/planner.h) with the compiler as its judge. The model is surveyed as one rank
 * would run it, divisions are enumerated and scored, the best-looking ones compiled as far as memory planning and simulated with
 * the load; the fastest that fits is taken. */
#ifndef MOE_CLI_AUTO_STRATEGY_H
#define MOE_CLI_AUTO_STRATEGY_H

#include "cli/driver.h"

/* Whether --strategy says so. */
bool moe_auto_strategy_asked(const MoeOptions *o);
/* Sets strategy, micro-batches and level of recomputation of *d (what flags say stays); *out_report: what was looked at and why
 * this was chosen, for people and for plan.json's "planner" (the caller's). MOE_E_MISUSE without a cluster; MOE_E_INPUT if
 * nothing fits --memory-limit, with what the least needs. */
MoeStatus moe_auto_strategy(const MoeOptions *o, MoeDriverOptions *d, json_t **out_report);

#endif
