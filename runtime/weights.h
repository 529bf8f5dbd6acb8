/* Weights in and out under Hugging Face names: a directory (or file) of safetensors <-> parameter
 * buffers, and export. */
#ifndef MOE_RUNTIME_WEIGHTS_H
#define MOE_RUNTIME_WEIGHTS_H

#include "formats/safetensors.h"
#include "runtime/exec.h"

/* One tensor as Hugging Face names it: a parameter, or one expert's slice of a stacked parameter.
 */
typedef struct {
    const char *name; /* owned by the list */
    int rank;
    int64_t dims[MOE_ST_MAX_RANK]; /* without the expert dim */
    int64_t elements;
    int param;     /* index in plan->params */
    int64_t first; /* element offset in the parameter's buffer */
} MoeWeight;

typedef struct {
    MoeWeight *items; /* sorted by name */
    size_t n;
    void *arena;
} MoeWeightList;

MoeStatus moe_weight_list(const MoePlan *plan, MoeWeightList *out);
void moe_weight_list_free(MoeWeightList *l);
const MoeWeight *moe_weight_find(const MoeWeightList *l, const char *name); /* NULL if absent */

/* Reads weights (f32, bf16, f16, f64) into the parameter buffers. path: HF directory, .safetensors
 * file or index. Missing, unexpected and misshapen tensors are all named in one error, and nothing
 * is changed then. With tied embeddings lm_head.weight may be absent or equal to the embedding.
 * Optimiser states are left alone. */
MoeStatus moe_weights_load(const MoePlan *plan, MoeExec *x, const char *path);

typedef struct {
    bool bf16;               /* else f32 */
    int64_t max_shard_bytes; /* 0: 5 GB */
} MoeExportOptions;

/* Writes DIR with config.json, generation_config.json and model.safetensors (or shards with an
 * index), as from_pretrained reads it; built beside and renamed. An earlier export is replaced,
 * anything else refused. */
MoeStatus moe_export_model(const MoePlan *plan, MoeExec *x, const char *dir,
                           const MoeExportOptions *o);
/* The same from a checkpoint directory (RUN/checkpoints/step-N), or the newest intact one of a run
 * directory, without a plan. */
MoeStatus moe_export_checkpoint(const char *path, const char *dir, const MoeExportOptions *o);
/* What the two share: tensors with their f32 data reader and the config. */
typedef MoeStatus (*MoeExportRead)(void *ctx, size_t tensor, int64_t first, int64_t n, float *out);
MoeStatus moe_export_tensors(const MoeStOut *tensors, size_t n, MoeExportRead read, void *ctx,
                             const json_t *model, const char *dir, const MoeExportOptions *o);

#endif
