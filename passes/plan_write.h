/* Writes a compiled module as a plan directory (docs/PLAN.md), atomically: built in DIR.tmp-PID, renamed over DIR.
 * An existing plan is replaced; any other existing file or directory is refused. */
#ifndef MOE_PASSES_PLAN_WRITE_H
#define MOE_PASSES_PLAN_WRITE_H

#include <jansson.h>
#include "passes/pass.h"

typedef struct {
    const json_t *model;      /* the resolved Hugging Face config (all keys kept); borrowed */
    const char *tokenizer;    /* "byte" or a file name */
    bool want_text;           /* keep kernels.ll */
    const char *compile_line; /* the command, for people */
    const char *logical_text; /* the module as text before any pass (model.moe), or NULL */
    double flops_per_token;   /* model FLOPs, forward and backward */
    int64_t vocab_size;
    const int *moe_layers; /* decoder layers with experts, ascending */
    size_t n_moe_layers;
    int experts, experts_per_token;
    const json_t *planner; /* what the offline planner found, kept as it is; or NULL; borrowed */
} MoePlanInfo;

/* In memory: plan.json as text and the object code (both malloc'd), for tests and moec explain. */
MoeStatus moe_plan_build(MoePassContext *cx, const MoePlanInfo *info, char **out_json,
                         void **out_object, size_t *out_object_bytes, char **out_kernel_text);
MoeStatus moe_plan_write(MoePassContext *cx, const MoePlanInfo *info, const char *dir);

#endif
