/* Builds the logical graphs of a Mixtral or Llama from its MoeHfConfig: @train (forward and
 * losses), @eval, @logits.
 *
 * One builder call a statement where order matters: C leaves the order of arguments to the
 * compiler, and graphs must not depend on it.
 *
 * The math is that of transformers' modeling_mixtral.py and modeling_llama.py. One difference in
 * order, none in value: an expert's activation is scaled by its routing weight before the down
 * projection instead of after it (the same product), because then the weight's gradient is
 * <da', a> and the expert outputs need not be kept.
 *
 * Mixed precision (bf16): matmul operands and attention are bf16, each rounding an explicit
 * convert; the residual stream, norms, router, losses, gradients and master weights are f32. */
#include "frontends/frontend.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"

#define MAX_ACTIVATION 1e12 /* numbers in one activation */

typedef struct {
    MoeValue *norm1, *q, *k, *v, *o, *norm2;
    MoeValue *router, *gate, *up, *down; /* experts stacked [E,n,k]; dense [n,k], no router */
} LayerParams;

typedef struct {
    MoeGraph *g;
    const MoeHfConfig *c;
    const MoeFrontendOptions *o;
    MoeValue *tok, *ids, *labels;
    MoeDim rows;    /* T: token rows, ragged over tok */
    bool bf16, aux; /* aux: the balancing loss is part of the loss */
    MoeValue *embed, *norm, *lm_head;
    LayerParams *layers;
    MoeValue *prob_sum, *counts; /* over the layers so far: f32[E], i32[E] */
    MoeValue **segs;             /* per layer */
} Builder;

/* ---- parameters ---- */

static MoeValue *param(Builder *b, const char *value_name, const char *hf_name, MoeType type,
                       const char *init, bool decay, bool stacked) {
    MoeAttr attrs[] = {moe_as("name", hf_name), moe_as("init", init),
                       moe_af("std", b->c->initializer_range), moe_ai("decay", decay),
                       moe_ai("stacked", stacked)};
    MoeOp *op = moe_op_build_v(b->g, MOE_OP_PARAM, NULL, 0, attrs, 5, &type, NULL);
    op->results[0]->name = value_name;
    return op->results[0];
}

static MoeValue *linear_param(Builder *b, int64_t layer, const char *short_name,
                              const char *hf_tail, int64_t out, int64_t in) {
    MoeArena *a = b->g->arena;
    return param(b, moe_arena_printf(a, "l%d_%s", (int)layer, short_name),
                 moe_arena_printf(a, "model.layers.%d.%s.weight", (int)layer, hf_tail),
                 moe_type_2d(MOE_F32, moe_dim(out), in), "normal", true, false);
}

static MoeValue *expert_param(Builder *b, int64_t layer, const char *leaf, int64_t out,
                              int64_t in) {
    MoeArena *a = b->g->arena;
    return param(b, moe_arena_printf(a, "l%d_%s", (int)layer, leaf),
                 moe_arena_printf(a, "model.layers.%d.block_sparse_moe.experts.*.%s.weight",
                                  (int)layer, leaf),
                 moe_type_3d(MOE_F32, b->c->experts, out, in), "normal", true, true);
}

static MoeValue *norm_param(Builder *b, const char *value_name, const char *hf_name) {
    return param(b, value_name, hf_name, moe_type_1d(MOE_F32, b->c->hidden_size), "ones", false,
                 false);
}

