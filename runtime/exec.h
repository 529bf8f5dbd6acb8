/* Executes a plan's programs: owns parameter and state buffers, one slab for all programs, inputs, per-thread scratch. */
#ifndef MOE_RUNTIME_EXEC_H
#define MOE_RUNTIME_EXEC_H

#include "base/pool.h"
#include "runtime/plan.h"

typedef struct MoeExec MoeExec;

/* Allocates everything. One exec runs all programs of the plan (they share the slab). */
MoeStatus moe_exec_create(const MoePlan *plan, int n_threads, MoeExec **out);
void moe_exec_destroy(MoeExec *x);
int moe_exec_threads(const MoeExec *x);
/* The memory of shared buffer i (a parameter or state), valid as long as x. */
void *moe_exec_buffer(MoeExec *x, int buffer);
/* The memory of a named input/output of a program; NULL if the program has none of that name. Outputs are valid until
 * the next run of any program. */
void *moe_exec_input(MoeExec *x, const char *program, const char *name);
const void *moe_exec_output(MoeExec *x, const char *program, const char *name,
                            const MoePlanPort **out_port);

/* The tokens of sequences for one global batch: ids, labels [batch*seq]; n_seqs <= plan batch (the rest of the batch is absent:
 * shard v holds sequences floor(v*n_seqs/V) .. floor((v+1)*n_seqs/V)-1). */
typedef struct {
    const int32_t *ids, *labels; /* [n_seqs, seq]; labels may be NULL for logits */
    int64_t n_seqs;
} MoeBatch;

/* Scalars of a training step. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, max_grad_norm; /* max_grad_norm <= 0: no clipping */
    int64_t step; /* 1-based, for the bias corrections */
} MoeHyper;

typedef struct {
    double loss, ce_loss, aux_loss, grad_norm;
    int64_t tokens;
    bool has_aux,
        updated; /* updated = false: loss or norm not finite, parameters and states untouched */
    double seconds;
} MoeStepResult;

/* One optimiser step over the global batch: counting pass if needed, micro-batches, reduce, update. */
MoeStatus moe_exec_train_step(MoeExec *x, const MoeBatch *b, const MoeHyper *h, MoeStepResult *out);
/* The same without the update phase (gradients stay readable as outputs "grad.NAME" if the plan has them). */
MoeStatus moe_exec_train_grads(MoeExec *x, const MoeBatch *b, const MoeHyper *h,
                               MoeStepResult *out);
/* Sum of nll and count of labels over the batch. */
MoeStatus moe_exec_eval(MoeExec *x, const MoeBatch *b, double *out_nll_sum, int64_t *out_tokens);
/* logits [n_seqs*seq, vocab], valid until the next run. n_seqs is at most what the program holds (one, from moec compile). */
MoeStatus moe_exec_logits(MoeExec *x, const MoeBatch *b, const float **out_logits);
/* After a train step: rows routed to each expert from each virtual shard, layer by layer: [n_moe_layers][V][E]. Borrowed. */
const int32_t *moe_exec_load(const MoeExec *x);
/* Bytes of params + states + slab + inputs + scratch, as planned. */
int64_t moe_exec_memory_bytes(const MoeExec *x);
/* Measured seconds per step of the last run program (indexed like program->steps), for explain; NULL unless profiling. */
void moe_exec_profile(MoeExec *x, bool on);
const double *moe_exec_profile_seconds(const MoeExec *x, const char *program);

#endif
