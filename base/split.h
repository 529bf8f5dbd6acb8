/* How the rows of one MoE layer are divided among the copies of its experts, in one step and one EP group (docs/PLACEMENT.md).
 * Integers alone and deterministic, so every rank that knows the counts works out the same division. The interpreter, the
 * compiled programs and the laboratory of placement all use this.
 *
 * An expert's rows are one sequence: those of virtual shard 0, then 1, ... Its copies, ascending by global slot (so by rank),
 * take consecutive runs of it that tile it. With cuts anywhere the busiest rank has the fewest rows possible; with cuts at edges
 * it comes near that (fewer roots, MOE_COPY_ROOTS at most, may cost it up to 1/256 of its rows each). */
#ifndef MOE_BASE_SPLIT_H
#define MOE_BASE_SPLIT_H

#include <stdint.h>

/* The most roots (aligned subtrees of the weight gradients' trees) that a copy's run consists of when edges are leaves. */
enum { MOE_COPY_ROOTS = 4 };

typedef struct {
    int experts, ranks, slots; /* slots of each rank */
    const int32_t *copies;     /* [ranks*slots]: the expert in each global slot, -1 empty; at most once a rank */
    int shards;                /* virtual shards, or sources, of the EP group */
    const int32_t *counts;     /* [experts][shards]: rows */
    int grain; /* 1: cuts fall anywhere; R: at multiples of R rows within (expert, shard) or at its end, and no run has more
                * than MOE_COPY_ROOTS roots of trees whose leaves have R rows */
} MoeSplit;

typedef struct {
    int32_t begin, end; /* rows of the slot's expert, counted over all shards */
} MoeSplitRun;

/* Scratch memory that moe_split wants, in bytes. */
int64_t moe_split_scratch(int experts, int ranks, int slots, int shards);
/* out [ranks*slots]; empty slots have empty runs. An expert without a slot: its rows are in no run (callers check maps
 * first). */
void moe_split(const MoeSplit *in, void *scratch, MoeSplitRun *out);

/* The roots of a run, ascending: aligned subtrees of the tree over shards of the trees over leaves of `leaf` rows
 * (docs/NUMBERS.md rule 4) that tile it. Each is the leaves [leaf_begin, leaf_end) of one shard (leaf_end > leaf_begin), or the shards
 * [shard, shard + shards) whole. */
typedef struct {
    int32_t begin, end; /* rows of the expert */
    int32_t shard, shards;
    int32_t leaf_begin, leaf_end; /* shards = 1 and a part of it; else 0, 0 */
} MoeSplitRoot;
/* counts [shards] of the expert; the run's ends are at edges. Returns how many (at most `most` are written). */
int moe_split_roots(const int32_t *counts, int shards, int leaf, MoeSplitRun run, MoeSplitRoot *out, int most);

#endif
