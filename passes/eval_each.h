/* Whether a pass preserves what the graphs compute: every graph is run by the interpreter on the
 * same random inputs before and after. Called by passes/pipeline.c (--eval-each) and by tests. */
#ifndef MOE_PASSES_EVAL_EACH_H
#define MOE_PASSES_EVAL_EACH_H

#include "base/mesh.h"
#include "ir/eval/eval.h"
#include "ir/graph.h"

/* Gives every input, param and state of g a valid random value that depends on (seed, name) alone:
 * segs split the rows evenly (over whole sequences where attention or rope say how long those are),
 * ids stay inside the tables they index, one label in eight is ignored; params are normal * 0.1,
 * and around 1 where rank 1. */
MoeStatus moe_eval_fill(MoeEval *ev, const MoeGraph *g, uint64_t seed);

/* What a module computes: the value of every output and every assigned param and state, by name. */
typedef struct MoeSnapshot MoeSnapshot;
/* Runs every graph whose work the interpreter can do in seconds (others are left out, *out_skipped
 * counts them). */
MoeStatus moe_snapshot_take(const MoeModule *m, uint64_t seed, MoeSnapshot **out, int *out_skipped);
/* The same of graphs that are programs of a rank: they run on all ranks of the mesh on the data of `before`, each rank on its
 * virtual shards, slots and slices (an expert e in the slot e + 1, round and round); what is the same on all ranks is
 * checked to be, rows and slices are put together again. Graphs that `before` lacks are left out. */
MoeStatus moe_snapshot_take_ranks(const MoeModule *m, const MoeMesh *mesh,
                                  const MoeSnapshot *before, MoeSnapshot **out, int *out_skipped);
void moe_snapshot_free(MoeSnapshot *s); /* NULL is fine */
/* That all values of `before` are in `after` and agree: integers exactly, floats within 1e-9 of the
 * tensor's largest entry; where a graph rounds to bf16, within 2^-6 of it (eval_each.c says why).
 * MOE_E_INTERNAL naming pass, graph and value else. */
MoeStatus moe_snapshot_compare(const MoeSnapshot *before, const MoeSnapshot *after,
                               const char *pass, double *out_largest, int *out_n);

#endif
