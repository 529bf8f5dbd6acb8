/* Plans that have parameters and nothing else, for any mesh, and all ranks of one as threads: for tests of what lives in
 * slices (initialisation, weights, checkpoints). */
#ifndef MOE_TESTS_SLICE_PLAN_H
#define MOE_TESTS_SLICE_PLAN_H

#include "runtime/exec.h"

typedef struct {
    const char *name; /* '*': an expert's, dims[0] = experts */
    int tp_dim;       /* in dims; -1 */
    int rank;
    int64_t dims[4];
} SliceParam;

/* Two states each (exp_avg, exp_avg_sq); the MoE layers are 0..n_layers-1, with maps of experts as inputs (with extra slots, of copies too); 64 virtual
 * shards. Asserts that it loads. */
MoePlan *slice_plan(const MoeMesh *mesh, int experts, int n_layers, const SliceParam *params,
                    size_t n_params);

/* Every rank of a plan, in this process. */
typedef struct {
    MoePlan *plan;
    int n;
    MoeComm **comms;
    MoeExec **x;
} SliceRanks;
SliceRanks slice_ranks(MoePlan *plan); /* takes the plan */
void slice_ranks_free(SliceRanks *r);
typedef MoeStatus (*SliceRankFn)(void *ctx, int rank, MoeExec *x);
/* fn on every rank at once. out_statuses NULL: returns the failure of the lowest rank that has one; else each rank's own is
 * put there ([n], the caller's), and NULL returned. */
MoeStatus slice_ranks_run(SliceRanks *r, SliceRankFn fn, void *ctx, MoeStatus *out_statuses);

#endif
