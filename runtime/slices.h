/* Which elements of a weight a rank's buffer holds (docs/RANKS.md, "Parameters"). A weight is one tensor as Hugging Face
 * names it: a parameter, or one expert's tensor. Initialisation, loading, checkpoints and export take it from here.
 *
 * A rank has its EP rank's slots of the experts, of each tensor the part along tp_dim, of that a flat slice over dense_shard
 * (an expert's: expert_shard). So what it has of one weight lies in one run of its buffer, the piece; in the whole tensor
 * that is one run of elements, or one a row where tp_dim cuts rows. */
#ifndef MOE_RUNTIME_SLICES_H
#define MOE_RUNTIME_SLICES_H

#include <stdbool.h>
#include <stdint.h>
#include "base/mesh.h"

/* Element i of [first, first + count) is element (i / width) * stride + column + i % width of the whole tensor. */
typedef struct {
    int64_t first, count; /* count 0: nothing of this weight */
    int64_t width, stride, column;
    int64_t offset; /* of element `first`, in the buffer (or file) that holds the piece */
} MoePiece;

/* A rank's place in the sharing. */
typedef struct {
    MoeMesh mesh;
    MoeCoords at;
    int dense_index;              /* which slice of a tensor that is no expert's */
    int dense_copies, dense_copy; /* data ranks that hold the same slices of these; this one's place among them */
    int slots;                    /* an EP rank's */
} MoeRankSlices;
void moe_rank_slices(const MoeMesh *m, int rank, int slots, MoeRankSlices *out);

typedef struct {
    int rank;
    const int64_t *dims; /* of the weight: an expert's without the expert dim */
    int tp_dim;          /* the one of dims that tp divides; -1 none */
    int slot;            /* an expert's: its global slot; else -1 */
} MoeWeightShape;
/* The rank's piece of a weight. */
MoePiece moe_piece_of(const MoeRankSlices *s, const MoeWeightShape *w);
/* What of it this rank writes: those that hold the same share it out, cut at blocks of MOE_SLICE_BLOCK. What all ranks write
 * makes up the weight. */
MoePiece moe_piece_written(const MoeRankSlices *s, const MoeWeightShape *w);
/* All of a tensor of n elements. */
MoePiece moe_piece_whole(int64_t n);

/* Elements [first, first + n) of the whole tensor lie together at [at, at + n) of the piece's buffer or file. */
typedef struct {
    int64_t first, n, at;
} MoeRun;
/* The piece's first run that ends behind element `from` of the whole tensor, less what comes before `from`; false: none. */
bool moe_piece_run(const MoePiece *p, int64_t from, MoeRun *out);
/* The same of what two pieces of one tensor have in common: both runs have the same first and n. */
bool moe_piece_common(const MoePiece *a, const MoePiece *b, int64_t from, MoeRun *out_a,
                      MoeRun *out_b);

/* The proof that pieces make up a tensor of n elements, each exactly once, whatever their order: the sum of
 * moe_piece_cover over them is moe_whole_cover(n) (modulo 2^64). Every run adds h(end) - h(first), for a fixed hash h; the
 * sums are equal only if, but for 0 and n, every end of a run is another's begin (or by a chance of 2^-64). */
uint64_t moe_piece_cover(const MoePiece *p);
uint64_t moe_whole_cover(int64_t n);
/* A sum over elements that says what the piece holds (data: its first element): the sums of pieces that make up a tensor
 * add up (modulo 2^64) to the same number however it is cut. */
uint64_t moe_piece_sum(const MoePiece *p, const float *data);

#endif
