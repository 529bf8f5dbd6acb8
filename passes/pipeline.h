/* Runs the passes of passes.def over a module. */
#ifndef MOE_PASSES_PIPELINE_H
#define MOE_PASSES_PIPELINE_H

#include <stdio.h>
#include "passes/pass.h"

typedef struct {
    const char *passes;     /* "a,b,c" (moec opt), or NULL: all */
    const char *stop_after; /* or NULL */
    const char *
        print_after; /* a pass name, "all", or NULL; prints to `out` with a header line "// after PASS" */
    bool verify_each; /* default on in cli */
    bool
        eval_each; /* evaluate every graph before and after each pass on random inputs; results must agree */
    bool time_passes;
    FILE *out, *err;
} MoePipelineOptions;

/* The order of passes.def is checked against its ORDER rows first. Unknown pass names: error with the nearest. */
MoeStatus moe_pipeline_run(MoePassContext *cx, const MoePipelineOptions *o);

#endif
