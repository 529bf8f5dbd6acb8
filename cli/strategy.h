/* How training is divided over ranks, as the user says it: --ranks and the degrees, or a --strategy file. Called by the
 * driver and the commands that compile. */
#ifndef MOE_CLI_STRATEGY_H
#define MOE_CLI_STRATEGY_H

#include "base/mesh.h"
#include "base/str.h"
#include "cli/options.h"

/* MoE layers first..last and how the same ranks divide their experts. 0: not given. */
typedef struct {
    int64_t first, last, ep, shard;
} MoeStrategyLayers;

/* 0: not given. */
typedef struct {
    int64_t ranks, ep, shard, tp, dense_shard, extra_slots;
    int n_layers; /* entries, by file alone */
    MoeStrategyLayers layers[MOE_MAX_RANGES];
} MoeStrategy;

/* From the --strategy file, then the flags over it. MOE_E_MISUSE, MOE_E_INPUT: names the key and what was expected. */
MoeStatus moe_strategy_from_options(const MoeOptions *o, MoeStrategy *out);
/* Reads the keys "ranks", "expert_parallel_degree", "hybrid_shard_degree", "tensor_parallel_degree", "dense_shard_degree", "extra_slots" and
 * "layers": [{"first", "last", "expert_parallel_degree", "hybrid_shard_degree"}, ...], in any order of layers. */
MoeStatus moe_strategy_load(const char *path, MoeStrategy *out);
/* The mesh. With ranks alone: ep is the largest power of two that divides them and is at most the experts, all else is
 * sharded. With any degree given, those left out are 1, dense_shard the shard degree, and dp = ranks / (shard ep tp); an
 * error names the numbers if that does not divide. experts: 0 for a dense model. Ranges of layers divide dp*shard*ep in the same
 * way: what is left out is 1. That the model has the layers is checked when it is divided (pass shard). */
MoeStatus moe_strategy_resolve(const MoeStrategy *s, int64_t experts, MoeMesh *out);
MoeStrategy moe_strategy_of_mesh(const MoeMesh *m);
/* "4 ranks: expert parallel 2 x shard 2" */
void moe_strategy_text(const MoeMesh *m, MoeStr *out);

#endif
