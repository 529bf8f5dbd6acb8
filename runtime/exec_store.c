/* Steps that offload and load (docs/PLAN.md): they start copies of live rows between the slab and the store (store.h); a later
 * wait ends them. A step's ticket is its number, counted over all programs; so are slots. */
#include <stdlib.h>

#include "base/mem.h"
#include "runtime/exec_internal.h"
#include "runtime/store.h"

#define POLL_SECONDS 0.01 /* between looks at what the other ranks do */

/* The numbers of program g's first slot and ticket. */
static void first_of(const MoeExec *x, const MoeExecProgram *g, size_t *out_slot,
                     size_t *out_ticket) {
    *out_slot = *out_ticket = 0;
    for (const MoeExecProgram *p = x->programs; p < g; p++) {
        *out_slot += p->plan->n_slots;
        *out_ticket += p->plan->n_steps;
    }
}

MoeStatus moe_exec_store_create(MoeExec *x) {
    size_t n, n_tickets;
    first_of(x, x->programs + x->plan->n_programs, &n, &n_tickets);
    if (!n)
        return NULL;
    int64_t *bytes = calloc(n, sizeof *bytes), *at = bytes;
    if (!bytes)
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    for (size_t g = 0; g < x->plan->n_programs; g++)
        for (size_t i = 0; i < x->plan->programs[g].n_slots; i++)
            *at++ = x->plan->programs[g].slot_bytes[i];
    MoeStatus st = moe_store_create(bytes, n, n_tickets, &x->store);
    free(bytes);
    return st;
}

MoeStatus moe_exec_offload_to(MoeExec *x, const char *dir) {
    char who[32] = "";
    if (!x->store || !dir)
        return NULL;
    if (x->plan->ranks > 1)
        snprintf(who, sizeof who, "rank %d: ", x->rank);
    return moe_store_open(x->store, dir, who);
}

int64_t moe_exec_offloaded_bytes(MoeExec *x) {
    return x->store ? moe_store_moved(x->store) : 0;
}

/* The bytes of a move's rows that are live. */
static MoeStatus live_bytes(MoeExec *x, const MoeExecProgram *g, const MoePlanMove *m,
                            int64_t *out) {
    *out = m->bytes;
    if (m->rows < 0)
        return NULL;
    const int32_t *segs = (const int32_t *)(const void *)g->values[m->rows],
                  *last = &segs[g->plan->values[m->rows].bytes / 4 - 1];
    MOE_TRY(moe_device_read(x->device, last, sizeof *last));
    int64_t n = *last * m->row_bytes;
    *out = n < m->bytes ? n : m->bytes;
    return NULL;
}

/* The loads of a step are over: their rows into the slab. */
static MoeStatus send_loads(MoeExec *x, const MoeExecProgram *g, const MoePlanStep *s) {
    for (size_t k = 0; k < s->n_moves && !moe_device_is_host(x->device); k++) {
        const MoePlanMove *m = &s->moves[k];
        int64_t n;
        MOE_TRY(live_bytes(x, g, m, &n));
        if (m->load)
            MOE_TRY(moe_device_write(x->device, g->values[m->value], n));
        moe_device_forget(x->device, g->values[m->value], n);
    }
    return NULL;
}

MoeStatus moe_exec_store_step(MoeExec *x, MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    size_t slot, ticket;
    first_of(x, g, &slot, &ticket);
    for (size_t k = 0; k < s->n_moves; k++) {
        const MoePlanMove *m = &s->moves[k];
        int64_t n;
        MOE_TRY(live_bytes(x, g, m, &n));
        if (!m->load)
            MOE_TRY(moe_device_read(x->device, g->values[m->value], n));
        MOE_TRY(moe_store_start(x->store, ticket + i, slot + (size_t)m->slot, m->load,
                                g->values[m->value], n));
    }
    if (s->wait < 0)
        return NULL;
    ticket += (size_t)s->wait;
    while (!moe_store_done(x->store, ticket, POLL_SECONDS))
        moe_comm_poll(x->comm);
    MOE_TRY(moe_status_prefix(moe_store_result(x->store, ticket), "step %s", s->name));
    return send_loads(x, g, &g->plan->steps[s->wait]);
}
