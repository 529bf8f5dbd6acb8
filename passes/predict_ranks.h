/* The prediction with every rank on a clock of its own: where a load keeps some ranks longer than others, waits for those that are
 * late chain up in ways that one rank, busiest everywhere, does not show. The rules are those of emulated links (docs/CLUSTER.md,
 * placement/links.h). Called by predict.c for training steps with a load. */
#ifndef MOE_PASSES_PREDICT_RANKS_H
#define MOE_PASSES_PREDICT_RANKS_H

#include "passes/predict.h"

/* More ranks than that take too long: one stands for all. */
enum { MOE_PREDICT_MOST_RANKS = 32 };

/* The graph's steps, in their order, as `p` has them (moe_predict_problem of them); counted as for moe_predict. Mean over some steps
 * of cx->options.load. Sets seconds, compute and what is exposed of *out: means over ranks, but the latest clock for seconds. */
void moe_predict_ranks(const MoePassContext *cx, const MoeGroups *whole, const MoeGroupStep *steps, const MoeSimProblem *p,
                       const MoeCommModel *m, const bool *counted, MoePrediction *out);

#endif
