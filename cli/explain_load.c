/* Rows of experts on a rank, and the memory that they touch. In: a plan and the load of its experts, from a run's trace or of
 * random routers. Out: bytes by rank.
 *
 * The plan's tables of rows are of three sorts (docs/RANKS.md): rows of the experts that a rank holds, rows that it receives
 * (once for all its experts that a token wants), rows that it sends. How many the load makes of each gives what every value
 * in the slab's end uses; the union of that is what the rank touches. */
#include "cli/explain_load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/split.h"
#include "cli/run_maps.h"
#include "runtime/touched.h"

/* A router that nobody has trained sends tokens that look alike to the same experts. In its first steps its load varies from
 * expert to expert as if the tokens were of so few sorts, each with k experts of its own: 1 to 10 were measured in most layers
 * (of models 4 and 8 layers deep with 8 and 32 experts, on bytes and on words of a text, steps 1 to 6), fewer as training goes
 * on before the balancing loss works. */
#define TOKEN_SORTS 3
#define DRAWS       16

typedef enum { ROWS_UNKNOWN, ROWS_HELD, ROWS_RECEIVED, ROWS_SENT, N_ROWS } Sort;

/* What routing makes of a layer on a data rank: the most of any micro-batch. */
typedef struct {
    double n[N_ROWS];
} Rows;

typedef struct {
    const MoePlan *plan;
    int data_ranks;
    MoeTouch *touched;
    size_t n_touched;
    Sort *sort;       /* [n_touched]: of its rows */
    size_t *layer;    /* [n_touched]: index in moe_layers */
    Rows *rows;       /* [n_moe_layers][data_ranks] */
    int32_t *rank_of; /* [n_moe_layers][experts]: the EP rank of an expert in the usual map */
} Tables;

static MoeMesh division_of(const MoePlan *p, size_t layer) {
    return moe_mesh_division(&p->mesh, moe_mesh_of_layer(&p->mesh, p->moe_layers[layer]));
}

/* ---- the plan's tables ---- */

/* By value of the program: the sort of rows that it counts, and of which layer. Exchanges name their tables. */
static void find_sorts(const MoePlan *p, const MoePlanProgram *g, Sort *sort, size_t *layer) {
    for (size_t i = 0; i < g->n_steps; i++)
        for (size_t c = 0; c < g->steps[i].n_comm; c++) {
            const MoePlanComm *o = &g->steps[i].comm[c];
            size_t k = 0;
            while (k < p->n_moe_layers && p->moe_layers[k] != g->steps[i].layer)
                k++;
            bool out = o->op == MOE_PLAN_A2A_DISPATCH;
            if (k == p->n_moe_layers || (!out && o->op != MOE_PLAN_A2A_COMBINE))
                continue;
            layer[o->in[1]] = k;
            sort[o->in[1]] = out ? ROWS_SENT : ROWS_HELD;
            if (out)
                layer[o->in[3]] = k;
            if (out)
                sort[o->in[3]] = ROWS_RECEIVED;
        }
}

static void close_tables(Tables *t) {
    free(t->touched);
    free(t->sort);
    free(t->layer);
    free(t->rows);
    free(t->rank_of);
}

static MoeStatus open_tables(const MoePlan *p, Tables *t) {
    *t = (Tables){.plan = p, .data_ranks = moe_mesh_data_ranks(&p->mesh)};
    MOE_TRY(moe_touch_list(p, &t->touched, &t->n_touched));
    size_t most = 0;
    for (size_t g = 0; g < p->n_programs; g++)
        most = p->programs[g].n_values > most ? p->programs[g].n_values : most;
    t->sort = calloc(t->n_touched + 1, sizeof *t->sort);
    t->layer = calloc(t->n_touched + 1, sizeof *t->layer);
    t->rows = calloc(p->n_moe_layers * (size_t)t->data_ranks + 1, sizeof *t->rows);
    t->rank_of = calloc(p->n_moe_layers * (size_t)p->experts + 1, sizeof *t->rank_of);
    Sort *sort = malloc((most + 1) * sizeof *sort);
    size_t *layer = malloc((most + 1) * sizeof *layer);
    for (size_t g = 0; g < p->n_programs && sort && layer && t->sort && t->layer; g++) {
        memset(sort, 0, (most + 1) * sizeof *sort);
        find_sorts(p, &p->programs[g], sort, layer);
        for (size_t i = 0; i < t->n_touched; i++) {
            const MoeTouch *x = &t->touched[i];
            int table = p->programs[g].values[x->value].rows;
            if (x->program != (int)g || !x->elastic || sort[table] == ROWS_UNKNOWN)
                continue;
            t->sort[i] = sort[table];
            t->layer[i] = layer[table];
        }
    }
    for (size_t k = 0; t->rank_of && k < p->n_moe_layers; k++) {
        int ep = division_of(p, k).ep, slots = (p->experts + ep - 1) / ep;
        for (int e = 0; e < p->experts; e++)
            t->rank_of[k * (size_t)p->experts + (size_t)e] = e / slots;
    }
    bool ok = sort && layer && t->sort && t->layer && t->rows && t->rank_of;
    free(sort);
    free(layer);
    return ok ? NULL : moe_error(MOE_E_NOMEM, "no memory for the plan's tables");
}

