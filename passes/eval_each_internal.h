/* Inside --eval-each: what eval_each.c (one interpreter) and eval_each_ranks.c (one for each rank) share. */
#ifndef MOE_PASSES_EVAL_EACH_INTERNAL_H
#define MOE_PASSES_EVAL_EACH_INTERNAL_H

#include "passes/eval_each.h"

typedef struct {
    const char *graph, *name; /* output NAME, new NAME (of PARAM); given NAME (of PARAM) */
    bool given;               /* data of an input, param or state: not compared */
    bool rounds;              /* the graph has bf16 values */
    int64_t n;
    double *f;
    int32_t *i;
} MoeSnapshotEntry;

struct MoeSnapshot {
    MoeArena *arena;
    MoeSnapshotEntry *entries;
    size_t n, cap;
};

MoeSnapshot *moe_snapshot_new(void);
/* Keeps n floats or integers (copied) under a name (borrowed, in the snapshot's arena). */
void moe_snapshot_keep(MoeSnapshot *s, const MoeGraph *g, const char *name, const double *f,
                       const int32_t *i, int64_t n);
const MoeSnapshotEntry *moe_snapshot_find(const MoeSnapshot *s, const char *graph,
                                          const char *name);
/* The entry's name for what op stands for: OUTPUT, ASSIGN, or a declaration's data. */
const char *moe_snapshot_name(const MoeSnapshot *s, const MoeOp *op);
/* Whether the interpreter would take too long, n times. */
bool moe_snapshot_too_large(const MoeGraph *g, int n);

#endif
