/* See pass_model.h. */
#include "tests/support/pass_model.h"

#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "frontends/frontend.h"
#include "passes/pipeline.h"

static const char config[] =
    "{\"model_type\": \"%s\", \"vocab_size\": 64, \"hidden_size\": 32, \"intermediate_size\": 48,"
    " \"num_hidden_layers\": %d, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"head_dim\": 8,"
    " %s \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0,"
    " \"initializer_range\": 0.02, \"hidden_act\": \"silu\", \"tie_word_embeddings\": %s}";

MoeStatus moe_pass_model_make(const MoePassModelOptions *o, MoePassModel *out) {
    memset(out, 0, sizeof *out);
    char text[1024];
    int n = snprintf(
        text, sizeof text, config, o->dense ? "llama" : "mixtral", o->layers ? o->layers : 3,
        o->dense
            ? ""
            : "\"num_local_experts\": 4, \"num_experts_per_tok\": 2, \"output_router_logits\": "
              "true, \"router_aux_loss_coef\": 0.02,",
        o->dense ? "true" : "false");
    json_t *json = NULL;
    MoeHfConfig c;
    MOE_TRY(moe_json_load_text(text, (size_t)n, "config", &json));
    MoeFrontendOptions f = {.batch = o->batch ? o->batch : 4,
                            .seq = o->seq ? o->seq : 16,
                            .virtual_shards = 4,
                            .micro_batches = o->micro_batches ? o->micro_batches : 1,
                            .mixed_bf16 = o->bf16};
    MoeModule *m = NULL;
    MoeStatus st = moe_hf_config_parse(json, "config", &c);
    if (!st)
        st = moe_hf_build(&c, &f, &m);
    json_decref(json);
    if (st)
        return st;
    moe_fake_target_init(&out->target);
    out->target.refuse_joins = o->refuse_joins;
    out->target.refuse_alias = o->refuse_alias;
    out->target.base.fuse.matmul_row_sums = o->row_sums;
    out->target.base.rounds_weights = o->rounds_weights;
    out->cx = (MoePassContext){.module = m, .target = &out->target.base, .arena = m->arena};
    out->cx.options = (MoePassOptions){.batch = f.batch,
                                       .seq = f.seq,
                                       .micro_batches = f.micro_batches,
                                       .virtual_shards = 4,
                                       .mixed_bf16 = o->bf16,
                                       .recompute = o->recompute,
                                       .memory_limit = o->memory_limit,
                                       .mesh = o->mesh,
                                       .overlap = o->overlap,
                                       .overlap_chunks = o->overlap_chunks,
                                       .offload = o->offload,
                                       .loading_horizon = o->loading_horizon};
    if (o->cluster)
        out->cx.options.cluster = *o->cluster;
    MoePipelineOptions p = {.passes = o->passes, .verify_each = true, .out = stdout, .err = stderr};
    return moe_pipeline_run(&out->cx, &p);
}

void moe_pass_model_free(MoePassModel *m) {
    if (m->cx.module)
        moe_module_destroy(m->cx.module);
}

typedef struct {
    MoeValue *v;
    size_t at;
} Started;

void moe_pass_start_collectives(MoeGraph *g, size_t gap) {
    size_t n;
    moe_graph_renumber(g);
    int n_values = g->n_values;
    MoeOp **ops = moe_graph_take_ops(g, &n);
    MoeValue **arrived = MOE_NEW_N(g->arena, MoeValue *, n_values);
    Started *open = MOE_NEW_N(g->arena, Started, n);
    size_t n_open = 0;
    for (size_t i = 0; i < n; i++) {
        MoeOp *op = ops[i];
        for (size_t k = 0; k < n_open;) {
            bool due = i >= open[k].at + gap || op->phase != open[k].v->def->phase;
            for (int o = 0; o < op->n_operands; o++)
                due |= op->operands[o] == open[k].v;
            if (!due) {
                k++;
                continue;
            }
            g->phase = open[k].v->def->phase;
            arrived[open[k].v->id] = moe_build1(g, MOE_OP_WAIT, open[k].v);
            open[k] = open[--n_open];
        }
        for (int o = 0; o < op->n_operands; o++)
            if (op->operands[o]->id < n_values && arrived[op->operands[o]->id])
                op->operands[o] = arrived[op->operands[o]->id];
        moe_graph_append(g, op);
        if (moe_op_info(op->opcode)->kind == MOE_KIND_COMM && gap) {
            open[n_open].v = op->results[0];
            open[n_open++].at = i;
        }
    }
    moe_graph_renumber(g);
}
