/* moec opt FILE.moe --passes=a,b: runs passes by hand and prints the IR. */
#include "cli/commands.h"

#include <stdio.h>
#include <string.h>

#include "cli/driver.h"
#include "codegen/codegen.h"
#include "ir/text.h"

/* Passes up to recompute need no target; those after it do. */
static bool needs_target(const char *passes) {
    return strstr(passes, "fuse") || strstr(passes, "memplan") || strstr(passes, "kernels") ||
           strstr(passes, "decompose");
}

MoeStatus moe_cmd_opt(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    MoeModule *m = NULL;
    MOE_TRY(moe_parse_file(o->positionals[0], &m));
    MoePassContext cx = {.module = m, .arena = m->arena};
    const char *recompute = moe_opt(o, OPT_RECOMPUTE);
    cx.options = (MoePassOptions){.batch = 1, .seq = 1, .micro_batches = 1, .virtual_shards = 8};
    cx.options.recompute = moe_recompute_from_name(recompute);
    MoePipelineOptions p = {.passes = moe_opt(o, OPT_PASSES),
                            .verify_each = moe_opt_b(o, OPT_VERIFY_EACH),
                            .eval_each = moe_opt_b(o, OPT_EVAL_EACH),
                            .time_passes = moe_opt_b(o, OPT_TIME_PASSES),
                            .print_after =
                                *moe_opt(o, OPT_PRINT_AFTER) ? moe_opt(o, OPT_PRINT_AFTER) : NULL,
                            .out = stdout,
                            .err = stderr};
    MoeStatus st = NULL;
    if (needs_target(p.passes))
        st = moe_target_create(moe_opt(o, OPT_TARGET), &cx.target);
    if (!st && *p.passes)
        st = moe_pipeline_run(&cx, &p);
    if (!st) {
        MoeStr text = {0};
        moe_print(m, &text);
        fputs(moe_str_c(&text), stdout);
        moe_str_free(&text);
    }
    if (cx.target)
        cx.target->destroy(cx.target);
    moe_module_destroy(m);
    return st;
}
