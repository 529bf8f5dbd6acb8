/* See place.h. Layers whose experts are divided in the same way share a placer (placement/placer.h); what it sees as sources are the
 * virtual shards, in the order of the ranks that have them. */
#include "runtime/place.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/log.h"
#include "base/pool.h"
#include "base/split.h"
#include "placement/placer.h"
#include "runtime/emulate.h"
#include "runtime/place_events.h"
#include "runtime/place_fault.h"
#include "runtime/place_move.h"

/* The layers of one division of experts. */
typedef struct {
    MoePlacer *placer;
    MoePlaceCost cost;
    int n;
    size_t *layers;    /* [n]: index into plan->moe_layers */
    int *shards;       /* [V]: the placer's source s is virtual shard shards[s] */
    int32_t *counts;   /* [n][V][E] */
    MoePlaceMap *maps; /* [n] */
    MoePlaceDecision *decisions;
} Division;

struct MoePlace {
    const MoePlan *plan;
    MoeExec *x;
    MoePlaceOptions o;
    MoeArena *arena;
    Division *divisions; /* rank 0's */
    int n_divisions, window;
    MoePlaceMap *to;     /* [n_moe_layers]: what all are to have next; one block: */
    int32_t *to_numbers; /* expert and primary of one layer after the other */
    size_t n_numbers;
    bool warned;
};

/* ---- options ---- */

void moe_place_options_default(MoePlaceOptions *o) {
    *o = (MoePlaceOptions){.policy = "static",
                           .every = 10,
                           .window = 10,
                           .program_seconds = 10,
                           .hysteresis = 1,
                           .staging_bytes = (int64_t)256 << 20};
}

static bool is_static(const MoePlaceOptions *o) {
    return !strcmp(o->policy, "static");
}

