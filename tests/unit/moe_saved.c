/* What an MoE layer keeps from the forward to the backward pass, read off the memory plan: of bf16 training on every family of
 * targets, against what the best published scheme keeps (SonicMoE, arXiv 2512.14080): with T tokens, model width d, experts of
 * width n, E of them and K a token, in bytes
 *
 *   2 T d          the layer's input x
 *   4 T K n        gate and up projections, before the activation
 *   4 T K          the scores
 *   4 T K          the experts' ids
 *   12 T K         three maps between tokens and rows
 *   4 (T + 1) + 4 (E + 1)
 *
 * moec keeps no x: it is the norm of the residual, which is kept anyway, so one scale a token is enough. It keeps two maps. It
 * has the router's probabilities of all experts, 4 T E, which the gradient of the balancing loss reads; and the experts' offsets
 * by virtual shard (docs/NUMBERS.md). */
#include <check.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "codegen/codegen.h"
#include "frontends/frontend.h"
#include "ir/op.h"
#include "passes/pipeline.h"
#include "tests/support/check_main.h"
#include "tests/support/status_checks.h"

enum { SHARDS = 8 };

typedef struct {
    int64_t batch, seq, d, n, e, k;
} Size;

static const Size sizes[] = {{12, 2048, 1536, 256, 128, 8}, {4, 512, 512, 256, 16, 4}, {4, 1024, 4096, 14336, 8, 2}};
static const char *const targets[] = {"cpu:x86-64-v4", "cuda:sm_80", "cuda:sm_90a", "cuda:sm_100"};

#define N_SIZES   (sizeof sizes / sizeof sizes[0])
#define N_TARGETS (sizeof targets / sizeof targets[0])

/* One layer, planned. Owned by the module. */
static MoePassContext planned(const Size *s, const char *target, MoeRecompute level) {
    char text[640];
    int len = snprintf(text, sizeof text,
                       "{\"model_type\": \"mixtral\", \"vocab_size\": 1024, \"hidden_size\": %d, \"intermediate_size\": %d,"
                       " \"num_hidden_layers\": 1, \"num_attention_heads\": 8, \"num_key_value_heads\": 2,"
                       " \"num_local_experts\": %d, \"num_experts_per_tok\": %d, \"max_position_embeddings\": 4096,"
                       " \"output_router_logits\": true, \"router_aux_loss_coef\": 0.02, \"rms_norm_eps\": 1e-5,"
                       " \"rope_theta\": 10000.0, \"initializer_range\": 0.02, \"hidden_act\": \"silu\","
                       " \"tie_word_embeddings\": false}",
                       (int)s->d, (int)s->n, (int)s->e, (int)s->k);
    MoeFrontendOptions f = {
        .batch = s->batch, .seq = s->seq, .virtual_shards = SHARDS, .micro_batches = 1, .mixed_bf16 = true};
    MoePassContext cx = {.options = {.batch = s->batch,
                                     .seq = s->seq,
                                     .micro_batches = 1,
                                     .virtual_shards = SHARDS,
                                     .mixed_bf16 = true,
                                     .recompute = level}};
    MoePipelineOptions p = {.stop_after = "memplan", .out = stdout, .err = stderr};
    json_t *json = NULL;
    MoeHfConfig c;
    OK(moe_json_load_text(text, (size_t)len, "config", &json));
    OK(moe_hf_config_parse(json, "config", &c));
    OK(moe_hf_build(&c, &f, &cx.module));
    json_decref(json);
    cx.arena = cx.module->arena;
    OK(moe_target_create(target, &cx.target));
    OK(moe_pipeline_run(&cx, &p));
    return cx;
}

static void release(MoePassContext *cx) {
    cx->target->destroy(cx->target);
    moe_module_destroy(cx->module);
}

static const MoeValue *seg_of(const MoeValue *v) {
    return v->type.kind == MOE_TYPE_TENSOR && v->type.rank ? v->type.dims[0].seg : NULL;
}

static void add_read(bool *read, const MoeValue *v) {
    if (v) {
        read[v->id] = true;
        if (seg_of(v))
            read[seg_of(v)->id] = true;
    }
}

/* What the backward phase reads, operands and tables of rows, by value id. */
static const bool *read_again(const MoeGraph *g, MoeArena *a) {
    bool *read = MOE_NEW_N(a, bool, g->n_values);
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->phase != MOE_PHASE_BACKWARD || moe_op_info(op->opcode)->kind == MOE_KIND_DECL)
            continue;
        for (int k = 0; k < op->n_operands; k++)
            add_read(read, op->operands[k]);
        for (int k = 0; k < op->n_results; k++)
            add_read(read, seg_of(op->results[k]));
    }
    return read;
}

/* The residual that enters the MoE layer: what the experts' sum is added to. */
static const MoeValue *residual_of(const MoeGraph *g) {
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        if (op->phase == MOE_PHASE_FORWARD && op->opcode == MOE_OP_ADD)
            for (int k = 0; k < 2; k++)
                if (op->operands[k]->def->opcode == MOE_OP_GATHER_SUM)
                    return op->operands[1 - k];
    }
    ck_abort_msg("no experts' sum is added to anything");
}

