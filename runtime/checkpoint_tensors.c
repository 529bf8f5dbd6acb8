/* The tensors of an execution as a checkpoint has them, and what ranks add up about them. */
#include <stdlib.h>
#include <string.h>

#include "runtime/checkpoint_internal.h"

const char *const moe_checkpoint_groups[MOE_CHECKPOINT_GROUPS] = {"model", "optimizer"};

static MoeCheckpointTensor tensor_of(MoeExec *x, const MoeWeight *w, const char *name, int group,
                                     int buffer) {
    MoeCheckpointTensor t = {.name = name,
                             .group = group,
                             .rank = w->rank,
                             .elements = w->elements,
                             .weight = w,
                             .buffer = moe_exec_buffer(x, buffer)};
    memcpy(t.dims, w->dims, sizeof t.dims);
    return t;
}

void moe_checkpoint_tensors(const MoePlan *plan, MoeExec *x, const MoeWeightList *list,
                            MoeCheckpointTensors *out) {
    size_t n = list->n;
    for (size_t i = 0; i < list->n; i++)
        n += plan->params[list->items[i].param].n_states;
    *out = (MoeCheckpointTensors){.items = MOE_NEW_N(list->arena, MoeCheckpointTensor, n)};
    for (size_t i = 0; i < list->n; i++) {
        const MoeWeight *w = &list->items[i];
        out->items[out->n++] = tensor_of(x, w, w->name, 0, plan->params[w->param].buffer);
    }
    out->n_weights = out->n;
    for (size_t i = 0; i < list->n; i++) {
        const MoeWeight *w = &list->items[i];
        const MoePlanParam *p = &plan->params[w->param];
        for (size_t k = 0; k < p->n_states; k++)
            out->items[out->n++] =
                tensor_of(x, w, moe_arena_printf(list->arena, "%s.%s", w->name, p->states[k].name),
                          1, p->states[k].buffer);
    }
}

MoeStatus moe_checkpoint_copy_out(MoeExec *x, float *from, int64_t n, float *out) {
    int64_t bytes = n * (int64_t)sizeof *from;
    MOE_TRY(moe_exec_fetch(x, from, bytes));
    memcpy(out, from, (size_t)bytes);
    moe_exec_forget(x, from, bytes);
    return NULL;
}

MoeStatus moe_checkpoint_sums(MoeExec *x, const MoeCheckpointTensors *t, size_t n, uint64_t *out) {
    for (size_t i = 0; i < n; i++) {
        const MoePiece *p = &t->items[i].weight->written;
        float *data = t->items[i].buffer + p->offset;
        MOE_TRY(moe_exec_fetch(x, data, p->count * (int64_t)sizeof *data));
        out[i] = moe_piece_sum(p, data);
        moe_exec_forget(x, data, p->count * (int64_t)sizeof *data);
    }
    return NULL;
}

#define ADD_UP_BYTES ((size_t)1 << 20) /* of all ranks' numbers, at a time */

MoeStatus moe_checkpoint_add_up(MoeComm *c, uint64_t *a, size_t n) {
    size_t size = (size_t)c->size, step = ADD_UP_BYTES / (size * sizeof *a);
    if (c->size == 1 || n == 0)
        return NULL;
    step = step < 1 ? 1 : step > n ? n : step;
    uint64_t *all = malloc(size * step * sizeof *all);
    MoeStatus st = all ? NULL : moe_error(MOE_E_NOMEM, "no memory for the checkpoint's census");
    st = moe_comm_agree(c, st, "census");
    for (size_t at = 0; at < n && !st; at += step) {
        size_t k = n - at < step ? n - at : step;
        st = moe_comm_all_gather(c, a + at, (int64_t)(k * sizeof *a), all, "census");
        for (size_t i = 0; i < k && !st; i++) {
            a[at + i] = 0;
            for (size_t r = 0; r < size; r++)
                a[at + i] += all[r * k + i];
        }
    }
    free(all);
    return st;
}
