/* What the checkpoint writer and reader share: the tensors of the two files, and the sealed
 * manifest. */
#ifndef MOE_RUNTIME_CHECKPOINT_INTERNAL_H
#define MOE_RUNTIME_CHECKPOINT_INTERNAL_H

#include "runtime/checkpoint.h"
#include "runtime/weights.h"

#define MOE_CHECKPOINT_FILES 2
extern const char *const
    moe_checkpoint_files[MOE_CHECKPOINT_FILES]; /* model.safetensors, optimizer.safetensors */

/* The tensors of one file, in order; data points into the execution's buffers. */
typedef struct {
    MoeStOut *items;
    size_t n;
} MoeCheckpointTensors;

/* file 0: weights; 1: every state of every weight, named WEIGHT.STATE. In the arena of `list`. */
void moe_checkpoint_tensors(const MoePlan *plan, MoeExec *x, const MoeWeightList *list, int file,
                            MoeCheckpointTensors *out);

int64_t moe_checkpoint_elements(const MoeStOut *t);

/* Sets manifest_xxh3 (over the text of all the rest) and gives the file's text. */
void moe_manifest_seal(json_t *manifest, MoeStr *out_text);
/* Reads manifest.json of a checkpoint: seal, version, kind; MOE_E_CORRUPT names what is wrong. */
MoeStatus moe_manifest_read(const char *dir, json_t **out);
json_t *moe_manifest_state(const MoeTrainState *s);
MoeStatus moe_manifest_state_read(const json_t *manifest, const char *where, MoeTrainState *out);

#endif