static Rows *rows_at(const Tables *t, size_t layer, int d) {
    return &t->rows[layer * (size_t)t->data_ranks + (size_t)d];
}

/* What data rank d touches with the rows that the tables have. */
static double touched_by(Tables *t, int d) {
    for (size_t i = 0; i < t->n_touched; i++) {
        MoeTouch *x = &t->touched[i];
        const MoePlanValue *v = &t->plan->programs[x->program].values[x->value];
        double used = (double)v->bytes;
        if (x->elastic)
            used = t->sort[i] == ROWS_UNKNOWN
                       ? (double)v->expect
                       : ceil(rows_at(t, t->layer[i], d)->n[t->sort[i]]) * (double)v->row_bytes;
        x->used = used < (double)v->bytes ? (int64_t)used : v->bytes;
    }
    return (double)moe_touch_bytes(t->touched, t->n_touched, moe_plan_fixed_bytes(t->plan));
}

/* ---- rows by a load ---- */

/* The sum over all ways to choose k of n experts of the product of their odds. */
static double ways(const double *odds, int n, int k) {
    double sum[64] = {1};
    for (int e = 0; e < n; e++)
        for (int j = k; j > 0; j--)
            sum[j] += sum[j - 1] * odds[e];
    return sum[k];
}

/* Of the tokens with these counts of experts, those that want something of a rank which has the part here[e] of expert e's rows. Tokens
 * take k experts each; that they do so in all ways with the odds p/(1-p) of their shares p is Hajek's approximation of sampling with
 * given inclusion probabilities (conditional Poisson sampling; Annals of Mathematical Statistics 35, 1964). Whether a token is of an
 * expert's part that is here goes by chance. odds [n]: scratch. */
static double tokens_with(const int64_t *counts, const double *here, int n, int k, double *odds) {
    double pairs = 0, wanted = 0, top = 0;
    for (int e = 0; e < n; e++) {
        pairs += (double)counts[e];
        wanted += here[e] * (double)counts[e];
    }
    double tokens = pairs / k, at_most = wanted < tokens ? wanted : tokens;
    if (!(tokens > 0) || k >= 64)
        return at_most;
    for (int e = 0; e < n; e++) {
        double share = fmin((double)counts[e] / tokens, 1 - 1e-9);
        odds[e] = share / (1 - share);
        top = fmax(top, odds[e]);
    }
    for (int e = 0; e < n; e++)
        odds[e] /= top;
    double all = ways(odds, n, k);
    for (int e = 0; e < n; e++)
        odds[e] *= 1 - here[e];
    return all > 0 ? fmin(at_most, tokens * (1 - ways(odds, n, k) / all)) : at_most;
}

/* One EP group in one micro-batch: its rows as they are divided among copies (base/split.h). */
typedef struct {
    const MoePlaceMap *map;
    int shards;          /* of the group; of each rank shards / ranks */
    int leaf_rows;       /* of the plan */
    int32_t *counts;     /* [E][shards] */
    int64_t *own;        /* [ranks][E]: of each rank's tokens */
    MoeSplitRun *runs;   /* [global slots] */
    double *here, *odds; /* [E] */
} Group;

