/* safetensors, one file or shards with an index, read by mmap and written in one pass. Nothing in a header is trusted:
 * length, JSON (no duplicate keys), dtypes, shapes (checked products), offsets (contiguous, no holes, no overlap, to the end of the file). */
#ifndef MOE_FORMATS_SAFETENSORS_H
#define MOE_FORMATS_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/io.h"
#include "base/status.h"
#include "formats/blocks.h"

#define MOE_ST_MAX_RANK 8
typedef enum {
    MOE_ST_F64,
    MOE_ST_F32,
    MOE_ST_F16,
    MOE_ST_BF16,
    MOE_ST_I64,
    MOE_ST_I32,
    MOE_ST_I16,
    MOE_ST_I8,
    MOE_ST_U8,
    MOE_ST_BOOL,
    MOE_ST_U16,
    MOE_ST_U32,
    MOE_ST_U64,
    MOE_ST_OTHER
} MoeStDtype;

typedef struct {
    const char *name;
    MoeStDtype dtype;
    int rank; /* 0 = scalar */
    int64_t dims[MOE_ST_MAX_RANK];
    int64_t elements;
    size_t n_bytes;
    const void *data; /* in the mapping; may be unaligned; NULL: not mapped (moe_st_open_file) */
    int64_t at;       /* of the data in the file */
    const char *file; /* path */
} MoeStTensor;

typedef struct MoeSafetensors MoeSafetensors;
/* Tensors are in file order; with an index, only those it lists (others in the shards give one warning).
 * path: a .safetensors file, an index .json, or a directory with model.safetensors or model.safetensors.index.json
 * (file names in the index: [A-Za-z0-9._-]+ only). */
MoeStatus moe_st_open(const char *path, MoeSafetensors **out);
/* One file's header, read through f (borrowed during the call), nothing mapped: moe_st_pread_f32 reads. */
MoeStatus moe_st_open_file(MoeBlockFile *f, MoeSafetensors **out);
void moe_st_close(MoeSafetensors *s);
size_t moe_st_count(const MoeSafetensors *s);
const MoeStTensor *moe_st_at(const MoeSafetensors *s, size_t i);
const MoeStTensor *moe_st_find(const MoeSafetensors *s,
                               const char *name); /* NULL if absent; hashed */
const char *moe_st_metadata(const MoeSafetensors *s,
                            const char *key); /* of the first file; NULL if absent */
const char *moe_st_dtype_name(MoeStDtype d);
size_t moe_st_dtype_bytes(MoeStDtype d);
/* elements from `first` on, as f32 (from f64, f32, f16, bf16). */
MoeStatus moe_st_read_f32(const MoeStTensor *t, int64_t first, int64_t n, float *out);
/* The same by reading from f, the tensor's file, so that none of it stays in this process's memory but `out`. */
MoeStatus moe_st_pread_f32(MoeBlockFile *f, const MoeStTensor *t, int64_t first, int64_t n,
                           float *out);
/* As int64 (from any integer type). */
MoeStatus moe_st_read_i64(const MoeStTensor *t, int64_t first, int64_t n, int64_t *out);

/* Writing: the tensors in the given order; `fill` is asked for the bytes chunk by chunk. Durable (moe_out_*).
 * metadata_kv: n_metadata pairs, key then value (2 * n_metadata strings). On failure a partial file may remain. */
typedef struct {
    const char *name;
    MoeStDtype dtype;
    int rank;
    int64_t dims[MOE_ST_MAX_RANK];
    const void *data; /* whole tensor in its dtype, or NULL: ask fill */
} MoeStOut;
typedef MoeStatus (*MoeStFill)(void *ctx, size_t tensor, int64_t first, int64_t n, void *out);
MoeStatus moe_st_write(const char *path, const MoeStOut *tensors, size_t n,
                       const char *const *metadata_kv, size_t n_metadata, MoeStFill fill, void *ctx,
                       uint64_t *out_bytes, char out_xxh3_hex[33]);
/* The same, with the hashes of the file's blocks (MOE_BLOCK_BYTES each) instead of one of all; the caller frees them. */
MoeStatus moe_st_write_blocks(const char *path, const MoeStOut *tensors, size_t n,
                              const char *const *metadata_kv, size_t n_metadata, MoeStFill fill,
                              void *ctx, uint64_t *out_bytes, MoeBlockHashes *out_hashes);

#endif
