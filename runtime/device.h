/* Where an execution's memory is, and what runs its kernels: the process itself (device_cpu.c), or a GPU (cuda/device.c,
 * docs/GPU.md). Nothing else in the runtime knows on what a plan runs.
 *
 * All memory has an address for the host. On the CPU that is the memory itself. On a device with memory of its own it is
 * the mirror: as much address space, in which host code finds what moe_device_read copied there last, and from which
 * moe_device_write copies back; memory of the process is used by what was touched of it. So host code says what it is about
 * to read and what it has written, and on the CPU nothing happens then.
 *
 * One device an execution. Calls are the execution's thread's, but for reading and writing mirrors. An error of a device is
 * final: every later call returns it again. */
#ifndef MOE_RUNTIME_DEVICE_H
#define MOE_RUNTIME_DEVICE_H

#include "runtime/exec.h"

typedef struct MoeExecProgram MoeExecProgram;
typedef struct MoeDevice MoeDevice;
typedef struct MoeDeviceLinks MoeDeviceLinks;

typedef struct {
    void (*close)(MoeDevice *d);
    /* `bytes` of zeros, and MOE_BUFFER_SLACK more that may be read. `what` is for the error. */
    MoeStatus (*alloc)(MoeDevice *d, int64_t bytes, const char *what, char **out);
    /* The slab: beyond `fixed` address space alone, for the plan's elastic values. */
    MoeStatus (*slab)(MoeDevice *d, int64_t bytes, int64_t fixed, char **out);
    void (*release)(MoeDevice *d, char *at, int64_t bytes); /* of alloc or slab; NULL is fine */
    /* NULL, all four, where mirrors are the memory itself. write takes what is there now, and may return before it has gone. */
    MoeStatus (*read)(MoeDevice *d, const char *at, int64_t bytes);
    MoeStatus (*write)(MoeDevice *d, const char *at, int64_t bytes);
    MoeStatus (*zero)(MoeDevice *d, char *at, int64_t bytes); /* the memory; the mirror too */
    /* Memory that is to be read later, as what was started so far leaves it; `asked` ends what `answers` waits for, and no
     * further than that. *out: where it lands, the device's until the next ask behind answers. NULL, all three, as above. */
    MoeStatus (*ask)(MoeDevice *d, const char *at, int64_t bytes, const void **out);
    MoeStatus (*asked)(MoeDevice *d);
    MoeStatus (*answers)(MoeDevice *d);
    void (*forget)(MoeDevice *d, char *at, int64_t bytes);
    /* Once the execution's programs have their buffers, before anything runs. */
    MoeStatus (*bind)(MoeDevice *d, MoeExec *x);
    /* Step i, a kernel. It may return before it has run. */
    MoeStatus (*run)(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i);
    /* Behind micro-batch m: its gradients into the tree over micro-batches (docs/PLAN.md). */
    MoeStatus (*fold)(MoeDevice *d, MoeExec *x, MoeExecProgram *g, int m);
    /* The counting pass: sums to zero; the sources of a micro-batch to the sums. */
    MoeStatus (*clear_sums)(MoeDevice *d, MoeExec *x, MoeExecProgram *g);
    MoeStatus (*add_sums)(MoeDevice *d, MoeExec *x, MoeExecProgram *g);
    /* Behind step i of a program with elastic values: how much of those that it begins is used. */
    MoeStatus (*stepped)(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i);
    /* The rest may be NULL. */
    /* Bytes that libraries and exchanges take of the device's memory at this time, beside what the execution asked for. */
    int64_t (*beside)(const MoeDevice *d);
    /* While steps are timed: waits for the one that was just started; *out: how long it ran, < 0: the host's clock knows. */
    MoeStatus (*timed)(MoeDevice *d, double *out_seconds);
    /* Waits for what was started. *out_again: the step from which on nothing has run, since rows outgrew their memory;
     * there is more of it now, and the caller goes on there. n_steps: all have run. */
    MoeStatus (*settle)(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t *out_again);
    /* What runs from now to the next settle does so only if loss and gradient norm are finite. */
    MoeStatus (*guard)(MoeDevice *d, MoeExec *x, MoeExecProgram *g);
    /* Starts all steps of phases lo .. hi (of the counting pass) at once, if it can. */
    MoeStatus (*replay)(MoeDevice *d, MoeExec *x, MoeExecProgram *g, MoePlanPhase lo,
                        MoePlanPhase hi, bool counting, bool *out_done);
    /* A run of a program begins, on every rank: the first time devices may find each other. */
    MoeStatus (*meet)(MoeDevice *d, MoeExec *x);
    /* Whether it does step i, an exchange or the wait for one, by itself; the same on all ranks. Nothing is settled before such
     * a step, and exchange() may return before it has run. Of other exchanges the host takes care (exec_comm.h). */
    bool (*carries)(const MoeDevice *d, const MoeExec *x, const MoeExecProgram *g, size_t i);
    MoeStatus (*exchange)(MoeDevice *d, MoeExec *x, MoeExecProgram *g, size_t i);
    /* Before the execution's memory goes: no other rank's device reads it any more, or writes to it. */
    void (*leave)(MoeDevice *d, MoeExec *x);
    /* Collective: chooses what the plan leaves to choose by measurement (runtime/choices.h), unless x->choices says; nothing runs. */
    MoeStatus (*decide)(MoeDevice *d, MoeExec *x);
} MoeDeviceOps;

