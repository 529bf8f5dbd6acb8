/* Exchanges over a device's links (runtime/device_links.h): the host makes the lists, rows and sums stay on the device. See
 * exec_comm.h. */
#include "runtime/exec_comm.h"

static MoeStatus no_memory(void) {
    return moe_error(MOE_E_NOMEM, "no memory for the tables of exchanges between ranks");
}

static int number_of(const MoeExec *x, const MoeExecFlight *f) {
    return (int)(f - x->between->flights);
}

/* Ops one by one, so that no block reaches from one into the next: an op's bytes between two ranks are one message. */
static void clear_lists(MoeExecComm *c) {
    c->sends.n = c->recvs.n = c->n_copies = 0;
}

static MoeStatus add(MoeExec *x) {
    const MoeExecComm *c = x->between;
    MoeDeviceBlocks b = {c->sends.items, c->recvs.items, c->copies,
                         c->sends.n,     c->recvs.n,     c->n_copies};
    return c->failed ? no_memory() : x->device->links->add(x->device, x, &b);
}

MoeStatus moe_exec_device_begin(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                                const MoeExecFlight *f) {
    char *stage = f->stage;
    for (size_t i = 0; i < s->n_comm; i++) {
        clear_lists(x->between);
        MOE_TRY(
            moe_status_prefix(moe_exec_op_blocks(x, g, &s->comm[i], stage), "step %s", s->name));
        MOE_TRY(add(x));
        stage += moe_exec_op_stage(x, g, &s->comm[i]);
    }
    return x->device->links->start(x->device, x, number_of(x, f), s->name);
}

/* Parts of slices that were added up apart come together. */
static MoeStatus rejoin(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                        const MoeExecFlight *f) {
    bool any = false;
    for (size_t i = 0; i < s->n_comm; i++)
        if (moe_exec_is_sum(&s->comm[i]) && moe_exec_sum_twice(x, &s->comm[i])) {
            clear_lists(x->between);
            moe_exec_sum_rejoin(x, g, &s->comm[i]);
            MOE_TRY(add(x));
            any = true;
        }
    if (!any)
        return NULL;
    MOE_TRY(x->device->links->start(x->device, x, number_of(x, f), s->name));
    return x->device->links->finish(x->device, x, number_of(x, f));
}

MoeStatus moe_exec_device_finish(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s,
                                 const MoeExecFlight *f) {
    MOE_TRY(x->device->links->finish(x->device, x, number_of(x, f)));
    MOE_TRY(moe_exec_fold_terms(x, g, s, f->stage));
    MOE_TRY(rejoin(x, g, s, f));
    return x->profile || x->watch ? x->device->links->settle(x->device) : NULL;
}
