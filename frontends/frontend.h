/* Frontends: a model description in, logical graphs out (@train forward and loss only, @eval,
 * @logits).
 *
 * Input names: tok, ids, labels (and later the scalars the grad pass adds). Outputs of @train:
 * loss, ce_loss, aux_loss, tokens, segs.L;
 * @eval: nll_sum, tokens; @logits: logits. docs/PLAN.md says what they are. */
#ifndef MOE_FRONTENDS_FRONTEND_H
#define MOE_FRONTENDS_FRONTEND_H

#include <jansson.h>
#include "ir/graph.h"

typedef enum { MOE_AUX_FROM_CONFIG, MOE_AUX_ON, MOE_AUX_OFF } MoeAuxChoice;

typedef struct {
    int64_t batch, seq; /* global batch; seq 0: min(max_position_embeddings, 512) */
    int virtual_shards,
        micro_batches; /* graphs are built at the capacity of the largest micro-batch */
    bool mixed_bf16, mixed_from_config; /* mixed_from_config: dtype of the config decides (bfloat16
                                           -> bf16, float16 refused) */
    MoeAuxChoice aux;
} MoeFrontendOptions;

/* What a config says, resolved: both spellings of the keys read, defaults filled in as transformers
 * fills them. */
typedef struct {
    char model_type[32]; /* "mixtral", "llama" */
    int64_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    int64_t experts, experts_per_token;    /* 0 = dense */
    int64_t max_positions, sliding_window; /* 0 = none */
    double rope_theta, rms_norm_eps, initializer_range, router_aux_loss_coef;
    bool tie_word_embeddings, output_router_logits, bf16, f16; /* the last two: dtype */
} MoeHfConfig;

/* Reads and checks a config (all its mistakes collected; unknown model types with the nearest
 * known). json: the parsed object, kept whole. */
MoeStatus moe_hf_config_read(const char *path, MoeHfConfig *out, json_t **out_json);
MoeStatus moe_hf_config_parse(const json_t *json, const char *where, MoeHfConfig *out);
MoeStatus moe_hf_build(const MoeHfConfig *c, const MoeFrontendOptions *o, MoeModule **out);
/* Capacity of the token dim: seq * the most sequences that one of `micro_batches` micro-batches can
 * hold. */
int64_t moe_token_capacity(int64_t batch, int64_t seq, int micro_batches);
/* Model FLOPs a token, forward and backward: 6 * active matmul parameters + attention (causal half,
 * less what the window hides). */
double moe_hf_flops_per_token(const MoeHfConfig *c, int64_t seq);

#endif