static Group begin_group(const MoePlan *p, const MoePlaceMap *map, MoeArena *a) {
    int first, n = moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, 0, 0, &first);
    Group g = {.map = map, .shards = n * map->ranks, .leaf_rows = p->leaf_rows};
    g.counts = MOE_NEW_N(a, int32_t, map->experts * g.shards);
    g.own = MOE_NEW_N(a, int64_t, map->ranks * map->experts);
    g.runs = MOE_NEW_N(a, MoeSplitRun, map->ranks * map->slots);
    g.here = MOE_NEW_N(a, double, map->experts);
    g.odds = MOE_NEW_N(a, double, map->experts);
    return g;
}

/* at: [V][E] of a step and layer; the group's virtual shards begin at `first`. */
static void divide(Group *g, const int32_t *at, int first, MoeArena *a) {
    const MoePlaceMap *m = g->map;
    const int E = m->experts, each = g->shards / m->ranks;
    memset(g->own, 0, sizeof *g->own * (size_t)m->ranks * (size_t)E);
    for (int e = 0; e < E; e++)
        for (int v = 0; v < g->shards; v++) {
            g->counts[e * g->shards + v] = at[(first + v) * E + e];
            g->own[v / each * E + e] += at[(first + v) * E + e];
        }
    MoeSplit in = {E, m->ranks, m->slots, m->expert, g->shards, g->counts, g->leaf_rows};
    moe_split(&in, moe_arena_alloc(a, (size_t)moe_split_scratch(E, m->ranks, m->slots, g->shards)), g->runs);
}

static double held(const Group *g, int rank) {
    const MoePlaceMap *m = g->map;
    double n = 0;
    for (int s = rank * m->slots; s < (rank + 1) * m->slots; s++)
        n += g->runs[s].end - g->runs[s].begin;
    return n;
}

/* Tokens that rank `from` sends to rank `to`. */
static double sent(Group *g, int k, int from, int to) {
    const MoePlaceMap *m = g->map;
    const int64_t *own = g->own + (size_t)from * (size_t)m->experts;
    memset(g->here, 0, sizeof *g->here * (size_t)m->experts);
    for (int s = to * m->slots; s < (to + 1) * m->slots; s++) {
        int e = m->expert[s];
        if (e < 0 || !own[e])
            continue;
        int64_t begin = 0, lo = g->runs[s].begin, hi = g->runs[s].end;
        for (int r = 0; r < from; r++)
            begin += g->own[r * m->experts + e];
        lo = lo > begin ? lo : begin;
        hi = hi < begin + own[e] ? hi : begin + own[e];
        g->here[e] = hi > lo ? (double)(hi - lo) / (double)own[e] : 0;
    }
    return tokens_with(own, g->here, m->experts, k, g->odds);
}

/* One layer of one step, in micro-batch m. Keeps the most of each rank; what it receives and sends is taken from where it holds the
 * most. at: [V][E]. */
static void add_counts(Tables *t, size_t layer, const MoePlaceMap *map, const int32_t *at, int m) {
    const MoePlan *p = t->plan;
    MoeArena *a = moe_arena_create();
    Group g = begin_group(p, map, a);
    for (int d = 0; d < t->data_ranks; d++) {
        int rank = d % map->ranks, first;
        if (!rank) {
            moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, m, d, &first);
            divide(&g, at, first, a);
        }
        Rows *most = rows_at(t, layer, d), now = {{0}};
        now.n[ROWS_HELD] = held(&g, rank);
        if (!(now.n[ROWS_HELD] > most->n[ROWS_HELD]))
            continue;
        for (int r = 0; r < map->ranks; r++) {
            now.n[ROWS_RECEIVED] += sent(&g, p->experts_per_token, r, rank);
            now.n[ROWS_SENT] += sent(&g, p->experts_per_token, rank, r);
        }
        *most = now;
    }
    moe_arena_destroy(a);
}

