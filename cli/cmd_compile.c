/* moec compile MODEL -o NAME.plan: model description in, plan out. */
#include "cli/commands.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pool.h"
#include "base/str.h"
#include "cli/auto_strategy.h"
#include "cli/cluster_options.h"
#include "cli/compile_load.h"
#include "cli/driver.h"
#include "cli/explain_planner.h"
#include "ir/numbers.h"
#include "passes/memplan.h"

/* --leaf-rows: 0 for auto; the driver checks the number. */
static MoeStatus leaf_rows_of(const MoeOptions *o, int *out) {
    const char *text = moe_opt(o, OPT_LEAF_ROWS);
    char *end;
    *out = 0;
    if (strcmp(text, "auto") == 0)
        return NULL;
    long n = strtol(text, &end, 10);
    if (end == text || *end || !moe_leaf_rows_valid(n))
        return moe_error(MOE_E_MISUSE, "--leaf-rows %.40s: expected auto, or a power of two from %d to %d",
                         text, MOE_MIN_LEAF_ROWS, MOE_MAX_LEAF_ROWS);
    *out = (int)n;
    return NULL;
}

static MoeStatus options_of(const MoeOptions *o, MoeDriverOptions *d) {
    moe_driver_defaults(d);
    d->model = o->positionals[0];
    d->target = moe_opt(o, OPT_TARGET);
    d->tokenizer = moe_opt(o, OPT_TOKENIZER);
    d->want_text = strcmp(moe_opt(o, OPT_EMIT), "llvm") == 0;
    d->quiet = moe_opt_b(o, OPT_QUIET);
    MoeFrontendOptions *f = &d->frontend;
    f->batch = moe_opt_i(o, OPT_BATCH);
    f->seq = moe_opt_i(o, OPT_SEQ);
    if (moe_opt_i(o, OPT_VIRTUAL_SHARDS) > 1 << 20 || moe_opt_i(o, OPT_MICRO_BATCHES) > 1 << 20)
        return moe_error(MOE_E_MISUSE, "--virtual-shards and --micro-batches: too large");
    f->virtual_shards = (int)moe_opt_i(o, OPT_VIRTUAL_SHARDS);
    f->micro_batches = (int)moe_opt_i(o, OPT_MICRO_BATCHES);
    MOE_TRY(leaf_rows_of(o, &d->leaf_rows));
    d->fast_reduce = moe_opt_b(o, OPT_FAST_REDUCE);
    const char *dtype = moe_opt(o, OPT_DTYPE), *aux = moe_opt(o, OPT_AUX_LOSS);
    f->mixed_from_config = strcmp(dtype, "config") == 0;
    f->mixed_bf16 = strcmp(dtype, "bf16") == 0;
    f->aux = strcmp(aux, "on") == 0    ? MOE_AUX_ON
             : strcmp(aux, "off") == 0 ? MOE_AUX_OFF
                                       : MOE_AUX_FROM_CONFIG;
    d->pass.recompute = moe_recompute_from_name(moe_opt(o, OPT_RECOMPUTE));
    d->pass.memory_limit = moe_opt_i(o, OPT_MEMORY_LIMIT);
    MOE_TRY(moe_offload_from_options(o, &d->pass));
    MOE_TRY(moe_strategy_from_options(o, &d->strategy));
    MOE_TRY(moe_cluster_from_options(o, &d->strategy, &d->pass));
    MOE_TRY(moe_compile_load_options(o, d));
    MoePipelineOptions *p = &d->pipeline;
    p->print_after = *moe_opt(o, OPT_PRINT_AFTER) ? moe_opt(o, OPT_PRINT_AFTER) : NULL;
    p->stop_after = *moe_opt(o, OPT_STOP_AFTER) ? moe_opt(o, OPT_STOP_AFTER) : NULL;
    p->verify_each = moe_opt_b(o, OPT_VERIFY_EACH);
    p->eval_each = moe_opt_b(o, OPT_EVAL_EACH);
    p->time_passes = moe_opt_b(o, OPT_TIME_PASSES);
    return NULL;
}

