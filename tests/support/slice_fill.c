/* See slice_fill.h. */
#include "tests/support/slice_fill.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

float slice_value(const MoeWeight *w, int kind, int64_t i, int64_t step) {
    uint64_t v =
        moe_rng_below(moe_hash_name(w->name), (uint64_t)(kind + 3 * step), (uint64_t)i, 1 << 20);
    return (float)(1 + v) / 1024;
}

int slice_buffer(const MoePlan *plan, const MoeWeight *w, int kind) {
    const MoePlanParam *p = &plan->params[w->param];
    return kind ? p->states[kind - 1].buffer : p->buffer;
}

static void fill_weight(SliceFill *f, const MoeWeight *w, int kind, float *buffer) {
    MoeRun r;
    for (int64_t at = 0; moe_piece_run(&w->piece, at, &r); at = r.first + r.n)
        for (int64_t i = 0; i < r.n; i++) {
            float v = slice_value(w, kind, r.first + i, f->step);
            if (f->check)
                f->wrong += buffer[r.at + i] != v;
            else
                buffer[r.at + i] = v;
        }
}

int64_t slice_padding(const MoePlan *plan, MoeExec *x) {
    MoeWeightList list;
    int64_t held = 0, wrong = 0;
    if (moe_weight_list(plan, x, &list))
        abort();
    for (size_t b = 0; b < plan->n_buffers; b++)
        for (int64_t i = 0; i < plan->buffers[b].elements; i++)
            wrong += ((float *)moe_exec_buffer(x, (int)b))[i] != 0;
    for (size_t i = 0; i < list.n; i++)
        held += 3 * list.items[i].piece.count;
    moe_weight_list_free(&list);
    return wrong - held;
}

void slice_fill_rank(SliceFill *f, MoePlan *plan, MoeExec *x) {
    MoeWeightList list;
    if (moe_weight_list(plan, x, &list))
        abort();
    for (size_t i = 0; i < list.n; i++)
        for (int kind = 0; kind < (f->weights ? 1 : 3); kind++)
            fill_weight(f, &list.items[i], kind,
                        moe_exec_buffer(x, slice_buffer(plan, &list.items[i], kind)));
    moe_weight_list_free(&list);
}

void slice_fill(SliceRanks *r, int64_t step) {
    SliceFill f = {.step = step};
    for (int q = 0; q < r->n; q++)
        slice_fill_rank(&f, r->plan, r->x[q]);
}

void slice_wipe(SliceRanks *r) {
    for (int q = 0; q < r->n; q++)
        for (size_t b = 0; b < r->plan->n_buffers; b++)
            memset(moe_exec_buffer(r->x[q], (int)b), 0, (size_t)r->plan->buffers[b].elements * 4);
}

bool slice_holds(SliceRanks *r, int64_t step) {
    SliceFill f = {.step = step, .check = true};
    for (int q = 0; q < r->n; q++) {
        slice_fill_rank(&f, r->plan, r->x[q]);
        f.wrong += slice_padding(r->plan, r->x[q]);
    }
    return f.wrong == 0;
}
