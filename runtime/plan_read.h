/* plan.json -> MoePlan: the checked reading that plan.c uses. Fills everything but dir, jit and the
 * steps' functions. */
#ifndef MOE_RUNTIME_PLAN_READ_H
#define MOE_RUNTIME_PLAN_READ_H

#include "runtime/plan.h"

/* p->json and p->arena are set; `name` is for errors. Every error is MOE_E_CORRUPT naming the
 * entry, but for a plan of a newer format or another ABI: MOE_E_INPUT that says to compile again.
 */
MoeStatus moe_plan_read(MoePlan *p, const char *name);
/* plan_link.c: puts the object code in memory and resolves every step's kernel. */
MoeStatus moe_plan_link(MoePlan *p, const char *name, const void *object, size_t object_bytes);
void moe_plan_unlink(MoePlan *p);
/* plan_cubins.c: takes the container of device code in, copied, and finds every step's kernel in it. */
MoeStatus moe_plan_link_cubins(MoePlan *p, const char *name, const void *code, size_t n);
void moe_plan_unlink_cubins(MoePlan *p);
/* Whether code for `target` ("cpu:NAME") can run on this machine, as far as the runtime can tell.
 */
MoeStatus moe_plan_target_check(const MoePlan *p, const char *name);

size_t moe_plan_dtype_bytes(MoePlanDtype d);

#endif