/* Parameters of the whole model; those active for a token; those that a rank holds. */
static double n_params(const MoeCompiled *c, double *out_active, double *out_local) {
    double n = 0, active = 0, local = 0;
    const MoeGraph *g = moe_module_find(c->module, "train");
    for (size_t i = 0; g && i < g->n_ops; i++)
        if (g->ops[i]->opcode == MOE_OP_PARAM) {
            MoeType t = g->ops[i]->results[0]->type;
            local += (double)moe_type_elements(&t);
            if (moe_attr(g->ops[i], "whole"))
                moe_dims_from_text(moe_attr_s(g->ops[i], "whole"), &t);
            double k = (double)moe_type_elements(&t);
            n += k;
            active += moe_attr_i_or(g->ops[i], "stacked", 0)
                          ? k / (double)t.dims[0].size * c->info.experts_per_token
                          : k;
        }
    *out_active = active;
    *out_local = local;
    return n;
}

static void summary(const MoeCompiled *c, const char *path, double took) {
    char params[32], slab[32], bound[32];
    double active, local, n = n_params(c, &active, &local);
    const MoePassOptions *o = &c->cx.options;
    const char *each = moe_mesh_size(&o->mesh) > 1 ? " a rank" : "";
    printf("%s: %.2f M parameters (%.2f M active a token), batch %lld x %lld tokens, %s\n", path,
           n / 1e6, active / 1e6, (long long)o->batch, (long long)o->seq,
           o->mixed_bf16 ? "bf16 mixed precision" : "f32");
    if (*each) {
        MoeStr text = {0};
        moe_strategy_text(&o->mesh, &text);
        printf("  %s\n", moe_str_c(&text));
        moe_str_free(&text);
    }
    moe_format_bytes(local * 12, params);
    for (size_t i = 0; i < c->module->n_graphs; i++) {
        const MoeProgram *p = &c->cx.programs[i];
        if (strcmp(p->graph->name, "train") != 0)
            continue;
        double expected = (double)(moe_memplan_expected_bytes(&p->memory) - p->memory.comm_bytes);
        char buffers[64] = "", staging[32];
        if (p->memory.comm_bytes)
            snprintf(buffers, sizeof buffers, " + %s of communication buffers",
                     moe_format_bytes((double)p->memory.comm_bytes, staging));
        moe_format_bytes(expected, slab);
        moe_format_bytes((double)p->memory.lower_bound, bound);
        double seconds = p->predicted.seconds;
        printf("  memory%s: %s of parameters and optimiser state + %s of activations and gradients "
               "(lower bound %s, ratio %.3f)%s\n",
               each, params, slab, bound,
               p->memory.lower_bound ? expected / (double)p->memory.lower_bound : 1.0, buffers);
        if (p->memory.offloaded)
            printf("  offloaded between forward and backward%s: %s\n", each,
                   moe_format_bytes((double)p->memory.offloaded, staging));
        else if (o->offload)
            printf("  nothing is offloaded: that would not lower the peak\n");
        printf("  predicted: %.3g s a step, %.0f tokens/s\n", seconds,
               (double)(o->batch * o->seq) / seconds);
    }
    if (*c->target->code_note)
        printf("  %s\n", c->target->code_note);
    printf("  target %s, compiled in %.2f s; 'moec explain %s' says more\n", c->target->name, took,
           path);
}

MoeStatus moe_cmd_compile(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    const char *out = moe_opt(o, OPT_OUTPUT);
    MoeDriverOptions d;
    MOE_TRY(options_of(o, &d));
    if (!*out && !d.pipeline.stop_after)
        return moe_error(MOE_E_MISUSE, "moec compile: -o NAME.plan says where the plan goes");
    MoeStr line = {0};
    moe_str_printf(&line, "moec compile %s", o->positionals[0]);
    for (int i = 0; i < N_OPTIONS; i++)
        if (moe_opt_given(o, (MoeOption)i) && strncmp(o->source[i], "--", 2) == 0)
            moe_str_printf(&line, " %s=%s", o->source[i], o->values[i]);
    d.compile_line = moe_str_c(&line);
    MoeCompiled c = {0};
    double start = moe_now();
    json_t *planner = NULL;
    MoeStatus st = moe_auto_strategy_asked(o) ? moe_auto_strategy(o, &d, &planner) : NULL;
    d.planner = planner;
    if (planner && !d.quiet)
        moe_planner_print(planner, stdout);
    if (!st)
        st = moe_driver_compile(&d, &c);
    if (!st && !d.pipeline.stop_after) {
        st = moe_plan_write(&c.cx, &c.info, out);
        if (!st && !d.quiet)
            summary(&c, out, moe_now() - start);
    }
    if (c.arena)
        moe_driver_free(&c);
    json_decref(planner);
    moe_str_free(&line);
    return st;
}
