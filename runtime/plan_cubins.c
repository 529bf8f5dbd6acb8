/* The device code of a plan for GPUs: kernels.cubin in memory, with every kernel that the plan's steps and the runtime launch.
 * The driver gets it when an execution is made (cuda/device.c). */
#include <stdlib.h>
#include <string.h>

#include "base/cuda_abi.h"
#include "runtime/plan_read.h"

static MoeStatus check_kernels(const MoePlan *p, const char *name) {
    static const char *const runtime[] = {
#define X(kernel, bufs) #kernel,
        MOE_RT_KERNELS(X)
#undef X
    };
    for (size_t i = 0; i < MOE_RT_N_KERNELS; i++)
        if (!moe_cubins_find(&p->cubins, runtime[i]))
            return moe_error(MOE_E_CORRUPT,
                             "%s: damaged plan: kernels.cubin has no kernel \"%s\", which every "
                             "plan has; compile it again",
                             name, runtime[i]);
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_steps; i++) {
            const char *kernel = p->programs[g].steps[i].kernel;
            if (kernel && !moe_cubins_find(&p->cubins, kernel))
                return moe_error(MOE_E_CORRUPT,
                                 "%s: damaged plan: programs.%s.steps[%zu]: kernels.cubin has no "
                                 "kernel \"%.64s\"; compile it again",
                                 name, p->programs[g].name, i, kernel);
        }
    return NULL;
}

MoeStatus moe_plan_link_cubins(MoePlan *p, const char *name, const void *code, size_t n) {
    if (!(p->code = malloc(n + 1)))
        return moe_error(MOE_E_NOMEM, "no memory for %zu bytes of device code", n);
    memcpy(p->code, code, n);
    MoeStatus st = moe_cubins_read(p->code, n, &p->cubins);
    if (st)
        return moe_status_prefix(st, "%s: damaged plan: kernels.cubin (compile it again)", name);
    return check_kernels(p, name);
}

void moe_plan_unlink_cubins(MoePlan *p) {
    moe_cubins_free(&p->cubins);
    free(p->code);
    p->code = NULL;
}
