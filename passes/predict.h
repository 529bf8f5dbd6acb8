/* What a program's steps will take on the cluster: the cost model's seconds put through the simulator, in the order in which
 * they stand. Called by overlap, which looks for a better order, and by kernels, whose prediction goes into the plan. */
#ifndef MOE_PASSES_PREDICT_H
#define MOE_PASSES_PREDICT_H

#include "passes/comm_cost.h"
#include "passes/group.h"

/* The steps as the simulator sees them, in the given order: step i is steps[i]. They need what the groups' values say.
 * Stretches: forward and backward, reduce, update. In `a`. */
MoeSimProblem moe_predict_problem(const MoeTarget *t, const MoeGroups *whole, const MoeGroupStep *steps, size_t n,
                                  const MoeCommModel *m, MoeArena *a);

/* The part of the group's work, or of its rows, that is its chunk's when routing is balanced; 1: it goes all at once. A token
 * travels with the first chunk that wants it, so the first has the most. */
double moe_predict_share(const MoeGroup *g, int part, int parts);

/* Of an optimiser step with all its micro-batches, by the problem's steps in the given order. counted: which of them the
 * counting pass repeats. */
MoePrediction moe_predict(const MoeSimProblem *p, const int *order, const bool *counted, int micro_batches);
/* The same without the bound, which takes the longest to find. */
double moe_predict_seconds(const MoeSimProblem *p, const int *order, const bool *counted, int micro_batches);


/* Of a graph whose groups are what kernels will run, in their order, on the context's cluster: what `kernels` puts into the plan. */
MoePrediction moe_predict_graph(const MoePassContext *cx, const MoeGraph *g, const MoeCommModel *m);

#endif