static void declare(Builder *b, bool with_labels, int64_t capacity) {
    const MoeHfConfig *c = b->c;
    MoeGraph *g = b->g;
    MoeArena *a = g->arena;
    g->layer = -1;
    b->tok = moe_build_input(g, "tok", moe_type_segs(1, b->o->virtual_shards));
    b->tok->name = "tok";
    b->rows = moe_dim_ragged(capacity, b->tok);
    MoeType int_rows = {.kind = MOE_TYPE_TENSOR, .dtype = MOE_I32, .rank = 1, .dims = {b->rows}};
    b->ids = moe_build_input(g, "ids", int_rows);
    b->ids->name = "ids";
    if (with_labels) {
        b->labels = moe_build_input(g, "labels", int_rows);
        b->labels->name = "labels";
    }
    int64_t d = c->hidden_size, n = c->intermediate_size;
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    MoeType table = moe_type_2d(MOE_F32, moe_dim(c->vocab_size), d);
    b->embed = param(b, "embed", "model.embed_tokens.weight", table, "normal", true, false);
    b->layers = MOE_NEW_N(a, LayerParams, c->layers);
    b->segs = MOE_NEW_N(a, MoeValue *, c->layers);
    for (int64_t l = 0; l < c->layers; l++) {
        LayerParams *p = &b->layers[l];
        int li = (int)l;
        p->norm1 = norm_param(b, moe_arena_printf(a, "l%d_norm1", li),
                              moe_arena_printf(a, "model.layers.%d.input_layernorm.weight", li));
        p->q = linear_param(b, l, "q", "self_attn.q_proj", q, d);
        p->k = linear_param(b, l, "k", "self_attn.k_proj", kv, d);
        p->v = linear_param(b, l, "v", "self_attn.v_proj", kv, d);
        p->o = linear_param(b, l, "o", "self_attn.o_proj", d, q);
        p->norm2 =
            norm_param(b, moe_arena_printf(a, "l%d_norm2", li),
                       moe_arena_printf(a, "model.layers.%d.post_attention_layernorm.weight", li));
        if (c->experts) {
            p->router = linear_param(b, l, "router", "block_sparse_moe.gate", c->experts, d);
            p->gate = expert_param(b, l, "w1", n, d);
            p->down = expert_param(b, l, "w2", d, n);
            p->up = expert_param(b, l, "w3", n, d);
        } else {
            p->gate = linear_param(b, l, "gate", "mlp.gate_proj", n, d);
            p->up = linear_param(b, l, "up", "mlp.up_proj", n, d);
            p->down = linear_param(b, l, "down", "mlp.down_proj", d, n);
        }
    }
    b->norm = norm_param(b, "norm", "model.norm.weight");
    b->lm_head = b->embed;
    if (!c->tie_word_embeddings)
        b->lm_head = param(b, "lm_head", "lm_head.weight", table, "normal", true, false);
}

/* ---- the model ---- */

/* To the dtype that matmuls compute in. */
static MoeValue *compute(Builder *b, MoeValue *x) {
    return b->bf16 ? moe_build_convert(b->g, x, MOE_BF16) : x;
}

/* The same, and back: the rounding that keeping the value in bf16 costs. */
static MoeValue *kept(Builder *b, MoeValue *x) {
    return moe_build_convert(b->g, compute(b, x), MOE_F32);
}

/* x [T,k] in compute dtype, w [n,k] (grouped: [E,n,k]) -> f32 [T,n] */
static MoeValue *linear(Builder *b, MoeValue *x, MoeValue *w, bool grouped) {
    MoeValue *w_compute = x->type.dtype == MOE_BF16 ? moe_build_convert(b->g, w, MOE_BF16) : w;
    MoeValue *in[] = {x, w_compute};
    return moe_build(b->g, MOE_OP_MATMUL, in, 2, moe_ai("tb", 1), moe_ai("grouped", grouped),
                     MOE_END);
}

static MoeValue *rmsnorm(Builder *b, MoeValue *x, MoeValue *w) {
    MoeValue *in[] = {x, w};
    return moe_build(b->g, MOE_OP_RMSNORM, in, 2, moe_af("eps", b->c->rms_norm_eps), MOE_END);
}

static MoeValue *rope(Builder *b, MoeValue *x, int64_t heads) {
    return moe_build(b->g, MOE_OP_ROPE, &x, 1, moe_ai("heads", heads),
                     moe_ai("head_dim", b->c->head_dim), moe_af("theta", b->c->rope_theta),
                     moe_ai("seq", b->o->seq), moe_ai("inverse", 0), MOE_END);
}

