/* Inside `moec explain`: what a rank holds and what passes between ranks. Called by cmd_explain.c. */
#ifndef MOE_CLI_EXPLAIN_RANKS_H
#define MOE_CLI_EXPLAIN_RANKS_H

#include "cli/explain_load.h"
#include "runtime/plan.h"

/* Bytes of a rank by category, as moe_exec_memory_bytes adds them up; the same on every rank but for `uneven`. */
typedef struct {
    double parameters, states, gradients, activations, workspace, other;
    double communication; /* staging memory of sums over ranks */
    double inputs, scratch;
    double gaps; /* of the slab: between values, and what another program needs beyond this one */
    double uneven; /* rows of experts beyond those of balanced routing; negative: fewer */
} MoeExplainMemory;

/* touched: bytes of the slab's end that rows of experts take (explain_load.h). */
MoeExplainMemory moe_explain_memory(const MoePlan *p, const MoePlanProgram *g, int threads,
                                    double touched);
double moe_explain_memory_total(const MoeExplainMemory *m);

/* What a rank sends in a step, by collective and group of ranks. */
typedef struct {
    MoePlanCommOp op;
    MoeMeshGroup group;
    double ops, bytes; /* a step, all micro-batches */
} MoeExplainTraffic;

/* Rows in the order of the tables; the array is malloc'd. exchanges, seconds: of all comm steps. */
typedef struct {
    MoeExplainTraffic *rows;
    size_t n_rows;
    double exchanges, bytes, seconds;
    double started; /* of the exchanges: those that end at a later step */
} MoeExplainComm;
MoeExplainComm moe_explain_traffic(const MoePlan *p, const MoePlanProgram *g);

/* How often a step runs: once a micro-batch, and in the counting pass; or once. */
double moe_explain_times(const MoePlan *p, const MoePlanProgram *g, const MoePlanStep *s);

/* Each rank's memory: `memory` is that of a rank that touches t->most. */
double moe_explain_rank_memory(const MoePlan *p, const MoeExplainMemory *memory,
                               const MoeExplainTouched *t, int rank);

/* Markdown on stdout: the mesh, what each rank holds, the traffic. Nothing for one rank. */
void moe_explain_ranks_md(const MoePlan *p, const MoePlanProgram *g, const MoeExplainMemory *memory,
                          const MoeExplainTouched *t);
/* Adds "ranks", "mesh", "holds" (an object a rank) and "traffic". */
void moe_explain_ranks_json(const MoePlan *p, const MoePlanProgram *g, const MoeExplainMemory *memory,
                            const MoeExplainTouched *t, json_t *root);

#endif
