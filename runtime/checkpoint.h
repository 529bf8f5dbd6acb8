/* Checkpoints: RUN/checkpoints/step-N/ with manifest.json and safetensors files of f32 masters under Hugging Face's
 * per-expert names (group "model") and of the optimiser's states, NAME.exp_avg, NAME.exp_avg_sq ("optimizer").
 *
 * Each rank writes its own files, of its pieces (runtime/slices.h), which it shares with the ranks that hold the same:
 * model-rank-R.safetensors, optimizer-rank-R.safetensors; one rank's are model.safetensors and optimizer.safetensors. A tensor that is there as a
 * whole has its name and shape; a piece is one-dimensional and named NAME@FIRST (elements FIRST, FIRST+1, ... of the whole,
 * row-major) or NAME@FIRST:COLUMN:WIDTH:STRIDE (the MoePiece of that name, where tensor parallelism cut rows).
 *
 * The manifest: sizes and block hashes (XXH3-64 of each 4 MiB) of all files; the census, every tensor of the two groups
 * with its dims and a sum over its elements that does not depend on how it is cut; mesh and map of experts; position in the
 * data, counters, plan facts; sealed with a hash of itself. Any layout resumes any checkpoint: a rank reads the headers of
 * the files, and of their data the blocks that hold what is its own, each proved as it is read. That the pieces make up
 * every tensor exactly once is proved whenever a checkpoint is written, verified or loaded, and after loading the sums
 * are those of memory.
 *
 * Written as step-N.tmp-PID-RANDOM -> fsync of each file -> census -> manifest -> fsync of the directory -> rename by rank
 * 0 -> fsync of the parent, then read back and verified, the blocks shared out over the ranks. No "latest" pointer: readers
 * scan newest first. Format version 1 (one rank's, with hashes of whole files) is read too.
 *
 * Collective calls (marked) are made by every rank of the execution with the same arguments, end with the same verdict on
 * all, and need a directory that all ranks see. The others are made by one rank, or by a program without any. */
#ifndef MOE_RUNTIME_CHECKPOINT_H
#define MOE_RUNTIME_CHECKPOINT_H

#include "runtime/data.h"
#include "runtime/exec.h"

#define MOE_CHECKPOINT_FORMAT 2

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

/* Collective. Writes RUN/checkpoints/step-N (N = state->step, rank 0's) and verifies it. On failure (full disk on any rank,
 * ...) what was there before is intact, and all ranks may go on, but for MOE_E_PEER. */
MoeStatus moe_checkpoint_save(const MoePlan *plan, MoeExec *x, const char *run_dir,
                              const MoeTrainState *state);
/* Deletes all but the newest `keep` (at least 1) intact checkpoints; call after a verified save. */
MoeStatus moe_checkpoint_prune(const char *run_dir, int keep);
/* Removes what killed writers left behind (step-N.tmp-*, .trash-*). Not while any rank may be saving. */
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

/* Collective. Loads one checkpoint directory, of any layout and any maps of experts; the execution takes its maps where they are
 * of as many ranks and slots (not with moe_exec_keep_maps): the plan's tensors and dims, every block that is read as it was
 * written, the census, and memory's sums. x's parameters and states are defined only on success. state may be NULL;
 * with_optimizer false: weights only, states untouched. Memory besides the buffers: a block, one file's table, the
 * manifest. */
MoeStatus moe_checkpoint_load(const MoePlan *plan, MoeExec *x, const char *dir, bool with_optimizer,
                              MoeTrainState *state);
/* Collective. The newest intact one of a run (falls back with a warning). *out_found false when there is none
 * at all. */
MoeStatus moe_checkpoint_load_newest(const MoePlan *plan, MoeExec *x, const char *run_dir,
                                     bool with_optimizer, MoeTrainState *state, bool *out_found);
/* Refuses a plan of another model, V, vocabulary or tokenizer than the manifest's, naming what
 * differs. */
MoeStatus moe_checkpoint_check_plan(const MoePlan *plan, const json_t *manifest, const char *where);

#endif
