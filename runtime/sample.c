/* Sampling: the logits program over the last `seq` tokens for each new one (no key/value cache).
 * See sample.h. */
#include "runtime/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define BYTE_VOCABULARY 256

void moe_sample_options_default(MoeSampleOptions *o) {
    *o = (MoeSampleOptions){.prompt = "", .n_tokens = 200, .temperature = 0.8, .top_k = 40};
}

typedef struct {
    float logit;
    int32_t id;
} Choice;

/* Best first; ties to the lower id. */
static int better_first(const void *a, const void *b) {
    const Choice *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

MoeStatus moe_sample_pick(const float *logits, int64_t n, int64_t limit, double temperature,
                          int64_t top_k, double u, int32_t *out) {
    if (limit < n)
        n = limit;
    Choice *c = malloc(sizeof *c * (size_t)(n + 1));
    if (!c)
        return moe_error(MOE_E_NOMEM, "no memory for %lld logits", (long long)n);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(logits[i]))
            c[kept++] = (Choice){logits[i], (int32_t)i};
    if (!kept) {
        free(c);
        return moe_error(
            MOE_E_INPUT,
            "the model's logits are not finite: the weights are damaged or training diverged");
    }
    qsort(c, (size_t)kept, sizeof *c, better_first);
    *out = c[0].id;
    if (top_k > 0 && top_k < kept)
        kept = top_k;
    if (temperature > 0) {
        double sum = 0, at = 0;
        for (int64_t i = 0; i < kept; i++)
            sum += exp(((double)c[i].logit - (double)c[0].logit) / temperature);
        for (int64_t i = 0; i < kept; i++) {
            at += exp(((double)c[i].logit - (double)c[0].logit) / temperature);
            *out = c[i].id;
            if (u * sum < at)
                break;
        }
    }
    free(c);
    return NULL;
}

/* What rank 0 decided for the next token: every rank's window goes on with it. */
typedef struct {
    int32_t id, go_on;
} Next;

/* Rank 0's choice on every rank; an error of it on every rank too (takes st). */
static MoeStatus share(MoeComm *comm, MoeStatus st, Next *next) {
    if (comm->size == 1)
        return st;
    MOE_TRY(moe_comm_agree(comm, st, "the next token"));
    Next *all = malloc(sizeof *all * (size_t)comm->size);
    if (!all)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", comm->size);
    st = moe_comm_all_gather(comm, next, sizeof *next, all, "the next token");
    *next = all[0];
    free(all);
    return st;
}

MoeStatus moe_sample_run(const MoePlan *plan, MoeExec *x, const MoeSampleOptions *o,
                         MoeSampleEmit emit, void *ctx) {
    if (strcmp(plan->tokenizer, "byte"))
        return moe_error(MOE_E_INPUT, "sampling needs the byte tokenizer; the plan has \"%s\"",
                         plan->tokenizer);
    if (!(o->temperature >= 0) || o->n_tokens < 0 || o->top_k < 0)
        return moe_error(MOE_E_MISUSE, "--temperature, --tokens and --top-k must be at least 0");
    const int64_t seq = plan->seq, vocab = plan->vocab_size;
    const char *prompt = o->prompt_bytes ? o->prompt : "\n";
    int64_t n = o->prompt_bytes ? (int64_t)o->prompt_bytes : 1, kept = n < seq ? n : seq;
    int32_t *ids =
        calloc((size_t)seq, sizeof *ids); /* the window; what is right of `kept` is padding, which
                                             causal attention never sees */
    if (!ids)
        return moe_error(MOE_E_NOMEM, "no memory for a sequence of %lld tokens", (long long)seq);
    MoeStatus st = NULL;
    for (int64_t i = 0; i < kept && !st; i++) {
        ids[i] = (unsigned char)prompt[n - kept + i];
        if (ids[i] >= vocab)
            st = moe_error(MOE_E_INPUT,
                           "byte %d of the prompt is outside the plan's vocabulary of %lld", ids[i],
                           (long long)vocab);
    }
    for (int64_t t = 0; t < o->n_tokens && !st; t++) {
        const float *logits;
        Next next = {0, 1};
        MoeBatch b = {ids, NULL, 1};
        MOE_TRY_GOTO(st, moe_exec_logits(x, &b, &logits), done);
        if (moe_exec_rank(x) == 0) {
            double u = moe_rng_uniform(o->seed, moe_hash_name("sample"), (uint64_t)t);
            st = moe_sample_pick(logits + (kept - 1) * vocab, vocab, BYTE_VOCABULARY,
                                 o->temperature, o->top_k, u, &next.id);
            unsigned char byte = (unsigned char)next.id;
            next.go_on = !st && emit(ctx, &byte, 1);
        }
        MOE_TRY_GOTO(st, share(moe_exec_comm(x), st, &next), done);
        if (!next.go_on)
            break;
        if (kept == seq)
            memmove(ids, ids + 1, sizeof *ids * (size_t)(--kept));
        ids[kept++] = next.id;
    }
done:
    free(ids);
    return st;
}
