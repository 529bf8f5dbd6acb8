/* Two ways to compute what parity checks: the compiled plan (on any number of ranks, each a thread of this process), and the
 * f64 interpreter. */
#ifndef MOE_TESTS_PARITY_ENGINE_H
#define MOE_TESTS_PARITY_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

typedef struct {
    const char *engine, *dtype, *target, *recompute;
    int threads, micro_batches; /* threads: of all ranks */
    int ranks, expert_parallel, hybrid_shard, dense_shard, tensor_parallel,
        virtual_shards; /* 0: not given */
    int64_t batch, seq;
} ParityOptions;

typedef struct {
    const char *name; /* Hugging Face name, '*' for the expert */
    bool stacked;
    int64_t slices, elements;
    int index;
} ParityParam;

typedef struct {
    double loss, aux, grad_norm;
    bool has_aux;
} ParityLosses;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay, clip;
    int64_t step;
} ParityHyper;

typedef struct ParityEngine ParityEngine;
MoeStatus parity_create(const char *config, const ParityOptions *o, ParityEngine **out);
void parity_destroy(ParityEngine *e); /* NULL is fine */
const ParityParam *parity_params(const ParityEngine *e, size_t *n);
int64_t parity_vocab(const ParityEngine *e);
/* One slice of a parameter, an expert's tensor of a stacked one: elements [first, first + n). With ranks each sets its
 * piece; what is read must be the same on all that hold it. */
void parity_set(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n, const float *data);
void parity_get(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n, double *out);
void parity_grad(ParityEngine *e, const ParityParam *p, int64_t first, int64_t n,
                 double *out);                                             /* after parity_grads */
MoeStatus parity_logits(ParityEngine *e, const int32_t *ids, double *out); /* [batch*seq, vocab] */
MoeStatus parity_grads(ParityEngine *e, const int32_t *ids, const int32_t *labels,
                       ParityLosses *out);
MoeStatus parity_step(ParityEngine *e, const int32_t *ids, const int32_t *labels,
                      const ParityHyper *h, ParityLosses *out);

#endif
