/* Seeded initialisation, in parallel over chunks of elements. See init.h. */
#include "runtime/init.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/weights.h"

#define CHUNK 65536

typedef struct {
    float *data;
    int64_t n;
    uint64_t seed, stream;
    double std;
} Fill;

static void fill_normal(void *ctx, int64_t task, int thread) {
    (void)thread;
    const Fill *f = ctx;
    int64_t end = (task + 1) * CHUNK < f->n ? (task + 1) * CHUNK : f->n;
    for (int64_t i = task * CHUNK; i < end; i++)
        f->data[i] = (float)(f->std * moe_rng_normal(f->seed, f->stream, (uint64_t)i));
}

MoeStatus moe_init_params(const MoePlan *plan, MoeExec *x, uint64_t seed) {
    MoeWeightList list;
    MoePool *pool = NULL;
    MOE_TRY(moe_weight_list(plan, &list));
    MoeStatus st = moe_pool_create(moe_exec_threads(x), &pool);
    for (size_t i = 0; !st && i < list.n; i++) {
        const MoeWeight *w = &list.items[i];
        const MoePlanParam *p = &plan->params[w->param];
        float *data = (float *)moe_exec_buffer(x, p->buffer) + w->first;
        if (!strcmp(p->init, "normal")) {
            Fill f = {data, w->elements, seed, moe_hash_name(w->name), p->std};
            moe_pool_run(pool, (w->elements + CHUNK - 1) / CHUNK, fill_normal, &f);
        } else {
            float v = !strcmp(p->init, "ones") ? 1.0f : 0.0f;
            for (int64_t k = 0; k < w->elements; k++)
                data[k] = v;
        }
    }
    moe_pool_destroy(pool);
    moe_weight_list_free(&list);
    return st;
}

void moe_init_states(const MoePlan *plan, MoeExec *x) {
    for (size_t i = 0; i < plan->n_params; i++)
        for (size_t k = 0; k < plan->params[i].n_states; k++) {
            int b = plan->params[i].states[k].buffer;
            memset(moe_exec_buffer(x, b), 0, (size_t)plan->buffers[b].elements * sizeof(float));
        }
}
