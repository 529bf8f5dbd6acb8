/* Steps of training over the tiny plan of fake_plan.h: made-up batches, hyperparameters, executions that begin alike. */
#ifndef MOE_TESTS_FAKE_STEPS_H
#define MOE_TESTS_FAKE_STEPS_H

#include "runtime/exec.h"
#include "tests/support/fake_plan.h"

/* n token ids and labels (some -100) of a step, the same on every machine. */
void fake_batch(int step, int32_t *ids, int32_t *labels, int n);
/* Of step s = 0, 1, ... */
MoeHyper fake_hyper(int s);
/* Parameters by seed 7, states zero. Asserts that it can be made. place NULL: the default. */
MoeExec *fake_exec(const MoePlan *p, MoeComm *comm, const MoeDevicePlace *place);

#endif
