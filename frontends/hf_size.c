/* What a model and a batch amount to: the room a micro-batch's tokens need, the FLOPs of a token.
 */
#include "base/mesh.h"
#include "frontends/frontend.h"

int64_t moe_token_capacity(int64_t batch, int64_t seq, int micro_batches) {
    MoeMesh one = moe_mesh_one();
    return moe_mesh_most_sequences(&one, batch, micro_batches) * seq;
}

double moe_hf_flops_per_token(const MoeHfConfig *c, int64_t seq) {
    double d = (double)c->hidden_size, q = (double)(c->heads * c->head_dim);
    double kv = (double)(c->kv_heads * c->head_dim), n = (double)seq;
    double attention = d * q * 2 + d * kv * 2; /* q, o; k, v */
    double mlp = 3.0 * d * (double)c->intermediate_size;
    if (c->experts)
        mlp = mlp * (double)c->experts_per_token + d * (double)c->experts;
    /* Keys that a query sees, on average: the causal half, less what the window hides. */
    double window = c->sliding_window ? (double)c->sliding_window : n;
    window = window < n ? window : n;
    double span = window - window * window / (2 * n);
    double params = (double)c->layers * (attention + mlp) + d * (double)c->vocab_size;
    return 6.0 * params + 3.0 * (double)c->layers * 4.0 * span * q;
}
