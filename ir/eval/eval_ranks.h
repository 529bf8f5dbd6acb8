/* The interpreter for several ranks: one graph, the program of each rank, run on all of them in lockstep. The executable
 * specification of docs/RANKS.md.
 *
 * Every rank has an interpreter of its own (eval.h). A local op runs on each of them; a COMM op runs once for all, from all
 * ranks' operands, in the groups that the mesh gives. Sums are taken in f64 in the group's order. */
#ifndef MOE_IR_EVAL_RANKS_H
#define MOE_IR_EVAL_RANKS_H

#include "base/mesh.h"
#include "ir/eval/eval.h"

typedef struct MoeEvalRanks MoeEvalRanks;

/* g is borrowed, the mesh copied (its degrees are >= 1: moe_mesh_check). */
MoeEvalRanks *moe_eval_ranks_create(const MoeGraph *g, const MoeMesh *mesh);
void moe_eval_ranks_destroy(MoeEvalRanks *r); /* NULL is fine */
int moe_eval_ranks_size(const MoeEvalRanks *r);
/* The interpreter of one rank, to give it data and flags (inputs may differ by rank: data, ep_rank, slices of parameters)
 * and to read its values after the run. Owned by r; moe_eval_run and moe_eval_commit are not for it. */
MoeEval *moe_eval_rank(MoeEvalRanks *r, int rank);
/* Runs all ops on all ranks. Errors name the rank and the op: what moe_eval_run reports, and collectives whose ranks do not
 * fit together (group sizes, counts of rows, slices). */
MoeStatus moe_eval_ranks_run(MoeEvalRanks *r);
/* moe_eval_commit on every rank. */
void moe_eval_ranks_commit(MoeEvalRanks *r);

#endif
