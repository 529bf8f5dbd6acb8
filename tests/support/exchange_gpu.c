/* See exchange_gpu.h. */
#include "tests/support/exchange_gpu.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "codegen/cuda/cuda.h"
#include "runtime/exec_comm.h"
#include "tests/support/gpu.h"

#define CPU "\"cpu:generic\""

bool exchange_gpus(void) {
    setenv("MOE_SIM_QUIET", "1", 0);
    moe_log_quiet(true);
    return moe_test_simulate("80,80,80,80,80,80,80,80");
}

/* The kernels that every plan has. */
static MoeStatus code(void **out, size_t *out_n) {
    MoeTarget *t = NULL;
    char *text = NULL;
    MOE_TRY(moe_cuda_target_create("sm_80", &t));
    MoeStatus st = t->finish(t, false, out, out_n, &text);
    free(text);
    t->destroy(t);
    return st;
}

MoeStatus exchange_load(const char *json, size_t n, bool gpu, MoePlan **out) {
    const char *at = strstr(json, CPU);
    void *cubins = NULL;
    size_t n_cubins = 0;
    MoeStr s = {0};
    if (!gpu || !at)
        return moe_plan_load_memory(json, n, "t", NULL, 0, out);
    moe_str_printf(&s, "%.*s\"cuda:sm_80\"%s", (int)(at - json), json, at + strlen(CPU));
    MoeStatus st = code(&cubins, &n_cubins);
    if (!st)
        st = moe_plan_load_memory(moe_str_c(&s), s.len, "t", cubins, n_cubins, out);
    moe_str_free(&s);
    free(cubins);
    return st;
}

MoeStatus exchange_create(const MoePlan *p, MoeComm *comm, int threads, MoeExec **out) {
    MoeDevicePlace place = {.device = -1, .local = comm->rank, .exchange = MOE_EXCHANGE_NCCL};
    return moe_exec_create_on(p, comm, threads, &place, out);
}

MoeStatus exchange_run(MoeExec *x) {
    MoeExecProgram *g = moe_exec_program(x, "t");
    if (x->device->ops->meet)
        MOE_TRY(x->device->ops->meet(x->device, x));
    MOE_TRY(moe_device_write(x->device, x->input_memory, x->input_bytes));
    for (size_t i = 0; i < g->plan->n_steps; i++)
        MOE_TRY(moe_exec_comm_step(x, g, i));
    return moe_device_read(x->device, x->input_memory, x->input_bytes);
}
