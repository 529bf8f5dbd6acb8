/* Checkpoints: RUN/checkpoints/step-N/ with model.safetensors (f32 masters under Hugging Face
 * per-expert names), optimizer.safetensors (NAME.exp_avg, NAME.exp_avg_sq) and manifest.json (sizes
 * and XXH3-128 of the files, a census of every parameter and state with its own hash, position in
 * the data, counters, plan facts).
 *
 * Written as step-N.tmp-PID -> fsync of each file -> census -> manifest -> fsync of the directory
 * -> rename -> fsync of the parent, then read back and verified. No "latest" pointer: readers scan
 * newest first. */
#ifndef MOE_RUNTIME_CHECKPOINT_H
#define MOE_RUNTIME_CHECKPOINT_H

#include "runtime/data.h"
#include "runtime/exec.h"

#define MOE_CHECKPOINT_FORMAT 1

/* Everything of a training run that is not a tensor. */
typedef struct {
    int64_t step;    /* steps done (logged); the next is step + 1 */
    int64_t updates; /* optimiser updates done: step less the skipped ones */
    int64_t skipped; /* steps left out because loss or norm was not finite */
    int64_t skipped_in_row;
    int64_t tokens;       /* labels trained on */
    double train_seconds; /* spent in steps, over all starts */
    uint64_t seed;
    MoeDataPosition data;
    char data_fingerprint[40]; /* "" = unknown */
    int64_t checkpoint_failures;
} MoeTrainState;

/* A checkpoint found on disk. */
typedef struct {
    char *path; /* malloc'd */
    int64_t step;
} MoeCheckpointRef;

/* Writes RUN/checkpoints/step-N (N = state->step) and verifies it. On failure (full disk, ...) what
 * was there before is intact. */
MoeStatus moe_checkpoint_save(const MoePlan *plan, MoeExec *x, const char *run_dir,
                              const MoeTrainState *state);
/* Deletes all but the newest `keep` (at least 1) intact checkpoints; call after a verified save. */
MoeStatus moe_checkpoint_prune(const char *run_dir, int keep);
/* Removes what killed writers left behind (step-N.tmp-*, .trash-*). */
void moe_checkpoint_clean(const char *run_dir);
/* Moves checkpoints newer than `step` aside (RUN/checkpoints/aside-step-N-PID, nothing is deleted):
 * training goes on from `step`. */
MoeStatus moe_checkpoint_set_newer_aside(const char *run_dir, int64_t step);

/* All step-N directories of a run, newest first, unverified. */
MoeStatus moe_checkpoint_list(const char *run_dir, MoeCheckpointRef **out, size_t *out_n);
void moe_checkpoint_list_free(MoeCheckpointRef *refs, size_t n);
/* Manifest, file sizes, hashes and census of one checkpoint directory. out_manifest may be NULL;
 * else json_decref. */
MoeStatus moe_checkpoint_verify(const char *dir, json_t **out_manifest);
/* The newest checkpoint of a run that verifies; damaged ones are warned about. *out_dir NULL (and
 * success) when the run has none at all; an error when it has some but none is intact. */
MoeStatus moe_checkpoint_find(const char *run_dir, char **out_dir, int64_t *out_step);

/* Loads one checkpoint directory: verified, shapes against the plan, per-tensor hashes against
 * memory. x's parameters and states are defined only on success. state may be NULL; with_optimizer
 * false: weights only, states untouched. */
MoeStatus moe_checkpoint_load(const MoePlan *plan, MoeExec *x, const char *dir, bool with_optimizer,
                              MoeTrainState *state);
/* The newest intact one of a run (falls back with a warning). *out_found false when there is none
 * at all. */
MoeStatus moe_checkpoint_load_newest(const MoePlan *plan, MoeExec *x, const char *run_dir,
                                     bool with_optimizer, MoeTrainState *state, bool *out_found);
/* Refuses a plan of another model, V, vocabulary or tokenizer than the manifest's, naming what
 * differs. */
MoeStatus moe_checkpoint_check_plan(const MoePlan *plan, const json_t *manifest, const char *where);

#endif
