/* One process that trains: what the start (train_start.c) makes and the loop (train.c) uses. */
#ifndef MOE_RUNTIME_TRAINER_H
#define MOE_RUNTIME_TRAINER_H

#include "runtime/log.h"
#include "runtime/train.h"

/* One training process: everything that the loop holds. */
typedef struct {
    const MoePlan *plan;
    const MoeTrainOptions *o;
    MoeTrainReport *report;
    MoeTrainState state;
    MoeExec *x;
    MoeData *data;
    MoeLog *log;
    MoeProgress *progress;
    int lock;
    int32_t *ids, *labels;                /* [batch, seq] */
    double *imbalance, *expert_imbalance; /* [n_moe_layers] */
    double start;                         /* of this process */
    double step_seconds;                  /* in steps, since then */
    int64_t step_tokens;
    bool log_failed;    /* said once */
    int64_t saved_step; /* of the last checkpoint, -1 none */
} MoeTrainer;

/* Data, execution, run directory, weights (resumed or new), log: all that comes before the first
 * step. What was made before an error is the caller's to free. */
MoeStatus moe_train_start(MoeTrainer *s);

#endif
