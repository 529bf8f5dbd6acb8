/* Inside the plan writer: plan.json from a lowered module (plan_json*.c) and readable names of steps
 * (plan_names*.c). */
#ifndef MOE_PASSES_PLAN_JSON_H
#define MOE_PASSES_PLAN_JSON_H

#include "passes/plan_write.h"

/* plan.json as a value (the caller's). kernels_xxh3: hash of the object code. */
MoeStatus moe_plan_json(MoePassContext *cx, const MoePlanInfo *info, const char *kernels_xxh3,
                        json_t **out);

/* placement.json: the maps that training starts with (the caller's); NULL: the usual ones. */
json_t *moe_plan_json_maps(const MoePassContext *cx);

/* "layers.3.self_attn.q_proj", ".dx", ".dw", ".update" behind it; "layers.3.sigmoid+mul"; in `a`.
 * gradients: moe_groups_gradients. */
const char *moe_plan_step_name(const MoeGroup *g, const MoeOp *const *gradients, MoeArena *a);
/* The same of an exchange or a wait: "layers.3.gather", "layers.3.dispatch.send". */
const char *moe_plan_comm_name(const MoeGroup *g, const MoeOp *const *gradients, MoeArena *a);
/* "model.layers.0.mlp.experts.*.w1.weight" -> "layers.0.mlp.experts.w1", appended. */
void moe_plan_short_name(const MoeOp *param, MoeStr *out);
const char *moe_plan_step_kind(const MoeGroup *g);
int64_t moe_plan_step_layer(const MoeGroup *g); /* -1 = none */

#endif
