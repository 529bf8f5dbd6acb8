/* Files in blocks with a hash each: a reader that needs a part of a file proves that part alone, with one block in memory.
 * Writers keep the hashes beside the file (a checkpoint's manifest has them). Also plain reads at any place, without a
 * mapping, so that what was read counts as nobody's memory. */
#ifndef MOE_FORMATS_BLOCKS_H
#define MOE_FORMATS_BLOCKS_H

#include <stddef.h>
#include <stdint.h>
#include "base/status.h"

#define MOE_BLOCK_BYTES ((int64_t)4 << 20)

/* XXH3-64 of each block of a file; the last may be shorter. The arrays are malloc'd. */
typedef struct {
    int64_t block_bytes;
    uint64_t *hashes;
    size_t n;
} MoeBlockHashes;
void moe_block_hashes_free(MoeBlockHashes *h);
/* How many blocks a file has. */
int64_t moe_block_count(int64_t bytes, int64_t block_bytes);

/* Gathers the hashes of what is written, piece by piece. */
typedef struct MoeBlockHasher MoeBlockHasher;
MoeStatus moe_block_hasher_create(int64_t block_bytes, MoeBlockHasher **out);
MoeStatus moe_block_hasher_add(MoeBlockHasher *h, const void *data, size_t n);
void moe_block_hasher_end(MoeBlockHasher *h,
                          MoeBlockHashes *out); /* frees h; out NULL: only that */

/* An open file. */
typedef struct MoeBlockFile MoeBlockFile;
/* hashes: borrowed; every read is proved against them, and the file's length must be `bytes` (else MOE_E_CORRUPT). NULL:
 * reads are taken as they come, bytes is not looked at. */
MoeStatus moe_block_open(const char *path, int64_t bytes, const MoeBlockHashes *hashes,
                         MoeBlockFile **out);
void moe_block_close(MoeBlockFile *f);
const char *moe_block_path(const MoeBlockFile *f);
int64_t moe_block_file_bytes(const MoeBlockFile *f);
/* Bytes [at, at + n), which must lie in the file (MOE_E_CORRUPT). With hashes: whole blocks are read, MOE_E_CORRUPT names
 * a block that is not as recorded; the last block read is kept, so ascending places cost one read a block. */
MoeStatus moe_block_read(MoeBlockFile *f, int64_t at, int64_t n, void *out);
/* Block i is as recorded. */
MoeStatus moe_block_check(MoeBlockFile *f, int64_t i);
/* XXH3-128 of the whole file, as 32 hex digits, read a block at a time. */
MoeStatus moe_block_whole_hash(MoeBlockFile *f, char out[33]);

#endif
