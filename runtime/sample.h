/* Text from a model: the logits program over the last `seq` tokens, one token at a time. */
#ifndef MOE_RUNTIME_SAMPLE_H
#define MOE_RUNTIME_SAMPLE_H

#include "runtime/exec.h"

typedef struct {
    const char *prompt; /* bytes; may be empty: a newline then stands for it */
    size_t prompt_bytes;
    int64_t n_tokens;   /* to generate */
    double temperature; /* 0: the likeliest token */
    int64_t top_k;      /* 0: all */
    uint64_t seed;
} MoeSampleOptions;

/* Called with each piece of new text as it comes (not the prompt), on rank 0. Returning false stops. */
typedef bool (*MoeSampleEmit)(void *ctx, const unsigned char *bytes, size_t n);

void moe_sample_options_default(
    MoeSampleOptions *o); /* 200 tokens, temperature 0.8, top-k 40, seed 0 */
/* Every rank calls, with the same options; rank 0 chooses each token. */
MoeStatus moe_sample_run(const MoePlan *plan, MoeExec *x, const MoeSampleOptions *o,
                         MoeSampleEmit emit, void *ctx);
/* The choice itself: one id from logits [n] (ids from `limit` on are left out), random number u in
 * [0, 1). Ties go to the lower id. */
MoeStatus moe_sample_pick(const float *logits, int64_t n, int64_t limit, double temperature,
                          int64_t top_k, double u, int32_t *out);

#endif
