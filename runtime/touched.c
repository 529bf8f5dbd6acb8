/* The union of what values use at the slab's end. See touched.h. */
#include "runtime/touched.h"

#include <stdlib.h>

int64_t moe_plan_fixed_bytes(const MoePlan *p) {
    int64_t fixed = 0;
    for (size_t i = 0; i < p->n_programs; i++) {
        int64_t n = p->programs[i].slab_bytes - p->programs[i].elastic_bytes;
        fixed = n > fixed ? n : fixed;
    }
    return fixed;
}

static int by_place(const void *a, const void *b) {
    const MoeTouch *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    if (x->program != y->program)
        return x->program < y->program ? -1 : 1;
    return (x->value > y->value) - (x->value < y->value);
}

MoeStatus moe_touch_list(const MoePlan *p, MoeTouch **out, size_t *out_n) {
    int64_t fixed = moe_plan_fixed_bytes(p);
    size_t most = 0, n = 0;
    *out_n = 0;
    for (size_t g = 0; g < p->n_programs; g++)
        most += p->programs[g].n_values;
    MoeTouch *t = *out = calloc(most + 1, sizeof *t);
    if (!t)
        return moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
    for (size_t g = 0; g < p->n_programs; g++)
        for (size_t i = 0; i < p->programs[g].n_values; i++) {
            const MoePlanValue *v = &p->programs[g].values[i];
            if (v->kind == MOE_VALUE_SLAB && (v->elastic || v->offset + v->bytes > fixed))
                t[n++] = (MoeTouch){(int)g, (int)i, v->elastic, v->offset, 0};
        }
    qsort(t, n, sizeof *t, by_place);
    *out_n = n;
    return NULL;
}

int64_t moe_touch_bytes(const MoeTouch *t, size_t n, int64_t fixed) {
    int64_t end = fixed, total = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t from = t[i].at > end ? t[i].at : end, to = t[i].at + t[i].used;
        total += to > from ? to - from : 0;
        end = to > end ? to : end;
    }
    return total;
}
