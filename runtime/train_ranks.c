/* What the ranks of a training run tell each other between steps: small exchanges, so that all decide the same and nobody
 * waits for a rank that has left. See trainer.h. */
#include <stdlib.h>
#include <string.h>

#include "base/pool.h"
#include "runtime/train_signal.h"
#include "runtime/trainer.h"

MoeStatus moe_train_agree(MoeTrainer *s, MoeStatus mine, const char *what) {
    if (s->comm->size == 1)
        return mine;
    MoeStatus st = moe_comm_agree(s->comm, mine, what);
    s->agreed = st != NULL;
    if (st) /* nobody leaves before all have heard */
        moe_status_free(moe_comm_barrier(s->comm, what));
    return st;
}

MoeStatus moe_train_notes(MoeTrainer *s) {
    const MoeTrainOptions *o = s->o;
    MoeRankNote mine = {.signal = moe_signals_received(),
                        .time_up = o->max_seconds > 0 && moe_now() - s->start >= o->max_seconds,
                        .memory_bytes = moe_exec_memory_bytes(s->x),
                        .compute_seconds = s->compute_seconds};
    if (!moe_exec_growth(s->x, &mine.growth))
        mine.growth = (MoeExecGrowth){0};
    if (s->comm->size == 1) {
        s->notes[0] = mine;
        return NULL;
    }
    return moe_comm_all_gather(s->comm, &mine, sizeof mine, s->notes, "end of the step");
}

MoeStatus moe_train_signal(MoeTrainer *s, int *out) {
    int32_t mine = moe_signals_received();
    *out = mine;
    if (s->comm->size == 1)
        return NULL;
    int32_t *all = malloc(sizeof *all * (size_t)s->comm->size);
    if (!all)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", s->comm->size);
    MoeStatus st = moe_comm_all_gather(s->comm, &mine, sizeof mine, all, "signals");
    *out = 0;
    for (int r = 0; r < s->comm->size && !st && !*out; r++)
        *out = all[r];
    free(all);
    return st;
}

MoeStatus moe_train_share(MoeTrainer *s, void *data, size_t n, const char *what) {
    if (s->comm->size == 1)
        return NULL;
    char *all = malloc(n * (size_t)s->comm->size);
    if (!all)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", s->comm->size);
    MoeStatus st = moe_comm_all_gather(s->comm, data, (int64_t)n, all, what);
    if (!st)
        memcpy(data, all, n);
    free(all);
    return st;
}

/* Rows of the experts of EP rank `ep` from data rank d's shards in all micro-batches. */
static int64_t rows_from(const MoePlan *p, const int32_t *load, const int32_t *place, int d,
                         int slots, int ep) {
    int64_t n = 0;
    for (int m = 0; m < p->micro_batches; m++) {
        int run,
            shards = moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, m, d, &run);
        for (int v = run; v < run + shards; v++)
            for (int e = 0; e < p->experts; e++)
                n += (place ? place[e] : e) / slots == ep ? load[v * p->experts + e] : 0;
    }
    return n;
}

void moe_train_imbalance(const MoeTrainer *s, double *out) {
    const MoePlan *p = s->plan;
    const int D = moe_mesh_data_ranks(&p->mesh);
    const int32_t *load = moe_exec_load(s->x); /* [layers][V][E] */
    for (size_t k = 0; k < p->n_moe_layers; k++, load += p->virtual_shards * p->experts) {
        const int32_t *place = moe_exec_place(s->x, k);
        MoeMesh mesh = moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[k]));
        int ep = mesh.ep, slots = moe_mesh_slots(&mesh, p->experts);
        int64_t sum = 0, most = 0;
        for (int group = 0; group < D; group += ep) /* an EP group's tokens, on each of its ranks */
            for (int i = 0; i < ep; i++) {
                int64_t n = 0;
                for (int d = group; d < group + ep; d++)
                    n += rows_from(p, load, place, d, slots, i);
                sum += n;
                most = n > most ? n : most;
            }
        out[k] = sum ? (double)most * D / (double)sum : 1.0;
    }
}
