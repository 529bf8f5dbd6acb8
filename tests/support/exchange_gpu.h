/* Plans whose steps are exchanges alone, made by a test as JSON for the CPU, on simulated GPUs too: one for each rank, which exchange
 * over the simulated NCCL. */
#ifndef MOE_TESTS_EXCHANGE_GPU_H
#define MOE_TESTS_EXCHANGE_GPU_H

#include "runtime/exec_internal.h"

/* Simulated GPUs for ranks 0 .. 7 of this process; false: there is no simulator. */
bool exchange_gpus(void);
/* Loads the plan's text for the CPU; gpu: the same plan for GPUs. */
MoeStatus exchange_load(const char *json, size_t n, bool gpu, MoePlan **out);
/* An execution of this rank, its GPU if the plan is for one. */
MoeStatus exchange_create(const MoePlan *p, MoeComm *comm, int threads, MoeExec **out);
/* Runs the steps of program "t": inputs go to the device before, and what exchanges left in them is there behind. */
MoeStatus exchange_run(MoeExec *x);

#endif