/* x [T,d] -> [T,d] */
static MoeValue *attention(Builder *b, const LayerParams *p, MoeValue *x) {
    const MoeHfConfig *c = b->c;
    MoeValue *n = compute(b, rmsnorm(b, x, p->norm1));
    MoeValue *q = compute(b, rope(b, linear(b, n, p->q, false), c->heads));
    MoeValue *k = compute(b, rope(b, linear(b, n, p->k, false), c->kv_heads));
    MoeValue *v = compute(b, linear(b, n, p->v, false));
    MoeValue *in[] = {q, k, v};
    int64_t window = c->sliding_window && c->sliding_window < b->o->seq ? c->sliding_window : 0;
    MoeValue *o = moe_build(b->g, MOE_OP_ATTENTION, in, 3, moe_ai("heads", c->heads),
                            moe_ai("kv_heads", c->kv_heads), moe_ai("head_dim", c->head_dim),
                            moe_ai("seq", b->o->seq), moe_ai("window", window),
                            moe_af("scale", 1.0 / sqrt((double)c->head_dim)), MOE_END);
    return linear(b, o, p->o, false);
}

/* silu(gate) * up, [rows,n] */
static MoeValue *swiglu(Builder *b, MoeValue *gate, MoeValue *up) {
    MoeValue *gate_kept = kept(b, gate), *up_kept = kept(b, up);
    MoeValue *act = moe_build1(b->g, MOE_OP_SILU, gate_kept);
    return moe_build2(b->g, MOE_OP_MUL, act, up_kept);
}

static MoeValue *dense_mlp(Builder *b, const LayerParams *p, MoeValue *x) {
    MoeValue *n = compute(b, rmsnorm(b, x, p->norm2));
    MoeValue *gate = linear(b, n, p->gate, false), *up = linear(b, n, p->up, false);
    MoeValue *act = swiglu(b, gate, up);
    return linear(b, compute(b, act), p->down, false);
}

/* Router in f32: softmax over all experts, top-k, renormalised. */
static MoeValue *moe_mlp(Builder *b, const LayerParams *p, int64_t layer, MoeValue *x) {
    const MoeHfConfig *c = b->c;
    MoeGraph *g = b->g;
    MoeAttr k = moe_ai("k", c->experts_per_token), experts = moe_ai("experts", c->experts);
    MoeValue *n = rmsnorm(b, x, p->norm2);                                           // (T, d)
    MoeValue *probs = moe_build1(g, MOE_OP_SOFTMAX, linear(b, n, p->router, false)); // (T, E)
    MoeValue *ids = moe_build(g, MOE_OP_TOPK, &probs, 1, k, MOE_END);                // (T, K)
    MoeValue *top = moe_build2(g, MOE_OP_TAKE, probs, ids);                          // (T, K)
    MoeValue *sum = moe_build1(g, MOE_OP_ROW_SUM, top);                              // (T, 1)
    MoeValue *weights = moe_build2(g, MOE_OP_DIV, top, sum);                         // (T, K)
    MoeOp *plan = moe_op_build(g, MOE_OP_ROUTE_PLAN, &ids, 1, experts, MOE_END);
    MoeValue *seg = plan->results[0], *src = plan->results[1], *inv = plan->results[2];
    b->segs[layer] = seg;
    if (b->aux) {
        /* Micro-batches meet layer by layer, so that their number does not reorder the sum. */
        MoeValue *p_e = moe_build1(g, MOE_OP_ACCUMULATE, moe_build1(g, MOE_OP_COL_SUM, probs));
        MoeValue *n_e = moe_build1(g, MOE_OP_EXPERT_COUNTS, seg);
        b->prob_sum = b->prob_sum ? moe_build2(g, MOE_OP_ADD, b->prob_sum, p_e) : p_e;
        b->counts = b->counts ? moe_build2(g, MOE_OP_ADD, b->counts, n_e) : n_e;
    }
    MoeValue *in_rows[] = {compute(b, n), src, inv}, *in_scale[] = {weights, src, inv};
    MoeValue *rows = moe_build(g, MOE_OP_DISPATCH, in_rows, 3, MOE_END);          // (R, d)
    MoeValue *gate = linear(b, rows, p->gate, true);                              // (R, n)
    MoeValue *up = linear(b, rows, p->up, true);                                  // (R, n)
    MoeValue *act = swiglu(b, gate, up);                                          // (R, n)
    MoeValue *scale = moe_build(g, MOE_OP_DISPATCH_WEIGHT, in_scale, 3, MOE_END); // (R, 1)
    MoeValue *scaled = moe_build2(g, MOE_OP_MUL, act, scale);                     // (R, n)
    MoeValue *y = linear(b, compute(b, scaled), p->down, true);                   // (R, d)
    MoeValue *in_sum[] = {y, src, inv};
    return moe_build(g, MOE_OP_GATHER_SUM, in_sum, 3, MOE_END); // (T, d)
}

