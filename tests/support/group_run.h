/* Runs a graph as a target's kernels, group by group, and watches that kernels keep to their
 * memory.
 *
 * Groups are runs of consecutive ops with one op->group number (an op with -1 is its own). Every
 * value gets its own buffer at capacity, filled with a pattern (NaNs, as floats) and fenced by
 * guard bytes; inputs are copied in. Each launch's tasks run in descending order, to show that they
 * do not depend on each other, with scratch memory of just the size asked for. After each launch
 * all fences, the inputs, and what lies beyond the live rows of every value must be unchanged.
 *
 * On a "cuda:" target the buffers are in the device's memory (group_gpu.h), fences and all, and are copied back after each
 * launch to be looked at. The order of blocks is the driver's. */
#ifndef MOE_TESTS_GROUP_RUN_H
#define MOE_TESTS_GROUP_RUN_H

#include "ir/target.h"
#include "tests/support/random_graph.h"

typedef struct MoeGroupRun MoeGroupRun;

typedef struct {
    const char *target; /* "cpu", "cpu:x86-64-v3", "cuda:sm_80", ... */
    bool alias; /* outputs take over the buffers of dying inputs wherever can_alias allows it */
    int threads; /* > 1: tasks run on so many threads, in any order, each with its own scratch (cpu only) */
} MoeGroupRunOptions;

/* Compiles. `g` and its arena must outlive the run. */
MoeStatus moe_group_run_create(const MoeGraph *g, const MoeGroupRunOptions *o, MoeGroupRun **out);
/* Gives inputs, runs everything; a broken fence is an error naming the kernel and the buffer. May
 * be called again. */
MoeStatus moe_group_run(MoeGroupRun *r, const MoeInputs *in);
/* Memory of a value after the run (NULL: it lives inside a group), at capacity. */
const void *moe_group_run_data(const MoeGroupRun *r, const MoeValue *v);
/* Times the launches `n` times and returns the best seconds of one run of all of them (single
 * thread, no checks; on a GPU its own time). */
double moe_group_run_time(MoeGroupRun *r, int n);
size_t moe_group_run_launches(const MoeGroupRun *r);
size_t moe_group_run_aliases(const MoeGroupRun *r);
/* Of the last run: tasks (on a GPU: blocks) of all launches; bytes of workspace from its start to the last one that was written,
 * summed over the groups. */
int64_t moe_group_run_tasks(const MoeGroupRun *r);
size_t moe_group_run_work_used(const MoeGroupRun *r);
void moe_group_run_destroy(MoeGroupRun *r);

/* Gives consecutive ops one group number for as long as the target lets them join. */
void moe_group_greedily(MoeGraph *g, const MoeTarget *t);

#endif
