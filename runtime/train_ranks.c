/* What the ranks of a training run tell each other between steps: small exchanges, so that all decide the same and nobody
 * waits for a rank that has left. See trainer.h. */
#include <stdlib.h>
#include <string.h>

#include "base/cores.h"
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
                        .compute_seconds = s->compute_seconds,
                        .place_due = s->speaks && s->place &&
                                     moe_place_due(s->place, s->state.step + 1)};
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

/* What this rank computes with: its cores, or its GPU as one core by its number, so that ranks which share it count it once. */
static MoeCores cores_of(const MoeTrainer *s) {
    int gpu = moe_exec_device(s->x);
    MoeCores c = moe_cores_of_process(gpu < 0 ? moe_exec_threads(s->x) : 1);
    if (gpu < 0)
        return c;
    memset(c.mask, 0, sizeof c.mask);
    c.mask[gpu / 64 % MOE_CORE_WORDS] = 1ull << (gpu % 64);
    c.usable = 1;
    return c;
}

MoeStatus moe_train_cores(MoeTrainer *s) {
    MoeCores mine = cores_of(s), *all = calloc((size_t)s->comm->size, sizeof *all);
    if (!all)
        return moe_error(MOE_E_NOMEM, "no memory for %d ranks", s->comm->size);
    MoeStatus st = moe_comm_all_gather(s->comm, &mine, sizeof mine, all, "cores");
    if (!st)
        s->cores = moe_cores_busy(all, s->comm->size);
    free(all);
    return st;
}
