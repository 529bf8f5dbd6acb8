/* See replay.h. A step: decide (maps change), divide and measure each layer (side by side), tell the placer what happened. */
#include "placement/replay_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/mesh.h"

#define MAX_SOURCES 256 /* that policies are shown of a group */
#define COST_WORK_MAX                                                                              \
    (1 << 24) /* (layers x ranks x ranks) of costs worked out in a step, on average */

/* ---- decisions ---- */

static MoeStatus tell_maps(MoeReplayRun *r, bool decided) {
    const MoeReplayObserver *s = r->see;
    for (int k = 0; k < r->load->layers && s && s->map; k++)
        MOE_TRY(s->map(s->ctx, r->out->first_step + r->step, k, &r->maps[k],
                       decided ? &r->decisions[k] : NULL));
    return NULL;
}

static void watch(MoeReplayRun *r, MoeArena *a) {
    MoeReplay *out = r->out;
    int k = r->o->watch;
    if (k < 0)
        return;
    const MoePlaceMap *last = out->n_watched ? &out->watched[out->n_watched - 1].map : NULL;
    if (last && moe_place_map_equal(last, &r->maps[k]))
        return;
    size_t n = (size_t)(r->o->ranks * out->slots);
    MoeReplayMap *to = &out->watched[out->n_watched++];
    *to = (MoeReplayMap){out->first_step + r->step, r->maps[k]};
    to->map.expert = moe_arena_copy(a, r->maps[k].expert, sizeof(int32_t) * n);
    to->map.primary =
        moe_arena_copy(a, r->maps[k].primary, sizeof(int32_t) * (size_t)r->load->experts);
}

/* Counts what a decision did, whatever the placer says of it. */
static void count_decision(MoeReplayRun *r, int k) {
    MoeReplayFigures *f = &r->out->layer[k];
    const MoePlaceDecision *d = &r->decisions[k];
    const MoePlaceMap *from = &r->before[k], *to = &r->maps[k];
    int moves = moe_place_map_moves(from, to);
    f->decisions++;
    f->changes += !moe_place_map_equal(from, to);
    f->too_dear += d->verdict == MOE_PLACE_TOO_DEAR;
    f->refused += d->verdict == MOE_PLACE_REFUSED;
    f->arrivals += moe_place_map_arrivals(from, to);
    f->moves += moves;
    f->moved_bytes += moves * r->o->cost->move_bytes;
    if (moves && r->step >= r->o->warmup)
        r->layer_moves[k] += moe_place_move_seconds(r->o->cost, from, to);
    if (d->verdict == MOE_PLACE_REFUSED && !*r->out->first_refusal)
        snprintf(r->out->first_refusal, sizeof r->out->first_refusal, "step %lld: %s",
                 (long long)(r->out->first_step + r->step), d->why);
}

/* Rows of each expert at the step that is `ago` steps back. */
static void total_rows(const MoeReplayRun *r, int layer, int ago, int32_t *out) {
    const MoeLoad *l = r->load;
    const int32_t *c = moe_load_at(l, (r->step - ago) % l->steps, layer);
    memset(out, 0, sizeof *out * (size_t)l->experts);
    for (int s = 0; s < l->sources; s++)
        for (int e = 0; e < l->experts; e++)
            out[e] += c[(int64_t)s * l->experts + e];
}

/* Where copies share evenly by what the policy's algorithm says of them: asks it, if the map is what it proposed. */
static void ask_replicas(MoeReplayRun *r, int layer) {
    MoePlaceVerdict v = r->decisions[layer].verdict;
    if (!r->o->even || !r->policy->replicas || v == MOE_PLACE_TOO_DEAR || v == MOE_PLACE_REFUSED)
        return;
    MoeArena *a = moe_arena_create();
    int n = r->step < r->o->window ? r->step : r->o->window, experts = r->load->experts;
    const int32_t **totals = MOE_NEW_N(a, const int32_t *, n);
    for (int i = 0; i < n; i++) {
        int32_t *t = MOE_NEW_N(a, int32_t, experts);
        total_rows(r, layer, n - i, t);
        totals[i] = t;
    }
    MoePolicyAsk ask = {.step = r->out->first_step + r->step,
                        .layer = layer,
                        .now = &r->before[layer],
                        .totals = totals,
                        .n_loads = n};
    r->policy->replicas(r->setup, &ask, r->replicas + (int64_t)layer * r->o->ranks * experts);
    r->replicated[layer] = true;
    moe_arena_destroy(a);
}

