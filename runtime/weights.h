/* Weights in and out under Hugging Face names: a directory (or file) of safetensors <-> parameter
 * buffers, and export. */
#ifndef MOE_RUNTIME_WEIGHTS_H
#define MOE_RUNTIME_WEIGHTS_H

#include "formats/safetensors.h"
#include "runtime/exec.h"
#include "runtime/slices.h"

/* One tensor as Hugging Face names it: a parameter, or one expert's slice of a stacked parameter; and what this rank has
 * of it. */
typedef struct {
    const char *name; /* owned by the list */
    int rank;
    int64_t dims[MOE_ST_MAX_RANK]; /* of the whole tensor, without the expert dim */
    int64_t elements;
    int param;      /* index in plan->params */
    MoePiece piece; /* in the parameter's buffer, and at the same place in its states' */
    MoePiece written; /* of it what this rank writes; all ranks' make up the tensor */
} MoeWeight;

typedef struct {
    MoeWeight *items; /* sorted by name */
    size_t n;
    void *arena;
} MoeWeightList;

/* Every weight of the plan, with the execution's pieces. */
MoeStatus moe_weight_list(const MoePlan *plan, const MoeExec *x, MoeWeightList *out);
void moe_weight_list_free(MoeWeightList *l);
const MoeWeight *moe_weight_find(const MoeWeightList *l, const char *name); /* NULL if absent */
/* The MoE layer (index into plan->moe_layers) whose map says where the parameter's experts are; -1: no expert's. */
int moe_param_layer(const MoePlan *plan, const MoePlanParam *p);

/* Reads weights (f32, bf16, f16, f64) into the parameter buffers. path: HF directory, .safetensors
 * file or index. Missing, unexpected and misshapen tensors are all named in one error, and nothing
 * is changed then. With tied embeddings lm_head.weight may be absent or equal to the embedding.
 * Optimiser states are left alone. Every rank of the execution calls it, reads what it needs itself, and gets the same
 * verdict. */
MoeStatus moe_weights_load(const MoePlan *plan, MoeExec *x, const char *path);

typedef struct {
    bool bf16;               /* else f32 */
    int64_t max_shard_bytes; /* 0: 5 GB */
} MoeExportOptions;

/* Writes DIR with config.json, generation_config.json and model.safetensors (or shards with an
 * index), as from_pretrained reads it; built beside and renamed. An earlier export is replaced,
 * anything else refused. For a plan of one rank, which has every weight. */
MoeStatus moe_export_model(const MoePlan *plan, MoeExec *x, const char *dir,
                           const MoeExportOptions *o);
/* The same from a checkpoint directory (RUN/checkpoints/step-N), or the newest intact one of a run
 * directory, without a plan and of any layout: equal weights give equal bytes. Memory: a few blocks, and the tables. */
MoeStatus moe_export_checkpoint(const char *path, const char *dir, const MoeExportOptions *o);
/* What the two share: tensors with their f32 data reader and the config. */
typedef MoeStatus (*MoeExportRead)(void *ctx, size_t tensor, int64_t first, int64_t n, float *out);
MoeStatus moe_export_tensors(const MoeStOut *tensors, size_t n, MoeExportRead read, void *ctx,
                             const json_t *model, const char *dir, const MoeExportOptions *o);

#endif
