/* What a model and a batch amount to: the room a micro-batch's tokens need, the FLOPs of a token.
 */
#include "frontends/frontend.h"

int64_t moe_token_capacity(int64_t batch, int64_t seq, int virtual_shards, int micro_batches) {
    int64_t most = 0;
    /* Shard v begins at sequence floor(v B / V); micro-batch m at shard m V / M. */
    for (int64_t m = 0; m < micro_batches; m++) {
        int64_t lo = m * virtual_shards / micro_batches * batch / virtual_shards;
        int64_t hi = (m + 1) * virtual_shards / micro_batches * batch / virtual_shards;
        most = hi - lo > most ? hi - lo : most;
    }
    return most * seq;
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