/* What every device's own struct begins with. */
struct MoeDevice {
    const MoeDeviceOps *ops;
    int number; /* among the host's devices; -1: the host itself */
    const MoeDeviceLinks *links; /* to the devices of all ranks (device_links.h); NULL: none are open */
};

/* For the plan's target, of its family ("cpu:", "cuda:"). MOE_E_INPUT where that is not there, with what to do. */
MoeStatus moe_device_open(const MoePlan *plan, const MoeDevicePlace *place, MoeDevice **out);
MoeStatus moe_device_cpu(MoeDevice **out);
MoeStatus moe_device_cuda(const MoePlan *plan, const MoeDevicePlace *place, MoeDevice **out);
void moe_device_close(MoeDevice *d); /* NULL is fine; memory must be released before */

static inline bool moe_device_is_host(const MoeDevice *d) {
    return !d->ops->read;
}
/* Memory to mirror, for the host to read. */
static inline MoeStatus moe_device_read(MoeDevice *d, const void *at, int64_t bytes) {
    return d->ops->read && bytes > 0 ? d->ops->read(d, at, bytes) : NULL;
}
/* Mirror to memory, once the host has written. */
static inline MoeStatus moe_device_write(MoeDevice *d, const void *at, int64_t bytes) {
    return d->ops->write && bytes > 0 ? d->ops->write(d, at, bytes) : NULL;
}
/* Several reads for one wait: ask of each, asked once, then, before *out is looked at, answers. */
static inline MoeStatus moe_device_ask(MoeDevice *d, const void *at, int64_t bytes,
                                       const void **out) {
    *out = at;
    return d->ops->ask && bytes > 0 ? d->ops->ask(d, at, bytes, out) : NULL;
}
static inline MoeStatus moe_device_asked(MoeDevice *d) {
    return d->ops->asked ? d->ops->asked(d) : NULL;
}
static inline MoeStatus moe_device_answers(MoeDevice *d) {
    return d->ops->answers ? d->ops->answers(d) : NULL;
}
MoeStatus moe_device_zero(MoeDevice *d, void *at, int64_t bytes);
static inline bool moe_device_carries(const MoeDevice *d, const MoeExec *x,
                                      const MoeExecProgram *g, size_t i) {
    return d->ops->carries && d->ops->carries(d, x, g, i);
}
/* The mirror is not needed for now: its memory goes back to the process. */
static inline void moe_device_forget(MoeDevice *d, void *at, int64_t bytes) {
    if (d->ops->forget && bytes > 0)
        d->ops->forget(d, at, bytes);
}

#endif