static MoeStatus decide(MoeReplayRun *r, MoeArena *a) {
    int64_t step = r->out->first_step + r->step;
    if (!r->step) {
        watch(r, a);
        MOE_TRY(tell_maps(r, false));
    }
    if (!r->step || !moe_placer_due(r->placer, step))
        return NULL;
    for (int k = 0; k < r->load->layers; k++)
        moe_place_map_copy(&r->before[k], &r->maps[k]);
    double before = moe_placer_seconds(r->placer);
    moe_placer_decide(r->placer, step, r->maps, r->decisions);
    double took = moe_placer_seconds(r->placer) - before;
    r->out->decide_worst = fmax(r->out->decide_worst, took);
    r->out->decide_times++;
    for (int k = 0; k < r->load->layers; k++) {
        count_decision(r, k);
        ask_replicas(r, k);
    }
    watch(r, a);
    return tell_maps(r, true);
}

/* ---- figures ---- */

static int by_value(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* mean, p95 (linear between values) and max of v, which is sorted. */
static void figures_of(double *v, int64_t n, MoeReplayFigures *f) {
    double sum = 0, at = 0.95 * (double)(n - 1);
    for (int64_t i = 0; i < n; i++)
        sum += v[i];
    qsort(v, (size_t)n, sizeof *v, by_value);
    int64_t below = (int64_t)at, above = below + 1 < n ? below + 1 : below;
    f->mean = sum / (double)n;
    f->p95 = v[below] + (at - (double)below) * (v[above] - v[below]);
    f->max = v[n - 1];
}

static void add_up(const MoeReplayRun *r, MoeArena *a) {
    MoeReplay *out = r->out;
    int layers = out->layers, from = r->o->warmup, n = out->steps - from, costed = 0;
    double *v = MOE_NEW_N(a, double, (int64_t)n *layers);
    for (int s = from; s < out->steps; s++)
        costed += s % out->seconds_every == 0;
    MoeReplayFigures *all = &out->all;
    for (int k = 0; k < layers; k++) {
        MoeReplayFigures *f = &out->layer[k];
        for (int s = 0; s < n; s++)
            v[s] = out->imbalance[(int64_t)(from + s) * layers + k];
        figures_of(v, n, f);
        f->move_seconds = r->layer_moves[k] / n;
        f->seconds = r->layer_seconds[k] / (costed ? costed : 1) + f->move_seconds;
        all->seconds += f->seconds;
        all->move_seconds += f->move_seconds;
        all->arrivals += f->arrivals;
        all->moves += f->moves;
        all->moved_bytes += f->moved_bytes;
        all->decisions += f->decisions;
        all->changes += f->changes;
        all->too_dear += f->too_dear;
        all->refused += f->refused;
    }
    memcpy(v, out->imbalance + (int64_t)from * layers, sizeof *v * (size_t)n * (size_t)layers);
    figures_of(v, (int64_t)n * layers, all);
    out->decide_seconds = moe_placer_seconds(r->placer);
}

/* ---- a replay ---- */

static MoeStatus run_steps(MoeReplayRun *r, MoeArena *a) {
    const MoeReplayObserver *s = r->see;
    for (r->step = 0; r->step < r->out->steps; r->step++) {
        int64_t step = r->out->first_step + r->step;
        MOE_TRY(decide(r, a));
        r->costed = r->step % r->out->seconds_every == 0;
        if (r->o->pool)
            moe_pool_run(r->o->pool, r->load->layers, moe_replay_measure, r);
        else
            for (int k = 0; k < r->load->layers; k++)
                moe_replay_measure(r, k, 0);
        for (int k = 0; k < r->load->layers && r->step >= r->o->warmup; k++)
            r->layer_seconds[k] += r->seconds[k];
        for (int k = 0; k < r->load->layers && s && s->division; k++)
            MOE_TRY(s->division(s->ctx, step, k, &r->maps[k], moe_replay_runs(r, k, 0)));
        moe_placer_observe(r->placer, step, r->counts, r->maps);
        if (s && s->progress)
            s->progress(s->progress_ctx, r->step + 1, r->out->steps);
    }
    return NULL;
}

/* Sources of a group: the trace's own where they divide over the ranks; else one a rank, or one for several
 * ranks. */
static int sources_for(const MoeLoad *l, const MoeReplayOptions *o) {
    int own = l->sources % o->groups == 0 ? l->sources / o->groups : 0;
    if (own && own % o->ranks == 0 && own <= MOE_LOAD_SOURCES / o->groups)
        return own;
    int n = o->ranks < MAX_SOURCES ? o->ranks : MAX_SOURCES;
    while (o->ranks % n)
        n--;
    return n;
}

static MoeStatus check_options(const MoeLoad *l, const MoeReplayOptions *o, int steps) {
    if (o->ranks < 1 || o->groups < 1 || (int64_t)o->ranks * o->groups > MOE_MAX_RANKS)
        return moe_error(MOE_E_MISUSE, "%d ranks in %d groups; expected 1 to %d in all", o->ranks,
                         o->groups, MOE_MAX_RANKS);
    int slots = (l->experts + o->ranks - 1) / o->ranks + o->extra_slots;
    if (o->extra_slots < 0 || o->extra_slots > l->experts || slots > l->experts)
        return moe_error(
            MOE_E_MISUSE,
            "%d extra slots make %d slots a rank for %d experts; a rank holds no expert twice",
            o->extra_slots, slots, l->experts);
    if (o->every < 1 || o->window < 1 || o->grain < 1 || o->warmup < 0)
        return moe_error(MOE_E_MISUSE,
                         "decisions every %d steps from %d steps, grain %d, warm-up %d; expected 1 "
                         "or more, warm-up 0 or more",
                         o->every, o->window, o->grain, o->warmup);
    if (o->warmup >= steps)
        return moe_error(MOE_E_MISUSE, "the trace has %d steps: none is left after a warm-up of %d",
                         steps, o->warmup);
    return NULL;
}

static void *grab(MoeArena *a, int64_t n, size_t size) {
    return moe_arena_alloc(a, (size_t)n * size);
}

static MoeStatus prepare(MoeReplayRun *r, MoeArena *a) {
    const MoeLoad *l = r->load;
    const MoeReplayOptions *o = r->o;
    MoeReplay *out = r->out;
    int layers = l->layers, threads = o->pool ? moe_pool_threads(o->pool) : 1;
    int64_t slots = (int64_t)o->ranks * out->slots;
    r->scratch_bytes = (size_t)moe_split_scratch(l->experts, o->ranks, out->slots, r->sources);
    size_t even = sizeof(int32_t) * 2 * (size_t)l->experts;
    r->scratch_bytes = ((r->scratch_bytes > even ? r->scratch_bytes : even) + 63) / 64 * 64;
    r->maps = grab(a, layers, sizeof *r->maps);
    r->before = grab(a, layers, sizeof *r->before);
    r->decisions = grab(a, layers, sizeof *r->decisions);
    r->counts = grab(a, (int64_t)layers * o->groups * r->sources * l->experts, sizeof(int32_t));
    r->by_expert = grab(a, (int64_t)threads * r->sources * l->experts, sizeof(int32_t));
    r->scratch = grab(a, threads, r->scratch_bytes);
    r->runs = grab(a, (int64_t)layers * o->groups * slots, sizeof *r->runs);
    r->replicas = grab(a, o->even ? (int64_t)layers * o->ranks * l->experts : 0, sizeof(int32_t));
    r->replicated = grab(a, layers, sizeof(bool));
    r->seconds = grab(a, layers, sizeof(double));
    r->layer_seconds = grab(a, layers, sizeof(double));
    r->layer_moves = grab(a, layers, sizeof(double));
    for (int k = 0; k < layers; k++) {
        MOE_TRY(moe_place_map_create(l->experts, o->ranks, out->slots, a, &r->maps[k]));
        MOE_TRY(moe_place_map_create(l->experts, o->ranks, out->slots, a, &r->before[k]));
    }
    return NULL;
}

MoeStatus moe_replay(const MoeLoad *load, const MoePolicy *policy, const MoeReplayOptions *o,
                     const MoeReplayObserver *see, MoeArena *a, MoeReplay *out) {
    int steps = load->steps > 1 ? load->steps : o->warmup + o->every;
    MOE_TRY(check_options(load, o, steps));
    double work = (double)load->layers * o->groups * o->ranks * o->ranks;
    *out = (MoeReplay){.policy = policy->name,
                       .steps = steps,
                       .layers = load->layers,
                       .first_step = load->first_step,
                       .slots = (load->experts + o->ranks - 1) / o->ranks + o->extra_slots,
                       .seconds_every = work > COST_WORK_MAX ? (int)ceil(work / COST_WORK_MAX) : 1};
    if (out->seconds_every > steps - o->warmup) /* one step at least */
        out->seconds_every = steps - o->warmup;
    out->imbalance = grab(a, (int64_t)steps * load->layers, sizeof(double));
    out->layer = grab(a, load->layers, sizeof *out->layer);
    out->watched = grab(a, o->watch < 0 ? 0 : steps, sizeof *out->watched);
    MoeArena *scratch = moe_arena_create();
    MoeReplayRun r = {
        .load = load, .o = o, .see = see, .out = out, .sources = sources_for(load, o)};
    MoePolicySetup setup = {.layers = load->layers,
                            .experts = load->experts,
                            .ranks = o->ranks,
                            .slots = out->slots,
                            .groups = o->groups,
                            .sources = o->groups * r.sources,
                            .grain = o->grain,
                            .every = o->every,
                            .window = o->window,
                            .seed = o->seed,
                            .cost = o->cost,
                            .program = o->program};
    r.policy = policy;
    r.setup = &setup;
    MoePlacerGate gate = o->gate;
    gate.unweighed = true; /* every step is measured anyway */
    MoeStatus st = prepare(&r, scratch);
    if (!st)
        st = moe_placer_create(policy, &setup, gate, &r.placer);
    if (!st)
        st = run_steps(&r, a);
    if (!st)
        add_up(&r, scratch);
    if (r.placer)
        moe_placer_destroy(r.placer);
    moe_arena_destroy(scratch);
    return st;
}

/* ---- what goes before ---- */

int moe_replay_worst_layer(const MoeLoad *l, int ranks) {
    int per = (l->experts + ranks - 1) / ranks, worst = 0;
    double most = -1;
    for (int k = 0; k < l->layers; k++) {
        double sum = 0;
        for (int s = 0; s < l->steps; s++) {
            const int32_t *c = moe_load_at(l, s, k);
            int64_t busiest = 0, total = 0;
            for (int first = 0; first < l->experts; first += per) {
                int64_t rows = 0;
                for (int e = first; e < first + per && e < l->experts; e++)
                    for (int i = 0; i < l->sources; i++)
                        rows += c[(int64_t)i * l->experts + e];
                busiest = rows > busiest ? rows : busiest;
                total += rows;
            }
            sum += total ? (double)busiest * ranks / (double)total : 1;
        }
        worst = sum > most ? k : worst;
        most = sum > most ? sum : most;
    }
    return worst;
}

MoeCluster moe_replay_default_cluster(int ranks) {
    int node = ranks < 8 ? ranks : 8;
    while (ranks % node)
        node--;
    return (MoeCluster){
        .nodes = ranks / node,
        .ranks_per_node = node,
        .links = {[MOE_LINK_INTRA] = {5e-6, 200e9}, [MOE_LINK_INTER] = {20e-6, 50e9}},
        .flops = 400e12,
        .memory_bandwidth = 2e12};
}

double moe_replay_mean_rows(const MoeLoad *l, int ranks, int groups) {
    int64_t cells = (int64_t)l->steps * l->layers * l->sources * l->experts, total = 0;
    for (int64_t i = 0; i < cells; i++)
        total += l->counts[i];
    return (double)total / ((double)l->steps * l->layers * ranks * groups);
}

void moe_replay_scale(MoePlaceCost *c, double scale) {
    c->row_seconds *= scale;
    c->token_bytes *= scale;
    c->row_bytes *= scale;
}
