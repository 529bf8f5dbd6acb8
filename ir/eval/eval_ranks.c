/* Lockstep: the list of ops once, each on all ranks before the next. In: a graph, a mesh, each rank's data. Out: each rank's
 * values. The COMM ops are in eval_comm.c. */
#include "ir/eval/eval_ranks.h"

#include <stdlib.h>
#include "base/assert.h"
#include "ir/eval/eval_comm.h"

struct MoeEvalRanks {
    const MoeGraph *graph;
    MoeMesh mesh;
    int n;
    MoeEval **ranks;
};

MoeEvalRanks *moe_eval_ranks_create(const MoeGraph *g, const MoeMesh *mesh) {
    MoeEvalRanks *r = calloc(1, sizeof *r);
    MOE_ASSERT(r, "out of memory for the interpreter");
    r->graph = g;
    r->mesh = *mesh;
    r->n = moe_mesh_size(mesh);
    MOE_ASSERT(r->n >= 1 && r->n <= MOE_MAX_RANKS, "a mesh of %d ranks", r->n);
    r->ranks = calloc((size_t)r->n, sizeof(MoeEval *));
    MOE_ASSERT(r->ranks, "out of memory for the interpreter");
    for (int p = 0; p < r->n; p++)
        r->ranks[p] = moe_eval_create(g);
    return r;
}

void moe_eval_ranks_destroy(MoeEvalRanks *r) {
    if (!r)
        return;
    for (int p = 0; p < r->n; p++)
        moe_eval_destroy(r->ranks[p]);
    free(r->ranks);
    free(r);
}

int moe_eval_ranks_size(const MoeEvalRanks *r) {
    return r->n;
}

MoeEval *moe_eval_rank(MoeEvalRanks *r, int rank) {
    MOE_ASSERT(rank >= 0 && rank < r->n, "rank %d of %d", rank, r->n);
    return r->ranks[rank];
}

static MoeStatus name_rank(MoeStatus st, int rank) {
    return moe_status_prefix(st, "rank %d", rank);
}

static MoeStatus run_local(MoeEvalRanks *r, const MoeOp *op) {
    for (int p = 0; p < r->n; p++)
        MOE_TRY(name_rank(moe_eval_step(r->ranks[p], op), p));
    return NULL;
}

/* All operands are checked and all results have storage before any rank's result is computed. */
static MoeStatus run_between(MoeEvalRanks *r, const MoeOp *op) {
    MoeArena *arena = r->ranks[0]->run_arena;
    MoeEvalContext *at = MOE_NEW_N(arena, MoeEvalContext, r->n);
    MoeComms c = {&r->mesh, op, at, arena};
    for (int p = 0; p < r->n; p++)
        MOE_TRY(name_rank(moe_eval_prepare(r->ranks[p], op, &at[p]), p));
    for (int p = 0; p < r->n; p++)
        MOE_TRY(name_rank(moe_eval_name_op(moe_eval_between(&c, p), op), p));
    for (int p = 0; p < r->n; p++)
        MOE_TRY(name_rank(moe_eval_finish(&at[p]), p));
    return NULL;
}

MoeStatus moe_eval_ranks_run(MoeEvalRanks *r) {
    for (int p = 0; p < r->n; p++)
        MOE_TRY(moe_eval_begin(r->ranks[p]));
    for (size_t k = 0; k < r->graph->n_ops; k++) {
        const MoeOp *op = r->graph->ops[k];
        bool between = moe_op_info(op->opcode)->kind == MOE_KIND_COMM;
        MOE_TRY(between ? run_between(r, op) : run_local(r, op));
    }
    return NULL;
}

void moe_eval_ranks_commit(MoeEvalRanks *r) {
    for (int p = 0; p < r->n; p++)
        moe_eval_commit(r->ranks[p]);
}
