/* What exec.c (memory) and exec_run.c (running) share. */
#ifndef MOE_RUNTIME_EXEC_INTERNAL_H
#define MOE_RUNTIME_EXEC_INTERNAL_H

#include "runtime/exec.h"

/* The runtime's memory for one input name; all programs share it. */
typedef struct {
    const char *name;
    char *data;
    int64_t bytes;
} MoeExecInput;

typedef struct {
    const MoePlanProgram *plan;
    char **values;     /* [n_values] */
    void ***step_bufs; /* [n_steps][n_bufs] */
    double *seconds;   /* [n_steps], when profiling */
} MoeExecProgram;

struct MoeExec {
    const MoePlan *plan;
    MoePool *pool;
    void *region; /* all shared buffers */
    int64_t region_bytes;
    char **buffers;
    char *slab;
    int64_t slab_bytes;
    char *scratch; /* [threads][scratch_stride] */
    int64_t scratch_stride, scratch_bytes;
    MoeExecInput *inputs;
    size_t n_inputs;
    MoeExecProgram *programs; /* like plan->programs */
    int32_t *load;            /* [n_moe_layers][V][E] */
    bool profile;
};

MoeExecProgram *moe_exec_program(const MoeExec *x, const char *name);
/* Tokens that the logits program's input holds. */
int64_t moe_exec_logits_ids(const MoeExec *x);

#endif
