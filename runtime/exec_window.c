/* Windows of expert rows: a step that works on some slots (docs/RANKS.md, "Overlap") gets, in place of its table of rows, one in
 * which all other slots are empty and every row keeps its place. It is made anew before each such step: the table is of this
 * batch. */
#include <stdlib.h>

#include "runtime/exec_internal.h"

static int64_t entries(const MoeExec *x, const MoePlanStep *s) {
    return (int64_t)s->n_slots * x->plan->virtual_shards + 1;
}

static int64_t window_bytes(const MoeExec *x, const MoePlanStep *s) {
    return (entries(x, s) * (int64_t)sizeof(int32_t) + 127) / 64 * 64;
}

/* The windows into the steps' buffers. */
static void bind(const MoeExec *x, MoeExecProgram *g) {
    char *at = g->window_memory;
    for (size_t i = 0; i < g->plan->n_steps; i++) {
        const MoePlanStep *s = &g->plan->steps[i];
        if (!s->slot_hi)
            continue;
        g->windows[i] = (int32_t *)(void *)at;
        at += window_bytes(x, s);
        for (size_t b = 0; b < s->n_bufs; b++)
            if (s->buf_value[b] == s->segs)
                g->step_bufs[i][b] = g->windows[i];
    }
}

static MoeStatus create(MoeExec *x, MoeExecProgram *g) {
    const MoePlanProgram *p = g->plan;
    for (size_t i = 0; i < p->n_steps; i++)
        g->window_bytes += p->steps[i].slot_hi ? window_bytes(x, &p->steps[i]) : 0;
    if (!g->window_bytes)
        return NULL;
    if (!(g->windows = calloc(p->n_steps, sizeof *g->windows)))
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    MOE_TRY(x->device->ops->alloc(x->device, g->window_bytes, "tables of chunks of experts' rows",
                                  &g->window_memory));
    bind(x, g);
    return NULL;
}

MoeStatus moe_exec_windows_create(MoeExec *x) {
    for (size_t g = 0; g < x->plan->n_programs; g++)
        MOE_TRY(create(x, &x->programs[g]));
    return NULL;
}

void moe_exec_windows_destroy(MoeExec *x) {
    for (size_t g = 0; x->programs && g < x->plan->n_programs; g++) {
        MoeExecProgram *p = &x->programs[g];
        if (p->window_memory)
            x->device->ops->release(x->device, p->window_memory, p->window_bytes);
        free(p->windows);
    }
}

void moe_exec_window_fill(const MoeExec *x, MoeExecProgram *g, size_t i) {
    const MoePlanStep *s = &g->plan->steps[i];
    const int32_t *all = (const int32_t *)(const void *)g->values[s->segs];
    int64_t V = x->plan->virtual_shards;
    int32_t lo = all[s->slot_lo * V], hi = all[s->slot_hi * V];
    for (int64_t k = 0; k < entries(x, s); k++)
        g->windows[i][k] = all[k] < lo ? lo : all[k] > hi ? hi : all[k];
}
