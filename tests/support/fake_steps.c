/* See fake_steps.h. */
#include "tests/support/fake_steps.h"

#include "base/assert.h"
#include "runtime/init.h"

void fake_batch(int step, int32_t *ids, int32_t *labels, int n) {
    unsigned s = 12345u + (unsigned)step;
    for (int i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        ids[i] = (int32_t)(s >> 24);
        labels[i] = s % 17 == 0 ? -100 : (int32_t)((s >> 16) & 255);
    }
}

MoeHyper fake_hyper(int s) {
    return (MoeHyper){.lr = 0.01,
                      .beta1 = 0.9,
                      .beta2 = 0.95,
                      .eps = 1e-8,
                      .weight_decay = 0.1,
                      .max_grad_norm = 1.0,
                      .step = s + 1};
}

MoeExec *fake_exec(const MoePlan *p, MoeComm *comm, const MoeDevicePlace *place) {
    MoeExec *x = NULL;
    MoeStatus st = moe_exec_create_on(p, comm, 1, place, &x);
    if (!st)
        st = moe_init_params(p, x, 7);
    if (!st)
        st = moe_init_states(p, x);
    MOE_ASSERT(!st, "an execution of the fake plan: %s", moe_status_message(st));
    return x;
}
