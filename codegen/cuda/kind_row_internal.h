/* The state of a ROWS kernel's text while it is made: kind_row.c, kind_row_team.c for threads, shared memory and registers,
 * kind_row_loop.c for the loops over columns. */
#ifndef MOE_CODEGEN_CUDA_KIND_ROW_INTERNAL_H
#define MOE_CODEGEN_CUDA_KIND_ROW_INTERNAL_H

#include "codegen/cuda/kind_row.h"

typedef struct {
    const MoeRowPlan *p;
    MoeCudaRowText x;
    int width, teams, threads; /* of a team; of a block */
    int64_t *shared;           /* by value: place in the team's row buffer, words; -1 none */
    int64_t team_words;
    int64_t sums;         /* columns of all col_sums */
    bool sums_in_memory;  /* too many for terms in shared memory: added to the leaf's slot row by row */
    int64_t shared_bytes; /* of the block */
    bool *held;           /* by value: in an array of registers from its first loop on */
    bool *loaded;         /* by value: that array has been filled in this row */
    int *loads;           /* by value: how many loops load it from memory */
    bool *varies;         /* by value: another row of it with each row of the group */
    bool *early;          /* by value: the loop at hand loads all of the row before it computes */
    int64_t ahead;        /* registers for that */
    int stage, indent;
    bool *done; /* by value: a name of the element at hand */
} MoeCudaRows;

bool moe_cuda_row_is_local(MoeOpcode o); /* topk, take, put */
/* width, threads, teams, shared, team_words, sums, sums_in_memory. */
void moe_cuda_row_choose_team(MoeCudaRows *w);
/* held, ahead: values kept for later stages; with `externals` also what several loops read from memory (`loads`), as far
 * as registers go, first what differs from row to row. */
void moe_cuda_row_hold(MoeCudaRows *w, bool externals);
/* Where value `at` lies in the team's row buffer, as an expression. */
const char *moe_cuda_row_own(const MoeCudaRows *w, int at);
bool moe_cuda_row_in_loop(const MoeRowOp *o, int stage, int64_t cols);
/* The loop over `cols` columns of the stage, with the sums that end in it. */
void moe_cuda_row_loop(MoeCudaRows *w, int64_t cols);

#endif