MoeStatus moe_place_options_check(const MoePlaceOptions *o) {
    const MoePolicy *policy;
    MOE_TRY(moe_status_prefix(moe_policy_find(o->policy, &policy), "--placement"));
    const struct {
        bool ok;
        const char *text;
    } rules[] = {
        {o->every >= 1 && o->every <= 1 << 30, "--placement-every must be at least 1"},
        {o->window >= 1 && o->window <= 100000, "--placement-window must be 1 to 100000"},
        {o->drift >= 0 && o->drift <= 1e9, "--placement-drift must be a number of at least 0"},
        {o->hysteresis >= 0 && o->hysteresis <= 1e9,
         "--placement-hysteresis must be a number of at least 0"},
        {o->staging_bytes >= 1, "--placement-staging must be at least 1 MiB"},
        {strcmp(o->policy, "program") != 0 || o->program,
         "--placement program needs --placement-program COMMAND"},
        {o->program_seconds > 0 && o->program_seconds <= 1e6,
         "--placement-program-seconds must be a number above 0"},
        {!o->program || !strcmp(o->policy, "program"),
         "--placement-program needs --placement program"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!rules[i].ok)
            return moe_error(MOE_E_MISUSE, "%s", rules[i].text);
    return NULL;
}

/* ---- opening ---- */

static int division_of(const MoePlan *p, size_t k) {
    return moe_mesh_of_layer(&p->mesh, p->moe_layers[k]);
}

/* What a layer's maps cost: as the plan says, on the cluster that is given. */
static MoePlaceCost cost_of(const MoePlan *p, size_t k, const MoeMesh *division,
                            const MoeCluster *cluster) {
    MoeCluster one = {
        .nodes = 1, .ranks_per_node = p->ranks, .links = {{5e-6, 50e9}, {5e-6, 50e9}}};
    MoeCluster group = moe_cluster_of_group(cluster ? cluster : &one, division);
    MoePlaceModel model = {.top_k = p->experts_per_token,
                           .element_bytes = strcmp(p->dtype, "bf16") ? 4 : 2};
    model.hidden = json_integer_value(json_object_get(p->model, "hidden_size"));
    for (size_t i = 0; i < p->n_params; i++)
        if (p->params[i].expert &&
            model.hidden >
                0) { /* each of its matrices is hidden x intermediate, or the other way round */
            model.intermediate = p->params[i].elements / p->params[i].dims[0] / model.hidden;
            model.states = (int)p->params[i].n_states;
        }
    MoePlaceCost by_sizes = moe_place_cost_of(&group, &model);
    if (!p->place_costs)
        return by_sizes;
    MoePlaceCost c = p->place_costs[k];
    if (cluster) {
        c.cluster = group;
        c.row_seconds = moe_cluster_predicts(cluster) ? by_sizes.row_seconds : c.row_seconds;
    }
    return c;
}

/* Virtual shards by the data rank that has them, micro-batch by micro-batch. */
static int *shards_by_rank(const MoePlan *p, MoeArena *a) {
    int *out = MOE_NEW_N(a, int, p->virtual_shards), n = 0;
    for (int d = 0; d < moe_mesh_data_ranks(&p->mesh); d++)
        for (int m = 0; m < p->micro_batches; m++) {
            int first, run = moe_mesh_shard_run(&p->mesh, p->virtual_shards, p->micro_batches, m, d,
                                                &first);
            for (int v = first; v < first + run; v++)
                out[n++] = v;
        }
    return out;
}

static MoeStatus open_division(MoePlace *p, int d, uint64_t seed) {
    const MoePlan *plan = p->plan;
    const MoePolicy *policy;
    Division *v = &p->divisions[p->n_divisions];
    MoeMesh mesh = moe_mesh_division(&plan->mesh, d);
    v->layers = MOE_NEW_N(p->arena, size_t, plan->n_moe_layers);
    for (size_t k = 0; k < plan->n_moe_layers; k++)
        if (division_of(plan, k) == d && moe_exec_can_place(p->x, k))
            v->layers[v->n++] = k;
    if (!v->n)
        return NULL;
    const MoePlaceMap *first = moe_exec_map(p->x, v->layers[0]);
    v->cost = cost_of(plan, v->layers[0], &mesh, p->o.cluster);
    v->shards = shards_by_rank(plan, p->arena);
    v->counts = MOE_NEW_N(p->arena, int32_t,
                          (size_t)v->n * (size_t)plan->virtual_shards * (size_t)plan->experts);
    v->maps = MOE_NEW_N(p->arena, MoePlaceMap, v->n);
    v->decisions = MOE_NEW_N(p->arena, MoePlaceDecision, v->n);
    for (int i = 0; i < v->n; i++)
        MOE_TRY(
            moe_place_map_create(plan->experts, first->ranks, first->slots, p->arena, &v->maps[i]));
    MOE_TRY(moe_policy_find(p->o.policy, &policy));
    MoePolicySetup setup = {.layers = v->n,
                            .experts = plan->experts,
                            .ranks = first->ranks,
                            .slots = first->slots,
                            .groups = moe_mesh_data_ranks(&plan->mesh) / mesh.ep,
                            .sources = plan->virtual_shards,
                            .grain = plan->leaf_rows,
                            .every = (int)p->o.every,
                            .window = (int)p->o.window,
                            .seed = seed,
                            .cost = &v->cost,
                            .program = p->o.program,
                            .program_seconds = p->o.program_seconds};
    MoePlacerGate gate = {.hysteresis = p->o.hysteresis, .drift = p->o.drift};
    MOE_TRY(moe_placer_create(policy, &setup, gate, &v->placer));
    p->n_divisions++;
    return NULL;
}

/* Maps that point into one block, so that it can be sent. */
static void make_maps(MoePlace *p) {
    const MoePlan *plan = p->plan;
    p->to = MOE_NEW_N(p->arena, MoePlaceMap, plan->n_moe_layers);
    for (size_t k = 0; k < plan->n_moe_layers; k++) {
        p->to[k] = *moe_exec_map(p->x, k);
        p->n_numbers += (size_t)(p->to[k].ranks * p->to[k].slots + p->to[k].experts);
    }
    p->to_numbers = MOE_NEW_N(p->arena, int32_t, p->n_numbers);
    int32_t *at = p->to_numbers;
    for (size_t k = 0; k < plan->n_moe_layers; k++) {
        p->to[k].expert = at;
        at += p->to[k].ranks * p->to[k].slots;
        p->to[k].primary = at;
        at += p->to[k].experts;
    }
}

static MoeStatus open_rank(MoePlace *p, uint64_t seed) {
    make_maps(p);
    if (moe_exec_rank(p->x))
        return NULL;
    p->divisions = MOE_NEW_N(p->arena, Division, p->plan->mesh.n_ranges + 1);
    for (int d = 0; d <= p->plan->mesh.n_ranges; d++)
        MOE_TRY(open_division(p, d, seed));
    return NULL;
}

MoeStatus moe_place_open(const MoePlan *plan, MoeExec *x, const MoePlaceOptions *o, uint64_t seed,
                         MoePlace **out) {
    bool any = false;
    *out = NULL;
    for (size_t k = 0; k < plan->n_moe_layers; k++)
        any = any || moe_exec_can_place(x, k);
    if (is_static(o) || !any)
        return NULL;
    MoePlace *p = calloc(1, sizeof *p);
    if (p)
        *p = (MoePlace){.plan = plan, .x = x, .o = *o, .arena = moe_arena_create()};
    MoeStatus st =
        p ? open_rank(p, seed) : moe_error(MOE_E_NOMEM, "no memory for the placement of experts");
    st = moe_comm_agree(moe_exec_comm(x), st, "the placement of experts");
    if (st)
        moe_place_close(p);
    else
        *out = p;
    return st;
}

void moe_place_close(MoePlace *p) {
    if (!p)
        return;
    for (int i = 0; i <= p->plan->mesh.n_ranges && p->divisions; i++)
        moe_placer_destroy(p->divisions[i].placer);
    moe_arena_destroy(p->arena);
    free(p);
}

/* ---- what the placers see ---- */

static void read_maps(MoePlace *p, Division *v) {
    for (int i = 0; i < v->n; i++)
        moe_place_map_copy(&v->maps[i], moe_exec_map(p->x, v->layers[i]));
}

void moe_place_observe(MoePlace *p, int64_t step, const int32_t *load) {
    const size_t V = (size_t)p->plan->virtual_shards, E = (size_t)p->plan->experts;
    for (int d = 0; d < p->n_divisions; d++) {
        Division *v = &p->divisions[d];
        for (size_t i = 0; i < (size_t)v->n; i++)
            for (size_t s = 0; s < V; s++)
                memcpy(v->counts + (i * V + s) * E,
                       load + (v->layers[i] * V + (size_t)v->shards[s]) * E, E * sizeof *load);
        read_maps(p, v);
        moe_placer_observe(v->placer, step, v->counts, v->maps);
    }
}

bool moe_place_due(const MoePlace *p, int64_t step) {
    for (int d = 0; d < p->n_divisions; d++)
        if (moe_placer_due(p->divisions[d].placer, step))
            return true;
    return false;
}

int moe_place_window(const MoePlace *p) {
    return (int)p->o.window;
}

/* ---- deciding ---- */

/* Of maps for programs that know no copies, the primary ones. */
static void drop_copies(MoePlaceMap *m) {
    for (int g = 0; g < m->ranks * m->slots; g++)
        if (m->expert[g] >= 0 && m->primary[m->expert[g]] != g)
            m->expert[g] = -1;
}

/* Layer i of the division as it was decided, into p->to; whether it changes. */
static bool take(MoePlace *p, int64_t step, Division *v, int i, MoeStr *events) {
    const MoePlaceDecision *d = &v->decisions[i];
    size_t k = v->layers[i];
    int layer = p->plan->moe_layers[k];
    if (d->verdict == MOE_PLACE_REFUSED && !p->warned) {
        moe_warn("step %lld: placement keeps the experts of layer %d where they are: %s (said "
                 "once; placement.jsonl has them all)",
                 (long long)step, layer, d->why);
        p->warned = true;
    }
    if (!moe_exec_can_copy(p->x, k))
        drop_copies(&v->maps[i]);
    moe_place_map_copy(&p->to[k], &v->maps[i]);
    if (events)
        moe_place_put_decision(events, step, layer, d, &v->maps[i]);
    return !moe_place_map_equal(&p->to[k], moe_exec_map(p->x, k));
}

/* Rank 0: what each layer is to have, into p->to; whether anything changes. counts: layers by verdict. */
static bool decide(MoePlace *p, int64_t step, MoeStr *events, int counts[MOE_PLACE_VERDICTS]) {
    bool changed = false;
    for (size_t k = 0; k < p->plan->n_moe_layers; k++)
        moe_place_map_copy(&p->to[k], moe_exec_map(p->x, k));
    for (int d = 0; d < p->n_divisions; d++) {
        Division *v = &p->divisions[d];
        if (!moe_placer_due(v->placer, step))
            continue;
        read_maps(p, v);
        moe_placer_decide(v->placer, step, v->maps, v->decisions);
        for (int i = 0; i < v->n; i++) {
            counts[v->decisions[i].verdict]++;
            changed = take(p, step, v, i, events) || changed;
        }
    }
    return changed;
}

/* n bytes of rank 0 to all others. */
static MoeStatus spread(MoeComm *c, void *data, size_t n, const char *what) {
    MoeBlock from = {0, data, 1, (int64_t)n, NULL}, *to = NULL;
    size_t n_to = 0;
    MoeStatus st = NULL;
    if (c->rank == 0 && !(to = calloc((size_t)c->size, sizeof *to)))
        return moe_error(MOE_E_NOMEM, "no memory for a message to %d ranks", c->size);
    for (int r = 1; r < c->size && c->rank == 0; r++)
        to[n_to++] = (MoeBlock){r, data, 1, (int64_t)n, NULL};
    st = moe_comm_exchange(c, to, n_to, &from, c->rank ? 1 : 0, what);
    free(to);
    return st;
}

/* ---- moving ---- */

/* What the latest of emulated clocks gained since the last call. */
static MoeStatus emulated(MoeComm *c, double *out) {
    *out = NAN;
    return moe_comm_emulated(c) ? moe_emulate_step(c, out, NULL) : NULL;
}

static MoeStatus move(MoePlace *p, int64_t step, MoeStr *events, MoePlaceChange *out) {
    MoePlaceMoved moved;
    MoeStatus st = moe_place_move(p->plan, p->x, p->to, p->o.staging_bytes, &moved);
    if (st && !moved.given_up)
        return st;
    out->moved = !st || moved.batches;
    out->failed = st != NULL;
    out->experts = moved.experts;
    out->bytes = moved.bytes;
    out->staging_bytes = moved.staging_bytes;
    out->batches = moved.batches;
    if (st && moe_exec_rank(p->x) == 0) {
        moe_warn("step %lld: experts stay where they are: %s", (long long)step,
                 moe_status_message(st));
        if (events)
            moe_place_put_failure(events, step, moe_status_message(st), moved.batches);
    }
    moe_status_free(st);
    return NULL;
}

MoeStatus moe_place_change(MoePlace *p, int64_t step, MoeStr *events, MoePlaceChange *out) {
    MoeComm *c = moe_exec_comm(p->x);
    double start = moe_now(), before;
    int32_t changed = 0;
    int counts[MOE_PLACE_VERDICTS] = {0};
    *out = (MoePlaceChange){.emulated_seconds = NAN};
    moe_comm_phase(c, step, "placement");
    MOE_TRY(emulated(c, &before)); /* what came before is none of ours */
    if (c->rank == 0)
        changed = decide(p, step, events, counts);
    out->decide_seconds = moe_now() - start;
    if (changed)
        moe_status_free(moe_place_point(c->rank, MOE_PLACE_AT_DECIDED, NULL, 0));
    MOE_TRY(spread(c, &changed, sizeof changed, "placement"));
    if (changed) {
        MOE_TRY(spread(c, p->to_numbers, p->n_numbers * sizeof *p->to_numbers, "placement"));
        moe_status_free(moe_place_point(c->rank, MOE_PLACE_AT_TOLD, NULL, 0));
        MOE_TRY(move(p, step, events, out));
    }
    MOE_TRY(emulated(c, &out->emulated_seconds));
    out->seconds = moe_now() - start;
    if (events && c->rank == 0)
        moe_place_put_change(events, step, changed, counts, out);
    return NULL;
}
