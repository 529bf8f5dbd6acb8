/* One step of a replay: a layer's rows divided among the copies of its experts, and what that comes to. */
#include "placement/replay_internal.h"

#include <math.h>
#include <string.h>

/* [sources][experts] to [experts][sources] */
static void transpose(const int32_t *in, int sources, int experts, int32_t *out) {
    for (int s = 0; s < sources; s++)
        for (int e = 0; e < experts; e++)
            out[(int64_t)e * sources + s] = in[(int64_t)s * experts + e];
}

/* The copies of each expert share its rows evenly, by the slots that they stand for ([ranks][experts]; NULL: one each), in runs one
 * after another. */
static void split_evenly(const MoeSplit *in, const int32_t *replicas, int32_t *scratch,
                         MoeSplitRun *out) {
    int n = in->ranks * in->slots;
    int32_t *all = scratch,
            *before = scratch + in->experts; /* shares of an expert; of its copies so far */
    memset(scratch, 0, sizeof *scratch * 2 * (size_t)in->experts);
    for (int pass = 0; pass < 2; pass++)
        for (int g = 0; g < n; g++) {
            int e = in->copies[g];
            int32_t share = e < 0      ? 0
                            : replicas ? replicas[(int64_t)(g / in->slots) * in->experts + e]
                                       : 1;
            if (!pass) {
                out[g] = (MoeSplitRun){0, 0};
                if (e >= 0)
                    all[e] += share;
            } else if (share) {
                int64_t rows = 0;
                for (int s = 0; s < in->shards; s++)
                    rows += in->counts[(int64_t)e * in->shards + s];
                out[g].begin = (int32_t)(rows * before[e] / all[e]);
                before[e] += share;
                out[g].end = (int32_t)(rows * before[e] / all[e]);
            }
        }
}

MoeSplitRun *moe_replay_runs(const MoeReplayRun *r, int layer, int group) {
    int64_t n = (int64_t)r->o->ranks * r->out->slots;
    return r->runs + ((int64_t)layer * r->o->groups + group) * n;
}

static void divide(MoeReplayRun *r, int layer, int group, int32_t *by_expert,
                   unsigned char *scratch) {
    const MoePlaceMap *m = &r->maps[layer];
    MoeSplit in = {.experts = m->experts,
                   .ranks = m->ranks,
                   .slots = m->slots,
                   .copies = m->expert,
                   .shards = r->sources,
                   .counts = by_expert,
                   .grain = r->o->grain};
    if (r->o->even)
        split_evenly(
            &in, r->replicated[layer] ? r->replicas + (int64_t)layer * m->ranks * m->experts : NULL,
            (int32_t *)(void *)scratch, moe_replay_runs(r, layer, group));
    else
        moe_split(&in, scratch, moe_replay_runs(r, layer, group));
}

/* The busiest rank's rows over the mean, over the ranks of all groups. */
static double imbalance_of(const MoeReplayRun *r, int layer) {
    int64_t busiest = 0, total = 0;
    int n = r->o->ranks, slots = r->out->slots;
    for (int k = 0; k < r->o->groups; k++) {
        const MoeSplitRun *runs = moe_replay_runs(r, layer, k);
        for (int p = 0; p < n; p++) {
            int64_t rows = 0;
            for (int g = p * slots; g < (p + 1) * slots; g++)
                rows += runs[g].end - runs[g].begin;
            busiest = rows > busiest ? rows : busiest;
            total += rows;
        }
    }
    return total ? (double)busiest * n * r->o->groups / (double)total : 1;
}

void moe_replay_measure(void *ctx, int64_t layer, int thread) {
    MoeReplayRun *r = ctx;
    const MoeLoad *l = r->load;
    int groups = r->o->groups, k = (int)layer;
    int64_t cells = (int64_t)r->sources * l->experts;
    int32_t *counts = r->counts + layer * groups * cells,
            *by_expert = r->by_expert + thread * cells;
    double slowest = 0; /* group's step */
    moe_load_divide(moe_load_at(l, r->step % l->steps, k), l->sources, l->experts,
                    groups * r->sources, counts);
    for (int g = 0; g < groups; g++) {
        transpose(counts + g * cells, r->sources, l->experts, by_expert);
        divide(r, k, g, by_expert, r->scratch + (size_t)thread * r->scratch_bytes);
        if (r->costed)
            slowest = fmax(slowest, moe_place_step(r->o->cost, &r->maps[k], by_expert, r->sources,
                                                   moe_replay_runs(r, k, g))
                                        .total);
    }
    r->out->imbalance[(int64_t)r->step * l->layers + k] = imbalance_of(r, k);
    r->seconds[k] = r->costed ? slowest + r->o->cost->fixed_seconds : 0;
}