/* Through the final norm: [T,d] in compute dtype. */
static MoeValue *body(Builder *b) {
    MoeGraph *g = b->g;
    MoeValue *x = moe_build2(g, MOE_OP_EMBEDDING, b->embed, b->ids); // (T, d)
    for (int64_t l = 0; l < b->c->layers; l++) {
        g->layer = (int)l;
        const LayerParams *p = &b->layers[l];
        MoeValue *mixed = attention(b, p, x);
        x = moe_build2(g, MOE_OP_ADD, x, mixed);
        MoeValue *mlp = b->c->experts ? moe_mlp(b, p, l, x) : dense_mlp(b, p, x);
        x = moe_build2(g, MOE_OP_ADD, x, mlp);
    }
    g->layer = -1;
    return compute(b, rmsnorm(b, x, b->norm));
}

static MoeValue *nll(Builder *b) {
    MoeValue *h = body(b), *w = compute(b, b->lm_head);
    MoeValue *in[] = {h, w, b->labels};
    return moe_build(b->g, MOE_OP_LINEAR_CROSS_ENTROPY, in, 3, MOE_END); // (T, 1)
}

/* transformers' load_balancing_loss_func, pooled over layers:
 * E * sum_e (c_e / N) (P_e / N), N = layers * tokens. f32[1] */
static MoeValue *aux_loss(Builder *b) {
    MoeGraph *g = b->g;
    MoeValue *counts = moe_build_convert(g, moe_build1(g, MOE_OP_BATCH_SUM, b->counts), MOE_F32);
    MoeValue *tokens = moe_build1(g, MOE_OP_BATCH_SUM, moe_build1(g, MOE_OP_ROW_COUNT, b->tok));
    MoeValue *tokens_f = moe_build_convert(g, tokens, MOE_F32);
    MoeValue *layers = moe_build_const(g, (double)b->c->layers);
    MoeValue *n = moe_build2(g, MOE_OP_MUL, tokens_f, layers);
    MoeValue *share = moe_build2(g, MOE_OP_DIV, counts, n);
    MoeValue *prob = moe_build2(g, MOE_OP_DIV, b->prob_sum, n);
    MoeValue *dot = moe_build1(g, MOE_OP_ROW_SUM, moe_build2(g, MOE_OP_MUL, share, prob));
    MoeValue *experts = moe_build_const(g, (double)b->c->experts);
    return moe_build2(g, MOE_OP_MUL, dot, experts);
}

static void build_train(Builder *b) {
    MoeGraph *g = b->g;
    MoeValue *loss_rows = nll(b);
    MoeValue *count = moe_build1(g, MOE_OP_BATCH_SUM, moe_build1(g, MOE_OP_COUNT_VALID, b->labels));
    MoeValue *sum = moe_build1(g, MOE_OP_ACCUMULATE, moe_build1(g, MOE_OP_COL_SUM, loss_rows));
    MoeValue *ce = moe_build2(g, MOE_OP_DIV, sum, moe_build_convert(g, count, MOE_F32));
    MoeValue *loss = ce;
    moe_build_output(g, "ce_loss", ce);
    if (b->aux) {
        MoeValue *aux = aux_loss(b);
        moe_build_output(g, "aux_loss", aux);
        MoeValue *coefficient = moe_build_const(g, b->c->router_aux_loss_coef);
        MoeValue *weighted = moe_build2(g, MOE_OP_MUL, aux, coefficient);
        loss = moe_build2(g, MOE_OP_ADD, ce, weighted);
    }
    moe_build_output(g, "loss", loss);
    moe_build_output(g, "tokens", count);
    for (int64_t l = 0; b->c->experts && l < b->c->layers; l++)
        moe_build_output(g, moe_arena_printf(g->arena, "segs.%d", (int)l), b->segs[l]);
}

