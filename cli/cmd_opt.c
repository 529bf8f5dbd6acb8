/* moec opt FILE.moe --passes=a,b: runs passes by hand and prints the IR. */
#include "cli/commands.h"

#include <stdio.h>
#include <string.h>

#include "cli/cluster_options.h"
#include "cli/driver.h"
#include "codegen/codegen.h"
#include "ir/numbers.h"
#include "ir/text.h"

/* Passes up to recompute need no target; those after it do. */
static bool needs_target(const char *passes) {
    return strstr(passes, "fuse") || strstr(passes, "overlap") || strstr(passes, "offload") ||
           strstr(passes, "memplan") || strstr(passes, "kernels") ||
           strstr(passes, "decompose");
}

/* Sizes that the flags do not give are the graph's: its virtual shards, the sequence length that an op names, as many
 * sequences as there are rows for. */
static void sizes_of(const MoeModule *m, MoePassOptions *o) {
    int64_t rows = 0;
    for (size_t i = 0; i < m->n_graphs; i++)
        for (size_t k = 0; k < m->graphs[i]->n_ops; k++) {
            const MoeOp *op = m->graphs[i]->ops[k];
            const MoeType *t = op->opcode == MOE_OP_INPUT ? &op->results[0]->type : NULL;
            if (!o->seq && moe_attr(op, "seq"))
                o->seq = moe_attr_i(op, "seq");
            if (t && t->kind == MOE_TYPE_SEGS && t->groups == 1 && !o->virtual_shards)
                o->virtual_shards = (int)t->shards;
            if (t && t->kind == MOE_TYPE_TENSOR && t->dims[0].seg && t->dims[0].size > rows)
                rows = t->dims[0].size;
        }
    o->seq = o->seq ? o->seq : 1;
    o->virtual_shards = o->virtual_shards ? o->virtual_shards : MOE_DEFAULT_SHARDS;
    if (!o->batch)
        o->batch = rows / o->seq * o->micro_batches;
    o->batch = o->batch ? o->batch : 1;
}

static int64_t experts_of(const MoeModule *m) {
    for (size_t i = 0; i < m->n_graphs; i++)
        for (size_t k = 0; k < m->graphs[i]->n_ops; k++)
            if (m->graphs[i]->ops[k]->opcode == MOE_OP_ROUTE_PLAN)
                return moe_attr_i(m->graphs[i]->ops[k], "experts");
    return 0;
}

static MoeStatus options_of(const MoeOptions *o, const MoeModule *m, MoePassOptions *out) {
    *out = (MoePassOptions){.micro_batches = (int)moe_opt_i(o, OPT_MICRO_BATCHES)};
    out->recompute = moe_recompute_from_name(moe_opt(o, OPT_RECOMPUTE));
    if (moe_opt_given(o, OPT_BATCH))
        out->batch = moe_opt_i(o, OPT_BATCH);
    if (moe_opt_given(o, OPT_SEQ))
        out->seq = moe_opt_i(o, OPT_SEQ);
    if (moe_opt_given(o, OPT_VIRTUAL_SHARDS))
        out->virtual_shards = (int)moe_opt_i(o, OPT_VIRTUAL_SHARDS);
    if (out->micro_batches < 1 || out->micro_batches > MOE_MAX_SHARDS || out->batch < 0 ||
        out->seq < 0 || out->virtual_shards < 0 || out->virtual_shards > MOE_MAX_SHARDS)
        return moe_error(MOE_E_MISUSE,
                         "moec opt: --batch, --seq, --micro-batches and --virtual-shards "
                         "must be at least 1, the last two at most %d",
                         MOE_MAX_SHARDS);
    MOE_TRY(moe_offload_from_options(o, out));
    sizes_of(m, out);
    MoeStrategy s;
    MOE_TRY(moe_strategy_from_options(o, &s));
    MOE_TRY(moe_cluster_from_options(o, &s, out));
    MOE_TRY(moe_strategy_resolve(&s, experts_of(m), &out->mesh));
    return moe_cluster_check_mesh(out);
}

MoeStatus moe_cmd_opt(const MoeOptions *o) {
    MOE_TRY(moe_options_expect(o, 1));
    MoeModule *m = NULL;
    MOE_TRY(moe_parse_file(o->positionals[0], &m));
    MoePassContext cx = {.module = m, .arena = m->arena};
    MoePipelineOptions p = {.passes = moe_opt(o, OPT_PASSES),
                            .verify_each = moe_opt_b(o, OPT_VERIFY_EACH),
                            .eval_each = moe_opt_b(o, OPT_EVAL_EACH),
                            .time_passes = moe_opt_b(o, OPT_TIME_PASSES),
                            .print_after =
                                *moe_opt(o, OPT_PRINT_AFTER) ? moe_opt(o, OPT_PRINT_AFTER) : NULL,
                            .out = stdout,
                            .err = stderr};
    MoeStatus st = options_of(o, m, &cx.options);
    if (!st && needs_target(p.passes))
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
