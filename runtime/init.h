/* Seeded parameter initialisation. Each element depends on (seed, Hugging Face name, element index)
 * alone; experts have streams of their own, so any layout and thread count gives the same weights.
 * Each rank fills what it holds, and nothing else is ever made. States become zero. */
#ifndef MOE_RUNTIME_INIT_H
#define MOE_RUNTIME_INIT_H

#include "runtime/exec.h"

MoeStatus moe_init_params(const MoePlan *plan, MoeExec *x, uint64_t seed);
MoeStatus moe_init_states(const MoePlan *plan, MoeExec *x); /* all states to zero */

#endif
