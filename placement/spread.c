/* See spread.h. */
#include "placement/spread.h"

#include "base/arena.h"
#include "base/split.h"

/* The work on one layer. */
typedef struct {
    const MoePlaceMap *map;
    const MoeSpreadWhere *w;
    int shards;                /* of a group in a micro-batch */
    int32_t *divided, *counts; /* [V][E]; [E][shards] */
    MoeSplitRun *runs;         /* NULL: nothing to split */
    void *scratch;
} Layer;

static bool has_copies(const MoePlaceMap *m) {
    int n = 0;
    for (int g = 0; g < m->ranks * m->slots; g++)
        n += m->expert[g] >= 0;
    return n > m->experts;
}

/* Counts of a group in a micro-batch, which has the virtual shards from `first` on; and their division. */
static void take_counts(const Layer *l, int first) {
    const MoePlaceMap *map = l->map;
    int E = map->experts;
    for (int e = 0; e < E; e++)
        for (int s = 0; s < l->shards; s++)
            l->counts[e * l->shards + s] = l->divided[(first + s) * E + e];
    if (l->runs) {
        MoeSplit split = {E, map->ranks, map->slots, map->expert, l->shards, l->counts, l->w->grain};
        moe_split(&split, l->scratch, l->runs);
    }
}

static MoePlaceTraffic traffic_of(const Layer *l, int first) {
    take_counts(l, first);
    return moe_place_traffic(&l->w->cluster, l->w->top_k, l->map, l->counts, l->shards, l->runs);
}

static double most(double a, double b) {
    return a > b ? a : b;
}

/* Adds a step's numbers. */
static void add_step(const Layer *l, double rows, MoeSpread *out) {
    int micro = l->w->micro_batches, groups = l->w->groups;
    for (int m = 0; m < micro; m++) {
        MoePlaceTraffic all = {0};
        double total = 0;
        for (int g = 0; g < groups; g++) {
            MoePlaceTraffic t = traffic_of(l, (m * groups + g) * l->shards);
            total += t.mean * l->map->ranks;
            all.rows = most(all.rows, t.rows);
            for (int k = 0; k < MOE_N_LINKS; k++) {
                all.there[k] = most(all.there[k], t.there[k]);
                all.home[k] = most(all.home[k], t.home[k]);
            }
        }
        double scale = total > 0 ? rows / total / micro : 0;
        out->rows += (total > 0 ? all.rows * groups * l->map->ranks / total : 1) / micro;
        for (int k = 0; k < MOE_N_LINKS; k++) {
            out->there[k] += all.there[k] * scale;
            out->home[k] += all.home[k] * scale;
        }
    }
}

static Layer begin(const MoePlaceMap *map, const MoeSpreadWhere *w, MoeArena *a) {
    Layer l = {.map = map, .w = w, .shards = w->shards / w->micro_batches / w->groups};
    l.divided = MOE_NEW_N(a, int32_t, w->shards * map->experts);
    l.counts = MOE_NEW_N(a, int32_t, l.shards * map->experts);
    if (has_copies(map)) {
        l.runs = MOE_NEW_N(a, MoeSplitRun, map->ranks * map->slots);
        l.scratch = moe_arena_alloc(a, (size_t)moe_split_scratch(map->experts, map->ranks, map->slots, l.shards));
    }
    return l;
}

MoeSpread moe_spread(const MoeLoad *load, int layer, const MoePlaceMap *map, const MoeSpreadWhere *w, double rows,
                     int most_steps) {
    int n = load->steps < most_steps ? load->steps : most_steps;
    MoeArena *a = moe_arena_create();
    Layer l = begin(map, w, a);
    MoeSpread out = {0};
    for (int i = 0; i < n; i++) {
        const int32_t *at = moe_load_at(load, (int)((int64_t)i * load->steps / n), layer);
        moe_load_divide(at, load->sources, map->experts, w->shards, l.divided);
        add_step(&l, rows, &out);
    }
    out.rows = n ? out.rows / n : 1;
    for (int k = 0; k < MOE_N_LINKS && n; k++) {
        out.there[k] /= n;
        out.home[k] /= n;
    }
    moe_arena_destroy(a);
    return out;
}

void moe_spread_flows(const MoeLoad *load, int layer, int step, int micro_batch, int group, const MoePlaceMap *map,
                      const MoeSpreadWhere *w, double rows, MoeFlows *out) {
    MoeArena *a = moe_arena_create();
    Layer l = begin(map, w, a);
    int per = w->groups * l.shards, ranks = map->ranks;
    double total = 0;
    moe_load_divide(moe_load_at(load, step, layer), load->sources, map->experts, w->shards, l.divided);
    for (int i = 0; i < per * map->experts; i++)
        total += l.divided[(int64_t)micro_batch * per * map->experts + i];
    take_counts(&l, (micro_batch * w->groups + group) * l.shards);
    moe_place_flows(w->top_k, map, l.counts, l.shards, l.runs, out->rows, out->there, out->home);
    double scale = total > 0 ? rows / total : 0;
    for (int q = 0; q < ranks; q++)
        out->rows[q] *= scale;
    for (int i = 0; i < ranks * ranks; i++) {
        out->there[i] *= scale;
        out->home[i] *= scale;
    }
    moe_arena_destroy(a);
}
