/* What the checkpoint's writer, verifier and readers share: the list of its tensors, the manifest, a checkpoint opened for
 * reading, and the pieces in its files. */
#ifndef MOE_RUNTIME_CHECKPOINT_INTERNAL_H
#define MOE_RUNTIME_CHECKPOINT_INTERNAL_H

#include "base/arena.h"
#include "formats/blocks.h"
#include "runtime/checkpoint.h"
#include "runtime/weights.h"

/* Weights, and what the optimiser keeps of each. */
#define MOE_CHECKPOINT_GROUPS 2
extern const char *const moe_checkpoint_groups[MOE_CHECKPOINT_GROUPS]; /* "model", "optimizer" */

/* One tensor. The list has all weights by name, then all states of each (WEIGHT.STATE), the order in which one rank
 * writes them. */
typedef struct {
    const char *name;
    int group, rank;
    int64_t dims[MOE_ST_MAX_RANK];
    int64_t elements;
    const MoeWeight *weight; /* in an execution: whose piece it has, */
    float *buffer;           /* in this buffer */
    uint64_t sum;            /* on disk: moe_piece_sum of the whole */
} MoeCheckpointTensor;

typedef struct {
    MoeCheckpointTensor *items;
    size_t n, n_weights; /* the first n_weights are group 0 */
} MoeCheckpointTensors;

/* The execution's, in the arena of `list`. */
void moe_checkpoint_tensors(const MoePlan *plan, MoeExec *x, const MoeWeightList *list,
                            MoeCheckpointTensors *out);
/* n floats at `from`, in a buffer of the execution. */
MoeStatus moe_checkpoint_copy_out(MoeExec *x, float *from, int64_t n, float *out);
/* a[i] of all ranks added up, modulo 2^64. Collective. */
MoeStatus moe_checkpoint_add_up(MoeComm *c, uint64_t *a, size_t n);
/* The sum over what this rank writes of each tensor, as it is in memory. */
MoeStatus moe_checkpoint_sums(MoeExec *x, const MoeCheckpointTensors *t, size_t n, uint64_t *out);

/* ---- the manifest ---- */

/* Sets manifest_xxh3 (over the text of all the rest) and gives the file's text. */
void moe_manifest_seal(json_t *manifest, MoeStr *out_text);
/* Reads manifest.json of a checkpoint: seal, version, kind; MOE_E_CORRUPT names what is wrong. */
MoeStatus moe_manifest_read(const char *dir, json_t **out);
json_t *moe_manifest_state(const MoeTrainState *s);
MoeStatus moe_manifest_state_read(const json_t *manifest, const char *where, MoeTrainState *out);
/* "0123456789abcdef..." of n numbers, and back (false: not n times 16 hex digits). */
void moe_hex_put(MoeStr *out, const uint64_t *v, size_t n);
bool moe_hex_get(const char *text, uint64_t *out, size_t n);

/* ---- reading ---- */

typedef struct {
    const char *name, *path;
    int group;
    int64_t bytes;
    MoeBlockHashes hashes; /* in the arena */
    const char *xxh3;      /* version 1: of the whole file; then there are no block hashes */
} MoeStoredFile;

typedef struct {
    const char *dir;
    json_t *manifest;
    int version;
    MoeCheckpointTensors tensors;
    uint32_t *by_name; /* [tensors.n], sorted */
    MoeStoredFile *files;
    size_t n_files;
    MoeArena *arena;
} MoeStored;

/* The manifest and its tables. *out is to be closed in any case. */
MoeStatus moe_stored_open(const char *dir, MoeStored *out);
void moe_stored_close(MoeStored *s);
/* Errors about the content of a checkpoint's own files are damage, whatever reader found them. */
MoeStatus moe_as_damage(MoeStatus st);

/* A piece in a file: float 0 of it is at byte `at`; piece.offset is 0. */
typedef struct {
    uint32_t tensor, file;
    int64_t at;
    MoePiece piece;
} MoeStoredPiece;
/* Opens file i, proving what is read (version 1: unproved). */
MoeStatus moe_stored_file(const MoeStored *s, size_t i, MoeBlockFile **out);
/* The pieces in it, from its header, in the file's order; malloc'd. */
MoeStatus moe_stored_pieces(const MoeStored *s, size_t i, MoeBlockFile *f, MoeStoredPiece **out,
                            size_t *out_n);
/* Adds the pieces to cover[tensor]. */
void moe_stored_cover(const MoeStoredPiece *pieces, size_t n, uint64_t *cover);
/* cover[0..n): each of the first n tensors is there exactly once; the error names one that is not. */
MoeStatus moe_stored_census(const MoeStored *s, const uint64_t *cover, size_t n);
/* Blocks `share`, share + shares, ... of all files are as recorded (version 1: every shares-th file). */
MoeStatus moe_stored_check(const MoeStored *s, int share, int shares);

/* The newest intact checkpoint as `take` finds it: tried newest first, damaged ones warned about. c: collective, rank 0's
 * list counts. */
typedef MoeStatus (*MoeTakeCheckpoint)(void *ctx, const char *dir);
MoeStatus moe_checkpoint_first(const char *run_dir, MoeComm *c, MoeTakeCheckpoint take, void *ctx,
                               char **out_dir, int64_t *out_step);

#endif
