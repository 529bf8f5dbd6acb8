/* One safetensors file: mapped and its header checked. Private to formats/. */
#ifndef MOE_FORMATS_ST_SHARD_H
#define MOE_FORMATS_ST_SHARD_H

#include <jansson.h>
#include "base/arena.h"
#include "formats/safetensors.h"

typedef struct {
    const char *file;     /* in the arena */
    MoeMap map;           /* empty: read without one */
    MoeStTensor *tensors; /* (n), in file order, in the arena */
    size_t n;
    json_t *metadata; /* NULL if there is none */
} MoeStShard;

/* On failure *out is left closed. Names and tensors live in the arena, the data in the mapping. */
MoeStatus moe_st_shard_open(MoeArena *arena, const char *path, MoeStShard *out);
/* The same without a mapping: the header is read through f (borrowed), data is NULL. */
MoeStatus moe_st_shard_read(MoeArena *arena, MoeBlockFile *f, MoeStShard *out);
void moe_st_shard_close(MoeStShard *s);

#endif
