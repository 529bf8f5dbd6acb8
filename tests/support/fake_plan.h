/* A tiny plan whose kernels are C functions, for tests of the runtime: micro-batches, the counting
 * pass, folds, phases, checkpoints and the training loop, without the compiler.
 *
 * The model: w [8] predicts label / 64 from the class id % 8; experts.*.u [4][2,3] follow w's
 * gradient; the loss has a term that needs the whole batch's class counts. Partial sums follow
 * docs/NUMBERS.md (a run over each virtual shard, then the tree), so that results must not depend
 * on micro-batches and threads. */
#ifndef MOE_TESTS_FAKE_PLAN_H
#define MOE_TESTS_FAKE_PLAN_H

#include "base/str.h"
#include "runtime/plan.h"

typedef struct {
    int64_t batch, seq;
    int virtual_shards, micro_batches;
    const char *extra_model; /* ", \"key\": value" into the model config, or "" */
    int ranks; /* data parallel: counts, losses and gradients are summed; 0 or 1: one */
    const char *target; /* NULL: the CPU; "cuda:sm_80": steps have launch shapes, and fake_cuda.h the kernels */
    bool elastic; /* training also fills rows of FAKE_ROW_BYTES, one a token, in elastic memory that is planned for one of them;
                     output "extra" is their sum. With one rank and micro-batch */
} FakePlanOptions;

#define FAKE_EXPERTS 4
#define FAKE_VOCAB   256
#define FAKE_ROW_BYTES 65536

/* plan.json's text. */
void fake_plan_json(const FakePlanOptions *o, MoeStr *out);
/* Loaded, with the kernels put in by hand. Asserts that it loads. */
MoePlan *fake_plan(const FakePlanOptions *o);

/* From the next launch on: the loss is NaN while the counter is above zero (it counts down a step).
 */
extern int fake_poison_steps;
/* Launches of the update kernel so far. */
extern _Atomic int fake_updates;
/* Microseconds that each reduce step sleeps, so that a run lasts. */
extern int fake_sleep_us;

#endif
