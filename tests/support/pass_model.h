/* Models for tests of passes: a small Mixtral or Llama built by the frontend and run through passes with the fake target. */
#ifndef MOE_TESTS_SUPPORT_PASS_MODEL_H
#define MOE_TESTS_SUPPORT_PASS_MODEL_H

#include "passes/pass.h"
#include "tests/support/fake_target.h"

typedef struct {
    bool dense;         /* Llama instead of Mixtral */
    int layers;         /* 0: 3 */
    int64_t batch, seq; /* 0: 4 sequences of 16 */
    int micro_batches;  /* 0: 1 */
    bool bf16;
    MoeRecompute recompute;
    int64_t memory_limit;
    MoeMesh mesh;       /* all zero: one rank */
    bool overlap;
    int overlap_chunks;         /* 0: chosen */
    bool offload;
    int loading_horizon;
    const MoeCluster *cluster;  /* NULL: one host */
    const char *passes; /* NULL: all */
    bool refuse_joins, refuse_alias;
    bool row_sums; /* the target puts row sums behind products */
    bool rounds_weights; /* the target gains by keeping rounded weights */
} MoePassModelOptions;

typedef struct {
    MoePassContext cx;
    MoeFakeTarget target;
} MoePassModel;

/* Builds and runs; what the pipeline said (verified after every pass). Free the model in any case. */
MoeStatus moe_pass_model_make(const MoePassModelOptions *o, MoePassModel *out);
void moe_pass_model_free(MoePassModel *m);

/* Divides every collective of a graph, before fuse, into its start and a `wait` that stands `gap` ops later, or before its first
 * reader. gap 0: nothing is divided. */
void moe_pass_start_collectives(MoeGraph *g, size_t gap);

#endif
