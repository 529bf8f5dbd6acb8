/* Meshes in tables of tests. */
#ifndef MOE_TESTS_SUPPORT_MESH_H
#define MOE_TESTS_SUPPORT_MESH_H

#include "base/mesh.h"

/* An initialiser: the degrees, nothing else. */
#define MESH(dp_, shard_, ep_, tp_, dense_shard_)                                                  \
    {.dp = (dp_), .shard = (shard_), .ep = (ep_), .tp = (tp_), .dense_shard = (dense_shard_)}
/* The same with n ranges of layers (first, last, dp, shard, ep). */
#define MESH_RANGES(dp_, shard_, ep_, tp_, dense_shard_, n, ...)                                   \
    {.dp = (dp_),                                                                                  \
     .shard = (shard_),                                                                            \
     .ep = (ep_),                                                                                  \
     .tp = (tp_),                                                                                  \
     .dense_shard = (dense_shard_),                                                                \
     .n_ranges = (n),                                                                              \
     .ranges = {__VA_ARGS__}}

#endif