static void build_eval(Builder *b) {
    moe_build_output(b->g, "nll_sum", moe_build1(b->g, MOE_OP_COL_SUM, nll(b)));
    moe_build_output(b->g, "tokens", moe_build1(b->g, MOE_OP_COUNT_VALID, b->labels));
}

/* Rows are counted in 32 bits (an expert's over all layers too), and every tensor must stay
 * addressable. */
static MoeStatus check_sizes(const MoeHfConfig *c, const MoeFrontendOptions *o) {
    long long batch = o->batch, seq = o->seq;
    if (batch < 1 || seq < 1)
        return moe_error(MOE_E_MISUSE, "batch %lld and sequence length %lld must be at least 1",
                         batch, seq);
    if (seq > c->max_positions)
        return moe_error(
            MOE_E_INPUT,
            "sequence length %lld is more than the model's %lld (max_position_embeddings)", seq,
            (long long)c->max_positions);
    int64_t k = c->experts ? c->experts_per_token : 1, tokens, n;
    int64_t most = c->experts ? (k > c->layers ? k : c->layers) : 1;
    if (!moe_mul_i64(batch, seq, &tokens) || !moe_mul_i64(tokens, most, &n) || n > INT32_MAX)
        return moe_error(MOE_E_INPUT,
                         "a batch of %lld x %lld tokens is too large: rows are counted in 32 bits",
                         batch, seq);
    double rows = (double)moe_token_capacity(batch, seq, o->micro_batches);
    double hidden = (double)k * fmax((double)c->hidden_size, (double)c->intermediate_size);
    double widest = fmax(hidden, fmax((double)(c->heads * c->head_dim), (double)c->experts));
    double largest = fmax(rows * widest, (double)seq * (double)c->vocab_size);
    if (largest > MAX_ACTIVATION)
        return moe_error(MOE_E_INPUT,
                         "a batch of %lld x %lld tokens is too large: a single activation would "
                         "hold %.3g numbers; use more micro-batches or shorter sequences",
                         batch, seq, largest);
    return NULL;
}

MoeStatus moe_hf_build(const MoeHfConfig *c, const MoeFrontendOptions *options, MoeModule **out) {
    MoeFrontendOptions o = *options;
    MOE_ASSERT(o.virtual_shards >= 1 && o.micro_batches >= 1, "%d virtual shards, %d micro-batches",
               o.virtual_shards, o.micro_batches);
    if (o.seq == 0)
        o.seq = c->max_positions < 512 ? c->max_positions : 512;
    MOE_TRY(check_sizes(c, &o));
    if (o.mixed_from_config && c->f16)
        return moe_error(MOE_E_INPUT, "the config's dtype is float16, which is not trained in; "
                                      "choose --dtype f32 or --dtype bf16");
    Builder b = {.c = c, .o = &o};
    b.bf16 = o.mixed_from_config ? c->bf16 : o.mixed_bf16;
    b.aux = c->experts &&
            (o.aux == MOE_AUX_ON || (o.aux == MOE_AUX_FROM_CONFIG && c->output_router_logits));
    int64_t capacity = moe_token_capacity(o.batch, o.seq, o.micro_batches);
    MoeModule *m = moe_module_create();

    b.g = moe_module_add_graph(m, "train");
    declare(&b, true, capacity);
    build_train(&b);

    b.g = moe_module_add_graph(m, "eval");
    b.aux = false;
    declare(&b, true, capacity);
    build_eval(&b);

    /* One sequence at a time: logits of a whole batch would be the largest tensor of the plan. */
    b.g = moe_module_add_graph(m, "logits");
    declare(&b, false, o.seq);
    MoeValue *h = body(&b);
    moe_build_output(b.g, "logits", linear(&b, h, b.lm_head, false));
    *out = m;
    return NULL;
}