/* The value whose buffer in the slab it has: its own, or one's whose memory it took over. */
static int buffer_of(const MoeMemoryPlan *p, const MoeValue *v) {
    while (p->values[v->id].alias)
        v = p->values[v->id].alias;
    ck_assert_msg(p->values[v->id].offset >= 0, "%%%d, of %s, is kept and has no memory", v->id,
                  moe_op_info(v->def->opcode)->name);
    return v->id;
}

/* Bytes of the values between the residual and the sum with it that live on for the backward pass. `show`: a line each. */
static int64_t kept(const MoePassContext *cx, bool show) {
    const MoeGraph *g = moe_module_find(cx->module, "train");
    const MoeMemoryPlan *memory = NULL;
    for (size_t i = 0; i < cx->module->n_graphs; i++)
        if (cx->programs[i].graph == g)
            memory = &cx->programs[i].memory;
    ck_assert_ptr_nonnull(memory);
    const bool *read = read_again(g, cx->arena);
    bool *inside = MOE_NEW_N(cx->arena, bool, g->n_values);
    bool *counted = MOE_NEW_N(cx->arena, bool, g->n_values);
    const MoeValue *residual = residual_of(g);
    int64_t sum = 0;
    for (size_t i = 0; i < g->n_ops; i++) {
        const MoeOp *op = g->ops[i];
        bool in = false, last = op->opcode == MOE_OP_ADD;
        for (int k = 0; k < op->n_operands; k++) {
            in |= op->operands[k] == residual || inside[op->operands[k]->id];
            last &= op->operands[k] == residual || op->operands[k]->def->opcode == MOE_OP_GATHER_SUM;
        }
        if (!in || last || op->phase != MOE_PHASE_FORWARD || moe_attr_i_or(op, "layer", -1) != 0)
            continue;
        for (int k = 0; k < op->n_results; k++) {
            const MoeValue *v = op->results[k];
            inside[v->id] = true;
            if (!read[v->id])
                continue;
            ck_assert_msg(!counted[buffer_of(memory, v)], "%%%d, of %s, is read again and shares its memory", v->id,
                          moe_op_info(op->opcode)->name);
            counted[buffer_of(memory, v)] = true;
            sum += moe_type_bytes(&v->type);
            if (show)
                fprintf(stderr, "%12lld %s\n", (long long)moe_type_bytes(&v->type), moe_op_info(op->opcode)->name);
        }
    }
    return sum;
}

static int64_t published(const Size *s) {
    int64_t t = s->batch * s->seq, tk = t * s->k;
    return 2 * t * s->d + 4 * tk * s->n + (4 + 4 + 12) * tk + 4 * (t + 1) + 4 * (s->e + 1);
}

/* Gate and up; ids, two maps, the rows' weights; probabilities; the norm's scales; offsets. */
static int64_t expected(const Size *s) {
    int64_t t = s->batch * s->seq, tk = t * s->k;
    return 4 * tk * s->n + 16 * tk + 4 * t * s->e + 4 * t + 4 * (SHARDS * s->e + 1);
}

START_TEST(test_kept) {
    const Size *s = &sizes[(size_t)_i % N_SIZES];
    const char *target = targets[(size_t)_i / N_SIZES];
    MoePassContext cx = planned(s, target, MOE_RECOMPUTE_AUTO); /* without a limit: CHEAP */
    int64_t bytes = kept(&cx, false);
    if (bytes != expected(s))
        kept(&cx, true);
    ck_assert_msg(bytes == expected(s), "%s keeps %lld bytes, expected %lld", target, (long long)bytes,
                  (long long)expected(s));
    ck_assert_msg(bytes <= published(s), "%s keeps %lld bytes, the best scheme %lld", target, (long long)bytes,
                  (long long)published(s));
    release(&cx);
}
END_TEST

START_TEST(test_levels) { /* that it counts: nothing computed again keeps more, whole layers less */
    const Size *s = &sizes[0];
    int64_t bytes[3];
    for (int level = MOE_RECOMPUTE_NONE; level <= MOE_RECOMPUTE_LAYER; level++) {
        MoePassContext cx = planned(s, "cuda:sm_90a", (MoeRecompute)level);
        bytes[level] = kept(&cx, false);
        release(&cx);
    }
    int64_t tk = s->batch * s->seq * s->k;
    ck_assert_msg(bytes[0] >= bytes[1] + 2 * tk * s->n, "%lld %lld", (long long)bytes[0], (long long)bytes[1]);
    ck_assert_msg(bytes[2] <= bytes[1] - 4 * tk * s->n, "%lld %lld", (long long)bytes[1], (long long)bytes[2]);
}
END_TEST

int main(void) {
    Suite *s = suite_create("moe_saved");
    TCase *tc = tcase_create("moe_saved");
    tcase_add_loop_test(tc, test_kept, 0, (int)(N_SIZES * N_TARGETS));
    tcase_add_test(tc, test_levels);
    suite_add_tcase(s, tc);
    return moe_check_main(s);
}
