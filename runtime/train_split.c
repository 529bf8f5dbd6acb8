/* How many rows of experts each rank had in a step, divided among the copies of each as the programs do it (base/split.h). Declared
 * in trainer.h. */
#include <stdlib.h>
#include <string.h>

#include "base/split.h"
#include "runtime/trainer.h"

/* Memory for one EP group at a time. */
struct MoeTrainSplit {
    int32_t *counts;   /* [E][shards of the group in a micro-batch] */
    MoeSplitRun *runs; /* [global slots] */
    int64_t *rows;     /* [EP ranks] */
    void *scratch;
};

static int group_shards(const MoePlan *p, int ep) {
    int first;
    return ep * moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, 0, 0, &first);
}

MoeStatus moe_train_split_create(MoeTrainer *s) {
    const MoePlan *p = s->plan;
    int64_t scratch = 1;
    size_t slots = 1, ranks = 1;
    for (size_t k = 0; k < p->n_moe_layers; k++) {
        const MoePlaceMap *m = moe_exec_map(s->x, k);
        int64_t bytes =
            moe_split_scratch(m->experts, m->ranks, m->slots, group_shards(p, m->ranks));
        size_t n = (size_t)m->ranks * (size_t)m->slots;
        scratch = bytes > scratch ? bytes : scratch;
        slots = n > slots ? n : slots;
        ranks = (size_t)m->ranks > ranks ? (size_t)m->ranks : ranks;
    }
    MoeTrainSplit *t = s->split = calloc(1, sizeof *t);
    if (t) {
        t->counts = calloc((size_t)p->experts * (size_t)p->virtual_shards + 1, sizeof *t->counts);
        t->runs = calloc(slots, sizeof *t->runs);
        t->rows = calloc(ranks, sizeof *t->rows);
        t->scratch = malloc((size_t)scratch);
    }
    return t && t->counts && t->runs && t->rows && t->scratch
               ? NULL
               : moe_error(MOE_E_NOMEM, "no memory to count the rows of %zu ranks", ranks);
}

void moe_train_split_destroy(MoeTrainSplit *t) {
    if (!t)
        return;
    free(t->counts);
    free(t->runs);
    free(t->rows);
    free(t->scratch);
    free(t);
}

/* Adds the rows that each rank of the EP group with data ranks first, first + 1, ... has in micro-batch m. load: [V][E]. */
static void add_rows(const MoePlan *p, MoeTrainSplit *t, const MoePlaceMap *map,
                     const int32_t *load, int first, int m) {
    int run, shards = group_shards(p, map->ranks), E = map->experts;
    moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, m, first, &run);
    for (int e = 0; e < E; e++)
        for (int v = 0; v < shards; v++)
            t->counts[e * shards + v] = load[(run + v) * E + e];
    MoeSplit in = {E, map->ranks, map->slots, map->expert, shards, t->counts, p->leaf_rows};
    moe_split(&in, t->scratch, t->runs);
    for (int g = 0; g < map->ranks * map->slots; g++)
        t->rows[g / map->slots] += t->runs[g].end - t->runs[g].begin;
}

void moe_train_imbalance(const MoeTrainer *s, double *out) {
    const MoePlan *p = s->plan;
    MoeTrainSplit *t = s->split;
    const int D = moe_mesh_data_ranks(&p->mesh);
    const int32_t *load = moe_exec_load(s->x); /* [layers][V][E] */
    for (size_t k = 0; k < p->n_moe_layers; k++, load += p->virtual_shards * p->experts) {
        const MoePlaceMap *map = moe_exec_map(s->x, k);
        int64_t sum = 0, most = 0;
        for (int first = 0; first < D; first += map->ranks) {
            memset(t->rows, 0, (size_t)map->ranks * sizeof *t->rows);
            for (int m = 0; m < p->micro_batches; m++)
                add_rows(p, t, map, load, first, m);
            for (int r = 0; r < map->ranks; r++) {
                sum += t->rows[r];
                most = t->rows[r] > most ? t->rows[r] : most;
            }
        }
        out[k] = sum ? (double)most * D / (double)sum : 1.0;
    }
}
