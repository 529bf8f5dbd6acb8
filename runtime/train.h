/* The training loop over a plan: data, steps, evaluation, log, load trace, checkpoints, resume,
 * signals. Called by `moec run`, once a rank: every rank reads the same data and makes the same decisions; rank 0 alone
 * writes the run directory and speaks. */
#ifndef MOE_RUNTIME_TRAIN_H
#define MOE_RUNTIME_TRAIN_H

#include "runtime/checkpoint.h"
#include "runtime/exec.h"
#include "runtime/place.h"

typedef enum { MOE_RESUME_AUTO, MOE_RESUME_NEVER, MOE_RESUME_DIR } MoeResume;

typedef struct {
    const char *plan_dir; /* recorded in the run (absolute), for sample and explain */
    const char *data_path;
    MoeDataFormat data_format;
    double eval_fraction; /* 0.05 */
    int64_t steps;        /* in all, those before a resume included; 1000 */
    double lr, min_lr;    /* peak 3e-4; end of the cosine, < 0: lr / 10 */
    int64_t warmup;       /* steps of linear warm-up; < 0: steps / 20, at most 200 */
    double beta1, beta2, eps, weight_decay; /* 0.9 0.95 1e-8 0.1 */
    double max_grad_norm;                   /* 1.0; <= 0: no clipping */
    uint64_t seed;                          /* of initialisation and data order; 0 */
    int64_t eval_every;                     /* steps; 0: only at the end; 250 */
    int64_t eval_batches; /* of each periodic evaluation; 0 = all of the held-out data; 8. The last
                             evaluation reads all of it */
    int64_t checkpoint_every; /* steps; 0: only at the end; 500 */
    int keep;                 /* newest checkpoints kept; 3 */
    const char *out_dir;      /* RUN; NULL: nothing is written */
    MoeResume resume;
    const char *resume_dir;  /* MOE_RESUME_DIR: a run or a checkpoint of it */
    const char *init_from;   /* Hugging Face directory, weights only; NULL: seeded initialisation */
    int threads;             /* of each rank; 0: all usable cores */
    MoeDevicePlace device;   /* of this rank, on a plan for GPUs; {-1, -1} */
    const char *offload_to;  /* where rows go that the plan offloads: a directory; NULL: out_dir; "memory": stay in the process */
    int64_t profile_step;    /* whose timeline goes into RUN/profile-rank-R.jsonl; 0 = none */
    int64_t stop_after_step; /* end with a checkpoint after this step; 0 = no such step */
    double max_seconds;      /* wall time of this process; 0 = none. Stops cleanly (evaluation and
                               checkpoint) when reached. The     schedule stays one by steps, so that
                               bits     never depend on the clock */
    MoePlaceOptions place;   /* of experts, while training */
    bool trace;              /* write RUN/trace.csv; true */
    bool quiet;              /* no progress */
    double log_seconds;      /* between plain progress lines when stderr is no terminal; 10 */
    const json_t
        *resolved; /* the resolved settings, saved in RUN/config.json; borrowed, may be NULL */
} MoeTrainOptions;

void moe_train_options_default(MoeTrainOptions *o);
/* Checks the numbers: MOE_E_MISUSE naming the flag. */
MoeStatus moe_train_options_check(const MoeTrainOptions *o);
/* Learning rate of step 1..steps: linear warm-up, then cosine to min_lr. */
double moe_train_lr(const MoeTrainOptions *o, int64_t step);

typedef enum { MOE_STOP_DONE, MOE_STOP_SIGNAL, MOE_STOP_TIME, MOE_STOP_STEP } MoeStopReason;

typedef struct {
    MoeStopReason reason;
    MoeTrainState state;
    int64_t first_step;             /* of this process (1 = started anew) */
    double loss, ce_loss, aux_loss; /* of the last step that updated */
    bool has_eval;
    double eval_loss;              /* nats a token */
    double eval_bits_per_byte;     /* NAN when bytes a token are unknown */
    double tokens_per_second, mfu; /* over this process's steps; mfu NAN when the peak is unknown */
    double seconds;                /* wall time of this process */
    bool emulated;
    double emulated_seconds; /* a step, on the links of --emulate: the mean of this process's */
    int64_t place_changes, place_experts, place_bytes; /* of online placement: moves, experts and bytes that went to another rank */
    int64_t place_staging_bytes;   /* beside the slots, of the rank that took the most */
    double place_seconds;          /* that they took */
    int64_t memory_bytes;          /* of this rank */
    int64_t memory_bytes_max;      /* of the rank that has the most */
    int64_t *load; /* [n_moe_layers][E] tokens routed during this process (in the whole run, from
                      its trace, when there was nothing left to train); moe_train_report_free */
    size_t n_layers, n_experts;
    bool checkpoint_failed; /* the last checkpoint could not be written: exit status 1 */
    char *checkpoint;       /* directory of the last good checkpoint, or NULL */
    bool agreed; /* after an error: all ranks have it (moe_comm_agree), so they may still call each other */
} MoeTrainReport;

/* The plan must be linked. comm: of as many ranks as the plan has, NULL for one. Signals SIGTERM, SIGINT and SIGUSR1 to
 * any rank's process finish the step, checkpoint and return on all (reason SIGNAL); a second one exits at once. An error:
 * bad data, another run in the directory, 10 steps in a row that were not finite, another rank's end, ... A rank that
 * fails by itself tells the others. */
MoeStatus moe_train_run(const MoePlan *plan, MoeComm *comm, const MoeTrainOptions *o,
                        MoeTrainReport *out);
void moe_train_report_free(MoeTrainReport *r);

#endif
