/* The compiler as one call: model file -> frontend -> passes -> target -> plan (a directory, or loaded in memory).
 * Commands, tests and benchmarks all compile through here. */
#ifndef MOE_CLI_DRIVER_H
#define MOE_CLI_DRIVER_H

#include "cli/strategy.h"
#include "frontends/frontend.h"
#include "passes/pipeline.h"
#include "passes/plan_write.h"
#include "runtime/plan.h"

typedef struct {
    const char *model;  /* config.json, a directory that holds one, or a .moe file */
    const char *target; /* "cpu", ... */
    MoeFrontendOptions frontend;
    MoePassOptions pass; /* batch, seq, shards, micro-batches and dtype are taken from `frontend` */
    MoeStrategy strategy;  /* pass.mesh is taken from it, once the model is known */
    MoePipelineOptions pipeline;
    const char *trace, *load; /* the load that it is for: a file, or a kind (compile_load.h); NULL or "": balanced */
    const char *tokenizer;
    const char *compile_line;
    const json_t *planner; /* what the offline planner found, for plan.json; NULL: it was not asked */
    int leaf_rows;         /* of the weight gradients' trees (ir/graph.h); 0: as the model's text says, else as the target has it */
    bool fast_reduce;      /* weight gradients in one chain; a model's text may say so, too */
    bool survey;           /* one rank's work on a cluster of many is asked for: ranks need not agree */
    bool want_text;
    bool quiet;
} MoeDriverOptions;

typedef struct {
    MoeModule *module;
    MoeTarget *target;
    MoePassContext cx;
    MoeArena *arena;
    json_t *model;
    MoeHfConfig config; /* zero for .moe models */
    MoePlanInfo info;
    MoeStr logical_text;
} MoeCompiled;

/* "auto" "none" "cheap" "layer" (checked by the option table). */
MoeRecompute moe_recompute_from_name(const char *name);

void moe_driver_defaults(MoeDriverOptions *o);
/* Reads the model and runs the passes. *out must be freed with moe_driver_free, also after an error. */
MoeStatus moe_driver_compile(const MoeDriverOptions *o, MoeCompiled *out);
/* The compiled plan, linked, without a file. */
MoeStatus moe_driver_load(MoeCompiled *c, MoePlan **out);
void moe_driver_free(MoeCompiled *c);
/* Loads a plan directory; one made for another CPU is compiled again from its model.moe for this machine, with a note. One for a GPU
 * is loaded as it is. */
MoeStatus moe_driver_open_plan(const char *dir, MoePlan **out);

#endif
