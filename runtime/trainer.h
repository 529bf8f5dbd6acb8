/* One rank that trains: what the start (train_start.c) makes and the loop (train.c) uses, and what the ranks tell each other
 * (train_ranks.c). */
#ifndef MOE_RUNTIME_TRAINER_H
#define MOE_RUNTIME_TRAINER_H

#include "runtime/log.h"
#include "runtime/train.h"

/* What each rank says after a step. */
typedef struct {
    int32_t signal;  /* that asked its process to stop, 0 none */
    int32_t time_up; /* its time budget is used up */
    int64_t memory_bytes;
    double compute_seconds; /* of the step */
    int32_t place_due;      /* rank 0's: experts may move before the next step */
    MoeExecGrowth growth;   /* layer's rows beyond the plan: used = 0, none */
} MoeRankNote;

typedef struct MoeTrainSplit MoeTrainSplit;

/* One training rank: everything that the loop holds. */
typedef struct {
    const MoePlan *plan;
    MoeComm *comm, *own_comm; /* own: made here, for one rank */
    bool speaks;              /* rank 0: logs, warns, writes the run */
    bool agreed;              /* the error is one that every rank has: nobody waits for us */
    MoeRankNote *notes;       /* [ranks] of the last step */
    const MoeTrainOptions *o;
    MoeTrainReport *report;
    MoeTrainState state;
    MoeExec *x;
    MoeData *data;
    MoeLog *log;
    MoeProgress *progress;
    int lock;
    int cores; /* that all ranks together can keep busy */
    int32_t *ids, *labels;                /* [batch, seq] */
    double *imbalance, *expert_imbalance; /* [n_moe_layers] */
    double start;                         /* of this rank */
    double step_seconds;                  /* in steps, since then */
    int64_t step_tokens, steps;
    double emulated_seconds; /* in steps; NAN without emulated links */
    MoePlace *place;         /* online placement; NULL: static */
    bool place_due;          /* on all ranks: before the next step there is something to decide */
    MoeTrainSplit *split;    /* rank 0's scratch for the division of rows among copies */
    int signal;              /* that stopped the run */
    double compute_seconds;  /* of the last step, this rank's */
    bool log_failed;         /* said once */
    int64_t saved_step;      /* of the last checkpoint, -1 none */
} MoeTrainer;

/* Data, execution, run directory, weights (resumed or new), log: all that comes before the first
 * step. What was made before an error is the caller's to free. */
MoeStatus moe_train_start(MoeTrainer *s);

/* train_ranks.c. What all ranks call together: NULL on all, or an error on all (takes mine). */
MoeStatus moe_train_agree(MoeTrainer *s, MoeStatus mine, const char *what);
/* After a step: fills s->notes with every rank's. */
MoeStatus moe_train_notes(MoeTrainer *s);
/* The signal that asked any rank to stop, 0 none: the same on all. */
MoeStatus moe_train_signal(MoeTrainer *s, int *out);
/* n bytes of rank 0 on every rank. */
MoeStatus moe_train_share(MoeTrainer *s, void *data, size_t n, const char *what);
/* Fills s->cores, those of each host counted once. */
MoeStatus moe_train_cores(MoeTrainer *s);

/* train_split.c. Per MoE layer the busiest rank's expert rows over the mean, from the whole batch's load (rank 0), with the rows of
 * experts divided among their copies as the programs do: out[n_moe_layers]. */
MoeStatus moe_train_split_create(MoeTrainer *s);
void moe_train_split_destroy(MoeTrainSplit *p);
void moe_train_imbalance(const MoeTrainer *s, double *out);

/* train_place.c: online placement. Once weights are there; before a step for which s->place_due is set. */
MoeStatus moe_train_place_start(MoeTrainer *s, bool resumed);
MoeStatus moe_train_place(MoeTrainer *s);

#endif