MoeStatus moe_explain_touched_by(const MoePlan *p, const MoeLoad *load, const char *run,
                                 MoeExplainTouched *out) {
    *out = (MoeExplainTouched){.of_run = true};
    if (load->experts != p->experts || load->sources != p->virtual_shards ||
        (size_t)load->layers != p->n_moe_layers)
        return moe_error(MOE_E_INPUT,
                         "the trace has %d layers of %d experts from %d sources; the plan has %zu "
                         "of %d from %d virtual "
                         "shards: it is a run of another plan",
                         load->layers, load->experts, load->sources, p->n_moe_layers, p->experts,
                         p->virtual_shards);
    Tables t;
    MoeArena *a = moe_arena_create();
    MoeRunMaps where = {0};
    MoeStatus st = open_tables(p, &t);
    out->bytes = calloc((size_t)t.data_ranks, sizeof *out->bytes);
    if (!st && !out->bytes)
        st = moe_error(MOE_E_NOMEM, "no memory for the load of %d ranks", t.data_ranks);
    if (!st)
        st = moe_run_maps_open(p, run, a, &where);
    for (int step = 0; step < load->steps && !st; step++) {
        moe_run_maps_step(&where, load->first_step + step);
        for (int k = 0; k < load->layers; k++)
            for (int m = 0; m < p->micro_batches; m++)
                add_counts(&t, (size_t)k, &where.maps[k], moe_load_at(load, step, k), m);
    }
    moe_run_maps_close(&where);
    for (int d = 0; d < t.data_ranks && !st; d++) {
        out->bytes[d] = touched_by(&t, d);
        out->most = fmax(out->most, out->bytes[d]);
    }
    moe_arena_destroy(a);
    close_tables(&t);
    return st;
}

/* ---- untrained routers ---- */

/* k of n experts at random. Returns the draws used up. */
static uint64_t choose(uint64_t at, int n, int k, int *out) {
    for (int i = 0; i < k; i++) {
        bool again = true;
        while (again) {
            out[i] = (int)moe_rng_below(1, 3, at++, (uint64_t)n);
            again = false;
            for (int j = 0; j < i; j++)
                again |= out[j] == out[i];
        }
    }
    return at;
}

/* A layer in which every sort of tokens has its own k experts. */
static uint64_t draw_layer(Tables *t, size_t layer, double tokens, uint64_t at) {
    const MoePlan *p = t->plan;
    const int32_t *rank_of = t->rank_of + layer * (size_t)p->experts;
    MoeMesh mesh = division_of(p, layer);
    int *chosen = malloc(sizeof *chosen * (size_t)p->experts_per_token);
    double of_sort = tokens / TOKEN_SORTS;
    memset(rows_at(t, layer, 0), 0, sizeof(Rows) * (size_t)t->data_ranks);
    for (int s = 0; s < TOKEN_SORTS && chosen; s++) {
        at = choose(at, p->experts, p->experts_per_token, chosen);
        for (int d = 0; d < t->data_ranks; d++) {
            int hits = 0, ranks = 0;
            for (int i = 0; i < p->experts_per_token; i++) {
                bool first = true; /* of those on its rank */
                for (int j = 0; j < i; j++)
                    first &= rank_of[chosen[j]] != rank_of[chosen[i]];
                ranks += first;
                hits += rank_of[chosen[i]] == d % mesh.ep;
            }
            Rows *r = rows_at(t, layer, d);
            r->n[ROWS_HELD] += hits * of_sort * mesh.ep;
            r->n[ROWS_RECEIVED] += (hits > 0) * of_sort * mesh.ep;
            r->n[ROWS_SENT] += ranks * of_sort;
        }
    }
    free(chosen);
    return at;
}

MoeStatus moe_explain_touched_untrained(const MoePlan *p, MoeExplainTouched *out) {
    *out = (MoeExplainTouched){0};
    Tables t;
    MoeStatus st = open_tables(p, &t);
    double tokens =
        (double)(moe_mesh_most_sequences(&p->mesh, p->batch, p->micro_batches) * p->seq);
    uint64_t at = 0;
    int period = p->mesh.ep; /* ranks this far apart have the same experts in every layer */
    for (int i = 0; i < p->mesh.n_ranges; i++)
        period = p->mesh.ranges[i].ep > period ? p->mesh.ranges[i].ep : period;
    for (int draw = 0; draw < DRAWS && !st && t.n_touched; draw++) {
        double most = 0;
        for (size_t k = 0; k < p->n_moe_layers; k++)
            at = draw_layer(&t, k, tokens, at);
        for (int d = 0; d < period; d++)
            most = fmax(most, touched_by(&t, d));
        out->most += most / DRAWS;
    }
    close_tables(&t);
    return st;
}
