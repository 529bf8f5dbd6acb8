/* Seeded initialisation, in parallel over chunks of elements. See init.h. */
#include "runtime/init.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/weights.h"

#define CHUNK 65536

typedef struct {
    float *data; /* of the piece's first element */
    MoePiece piece;
    uint64_t seed, stream;
    double std;
} Fill;

/* Each element from its number in the whole tensor. */
static void fill_normal(void *ctx, int64_t task, int thread) {
    (void)thread;
    const Fill *f = ctx;
    MoePiece part = f->piece; /* CHUNK elements of it */
    MoeRun r;
    part.first += task * CHUNK;
    part.count -= task * CHUNK;
    part.count = part.count < CHUNK ? part.count : CHUNK;
    part.offset = task * CHUNK;
    for (int64_t at = 0; moe_piece_run(&part, at, &r); at = r.first + r.n)
        for (int64_t i = 0; i < r.n; i++)
            f->data[r.at + i] =
                (float)(f->std * moe_rng_normal(f->seed, f->stream, (uint64_t)(r.first + i)));
}

MoeStatus moe_init_params(const MoePlan *plan, MoeExec *x, uint64_t seed) {
    MoeWeightList list;
    MoePool *pool = NULL;
    MOE_TRY(moe_weight_list(plan, x, &list));
    MoeStatus st = moe_pool_create(moe_exec_threads(x), &pool);
    for (size_t i = 0; !st && i < list.n; i++) {
        const MoeWeight *w = &list.items[i];
        const MoePlanParam *p = &plan->params[w->param];
        float *data = (float *)moe_exec_buffer(x, p->buffer) + w->piece.offset;
        if (!strcmp(p->init, "normal")) {
            Fill f = {data, w->piece, seed, moe_hash_name(w->name), p->std};
            moe_pool_run(pool, (w->piece.count + CHUNK - 1) / CHUNK, fill_normal, &f);
        } else {
            float v = !strcmp(p->init, "ones") ? 1.0f : 0.0f;
            for (int64_t k = 0; k < w->piece.count; k++)
                data[k] = v;
        }
        int64_t bytes = w->piece.count * (int64_t)sizeof *data;
        st = moe_exec_send(x, data, bytes);
        moe_exec_forget(x, data, bytes);
    }
    moe_pool_destroy(pool);
    moe_weight_list_free(&list);
    return st;
}

MoeStatus moe_init_states(const MoePlan *plan, MoeExec *x) {
    for (size_t i = 0; i < plan->n_params; i++)
        for (size_t k = 0; k < plan->params[i].n_states; k++) {
            int b = plan->params[i].states[k].buffer;
            MOE_TRY(moe_exec_zero(x, moe_exec_buffer(x, b),
                                  plan->buffers[b].elements * (int64_t)sizeof(float)));
        }
    return NULL;
}
